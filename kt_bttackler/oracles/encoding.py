"""Hyperparameters as points among which distances mean something.

A *place* is a number in [0, 1] for each hyperparameter of a space that has more than
one value: how far up its range, on its own scale, it stands, or which of its choices it
is. Places are what a search draws, moves and turns back into values. The *columns* made
of them are what a Gaussian process measures distances in:

- an ordered hyperparameter is one column;
- one of k choices without order is k columns, so that any two are at distance 1;
- one that can be inactive lies, while it is active, on an arc of one radian around the
  place of inactivity (after Swersky et al., "Raiders of the Lost Architecture", 2013,
  section 3): its active values are as far apart as before, each is at distance 1 from
  inactivity, and the value it has while it is inactive is nowhere to be seen. Without
  order, inactivity is one more choice.

A hyperparameter is inactive where its conditional scope is closed, and where `build`
did not ask for it although KerasTuner gave it a value (see `requested`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras_tuner.engine import hyperparameters as kinds
from numpy.typing import NDArray

from kt_bttackler.oracles.gaussian import Array
from kt_bttackler.oracles.space import Axis, axes

Flags = NDArray[np.bool_]

# How many trials at most tell which values `build` asks for.
_LEARNT_FROM = 100
_ABSENT = object()


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One hyperparameter with more than one value.

    Attributes:
        axis: its values.
        optional: whether it can be inactive.
    """

    axis: Axis
    optional: bool = False

    @property
    def ordered(self) -> bool:
        """Whether neighbouring places are alike."""
        # Two choices lie on a line in any case.
        return self.axis.kind != "category" or self.axis.high == 1

    @property
    def width(self) -> int:
        """How many columns it has."""
        count = 1 if self.ordered else int(self.axis.high) + 1
        return count + self.optional

    @functools.cached_property
    def ends(self) -> tuple[float, float]:
        """The place of the first value and that of the last one."""
        low, high = self._places(np.array([self.axis.low, self.axis.high]))
        return float(low), float(high)

    def place(self, value: Any) -> float | None:
        """The place of a value; None for one that is not in the space."""
        try:
            coordinate = self.axis.encode(value)
        except (TypeError, ValueError):
            return None
        return float(self._places(np.array([coordinate], dtype=np.float64))[0])

    def value(self, place: float) -> Any:
        """The value at a place."""
        return self.axis.decode(self._coordinates(np.array([place])).tolist()[0])

    def snap(self, places: Array) -> Array:
        """The places [n] of the values at any places [n]."""
        if self.axis.kind != "float":
            return self._places(self._coordinates(places))
        if isinstance(self.axis.hp, kinds.Float):
            return places
        # Integers on a reverse logarithmic scale, or a kind of the user's.
        snapped = [self.place(self.value(place)) for place in places]
        return np.array(snapped, dtype=np.float64)

    def steps(self, place: float) -> Array:
        """Places one value away, or of all other choices; none in a continuum."""
        axis = self.axis
        if axis.kind == "float":
            return np.empty(0)
        here = self._coordinates(np.array([place]))[0]
        if axis.kind == "int":
            others = np.array([here - 1, here + 1])
            others = others[(others >= axis.low) & (others <= axis.high)]
        else:
            others = np.delete(np.arange(axis.high + 1), int(here))
        return self._places(others)

    def columns(self, places: Array, active: Flags) -> Array:
        """[n, width] columns of places [n], some of them of inactive values."""
        if not self.ordered:
            choices = self._coordinates(places).astype(np.intp)
            if self.optional:
                choices = np.where(active, choices, self.width - 1)
            corners: Array = np.sqrt(0.5) * np.eye(self.width)
            return np.asarray(corners[choices])
        position = self._position(places)
        if not self.optional:
            return np.asarray(position[:, None])
        arc = np.array([np.sin(position - 0.5), np.cos(position - 0.5)])
        return np.asarray(np.where(active, arc, 0.0).T)

    def slopes(self, place: float) -> Array:
        """[width] derivatives of the columns of an ordered, active place."""
        low, high = self.ends
        if not self.optional:
            return np.array([1.0 / (high - low)])
        angle = self._position(np.array([place]))[0] - 0.5
        return np.array([np.cos(angle), -np.sin(angle)]) / (high - low)

    def _position(self, places: Array) -> Array:
        """Places as shares of the way from one end to the other."""
        low, high = self.ends
        return (places - low) / (high - low)

    def _places(self, coordinates: Array) -> Array:
        low, size = self._scale
        shifted = coordinates + self._half
        if self.axis.log:
            shares = np.log(shifted / low) / np.log(size / low + 1.0)
        else:
            shares = (shifted - low) / size
        return np.asarray(shares)

    def _coordinates(self, places: Array) -> Array:
        low, size = self._scale
        if self.axis.log:
            coordinates = low * (size / low + 1.0) ** places
        else:
            coordinates = low + size * places
        if self._half:
            coordinates = np.floor(coordinates)
        return np.clip(coordinates, self.axis.low, self.axis.high)

    @property
    def _half(self) -> float:
        """What lies on either side of a coordinate and belongs to it."""
        return 0.0 if self.axis.kind == "float" else 0.5

    @property
    def _scale(self) -> tuple[float, float]:
        """Where places begin, and how far they reach."""
        low = float(self.axis.low)
        return low, self.axis.high + 2.0 * self._half - low


