"""Indicators of the units: DEAD_UNITS, SATURATION and NUMERIC_EDGE."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from kt_bttackler.activation_indicators import ProbeIndicator
from kt_bttackler.course import PROGRESS_NEEDS, improving, largest_known, last_known
from kt_bttackler.gradient_indicators import ExponentiallyReducedGradients
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.loss_indicators import PassiveLossChanges
from kt_bttackler.trace import Trace

# Outputs that vary by no more than this share of their scale are the same.
_NO_SPREAD = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeadUnits(ProbeIndicator):
    """DEAD_UNITS: units of ReLU-like layers pass nothing, whatever the input.

    A unit is dead when its output is at or below zero for every row and position of
    the probe (leaky: on the leaking side). Measures the largest share of dead units of
    a layer, or the mean over the layers where no single one is beyond the threshold; in
    two successive probes. Elements that are zero are no dead units: half of a healthy
    ReLU layer is zero.

    A warning. A ground for stopping while the training is stalled and a whole layer is
    dead on every path to the output, which shows in an output that is the same for all
    rows. Sources: TheDeepChecker, SageMaker Debugger (DeadRelu).

    Do not use where sparse activity is intended; name such layers in `exclude`.

    Attributes:
        threshold: share of the units of a layer, 0.9.
        overall_threshold: mean share over the layers, 0.7.
        patience: probes in a row.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> column = {"activation/dead_ratio": (0.2, 1.0)}
        >>> trace = Trace(Header(max_epochs=20, activations=("a", "b")), [
        ...     Record(n, 1.0 * n, {"loss": 2.3, "output/spread": 0.0}, column)
        ...     for n in (1, 2, 3)
        ... ])
        >>> indicator = DeadUnits()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, True, True]
        >>> print(indicator(trace.prefix(2)))
        DEAD_UNITS at epoch 2: share of dead units 1 > 0.9, layer b (warning)
        >>> print(indicator(trace))
        DEAD_UNITS at epoch 3: share of dead units 1 > 0.9, layer b
    """

    id = "DEAD_UNITS"
    needs = PROGRESS_NEEDS | {"activation/dead_ratio", "output/spread"}
    quantity = "share of dead units"
    advice = (
        "lower the learning rate, use a leaky activation, He initialisation or "
        "normalisation, and no large negative biases"
    )
    stopping = "stalled"
    threshold: float = 0.9
    overall_threshold: float = 0.7
    patience: int = 2

    def measure(self, trace: Trace) -> float:
        """Largest share of a layer, or the mean; `nan` without a probe."""
        return self._worst(trace)[0]

    def limit(self, trace: Trace) -> float:
        """The bound of a layer, or that of the mean."""
        return self._worst(trace)[1]

    def explain(self, trace: Trace, value: float) -> str:
        """Says whether the mean was measured."""
        overall = self._worst(trace)[1] == self.overall_threshold
        return f"mean {self.quantity}" if overall else self.quantity

    def layer(self, trace: Trace) -> str | None:
        """The layer with most dead units."""
        shares = _shares(trace, "activation/dead_ratio", self.exclude)
        return _largest_layer(trace, shares)

    def stops(self, trace: Trace) -> bool:
        """Whether nothing passes a stalled training."""
        shares = _shares(trace, "activation/dead_ratio", self.exclude)
        blocked = last_known(trace.scalar("output/spread")) <= _NO_SPREAD
        return bool(np.any(shares == 1)) and blocked and super().stops(trace)

    def _worst(self, trace: Trace) -> tuple[float, float]:
        shares = _shares(trace, "activation/dead_ratio", self.exclude)
        shares = shares[~np.isnan(shares)]
        if not len(shares):
            return math.nan, self.threshold
        largest, mean = float(np.max(shares)), float(np.mean(shares))
        if largest <= self.threshold and mean > self.overall_threshold:
            return mean, self.overall_threshold
        return largest, self.threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saturation(ProbeIndicator):
    """SATURATION: units of sigmoid- or tanh-like layers are stuck at their ends.

    An output is saturated where the slope of its activation is below 1 % of the largest
    slope, a unit where 95 % of its outputs are. Measures the largest share of saturated
    units of a layer, in two successive probes, after 5 % of the plan and while the loss
    does not improve. A warning, as healthy nets reach 0.6; a ground for stopping
    together with ERG or PLC while the training is stalled. Sources: SageMaker Debugger,
    DeepDiagnosis; their bounds come too late, or hit healthy nets.

    Attributes:
        threshold: share of the units of a layer, 0.9.
        patience: probes in a row.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> column = {"activation/saturated_ratio": (0.2, 1.0)}
        >>> trace = Trace(Header(max_epochs=20, activations=("a", "b")), [
        ...     Record(n, 1.0 * n, {"loss": 2.3}, column) for n in (1, 2, 3)
        ... ])
        >>> indicator = Saturation()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, True, True]
        >>> print(indicator(trace))
        SATURATION at epoch 3: share of saturated units 1 > 0.9, layer b
    """

    id = "SATURATION"
    needs = (
        PROGRESS_NEEDS
        | {"activation/saturated_ratio"}
        | ExponentiallyReducedGradients.needs
        | PassiveLossChanges.needs
    )
    quantity = "share of saturated units"
    advice = (
        "scale the inputs, use a smaller initialisation (Glorot), normalisation, or a "
        "ReLU-like activation, and lower the learning rate"
    )
    stage = "settled"
    stopping = "stalled"
    threshold: float = 0.9
    patience: int = 2

    def applies(self, trace: Trace) -> bool:
        """After 5 % of the plan, unless the loss improves."""
        return super().applies(trace) and not improving(trace)

    def measure(self, trace: Trace) -> float:
        """Largest share of a layer; `nan` without a probe."""
        return largest_known(_shares(trace, "activation/saturated_ratio", self.exclude))

    def layer(self, trace: Trace) -> str | None:
        """The layer with most saturated units."""
        shares = _shares(trace, "activation/saturated_ratio", self.exclude)
        return _largest_layer(trace, shares)

    def stops(self, trace: Trace) -> bool:
        """Whether the training is stalled, and gradients or loss say so, too."""
        others = (ExponentiallyReducedGradients(), PassiveLossChanges())
        return super().stops(trace) and any(other(trace) for other in others)

    def _held(self, trace: Trace) -> bool:
        """An earlier probe counts in whatever stage it was made."""
        return self._beyond(self.measure(trace), self.limit(trace))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumericEdge(QualityIndicator):
    """NUMERIC_EDGE: activations are so large that NaN is near. A warning.

    Measures the largest |activation| of the probe. The loss is left out: its unit is
    the user's. Sources: DeepDiagnosis, TheDeepChecker.

    Attributes:
        threshold: |activation|, 1e4.
        half_threshold: the same where a layer computes in float16, which ends at
            65,504: 6e3.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> trace = Trace(Header(max_epochs=20, activations=("a", "b")), [
        ...     Record(n, 1.0 * n, {}, {"activation/abs_max": (3.0, 10.0**n)})
        ...     for n in (3, 4, 5)
        ... ])
        >>> indicator = NumericEdge()
        >>> [prefix.epoch for prefix in trace.prefixes() if indicator(prefix)]
        [5]
        >>> print(indicator(trace))
        NUMERIC_EDGE at epoch 5: largest activation 1e+05 > 1e+04, layer b (warning)
    """

    id = "NUMERIC_EDGE"
    needs = frozenset({"activation/abs_max", "model/half_precision"})
    quantity = "largest activation"
    advice = "lower the learning rate, add normalisation, or scale inputs and targets"
    stopping = "never"
    threshold: float = 1e4
    half_threshold: float = 6e3

    def measure(self, trace: Trace) -> float:
        """Largest |activation|; `nan` without a probe."""
        return largest_known(_shares(trace, "activation/abs_max", self.exclude))

    def limit(self, trace: Trace) -> float:
        """The bound of the precision in which the layers compute."""
        return self.half_threshold if trace.header.half_precision else self.threshold

    def layer(self, trace: Trace) -> str | None:
        """The layer with the largest activation."""
        values = _shares(trace, "activation/abs_max", self.exclude)
        return _largest_layer(trace, values)


def _shares(trace: Trace, name: str, exclude: tuple[str, ...]) -> np.ndarray:
    """The column of the last epoch, [A], `nan` at excluded layers."""
    table, names = trace.table(name), trace.header.activations
    if not len(table):
        return np.zeros(0)
    excluded = np.array([each in exclude for each in names], bool)
    return np.where(excluded, np.nan, table[-1])


def _largest_layer(trace: Trace, values: np.ndarray) -> str | None:
    if np.all(np.isnan(values)):
        return None
    return trace.header.activations[int(np.nanargmax(values))]
