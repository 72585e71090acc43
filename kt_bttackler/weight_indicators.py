"""Indicators of the steps that weights take: UPDATE_RATIO and UNCHANGED_WEIGHTS."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from kt_bttackler.course import (
    PROGRESS_NEEDS,
    has_learned,
    losses,
    rise_ahead,
    trivial_loss,
)
from kt_bttackler.indicators import SEVERITY_RANGE, QualityIndicator
from kt_bttackler.outlook import OUTLOOK_NEEDS, expected_loss, hopeless
from kt_bttackler.trace import Trace

# Weights that moved by at most one unit of `update/moved` have not changed.
_UNCHANGED = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateRatio(QualityIndicator):
    """UPDATE_RATIO: a training step changes the weights too little, or too much.

    Measures norm(step) / norm(kernel), the median over the kernels of its mean over up
    to three steps of the epoch. Too small below `smallest`, or where all steps of the
    plan together would move the weights by less than `reach`, in two epochs in a row;
    too large above the threshold, in three. From 5 % of the plan (at least an epoch)
    on, not while the learning rate warms up. Small steps are no finding once the
    learning rate has been lowered to less than half: then they are meant.

    A warning; a ground for stopping while the training is stalled and has learned
    nothing, or is hopeless (see `outlook`); small steps also where the training loss is
    on the way to end above `unfinished` of that of a constant: then the plan ends
    before the training has begun. Normalised layers live well with large ratios, a
    warning of them alone means little. Sources: TheDeepChecker (1e-4 and 0.1; its lower
    bound hits healthy trainings), DeepDiagnosis, SageMaker Debugger.

    Attributes:
        threshold: share of the weights, 0.1.
        smallest: share of the weights, 5e-5.
        reach: share of the weights over the whole plan, 0.05.
        unfinished: share of the loss of a constant, 0.75.
        patience: epochs in a row above the threshold; one less below `smallest`.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> header = Header(
        ...     max_epochs=20, variables=("a",), variable_layers=("a",),
        ...     variable_sizes=(4,), kernels=(True,), layers=("a",),
        ... )
        >>> trace = Trace(header, [
        ...     Record(n, 1.0 * n, {"loss": 2.3}, {"update/ratio": (1e-6,)})
        ...     for n in (1, 2, 3, 4)
        ... ])
        >>> indicator = UpdateRatio()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, False, True, True]
        >>> print(indicator(trace))
        UPDATE_RATIO at epoch 4: step per weight, too small 1e-06 < 5e-05
    """

    id = "UPDATE_RATIO"
    needs = PROGRESS_NEEDS | OUTLOOK_NEEDS | {"update/ratio"}
    quantity = "step per weight"
    advice = (
        "too small: raise the learning rate; too large: lower it, clip gradients "
        "(`clipnorm=1.0`) or use larger batches"
    )
    stage = "settled"
    stopping = "stalled"
    threshold: float = 0.1
    smallest: float = 5e-5
    reach: float = 0.05
    unfinished: float = 0.75
    patience: int = 3

    def measure(self, trace: Trace) -> float:
        """Median ratio; `nan` where it is small because the rate was lowered."""
        row = _last_row(trace, "update/ratio", self.exclude)
        known = row[~np.isnan(row)]
        if not len(known):
            return math.nan
        ratio = float(np.median(known))
        small = ratio < self._smallest(trace)
        return math.nan if small and _rate_lowered(trace) else ratio

    def limit(self, trace: Trace) -> float:
        """The bound on the side of the ratio."""
        smallest = self._smallest(trace)
        return smallest if self.measure(trace) < smallest else self.threshold

    def explain(self, trace: Trace, value: float) -> str:
        """Says on which side the ratio is."""
        small = value < self._smallest(trace)
        return f"{self.quantity}, too {'small' if small else 'large'}"

    def severity(self, trace: Trace) -> float:
        """Base-10 logarithm of the ratio per bound, of the nearer one."""
        ratio, smallest = self.measure(trace), self._smallest(trace)
        if ratio < smallest:
            excess = math.log10(smallest / ratio) if ratio > 0 else math.inf
            return min(SEVERITY_RANGE, excess)
        return super().severity(trace)

    def stops(self, trace: Trace) -> bool:
        """Whether nothing was learned, or will be."""
        if hopeless(trace) or (super().stops(trace) and not has_learned(trace)):
            return True
        small = self.measure(trace) < self._smallest(trace)
        return small and self._ends_unfinished(trace)

    def _ends_unfinished(self, trace: Trace) -> bool:
        planned, values = trace.max_epochs, losses(trace)[1:]
        if planned is None or rise_ahead(trace) or trace.header.initial_epoch > 0:
            return False
        block = max(1, planned // 20)
        if not np.isfinite(values[-3 * block :]).all():
            return False
        left = planned - trace.epoch
        # What is unknown compares as false.
        return expected_loss(values, left, block) > self.unfinished * trivial_loss(
            trace
        )

    def _smallest(self, trace: Trace) -> float:
        """The lower bound: higher where there are but a few steps to take."""
        steps = trace.scalar("steps")
        planned = trace.max_epochs
        if planned is None or not len(steps) or not steps[-1] > 0:
            return self.smallest
        # Never near the upper bound, however few there are.
        needed = min(self.reach / (planned * float(steps[-1])), self.threshold / 10)
        return max(self.smallest, needed)

    def _beyond(self, value: float, limit: float) -> bool:
        # Above the threshold only where that is the limit: else the ratio is small.
        return value > limit if limit == self.threshold else value < limit

    def _patience(self, trace: Trace) -> int:
        small = self.measure(trace) < self._smallest(trace)
        return self.patience - small


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnchangedWeights(QualityIndicator):
    """UNCHANGED_WEIGHTS: trainable kernels do not change.

    Measures the share of kernels of which no element moved by more than 1e-8 plus 1e-7
    of its largest, in every epoch of the last `steps` training steps; in two epochs in
    a row. Not where the learning rate was zero in these epochs, or has been lowered to
    less than half. Frozen layers are no trainable kernels.

    A warning: a single layer is often just disconnected from the loss. A ground for
    stopping when no kernel changes while the training is stalled and has learned
    nothing. Sources: SageMaker Debugger (UnchangedTensor), DeepDiagnosis.

    Attributes:
        threshold: share of the kernels, 0.
        steps: training steps, 20.
        patience: epochs in a row.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> header = Header(
        ...     max_epochs=20, variables=("a", "b"), variable_layers=("a", "b"),
        ...     variable_sizes=(4, 4), kernels=(True, True), layers=("a", "b"),
        ... )
        >>> trace = Trace(header, [
        ...     Record(
        ...         n, 1.0 * n, {"loss": 2.3, "steps": 15.0}, {"update/moved": (0, 9e3)}
        ...     )
        ...     for n in (1, 2, 3)
        ... ])
        >>> indicator = UnchangedWeights()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, False, True]
        >>> print(indicator(trace))  # doctest: +NORMALIZE_WHITESPACE
        UNCHANGED_WEIGHTS at epoch 3: share of kernels that stay 0.5 > 0,
        layer a (warning)
    """

    id = "UNCHANGED_WEIGHTS"
    needs = PROGRESS_NEEDS | {"steps", "update/moved"}
    quantity = "share of kernels that stay"
    advice = (
        "check that the layer is connected to the loss, that a gradient reaches it "
        "(dead or saturated units, a constant output) and that the learning rate is "
        "not too small"
    )
    stopping = "stalled"
    threshold: float = 0.0
    steps: int = 20
    patience: int = 2

    def measure(self, trace: Trace) -> float:
        """Share of kernels; `nan` before there were enough steps."""
        stay = self._stay(trace)
        known = stay[~np.isnan(stay)]
        return float(np.mean(known)) if len(known) else math.nan

    def layer(self, trace: Trace) -> str | None:
        """The owner of the first kernel that does not change."""
        owners = trace.header.variable_layers
        found = np.flatnonzero(self._stay(trace) == 1)
        return owners[int(found[0])] if len(found) else None

    def stops(self, trace: Trace) -> bool:
        """Whether nothing changes in a stalled training that has learned nothing."""
        everything = self.measure(trace) == 1
        return everything and super().stops(trace) and not has_learned(trace)

    def _stay(self, trace: Trace) -> np.ndarray:
        """For each variable whether it stayed, [V]; `nan` where that is unknown."""
        steps = trace.scalar("steps")
        counted = np.cumsum(steps[::-1])
        enough = np.flatnonzero(counted >= self.steps)
        table = trace.table("update/moved")
        if not len(enough) or not table.shape[1] or _rate_lowered(trace):
            return np.zeros(0)
        epochs = int(enough[0]) + 1
        if np.any(trace.scalar("learning_rate")[-epochs:] <= 0):
            return np.zeros(0)
        moved = np.max(table[-epochs:], axis=0)  # `nan` where one epoch is unknown
        owners = trace.header.variable_layers
        excluded = np.array([owner in self.exclude for owner in owners], bool)
        unknown = np.isnan(moved) | excluded
        return np.where(unknown, np.nan, (moved <= _UNCHANGED).astype(float))


def _last_row(trace: Trace, name: str, exclude: tuple[str, ...]) -> np.ndarray:
    """The column of the last epoch, [V], `nan` at excluded layers."""
    table = trace.table(name)
    if not len(table):
        return np.zeros(0)
    owners = trace.header.variable_layers
    excluded = np.array([owner in exclude for owner in owners], bool)
    return np.where(excluded, np.nan, table[-1])


def _rate_lowered(trace: Trace) -> bool:
    """Whether the learning rate is less than half of what it was."""
    rates = trace.scalar("learning_rate")
    known = rates[~np.isnan(rates)]
    return bool(len(known)) and bool(known[-1] < 0.5 * np.max(known))
