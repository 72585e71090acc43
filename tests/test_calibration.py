import dataclasses
import functools
import json
import math
import random

import numpy as np
import pytest
import recordings
import specimens

from kt_bttackler import calibration, measures, replay, spared
from kt_bttackler.diagnosis import Diagnosis, Verdict, standing
from kt_bttackler.loss_indicators import PassiveLossChanges
from kt_bttackler.median_stopping import MedianStoppingRule
from kt_bttackler.rules import AnyFinding, AnyOf
from kt_bttackler.trace import Record, Trace

TASKS = [
    replay.Recording(recordings.search(60, seed=seed), f"task {seed}")
    for seed in (1, 2, 3)
]


# PLC that spares no falling loss, so that it can be too bold.
unguarded = functools.partial(PassiveLossChanges, progress_guard=math.inf)


def slow(trace, factor):
    """The same course, but all changes of the loss are smaller by a factor."""
    first = trace.scalar("loss")[0]

    def shrunk(record):
        loss = first + factor * (record.scalars["loss"] - first)
        scalars = {**record.scalars, "loss": loss, "first_batch_loss": first}
        return Record(record.epoch, record.seconds, scalars, record.columns)

    return Trace(trace.header, map(shrunk, trace.records), trace.end)


@pytest.fixture(scope="module")
def found():
    return calibration.calibrate(TASKS, max_regret=0.3)


def test_no_good_trial_of_any_task_is_stopped(found):
    for task in TASKS:
        [run] = replay.simulate(
            task, Diagnosis(found.diagnosis.indicators, AnyFinding())
        )
        stopped = [trial.outcome == "stopped" for trial in run.trials]
        assert measures.kill_regret(task.full_scores(), stopped).killed == 0
        assert sum(stopped) > 10
        [run] = replay.simulate(task, found.diagnosis)
        saved = sum(trial.seconds_saved for trial in run.trials)
        assert found.seconds_saved[task.name] == pytest.approx(saved / task.seconds)


def test_the_bound_is_that_of_tasks_left_out(found):
    """Found again without the package's folds: tuned on two tasks, judged on one."""
    killed = top = 0
    for left_out in TASKS:
        others = [task for task in TASKS if task is not left_out]
        # With the limit open, the same step is taken for a part of the tasks.
        part = [
            calibration._Task(t, Diagnosis("balanced"), 0.1, "live") for t in others
        ]
        known = [np.ones(len(task.weights), bool) for task in part]
        chosen = calibration._choose(part, known, Diagnosis("balanced"), found.step)
        diagnosis = Diagnosis(
            [i for i in chosen.values() if i is not None], AnyFinding()
        )
        [run] = replay.simulate(left_out, diagnosis)
        regret = measures.kill_regret(
            left_out.full_scores(), [t.outcome == "stopped" for t in run.trials]
        )
        killed, top = killed + regret.killed, top + regret.top
    assert (found.regret.killed, found.regret.top) == (killed, top) == (killed, 18)
    assert found.regret.upper <= 0.3
    assert found.judged_on == "tasks"


def test_the_result_says_what_stands_behind_it(found):
    text = str(found)
    assert "18 top trials stand behind the bound" in text
    assert f"can prove is {measures.upper_bound(0, 18):.3f}" in text
    assert found.provable == measures.upper_bound(0, 18)
    assert found.step == max(s for s, r in found.tried.items() if r.upper <= 0.3)


def test_a_limit_that_cannot_be_proven_is_refused_with_the_number():
    least = measures.upper_bound(0, 18)
    with pytest.raises(ValueError, match=rf"at least {least:.4f}, .* 18 top trials"):
        calibration.calibrate(TASKS, max_regret=least - 0.001)


def test_what_one_task_allows_is_not_taken_to_another():
    """Alone, a task without slow trainings would allow a disaster on one with them."""
    quick = replay.Recording(recordings.search(60, seed=1), "quick")
    crawl = replay.Recording(
        [slow(trace, 0.02) for trace in recordings.search(60, seed=2)], "crawling"
    )
    bold = Diagnosis([unguarded(threshold=1e-7)])
    alone = calibration.calibrate([quick], max_regret=0.9, diagnosis=bold)
    both = calibration.calibrate([quick, crawl], max_regret=0.9, diagnosis=bold)
    nearest = min(measures_of_good(task) for task in (quick, crawl))
    assert both.diagnosis["PLC"].threshold < nearest
    assert alone.diagnosis["PLC"].threshold > 2 * both.diagnosis["PLC"].threshold
    # The first step that would have stopped good trials of a task not seen ends it.
    assert list(both.tried) == list(calibration.STEPS)[: len(both.tried)]


