"""Parts of searches for the tests: trials whose outcome is a script, no training."""

from __future__ import annotations

import collections
import math
import random
from collections.abc import Callable
from typing import Any

import keras_tuner
import pytest

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


def search_in_parallel(
    oracle: keras_tuner.Oracle,
    script: Script,
    folder: Any,
    workers: int = 4,
    seed: int = 0,
) -> list[Any]:
    """Runs a search of several workers, whose trials end in a random order.

    A trial whose outcome is None has failed.
    """
    ScriptedTuner(oracle, script, directory=folder, project_name="p")
    oracle.verbose = 0
    dice = random.Random(seed)
    idle, running = {f"worker{number}" for number in range(workers)}, {}
    while idle or running:
        for name in sorted(idle):
            trial = oracle.create_trial(name)
            if trial.status != "IDLE":
                idle.remove(name)
            if trial.status == "RUNNING":
                running[name] = trial
        assert running or not idle, "everybody waits for nobody"
        if running:
            name = dice.choice(sorted(running))
            end(oracle, running.pop(name), script)
            idle.add(name)
    return [oracle.trials[trial_id] for trial_id in oracle.start_order]


def end(oracle: keras_tuner.Oracle, trial: Any, script: Script) -> None:
    """Ends a trial as a tuner does, with the outcome that the script gives it."""
    outcome = script(trial)
    if outcome is not None:
        oracle.update_trial(trial.trial_id, outcome)
    trial.status = "INVALID" if outcome is None else "COMPLETED"
    oracle.end_trial(trial)


class _Killed(BaseException):
    """Stands for the end of the process."""


def killed_and_resumed(
    make: Callable[[], Any], script: Script, killed_in: int, folder: Any
) -> list[Any]:
    """The trials of a search whose process ends in a trial and is started again."""
    started = []

    def until_killed(trial: Any) -> Any:
        started.append(trial)
        if len(started) > killed_in:
            raise _Killed
        return script(trial)

    with pytest.raises(_Killed):
        search(make(), until_killed, folder)
    return search(make(), script, folder)


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


def halving_oracle(**kwargs: Any) -> Any:
    defaults = {"max_epochs": 9, "hyperparameters": space("lr"), "seed": 1}
    return oracles.SuccessiveHalvingOracle("val_loss", **(defaults | kwargs))


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


def promoted(trials: list[Any]) -> set[str]:
    """Ids of the trials that others went on with."""
    return {trial.hyperparameters.values.get("tuner/trial_id") for trial in trials} - {
        None
    }