class Space:
    """The search space at one moment, with all that the trials tell about it.

    Args:
        hyperparameters: those of the space, parents before children.
        trials: values of each trial by name.
        unrequested: for each trial the names it did not ask for; None if it has not
            ended, so that nobody knows.

    Attributes:
        dimensions: the hyperparameters with more than one value.
        groups: [columns] which dimension each column belongs to.
        places: [trials, dimensions] of the values; 0.5 where there is none.
        active: [trials, dimensions] whether they took part.
    """

    def __init__(
        self,
        hyperparameters: Sequence[Any],
        trials: Sequence[Mapping[str, Any]] = (),
        unrequested: Sequence[set[str] | None] = (),
    ) -> None:
        self._axes = axes(hyperparameters)
        varying = [axis for axis in self._axes if axis.kind != "constant"]
        self._number = {axis.key: number for number, axis in enumerate(varying)}
        self._parents = {
            condition.name for axis in self._axes for condition in axis.hp.conditions
        }
        self.dimensions = [Dimension(axis) for axis in varying]
        self.places = np.full((len(trials), len(varying)), 0.5)
        present = np.zeros(self.places.shape, dtype=bool)
        for row, values in enumerate(trials):
            for number, place in self._find(values).items():
                self.places[row, number], present[row, number] = place, True
        asked, known = self._asked(present, unrequested)
        self._rules = self._learn_rules(asked, known)
        self.active = present & asked
        # Trials that have not ended ask for what others like them asked for.
        running = [row for row, names in enumerate(unrequested) if names is None]
        for number, rule in self._rules.items():
            self.active[running, number] &= rule(self.places[running])
        self.dimensions = [
            Dimension(dimension.axis, self._is_optional(number))
            for number, dimension in enumerate(self.dimensions)
        ]
        widths = [dimension.width for dimension in self.dimensions]
        self.groups = np.repeat(np.arange(len(widths)), widths)

    def _find(self, values: Mapping[str, Any]) -> dict[int, float]:
        """The places of a trial, by number of the dimension."""
        found = {}
        # Of several hyperparameters of one name, the value is of the one in scope.
        seen: set[str] = set()
        for axis in self._axes:
            if axis.name in seen or axis.name not in values:
                continue
            if axis.is_active(values):
                seen.add(axis.name)
                number = self._number.get(axis.key)
                if number is not None:
                    place = self.dimensions[number].place(values[axis.name])
                    if place is not None:
                        found[number] = place
        return found

    def _asked(
        self, present: Flags, unrequested: Sequence[set[str] | None]
    ) -> tuple[Flags, Flags]:
        """Which values were asked for, and of which that is known: [trials, dims]."""
        asked = np.ones_like(present)
        known = present.copy()
        for row, names in enumerate(unrequested):
            known[row] &= names is not None
            for number, dimension in enumerate(self.dimensions):
                asked[row, number] = dimension.axis.name not in (names or ())
        # What was never asked for by name may have been read in another way.
        asked |= ~(asked & known).any(axis=0)
        return asked, known

    def _learn_rules(
        self, asked: Flags, known: Flags
    ) -> dict[int, Callable[[Array], Flags]]:
        """When `build` asks for those that it does not always ask for.

        It depends on another hyperparameter: a number of layers, a kind of layer. It
        is that one among those before it in the space in which the nearest trial
        tells best; if none tells more than how often it was asked for, it is taken to
        be asked for always.
        """
        rules: dict[int, Callable[[Array], Flags]] = {}
        for number in np.flatnonzero((known & ~asked).any(axis=0)):
            rows = np.flatnonzero(known[:, number])[-_LEARNT_FROM:]
            answers = asked[rows, number]
            wrong = {-1: int(min(answers.sum(), (~answers).sum()))}
            for other in range(number):
                apart = self._apart(other, self.places[rows], self.places[rows])
                np.fill_diagonal(apart, np.inf)
                wrong[other] = int((_nearest(apart, answers) != answers).sum())
            best = min(wrong, key=lambda other: (wrong[other], other))
            if best >= 0:
                rules[int(number)] = functools.partial(
                    self._ask_nearest, best, self.places[rows], answers
                )
        return rules

    def _ask_nearest(
        self, other: int, known: Array, answers: Flags, places: Array
    ) -> Flags:
        return _nearest(self._apart(other, places, known), answers)

    def _apart(self, number: int, one: Array, other: Array) -> Array:
        """[n, m] distances of places [n, dims] and [m, dims] in one dimension."""
        apart = np.abs(one[:, number, None] - other[:, number])
        if self.dimensions[number].ordered:
            return apart
        return (apart > 0).astype(np.float64)

    def _is_optional(self, number: int) -> bool:
        if self.dimensions[number].axis.hp.conditions:
            return True
        return number in self._rules or not self.active[:, number].all()

    def draw(self, random: np.random.Generator, count: int) -> Array:
        """Places [count, dimensions] of random values."""
        return self.snap(random.random((count, len(self.dimensions))))

    def snap(self, places: Array) -> Array:
        """The places of the values at any places [n, dimensions]."""
        snapped = np.empty_like(places)
        for number, dimension in enumerate(self.dimensions):
            snapped[:, number] = dimension.snap(places[:, number])
        return snapped

    def values(self, places: Array) -> dict[str, Any]:
        """What to train with at places [dimensions]: all values whose scope is open."""
        values: dict[str, Any] = {}
        for axis in self._axes:
            if axis.name not in values and axis.is_active(values):
                values[axis.name] = self._value(axis, places)
        return values

    def _value(self, axis: Axis, places: Array) -> Any:
        if axis.kind == "constant":
            return axis.decode(axis.low)
        number = self._number[axis.key]
        return self.dimensions[number].value(places[number])

    def activity(self, places: Array) -> Flags:
        """[n, dimensions] which hyperparameters take part at places like these."""
        active = np.ones(places.shape, dtype=bool)
        parents = {
            name: np.full(len(places), _ABSENT, dtype=object) for name in self._parents
        }
        taken: dict[str, Flags] = {}
        for axis in self._axes:
            before = taken.get(axis.name, np.zeros(len(places), dtype=bool))
            open_ = ~before
            for condition in axis.hp.conditions:
                open_ &= _holds(condition, parents[condition.name])
            taken[axis.name] = before | open_
            if axis.name in parents:
                for row in np.flatnonzero(open_):
                    parents[axis.name][row] = self._value(axis, places[row])
            if axis.key in self._number:
                active[:, self._number[axis.key]] = open_
        for number, rule in self._rules.items():
            active[:, number] &= rule(places)
        return active

    def columns(self, places: Array, active: Flags) -> Array:
        """[n, columns] of places [n, dimensions]."""
        parts = [
            dimension.columns(places[:, number], active[:, number])
            for number, dimension in enumerate(self.dimensions)
        ]
        return np.concatenate([np.empty((len(places), 0)), *parts], axis=1)


def _nearest(apart: Array, answers: Flags) -> Flags:
    """What most of the nearest [m] say, for distances [n, m]."""
    nearest = apart == apart.min(axis=1, keepdims=True)
    votes: Array = nearest @ answers.astype(np.float64)
    return np.asarray(votes * 2.0 >= nearest.sum(axis=1))


def _holds(condition: Any, values: NDArray[np.object_]) -> Flags:
    """For each value of the parent whether the condition holds."""
    holds = {
        value: value is not _ABSENT and condition.is_active({condition.name: value})
        for value in set(values)
    }
    return np.array([holds[value] for value in values], dtype=bool)
