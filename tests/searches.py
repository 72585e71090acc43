"""Parts of searches for the tests: trials whose outcome is a script, no training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras_tuner

from kt_bttackler import channel
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
