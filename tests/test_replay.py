import math

import numpy as np
import pytest
import recordings
import reference_replay as reference
import specimens

from kt_bttackler import replay
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.learning_curves import LearningCurveExtrapolation
from kt_bttackler.median_stopping import MedianStoppingRule
from kt_bttackler.presets import PRESETS
from kt_bttackler.rules import AnyFinding, AnyOf, NeverStop, Patience, ProtectTop
from kt_bttackler.trace import Header, Record, Trace

POOL = recordings.search(24, seed=1)
PEERS = Diagnosis(
    rule=AnyOf(
        (
            ProtectTop(AnyFinding(), fraction=0.3, min_peers=3),
            MedianStoppingRule(start_epoch=3, min_completed=3),
        )
    )
)
DIAGNOSES = {name: Diagnosis(name) for name in PRESETS} | {
    "never": Diagnosis(rule=NeverStop()),
    "patience": Diagnosis("paper", Patience(AnyFinding(), 2)),
    "peers": PEERS,
    "amnesty": Diagnosis("balanced", amnesty=0.5),
    "msr alone": Diagnosis((), MedianStoppingRule(start_epoch=2, min_completed=2)),
}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", DIAGNOSES)
def test_a_simulated_search_equals_its_slow_twin(name, workers):
    diagnosis = DIAGNOSES[name]
    [run] = replay.simulate(POOL, diagnosis, workers=workers)
    expected = reference.simulate(POOL, diagnosis, workers)
    assert [(t.verdict, t.started, t.ended, t.epochs) for t in run.trials] == expected


def test_peers_matter_in_the_search_of_these_tests():
    def verdicts(diagnosis):
        return [t.verdict for t in replay.simulate(POOL, diagnosis)[0].trials]

    causes = {v.cause for v in verdicts(PEERS) if v}
    assert "MSR" in causes
    assert len(causes) > 3
    bold = ProtectTop(AnyFinding(), fraction=0.7, min_peers=3)
    assert verdicts(Diagnosis(rule=bold)) != verdicts(Diagnosis(rule=AnyFinding()))


@pytest.mark.parametrize("delay", [0, 1, 30])
def test_a_stop_comes_as_late_as_it_did_live(delay):
    pool = [recordings.replaced(trace, stop_delay=delay) for trace in POOL]
    [run] = replay.simulate(pool, Diagnosis())
    assert [
        (t.verdict, t.started, t.ended, t.epochs) for t in run.trials
    ] == reference.simulate(pool, Diagnosis(), 1)
    stopped = [t for t in run.trials if t.outcome == "stopped"]
    assert len(stopped) > 3
    assert all(t.epochs == min(20, t.verdict.epoch + delay) for t in stopped)


def test_a_verdict_is_that_of_the_prefixes_alone_without_peers():
    diagnosis = Diagnosis(rule=AnyFinding())
    for trace in POOL:
        [run] = replay.simulate([trace], diagnosis)
        verdicts = [diagnosis(prefix) for prefix in trace.prefixes()]
        stops = [verdict for verdict in verdicts if verdict and verdict.stop]
        found = [verdict for verdict in verdicts if verdict]
        assert run.trials[0].verdict == (stops[:1] or found[-1:] or [None])[0]


def test_traces_are_neither_copied_nor_changed():
    before = [(t.header.started, t.end, len(t)) for t in POOL]
    replay.simulate(POOL, PEERS, workers=2, order="resampled", repeats=2)
    assert [(t.header.started, t.end, len(t)) for t in POOL] == before
    view = POOL[0].with_header(Header(started=5.0))
    assert view.records[3] is POOL[0].records[3]
    assert view.scalar("loss").base is POOL[0].scalar("loss").base
    assert (view.moment, view.end) == (5.0 + POOL[0].seconds[-1], "finished")


