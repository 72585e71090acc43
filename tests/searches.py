"""Parts of searches for the tests: trials whose outcome is a script, no training."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Any

import keras_tuner

from kt_bttackler import channel, oracles
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.indicators import Finding

Script = Callable[[keras_tuner.engine.trial.Trial], Any]


def verdict(cause: str = "ERG", epoch: int = 3) -> Verdict:
    """A verdict that ends a training; NMG is benign."""
    finding = Finding(cause, epoch, 4e-5, 1e-3, layer="conv")
    return Verdict(True, cause == "NMG", epoch, cause, (finding,), "AnyFinding")


def stopped(
    last: float | None = 2.0, best: float = 0.1, cause: str = "ERG"
) -> dict[str, float]:
    """Metrics of a trial that was stopped: best epoch and channel, as reported."""
    metrics = {} if last is None else {"val_loss": last}
    return {"val_loss": best} | channel.encode(verdict(cause), metrics)


def space(*names: str) -> keras_tuner.HyperParameters:
    """Floats between 0 and 1."""
    hyperparameters = keras_tuner.HyperParameters()
    for name in names:
        hyperparameters.Float(name, 0.0, 1.0)
    return hyperparameters


class ScriptedTuner(keras_tuner.Tuner):
    """KerasTuner's Tuner, with trials that return what a script says."""

    def __init__(
        self, oracle: keras_tuner.Oracle, script: Script, **kwargs: Any
    ) -> None:
        self.script = script
        super().__init__(oracle=oracle, **kwargs)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        return self.script(trial)


def search(
    oracle: keras_tuner.Oracle, script: Script, folder: Any, **kwargs: Any
) -> list[Any]:
    """Runs a whole search; returns the trials in the order of their start."""
    tuner = ScriptedTuner(oracle, script, directory=folder, project_name="p", **kwargs)
    tuner.search(verbose=0)
    return [oracle.trials[trial_id] for trial_id in oracle.start_order]


def statuses(trials: list[Any]) -> list[str]:
    """Statuses of trials."""
    return [trial.status for trial in trials]


NAN = {"val_loss": math.nan}


def random_oracle(max_trials: int = 3, **kwargs: Any) -> Any:
    defaults = {"objective": "val_loss", "hyperparameters": space("lr"), "seed": 1}
    return oracles.RandomSearchOracle(max_trials=max_trials, **(defaults | kwargs))


def bayesian_oracle(max_trials: int, **kwargs: Any) -> Any:
    defaults = {"objective": "val_loss", "hyperparameters": space("lr"), "seed": 3}
    return oracles.BayesianOptimizationOracle(
        max_trials=max_trials, **(defaults | kwargs)
    )


def hyperband_oracle(**kwargs: Any) -> Any:
    kwargs = {"max_epochs": 9, "factor": 3, "hyperparameters": space("lr")} | kwargs
    return oracles.HyperbandOracle("val_loss", seed=1, **kwargs)


def in_turn(*outcomes: Any) -> Any:
    """A script in which the n-th trial has the n-th outcome; the last one repeats."""
    left = list(outcomes)
    return lambda trial: left.pop(0) if len(left) > 1 else left[0]


# Rounds of the brackets of 9 epochs, halved by 3: 9, 3, 1; then 5, 2; then 3.
ROUNDS = {(2, 0): 9, (2, 1): 3, (2, 2): 1, (1, 0): 5, (1, 1): 2, (0, 0): 3}


def rounds(trials: list[Any]) -> dict[tuple[int, int], int]:
    """How many trials ran in each round of each bracket."""
    values = [trial.hyperparameters.values for trial in trials]
    return dict(
        collections.Counter((v["tuner/bracket"], v["tuner/round"]) for v in values)
    )