def measures_of_good(task):
    """The smallest change of the loss of a good trial in the early stage."""
    plc = Diagnosis(["PLC"])["PLC"]
    best = np.argsort(-task.full_scores())[:12]
    values = [plc.measure(task.traces[k].prefix(n)) for k in best for n in range(2, 11)]
    return min(values)


def test_a_threshold_that_stops_good_trials_is_taken_back():
    bold = Diagnosis("balanced").replace("PLC", threshold=1.0, progress_guard=math.inf)
    found = calibration.calibrate(TASKS, max_regret=0.5, diagnosis=bold)
    before, after = found.thresholds["PLC"]
    assert (before, after) == (1.0, found.diagnosis["PLC"].threshold)
    assert after < 0.2


def test_a_single_task_is_judged_by_its_own_parts():
    found = calibration.calibrate(TASKS[:1], max_regret=0.5)
    assert found.judged_on == "parts of one task"
    assert found.regret.top == 6
    again = calibration.calibrate({"task 1": TASKS[0].traces}, max_regret=0.5)
    assert again == found


def test_trials_cut_short_are_left_out_and_counted():
    traces = list(TASKS[0].traces)
    traces[:10] = [recordings.cut(trace, 3) for trace in traces[:10]]
    found = calibration.calibrate({"a": traces}, max_regret=0.6)
    assert (found.unknown, found.trials) == (10, {"a": 50})


def test_the_result_is_a_diagnosis_for_the_callback(found, tmp_path):
    found.save(tmp_path / "calibrated.json")
    assert Diagnosis.load(tmp_path / "calibrated.json") == found.diagnosis
    assert found.diagnosis.rule == Diagnosis("balanced").rule


@pytest.mark.parametrize(
    ("stores", "options", "message"),
    [
        (TASKS, {"max_regret": 0.0}, r"`max_regret` must be in \(0, 1\), got 0.0"),
        (TASKS, {"fraction": 0.6}, r"`fraction` must be in \(0, 0.5\], got 0.6"),
        ({}, {}, "`stores` must hold at least one recorded search"),
        ({"none": []}, {}, "must hold complete trials, 'none' has none"),
        (
            TASKS,
            {"diagnosis": Diagnosis(rule=AnyOf((AnyFinding(), MedianStoppingRule())))},
            "a rule that stops on findings alone, got AnyOf",
        ),
    ],
)
def test_bad_arguments_are_named(stores, options, message):
    with pytest.raises(ValueError, match=message):
        calibration.calibrate(stores, **options)


# Trials that are spared.


def test_the_share_of_spared_trials_is_what_was_asked_for():
    diagnosis = Diagnosis(amnesty=0.2)
    spared_ids = [k for k in range(5000) if diagnosis.spares(f"{k:04d}")]
    assert len(spared_ids) / 5000 == pytest.approx(0.2, abs=0.02)
    assert not any(Diagnosis().spares(str(k)) for k in range(100))
    assert not diagnosis.spares(None)
    # Who is spared at a small share is spared at a larger one.
    larger = Diagnosis(amnesty=0.5)
    assert all(larger.spares(f"{k:04d}") for k in spared_ids)


def test_amnesty_survives_json_and_changes():
    diagnosis = Diagnosis(amnesty=0.05)
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis
    assert diagnosis.without("LAR").replace("ERG", threshold=1e-4).amnesty == 0.05
    content = json.loads(diagnosis.to_json())
    del content["amnesty"]
    assert Diagnosis.from_json(json.dumps(content)).amnesty == 0.0
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"`amnesty` must be in \[0, 1\), got"):
            Diagnosis(amnesty=share)


def spared_id(diagnosis, wanted=True):
    return next(str(k) for k in range(999) if diagnosis.spares(str(k)) == wanted)


def test_a_spared_trial_has_a_verdict_and_runs_on():
    diagnosis = Diagnosis(rule=AnyFinding(), amnesty=0.3)
    stuck = specimens.SICK["PLC"]
    lucky = recordings.replaced(stuck, trial_id=spared_id(diagnosis))
    verdict = diagnosis(lucky.prefix(2))
    assert (verdict.stop, verdict.amnesty, verdict.cause) == (False, True, "PLC")
    assert Verdict.from_json(verdict.to_json()) == verdict
    other = recordings.replaced(stuck, trial_id=spared_id(diagnosis, wanted=False))
    assert (diagnosis(other.prefix(2)).stop, diagnosis(other.prefix(2)).amnesty) == (
        True,
        False,
    )
    ended = recordings.cut(lucky, len(lucky), "finished")
    [run] = replay.simulate([ended], diagnosis)
    assert run.trials[0].outcome == "completed"
    assert run.trials[0].verdict == verdict