@pytest.mark.parametrize("score", ["live", "last"])
@pytest.mark.parametrize("direction", ["max", "min"])
def test_scores_are_those_of_a_live_search(score, direction):
    pool = [recordings.replaced(trace, direction=direction) for trace in POOL]
    [run] = replay.simulate(pool, Diagnosis(), score=score)
    seen = set()
    for trial in run.trials:
        best = score == "live" and trial.outcome != "stopped"
        expected = reference.score(pool[trial.index], trial.epochs, best)
        assert trial.score == expected
        seen.add(trial.outcome)
    assert seen == {"completed", "benign", "stopped"}
    full = replay.Recording(pool).full_scores(score)
    assert full.tolist() == [
        reference.score(trace, 20, score == "live") for trace in pool
    ]


def test_what_an_earlier_stop_cut_short_is_unknown_unless_stopped_sooner():
    stuck, fine = specimens.SICK["PLC"], specimens.HEALTHY["exponential"]
    pool = [
        recordings.cut(recordings.replaced(stuck, trial_id="early"), 1),
        recordings.cut(recordings.replaced(stuck, trial_id="late"), 8),
        recordings.cut(recordings.replaced(fine, trial_id="killed"), 8, end=None),
        recordings.cut(recordings.replaced(fine, trial_id="whole"), 19, "finished"),
    ]
    [run] = replay.simulate(pool, Diagnosis())
    outcomes = {trial.trial_id: trial.outcome for trial in run.trials}
    assert outcomes == {
        "early": "unknown",
        "late": "stopped",
        "killed": "unknown",
        "whole": "completed",
    }
    unknown = [trial for trial in run.trials if trial.outcome == "unknown"]
    assert all(math.isnan(trial.score) for trial in unknown)
    assert [trial.epochs for trial in unknown] == [1, 8]
    # What the full training would have taken is not known either.
    assert [trial.seconds_saved for trial in run.trials] == [0.0] * 4
    known = replay.Recording(pool).full_scores()
    assert np.isnan(known).tolist() == [True, True, True, False]


def test_seconds_saved_are_those_of_the_epochs_not_trained():
    [run] = replay.simulate(POOL, Diagnosis())
    for trial in run.trials:
        trace = POOL[trial.index]
        assert trial.epochs + trial.epochs_saved == 20
        left = trace.seconds[-1] - trace.seconds[trial.epochs - 1]
        assert trial.seconds_saved == pytest.approx(left)
    saved = sum(trial.seconds_saved for trial in run.trials)
    assert run.seconds + saved == pytest.approx(replay.Recording(POOL).seconds)


def test_a_budget_cuts_what_runs_and_starts_nothing_after_it():
    [whole] = replay.simulate(POOL, Diagnosis(), workers=2)
    budget = 0.5 * whole.seconds
    [run] = replay.simulate(POOL, Diagnosis(), workers=2, budget=budget)
    assert run.seconds == budget
    assert 0 < run.count("cut") <= 2
    assert run.finished == sum(trial.ended <= budget for trial in whole.trials)
    for before, after in zip(whole.trials, run.trials, strict=False):
        assert after.started == before.started <= budget
        if after.outcome == "cut":
            assert after.ended == math.inf
            assert math.isnan(after.score)
            assert after.epochs <= before.epochs
        else:
            assert after == before


def test_resampled_orders_are_those_of_the_seed_whatever_the_diagnosis():
    def drawn(diagnosis, **options):
        runs = replay.simulate(POOL, diagnosis, order="resampled", **options)
        return [[trial.index for trial in run.trials] for run in runs]

    plain = drawn(DIAGNOSES["never"], repeats=3, seed=7)
    assert drawn(Diagnosis(), repeats=3, seed=7) == plain
    assert len({tuple(order) for order in plain}) == 3
    assert drawn(Diagnosis(), repeats=1, seed=8) != plain[:1]
    assert all(len(order) == len(POOL) for order in plain)
    # With a budget the draw goes on for as long as there is time.
    budget = 2.5 * replay.Recording(POOL).seconds
    [long] = drawn(Diagnosis(), seed=7, budget=budget)
    assert long[: len(POOL)] == plain[0]
    assert len(long) > 3 * len(POOL)


