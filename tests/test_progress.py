"""What a search tells while it runs, and its end by the clock."""

from __future__ import annotations

import io
import re

import keras
import keras_tuner
import numpy as np
import pytest
from searches import verdict

import kt_bttackler as ktb
from kt_bttackler.brackets import hyperband_trials
from kt_bttackler.progress import WIDTH, Ended, Progress

X = np.linspace(-1, 1, 32, dtype="float32").reshape(16, 2)
Y = (X[:, 0] > 0).astype("float32")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


class Terminal(io.StringIO):
    """Lines as on a screen: what is erased is gone."""

    def isatty(self):
        return True

    def screen(self):
        lines = self.getvalue().split("\n")
        return [line.rpartition("\r\x1b[K")[2] for line in lines]


def told(stream, **how):
    clock = Clock()
    how = {"total": 4, "objective": "val_accuracy", "direction": "max"} | how
    progress = Progress(stream=stream, clock=clock, **how)
    progress.begin("0", {"lr": 0.1, "tuner/epochs": 3})
    progress.epoch(1, 3, 0.5)
    clock.seconds = 60.0
    progress.end(Ended("0", "COMPLETED", 0.9))
    progress.begin("1", {})
    progress.epoch(1, 3, 0.2)
    progress.epoch(2, 3, None)
    clock.seconds = 90.0
    erg = verdict("ERG")
    progress.end(Ended("1", "STOPPED", 0.1, erg, str(erg)))
    return progress


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    told(stream)
    assert stream.getvalue().splitlines() == [
        "trial 0 (1 of 4): lr 0.1",
        "    val_accuracy 0.9; best 0.9 (trial 0); 1 min 0 s elapsed, about 3 min 0 s left",
        "trial 1 (2 of 4): the defaults",
        "    ERG at epoch 3: value 4e-05 < 0.001, layer conv",
        "    stopped, val_accuracy 0.1; best 0.9 (trial 0); 1 diagnosed (ERG 1); "
        "1 min 30 s elapsed, about 1 min 30 s left",
    ]


def test_a_terminal_has_one_line_that_changes_and_keeps_what_ended():
    terminal, plain = Terminal(), io.StringIO()
    told(terminal), told(plain)
    assert terminal.screen() == plain.getvalue().split("\n")
    live = re.findall(r"\r\x1b\[K([^\r\n]+)(?=\r)", terminal.getvalue())
    assert live == [
        "    epoch 1 of 3; val_accuracy 0.5",
        "    epoch 1 of 3; val_accuracy 0.2; about 3 min 0 s left; best 0.9 (trial 0)",
        "    epoch 2 of 3; about 3 min 0 s left; best 0.9 (trial 0)",
    ]
    assert max(map(len, live)) <= WIDTH


def test_a_budget_ends_before_the_trials_do():
    stream = io.StringIO()
    progress = told(stream, seconds=100.0)
    assert stream.getvalue().endswith("1 min 30 s elapsed, about 10 s left\n")
    progress.finish(out_of_time=True)
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("`max_seconds` is over after 2 of 4 trials; the same search")


def test_a_resumed_search_counts_on_and_times_only_itself():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(10, "val_loss", "min", stream=stream, clock=clock)
    for number in range(5):
        progress.remember(Ended(str(number), "COMPLETED", 0.1 + number))
    progress.remember(Ended("5", "STOPPED", 0.0, verdict("AGV"), "why"))
    progress.begin("6", {"lr": 0.1})
    clock.seconds = 60.0
    progress.end(Ended("6", "COMPLETED", 0.9))
    assert stream.getvalue().splitlines() == [
        "trial 6 (7 of 10): lr 0.1",
        "    val_loss 0.9; best 0.1 (trial 0); 1 diagnosed (AGV 1); 1 min 0 s elapsed, "
        "about 3 min 0 s left",
    ]


def test_what_nobody_knows_is_not_told():
    stream = io.StringIO()
    told(stream, total=None)
    assert "trial 0 (1): lr 0.1" in stream.getvalue()
    assert "left" not in stream.getvalue()


def build(hp):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    rate = hp.Float("lr", 1e-3, 1e-1, sampling="log")
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def random_search(folder, **how):
    how = {"max_trials": 3, "directory": folder, "project_name": "p", "seed": 1} | how
    return ktb.RandomSearch(build, "val_loss", **how)


def search(tuner, **how):
    tuner.search(X, Y, epochs=2, validation_data=(X, Y), **how)
    return [trial.status for trial in tuner.oracle.trials.values()]


def test_a_search_tells_a_little(tmp_path, capsys):
    assert search(random_search(tmp_path)) == ["COMPLETED"] * 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[::2]] == [
        "trial 0 (1 of 3)",
        "trial 1 (2 of 3)",
        "trial 2 (3 of 3)",
    ]
    assert all(line.startswith("    val_loss 0.") for line in lines[1::2])
    assert len(lines) == 6


