"""What a model's outputs on the probe have to do with the labels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kt_bttackler import blueprint, labels, unit_stats
from kt_bttackler.labels import LabelSample, Loss
from kt_bttackler.probe import Head

# A class with fewer probe rows is not missed.
_FEWEST_ROWS = 5
# How far the outputs of a head reach.
_RANGES = {
    "softmax": 1.0,
    "sigmoid": 1.0,
    "hard_sigmoid": 1.0,
    "tanh": 2.0,
    "hard_tanh": 2.0,
    "softsign": 2.0,
}

Scalars = dict[str, float]


class OutputMeter:
    """Compares the outputs of one model with the labels of its training.

    Labels are understood for models with one output; the spread of outputs is
    measured for all.

    Args:
        model: the model, compiled.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._labels = LabelSample()
        self._weighted = False

    def add(self, targets: Any, sample_weight: Any = None) -> None:
        """Adds the labels of a batch, [rows, ...]."""
        self._weighted = self._weighted or sample_weight is not None
        only = _only(targets)
        if only is not None:
            self._labels.add(only)

    def forget(self) -> None:
        """Starts a new sample of labels."""
        self._labels = LabelSample()

    @functools.cached_property
    def _loss(self) -> Loss:
        return blueprint.only_loss(self._model)

    def facts(self, heads: Sequence[Head]) -> tuple[dict[str, Any], ...]:
        """What is known of each output of the model.

        Returns:
            Per output: "activation", "units", "loss" (snake-case name, or None),
            "from_logits", and of the labels seen so far "target_min", "target_max",
            "target_std", "target_integers".
        """
        loss = self._loss if len(heads) == 1 else Loss(None)
        values = self._labels.values() if len(heads) == 1 else np.zeros((0, 1))
        known = len(values) > 0
        targets = {
            "target_min": float(values.min()) if known else math.nan,
            "target_max": float(values.max()) if known else math.nan,
            "target_std": self._label_std() if known else math.nan,
            "target_integers": bool(known and np.all(values == np.round(values))),
        }
        return tuple(
            {
                "activation": head.activation,
                "units": head.units,
                "loss": loss.name,
                "from_logits": loss.from_logits,
                **targets,
            }
            for head in heads
        )

    def trivial(self) -> Scalars:
        """Loss of the best constant prediction, and its standard error."""
        loss, error = math.nan, math.nan
        if not (self._weighted or self._masked() or blueprint.adds_losses(self._model)):
            loss, error = self._labels.trivial_loss(self._loss)
        return {"label/trivial_loss": loss, "label/trivial_error": error}

    def stds(self, outputs: Sequence[np.ndarray]) -> list[float]:
        """The largest standard deviation over the rows in each output.

        Args:
            outputs: of the model, [rows, ..., units] each; of logits, what counts
                are the probabilities.
        """
        return [unit_stats.largest_std(self._probabilities(each)) for each in outputs]

    def spread(self, stds: Sequence[float], heads: Sequence[Head]) -> float:
        """The largest of `stds` on the scale of its output.

        That is the range of the head (probabilities: 1), or the standard deviation
        of the labels seen so far. Outputs whose scale is unknown are left out.
        """
        found = [s / self._scale(head) for s, head in zip(stds, heads, strict=True)]
        return max((s for s in found if not math.isnan(s)), default=math.nan)

    def classes(self, outputs: Sequence[np.ndarray], targets: Any) -> Scalars:
        """How a classifier divides the rows among the classes.

        Args:
            outputs: of the model, [rows, ..., units] each.
            targets: labels of the same rows, or None.
        """
        seen = labels.class_labels(self._labels.values(), self._loss)
        if len(outputs) != 1 or seen is None or not np.isfinite(outputs[0]).all():
            return {}
        chosen = self._choices(outputs[0])
        wanted = labels.class_labels(_only(targets), self._loss)
        if wanted is None or len(wanted) != len(chosen):
            wanted = None
        scalars = {
            "output/top_share": labels.top_share(chosen),
            "output/label_top_share": labels.top_share(
                seen if wanted is None else wanted
            ),
        }
        if wanted is not None:
            scalars["output/neglected_share"] = _neglected_share(wanted, chosen)
        return scalars

    def _masked(self) -> bool:
        """Whether some positions may not count in the loss.

        A row of several numbers may be one of positions, unless these are classes.
        """
        values = self._labels.values()
        classes = self._loss.name == "categorical_crossentropy"
        several = values.ndim > 2 or (values.shape[-1] > 1 and not classes)
        return several and blueprint.masks(self._model)

    def _probabilities(self, output: np.ndarray) -> np.ndarray:
        if not self._loss.from_logits or not output.size:
            return output
        with np.errstate(over="ignore", invalid="ignore"):
            if (self._loss.name or "").startswith("binary"):
                return np.asarray(1 / (1 + np.exp(-output)))
            exponentials = output - output.max(axis=-1, keepdims=True)
            np.exp(exponentials, out=exponentials)
            exponentials /= exponentials.sum(axis=-1, keepdims=True)
            return np.asarray(exponentials)

    def _choices(self, output: np.ndarray) -> np.ndarray:
        units = output.shape[-1] if output.ndim > 1 else 1
        if units > 1:
            return np.asarray(output.reshape(-1, units).argmax(axis=-1))
        middle = 0.0 if self._loss.from_logits else 0.5
        return np.asarray(output.reshape(-1) > middle, np.int64)

    def _scale(self, head: Head) -> float:
        if self._loss.from_logits:
            return 1.0
        scale = _RANGES.get(head.activation or "")
        if scale is None and (self._loss.name or "").endswith("crossentropy"):
            return 1.0
        return self._label_std() if scale is None else scale

    def _label_std(self) -> float:
        values = self._labels.values()
        return (unit_stats.largest_std(values) if len(values) > 1 else 0) or math.nan


def _only(targets: Any) -> Any:
    """The labels of a model with one output, None of one with several or none."""
    leaves = keras.tree.flatten(targets)
    return leaves[0] if len(leaves) == 1 else None


def _neglected_share(wanted: np.ndarray, chosen: np.ndarray) -> float:
    """Share of the commonest class of which no row was recognised."""
    classes, counts = np.unique(wanted, return_counts=True)
    recognised = np.isin(classes, wanted[wanted == chosen])
    missed = counts[~recognised & (counts >= _FEWEST_ROWS)]
    return float(missed.max(initial=0) / len(wanted))