def test_a_trace_drawn_twice_is_two_trials():
    [run] = replay.simulate(POOL[:2], PEERS, order="resampled", budget=500.0)
    ids = [trial.trial_id for trial in run.trials]
    assert len(set(ids)) == len(ids)
    assert set(ids) >= {"000", "000/1", "001", "001/1"}


def test_equal_moments_come_in_the_order_in_which_they_were_planned():
    def steady(name):
        records = [Record(n, float(n), {"loss": 1.0 / n}) for n in (1, 2)]
        return Trace(Header(name, max_epochs=2), records, "finished")

    [run] = replay.simulate([steady(k) for k in "abcdef"], Diagnosis(), workers=3)
    assert [(t.trial_id, t.started) for t in run.trials] == [
        ("a", 0.0), ("b", 0.0), ("c", 0.0), ("d", 2.0), ("e", 2.0), ("f", 2.0),
    ]  # fmt: skip


def test_only_first_executions_are_trials_and_empty_traces_are_none():
    first = recordings.replaced(POOL[0], trial_id="a")
    again = recordings.replaced(first, execution=1)
    recording = replay.Recording([first, again, Trace(Header("b"))])
    assert (len(recording), recording.left_out) == (1, 2)
    nameless = [recordings.replaced(trace, trial_id=None) for trace in POOL[:3]]
    assert len(replay.Recording(nameless)) == 3
    assert replay.simulate([], Diagnosis())[0].trials == ()
    assert replay.simulate([], Diagnosis(), order="resampled")[0].trials == ()


def test_recorded_order_is_that_of_the_starts():
    [run] = replay.simulate(POOL[::-1], Diagnosis())
    assert [trial.trial_id for trial in run.trials] == [
        trace.header.trial_id for trace in POOL
    ]


class Late(QualityIndicator):
    """Raises, but only from epoch 5 on."""

    needs = frozenset({"loss"})

    def measure(self, trace):
        if trace.epoch >= 5:
            raise RuntimeError("stumbled")
        return 2.0 if trace.epoch == 3 else 0.0


@pytest.mark.filterwarnings("ignore:indicator LATE is off")
def test_an_indicator_that_raises_later_is_heard_before():
    diagnosis = Diagnosis([Late(threshold=1.0)])
    [run] = replay.simulate(POOL[:1], diagnosis)
    assert (run.trials[0].verdict.cause, run.trials[0].epochs) == ("LATE", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "`workers` must be at least 1, got 0"),
        ({"repeats": 0}, "`repeats` must be at least 1, got 0"),
        ({"budget": 0.0}, "`budget` must be positive, got 0.0"),
        ({"order": "random"}, "`order` must be 'recorded' or 'resampled'"),
        ({"score": "first"}, "`score` must be 'live' or 'last', got 'first'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        replay.simulate(POOL[:2], Diagnosis(), **options)


def test_one_search_has_one_objective():
    other = recordings.replaced(POOL[1], objective="val_loss")
    with pytest.raises(ValueError, match="must have one objective"):
        replay.simulate([POOL[0], other], Diagnosis())
    timeless = Trace(Header("a"), [Record(1, 0.0, {})], "finished")
    with pytest.raises(ValueError, match="took no time"):
        replay.simulate([timeless], Diagnosis(), order="resampled", budget=1.0)


def test_extrapolation_is_replayed_too():
    diagnosis = Diagnosis((), LearningCurveExtrapolation(start_epoch=10))
    pool = POOL[:8]
    [run] = replay.simulate(pool, diagnosis, workers=2)
    assert [
        (t.verdict, t.started, t.ended, t.epochs) for t in run.trials
    ] == reference.simulate(pool, diagnosis, 2)
