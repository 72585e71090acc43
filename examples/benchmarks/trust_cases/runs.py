"""The runs of the benchmark, and how each of them is judged by its outcome."""

import dataclasses
import functools
import json
import math
import statistics

import keras
import numpy as np
import scipy.optimize
import scipy.stats

from trust_cases import HARD, PAIRS, data
from trust_cases.models import Configuration, loss_function


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        case: id of the pair, or of the hard case.
        twin: "faulty" or "healthy".
        seed: of weights, dropout and order of the rows.
        configuration: all the rest.
        compared_with: id of the case whose healthy runs are the twins of this one,
            itself for a healthy twin, empty for a hard case.
        expected: ids of findings that would be right; of a faulty twin only.
    """

    case: str
    twin: str
    seed: int
    configuration: Configuration
    compared_with: str = ""
    expected: tuple = ()

    @property
    def id(self):
        """Unique name, and the folder of its trace."""
        return f"{self.case}/{self.twin}/{self.seed}"


def all_runs(seeds, wanted=lambda case: True):
    """Every run, seed by seed.

    A healthy training that several pairs share is one run, under the first of them:
    the same training again would count as evidence twice.

    Args:
        seeds: the seeds; twins have the same ones.
        wanted: whether a case, by its id, is asked for. A faulty run never comes
            without its healthy twin.

    Returns:
        A list of `Run`.
    """
    owners = {}
    for pair in PAIRS:
        owners.setdefault(_key(pair.healthy), pair.id)
    pairs = [pair for pair in PAIRS if wanted(pair.id)]
    found = []
    for seed in seeds:
        twins = {}
        for pair in pairs:
            owner = owners[_key(pair.healthy)]
            twins[owner] = Run(owner, "healthy", seed, pair.healthy, owner)
            found.append(
                Run(pair.id, "faulty", seed, pair.faulty, owner, pair.expected)
            )
        found += twins.values()
        found += [
            Run(case.id, "healthy", seed, case.healthy)
            for case in HARD
            if wanted(case.id)
        ]
    return found


def _key(configuration):
    return json.dumps(dataclasses.asdict(configuration), sort_keys=True)


def trivial_loss(configuration):
    """Validation loss of the best constant prediction.

    Args:
        configuration: whose loss and data are meant.

    Returns:
        A number; for several outputs the sum.
    """
    return _trivial_loss(json.dumps(configuration.loss), configuration.data)


@functools.cache
def _trivial_loss(loss, data_name):
    losses = loss_function(json.loads(loss))
    targets = data.load(data_name).y_val
    if not isinstance(losses, dict):
        return constant_loss(losses, targets)
    return sum(constant_loss(losses[name], targets[name]) for name in losses)


def constant_loss(loss, targets):
    """Loss of the best constant prediction of some targets.

    The constant of a cross-entropy is the mean of the (smoothed) targets; any other
    loss is minimised, column by column.

    Args:
        loss: a Keras loss, or a function of targets and predictions.
        targets: [rows, ...].

    Returns:
        A number.
    """
    name = loss.name if isinstance(loss, keras.losses.Loss) else loss.__name__
    smoothing = (
        loss.get_config().get("label_smoothing", 0.0)
        if isinstance(loss, keras.losses.Loss)
        else 0.0
    )
    if name == "sparse_categorical_crossentropy":
        counts = np.bincount(targets.ravel().astype(int))
        return float(scipy.stats.entropy(counts))
    if name == "categorical_crossentropy":
        classes = targets.shape[-1]
        smoothed = (1 - smoothing) * targets + smoothing / classes
        return float(scipy.stats.entropy(smoothed.mean(axis=0)))
    if name == "binary_crossentropy":
        shares = ((1 - smoothing) * targets + smoothing / 2).mean(axis=0)
        both = np.stack([shares, 1 - shares])
        return float(scipy.stats.entropy(both, axis=0).mean())
    columns = targets.reshape(len(targets), -1).T
    return statistics.fmean(_smallest(loss, column[:, None]) for column in columns)


def _smallest(loss, column):
    def mean_loss(constant):
        return float(np.mean(loss(column, np.full_like(column, constant))))

    low, high = float(column.min()), float(column.max())
    if low == high:
        return mean_loss(low)
    best = scipy.optimize.minimize_scalar(
        mean_loss,
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-5 * (high - low)},
    )
    return float(best.fun)


def bad_above(trivial, twin_losses, twin_trivial):
    """The final validation loss above which a run is bad.

    The mean of the trivial predictor's and the median of the healthy twin's. Where
    the twins have other losses or other targets, the healthy twin's is scaled as the
    trivial predictors are.

    Args:
        trivial: loss of the trivial predictor.
        twin_losses: final validation losses of the healthy twin over the seeds; empty
            where there is no twin.
        twin_trivial: loss of the trivial predictor of the healthy twin.

    Returns:
        A number; the trivial predictor's where there is no finite median.
    """
    if not len(twin_losses):
        return trivial
    median = statistics.median(
        loss if math.isfinite(loss) else math.inf for loss in twin_losses
    )
    if not math.isfinite(median):
        return trivial
    return (trivial + median * trivial / twin_trivial) / 2


def is_bad(loss, limit):
    """Whether a final validation loss is a bad outcome; NaN is."""
    return not loss <= limit
