from __future__ import annotations

import json
import math
import subprocess
import sys

import keras_tuner
import pytest
from projects import ERG, NMG, write_stopped, write_trace, write_trial

from kt_bttackler import channel, files, results
from kt_bttackler.results import diagnosis_of, study, summary


@pytest.fixture
def project(tmp_path):
    """Three trials: one finished, one stopped, one ended with nothing to gain."""
    folder = write_trial(tmp_path, "0", score=0.9, values={"lr": 0.1})
    write_trace(folder, 10)
    write_stopped(tmp_path, "1", ERG, epochs=3)
    write_stopped(tmp_path, "2", NMG, epochs=7)
    return tmp_path


def test_a_study_lists_every_trial_with_its_facts(project):
    finished, stopped, benign = study(project).trials
    assert (finished.id, finished.status, finished.score) == ("0", "COMPLETED", 0.9)
    assert finished.hyperparameters == {"lr": 0.1}
    assert (finished.causes, finished.message) == ((), "")
    assert (finished.epochs_run, finished.epochs_planned) == (10, 10)
    assert finished.seconds == 15.0
    assert (stopped.status, stopped.causes) == ("STOPPED", ("ERG", "PLC"))
    assert stopped.message == str(ERG)
    assert (stopped.epochs_run, stopped.epochs_planned) == (3, 10)
    assert (benign.status, benign.causes, benign.benign) == (
        "COMPLETED",
        ("NMG",),
        True,
    )


def test_totals_count_benign_stops_as_saved_and_apart(project):
    assert study(project).totals() == {
        "trials": 3,
        "by_status": {"COMPLETED": 2, "STOPPED": 1},
        "stopped": 1,
        "stopped_benign": 1,
        "epochs_run": 20,
        "epochs_planned": 30,
        "epochs_saved": 10,
        "epochs_saved_benign": 3,
        "seconds": 35.0,
        "seconds_saved": 10.0,  # the set-up of the first epoch is no part of it
        "seconds_saved_benign": 3.0,
        "best_trial": "0",
        "best_score": 0.9,
    }


def test_a_trial_without_a_second_epoch_is_estimated_by_the_others(tmp_path):
    for trial_id, seconds in (("0", 1.0), ("1", 2.0), ("2", 9.0)):
        write_trace(write_trial(tmp_path, trial_id), 10, seconds=seconds)
    write_stopped(tmp_path, "3", epochs=1)
    write_stopped(tmp_path, "4", epochs=2, partial=True, seconds=0.1)
    *_, once, broken = study(tmp_path).trials
    assert (once.epochs_saved, once.seconds_saved) == (9, 18.0)
    assert (broken.epochs_saved, broken.seconds_saved) == (8, 16.0)


def test_a_lone_trial_with_one_epoch_is_estimated_by_that(tmp_path):
    write_stopped(tmp_path, "0", epochs=1)
    assert study(tmp_path).trials[0].seconds_saved == pytest.approx(9 * 6.0)


def test_executions_are_summed_and_those_skipped_are_saved(tmp_path):
    folder = write_trial(tmp_path, "0")
    write_trace(folder, 10, execution=0)
    write_trace(folder, 10, execution=1)
    write_stopped(tmp_path, "1", epochs=3)
    twice, stopped = study(tmp_path).trials
    assert (twice.epochs_run, twice.epochs_planned, twice.seconds) == (20, 20, 30.0)
    assert (stopped.epochs_run, stopped.epochs_planned) == (3, 20)
    assert stopped.epochs_saved == 17


def test_a_later_execution_that_is_stopped_saves_its_own_epochs(tmp_path):
    folder = write_trial(tmp_path, "0")
    write_trace(folder, 10, execution=0)
    write_trace(folder, 4, execution=1, end="stopped")
    (folder / "verdict-1.json").write_text(ERG.to_json())
    (trial,) = study(tmp_path).trials
    assert (trial.epochs_saved, trial.causes, trial.status) == (6, (), "COMPLETED")


def test_a_hyperband_rung_plans_its_own_epochs(tmp_path):
    values = {"tuner/epochs": 6, "tuner/initial_epoch": 2}
    folder = write_trial(tmp_path, "0", values=values)
    write_trace(folder, 4, planned=18, initial_epoch=2)
    (trial,) = study(tmp_path).trials
    assert (trial.epochs_run, trial.epochs_planned) == (4, 4)