def test_a_search_that_is_run_again_when_it_is_done_says_so(tmp_path, capsys):
    search(random_search(tmp_path), verbose=0)
    search(random_search(tmp_path))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "All 3 trials had been run before; none is left to do."


@pytest.mark.parametrize(
    ("mistake", "wanted"),
    [
        (ktb.Diagnosis("paper"), r"kt_bttackler\.DiagnosisCallback\(diagnosis\)"),
        (ktb.DiagnosisCallback, r"DiagnosisCallback\(\.\.\.\), got the class"),
    ],
    ids=["a diagnosis", "a class"],
)
def test_what_is_no_callback_is_refused_before_a_trial(tmp_path, mistake, wanted):
    tuner = random_search(tmp_path)
    with pytest.raises(TypeError, match=f"`callbacks` must hold {wanted}"):
        search(tuner, callbacks=[mistake])
    assert not tuner.oracle.trials


def test_silence_and_keras_tuners_own_words_can_be_had(tmp_path, capsys):
    search(random_search(tmp_path / "0", max_trials=1), verbose=0)
    assert capsys.readouterr().out == ""
    search(random_search(tmp_path / "2", max_trials=1), verbose=2)
    printed = capsys.readouterr().out
    assert "Search: Running Trial #1" in printed
    assert "Epoch 2/2" in printed
    assert "trial 0 (1 of 1)" not in printed


def test_a_fit_of_ones_own_is_given_nothing_that_it_did_not_ask_for(tmp_path, capsys):
    class Own(keras_tuner.HyperModel):
        def build(self, hp):
            return build(hp)

        def fit(self, hp, model, x, y, callbacks, **others):
            assert set(others) == {"epochs", "validation_data"}
            return model.fit(x, y, callbacks=callbacks, verbose=0, **others)

    tuner = ktb.RandomSearch(Own(), "val_loss", max_trials=1, directory=tmp_path)
    assert search(tuner) == ["COMPLETED"]
    assert "trial 0 (1 of 1)" in capsys.readouterr().out


def test_a_display_that_fails_ends_no_search(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Progress, "end", lambda *_: 1 / 0)
    with pytest.warns(RuntimeWarning, match="progress is off: ZeroDivisionError"):
        assert search(random_search(tmp_path)) == ["COMPLETED"] * 3


def test_hyperband_knows_how_many_trials_it_has(tmp_path, capsys):
    tuner = ktb.Hyperband(build, "val_loss", max_epochs=3, factor=3, directory=tmp_path)
    tuner.search(X, Y, validation_data=(X, Y))
    count = hyperband_trials(3, 3)
    assert len(tuner.oracle.trials) == count
    assert f"({count} of {count})" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [0, -1, "10", True, float("nan")])
def test_a_budget_is_a_positive_number(tmp_path, seconds):
    with pytest.raises(ValueError, match="`max_seconds` must be above 0, got"):
        random_search(tmp_path, max_seconds=seconds)


def test_out_of_time_the_running_trial_is_finished_and_none_begins(tmp_path, capsys):
    class Slow(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            import time

            time.sleep(0.15)

    # Each trial takes 0.3 s at least, so that the time is over in the second one.
    tuner = random_search(tmp_path, max_trials=50, max_seconds=0.35)
    statuses = search(tuner, callbacks=[Slow()])
    assert 1 <= len(statuses) <= 2
    assert set(statuses) == {"COMPLETED"}
    assert all(
        len(trial.metrics.get_history("val_loss")) == 1
        for trial in tuner.oracle.trials.values()
    )
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"`max_seconds` is over after {len(statuses)} of 50 trials")

    # The same search goes on, with its own time.
    again = random_search(tmp_path, max_trials=4)
    assert search(again) == ["COMPLETED"] * 4
    begun = f"trial {len(statuses)} ({len(statuses) + 1} of 4)"
    assert f"\n{begun}: " in capsys.readouterr().out


def test_a_search_that_is_done_in_time_does_not_complain(tmp_path, capsys):
    tuner = random_search(tmp_path, max_trials=2, max_seconds=600)
    assert search(tuner) == ["COMPLETED"] * 2
    assert "max_seconds" not in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seconds", [None, 1e-9])
def test_a_worker_ends_without_asking_its_chief_for_the_time(
    tmp_path, monkeypatch, capsys, seconds
):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "1")  # nobody is there
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    tuner = random_search(tmp_path, max_seconds=seconds)
    tuner._show_progress({})  # as `search` does, before it asks for a trial
    tuner.on_search_end()
    assert "max_seconds" not in capsys.readouterr().out


def test_a_worker_with_a_trial_keeps_it_and_others_are_sent_home(tmp_path):
    tuner = random_search(tmp_path)
    oracle = tuner.oracle
    oracle.verbose = 0
    first = oracle.create_trial("worker0")
    oracle.deadline = 0.0
    assert oracle.create_trial("worker0") is first
    assert oracle.create_trial("worker1").status == "STOPPED"
    assert oracle.tuner_ids == {"worker0"}
    assert len(oracle.trials) == 1
