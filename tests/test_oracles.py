"""Tests of `kt_bttackler.oracles` in real searches whose trials are scripted."""

from __future__ import annotations

import copy
import logging
import math
import pathlib
import threading
from typing import Any

import keras_tuner
import pytest
from searches import (
    NAN,
    hyperband_oracle,
    in_turn,
    random_oracle,
    search,
    space,
    statuses,
    stopped,
    verdict,
)

from kt_bttackler import channel, context, diagnosed, oracles

ALL = [
    oracles.RandomSearchOracle,
    oracles.GridSearchOracle,
    oracles.BayesianOptimizationOracle,
    oracles.HyperbandOracle,
    oracles.TPEOracle,
    oracles.SMACOracle,
]
STOCK = keras_tuner.oracles


# --- the class -------------------------------------------------------------------


def test_the_same_class_comes_back_and_only_once() -> None:
    cls = diagnosed(STOCK.RandomSearchOracle)
    assert diagnosed(STOCK.RandomSearchOracle) is cls
    assert diagnosed(cls) is cls
    assert cls is oracles.RandomSearchOracle
    assert issubclass(cls, STOCK.RandomSearchOracle)
    assert cls.__name__ == "DiagnosedRandomSearchOracle"
    assert "stopped_value" in cls.__doc__
    assert "max_trials" in cls.__doc__


def test_positional_arguments_are_those_of_the_class() -> None:
    cls = oracles.BayesianOptimizationOracle
    oracle = cls("val_accuracy", 7, 2, stopped_value="skip")
    assert (oracle.max_trials, oracle.num_initial_points) == (7, 2)
    assert oracle.objective.direction == "max"
    assert oracle.stopped_value == "skip"


def test_a_class_of_the_user_is_diagnosed() -> None:
    class Mine(keras_tuner.Oracle):
        def populate_space(self, trial_id: str) -> dict[str, Any]:
            return {"status": "RUNNING", "values": self._random_values()}

    oracle = diagnosed(Mine)("val_loss", max_trials=2, hyperparameters=space("lr"))
    assert oracle.stopped_value == "last"
    assert isinstance(oracle, Mine)


@pytest.mark.parametrize("wrong", [int, "RandomSearchOracle", keras_tuner.Tuner, None])
def test_what_is_no_oracle_class_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="`oracle_class` must be"):
        diagnosed(wrong)


@pytest.mark.parametrize("cls", ALL)
def test_an_unknown_policy_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"`stopped_value` must be one of .*'mean'"):
        cls("val_loss", stopped_value="mean")


def test_an_oracle_can_be_copied() -> None:
    oracle = random_oracle(2, stopped_value="best")
    assert copy.deepcopy(oracle).stopped_value == "best"


# --- what becomes of a trial -----------------------------------------------------


def test_a_harmful_verdict_stops_the_trial_with_its_last_value(tmp_path: Any) -> None:
    # The best epoch had 0.1, which is what KerasTuner scores.
    trials = search(random_oracle(), in_turn(stopped(last=2.0, best=0.1)), tmp_path)
    assert statuses(trials) == ["STOPPED"] * 3
    assert [trial.score for trial in trials] == [2.0] * 3
    assert trials[0].best_step == 2  # epoch 3, counted from 0
    expected = "ERG at epoch 3: median gradient ratio 4e-05 < 0.001, layer conv"
    sentence, advice = trials[0].message.splitlines()
    assert sentence == expected
    assert advice.startswith("Try: use ReLU-like activations with He initialisation")


@pytest.mark.parametrize("last", [math.nan, math.inf, -math.inf, None])
def test_a_last_value_that_is_not_finite_is_no_score(last: Any, tmp_path: Any) -> None:
    trials = search(random_oracle(), in_turn(stopped(last=last)), tmp_path)
    assert statuses(trials) == ["STOPPED"] * 3
    assert [trial.score for trial in trials] == [None] * 3


def test_a_benign_verdict_leaves_the_best_value(tmp_path: Any) -> None:
    script = in_turn(stopped(last=2.0, best=0.1, cause="NMG"))
    trial = search(random_oracle(1), script, tmp_path)[0]
    assert (trial.status, trial.score) == ("COMPLETED", 0.1)
    assert trial.message.startswith("NMG at epoch 3: ")


def test_a_healthy_trial_is_as_in_kerastuner(tmp_path: Any) -> None:
    healthy = {"val_loss": 0.4, **channel.encode(None, {})}
    for outcome in (healthy, {"val_loss": 0.4}, 0.4):
        oracle = random_oracle(1, objective="val_loss")
        trial = search(oracle, in_turn(outcome), tmp_path / str(outcome))[0]
        assert (trial.status, trial.score, trial.message) == ("COMPLETED", 0.4, None)


