import math
import warnings

import keras
import numpy as np
import pytest
import reference_curves
from curves import finished, first_stop, trace

import kt_bttackler as ktb
from kt_bttackler import (
    AnyFinding,
    AnyOf,
    Diagnosis,
    DiagnosisCallback,
    LearningCurveExtrapolation,
    MedianStoppingRule,
    Patience,
    ProtectTop,
    TraceStore,
    channel,
    fuses,
    report,
)
from kt_bttackler.testing import check_rule
from kt_bttackler.trace import Header, Record, Trace

pytestmark = pytest.mark.filterwarnings("ignore:.*there are none to be seen here")
NAN, INF = math.nan, math.inf
RULE = MedianStoppingRule(start_epoch=1)
# Running averages at epochs 1, 2, 3: 0.4, 0.5, 0.55.
PEERS = [finished([0.4, 0.6, 0.65, 0.65]) for _ in range(5)]


def stops(values, peers=PEERS, rule=RULE, planned=4, **header):
    return first_stop(rule, values, peers, planned=planned, **header)


@pytest.mark.parametrize("rule", [MedianStoppingRule(), RULE, Patience(RULE)], ids=repr)
def test_keeps_the_contract(rule):
    check_rule(rule)


def test_the_best_so_far_is_held_against_the_median_of_running_averages():
    assert stops([0.39]) == 1
    assert stops([0.45, 0.3]) == 2
    assert stops([0.52, 0.1, 0.1]) == 3
    assert stops([0.1, 0.6, 0.1], rule=MedianStoppingRule(start_epoch=2)) is None


def test_a_tie_goes_on():
    assert stops([0.4, 0.5, 0.5]) == 3
    assert stops([0.4, 0.5], planned=3) is None


def test_losses_are_judged_the_other_way_round():
    peers = [finished([2.0, 1.0, 0.9], direction="min") for _ in range(5)]
    finding = RULE([()], trace([2.0, 1.6], 1e4, direction="min"), peers)[0]
    assert str(finding) == (
        "MSR at epoch 2: best objective against the median of others 1.6 > 1.5"
    )
    assert stops([2.0, 1.5], peers, planned=3, direction="min") is None


def test_judges_from_the_start_epoch_to_the_last_but_one():
    assert stops([0.0] * 4, rule=MedianStoppingRule(start_epoch=3)) == 3
    assert stops([0.0] * 4, rule=MedianStoppingRule(start_epoch=4)) is None
    assert stops([0.0] * 4, rule=MedianStoppingRule(start_epoch=4), planned=None) == 4


def test_needs_enough_completed_trials_that_lasted_so_long():
    assert stops([0.0] * 4, PEERS[:4]) is None
    short = [finished([0.4]), *PEERS[:4]]
    assert stops([0.0] * 4, short) == 1
    assert stops([0.5, 0.0, 0.0], short) is None


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
@pytest.mark.parametrize("direction", ["min", "max"])
def test_values_of_others_that_are_not_finite_are_worst(direction, broken):
    sign = 1 if direction == "max" else -1
    peers = [finished([sign * 0.5] * 4, direction=direction) for _ in range(3)]
    spoilt = [finished([broken, *[sign * 0.9] * 3], direction=direction)] * 2
    here = {"peers": peers + spoilt, "direction": direction}
    assert stops([sign * 0.4] * 3, **here) == 1
    assert stops([sign * 0.6] * 3, **here) is None
    here["peers"] = peers[:2] + 2 * spoilt
    assert stops([sign * 0.4] * 3, **here) is None, "most of the others were worse"


def test_of_ones_own_curve_the_finite_values_count():
    assert stops([NAN] * 3) is None
    assert stops([NAN, 0.45, NAN]) == 2
    assert stops([0.6, NAN, NAN]) is None


def test_epochs_without_an_objective_are_neither_judged_nor_counted():
    peers = [finished([None, 0.6, None, 0.7]) for _ in range(5)]
    assert stops([None, 0.5, None], peers) == 2
    assert stops([None, 0.6, 0.6], peers) is None
    assert stops([None] * 3, peers) is None
    assert stops([0.1], peers) is None, "nothing is known of the others so early"


def test_an_epoch_that_was_broken_off_is_not_judged():
    records = [Record(1, 1.0, {"objective": 0.0}, partial=True)]
    mine = Trace(Header(started=1e4, direction="max"), records)
    assert RULE([()], mine, PEERS) == ()


def test_sees_only_what_existed_at_that_moment():
    later = [finished([0.4] * 4, started=98.0) for _ in range(5)]
    assert RULE([()], trace([0.0], started=100.0), later) == ()
    assert RULE([()], trace([0.0], started=101.0), later)
    assert RULE([()], trace([0.0, 0.0], started=100.0), later)


