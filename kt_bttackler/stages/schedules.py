"""Schedules as hyperparameters: values that change during a training.

A schedule is made of ordinary hyperparameters of KerasTuner, so that every oracle
searches it and every table shows it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kt_bttackler.stages import kinds
from kt_bttackler.stages.choices import (
    Axis,
    FromHyperparameters,
    Given,
    Number,
    Range,
    deviations,
    rounded,
)
from kt_bttackler.stages.tree import Stage, split

__all__ = ["Range", "Schedule", "collecting", "schedule"]

Apply = Callable[[Any, Number], None]

_declared: contextvars.ContextVar[dict[str, Schedule] | None] = contextvars.ContextVar(
    "declared_schedules", default=None
)


class Schedule(float):
    """A value that changes during a training; made by `schedule`.

    It is a number, too: its value in the first epoch. So it stands where Keras wants a
    learning rate or a momentum. `StageTuner` sets the values of later epochs.

    Attributes:
        name: of the value that changes.
        definition: kind and options.
        chosen: by option what was chosen of it.
        axes: by option what may be chosen.
        apply: sets the value in a model, or `None`.
    """

    name: str
    definition: Mapping[str, Any]
    chosen: Mapping[str, Any]
    axes: Mapping[str, Axis]
    apply: Apply | None
    _value: kinds.Value

    def __new__(
        cls,
        name: str,
        definition: Mapping[str, Any],
        chosen: Mapping[str, Any],
        axes: Mapping[str, Axis],
        apply: Apply | None = None,
    ) -> Schedule:
        """Evaluates the first epoch."""
        value = kinds.of_kind(Given(chosen), definition)
        self = super().__new__(cls, rounded(value(0)))
        self.name = name
        self.definition = definition
        self.chosen = chosen
        self.axes = axes
        self.apply = apply
        self._value = value
        return self

    def __getnewargs__(self) -> Any:
        """For copies."""
        return self.name, self.definition, self.chosen, self.axes, self.apply

    def __reduce__(self) -> Any:
        """For copies: what it evaluates to is made anew."""
        return type(self), self.__getnewargs__()

    def at(self, epoch: int) -> Number:
        """The value in an epoch, with 12 significant digits.

        Args:
            epoch: counted from 0.
        """
        return rounded(self._value(epoch))

    def chosen_as(self, values: Mapping[str, Any]) -> Schedule:
        """The same schedule with the choices of another trial.

        Args:
            values: of the hyperparameters of that trial.
        """
        chosen = {
            key: values.get(f"{self.name}/{key}", value)
            for key, value in self.chosen.items()
        }
        return Schedule(self.name, self.definition, chosen, self.axes, self.apply)

    def segments(self, epochs: int) -> list[Stage]:
        """The stages of a training of which only this value changes.

        Args:
            epochs: its length.
        """
        return split([self], epochs)

    def branches(self, epochs: int) -> set[int]:
        """Epochs before which a trial with other choices may leave this one.

        Args:
            epochs: those of the training.
        """
        return {epoch for _, epoch in self._partings(epochs) if epoch < epochs}

    def first_effects(self, epochs: int) -> dict[str, int]:
        """For each option the first epoch in which another choice may tell.

        Args:
            epochs: those of the training; also what an option without effect has.
        """
        effects = dict.fromkeys(self.axes, epochs)
        for key, epoch in self._partings(epochs):
            effects[key] = min(effects[key], epoch)
        return effects

    def _partings(self, epochs: int) -> Iterator[tuple[str, int]]:
        """For each other choice its option, and the first epoch that differs."""
        own = [self.at(epoch) for epoch in range(epochs)]
        for key, chosen in deviations(self.chosen, self.axes):
            try:
                other = kinds.of_kind(Given(chosen), self.definition)
                values = (rounded(other(epoch)) for epoch in range(epochs))
                pairs = enumerate(zip(own, values, strict=True))
                yield key, next((e for e, (a, b) in pairs if a != b), epochs)
            except ValueError:
                continue  # choices that do not go together


def schedule(
    hp: Any,
    name: str,
    kind: str | Mapping[str, Mapping[str, Any]] = "constant",
    *,
    apply: Apply | None = None,
    **options: Any,
) -> Schedule:
    """Declares a value that changes during the training.

    Every option is a number, a list of numbers to choose from, or a `Range`; several
    milestones, boundaries or values are a tuple of options. What is to be chosen
    becomes a hyperparameter `<name>/<option>`.

    Kinds and their options, all of which count epochs from 0:

    - "constant": `value`
    - "step": `start`, `milestones`, `factor`
    - "piecewise": `values`, `boundaries`
    - "exponential": `start`, `rate`, `every=1`
    - "warmup": `epochs`, `then` (a mapping of kind and options)
    - "cosine": `start`, `epochs`, `end=0`
    - "cosine_restarts": `start`, `restarts`, `epochs`, `end=0`
    - "wsd": `peak`, `decay_start`, `decay_epochs`, `warmup=0`, `shape="linear"`,
      `end=0`
    - "custom": `function(epoch, **chosen)` and the options that it takes

    Args:
        hp: KerasTuner's hyperparameters; `None` where nothing is to be chosen.
        name: `learning_rate`, `batch_size` (of `fit`), or another attribute of the
            optimizer, such as `momentum` or `weight_decay`. Any name with `apply`.
        kind: one of those, or a choice: a mapping from kinds to their options.
        apply: called with model and value to set it, before every epoch in which it
            changes, for what is neither the optimizer's nor the batch size.
        **options: of the kind.

    Returns:
        The schedule, a `float` with the value of the first epoch.

    Raises:
        ValueError: an option is out of its range, or the name was declared before.
        TypeError: the kind has other options.

    Example:
        >>> rate = schedule(None, "learning_rate", "step",
        ...                 start=0.1, milestones=(10, 20), factor=0.1)
        >>> rate, [rate.at(epoch) for epoch in (0, 10, 25)]
        (0.1, [0.1, 0.01, 0.001])
    """
    chooser = FromHyperparameters(hp, name)
    definition = {"kind": kind, **options}
    kinds.of_kind(chooser, definition)
    made = Schedule(name, definition, chooser.chosen, chooser.axes, apply)
    declared = _declared.get()
    if declared is not None:
        if name in declared:
            raise ValueError(f"`name` must be declared once, got {name!r} again.")
        declared[name] = made
    return made


@contextlib.contextmanager
def collecting() -> Iterator[dict[str, Schedule]]:
    """The schedules, by name, that are declared within."""
    declared: dict[str, Schedule] = {}
    token = _declared.set(declared)
    try:
        yield declared
    finally:
        _declared.reset(token)
