"""Which configurations of a search space are worth a try."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras_tuner

# Random numbers that may repeat a configuration before the space counts as explored.
_COLLISIONS = 20
_ALMOST_ONE = 1.0 - 1e-9


def proposals(
    space: keras_tuner.HyperParameters, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Configurations to try, each once, with what kind they are.

    The default, the corners of all lowest and of all highest values, then in turn a
    random one and the default in which one hyperparameter has an extreme value.

    Args:
        space: what is to be searched; it may grow meanwhile.
        seed: of the random ones.
    """
    dice = random.Random(seed)
    seen: list[dict[str, Any]] = []

    def new(kind: str, values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        if values not in seen:
            seen.append(values)
            yield kind, values

    yield "default", _values(space, lambda each: each.default)
    # Only the first build may have declared what there is.
    seen.append(_values(space, lambda each: each.default))
    yield from new("corner", _values(space, lambda each: each.prob_to_value(0.0)))
    yield from new("corner", _values(space, _highest))
    collisions, one_extreme = 0, _OneExtreme(space)
    while collisions < _COLLISIONS:
        drawn = _values(space, lambda each: each.prob_to_value(dice.random()))
        collisions = collisions + 1 if drawn in seen else 0
        yield from new("random", drawn)
        corner = one_extreme.next()
        if corner is not None:
            collisions = 0
            yield from new("corner", corner)


class _OneExtreme:
    """Default configurations in which one hyperparameter has an extreme value."""

    def __init__(self, space: keras_tuner.HyperParameters) -> None:
        self._space = space
        self._done: set[tuple[str, Any]] = set()

    def next(self) -> dict[str, Any] | None:
        """One that was not given before, or None."""
        for hyperparameter in self._space.space:
            for value in _extremes(hyperparameter):
                key = hyperparameter.name, value
                if key not in self._done:
                    self._done.add(key)
                    return _values(self._space, lambda each: each.default, dict([key]))
        return None


def _extremes(hyperparameter: Any) -> list[Any]:
    """Lowest and highest value of a number, all values of a choice."""
    hp_types = keras_tuner.engine.hyperparameters
    if isinstance(hyperparameter, hp_types.Choice | hp_types.Boolean):
        return list(hyperparameter.values)
    return [_highest(hyperparameter), hyperparameter.prob_to_value(0.0)]


def _highest(hyperparameter: Any) -> Any:
    return hyperparameter.prob_to_value(_ALMOST_ONE)


def _values(
    space: keras_tuner.HyperParameters,
    choose: Callable[[Any], Any],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A configuration: a value for each hyperparameter that is active in it."""
    chosen = keras_tuner.HyperParameters()
    chosen.merge(space, overwrite=False)
    chosen.values = {}
    for hyperparameter in space.space:  # parents stand before their children
        if chosen.is_active(hyperparameter):
            name = hyperparameter.name
            value = choose(hyperparameter)
            chosen.values[name] = (given or {}).get(name, value)
    values: dict[str, Any] = chosen.values
    return values