def test_trials_that_were_stopped_or_run_count_only_when_asked_for():
    stopped = [trace([0.4] * 4, end="stopped") for _ in range(5)]
    running = [trace([0.4] * 4) for _ in range(5)]
    assert stops([0.0], stopped) is None
    assert stops([0.0], running) is None
    generous = MedianStoppingRule(start_epoch=1, include_stopped=True)
    assert stops([0.0], stopped, generous) == 1
    assert stops([0.0], running, generous) is None


def test_every_trial_counts_once_and_not_against_itself():
    one = [finished([0.4] * 4, trial_id="7", execution=k) for k in range(5)]
    assert stops([0.0], one) is None
    several = [finished([0.4] * 4, trial_id=str(k)) for k in range(5)]
    assert stops([0.0], several) == 1
    assert stops([0.0], several, trial_id="3") is None


def test_other_objectives_and_resumed_trainings_are_not_compared():
    assert stops([0.0], objective="val_accuracy") is None
    assert stops([0.0], [finished([0.4] * 4, direction="min")] * 5) is None
    assert stops([0.0], initial_epoch=2) is None


@pytest.mark.parametrize("direction", ["min", "max"])
def test_decides_like_the_reference_in_any_unit_and_direction(direction):
    draw = np.random.default_rng(4)
    fired = 0
    for _ in range(60):
        rule = MedianStoppingRule(
            int(draw.integers(1, 4)), int(draw.integers(1, 6)), bool(draw.integers(2))
        )
        curves = np.cumsum(draw.normal(0.1, 0.3, size=(8, 6)), axis=1)
        curves[draw.uniform(size=curves.shape) < 0.05] = draw.choice([NAN, INF, -INF])
        ends = draw.choice(["finished", "finished", "stopped"], size=7)
        lengths = draw.integers(2, 7, size=7)
        for scale, shift in ((1.0, 0.0), (1000.0, -7.0), (1e-6, 0.0)):
            for sign, way in (
                (1, direction),
                (-1, "max" if direction == "min" else "min"),
            ):
                peers = [
                    trace(sign * (scale * c[:n] + shift), end=end, direction=way,
                          started=draw.uniform(0, 10))
                    for c, n, end in zip(curves, lengths, ends, strict=False)
                ]  # fmt: skip
                mine = trace(
                    sign * (scale * curves[7] + shift), 30.0, direction=way, planned=6
                )
                answers = [rule([()], prefix, peers) for prefix in mine.prefixes()]
                for prefix, answer in zip(mine.prefixes(), answers, strict=True):
                    expected = reference_curves.median_stopping(rule, prefix, peers)
                    assert bool(answer) == (expected is not None)
                    if answer:
                        measured = (answer[0].value, answer[0].threshold)
                        assert measured == pytest.approx(expected)
                        fired += 1
                decided = [bool(answer) for answer in answers]
                if (scale, sign) == (1.0, 1):
                    first = decided
                assert decided == first, "a unit or a sign changes the decision"
    assert fired > 50


def test_alone_it_gives_the_verdict():
    diagnosis = Diagnosis(indicators=(), rule=RULE)
    verdict = diagnosis(trace([0.2], 1e4), PEERS)
    assert (verdict.stop, verdict.benign, verdict.cause) == (True, False, "MSR")
    assert verdict.rule == "MedianStoppingRule"
    assert (verdict.findings[0].value, verdict.findings[0].threshold) == (0.2, 0.4)
    assert diagnosis(trace([0.2], 1e4)) is None
    assert diagnosis(trace([0.6], 1e4), PEERS) is None


def test_beside_indicators_the_sickness_is_named_first():
    both = Diagnosis(rule=AnyOf((ProtectTop(AnyFinding()), RULE)))
    records = [
        Record(n, float(n), {"loss": 2.3, "first_batch_loss": 2.3, "objective": 0.1})
        for n in (1, 2, 3)
    ]
    stuck = Trace(Header(started=1e4, direction="max", max_epochs=20), records)
    verdict = both(stuck, PEERS)
    assert [f.indicator for f in verdict.findings] == ["PLC", "MSR"]
    assert verdict.cause == "PLC"
    assert both(stuck, iter(PEERS)) == verdict, "peers may be given as an iterator"
    assert both(trace([0.2], 1e4), PEERS).cause == "MSR"


def test_it_beats_a_benign_end():
    records = [
        Record(n, float(n), {"loss": loss, "objective": 0.1})
        for n, loss in enumerate([2.0, 1.0, 0.6, 0.5, 0.4, 0.5, 0.5, 0.5, 0.5], 1)
    ]
    over = Trace(Header(started=1e4, direction="max", max_epochs=10), records)
    peers = [finished([0.5] * 10) for _ in range(5)]
    both = Diagnosis(rule=AnyOf((AnyFinding(), RULE)))
    verdict = both(over, peers)
    assert [f.indicator for f in verdict.findings] == ["MSR", "NMG"]
    assert not verdict.benign
    assert both(over).benign