def test_a_rung_after_one_that_ended_early_plans_more(tmp_path):
    values = {"tuner/epochs": 6, "tuner/initial_epoch": 2}
    folder = write_trial(tmp_path, "0", values=values)
    write_trace(folder, 5, planned=18, initial_epoch=1)
    assert study(tmp_path).trials[0].epochs_planned == 5


def test_a_resumed_training_plans_what_was_left(tmp_path):
    write_trace(write_trial(tmp_path, "0"), 4, planned=10, initial_epoch=6)
    assert study(tmp_path).trials[0].epochs_planned == 4


def test_watching_without_stopping_saves_nothing(tmp_path):
    folder = write_trial(tmp_path, "0")
    write_trace(folder, 10, end="finished")
    (folder / "verdict-0.json").write_text(NMG.to_json())
    (trial,) = study(tmp_path).trials
    assert (trial.epochs_saved, trial.benign) == (0, False)


def test_an_early_stop_by_somebody_else_is_not_claimed(tmp_path):
    write_trace(write_trial(tmp_path, "0"), 4, end="finished")
    assert study(tmp_path).totals()["epochs_saved"] == 0


def test_unknown_plans_and_missing_traces_are_unknown(tmp_path):
    write_trial(tmp_path, "0")
    write_trace(write_trial(tmp_path, "1"), 4, planned=None)
    untraced, unplanned = study(tmp_path).trials
    assert untraced.epochs_run is untraced.epochs_planned is untraced.seconds is None
    assert (unplanned.epochs_run, unplanned.epochs_planned) == (4, None)


def test_scores_that_are_not_finite_become_null_in_strict_json(tmp_path):
    write_trace(write_trial(tmp_path, "0", score=math.nan), 2)
    write_trace(write_trial(tmp_path, "1", score=math.inf), 2)
    write_trace(write_trial(tmp_path, "2", score=None, status="STOPPED"), 2)
    write_trace(write_trial(tmp_path, "3", score=0.3), 2)
    facts = study(tmp_path).to_dict()
    again = files.loads(json.dumps(facts, allow_nan=False))
    assert again == facts
    assert [trial["score"] for trial in facts["trials"]] == [None, None, None, 0.3]
    assert facts["totals"]["best_trial"] == "3"


def test_the_best_trial_follows_the_direction(tmp_path):
    for trial_id, score in (("0", 0.2), ("1", 0.1), ("2", 0.3)):
        folder = write_trial(tmp_path, trial_id, score=score)
        write_trace(folder, 2, objective="val_loss", direction="min")
    found = study(tmp_path)
    assert (found.objective, found.direction) == ("val_loss", "min")
    assert found.best.id == "1"


def test_trials_are_in_the_order_of_their_numbers(tmp_path):
    for trial_id in ("10", "9", "abc"):
        write_trial(tmp_path, trial_id)
    assert [trial.id for trial in study(tmp_path).trials] == ["9", "10", "abc"]


def test_a_file_that_is_being_written_is_no_reason_to_fail(tmp_path):
    folder = write_trial(tmp_path, "0")
    write_trace(folder, 2, end=None)
    for name in ("trial.json", "trace-0.jsonl"):
        path = folder / name
        path.write_text(path.read_text()[:-9])
    (trial,) = study(tmp_path).trials
    assert (trial.id, trial.status, trial.epochs_run) == ("0", "UNKNOWN", 1)


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_that_is_no_project_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="no project folder"):
        study(tmp_path / name)


def test_the_directory_of_projects_is_no_project_but_names_one(tmp_path):
    write_trial(tmp_path / "cifar", "0")
    with pytest.raises(ValueError, match=r"in it, but in .*cifar\.$"):
        study(tmp_path)
    write_trial(tmp_path / "digits", "0")
    with pytest.raises(ValueError, match=r"in it, but in .*cifar and 1 more\.$"):
        study(tmp_path)


