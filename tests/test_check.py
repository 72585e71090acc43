"""Tests of `kt-bttackler check` and of running a script up to its search."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest

from kt_bttackler import cli, user_script
from kt_bttackler.cli import UsageError

MODEL = """
import keras
import keras_tuner
import numpy as np

def build_model(hp):
    window = hp.Choice("window", [2, 9])
    model = keras.Sequential([
        keras.Input((6, 1)), keras.layers.Conv1D(2, window), keras.layers.Flatten(),
        keras.layers.Dense(1),
    ])
    model.compile("sgd", "mse", run_eagerly=True)
    return model

x = np.zeros((40, 6), "float32")
y = np.zeros(40, "float32")
"""
SEARCH = """
import sys
if __name__ == "__main__":
    tuner = keras_tuner.RandomSearch(
        build_model, "val_loss", max_trials=int(sys.argv[1]), overwrite=True,
        directory="runs", project_name="mine", executions_per_trial=2)
    tuner.search(x, y, epochs=7, validation_split=0.5, batch_size=8)
    print("the search is over")
"""


def script(folder: Any, *parts: str) -> Any:
    path = folder / "mine.py"
    path.write_text("".join(textwrap.dedent(part) for part in parts))
    return path


def test_a_search_is_checked_and_not_begun(
    tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "runs" / "mine" / "precious"  # `overwrite=True` would delete it
    kept.parent.mkdir(parents=True)
    kept.touch()
    path = script(tmp_path, MODEL, SEARCH)
    command = ["check", str(path), "--json", "found.json"]
    command += ["--arguments", "33"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "2 configurations" in printed
    assert "The whole search of 33 trials" in printed
    assert "the search is over" not in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["epochs"], found["max_trials"], found["executions"]) == (7, 33, 2)
    assert found["outcomes"] == {"trains": 1, "cannot be built": 1}
    cost = found["configurations"][0]["cost"]
    assert (cost["steps"], cost["validated"]) == (3, True)
    assert kept.exists()
    assert [p.name for p in kept.parent.iterdir()] == ["precious"]


def test_nothing_that_trains_is_exit_code_1(tmp_path: Any, capsys: Any) -> None:
    path = script(tmp_path, MODEL, "def build_model(hp): raise ValueError('never')")
    assert cli.main(["check", str(path)]) == 1
    assert "ValueError: never" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parts", "arguments", "keywords"),
    [
        (["build_model = len; x, y = 1, 2"], (1, 2), {}),
        (["build_model = len; data = lambda: (3, 4)"], (3, 4), {}),
        (["hypermodel = len; data = lambda: {'x': 5}"], (), {"x": 5}),
        (
            ["build_model = len; x_train = y_train = x_test = y_test = 6"],
            (6, 6),
            {"validation_data": (6, 6)},
        ),
    ],
)
def test_a_script_without_a_search_defines_models_and_data(
    parts: Any, arguments: Any, keywords: Any, tmp_path: Any
) -> None:
    search = user_script.search_of(script(tmp_path, *parts), tmp_path, "p")
    assert (search.hypermodel, search.args, search.kwargs) == (len, arguments, keywords)
    assert search.tuner is None


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        (["x = 1"], "mine.py reaches no `tuner.search"),
        (["build_model = len"], "defines no data"),
        (["\n\nimport nothing_of_that_name"], "mine.py, line 3: ModuleNotFoundError"),
        (["x = (\n"], "mine.py, line 1: SyntaxError: '\\(' was never closed"),
        (["import sys; sys.exit('no data')"], "ended before any search: no data"),
    ],
)
def test_mistakes_in_the_script_are_one_line(
    parts: Any, complaint: str, tmp_path: Any
) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        user_script.search_of(script(tmp_path, *parts), tmp_path, "p")
    assert "\n" not in str(caught.value)


def test_the_script_sees_its_folder_and_arguments(tmp_path: Any) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 8")
    path = script(
        tmp_path, "import sys, beside; build_model = len; x = beside.VALUE, sys.argv[1]"
    )
    search = user_script.search_of(path, tmp_path, "p", ["--fast"])
    assert search.args == ((8, "--fast"), None)


def test_kerastuner_is_itself_again_after_a_script(tmp_path: Any) -> None:
    import keras_tuner

    base = keras_tuner.engine.base_tuner.BaseTuner
    before = base.__init__, base.search
    user_script.search_of(script(tmp_path, MODEL, SEARCH), tmp_path, "p", ["3"])
    assert (base.__init__, base.search) == before
