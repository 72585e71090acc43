"""What is recorded, a second time: slow, plain loops written from the definitions."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import scipy.optimize
import scipy.special

NAN = math.nan
SATURATING = {
    "sigmoid": lambda y: y * (1 - y) / 0.25,
    "tanh": lambda y: 1 - y * y,
    "softsign": lambda y: (1 - abs(y)) ** 2,
    "hard_sigmoid": lambda y: float(0 < y < 1),
    "hard_tanh": lambda y: float(-1 < y < 1),
}
RANGES = {"sigmoid": 1, "softmax": 1, "hard_sigmoid": 1, "tanh": 2}


def by_unit(array):
    """One list of numbers per unit, the last axis."""
    array = np.asarray(array, np.float64)
    if array.ndim < 2:
        return [array.ravel().tolist()]
    places = itertools.product(*(range(extent) for extent in array.shape[:-1]))
    rows = [array[place] for place in places]
    return [[float(row[unit]) for row in rows] for unit in range(array.shape[-1])]


def constant_ratio(output, bounded):
    constant = []
    for unit in by_unit(output):
        low, high = float(min(unit)), float(max(unit))
        tolerance = 1e-3 if bounded else 1e-6 * (1 + max(abs(low), abs(high)))
        constant.append(high - low <= tolerance)
    return sum(constant) / len(constant)


def dead_ratio(output, activation):
    if activation not in ("relu", "relu6", "leaky_relu", "prelu"):
        return NAN
    dead = [all(value <= 0 for value in unit) for unit in by_unit(output)]
    return sum(dead) / len(dead)


def saturated_ratio(output, activation):
    if activation not in SATURATING:
        return NAN
    slope = SATURATING[activation]
    stuck = []
    for unit in by_unit(output):
        flat = [slope(value) < 0.01 for value in unit]
        stuck.append(sum(flat) >= 0.95 * len(flat))
    return sum(stuck) / len(stuck)


def abs_max(output):
    return max(abs(value) for unit in by_unit(output) for value in unit)


def stds(output):
    return [statistics.pstdev(unit) for unit in by_unit(output)]


def std_ratio(values):
    varying = [std for std in stds(values) if std > 0]
    return max(varying) / min(varying)


def probabilities(output, loss=None):
    """What logits stand for."""
    output = np.asarray(output, np.float64)
    if loss == "binary":
        return 1 / (1 + np.exp(-output))
    exponentials = np.exp(output - output.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def top_share(classes):
    classes = np.asarray(classes).ravel().tolist()
    return max(classes.count(one) for one in set(classes)) / len(classes)


def neglected_share(wanted, chosen):
    wanted, chosen = (np.asarray(each).ravel().tolist() for each in (wanted, chosen))
    shares = [0.0]
    for one in set(wanted):
        rows = [k for k, label in enumerate(wanted) if label == one]
        if len(rows) >= 5 and all(chosen[k] != one for k in rows):
            shares.append(len(rows) / len(wanted))
    return max(shares)


def cost(loss, labels, constant, smoothing=0.0):
    """Mean loss when every row and position gets the same prediction.

    Args:
        loss: name of the loss.
        labels: [rows, ..., units]; class numbers for the sparse loss.
        constant: prediction; logits of it for cross-entropies.
        smoothing: label smoothing.
    """
    labels = np.asarray(labels, np.float64)
    units = labels.reshape(-1, labels.shape[-1])
    with np.errstate(over="ignore"):
        if loss == "sparse_categorical_crossentropy":
            log_shares = constant - scipy.special.logsumexp(constant)
            return -np.mean(log_shares[labels.ravel().astype(int)])
        if loss == "categorical_crossentropy":
            units = units * (1 - smoothing) + smoothing / units.shape[-1]
            log_shares = constant - scipy.special.logsumexp(constant)
            return -np.mean(units @ log_shares)
        if loss == "binary_crossentropy":
            units = units * (1 - smoothing) + smoothing / 2
            chance = scipy.special.expit(constant)
            return -np.mean(units * np.log(chance) + (1 - units) * np.log(1 - chance))
    error = np.abs(units - constant)
    if loss == "mean_squared_error":
        return np.mean(error**2)
    if loss == "huber":
        return np.mean(np.where(error < 1, error**2 / 2, error - 0.5))
    if loss == "log_cosh":
        return np.mean(np.log(np.cosh(error)))
    if loss == "mean_squared_logarithmic_error":
        return np.mean((np.log(1 + units) - np.log(1 + np.maximum(constant, 0))) ** 2)
    signs = np.where(units > 0, 1, -1)
    if loss == "squared_hinge":
        return np.mean(np.maximum(1 - signs * constant, 0) ** 2)
    if loss == "hinge":
        return np.mean(np.maximum(1 - signs * constant, 0))
    if loss == "mean_absolute_percentage_error":
        return np.mean(100 * error / np.abs(units))
    return np.mean(error)


def trivial_loss(loss, labels, smoothing=0.0):
    """Loss of the best constant prediction, found by a search."""
    labels = np.asarray(labels, np.float64)
    labels = labels[:, None] if labels.ndim == 1 else labels
    if loss == "sparse_categorical_crossentropy":
        start = np.zeros(int(labels.max()) + 1)
    else:
        start = np.zeros(labels.shape[-1])
    corners = ("mean_absolute_error", "mean_absolute_percentage_error", "hinge")
    if loss in corners:  # not smooth: the best constant is a label, or -1, or 1
        columns = labels.reshape(-1, labels.shape[-1])
        return float(
            np.mean(
                [
                    min(cost(loss, c[:, None], one) for one in {*c, -1, 1})
                    for c in columns.T
                ]
            )
        )
    found = scipy.optimize.minimize(
        lambda constant: cost(loss, labels, constant, smoothing), start, tol=1e-10
    )
    return float(found.fun)


def norm(array):
    return math.sqrt(math.fsum(value * value for value in numbers(array)))


def numbers(array):
    return np.asarray(array, np.float64).ravel().tolist()


def update_ratio(before, after):
    steps = [b - a for a, b in zip(numbers(before), numbers(after), strict=True)]
    return norm(steps) / (norm(before) + 1e-12)


def moved(before, after):
    steps = [abs(b - a) for a, b in zip(numbers(before), numbers(after), strict=True)]
    return max(steps) / (1e-8 + 1e-7 * max(abs(value) for value in numbers(after)))


def symmetric(kernel):
    """Whether all columns are the same."""
    units = by_unit(kernel)
    gaps = [
        abs(value - first)
        for unit in units
        for first, value in zip(units[0], unit, strict=True)
    ]
    return float(len(units) > 1 and max(gaps) < 1e-8)
