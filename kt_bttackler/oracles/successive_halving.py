"""Successive halving: one bracket of Hyperband, of a size that the user chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras_tuner

from kt_bttackler.oracles.halving import DiagnosedHalvingMixin


class SuccessiveHalvingOracle(DiagnosedHalvingMixin):
    """Trains many trials for a few epochs, the best of them for more, and so on.

    With `factor=3`, `max_epochs=9` and `min_epochs=1`, nine trials are trained for one
    epoch, the best three of them for three, and the best one for nine (Jamieson and
    Talwalkar, 2016). Every promotion is a trial of its own, which goes on with the
    training of the one that was promoted; this needs the tuner `SuccessiveHalving`.

    Args:
        objective: a name, a `keras_tuner.Objective`, or a list of them.
        max_epochs: epochs of a trial that rises to the last round.
        factor: by which the epochs grow and the trials become fewer, from round to
            round.
        min_epochs: epochs of the first round are at least these.
        num_initial_trials: how many trials the first round has; by default so many
            that one reaches the last round.
        seed: seed of the search.
        hyperparameters: those to search, or to begin with.
        allow_new_entries: whether `build` may ask for others.
        tune_new_entries: whether those others are searched, too.
        max_retries_per_trial: how often a trial that crashed is run again.
        max_consecutive_failed_trials: after how many of them the search ends.
        **kwargs: arguments of `DiagnosedOracleMixin`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> oracle = SuccessiveHalvingOracle("val_loss", max_epochs=30, min_epochs=2)
        >>> oracle.rounds
        [(9, 4), (3, 10), (1, 30)]
    """

    def __init__(
        self,
        objective: Any = None,
        max_epochs: int = 100,
        factor: int = 3,
        min_epochs: int = 1,
        num_initial_trials: int | None = None,
        seed: int | None = None,
        hyperparameters: keras_tuner.HyperParameters | None = None,
        allow_new_entries: bool = True,
        tune_new_entries: bool = True,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            objective=objective,
            seed=seed,
            hyperparameters=hyperparameters,
            allow_new_entries=allow_new_entries,
            tune_new_entries=tune_new_entries,
            max_retries_per_trial=max_retries_per_trial,
            max_consecutive_failed_trials=max_consecutive_failed_trials,
            **kwargs,
        )
        for name, value, least in (
            ("min_epochs", min_epochs, 1),
            ("max_epochs", max_epochs, min_epochs),
            ("factor", factor, 2),
            ("num_initial_trials", num_initial_trials, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        self.max_epochs = max_epochs
        self.min_epochs = min_epochs
        self.factor = factor
        self.num_initial_trials = num_initial_trials
        rounds: list[list[dict[str, str]]] = [[] for _ in self.rounds]
        self._brackets = [{"bracket_num": len(rounds) - 1, "rounds": rounds}]

    @property
    def rounds(self) -> list[tuple[int, int]]:
        """For each round how many trials it has, and the epochs they reach."""
        last = 0
        while self.max_epochs / self.factor ** (last + 1) >= self.min_epochs:
            last += 1
        trials = self.num_initial_trials or self.factor**last
        return [
            (
                math.ceil(trials / self.factor**number),
                math.ceil(self.max_epochs / self.factor ** (last - number)),
            )
            for number in range(last + 1)
        ]

    def get_state(self) -> dict[str, Any]:
        """State of the oracle."""
        return {
            **super().get_state(),
            "max_epochs": self.max_epochs,
            "min_epochs": self.min_epochs,
            "factor": self.factor,
            "num_initial_trials": self.num_initial_trials,
            "brackets": self._brackets,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state; the rounds are those that the search began with."""
        super().set_state(state)
        self.max_epochs = state["max_epochs"]
        self.min_epochs = state["min_epochs"]
        self.factor = state["factor"]
        self.num_initial_trials = state["num_initial_trials"]
        self._brackets = state["brackets"]

    def _plan(self, bracket_num: int) -> Sequence[tuple[int, int]]:
        return self.rounds

    def _next_bracket(self) -> dict[str, Any] | None:
        return None
