"""Statistics of the units of one layer over a probe batch.

Everything here takes outputs of shape [rows, ..., units], or [rows] of a single unit;
positions of images and sequences count as rows. `nan` means that the statistic says
nothing here. Nothing warns, whatever the numbers.
"""

from __future__ import annotations

import math

import numpy as np

# A unit of a saturating activation is constant within this range, of another one
# within this share of its largest magnitude.
SATURATED_RANGE = 1e-3
CONSTANT_SHARE = 1e-6
# An output is saturated where the slope of its activation is below this share of the
# largest slope, a unit where this share of its outputs are.
SATURATED_SLOPE = 0.01
SATURATED_ROWS = 0.95
# Activations that pass nothing, or a small share, below zero. Swish-like ones are
# left out: they have a minimum, and are not dead to the left of it.
_RECTIFIERS = {"relu", "relu6", "leaky_relu", "prelu"}
# Numbers that are taken to double precision at a time: segmentations are large.
_CHUNK = 2**20


def constant_ratio(output: np.ndarray, *, bounded: bool) -> float:
    """Share of the units whose output is the same for every row and position.

    Args:
        output: outputs of one layer, [rows, ..., units].
        bounded: the activation saturates (sigmoid, tanh): nearly constant counts.

    Example:
        >>> constant_ratio(np.array([[0.0, 1.0], [0.0, 2.0]]), bounded=False)
        0.5
    """
    units = _by_unit(output)
    if len(units) < 2:
        return math.nan
    low = units.min(axis=0).astype(np.float64)
    high = units.max(axis=0).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        tolerance = (
            SATURATED_RANGE
            if bounded
            else CONSTANT_SHARE * (1 + np.maximum(np.abs(low), np.abs(high)))
        )
        return float(np.mean(high - low <= tolerance))


def dead_ratio(output: np.ndarray, activation: str) -> float:
    """Share of the units of a rectifier that are at or below zero everywhere.

    Example:
        >>> dead_ratio(np.array([[0.0, 1.0], [0.0, 0.0]]), "relu")
        0.5
    """
    if activation not in _RECTIFIERS or not output.size:
        return math.nan
    return float(np.mean(_by_unit(output).max(axis=0) <= 0))


def saturated_ratio(output: np.ndarray, activation: str) -> float:
    """Share of the units of a saturating activation that are saturated.

    Example:
        >>> saturated_ratio(np.array([[0.999, 0.5], [0.001, 0.4]]), "sigmoid")
        0.5
    """
    if not output.size:
        return math.nan
    units = _by_unit(output)
    # Outside of the range of the activation, where nothing should be, is saturated.
    with np.errstate(invalid="ignore", over="ignore"):
        if activation == "sigmoid":
            slope = 4 * units * (1 - units)
        elif activation == "tanh":
            slope = 1 - units**2
        elif activation == "softsign":
            slope = (1 - np.abs(units)) ** 2
        elif activation in ("hard_sigmoid", "hard_tanh"):
            lowest = 0.0 if activation == "hard_sigmoid" else -1.0
            slope = ((units > lowest) & (units < 1)).astype(np.float32)
        else:
            return math.nan
        saturated = np.mean(slope < SATURATED_SLOPE, axis=0)
    return float(np.mean(saturated >= SATURATED_ROWS))


def abs_max(output: np.ndarray) -> float:
    """Largest magnitude of what is a number; `nan` when nothing is."""
    if not output.size:
        return math.nan
    numbers = np.asarray(output, np.float64) if output.dtype.kind in "biu" else output
    low, high = np.fmin.reduce(numbers, axis=None), np.fmax.reduce(numbers, axis=None)
    return max(abs(float(low)), abs(float(high)))


def mean_std(output: np.ndarray) -> float:
    """Mean over the units of their standard deviation over rows and positions."""
    return float(np.mean(_stds(output))) if output.size else math.nan


def largest_std(output: np.ndarray) -> float:
    """The largest standard deviation over rows and positions of any unit."""
    return float(np.max(_stds(output))) if output.size else math.nan


def std_ratio(values: np.ndarray) -> float:
    """Largest per smallest standard deviation of the units that vary at all."""
    spread = _stds(values) if values.size else np.zeros(0)
    spread = spread[spread > 0]
    return float(spread.max() / spread.min()) if len(spread) else math.nan


def _stds(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each unit; sums do not overflow in double precision."""
    units = _by_unit(values)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.mean(units, axis=0, dtype=np.float64)
        rows = max(1, _CHUNK // units.shape[1])
        squares = np.zeros(units.shape[1])
        for start in range(0, len(units), rows):
            squares += np.sum((units[start : start + rows] - mean) ** 2, axis=0)
        return np.asarray(np.sqrt(squares / len(units)))


def _by_unit(output: np.ndarray) -> np.ndarray:
    """Rows and positions by units."""
    units = output.shape[-1] if output.ndim > 1 else 1
    values = np.asarray(output, np.float32)
    return values.reshape(-1, units) if values.size else np.zeros((0, max(units, 1)))
