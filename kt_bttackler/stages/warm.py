"""Compiled models that several trainings use one after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from kt_bttackler.stages.schedules import Schedule
from kt_bttackler.stages.tree import Values

# Names of schedules with a meaning of their own.
BATCH_SIZE = "batch_size"
_RATE = "learning_rate"


class WarmModel:
    """A compiled model that several trainings use one after another.

    To trace the training step of a model often takes longer than a short stage. Its
    state is exchanged by assignment, which is exact.

    Args:
        model: compiled.
        schedules: of the first training.

    Raises:
        ValueError: the optimizer has no attribute of the name of a schedule.
    """

    def __init__(self, model: keras.Model, schedules: Mapping[str, Schedule]) -> None:
        self.model = model
        self._functions: dict[Values, Any] = {}
        self._current: Values | None = None
        for name, schedule in schedules.items():
            known = name in (_RATE, BATCH_SIZE) or hasattr(self._optimizer, name)
            if schedule.apply is None and not known:
                raise ValueError(
                    "`name` of a schedule must be 'learning_rate', 'batch_size' or an "
                    f"attribute of {type(self._optimizer).__name__} where there is no "
                    f"`apply`, got {name!r}."
                )

    @property
    def _optimizer(self) -> Any:
        optimizer = self.model.optimizer
        return getattr(optimizer, "inner_optimizer", optimizer)

    def build_optimizer(self, schedules: Mapping[str, Schedule]) -> None:
        """Makes the variables of the optimizer, if those of the model are there.

        SGD and RMSprop make none for a momentum of 0, from which one may rise.
        """
        if not self.model.built or self.model.optimizer.built:
            return
        rising = "momentum" in schedules
        if rising:
            before, self._optimizer.momentum = self._optimizer.momentum, 0.5
        self.model.optimizer.build(self.model.trainable_variables)
        if rising:
            self._optimizer.momentum = before

    def set(self, values: Values, schedules: Mapping[str, Schedule]) -> None:
        """Sets the values of an epoch.

        All but the learning rate are constants of the traced training step, which is
        made anew for other values, and kept.

        Args:
            values: those of the epoch.
            schedules: by name.
        """
        traced = []
        for name, value in values:
            if name == _RATE and schedules[name].apply is None:
                self.model.optimizer.learning_rate = value
            elif name != BATCH_SIZE:
                traced.append((name, value))
        current = tuple(traced)
        if current == self._current:
            return
        for name, value in current:
            apply = schedules[name].apply
            if apply is not None:
                apply(self.model, value)
            else:
                setattr(self._optimizer, name, value)
        if current in self._functions:
            self.model.train_function = self._functions[current]
        elif current:
            self.model.make_train_function(force=True)
            self._functions[current] = self.model.train_function
        self._current = current
