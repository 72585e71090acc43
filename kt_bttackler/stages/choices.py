"""What a schedule may choose from, and who chooses.

An option of a schedule is a number, a list of numbers to choose from, or a `Range`.
Options that come in sequence, such as several milestones, are a tuple of options.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

Number = int | float


@dataclasses.dataclass(frozen=True)
class Range:
    """A range to choose a number from.

    Two trials hardly ever draw the same number from a range without `levels`, and so
    share nothing from the epoch in which it first counts. What comes before that epoch
    they share.

    Attributes:
        low: smallest value.
        high: largest value.
        sampling: "linear" or "log".
        levels: how many values, evenly spaced in `sampling`; `None`: all of them.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> Range(0.001, 0.1, "log", levels=3).candidates
        (0.001, 0.01, 0.1)
    """

    low: Number
    high: Number
    sampling: str = "linear"
    levels: int | None = None

    def __post_init__(self) -> None:
        if self.sampling not in ("linear", "log"):
            raise ValueError(
                f"`sampling` must be 'linear' or 'log', got {self.sampling!r}."
            )
        if not self.low < self.high:
            raise ValueError(f"`high` must be above `low`, got {self.high}.")
        if self.sampling == "log" and self.low <= 0:
            raise ValueError(f"`low` must be positive for 'log', got {self.low}.")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"`levels` must be at least 2, got {self.levels}.")

    @property
    def candidates(self) -> tuple[Number, ...]:
        """The levels; of a range without levels its ends and its middle."""
        steps = (self.levels or 3) - 1
        shares = [number / steps for number in range(steps + 1)]
        if self.sampling == "linear":
            values = [self.low + share * (self.high - self.low) for share in shares]
        else:
            values = [self.low * (self.high / self.low) ** share for share in shares]
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        unique = dict.fromkeys(round(v) if whole else rounded(v) for v in values)
        return tuple(unique)


@dataclasses.dataclass(frozen=True)
class Axis:
    """One choice of a schedule.

    Attributes:
        candidates: what may be chosen; some of it, if it is a range without levels.
        finite: whether that is all that may be chosen.
    """

    candidates: tuple[Any, ...]
    finite: bool = True


def rounded(value: Number) -> Number:
    """A number with 12 significant digits; whole numbers as they are.

    Computed numbers differ in their last digits (0.1 * 0.1 is not 0.01), which would
    part trials that do the same. They are trained with the rounded number.

    Example:
        >>> 0.1 * 0.1, rounded(0.1 * 0.1)
        (0.010000000000000002, 0.01)
    """
    return value if isinstance(value, int) else float(f"{value:.12g}")


def sequence(options: Any) -> tuple[Any, ...]:
    """Options that come in sequence: a tuple, a list of lists, or a single one.

    Example:
        >>> sequence(([10, 15], 20)), sequence([10, 15])
        (([10, 15], 20), ([10, 15],))
    """
    if isinstance(options, tuple):
        return options
    if isinstance(options, list) and any(
        isinstance(each, list | Range) for each in options
    ):
        return tuple(options)
    return (options,)


class Chooser(abc.ABC):
    """Chooses the options of a schedule."""

    @abc.abstractmethod
    def __call__(self, key: str, option: Any) -> Any:
        """The choice for one option.

        Args:
            key: names it within the schedule.
            option: a number, a list of values, or a `Range`.
        """

    def scope(self, key: str, choice: Any) -> contextlib.AbstractContextManager[Any]:
        """In it are choices that only matter when `key` was chosen so."""
        return contextlib.nullcontext()


class FromHyperparameters(Chooser):
    """Lets KerasTuner choose: every option becomes one of its hyperparameters.

    Args:
        hp: KerasTuner's `HyperParameters`.
        prefix: what their names begin with.
    """

    def __init__(self, hp: Any, prefix: str) -> None:
        self._hp = hp
        self._prefix = prefix
        self.chosen: dict[str, Any] = {}
        self.axes: dict[str, Axis] = {}

    def __call__(self, key: str, option: Any) -> Any:
        """See `Chooser`."""
        axis = axis_of(key, option)
        if axis is None:
            return rounded(option)
        name = f"{self._prefix}/{key}"
        if axis.finite:
            value = self._hp.Choice(name, list(axis.candidates))
        elif isinstance(option.low, int) and isinstance(option.high, int):
            value = self._hp.Int(
                name, option.low, option.high, sampling=option.sampling
            )
        else:
            low, high = float(option.low), float(option.high)
            value = rounded(self._hp.Float(name, low, high, sampling=option.sampling))
        if value is None:  # in a scope that does not count
            value = axis.candidates[0]
        self.axes[key] = axis
        self.chosen[key] = value
        return value

    def scope(self, key: str, choice: Any) -> contextlib.AbstractContextManager[Any]:
        """See `Chooser`."""
        scope: contextlib.AbstractContextManager[Any]
        scope = self._hp.conditional_scope(f"{self._prefix}/{key}", [choice])
        return scope


class Given(Chooser):
    """Choices that were made; the first candidate where none was.

    Args:
        chosen: by key.
    """

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        self._chosen = chosen

    def __call__(self, key: str, option: Any) -> Any:
        """See `Chooser`."""
        axis = axis_of(key, option)
        if axis is None:
            return rounded(option)
        return self._chosen.get(key, axis.candidates[0])


def deviations(
    chosen: Mapping[str, Any], axes: Mapping[str, Axis]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Choices that differ from those made in one option; its key, and the choices."""
    for key, axis in axes.items():
        for candidate in axis.candidates:
            if candidate != chosen[key]:
                yield key, {**chosen, key: candidate}


def axis_of(key: str, option: Any) -> Axis | None:
    """What may be chosen for an option, `None` for a number.

    Raises:
        ValueError: the option is none of those.
    """
    if isinstance(option, Range):
        return Axis(option.candidates, finite=option.levels is not None)
    if isinstance(option, list) and option:
        if all(isinstance(value, str) for value in option):
            return Axis(tuple(option))
        for value in option:
            _check_number(key, value)
        values = [rounded(value) for value in option]
        if not all(isinstance(value, int) for value in values):
            values = [float(value) for value in values]
        return Axis(tuple(dict.fromkeys(values)))
    _check_number(key, option)
    return None


def _check_number(key: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ValueError(
            f"`{key}` must be a finite number, a list of them, or a Range, got "
            f"{value!r}."
        )
