from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from kt_bttackler.report import WIDTH, as_text
from kt_bttackler.study import Study, TrialFacts


def trial(trial_id="0", **facts):
    default = {
        "status": "COMPLETED",
        "score": 0.5,
        "causes": (),
        "message": "",
        "epochs_run": 10,
        "epochs_planned": 10,
        "seconds": 12.34,
        "hyperparameters": {},
    }
    return TrialFacts(trial_id, **(default | facts))


STOPPED = trial(
    "1",
    status="STOPPED",
    score=None,
    causes=("ERG", "PLC"),
    message="ERG at epoch 3: median gradient ratio 4e-05 < 0.001, layer conv2d_1",
    epochs_run=3,
    epochs_saved=7,
    seconds_saved=70.0,
)
BENIGN = trial(
    "2", causes=("NMG",), message="NMG at epoch 8: x", benign=True, epochs_saved=2
)


def text(*trials, **study):
    return as_text(Study("val_accuracy", "max", trials, **study))


def test_columns_are_aligned():
    heading, rule, *rows = text(trial(), STOPPED, trial("10")).splitlines()[:5]
    assert {len(heading), len(rule)} == {len(row) for row in rows} | {len(rule)}
    for word in ("epochs", "seconds", "score"):
        end = heading.index(word) + len(word)
        assert all(row[end - 1] != " " for row in rows)
        assert all(row[end : end + 1].strip() == "" for row in rows)
    assert "3 of 10" in rows[1]
    assert "ERG, PLC" in rows[1]


def test_sentences_of_stopped_trials_and_advice_stand_below_the_table():
    table, reasons, advice, _ = text(trial(), STOPPED).split("\n\n")
    assert STOPPED.message not in table
    assert reasons == f"1  {STOPPED.message}"
    assert advice.startswith("What to try\nERG: use ReLU-like activations")


def test_totals_say_what_was_saved_and_which_trial_is_best():
    totals = text(trial(hyperparameters={"lr": 0.12345}), STOPPED, BENIGN)
    assert "3 trials: 2 completed, 1 stopped, 1 of the completed ended" in totals
    assert "23 run of 30 planned, 9 saved (30 %; 2 of them by benign stops)." in totals
    assert "37 s spent, about 1 min 10 s saved (an estimate" in totals
    assert "Best: trial 0, val_accuracy 0.5: lr 0.1235" in totals


def test_benign_stops_are_called_benign():
    assert "2  NMG at epoch 8: x; benign, its best score counts" in text(BENIGN)


def test_nothing_is_said_of_what_was_not_saved():
    totals = text(trial())
    assert "about" not in totals
    assert "What to try" not in totals
    assert "Training time: 12 s spent." in totals


def test_what_is_unknown_is_shown_as_unknown():
    unknown = trial(score=None, epochs_run=None, epochs_planned=None, seconds=None)
    shown = as_text(Study(None, None, (unknown, trial("1"))))
    assert "? of ?" in shown
    assert "in none of these sums: 1" in shown
    assert "Best" not in shown


@pytest.mark.parametrize("status", ["COMPLETED", "RUNNING", "FAILED"])
def test_where_nothing_was_recorded_nothing_is_summed(status):
    unknown = trial(status=status, epochs_run=None, epochs_planned=None, seconds=None)
    shown = text(unknown)
    assert ("No training was recorded" in shown) == (status == "COMPLETED")
    assert "run of" not in shown
    assert "Training time" not in shown
    assert "in none of these sums" not in shown


def test_an_empty_study_is_a_table_without_rows():
    assert "0 trials: none yet." in text()


def test_of_a_traceback_the_last_line_is_shown():
    failed = trial(status="FAILED", message="Traceback:\n  line 1\nValueError: no")
    assert "0  ValueError: no" in text(failed)


@pytest.mark.parametrize("score", [0.1, -1.23456e-10, 1e300, float("nan")])
def test_no_line_is_longer_than_a_narrow_terminal(score):
    long_one = trial(
        "a" * 32,
        score=score,
        status="COMPLETED",
        causes=("COLLAPSED_OUTPUT", "NO_PROGRESS", "ERG"),
        message="it went wrong " * 30,
        epochs_run=10_000,
        epochs_planned=10_000,
        seconds=1234567.8,
        hyperparameters={f"parameter_{k}": 0.1 * k for k in range(40)},
    )
    assert max(map(len, text(long_one).splitlines())) <= WIDTH < 100


def test_the_notes_of_keras_tuner_are_not_part_of_the_configuration():
    best = trial(hyperparameters={"lr": 0.1, "tuner/epochs": 3})
    assert "tuner/epochs" not in text(best)


def test_the_folder_for_tensorboard_is_quoted_for_the_shell():
    shown = text(trial(), log_dir=pathlib.Path("my runs/logs"))
    assert "tensorboard --logdir 'my runs/logs'" in shown


def test_the_report_needs_no_tensorflow():
    program = (
        "import sys, kt_bttackler.report\n"
        "sys.exit(bool({'tensorflow', 'keras', 'keras_tuner'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=100).returncode == 0
