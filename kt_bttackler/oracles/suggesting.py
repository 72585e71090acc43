"""What the oracles have in common that leave suggestions to another library."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import importlib
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import TrialStatus

from kt_bttackler.oracles.mixin import seed_of
from kt_bttackler.oracles.requested import RequestsMixin
from kt_bttackler.oracles.space import Axis, axes

_logger = logging.getLogger(__name__)
_DEFAULT_INITIAL_POINTS = 10
# How often another suggestion is asked for when one was tried before.
_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class Observation:
    """A trial as a sampler sees it.

    Attributes:
        coordinates: by key of the axis, for the hyperparameters that took part: their
            scopes were open, and `build` asked for them.
        score: the finite score, or None while the trial runs.
    """

    coordinates: Mapping[str, float]
    score: float | None


class SuggestingOracle(RequestsMixin, abc.ABC):
    """Draws initial points at random, then asks a library for suggestions.

    Nothing but KerasTuner's own trials is kept from one suggestion to the next, and
    each has a random seed of its own, made of the seed of the search and the id of the
    trial. So a search that is resumed goes on as if it had never been interrupted.

    `DiagnosedOracleMixin` must stand before this class in the bases: scores that are
    not finite are not expected here.

    Args:
        objective: a name, a `keras_tuner.Objective`, or a list of them.
        max_trials: how many trials there are at most.
        num_initial_points: how many trials must have ended before the library is
            asked; 10 by default. Until then values are drawn at random.
        seed: seed of the search.
        hyperparameters: those to search, or to begin with.
        allow_new_entries: whether `build` may ask for others.
        tune_new_entries: whether those others are searched, too.
        max_retries_per_trial: how often a trial that crashed is run again.
        max_consecutive_failed_trials: after how many of them the search ends.
    """

    def __init__(
        self,
        objective: Any = None,
        max_trials: int | None = 10,
        num_initial_points: int | None = None,
        seed: int | None = None,
        hyperparameters: keras_tuner.HyperParameters | None = None,
        allow_new_entries: bool = True,
        tune_new_entries: bool = True,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int = 3,
    ) -> None:
        super().__init__(
            objective=objective,
            max_trials=max_trials,
            hyperparameters=hyperparameters,
            allow_new_entries=allow_new_entries,
            tune_new_entries=tune_new_entries,
            seed=seed_of(seed),
            max_retries_per_trial=max_retries_per_trial,
            max_consecutive_failed_trials=max_consecutive_failed_trials,
        )
        self.num_initial_points = num_initial_points or _DEFAULT_INITIAL_POINTS

    @abc.abstractmethod
    def suggest(
        self, space: Sequence[Axis], observations: Sequence[Observation], seed: int
    ) -> dict[str, Any]:
        """Values for the next trial.

        Args:
            space: at least one axis is no constant.
            observations: in the order of their start; one at least has a score.
            seed: for all random choices.

        Returns:
            Values by name, of all hyperparameters whose scopes are open.
        """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Values that were not tried before; STOPPED when there seem to be none.

        A suggestion that was tried before is repeated with another seed a few times;
        then values are drawn at random, and as in KerasTuner the search ends when
        these, too, were tried before again and again.
        """
        try:
            values = self._new_suggestion(trial_id)
        except Exception as error:
            # An oracle that raises keeps its lock for ever.
            _logger.warning("Trial %s is drawn at random: %r", trial_id, error)
            values = None
        if values is None:
            values = self._random_values()
        if values is None:
            return {"status": TrialStatus.STOPPED, "values": None}
        return {"status": TrialStatus.RUNNING, "values": values}

    def get_state(self) -> dict[str, Any]:
        """State of the oracle."""
        state = super().get_state()
        return {**state, "num_initial_points": self.num_initial_points}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state; that of another oracle's project, too."""
        super().set_state(state)
        points = state.get("num_initial_points") or self.num_initial_points
        self.num_initial_points = points

    def _new_suggestion(self, trial_id: str) -> dict[str, Any] | None:
        """A suggestion that was not tried before, or None."""
        space = axes(self.hyperparameters.space)
        if all(axis.kind == "constant" for axis in space):
            return None
        observations = self._observations(space)
        ended = sum(observation.score is not None for observation in observations)
        if ended < max(self.num_initial_points, 1):
            return None
        for attempt in range(_ATTEMPTS):
            seed = zlib.crc32(f"{self.seed}/{trial_id}/{attempt}".encode())
            values = self.suggest(space, observations, seed)
            if not self._duplicate(values):
                return values
        return None

    def _observations(self, space: Sequence[Axis]) -> list[Observation]:
        """The trials that tell something, and those that run."""
        # After a reload, the trials are in the order in which a file system lists
        # them; this is the order in which they began.
        trials = [self.trials[key] for key in self.start_order if key in self.trials]
        observations = []
        for trial, values in zip(trials, self._asked_values(trials), strict=True):
            if trial.status == TrialStatus.COMPLETED:
                score = float(trial.score)
            elif trial.status == TrialStatus.RUNNING:
                score = None
            else:
                continue
            observations.append(Observation(_coordinates(space, values), score))
        return observations


def _coordinates(space: Sequence[Axis], values: Mapping[str, Any]) -> dict[str, float]:
    """Where a trial lies, by key of the axis."""
    named = {}
    for axis in space:
        # Of several hyperparameters of one name, the value is of the one in scope.
        if axis.name in values and axis.name not in named and axis.is_active(values):
            named[axis.name] = axis
    return {axis.key: axis.encode(values[name]) for name, axis in named.items()}


def load(module: str, extra: str) -> ModuleType:
    """Imports a library that only one oracle needs.

    Args:
        module: name of the module.
        extra: the extra of this package that installs it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} cannot be imported ({error}). Install it with "
            f"pip install 'kt-bttackler[{extra}]'"
        ) from error


@contextlib.contextmanager
def only_errors_of(library: str) -> Iterator[None]:
    """Keeps what a library logs of its own workings from the user's screen."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
