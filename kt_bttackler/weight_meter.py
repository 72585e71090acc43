"""How far training steps and epochs move the kernels of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from kt_bttackler.gradient_buffers import as_array, newest_value
from kt_bttackler.gradient_meter import Columns, rounded

# A kernel that moved by no more than this has not changed.
_UNCHANGED = 1e-8
_UNCHANGED_SHARE = 1e-7
# Units whose weights differ by no more than this are the same unit.
_SAME_UNITS = 1e-8
# Numbers that are taken to double precision at a time: kernels may be large.
_CHUNK = 2**18

Kernels = list[np.ndarray | None]


class WeightMeter:
    """Compares kernels before and after single steps and whole epochs.

    Weights are read as views: TensorFlow copies a variable that is about to change
    while somebody looks at it, so one step in a sample pays for one copy.

    Args:
        model: the model.
        kernels: for each trainable variable, whether it is a kernel.
    """

    def __init__(self, model: keras.Model, kernels: tuple[bool, ...]) -> None:
        self._model = model
        self._kernels = kernels
        self._steps: list[int] = []
        self._before: Kernels | None = None
        self._next_step = 0
        self._epoch_began: Kernels | None = None
        self._ratios: list[list[float]] = []

    def begin_epoch(self, steps: int | None) -> None:
        """Starts an epoch of `steps` steps, None when unknown."""
        last = 0 if steps is None else steps - 1
        self._steps = sorted({0, last // 2, last})
        self._ratios = []
        self._epoch_began = self._read()
        self._before = self._epoch_began
        self._next_step = 0

    def end_step(self, step: int) -> None:
        """Compares where it is the turn of `step`, from 0.

        Several steps per execution are not told apart, and not compared.
        """
        single = step == self._next_step
        if single and step in self._steps and self._before is not None:
            after = self._read()
            pairs = zip(self._before, after, strict=True)
            self._ratios.append([_update_ratio(before, now) for before, now in pairs])
        self._next_step = step + 1
        self._before = self._read() if self._next_step in self._steps else None

    def end_epoch(self) -> Columns:
        """Columns of the epoch; empty where nothing saw it begin."""
        if self._epoch_began is None:
            return {}
        pairs = zip(self._epoch_began, self._read(), strict=True)
        columns = {
            "update/moved": rounded(_moved(before, now) for before, now in pairs)
        }
        if self._ratios:
            columns["update/ratio"] = rounded(np.mean(self._ratios, axis=0))
        self._epoch_began = self._before = None
        return columns

    def _read(self) -> Kernels:
        variables = zip(self._model.trainable_variables, self._kernels, strict=True)
        return [
            current_value(variable) if kernel else None
            for variable, kernel in variables
        ]


def initial_columns(model: keras.Model, kernels: tuple[bool, ...]) -> Columns:
    """Whether the units of each kernel begin alike, and whether all is finite."""
    symmetric, finite = [], []
    for variable, kernel in zip(model.trainable_variables, kernels, strict=True):
        values = current_value(variable)
        finite.append(float(np.isfinite(values).all()))
        symmetric.append(_symmetric(values) if kernel else math.nan)
    return {
        "weight/initial_symmetric": tuple(symmetric),
        "weight/initial_finite": tuple(finite),
    }


def current_value(variable: keras.Variable) -> np.ndarray:
    """The value of a variable as it is now, also after the variable has changed."""
    # Unlike `numpy()` this copies nothing.
    return as_array(newest_value(variable.value))


def gradient_norms(gradients: list[np.ndarray | None]) -> tuple[float, ...]:
    """Norm of the gradient of each variable, [V]; `nan` where there is none."""
    return rounded(math.nan if each is None else _norm(each) for each in gradients)


def _update_ratio(before: np.ndarray | None, after: np.ndarray | None) -> float:
    if before is None or after is None:
        return math.nan
    return _root_of_squares(_changes(before, after)) / (_norm(before) + 1e-12)


def _moved(before: np.ndarray | None, after: np.ndarray | None) -> float:
    """Largest change, in units of the change that is none."""
    if before is None or after is None or not after.size:
        return math.nan
    bound = _UNCHANGED + _UNCHANGED_SHARE * _largest(_chunks(after))
    return _largest(_changes(before, after)) / bound


def _symmetric(kernel: np.ndarray) -> float:
    """1 where all units, along the last axis, have the same weights, else 0."""
    if kernel.shape[-1] < 2:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.ptp(kernel, axis=-1).max(initial=0.0) < _SAME_UNITS)


def _norm(values: np.ndarray) -> float:
    return _root_of_squares(_chunks(values))


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """All numbers in double precision, a piece at a time."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK].astype(np.float64)


def _changes(before: np.ndarray, after: np.ndarray) -> Iterator[np.ndarray]:
    with np.errstate(invalid="ignore", over="ignore"):
        for old, new in zip(_chunks(before), _chunks(after), strict=True):
            yield new - old


def _root_of_squares(parts: Iterable[np.ndarray]) -> float:
    with np.errstate(over="ignore"):
        return math.sqrt(sum(float(part @ part) for part in parts))


def _largest(parts: Iterable[np.ndarray]) -> float:
    return float(np.max([np.max(np.abs(part)) for part in parts]))
