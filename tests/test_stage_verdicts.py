"""What a verdict on a stage means for the other trials that go through it."""

from __future__ import annotations

import types
from typing import Any

import keras
import numpy as np
import pytest
import staging
from staging import ROWS, dense, searched, tuner

import kt_bttackler as ktb
from kt_bttackler import channel, stages
from kt_bttackler.catalog import known_indicators
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.indicators import Finding
from kt_bttackler.stages.store import StageStore
from kt_bttackler.stages.verdicts import SCOPES, StageVerdict, judge_name
from kt_bttackler.trace import read_trace

LOGS = [{"loss": 1.0}, {"loss": 0.9}]


def verdict(cause: str) -> StageVerdict:
    return StageVerdict(cause, {}, LOGS, "0")


def rates(*values: float) -> Any:
    return [(("learning_rate", value),) for value in values]


@pytest.mark.parametrize(
    ("cause", "same", "lowered", "other_start"),
    [
        ("AGV", True, True, True),
        ("PLC", True, False, False),
        ("HIGH_DROPOUT", True, True, True),
        ("OVERFIT", False, False, False),
        ("MSR", False, False, False),
        ("ONE_OF_THE_USERS", False, False, False),
    ],
)
def test_whom_a_verdict_concerns(
    cause: str, same: bool, lowered: bool, other_start: bool
) -> None:
    found = verdict(cause)
    assert found.concerns(rates(1, 1, 1, 1)) is same
    # It is lowered at once, or later: both may cure it.
    assert found.concerns(rates(1, 1, 0.1, 0.1)) is lowered
    assert found.concerns(rates(1, 1, 1, 0.1)) is lowered
    assert found.concerns(rates(2, 2, 2, 0.1)) is other_start


def test_scopes_are_of_indicators_that_exist() -> None:
    known = known_indicators()
    assert set(SCOPES) <= set(known)
    assert not any(known[name].benign for name in SCOPES)


def test_benign_verdicts_and_none_are_nobody_else_s() -> None:
    finding = Finding(indicator="NMG", epoch=2, value=1.0, threshold=1.0)
    benign = Verdict(
        stop=True, benign=True, epoch=2, cause="NMG", findings=(finding,), rule=""
    )
    for entries in (channel.encode(benign, {}), channel.encode(None, {}), {}):
        assert StageVerdict.of(entries, LOGS, "0") is None


def build_exploding(hp: Any) -> keras.Model:
    rate = stages.schedule(
        hp,
        "learning_rate",
        "step",
        start=[1e30, 0.01],
        milestones=[2, 3],
        factor=[0.1, 0.5],
    )
    return dense(keras.optimizers.SGD(rate))


def test_a_sick_stage_ends_every_trial_that_depends_on_it(tmp_path: Any) -> None:
    made = tuner(build_exploding, tmp_path)
    ends = searched(made, ktb.DiagnosisCallback(), fit=ROWS)
    trials = list(made.oracle.trials.values())
    sick = [t for t in trials if t.hyperparameters.values["learning_rate/start"] > 1]
    assert [trial.status for trial in sick] == ["STOPPED"] * 4
    assert len({trial.message for trial in sick}) == 1
    assert sick[0].message.startswith("AGV at epoch 1")
    assert [trial.status for trial in trials].count("COMPLETED") == 4
    assert made.usage.cancelled == 3
    # One epoch of the sick ones, and the four others as without diagnosis.
    assert ends.trained == 1 + 13
    assert made.oracle.get_best_trials(1)[0].status == "COMPLETED"


