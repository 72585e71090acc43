"""Tests of what the search algorithms make of trials that were stopped."""

from __future__ import annotations

import math
from typing import Any

import keras_tuner
import pytest
from keras_tuner.engine.trial import Trial
from searches import (
    NAN,
    bayesian_oracle,
    in_turn,
    search,
    space,
    statuses,
    stopped,
)

from kt_bttackler import diagnosed
from kt_bttackler.oracles.view import view

STOCK = keras_tuner.oracles


# --- what the algorithm is shown ---------------------------------------------------


def trial(
    status: str, score: float | None = None, best: float | None = None, key: str = "0"
) -> Any:
    made = Trial(keras_tuner.HyperParameters(), key, status)
    made.score = score
    if best is not None:
        made.metrics.register("val_loss", "min")
        made.metrics.update("val_loss", best)
    return made


MINIMUM = keras_tuner.Objective("val_loss", "min")


def told(stopped_value: str, direction: str = "min") -> list[Any]:
    trials = [
        trial("COMPLETED", 1.0, 1.0),
        trial("COMPLETED", 5.0, 5.0),
        trial("COMPLETED", 6.0, 6.0),
        trial("STOPPED", 2.0, 0.5),
        trial("STOPPED", 9.0, 3.0),
        trial("STOPPED", None, 0.25),
        trial("COMPLETED", math.inf, math.inf),
        trial("COMPLETED", math.nan, math.nan),
        trial("FAILED"),
    ]
    objective = keras_tuner.Objective("val_loss", direction)
    shown = view(dict(enumerate(trials)), (), objective, stopped_value).trials
    return [t.score if t.status == "COMPLETED" else None for t in shown.values()]


def test_policies_when_minimising() -> None:
    assert told("last") == [1, 5, 6, 2, 9, 9, 9, 9, None]
    assert told("best") == [1, 5, 6, 0.5, 3, 0.25, 9, 9, None]
    assert told("worst") == [1, 5, 6, 9, 9, 9, 9, 9, None]
    assert told("skip") == [1, 5, 6, None, None, None, 9, 9, None]
    assert told("censored") == [1, 5, 6, 5, 9, 9, 9, 9, None]


def test_policies_when_maximising() -> None:
    assert told("last", "max") == [1, 5, 6, 2, 9, 1, 1, 1, None]
    assert told("worst", "max") == [1, 5, 6, 1, 1, 1, 1, 1, None]
    assert told("censored", "max") == [1, 5, 6, 2, 5, 1, 1, 1, None]


def test_the_view_changes_no_trial() -> None:
    trials = {"0": trial("STOPPED", 2.0, 1.0), "1": trial("COMPLETED", math.inf)}
    before = {key: dict(vars(value)) for key, value in trials.items()}
    view(trials, (), MINIMUM, "last")
    assert {key: vars(value) for key, value in trials.items()} == before


def test_without_any_finite_value_trials_are_left_out() -> None:
    trials = {"0": trial("STOPPED"), "1": trial("COMPLETED", -math.inf)}
    seen = view(trials, (), MINIMUM, "last")
    assert seen.left_out == 2
    assert statuses(list(seen.trials.values())) == ["FAILED"] * 2


def test_a_trial_that_waits_to_be_run_again_is_not_shown() -> None:
    trials = {"0": trial("RUNNING", key="0"), "1": trial("RUNNING", key="1")}
    seen = view(trials, {"1"}, MINIMUM, "last")
    assert seen.trials["0"].status == "FAILED"
    # The same object: KerasTuner compares by identity who is ongoing.
    assert seen.trials["1"] is trials["1"]
    assert seen.left_out == 0


def test_the_oracle_is_as_before_after_a_suggestion(tmp_path: Any) -> None:
    oracle = bayesian_oracle(4, num_initial_points=2)
    trials = search(oracle, in_turn(stopped(math.nan)), tmp_path)
    assert oracle.num_initial_points == 2
    assert statuses(list(oracle.trials.values())) == ["STOPPED"] * 4
    assert all(oracle.trials[t.trial_id] is t for t in trials)


# --- Bayesian optimisation ---------------------------------------------------------


def stock_bayesian_oracle(max_trials: int, **kwargs: Any) -> Any:
    """KerasTuner's algorithm with this package's view of the trials."""
    defaults = {"objective": "val_loss", "hyperparameters": space("lr"), "seed": 3}
    oracle_class = diagnosed(STOCK.BayesianOptimizationOracle)
    return oracle_class(max_trials=max_trials, **(defaults | kwargs))


