"""What a search is recorded on: a space, data, and how a configuration is trained."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Data of a task.

    Attributes:
        train: whatever the task trains on.
        validation: what it validates on.
        probe: training rows x as the model is given them; 128 of them, evenly spaced,
            are what activations are looked at with.
        trivial_score: objective of a predictor that ignores the inputs. A trial that
            does not end better is bad.
        trivial_predictor: what that predictor is, in words.
        trivial_margin: by how much a score must be better than that to be so by more
            than chance.
    """

    train: Any
    validation: Any
    probe: Any
    trivial_score: float
    trivial_predictor: str
    trivial_margin: float = 0.0


class Declare(Protocol):
    """Declares the search space."""

    def __call__(self, hp: Any, /) -> None:
        """Asks `hp`, a `keras_tuner.HyperParameters`, for every hyperparameter."""


class Load(Protocol):
    """Reads the data."""

    def __call__(self, path: pathlib.Path, /) -> TaskData:
        """Reads the file `path`; a ValueError or OSError says what is wrong with it."""


class Train(Protocol):
    """Builds, compiles and fits one model."""

    def __call__(
        self,
        values: Mapping[str, Any],
        data: TaskData,
        seed: int,
        epochs: int,
        callbacks: Sequence[Any],
        /,
    ) -> None:
        """Calls `fit` once.

        Args:
            values: the configuration.
            data: what `Load` returned.
            seed: of whatever Keras's global seed, which is set, does not reach.
            epochs: E.
            callbacks: for `fit`, in this order and before any others.
        """


@dataclasses.dataclass(frozen=True)
class Task:
    """What a search is recorded on.

    Attributes:
        name: names it in files.
        objective: metric that the search optimises, such as "val_accuracy".
        direction: "min" or "max".
        epochs: E, the epochs of every training.
        declare: declares the search space.
        load: reads the data.
        train: trains one configuration.
        changes: how the task differs from the one it is named after.
    """

    name: str
    objective: str
    direction: Literal["min", "max"]
    epochs: int
    declare: Declare
    load: Load
    train: Train
    changes: tuple[str, ...] = ()