def test_the_last_value_of_several_objectives_is_their_sum(tmp_path: Any) -> None:
    objective = ["val_loss", keras_tuner.Objective("val_accuracy", "max")]
    last = {"val_loss": 3.0, "val_accuracy": 0.25}
    metrics = {"val_loss": 1.0, "val_accuracy": 0.5, "multi_objective": 0.5}
    metrics |= channel.encode(verdict(), last)
    trial = search(random_oracle(1, objective=objective), in_turn(metrics), tmp_path)[0]
    assert (trial.status, trial.score) == ("STOPPED", 2.75)


def test_nan_without_a_verdict_is_no_failure(tmp_path: Any) -> None:
    # KerasTuner ends a search at the third failed trial in a row, and a retry of a
    # trial with NaN is trained for nothing: its result is dropped.
    script = in_turn(NAN, NAN, NAN, NAN, {"val_loss": 0.5})
    trials = search(random_oracle(5, max_retries_per_trial=2), script, tmp_path)
    assert statuses(trials) == ["STOPPED"] * 4 + ["COMPLETED"]
    assert (trials[0].score, trials[0].message) == (None, "val_loss is nan")


def test_exceptions_fail_as_in_kerastuner(tmp_path: Any) -> None:
    def script(trial: Any) -> Any:
        raise keras_tuner.errors.FailedTrialError("too large")

    with pytest.raises(RuntimeError, match="consecutive failures"):
        search(random_oracle(5), script, tmp_path)


def test_a_malformed_message_costs_the_diagnosis_only(
    tmp_path: Any, caplog: Any
) -> None:
    metrics = {"val_loss": 0.5, "diagnosis/stopped": 1.0, "diagnosis/epoch": math.nan}
    with caplog.at_level(logging.WARNING):
        trials = search(random_oracle(2), in_turn(metrics), tmp_path)
    assert statuses(trials) == ["COMPLETED"] * 2
    assert "The diagnosis of trial 0 is lost" in caplog.text


def test_the_lock_is_free_after_a_search_with_faults(
    tmp_path: Any, monkeypatch: Any
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise OSError("broken")

    for place in ("context.RunningTrial.of", "oracles.view.view", "channel.decode"):
        monkeypatch.setattr(f"kt_bttackler.{place}", broken)
    oracle = random_oracle(2)
    trials = search(oracle, in_turn({"val_loss": 0.5}), tmp_path)
    assert statuses(trials) == ["COMPLETED"] * 2
    thread = threading.Thread(target=oracle.create_trial, args=("other",), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_best_trials_are_completed_then_stopped_by_last_value(tmp_path: Any) -> None:
    outcomes = [
        stopped(last=0.2),
        stopped(last=math.nan),
        {"val_loss": 0.9},
        stopped(last=0.1),
        {"val_loss": 0.5},
    ]
    oracle = random_oracle(5)
    search(oracle, in_turn(*outcomes), tmp_path)
    best = oracle.get_best_trials(4)
    assert [trial.score for trial in best] == [0.5, 0.9, 0.1, 0.2]
    assert [trial.score for trial in oracle.get_best_trials(9)][4:] == [None]
    assert len(oracle.get_best_trials()) == 1


def test_best_of_stopped_trials_only_when_maximising(tmp_path: Any) -> None:
    def accuracy(last: float) -> dict[str, float]:
        entries = channel.encode(verdict(), {"val_accuracy": last})
        return {"val_accuracy": 0.9} | entries

    script = in_turn(accuracy(0.1), accuracy(math.nan), accuracy(0.3))
    oracle = random_oracle(3, objective="val_accuracy")
    search(oracle, script, tmp_path)
    assert [trial.score for trial in oracle.get_best_trials(3)] == [0.3, 0.1, None]


# --- who runs --------------------------------------------------------------------


def test_the_running_trial_is_published_and_cleared(tmp_path: Any) -> None:
    seen = []

    def script(trial: Any) -> Any:
        running = context.running_trial()
        assert running is not None
        seen.append((running.trial_id, running.objective, running.direction))
        assert running.project_dir == pathlib.Path(tmp_path) / "p"
        assert running.hyperparameters == trial.hyperparameters.values
        assert running.max_epochs is None
        return {"val_loss": 0.5}

    search(random_oracle(2), script, tmp_path)
    assert seen == [("0", "val_loss", "min"), ("1", "val_loss", "min")]
    assert context.running_trial() is None


def test_hyperband_publishes_the_whole_budget(tmp_path: Any) -> None:
    budgets = []

    def script(trial: Any) -> Any:
        budgets.append(context.running_trial().max_epochs)
        return {"val_loss": 0.5}

    search(hyperband_oracle(), script, tmp_path)
    assert set(budgets) == {9}


def test_the_project_folder_of_an_oracle_is_where_we_look_for_it() -> None:
    # Canary: `_project_dir` and `_set_project_dir` are private.
    oracle = random_oracle()
    assert getattr(oracle, "_project_dir", None) is None
    assert isinstance(keras_tuner.Oracle._project_dir, property)
