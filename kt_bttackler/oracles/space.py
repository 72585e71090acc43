"""A search space as samplers see it: one coordinate for every hyperparameter.

KerasTuner's kinds are more than samplers know: steps on a logarithmic scale, reverse
logarithms, lists of numbers. Each is mapped onto one of three kinds of coordinates,
and back to values that KerasTuner itself could have drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from keras_tuner.engine import hyperparameters as kinds

Kind = Literal["float", "int", "category", "constant"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One hyperparameter, with its place in the coordinates of a sampler.

    KerasTuner tells hyperparameters apart by name and conditions, so that a name may
    belong to several axes, of which one is active at a time.

    Attributes:
        hp: KerasTuner's hyperparameter.
        key: unique in the space, and the same while the space grows.
        kind: "float" and "int" are ordered and go from `low` to `high`, both
            included; a "category" is one of the integers in that range; a "constant"
            has nothing to sample.
        low: smallest coordinate.
        high: largest coordinate.
        log: whether the coordinate is to be sampled on a logarithmic scale.
        choices: values by coordinate, if they are listed.
    """

    hp: Any
    key: str
    kind: Kind
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """Name of the hyperparameter."""
        return str(self.hp.name)

    def is_active(self, values: Mapping[str, Any]) -> bool:
        """Whether all conditional scopes of the hyperparameter are open.

        Args:
            values: by name, at least of the hyperparameters before this one.
        """
        return all(condition.is_active(values) for condition in self.hp.conditions)

    def decode(self, coordinate: float) -> Any:
        """The value at a coordinate; never outside of the space."""
        if self.kind == "constant":
            return self.hp.prob_to_value(0.5)
        if self.choices:
            return self.choices[int(coordinate)]
        if self._is_stepped:
            count = int(self.high) + 1
            return self.hp.prob_to_value((int(coordinate) + 0.5) / count)
        if self._is_probability:
            coordinate = self.hp.prob_to_value(float(coordinate))
            if not _is_numerical(self.hp):
                return coordinate
        number = int if isinstance(self.hp, kinds.Int) else float
        return number(min(max(coordinate, self.hp.min_value), self.hp.max_value))

    def encode(self, value: Any) -> float:
        """The coordinate of a value, or the one nearest to it.

        A value may have been rounded on its way from a worker, and a default value
        may lie outside of the range.
        """
        if self.kind == "constant":
            return self.low
        if self.choices:
            return _position(self.choices, value)
        if _is_numerical(self.hp):
            value = min(max(value, self.hp.min_value), self.hp.max_value)
        if self._is_stepped:
            if self.hp.sampling == "linear":
                index = (value - self.hp.min_value) / self.hp.step
            else:
                index = self.hp.value_to_prob(value) * (self.high + 1) - 0.5
            return int(min(max(round(index), 0), self.high))
        if self._is_probability:
            return float(min(max(self.hp.value_to_prob(value), 0.0), 1.0))
        return int(value) if self.kind == "int" else float(value)

    def find(self, values: Iterable[Any]) -> list[float]:
        """The coordinates of those values that are in the space."""
        if self.choices:
            known = [value for value in values if value in self.choices]
            return [_position(self.choices, value) for value in known]
        coordinates = [self.encode(value) for value in values]
        pairs = zip(values, coordinates, strict=True)
        return [where for value, where in pairs if self.decode(where) == value]

    @property
    def _is_stepped(self) -> bool:
        return self.kind == "int" and self.hp.step is not None

    @property
    def _is_probability(self) -> bool:
        """Whether the coordinate is KerasTuner's cumulative probability."""
        return self.kind == "float" and (
            not _is_numerical(self.hp) or self.hp.sampling == "reverse_log"
        )


def axes(space: Iterable[Any]) -> list[Axis]:
    """The axes of a space, in its order: parents stand before their children.

    Args:
        space: hyperparameters, as in `keras_tuner.HyperParameters().space`.

    Example:
        >>> import keras_tuner
        >>> hp = keras_tuner.HyperParameters()
        >>> batch = hp.Int("batch", 16, 256, step=2, sampling="log")
        >>> (batch,) = axes(hp.space)
        >>> batch.kind, batch.high, batch.decode(3), batch.encode(64)
        ('int', 4, 128, 2)
    """
    return [_axis(str(key), hp) for key, hp in enumerate(space)]


def _axis(key: str, hp: Any) -> Axis:
    if isinstance(hp, kinds.Fixed):
        return Axis(hp, key, "constant")
    if isinstance(hp, kinds.Boolean):
        return Axis(hp, key, "category", high=1, choices=(False, True))
    if isinstance(hp, kinds.Choice):
        # KerasTuner keeps repeated choices, and numbers in the order of the list.
        choices = tuple(
            sorted(set(hp.values)) if hp.ordered else dict.fromkeys(hp.values)
        )
        if len(choices) == 1:
            return Axis(hp, key, "constant")
        kind: Kind = "int" if hp.ordered else "category"
        return Axis(hp, key, kind, high=len(choices) - 1, choices=choices)
    if not _is_numerical(hp):  # a kind of the user's
        return Axis(hp, key, "float", high=1.0)
    if hp.step is not None:
        if hp.sampling == "linear":
            count = int((hp.max_value - hp.min_value) // hp.step) + 1
        else:
            count = len(tuple(hp.values))
        kind = "constant" if count == 1 else "int"
        return Axis(hp, key, kind, high=count - 1)
    if hp.min_value == hp.max_value:
        return Axis(hp, key, "constant")
    if hp.sampling == "reverse_log":
        return Axis(hp, key, "float", high=1.0)
    kind = "int" if isinstance(hp, kinds.Int) else "float"
    return Axis(hp, key, kind, hp.min_value, hp.max_value, log=hp.sampling == "log")


def _is_numerical(hp: Any) -> bool:
    return isinstance(hp, kinds.Int | kinds.Float)


def _position(choices: tuple[Any, ...], value: Any) -> int:
    if isinstance(value, str) or value in choices:
        return choices.index(value)
    distances = [abs(choice - value) for choice in choices]
    return distances.index(min(distances))
