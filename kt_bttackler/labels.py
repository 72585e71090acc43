"""Labels that were seen in training, and what the best constant prediction costs.

A model that has learned nothing predicts the same for every row; the loss of the best
such prediction is the *trivial loss*. It depends on the labels alone: the entropy of
their frequencies for cross-entropies, their spread for squared and absolute errors.
What no formula gives is found by bisection.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Labels beyond this many rows no longer change an estimate that matters.
MOST_ROWS = 4096
# Segmentations have more: of a row, and of a batch, this many numbers are kept.
MOST_NUMBERS_OF_ROW = 2**10
MOST_NUMBERS = 2**18
# Keras keeps divisors and logarithms away from zero by this much.
_TINY = 1e-7
# Halvings of the range of the labels: enough for single precision.
_BISECTIONS = 30
_ERRORS = (
    "huber",
    "log_cosh",
    "mean_absolute_percentage_error",
    "mean_squared_logarithmic_error",
)
# Labels are gathered in so many steps of so many epochs.
LABELLED_STEPS = 10
LABELLED_EPOCHS = 3


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss that a model was compiled with, for one output.

    Attributes:
        name: snake-case name of its function or class, None when unknown.
        from_logits: it takes logits.
        label_smoothing: share of each label that is spread over all classes.
        delta: error from which on the Huber loss grows linearly.
        mean: it is the mean over the rows.
    """

    name: str | None
    from_logits: bool = False
    label_smoothing: float = 0.0
    delta: float = 1.0
    mean: bool = True


class LabelledSteps:
    """Which steps of an epoch give their labels.

    Ten, evenly spread, so that also sorted data are seen from end to end, and others in
    each of three epochs; steps 1, 2, 4, 8, ... where their number is not known.

    Example:
        >>> def chosen(steps, epoch):
        ...     schedule = LabelledSteps(steps, epoch)
        ...     return [step for step in range(100) if schedule.due(step)]
        >>> chosen(100, 0)
        [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
        >>> chosen(100, 1)
        [3, 13, 23, 33, 43, 53, 63, 73, 83, 93]
        >>> chosen(3, 1), chosen(None, 0)
        ([0, 1, 2], [0, 1, 3, 7, 15, 31, 63])

    Args:
        steps: steps of the epoch, or `None` when unknown.
        epoch: number of the labelled epoch, from 0.
    """

    def __init__(self, steps: int | None, epoch: int) -> None:
        if steps is None:
            due = [2**k - 1 for k in range(63)]
        else:
            shift = epoch / LABELLED_EPOCHS
            spread = (np.arange(LABELLED_STEPS) + shift) * (steps / LABELLED_STEPS)
            due = sorted({int(step) for step in spread})
        self._due = due if epoch < LABELLED_EPOCHS else []

    def due(self, step: int) -> bool:
        """Whether `step`, from 0, gives its labels; ask in order, each step once.

        With several steps per execution only every k-th step is asked for.
        """
        is_due = bool(self._due) and step >= self._due[0]
        while self._due and step >= self._due[0]:
            self._due.pop(0)
        return is_due