@pytest.mark.parametrize(
    "confirmed", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_many_trials_are_not_ended_by_one_seed(
    confirmed: bool, tmp_path: Any, monkeypatch: Any
) -> None:
    made = tuner(build_exploding, tmp_path, second_opinion=3)
    if not confirmed:  # with another seed all is well
        train = made._train

        def healthy(trial: Any, arguments: Any, seed: int, *others: Any) -> Any:
            own = seed == made._seed_of(trial, 0)
            none = types.SimpleNamespace(verdict=None)
            return train(trial, arguments, seed, *others) if own else none

        monkeypatch.setattr(made, "_train", healthy)
    made.search(**ROWS, callbacks=[ktb.DiagnosisCallback()])
    statuses = [trial.status for trial in made.oracle.trials.values()]
    assert sorted(statuses) == ["COMPLETED"] * 4 + ["STOPPED"] * 4
    if confirmed:
        assert (made.usage.second_opinions, made.usage.cancelled) == (1, 3)
        # With another seed the first epoch is trained once more.
        assert made.usage.trained == 1 + 1 + 13
    else:
        assert (made.usage.second_opinions, made.usage.cancelled) == (4, 0)


@pytest.mark.slow
def test_some_trials_are_controls(tmp_path: Any, monkeypatch: Any) -> None:
    found = StageVerdict("DEAD_UNITS", {}, [{"val_loss": 1.0}], "0")
    monkeypatch.setattr(StageStore, "verdict", lambda *_: found)
    made = tuner(staging.build_dense, tmp_path, control_share=1.0)
    ends = searched(made, ktb.DiagnosisCallback(), fit=ROWS)
    assert made.usage.controls == dict.fromkeys(made.oracle.trials, "DEAD_UNITS")
    assert (made.usage.cancelled, ends.trained) == (0, 13)
    statuses = {trial.status for trial in made.oracle.trials.values()}
    assert statuses == {"COMPLETED"}


def test_a_second_study_knows_the_verdict(tmp_path: Any) -> None:
    def build(hp: Any) -> keras.Model:
        rate = stages.schedule(
            hp,
            "learning_rate",
            "step",
            start=[1e30, 0.01],
            milestones=[1, 2],
            factor=0.1,
        )
        return dense(keras.optimizers.SGD(rate))

    def study(name: str, *callbacks: Any) -> Any:
        made = tuner(
            build, tmp_path, epochs=2, stage_dir=tmp_path / "s", project_name=name
        )
        searched(made, *callbacks, fit=ROWS)
        return made.usage

    assert study("first", ktb.DiagnosisCallback()).cancelled == 1
    usage = study("second", ktb.DiagnosisCallback())
    assert (usage.cancelled, usage.trained) == (2, 0)
    # Another diagnosis judges for itself; who only watches, ends nothing.
    lax = ktb.Diagnosis().without("PLC")
    assert judge_name(lax) != judge_name(ktb.Diagnosis())
    assert study("lax", ktb.DiagnosisCallback(lax)).cancelled == 1
    assert study("watching", ktb.DiagnosisCallback(stop=False)).cancelled == 0


def test_a_damaged_verdict_counts_as_none(tmp_path: Any) -> None:
    store = StageStore(tmp_path)
    store.note_verdict("root", "name", "judge", verdict("AGV"))
    assert store.verdict("root", "name", "judge") == verdict("AGV")
    (path,) = tmp_path.glob("*/*.verdict")
    path.write_text("{")
    with pytest.warns(RuntimeWarning, match="damaged and was removed"):
        assert store.verdict("root", "name", "judge") is None
    assert not list(tmp_path.glob("*/*.verdict"))


def test_a_static_verdict_is_one_on_the_root(tmp_path: Any) -> None:
    store = StageStore(tmp_path)
    store.note_verdict("root", "name", "judge", verdict("HIGH_DROPOUT"))
    assert store.verdict("root", "root", "judge") == verdict("HIGH_DROPOUT")
    store.note_verdict("other", "name", "judge", verdict("AGV"))
    assert store.verdict("other", "root", "judge") is None


def test_a_diagnosis_sees_the_epochs_that_others_have_trained(tmp_path: Any) -> None:
    """Its trace and its verdict are those of a training of its own."""

    def study(name: str, **arguments: Any) -> Any:
        made = tuner(
            staging.build_dense, tmp_path, project_name=name, epochs=5, **arguments
        )
        searched(made, ktb.DiagnosisCallback(stop=False), fit=ROWS)
        found = {}
        for trial_id in made.oracle.trials:
            (path,) = (tmp_path / name / f"trial_{trial_id}").glob("trace-*.jsonl")
            found[trial_id] = read_trace(path)
        return made.usage.trained, found

    trained, shared = study("shared")
    without, alone = study("alone", disk_budget=0)
    assert (trained, without) == (13, 20)
    for trial_id, expected in alone.items():
        trace = shared[trial_id]
        assert trace.header.trial_id == trial_id
        assert trace.header.hyperparameters == expected.header.hyperparameters
        assert [r.epoch for r in trace.records] == [1, 2, 3, 4, 5]
        assert (np.diff(trace.seconds) > 0).all()
        for name in ("loss", "val_loss", "learning_rate"):
            np.testing.assert_array_equal(trace.scalar(name), expected.scalar(name))
