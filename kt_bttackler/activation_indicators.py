"""Indicator of activations: LAR (BTTackler, KDD'24, section 4)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from kt_bttackler.course import learned
from kt_bttackler.gradient_indicators import layer_gradient_table, layer_gradients
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.trace import Trace


class ProbeIndicator(QualityIndicator):
    """An indicator of the probe, whose patience is in probes, not in epochs."""

    def _previous(self, trace: Trace) -> Trace | None:
        """The probe before the last one: not every epoch has one."""
        previous = super()._previous(trace)
        while previous is not None and math.isnan(self.measure(previous)):
            previous = super()._previous(previous)
        return previous


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowActivationRatio(ProbeIndicator):
    """LAR: most units of most layers give the same output whatever the input.

    A unit is inactive when its output is constant over the probe batch and all
    positions: a healthy ReLU layer is half zeros, but hardly any of its units is
    always zero. Measures the median over the activation layers of the share of
    inactive units. Positive in two successive probes (one when the early stage has
    fewer than four epochs), from the second epoch on, unless the loss has fallen.
    A model that cannot be probed is judged by the share of gradient elements that
    are exactly zero, with `gradient_threshold`.

    Do not use where sparse activity is intended; name such layers in `exclude`.

    Attributes:
        threshold: share of inactive units, 0.5.
        gradient_threshold: share of zero gradients where no probe is possible, 0.7.
        patience: probes in a row.
        progress_guard: share of the loss scale; a net that learned this much is
            not stopped. `inf` switches the guard off.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> column = {"activation/constant_ratio": (0.9, 1.0, 0.2)}
        >>> trace = Trace(Header(max_epochs=20, activations=("a", "b", "c")), [
        ...     Record(n, 1.0 * n, {"loss": 2.3}, column) for n in (1, 2, 3)
        ... ])
        >>> indicator = LowActivationRatio()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, False, True]
        >>> print(indicator(trace))
        LAR at epoch 3: median share of inactive units 0.9 > 0.5, layer b
    """

    id = "LAR"
    needs = frozenset(
        {
            "loss",
            "first_batch_loss",
            "activation/constant_ratio",
            "step_gradient/zero_ratio",
        }
    )
    quantity = "median share of inactive units"
    advice = (
        "lower the learning rate, use a leaky activation, He initialisation "
        "or normalisation, or scale the inputs"
    )
    min_epochs = 2
    threshold: float = 0.5
    gradient_threshold: float = 0.7
    patience: int = 2
    progress_guard: float = 0.1

    def applies(self, trace: Trace) -> bool:
        """At any stage, unless the loss has fallen by `progress_guard`."""
        return super().applies(trace) and not learned(trace, self.progress_guard)

    def limit(self, trace: Trace) -> float:
        """The threshold of units, or that of gradients without a probe."""
        return self.gradient_threshold if _unprobed(trace) else self.threshold

    def measure(self, trace: Trace) -> float:
        """Median share of inactive units; `nan` at epochs without a probe."""
        shares = self._shares(trace)
        shares = shares[~np.isnan(shares)]
        return float(np.median(shares)) if len(shares) else math.nan

    def measure_all(self, trace: Trace) -> np.ndarray:
        """`measure` of every prefix, [T]."""
        if _unprobed(trace):
            rows = layer_gradient_table(trace, "step_gradient/zero_ratio")
        else:
            rows = trace.table("activation/constant_ratio")
        rows = np.where(self._excluded(trace), np.nan, rows)
        values = np.full(len(trace), math.nan)
        missing = np.isnan(rows)
        whole, known = ~missing.any(axis=1), ~missing.all(axis=1)
        if rows.shape[1] and whole.any():
            values[whole] = np.median(rows[whole], axis=1)
        for k in np.flatnonzero(known & ~whole):
            values[k] = np.median(rows[k][~missing[k]])
        return values

    def layer(self, trace: Trace) -> str | None:
        """The layer with most inactive units."""
        shares = self._shares(trace)
        if not len(shares) or np.all(np.isnan(shares)):
            return None
        return _names(trace)[int(np.nanargmax(shares))]

    def _shares(self, trace: Trace) -> np.ndarray:
        if _unprobed(trace):
            shares = layer_gradients(trace, "step_gradient/zero_ratio")
        else:
            table = trace.table("activation/constant_ratio")
            shares = table[-1] if len(table) else np.zeros(0)
        if not len(shares):
            return shares
        return np.where(self._excluded(trace), np.nan, shares)

    def _excluded(self, trace: Trace) -> np.ndarray:
        return np.array([name in self.exclude for name in _names(trace)], bool)


def _names(trace: Trace) -> tuple[str, ...]:
    return trace.header.layers if _unprobed(trace) else trace.header.activations


def _unprobed(trace: Trace) -> bool:
    return "activation" in trace.header.unobserved