def test_what_is_not_finite_is_not_spared():
    diagnosis = Diagnosis(amnesty=0.99)
    broken = recordings.replaced(specimens.SICK["AGV"], trial_id=spared_id(diagnosis))
    assert diagnosis(broken).stop
    kept = Verdict(False, False, 2, "PLC", (), "AnyFinding", amnesty=True)
    stop = dataclasses.replace(kept, stop=True, amnesty=False, epoch=5)
    note = dataclasses.replace(kept, amnesty=False, epoch=4)
    assert standing(kept, note) is kept
    assert standing(kept, stop) is stop
    assert standing(stop, kept) is stop
    assert standing(note, None) is note


BOLD = 0.073


def costly_search(number, share):
    """A search whose diagnosis stops much that would have been good."""
    pool = [
        recordings.replaced(trace, trial_id=f"{number}-{k}")
        for k, trace in enumerate(recordings.search(80, seed=number, bad=0.4))
    ]
    indicators = [*Diagnosis(["AGV"]).indicators, unguarded(threshold=BOLD)]
    diagnosis = Diagnosis(indicators, AnyFinding(), amnesty=share)
    return pool, diagnosis


def searched(pool, diagnosis):
    """What is left of the traces when the diagnosis stops trials."""
    [run] = replay.simulate(pool, diagnosis)
    return [
        recordings.cut(pool[t.index], t.epochs)
        if t.outcome in ("stopped", "benign")
        else pool[t.index]
        for t in run.trials
    ]


def test_the_estimate_is_that_of_the_full_trainings_on_average():
    estimates, truths, covered = [], [], 0
    for number in range(16):
        pool, diagnosis = costly_search(number, 0.3)
        estimate = spared.estimate_regret(searched(pool, diagnosis), diagnosis)
        [run] = replay.simulate(pool, without_amnesty(diagnosis))
        truth = measures.kill_regret(
            replay.Recording(pool).full_scores(),
            [t.outcome == "stopped" for t in run.trials],
        )
        estimates.append(estimate.regret)
        truths.append(truth.rate)
        covered += estimate.upper >= truth.rate
        assert 0 < estimate.spared < estimate.flagged
    assert 0.1 < np.mean(truths) < 0.9
    assert np.mean(estimates) == pytest.approx(np.mean(truths), abs=0.1)
    assert covered >= 15


def without_amnesty(diagnosis):
    return Diagnosis(diagnosis.indicators, diagnosis.rule)


def test_an_indicator_that_wanted_to_stop_a_good_trial_is_loosened():
    pool, diagnosis = costly_search(3, 0.4)
    traces = searched(pool, diagnosis)
    adapted = spared.adapt(traces, diagnosis)
    before, after = adapted.loosened["PLC"]
    assert before == BOLD > after
    assert adapted.diagnosis["PLC"].threshold == after
    assert adapted.diagnosis.amnesty == 0.4
    assert adapted.estimate.good > 0
    # The good ones are not stopped by it any more.
    again = spared.estimate_regret(replay.Recording(pool), adapted.diagnosis)
    assert again.regret < adapted.estimate.regret
    assert "PLC: 0.073 ->" in str(adapted)


def test_without_a_good_spared_trial_nothing_changes():
    pool = recordings.search(60, seed=5)
    diagnosis = Diagnosis(amnesty=0.3)
    adapted = spared.adapt(searched(pool, diagnosis), diagnosis)
    assert (adapted.diagnosis, adapted.loosened) == (diagnosis, {})
    assert adapted.estimate.regret == 0.0
    assert "Nothing is to change." in str(adapted)


def test_a_diagnosis_that_spares_nobody_tells_nothing():
    with pytest.raises(ValueError, match="got an amnesty of 0"):
        spared.adapt(recordings.search(3), Diagnosis())


def test_an_indicator_without_a_threshold_is_left_out():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Moody(type(Diagnosis(["PLC"])["PLC"])):
        id = "MOODY"

        def _beyond(self, value, limit):
            return value < limit

    dice = random.Random(1)
    pool = [
        recordings.training("learning", dice, trial_id=str(k), started=float(k))
        for k in range(60)
    ]
    diagnosis = Diagnosis([Moody(threshold=0.2, progress_guard=math.inf)], amnesty=0.5)
    adapted = spared.adapt(searched(pool, diagnosis), diagnosis)
    assert adapted.loosened == {"MOODY": (0.2, math.inf)}
    assert adapted.diagnosis.indicators == ()
    assert "MOODY: out" in str(adapted)
