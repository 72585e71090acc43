"""The whole state of a training, kept so that it can go on as if never interrupted.

KerasTuner keeps the weights of the best epoch. To go on exactly takes those of the
last one, and more: the variables of the optimizer (moments, iterations, and with them
the schedule of the learning rate), the seeds of dropout and its like, and the random
numbers of Python and numpy. A state is one numpy archive without pickled objects.

Not in it are what `fit` makes anew: the iterators of the data and the callbacks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import IO, Any

import keras
import numpy as np

from kt_bttackler import files
from kt_bttackler.fuses import warn

_META = "meta"
_WORDS = "numpy_words"


def path_of(
    folder: str | os.PathLike[str], execution: int, *, stopped: bool = False
) -> pathlib.Path:
    """Where the state of one execution of a trial is kept.

    Args:
        folder: of the trial.
        execution: its number, from 0.
        stopped: that in which a diagnosis ended it; else that at its planned end.
    """
    kind = "stopped" if stopped else "state"
    return pathlib.Path(folder) / f"{kind}-{execution}.npz"


def forget_stopped(project: str | os.PathLike[str], keep: int) -> None:
    """Deletes the states of stopped trials but for the newest ones.

    Args:
        project: folder of the search.
        keep: number of trials that keep theirs.
    """
    newest: dict[pathlib.Path, float] = {}
    for path in pathlib.Path(project).glob("trial_*/stopped-*.npz"):
        with contextlib.suppress(OSError):  # deleted by another worker
            time = path.stat().st_mtime
            newest[path.parent] = max(newest.get(path.parent, time), time)
    by_age = sorted(newest, key=lambda folder: newest[folder], reverse=True)
    for folder in by_age[keep:]:
        forget(folder, stopped=True)


def forget(folder: str | os.PathLike[str], *, stopped: bool = False) -> None:
    """Deletes the states of all executions of a trial.

    Args:
        folder: of the trial; need not exist.
        stopped: those in which a diagnosis ended it; else those at its planned end.
    """
    kind = "stopped" if stopped else "state"
    for path in pathlib.Path(folder).glob(f"{kind}-*.npz"):
        path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """The state of a training at the end of an epoch.

    Attributes:
        epoch: epochs trained so far.
        origin: id of the trial in which the training began.
        build_config: what Keras needs to build a model whose shapes come from data.
        variables: by "model" and "optimizer", the values of their variables.
        python_random: state of Python's random numbers.
        numpy_random: state of numpy's, without its 624 words.
        numpy_words: those words, [624].
    """

    epoch: int
    origin: str
    build_config: Any
    variables: Mapping[str, Sequence[np.ndarray]]
    python_random: Any
    numpy_random: Any
    numpy_words: np.ndarray

    @classmethod
    def of(cls, model: keras.Model, epoch: int, origin: str) -> TrainingState:
        """The state of a model that has just ended an epoch.

        Args:
            model: built; compiled, or trained in a way of its own.
            epoch: epochs trained so far.
            origin: id of the trial in which the training began.
        """
        numpy_state: Any = np.random.get_state()
        name, words, *rest = numpy_state
        return cls(
            epoch=epoch,
            origin=origin,
            build_config=model.get_build_config(),
            variables={
                owner: [variable.numpy() for variable in variables]
                for owner, variables in _variables(model).items()
            },
            python_random=random.getstate(),
            numpy_random=(name, *rest),
            numpy_words=words,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state; a reader sees an older one or this, never half.

        Raises:
            OSError: the folder cannot be written.
        """
        meta = {
            "epoch": self.epoch,
            "origin": self.origin,
            "build_config": self.build_config,
            "python_random": self.python_random,
            "numpy_random": self.numpy_random,
            "variables": {name: len(own) for name, own in self.variables.items()},
        }
        arrays: dict[str, Any] = {
            f"{owner}/{number}": value
            for owner, values in self.variables.items()
            for number, value in enumerate(values)
        }
        arrays[_META] = np.array(files.dumps(meta))
        arrays[_WORDS] = self.numpy_words
        with files.replacing(path) as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | IO[bytes]) -> TrainingState:
        """Reads a state from a path or an open file.

        Raises:
            OSError: there is none.
            ValueError: the file is no state.
        """
        with np.load(path, allow_pickle=False) as archive:
            meta = files.loads(str(archive[_META]))
            version, words, gauss = meta["python_random"]
            return cls(
                epoch=meta["epoch"],
                origin=meta["origin"],
                build_config=meta["build_config"],
                variables={
                    owner: [archive[f"{owner}/{number}"] for number in range(count)]
                    for owner, count in meta["variables"].items()
                },
                python_random=(version, tuple(words), gauss),
                numpy_random=tuple(meta["numpy_random"]),
                numpy_words=archive[_WORDS],
            )

    def restore(self, model: keras.Model) -> None:
        """Gives the state to a new model of the same kind.

        Args:
            model: built or not, compiled as the one that the state is of.

        Raises:
            ValueError: the model has other variables.
        """
        if not model.built:
            model.build_from_config(self.build_config)
        optimizer = _optimizer(model)
        kept = len(self.variables["optimizer"])
        # Not that of a training which never used it.
        if optimizer is not None and kept > len(optimizer.variables):
            optimizer.build(model.trainable_variables)
        pairs: list[tuple[Any, np.ndarray]] = []
        for owner, variables in _variables(model).items():
            values = self.variables[owner]
            shapes = [tuple(variable.shape) for variable in variables]
            if shapes != [value.shape for value in values]:
                raise ValueError(
                    f"`model` must have the {owner} variables of the training it "
                    f"goes on with, of the shapes {[v.shape for v in values]}, got "
                    f"{shapes}. Does `build` depend on anything but its "
                    "hyperparameters?"
                )
            pairs += zip(variables, values, strict=True)
        for variable, value in pairs:
            if value.dtype.kind == "V":  # bfloat16 and its like, unknown to numpy
                value = value.view(variable.numpy().dtype)
            variable.assign(value)

    def restore_random_numbers(self) -> None:
        """Sets Python's and numpy's random numbers to where they were."""
        random.setstate(self.python_random)
        name, *rest = self.numpy_random
        np.random.set_state((name, self.numpy_words, *rest))


class KeepState(keras.callbacks.Callback):
    """Keeps the state of the last epoch of a training.

    Args:
        path: where.
        epochs: those that the training is to reach; None keeps the state only where
            something ends the training before.
        origin: id of the trial in which it began.
    """

    def __init__(self, path: pathlib.Path, epochs: int | None, origin: str) -> None:
        super().__init__()
        self._path = path
        self._epochs = epochs
        self._origin = origin
        # `HyperModel.fit` may train others; None: it is not known which is meant.
        self.trained_model: keras.Model | None = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keeps it here: `fit` and callbacks exchange weights before `on_train_end`."""
        last = self._epochs is not None and epoch + 1 >= self._epochs
        other = self.trained_model not in (None, self.model)
        if other or not (last or self.model.stop_training):
            return
        try:
            state = TrainingState.of(self.model, epoch + 1, self._origin)
            state.save(self._path)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            warn(f"the training could not go on from here: {reason}")


def _variables(model: keras.Model) -> dict[str, list[Any]]:
    """All variables that a training changes; those of metrics begin anew."""
    optimizer = _optimizer(model)
    return {
        "model": list(model.variables),
        "optimizer": [] if optimizer is None else list(optimizer.variables),
    }


def _optimizer(model: keras.Model) -> Any:
    """That of the model, or None where it was not compiled."""
    return getattr(model, "optimizer", None)
