import dataclasses
import math

import numpy as np
import pytest
import recordings
import specimens

from kt_bttackler import measures, replay
from kt_bttackler.catalog import FURTHER, SEVEN
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.sweeping import Outcomes, is_tunable, levels, sweep
from kt_bttackler.trace import Record, Trace


def enriched(trace, number):
    """The trace with statistics of outputs, so that further indicators judge."""
    spread = 0.01 * (1 + number % 7) if trace.scalar("loss")[-1] > 2 else 0.6
    records = [
        Record(
            r.epoch,
            r.seconds,
            {
                **r.scalars,
                "label/trivial_loss": 2.303,
                "label/trivial_error": 0.02 * (number % 3),
                "output/spread": spread * (1 + 0.1 * r.epoch),
            },
            r.columns,
        )
        for r in trace.records
    ]
    return Trace(trace.header, records, trace.end)


POOL = replay.Recording(
    enriched(
        recordings.replaced(trace, stop_delay=number % 2)
        if number % 5
        else recordings.replaced(
            trace, unobserved={"activation": "no"}, trial_id=trace.header.trial_id
        ),
        number,
    )
    for number, trace in enumerate(recordings.search(40, seed=8))
)
TUNABLE = [cls() for cls in (*SEVEN, *FURTHER) if is_tunable(cls())]


def test_what_can_be_tuned():
    ids = {indicator.id for indicator in TUNABLE}
    assert {"EAG", "ERG", "PLC", "LAR", "ULC", "NO_PROGRESS", "COLLAPSED_OUTPUT"} <= ids
    assert not ids & {"AGV", "NMG", "WORSE_THAN_CONSTANT"}


@pytest.mark.parametrize("indicator", TUNABLE, ids=lambda indicator: indicator.id)
def test_a_sweep_equals_the_replay_of_each_threshold(indicator):
    found = np.concatenate([levels(indicator, trace) for trace in POOL.traces])
    found = np.unique(found[np.isfinite(found)])
    # Thresholds between and at what was measured, and beyond all of it.
    some = found[:: max(1, len(found) // 12)]
    between = 0.5 * (some[:-1] + some[1:])
    # Where the limit is a multiple of the threshold, rounding decides at a level.
    at = some if type(indicator).limit is QualityIndicator.limit else some[:0]
    thresholds = np.unique([*at, *between, 1e-12, 1e9])
    swept = sweep(POOL, indicator, thresholds)
    full = POOL.full_scores()
    for k, threshold in enumerate(thresholds.tolist()):
        alone = Diagnosis([dataclasses.replace(indicator, threshold=threshold)])
        [run] = replay.simulate(POOL, alone)
        stopped = [trial.outcome == "stopped" for trial in run.trials]
        saved = sum(trial.seconds_saved for trial in run.trials) / POOL.seconds
        regret = measures.kill_regret(full, stopped)
        assert swept.claimed[k] == sum(stopped)
        assert swept.seconds_saved[k] == pytest.approx(saved)
        assert (swept.killed[k], swept.top) == (regret.killed, regret.top)


def test_the_sweeps_of_these_tests_stop_something():
    claimed = {
        indicator.id: sweep(POOL, indicator, np.logspace(-6, 3, 40)).claimed
        for indicator in TUNABLE
    }
    for needed in ("ERG", "PLC", "LAR", "ULC", "NO_PROGRESS", "COLLAPSED_OUTPUT"):
        assert claimed[needed].max() >= 3
        assert len(set(claimed[needed])) > 1


def test_only_complete_trials_are_swept():
    short = [recordings.cut(trace, 12) for trace in POOL.traces[:10]]
    mixed = replay.Recording([*short, *POOL.traces[10:]])
    assert len(Outcomes(mixed).traces) == 30
    nothing = sweep(replay.Recording(short), TUNABLE[0], [1.0])
    assert (nothing.top, nothing.claimed.tolist()) == (0, [0])


def test_what_has_no_threshold_is_not_swept():
    agv = Diagnosis().indicators[0]
    with pytest.raises(ValueError, match="no threshold to sweep: AGV"):
        sweep(POOL, agv, [1.0])


def test_a_level_is_nan_where_no_threshold_stops():
    healthy = specimens.HEALTHY["exponential"]
    late = next(i for i in TUNABLE if i.id == "ULC")
    assert [math.isnan(level) for level in levels(late, healthy)][:10] == [True] * 10