def test_stock_bayesian_optimisation_cannot_take_a_stopped_trial() -> None:
    # Canary: when KerasTuner can, the view may become smaller.
    oracle = STOCK.BayesianOptimizationOracle(
        "val_loss", num_initial_points=1, hyperparameters=space("lr")
    )
    oracle.trials = {"0": trial("STOPPED", 1.0), "1": trial("COMPLETED", 1.0)}
    with pytest.raises(UnboundLocalError):
        oracle.populate_space("2")


def test_bayesian_optimisation_survives_a_first_trial_that_was_stopped(
    tmp_path: Any,
) -> None:
    script = in_turn(stopped(2.0), {"val_loss": 1.0}, {"val_loss": 0.5})
    trials = search(bayesian_oracle(4, num_initial_points=2), script, tmp_path)
    assert statuses(trials) == ["STOPPED"] + ["COMPLETED"] * 3


def test_the_gaussian_process_gets_the_last_value(tmp_path: Any) -> None:
    oracle = stock_bayesian_oracle(3, num_initial_points=2)
    search(oracle, in_turn({"val_loss": 0.5}, stopped(2.0, best=0.1), NAN), tmp_path)
    # The first two were fitted for the third; KerasTuner alone gives both 0.5.
    fitted = oracle.gpr.y_train_ * oracle.gpr._y_train_std + oracle.gpr._y_train_mean
    assert fitted == pytest.approx([0.5, 2.0])


@pytest.mark.parametrize("kind", ["verdict", "inf"])
def test_values_that_are_not_finite_do_not_attract_proposals(
    kind: str, tmp_path: Any
) -> None:
    bad = {"verdict": stopped(math.nan), "inf": {"val_loss": math.inf}}

    def script(trial: Any) -> Any:
        lr = trial.hyperparameters.get("lr")
        return bad[kind] if lr > 0.5 else {"val_loss": 1.0 + abs(lr - 0.25)}

    # Little exploration, so that eight proposals say enough.
    oracle = bayesian_oracle(16, num_initial_points=8, beta=1.0, seed=1)
    trials = search(oracle, script, tmp_path)
    rates = [trial.hyperparameters.get("lr") for trial in trials]
    assert any(rate > 0.5 for rate in rates[:8])
    proposed = rates[8:]
    # With NaN or infinity as 0, the best loss there is, it is above 80 %.
    assert sum(rate > 0.5 for rate in proposed) / len(proposed) < 0.2


def test_while_there_is_no_finite_value_suggestions_are_random(tmp_path: Any) -> None:
    oracle = bayesian_oracle(8, num_initial_points=3)
    trials = search(oracle, in_turn(stopped(math.nan)), tmp_path)
    assert statuses(trials) == ["STOPPED"] * 8
    assert not hasattr(oracle.gpr, "X_train_")
    assert len({trial.hyperparameters.get("lr") for trial in trials}) == 8


@pytest.mark.parametrize("points", [3, None])
def test_left_out_trials_count_as_initial_points(points: Any, tmp_path: Any) -> None:
    # None is KerasTuner's three per dimension, and at least three.
    oracle = stock_bayesian_oracle(4, num_initial_points=points, stopped_value="skip")
    outcomes = [stopped(2.0), stopped(2.0), {"val_loss": 0.5}, {"val_loss": 0.4}]
    search(oracle, in_turn(*outcomes), tmp_path)
    # The fourth suggestion came from the Gaussian process, fitted to the third trial.
    assert oracle.gpr.X_train_.shape == (1, 1)


def test_kerastuner_makes_as_many_initial_points_as_we_think(tmp_path: Any) -> None:
    oracle = stock_bayesian_oracle(8, hyperparameters=space("a", "b"))
    fitted = []

    def script(trial: Any) -> Any:
        fitted.append(hasattr(oracle.gpr, "X_train_"))
        return {"val_loss": 0.5}

    search(oracle, script, tmp_path)
    assert fitted == [False] * 6 + [True] * 2


def test_a_second_worker_is_not_told_of_a_trial_that_waits(tmp_path: Any) -> None:
    # The waiting trial is RUNNING without a tuner: KerasTuner alone would give it
    # the score of the trial before it.
    oracle = stock_bayesian_oracle(6, num_initial_points=1)
    oracle.trials = {"0": trial("COMPLETED", 1.0), "1": trial("RUNNING", key="1")}
    for made in oracle.trials.values():
        made.hyperparameters = space("lr")
    oracle.populate_space("2")
    assert len(oracle.gpr.X_train_) == 1