class LabelSample:
    """Rows of labels of one output, gathered batch by batch.

    Example:
        >>> sample = LabelSample()
        >>> sample.add(np.array([0, 1, 0, 1]))
        >>> estimate, error = sample.trivial_loss(Loss("mean_squared_error"))
        >>> round(estimate, 3)
        0.333
    """

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._rows = 0
        self._random = np.random.default_rng(0)  # of its own: training draws elsewhere

    def add(self, labels: Any) -> None:
        """Adds rows [rows, ...]; ignores those of another shape than the first ones.

        Of large rows some positions are kept, of very large ones also some rows.
        """
        array = as_rows(labels)
        if array is None or not array.size or self._rows >= MOST_ROWS:
            return
        array = self._bounded(array)
        if not self._parts or array.shape[1:] == self._parts[0].shape[1:]:
            self._parts.append(array)
            self._rows += len(array)

    def values(self) -> np.ndarray:
        """All rows, [rows, ...]; empty when there are none."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0] if self._parts else np.zeros((0, 1))

    def trivial_loss(self, loss: Loss) -> tuple[float, float]:
        """Loss of the best constant prediction, and its standard error.

        Both are estimates: the labels are a sample. Its rows are independent, the
        positions of a row need not be. Entropies of samples are too small by
        (classes - 1) / (2 labels) on average, which is added (Miller-Madow); that may
        also be in error, as nothing is missing where all labels were seen.

        Returns:
            `nan` twice for losses whose best constant is not known here.
        """
        labels = self.values().astype(np.float64)
        parts = None
        if len(labels) > 1 and loss.mean and np.isfinite(labels).all():
            parts = _best_constant(labels, loss)
        if parts is None:
            return math.nan, math.nan
        costs, correction = parts
        of_rows = costs.reshape(len(labels), -1).mean(axis=1)
        error = float(np.std(of_rows)) / math.sqrt(len(labels))
        return float(np.mean(costs)) + correction, math.hypot(error, correction)

    def _bounded(self, array: np.ndarray) -> np.ndarray:
        """What is kept of a batch [rows, ..., units]."""
        if array.ndim > 2:
            # Drawn: evenly spaced ones would all lie in one column of an image.
            places = array.reshape(len(array), -1, array.shape[-1])
            kept = max(1, MOST_NUMBERS_OF_ROW // array.shape[-1])
            if kept < places.shape[1]:
                chosen = self._random.choice(places.shape[1], kept, replace=False)
                array = places[:, np.sort(chosen)]
        rows = max(1, MOST_NUMBERS // array[0].size)
        return np.array(array[:: math.ceil(len(array) / rows)])


def as_rows(labels: Any) -> np.ndarray | None:
    """Labels as an array of numbers [rows, ..., units]; None if they are no numbers."""
    array = np.asarray(labels)
    if array.dtype.kind not in "biuf" or not array.ndim:
        return None
    array = array.astype(np.uint8) if array.dtype.kind == "b" else array
    return array[:, None] if array.ndim == 1 else array


def class_labels(labels: Any, loss: Loss) -> np.ndarray | None:
    """The class of each row and position, [rows]; None when there is none to tell."""
    rows = as_rows(labels)
    if rows is None or not rows.size or not np.isfinite(rows).all():
        return None
    if loss.name == "categorical_crossentropy":
        return np.asarray(rows.reshape(-1, rows.shape[-1]).argmax(axis=-1))
    binary = loss.name == "binary_crossentropy" and rows.shape[-1] == 1
    if rows.min() < 0 or (binary and rows.max() > 1):
        return None
    if binary or loss.name == "sparse_categorical_crossentropy":
        return np.asarray(rows.reshape(-1).round().astype(np.int64))
    return None


def top_share(classes: np.ndarray) -> float:
    """Share of the commonest class.

    Args:
        classes: one whole number per row; of any size, so they are not bins.
    """
    counts = np.unique(classes, return_counts=True)[1]
    return float(counts.max() / len(classes)) if len(classes) else math.nan


def _best_constant(labels: np.ndarray, loss: Loss) -> tuple[np.ndarray, float] | None:
    """Cost of each label under the best constant, and what their mean falls short by.

    Args:
        labels: finite numbers, [rows, ..., units], at least two.
        loss: what a prediction costs.

    Returns:
        Costs in the order of rows and positions; None where nothing is known.
    """
    columns = labels.reshape(-1, labels.shape[-1])
    if loss.name == "mean_squared_error":
        costs = ((columns - columns.mean(axis=0)) ** 2).mean(axis=-1)
        return costs, float(np.mean(costs)) / (len(costs) - 1)
    if loss.name == "mean_absolute_error":
        return np.abs(columns - np.median(columns, axis=0)).mean(axis=-1), 0.0
    if loss.name in _ERRORS:
        return _costs_of_errors(columns, loss), 0.0
    if loss.name in ("hinge", "squared_hinge") and np.isin(labels, (-1, 0, 1)).all():
        signs = np.where(columns > 0, 1.0, -1.0)
        best = signs.mean(axis=0)
        if loss.name == "hinge":
            return np.maximum(1 - signs * np.sign(best), 0).mean(axis=-1), 0.0
        return ((1 - signs * best) ** 2).mean(axis=-1), 0.0
    if loss.name == "sparse_categorical_crossentropy":
        # Not as columns: a vocabulary is large.
        _, of_label, counts = np.unique(
            labels.ravel(), return_inverse=True, return_counts=True
        )
        surprise = np.log(labels.size / counts)
        return surprise[of_label.ravel()], (len(counts) - 1) / (2 * labels.size)
    shares = labels.min() >= 0 and labels.max() <= 1
    if loss.name == "categorical_crossentropy" and shares and labels.any():
        return _entropy(_smoothed(columns, loss.label_smoothing))
    if loss.name == "binary_crossentropy" and shares:
        pairs = (np.stack([column, 1 - column], axis=-1) for column in columns.T)
        parts = [_entropy(_smoothed(pair, loss.label_smoothing)) for pair in pairs]
        costs = np.sum([costs for costs, _ in parts], axis=0) / len(parts)
        return costs, sum(correction for _, correction in parts) / len(parts)
    return None


def _costs_of_errors(columns: np.ndarray, loss: Loss) -> np.ndarray:
    """Costs of the best constant of each column under a convex loss of the error."""
    if loss.name == "mean_squared_logarithmic_error":
        logarithms = np.log1p(np.maximum(columns, _TINY))
        return np.asarray(((logarithms - logarithms.mean(axis=0)) ** 2).mean(axis=-1))
    if loss.name == "mean_absolute_percentage_error":
        sizes = np.maximum(np.abs(columns), _TINY)
        best = _bisected(columns, lambda error: np.sign(error) / sizes)
        return np.asarray((100 * np.abs(columns - best) / sizes).mean(axis=-1))
    if loss.name == "huber":
        best = _bisected(columns, lambda error: np.clip(error, -loss.delta, loss.delta))
        error = np.abs(columns - best)
        quadratic = np.minimum(error, loss.delta)
        costs = quadratic * (error - quadratic / 2)
    else:
        error = columns - _bisected(columns, np.tanh)
        costs = np.logaddexp(error, -error) - math.log(2)
    return np.asarray(costs.mean(axis=-1))


def _bisected(
    columns: np.ndarray, slope: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The constant of each column at which the mean slope of the cost is zero.

    Args:
        columns: labels, [rows, units].
        slope: derivative of the cost of errors (constant minus label), rising.
    """
    low, high = columns.min(axis=0), columns.max(axis=0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        too_high = slope(middle - columns).mean(axis=0) > 0
        low, high = np.where(too_high, low, middle), np.where(too_high, middle, high)
    return np.asarray((low + high) / 2)


def _smoothed(targets: np.ndarray, smoothing: float) -> np.ndarray:
    return np.asarray(targets * (1 - smoothing) + smoothing / targets.shape[-1])


def _entropy(targets: np.ndarray) -> tuple[np.ndarray, float]:
    """Cross-entropy of each row [rows, classes] with the mean of all rows."""
    share = targets.mean(axis=0)
    seen = share > 0
    targets, share = targets[:, seen], share[seen]
    correction = float(np.sum(targets.var(axis=0) / share)) / (2 * len(targets))
    return targets @ np.log(share.sum() / share), correction
