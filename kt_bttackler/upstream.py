"""The indicators as the authors published them in code, with its bugs repaired.

They differ from the definitions of the paper, and have no guards: kept to compare
with. Repaired are: a finiteness flag that was always false, statistics of unused
layers that fired on a single exact zero being reported as nan, and losses that are
not finite in the protection of the best trials. Use `Diagnosis("upstream")`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from kt_bttackler.course import slope
from kt_bttackler.gradient_indicators import (
    AbnormalGradientValues,
    extreme_layer,
    layer_gradients,
)
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.trace import Trace

_GRADIENTS = "step_gradient/abs_mean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpstreamAGV(AbnormalGradientValues):
    """AGV of the public code: not finite, or the median layer beyond an absolute bound.

    Attributes:
        threshold: median over layers of mean |gradient|, 1e4.
    """

    id = "AGV"
    quantity = "median gradient of the layers"

    def measure(self, trace: Trace) -> float:
        """Median over layers of mean |gradient|; infinity when not finite."""
        if math.isinf(super().measure(trace)):
            return math.inf
        gradients = layer_gradients(trace, _GRADIENTS)
        return float(np.median(gradients)) if len(gradients) else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ratio(QualityIndicator):
    """Median ratio of consecutive layers in the order of their definition."""

    needs = frozenset({_GRADIENTS})
    quantity = "median gradient ratio"

    def _ratio(self, trace: Trace) -> float:
        gradients = layer_gradients(trace, _GRADIENTS)
        if len(gradients) < 2 or not np.all(gradients > 0):
            return math.nan
        return float(np.median(gradients[:-1] / gradients[1:]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpstreamEAG(_Ratio):
    """EAG of the public code: at any stage, not while a layer has no gradient.

    Attributes:
        threshold: ratio, 1000.
    """

    id = "EAG"
    advice = "lower the learning rate or clip gradients"
    threshold: float = 1e3

    def measure(self, trace: Trace) -> float:
        """Median ratio of consecutive layers."""
        return self._ratio(trace)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpstreamERG(_Ratio):
    """ERG of the public code: small ratio, small gradients, or any layer without.

    Attributes:
        threshold: ratio, 1e-4. The two other conditions measure 0.
        smallest_gradient: median over layers of mean |gradient|, 1e-5.
    """

    id = "ERG"
    advice = "use ReLU-like activations, or add normalisation"
    fires = "below"
    stage = "early"
    threshold: float = 1e-4
    smallest_gradient: float = 1e-5

    def measure(self, trace: Trace) -> float:
        """Median ratio, 0 where gradients are too small or absent."""
        gradients = layer_gradients(trace, _GRADIENTS)
        if not len(gradients) or not np.all(np.isfinite(gradients)):
            return math.nan
        if np.any(gradients == 0) or np.median(gradients) < self.smallest_gradient:
            return 0.0
        return self._ratio(trace)

    def layer(self, trace: Trace) -> str | None:
        """The layer with the smallest gradient."""
        return extreme_layer(trace, _GRADIENTS, np.nanargmin, self.exclude)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpstreamPLC(QualityIndicator):
    """PLC of the public code: standard deviation per mean of the early losses.

    Attributes:
        threshold: coefficient of variation, 1e-4.
    """

    id = "PLC"
    needs = frozenset({"loss"})
    quantity = "coefficient of variation of the loss"
    advice = "raise the learning rate"
    fires = "below"
    stage = "early"
    min_epochs = 3
    threshold: float = 1e-4

    def measure(self, trace: Trace) -> float:
        """Coefficient of variation of all training losses so far."""
        return _variation(trace.scalar("loss"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpstreamLAR(QualityIndicator):
    """LAR of the public code: zeros of the weight gradients, not activations.

    Attributes:
        threshold: median over layers of the share of zero elements, 0.5.
    """

    id = "LAR"
    needs = frozenset({"step_gradient/zero_ratio"})
    quantity = "median share of zero gradients"
    advice = "use a leaky activation or lower the learning rate"
    min_epochs = 5
    threshold: float = 0.5

    def measure(self, trace: Trace) -> float:
        """Median over layers of the share of zero gradient elements."""
        shares = layer_gradients(trace, "step_gradient/zero_ratio")
        return float(np.median(shares)) if len(shares) else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpstreamULC(QualityIndicator):
    """ULC of the public code: the last six losses rise and scatter.

    Also positive when the second half of the losses scatters more than the first.
    Looks at training and validation loss.

    Attributes:
        threshold: coefficient of variation, 0.2. The second condition measures
            infinity.
        slope: loss per epoch of the fitted line, 0.01.
        window: epochs, 6.
    """

    id = "ULC"
    needs = frozenset({"loss", "val_loss"})
    quantity = "coefficient of variation of a rising loss"
    advice = "lower the learning rate"
    stage = "late"
    min_epochs = 6
    threshold: float = 0.2
    slope: float = 0.01
    window: int = 6

    def measure(self, trace: Trace) -> float:
        """Largest of training and validation loss, 0 where neither rises."""
        values = [
            self._scatter(curve)
            for curve in (trace.scalar("loss"), trace.scalar("val_loss"))
            if np.all(np.isfinite(curve))
        ]
        return max(values, default=math.nan)

    def _scatter(self, curve: np.ndarray) -> float:
        half = len(curve) // 2
        if half and _variation(curve[half:]) > _variation(curve[:half]):
            return math.inf
        window = curve[-self.window :]
        return _variation(window) if slope(window) >= self.slope else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpstreamNMG(QualityIndicator):
    """NMG of the public code: the last three losses are above the three before.

    At any stage, on training and validation loss, and not benign.

    Attributes:
        threshold: difference of the two means, 0.
    """

    id = "NMG"
    needs = frozenset({"loss", "val_loss"})
    quantity = "rise of the mean loss over three epochs"
    advice = "plan fewer epochs"
    min_epochs = 4
    threshold: float = 0.0

    def measure(self, trace: Trace) -> float:
        """Larger rise of training and validation loss."""
        rises = [
            float(np.mean(curve[-3:]) - np.mean(curve[-6:-3]))
            for curve in (trace.scalar("loss"), trace.scalar("val_loss"))
            if len(curve) >= 4 and np.all(np.isfinite(curve))
        ]
        return max(rises, default=math.nan)


def _variation(values: np.ndarray) -> float:
    """Standard deviation per mean, as the public code has it."""
    mean = float(np.mean(values))
    if not math.isfinite(mean) or mean == 0:
        return math.nan
    return float(np.std(values)) / mean


UPSTREAM = (
    UpstreamAGV(),
    UpstreamEAG(),
    UpstreamERG(),
    UpstreamPLC(),
    UpstreamLAR(),
    UpstreamULC(),
    UpstreamNMG(),
)
