"""Tests of `run_on`: a stopped trial ends as if it had never been stopped."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import pytest
import rungs
from rungs import same

import kt_bttackler as ktb
from kt_bttackler import cli, results, training_state
from kt_bttackler.trace import Header, Record, Trace, read_trace

EPOCHS = 6
# Fires at the second epoch of whatever does not change its loss tenfold.
HASTY = ktb.Diagnosis(
    (ktb.PassiveLossChanges(threshold=10.0, progress_guard=math.inf),)
)


def tuner(folder: Any, cls: Any = ktb.RandomSearch, **kwargs: Any) -> Any:
    defaults = {"objective": "val_loss", "max_trials": 2, "seed": rungs.SEED}
    defaults |= {"directory": folder, "project_name": "p"}
    return cls(rungs.build, **(defaults | kwargs))


def fit(*callbacks: Any, diagnosis: Any = HASTY, **kwargs: Any) -> dict[str, Any]:
    watching = ktb.DiagnosisCallback(diagnosis, **kwargs)
    return rungs.FIT | {"epochs": EPOCHS, "callbacks": [watching, *callbacks]}


def facts(made: Any, trial_id: str) -> Any:
    trial = made.oracle.trials[trial_id]
    metrics = {
        name: history.get_last_value()
        for name, history in trial.metrics.metrics.items()
        if not name.startswith("diagnosis/")
    }
    return trial.status, trial.score, trial.best_step, metrics


def losses(folder: Any, trial_id: str) -> Any:
    trace = read_trace(folder / "p" / f"trial_{trial_id}" / "trace-0.jsonl")
    scalars = [
        {k: v for k, v in r.scalars.items() if k in ("loss", "val_loss", "objective")}
        for r in trace.records
    ]
    columns = [record.columns for record in trace.records]
    return trace.end, [r.epoch for r in trace.records], scalars, columns


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Any:
    """The search in which nothing is stopped, and what its trainings ended with."""
    folder = tmp_path_factory.mktemp("whole")
    made, ends = tuner(folder, max_trials=1), rungs.Ends()
    made.search(**fit(ends, stop=False))
    return folder, made, ends.values


@pytest.mark.parametrize("kept", [1, 0])
def test_a_trial_that_is_run_on_equals_one_that_was_never_stopped(
    kept: int, tmp_path: Any, whole: Any
) -> None:
    made, ends = tuner(tmp_path, max_trials=1, keep_stopped=kept), rungs.Ends()
    made.search(**fit(ends))
    folder = tmp_path / "p" / "trial_0"
    assert made.oracle.trials["0"].status == "STOPPED"
    assert ends.epochs["0", 0] == [1, 2]
    assert training_state.path_of(folder, 0, stopped=True).exists() == bool(kept)
    verdict = (folder / "verdict-0.json").read_bytes()
    facts_before = (folder / "trace-0.jsonl").read_bytes()

    trial = ktb.run_on(made, "0", **fit(ends))

    assert ends.epochs["0", 0] == list(range(3 if kept else 1, EPOCHS + 1))
    assert same(ends.values["0", 0], whole[2]["0", 0])
    assert facts(made, "0") == facts(whole[1], "0")
    assert losses(tmp_path, "0") == losses(whole[0], "0")
    # Nothing that was known is lost.
    assert (folder / "trace-0.jsonl").read_bytes().startswith(facts_before)
    assert (folder / "verdict-0.json").read_bytes() == verdict
    assert trial.message.startswith("PLC at epoch 2: ")
    assert f"; run on to epoch {EPOCHS}: val_loss " in trial.message
    assert ktb.diagnosis_of(trial) is None
    left = {path.name for path in folder.iterdir()}
    assert left <= {
        "trial.json", "build_config.json", "checkpoint.weights.h5", "trace-0.jsonl",
        "verdict-0.json", "diagnosis-0.json",
    }  # fmt: skip
    # Seconds go on, as replay on a simulated clock needs it.
    seconds = read_trace(folder / "trace-0.jsonl").seconds
    assert list(seconds) == sorted(seconds)
    counted = results.study(made).totals()
    assert (counted["epochs_run"], counted["epochs_saved"]) == (EPOCHS, 0)
    # And it is known to a search that is resumed.
    again = tuner(tmp_path, max_trials=1)
    assert facts(again, "0") == facts(made, "0")
    best, expected = (t.get_best_models()[0] for t in (again, whole[1]))
    assert same(best.get_weights(), expected.get_weights())


def test_without_a_seed_both_traces_are_kept(tmp_path: Any) -> None:
    made = tuner(tmp_path, max_trials=1, seed=None)
    made.search(**fit())
    folder = tmp_path / "p" / "trial_0"
    before = (folder / "trace-0.jsonl").read_bytes()
    ktb.run_on(made, "0", **fit())
    assert (folder / "stopped-trace-0.jsonl").read_bytes() == before
    trace = read_trace(folder / "trace-0.jsonl")
    assert (trace.end, len(trace)) == ("finished", EPOCHS)
    assert len(list(ktb.TraceStore(tmp_path))) == 1


def test_the_newest_states_are_kept_and_executions_made_up_for(tmp_path: Any) -> None:
    made = tuner(tmp_path, max_trials=3, keep_stopped=2, executions_per_trial=2)
    ends = rungs.Ends()
    made.search(**fit(ends))
    states = sorted(path.parent.name for path in tmp_path.glob("p/*/stopped-*.npz"))
    assert states == ["trial_1", "trial_2"]
    assert ("1", 1) not in ends.values
    trial = ktb.run_on(made, "1", **fit(ends))
    assert ends.epochs["1", 0] == [3, 4, 5, 6]
    assert ends.epochs["1", 1] == [1, 2, 3, 4, 5, 6]
    assert trial.status == "COMPLETED"
    assert {t.header.execution for t in ktb.TraceStore(tmp_path / "p/trial_1")} == {
        0,
        1,
    }


def test_a_trial_of_hyperband_is_run_on_to_the_end_of_its_rung(tmp_path: Any) -> None:
    made, ends = rungs.tuner(ktb.Hyperband, tmp_path, keep_stopped=1), rungs.Ends()
    stopping = ktb.DiagnosisCallback(HASTY)
    made.search(**rungs.FIT, callbacks=[stopping, ends])
    stopped = [
        t.trial_id for t in made.oracle.trials.values()
        if t.status == "STOPPED" and t.hyperparameters.values["tuner/epochs"] > 2
    ]  # fmt: skip
    last = stopped[-1]
    ktb.run_on(made, last, **rungs.FIT, callbacks=[stopping, ends])
    assert made.oracle.trials[last].status == "COMPLETED"
    assert same(ends.values[last, 0], rungs.uninterrupted(made, last))


def test_a_broken_training_is_run_on_to_its_bitter_end(tmp_path: Any) -> None:
    made = ktb.RandomSearch(
        rungs.build, "val_loss", max_trials=1, seed=1, directory=tmp_path,
        project_name="p", keep_stopped=1,
    )  # fmt: skip
    broken = fit(diagnosis=ktb.Diagnosis()) | {"y": rungs.Y * float("nan")}
    made.search(**broken)
    assert ktb.diagnosis_of(made.oracle.trials["0"]).cause == "AGV"
    trial = ktb.run_on(made, "0", **broken)
    assert (trial.status, trial.score) == ("STOPPED", None)
    assert ktb.diagnosis_of(trial) is None
    trace = read_trace(tmp_path / "p/trial_0/trace-0.jsonl")
    assert (trace.end, len(trace), trace.partial) == ("finished", EPOCHS, False)


def test_what_cannot_be_run_on_is_named(tmp_path: Any) -> None:
    made = tuner(tmp_path, max_trials=1)
    made.search(**fit(stop=False))
    for trial_id, why in (("0", "which was not stopped"), ("7", "no such trial")):
        with pytest.raises(ValueError, match=f"got '{trial_id}', {why}; none was"):
            ktb.run_on(made, trial_id, **fit())
    with pytest.raises(TypeError, match=r"`tuner` must be a keras_tuner\.Tuner"):
        ktb.run_on(str(tmp_path), "0", **fit())
    with pytest.raises(ValueError, match=r"`keep_stopped` must be .* got -1"):
        tuner(tmp_path / "other", keep_stopped=-1)


def test_an_interrupted_attempt_changes_nothing(tmp_path: Any) -> None:
    class Interrupt(rungs.keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 4:
                raise KeyboardInterrupt

    made = tuner(tmp_path, max_trials=1, keep_stopped=1)
    made.search(**fit())
    folder = tmp_path / "p" / "trial_0"
    names = ("trial.json", "trace-0.jsonl", "checkpoint.weights.h5", "stopped-0.npz")
    before = [(folder / name).read_bytes() for name in names]
    with pytest.raises(KeyboardInterrupt):
        ktb.run_on(made, "0", **fit(Interrupt()))
    assert [(folder / name).read_bytes() for name in names] == before
    assert ktb.run_on(made, "0", **fit()).status == "COMPLETED"


@pytest.mark.parametrize("wanted", [True, False])
def test_the_weights_of_an_earlier_best_epoch_are_put_back(
    wanted: bool, tmp_path: Any
) -> None:
    from kt_bttackler.appeal import _best_weights_kept

    checkpoint = tmp_path / "checkpoint.weights.h5"
    checkpoint.write_text("before")
    with _best_weights_kept(tmp_path) as kept:
        checkpoint.write_text("meanwhile")
        kept.wanted = wanted
    assert checkpoint.read_text() == ("before" if wanted else "meanwhile")
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import rungs, test_run_on
made = test_run_on.tuner("elsewhere", max_trials=1, overwrite=True)
made.search(**test_run_on.fit())
"""


