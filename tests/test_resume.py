"""Tests of searches that are resumed after their process ended."""

from __future__ import annotations

import math
from typing import Any

import keras_tuner
import pytest
from searches import (
    NAN,
    ROUNDS,
    ScriptedTuner,
    bayesian_oracle,
    hyperband_oracle,
    in_turn,
    random_oracle,
    rounds,
    search,
    space,
    statuses,
    stopped,
)

from kt_bttackler import oracles

STOCK = keras_tuner.oracles


# --- resuming ----------------------------------------------------------------------


def facts(oracle: Any) -> dict[str, Any]:
    return {
        trial_id: (trial.status, trial.score, trial.message, trial.best_step)
        for trial_id, trial in oracle.trials.items()
    }


class Killed(BaseException):
    """Stands for the end of the process."""


def kill(trial: Any) -> Any:
    raise Killed


def search_until_killed(oracle: Any, outcomes: list[Any], folder: Any) -> None:
    """The process ends in the trial after `outcomes`."""
    left = list(outcomes)
    with pytest.raises(Killed):
        search(oracle, lambda trial: left.pop(0) if left else kill(trial), folder)


def restarted(make: Any, before: list[Any], after: list[Any], folder: Any) -> Any:
    """An oracle whose search was killed after `before` and resumed."""
    first = make()
    search_until_killed(first, before, folder)
    second = make()
    tuner = ScriptedTuner(second, in_turn(*after), directory=folder, project_name="p")
    done = {k: v for k, v in facts(first).items() if v[0] != "RUNNING"}
    assert {k: facts(second)[k] for k in done} == done
    tuner.search(verbose=0)
    assert {k: facts(second)[k] for k in done} == done
    assert not list(folder.rglob("*.corrupt*"))
    return second


def test_a_resumed_search_goes_on(tmp_path: Any) -> None:
    def make() -> Any:
        return random_oracle(6, stopped_value="skip")

    before = [stopped(2.0), NAN, {"val_loss": 0.4}]
    oracle = restarted(make, before, [stopped(1.0), {"val_loss": 0.5}], tmp_path)
    expected = ["STOPPED", "STOPPED", "COMPLETED", "STOPPED", "COMPLETED", "COMPLETED"]
    assert statuses([oracle.trials[f"{number}"] for number in range(6)]) == expected
    assert oracle.stopped_value == "skip"


def test_a_resumed_bayesian_search_goes_on(tmp_path: Any) -> None:
    def make() -> Any:
        return bayesian_oracle(6, num_initial_points=2)

    before = [stopped(math.nan), {"val_loss": 0.4}, stopped(2.0)]
    oracle = restarted(make, before, [{"val_loss": 0.5}], tmp_path)
    assert len(oracle.trials) == 6


def test_a_resumed_hyperband_search_goes_on(tmp_path: Any) -> None:
    before = [stopped(math.nan)] * 8 + [{"val_loss": 0.4}] * 2
    oracle = restarted(hyperband_oracle, before, [{"val_loss": 0.5}], tmp_path)
    expected = ROUNDS | {(2, 1): 1, (2, 2): 1}
    assert rounds(list(oracle.trials.values())) == expected


@pytest.mark.parametrize("killed_in", [0, 1, 4, 7])
def test_a_resumed_grid_search_covers_the_grid(killed_in: int, tmp_path: Any) -> None:
    def make() -> Any:
        hyperparameters = keras_tuner.HyperParameters()
        hyperparameters.Choice("kind", ["a", "b"])
        hyperparameters.Choice("units", [1, 2, 3])
        with hyperparameters.conditional_scope("kind", ["b"]):
            hyperparameters.Boolean("bias")
        return oracles.GridSearchOracle("val_loss", hyperparameters=hyperparameters)

    before = [stopped(2.0), *[{"val_loss": 0.4}] * 6][:killed_in]
    oracle = restarted(make, before, [{"val_loss": 0.5}], tmp_path)
    tried = [str(trial.hyperparameters.values) for trial in oracle.trials.values()]
    assert len(tried) == len(set(tried)) == 3 + 3 * 2
    assert set(statuses(list(oracle.trials.values()))) <= {"STOPPED", "COMPLETED"}


def test_a_project_keeps_the_policy_it_began_with(tmp_path: Any, caplog: Any) -> None:
    search(random_oracle(2, stopped_value="worst"), in_turn(stopped()), tmp_path)
    oracle = random_oracle(2)
    ScriptedTuner(oracle, kill, directory=tmp_path, project_name="p")
    assert oracle.stopped_value == "worst"
    assert "begun with stopped_value='worst'" in caplog.text


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (STOCK.BayesianOptimizationOracle, oracles.BayesianOptimizationOracle),
        (oracles.BayesianOptimizationOracle, STOCK.BayesianOptimizationOracle),
        (STOCK.HyperbandOracle, oracles.HyperbandOracle),
        (oracles.HyperbandOracle, STOCK.HyperbandOracle),
    ],
)
def test_projects_are_exchanged_with_kerastuner(
    writer: Any, reader: Any, tmp_path: Any
) -> None:
    first = writer("val_loss", hyperparameters=space("lr"), seed=1)
    search_until_killed(first, [{"val_loss": 0.5}] * 3, tmp_path)
    second = reader("val_loss", hyperparameters=space("lr"), seed=1)
    search_until_killed(second, [{"val_loss": 0.4}] * 2, tmp_path)
    done = {k: v for k, v in facts(first).items() if v[0] == "COMPLETED"}
    assert {k: facts(second)[k] for k in done} == done
    assert statuses(list(second.trials.values())).count("COMPLETED") == 5