def test_patience_asks_for_several_epochs():
    assert stops([0.39, 0.6, 0.1], rule=Patience(RULE)) is None
    assert stops([0.39, 0.4, 0.1], rule=Patience(RULE)) == 2


@pytest.mark.parametrize(
    "rule",
    [
        MedianStoppingRule(3, 2, True),
        LearningCurveExtrapolation(7, "domhan", 0.1, 0.5),
        AnyOf((ProtectTop(AnyFinding()), Patience(MedianStoppingRule()))),
    ],
    ids=repr,
)
def test_survives_json(rule):
    diagnosis = Diagnosis(rule=rule)
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis


def test_the_channel_and_the_report_know_what_to_say():
    verdict = Diagnosis((), RULE)(trace([0.2], 1e4), PEERS)
    message = channel.decode(channel.encode(verdict, {"val_accuracy": 0.2}))
    assert message.verdict.findings == verdict.findings
    assert "narrow the search" in report.known_indicators()["MSR"].advice


@pytest.mark.parametrize("rule", [RULE, LearningCurveExtrapolation(1)], ids=repr)
def test_without_others_it_abstains_with_one_warning(rule):
    fuses.warn_once.cache_clear()
    lonely = trace(np.linspace(0, 1, 10))
    with pytest.warns(RuntimeWarning, match="there are none to be seen here") as seen:
        assert not any(rule([()], prefix) for prefix in lonely.prefixes())
    assert len(seen) == 1


def test_the_first_trial_of_a_search_is_no_reason_to_warn():
    fuses.warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RULE([()], trace([0.5], trial_id="0"), []) == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MedianStoppingRule(0), "`start_epoch` must be at least 1, got 0"),
        (
            lambda: MedianStoppingRule(min_completed=0),
            "`min_completed` must be at least 1, got 0",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


X = np.random.default_rng(1).normal(size=(32, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("float32")[:, None]


def build(hp):
    """Trainings that are sound, and slow or fast."""
    rate = hp.Float("rate", 1e-4, 1.0, sampling="log")
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, activation="sigmoid")]
    )
    model.compile(
        keras.optimizers.SGD(rate), "binary_crossentropy", metrics=["accuracy"]
    )
    return model


def searched(tmp_path, diagnosis, objective, epochs):
    tuner = ktb.RandomSearch(
        build,
        objective=objective,
        max_trials=8,
        seed=5,
        directory=tmp_path,
        project_name="p",
    )
    tuner.search(
        X, Y, validation_data=(X, Y), epochs=epochs, batch_size=8, verbose=0,
        callbacks=[DiagnosisCallback(diagnosis)],
    )  # fmt: skip
    return tuner


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    ("rule", "objective", "cause"),
    [
        (MedianStoppingRule(start_epoch=2, min_completed=3), "val_loss", "MSR"),
        (LearningCurveExtrapolation(), "val_loss", "LCE"),
    ],
    ids=["MSR", "LCE"],
)
def test_a_search_stops_what_lags_behind_and_replay_agrees(
    tmp_path, rule, objective, cause
):
    diagnosis = Diagnosis((), rule)
    tuner = searched(tmp_path, diagnosis, objective, 10 if cause == "LCE" else 6)
    traces = list(TraceStore(tmp_path / "p"))
    assert len(traces) == 8
    stopped = 0
    for mine in traces:
        trial = tuner.oracle.trials[mine.header.trial_id]
        others = [t for t in traces if t.header.trial_id != mine.header.trial_id]
        replayed = [diagnosis(prefix, others) for prefix in mine.prefixes()]
        live = ktb.diagnosis_of(tmp_path / "p" / f"trial_{trial.trial_id}")
        assert [v for v in replayed if v] == ([live] if live else [])
        if live is None:
            assert (trial.status, mine.end) == ("COMPLETED", "finished")
            continue
        stopped += 1
        assert (live.cause, live.benign, mine.end) == (cause, False, "stopped")
        assert live.epoch == mine.epoch < mine.max_epochs
        assert trial.status == "STOPPED"
        assert trial.score == pytest.approx(mine.scalar("objective")[-1])
        assert trial.message == live.message
        assert trial.message.splitlines()[0] == str(live.findings[0])
        assert str(live).startswith(f"{cause} at epoch {live.epoch}: ")
    assert 0 < stopped < 8
    best = tuner.oracle.get_best_trials(1)[0]
    assert best.status == "COMPLETED"


def test_a_fit_without_a_search_warns_once_and_goes_on():
    fuses.warn_once.cache_clear()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = DiagnosisCallback(Diagnosis((), RULE))
    with pytest.warns(RuntimeWarning, match="MSR compares a trial") as seen:
        model.fit(X, Y, epochs=3, verbose=0, callbacks=[callback])
    assert len([w for w in seen if "MSR" in str(w.message)]) == 1
    assert callback.verdict is None
    assert callback.trace.epoch == 3