def test_the_command_takes_the_tuner_of_the_script(
    tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    tuner(tmp_path, max_trials=1).search(**fit())
    script = tmp_path / "mine.py"
    folder = str(rungs.pathlib.Path(__file__).parent)
    script.write_text(textwrap.dedent(SCRIPT).format(tests=folder))
    assert cli.main(["run-on", "p", "0", "--script", "mine.py"]) == 0
    assert "trial 0: completed, PLC at epoch 2" in capsys.readouterr().out
    assert not (tmp_path / "elsewhere").exists()
    assert results.study("p").trials[0].status == "COMPLETED"
    assert cli.main(["run-on", "p", "0", "--script", "mine.py"]) == 2
    assert "which was not stopped" in capsys.readouterr().err
    assert cli.main(["run-on", "p", "8", "--script", "mine.py"]) == 2
    assert "p has no folder trial_8." in capsys.readouterr().err


def test_what_is_recorded_at_the_begin_is_not_recorded_again() -> None:
    from kt_bttackler.appeal import _later, _same

    scalars = {"loss": 0.5, "first_batch_loss": 2.0, "output/initial_spread": 1.0}
    record = Record(3, 1.0, scalars, {"weight/initial_finite": (1.0,), "weight/a": ()})
    later = _later(record, 10.0)
    assert (later.seconds, later.scalars, later.columns) == (
        11.0, {"loss": 0.5}, {"weight/a": ()}
    )  # fmt: skip
    short = Trace(Header(objective="loss"), [Record(1, 1.0, {"loss": 0.5})])
    longer = Trace(Header(), [Record(1, 2.0, {"loss": 0.5}), record])
    other = Trace(Header(), [Record(1, 2.0, {"loss": 0.6}), record])
    assert _same(short, longer)
    assert not _same(short, other)
    assert not _same(longer, short)