def test_the_objective_of_a_search_without_a_diagnosis_is_told_by_its_scores(tmp_path):
    objective = keras_tuner.Objective("score", "max")

    class Two(keras_tuner.RandomSearch):
        def run_trial(self, trial, *args, **kwargs):
            x = trial.hyperparameters.Float("x", 0, 1)
            return [{"score": x, "cost": x if x < 0.5 else 1.0}] * 2

    tuner = Two(objective=objective, max_trials=6, directory=tmp_path, seed=1)
    tuner.search(verbose=0)
    known = study(tuner.project_dir)
    assert (known.objective, known.direction) == ("score", "max")
    assert known.best.id == tuner.oracle.get_best_trials()[0].trial_id


@pytest.mark.parametrize(
    "entries",
    [{}, {"loss": 0.4}, {"loss": 0.5, "val_loss": 0.5}, {"loss": math.nan}],
    ids=str,
)
def test_scores_that_tell_no_objective_leave_it_unknown(tmp_path, entries):
    write_trial(tmp_path, "0", score=0.5, entries=entries)
    write_trial(tmp_path, "1", status="RUNNING", score=None)
    assert study(tmp_path).objective is None


def test_diagnosis_of_a_folder_reads_the_verdict(project):
    assert diagnosis_of(project / "trial_1") == ERG
    assert diagnosis_of(str(project / "trial_2")) == NMG
    assert diagnosis_of(project / "trial_0") is None
    with pytest.raises(ValueError, match="no folder of a trial"):
        diagnosis_of(project / "trial_3")


def test_diagnosis_of_a_folder_without_verdict_reads_what_the_oracle_was_told(tmp_path):
    entries = channel.encode(ERG, {"val_accuracy": 0.1})
    verdict = diagnosis_of(write_trial(tmp_path, "0", "STOPPED", entries=entries))
    assert (verdict.cause, verdict.epoch, verdict.stop) == ("ERG", 3, True)
    assert verdict.findings[0].layer == "conv2d_1"


def test_a_verdict_that_only_found_something_did_not_stop(tmp_path):
    folder = write_trial(tmp_path, "0", entries=channel.encode(None, {}))
    found = results.Verdict(False, False, 2, None, ERG.findings, "NeverStop")
    (folder / "verdict-0.json").write_text(found.to_json())
    assert diagnosis_of(folder) is None


def test_diagnosis_of_a_trial_reads_its_metrics():
    trial = keras_tuner.engine.trial.Trial(keras_tuner.HyperParameters(), "7")
    assert diagnosis_of(trial) is None
    for name, value in channel.encode(ERG, {"val_accuracy": 0.1}).items():
        trial.metrics.update(name, value)
    verdict = diagnosis_of(trial)
    assert [finding.indicator for finding in verdict.findings] == ["ERG", "PLC"]


class _Quadratic(keras_tuner.RandomSearch):
    def run_trial(self, trial, *args, **kwargs):
        return (trial.hyperparameters.Float("x", -1, 1) - 0.5) ** 2


def test_a_study_of_a_tuner_knows_its_objective(tmp_path):
    objective = keras_tuner.Objective("score", "min")
    tuner = _Quadratic(
        objective=objective, max_trials=3, directory=tmp_path, project_name="p", seed=1
    )
    empty = study(tuner)
    assert (empty.objective, empty.direction, empty.trials) == ("score", "min", ())
    tuner.search(verbose=0)
    assert study(tuner).best.id == tuner.oracle.get_best_trials()[0].trial_id


def test_summary_prints_the_table_and_how_to_open_tensorboard(project, capsys):
    summary(project)
    assert "tensorboard" not in capsys.readouterr().out
    run = project / "logs" / "0" / "execution0" / "diagnosis"
    run.mkdir(parents=True)
    (run / "events.out.tfevents.1.host").touch()
    assert repr(summary(str(project))) == "<Summary of 3 trials>"
    printed = capsys.readouterr().out
    assert "3 of 10" in printed
    assert f"tensorboard --logdir {project / 'logs'}" in printed


def test_reading_a_project_needs_neither_tensorflow_nor_keras_tuner(project):
    program = (
        "import sys, kt_bttackler.results as results\n"
        f"results.summary({str(project)!r})\n"
        "loaded = {'tensorflow', 'keras', 'keras_tuner'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
