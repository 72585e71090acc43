"""Indicators of gradients: AGV, EAG and ERG (BTTackler, KDD'24, section 4)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from kt_bttackler.course import learned, losses
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.trace import Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbnormalGradientValues(QualityIndicator):
    """AGV: a loss or gradient is not finite, or a gradient is beyond all bounds.

    Measures the largest mean |gradient| of a layer (median over the sampled steps
    of the epoch, so that one spike does not count) per max(1, |first loss|), and
    infinity when the training loss, the validation loss or a gradient is not
    finite. With a scaled loss (mixed precision) single overflows are part of the
    game: more than half of the sampled steps must be non-finite. Gradients that the
    optimizer clips are not looked at. Judges every epoch, the last one too.

    Do not use the finite bound on losses that are sums over many outputs.

    Attributes:
        threshold: gradient per unit of first loss, 1e4.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> trace = Trace(Header(max_epochs=10), [
        ...     Record(1, 1.0, {"loss": 2.3, "first_batch_loss": 2.4}),
        ...     Record(2, 2.0, {"loss": float("nan")}),
        ... ])
        >>> indicator = AbnormalGradientValues()
        >>> indicator(trace.prefix(1)) is None
        True
        >>> print(indicator(trace))
        AGV at epoch 2: non-finite loss or gradient inf > 1e+04
    """

    id = "AGV"
    needs = frozenset(
        {
            "loss",
            "val_loss",
            "first_batch_loss",
            "step_gradient/abs_mean_median",
            "step_gradient/finite",
        }
    )
    quantity = "largest gradient per unit of first loss"
    advice = (
        "lower the learning rate, clip gradients (`clipnorm=1.0`), "
        "or look for a division by zero or log of zero in the loss"
    )
    threshold: float = 1e4

    def applies(self, trace: Trace) -> bool:
        """At every recorded epoch."""
        return trace.epoch > 0

    def measure(self, trace: Trace) -> float:
        """Largest gradient per unit of first loss; infinity when not finite."""
        if not _losses_finite(trace) or self._broken_layer(trace) is not None:
            return math.inf
        if trace.header.gradients_clipped:
            return math.nan
        gradients = layer_gradients(trace, "step_gradient/abs_mean_median")
        gradients = gradients[np.isfinite(gradients)]
        if not len(gradients):
            return math.nan
        return float(np.max(gradients) / _unit(trace))

    def measure_all(self, trace: Trace) -> np.ndarray:
        """`measure` of every prefix, [T]."""
        gradients = layer_gradient_table(trace, "step_gradient/abs_mean_median")
        values = np.full(len(trace), math.nan)
        if gradients.size and not trace.header.gradients_clipped:
            known = np.where(np.isfinite(gradients), gradients, -math.inf).max(axis=1)
            values = np.where(known > -math.inf, known / _unit(trace), math.nan)
        finite = trace.table("step_gradient/finite")
        if finite.size and not trace.header.gradients_clipped:
            values[(finite < _least_finite(trace)).any(axis=1)] = math.inf
        for name in ("loss", "val_loss"):
            for position, record in enumerate(trace.records):
                if not math.isfinite(record.scalars.get(name, 0.0)):
                    values[position] = math.inf
        return values

    def layer(self, trace: Trace) -> str | None:
        """Owner of the first non-finite gradient, else of the largest."""
        if not _losses_finite(trace):
            return self._broken_layer(trace)
        return self._broken_layer(trace) or extreme_layer(
            trace, "step_gradient/abs_mean_median", np.nanargmax, self.exclude
        )

    @classmethod
    def describe(cls, value: float) -> str:
        """Says when the value stands for something that is not finite."""
        return "non-finite loss or gradient" if math.isinf(value) else cls.quantity

    def _broken_layer(self, trace: Trace) -> str | None:
        finite = trace.table("step_gradient/finite")
        # Clipping makes an infinite gradient finite; one that breaks shows in the loss.
        if not len(finite) or trace.header.gradients_clipped:
            return None
        broken = finite[-1] < _least_finite(trace)
        owners = trace.header.variable_layers
        return owners[int(np.argmax(broken))] if broken.any() else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GradientRatio(QualityIndicator):
    """What EAG and ERG share: the median ratio of gradients of adjacent layers.

    A ratio is mean |gradient| of the earlier layer per that of the later one, over
    all edges of the data flow, residual ones included; above 1 gradients grow on
    their way back. Edges between two layers without gradient are dropped.
    """

    needs = frozenset({"loss", "first_batch_loss", "step_gradient/abs_mean"})
    quantity = "median gradient ratio"
    stage = "early"
    patience: int = 2
    progress_guard: float = 0.1

    def applies(self, trace: Trace) -> bool:
        """In the early stage, unless the loss has fallen by `progress_guard`."""
        return super().applies(trace) and not learned(trace, self.progress_guard)

    def _median_ratios(self, trace: Trace, *, upper: bool) -> np.ndarray:
        """`_median_ratio` of every prefix, [T]."""
        gradients = layer_gradient_table(trace, "step_gradient/abs_mean")
        layers = trace.header.layers
        edges = np.array(
            [
                edge
                for edge in trace.header.edges
                if not any(layers[end] in self.exclude for end in edge)
            ],
            dtype=int,
        ).reshape(-1, 2)
        if not gradients.size or len(edges) < 2:
            return np.full(len(trace), math.nan)
        earlier, later = gradients[:, edges[:, 0]], gradients[:, edges[:, 1]]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.sort(earlier / later, axis=1)  # nan, of 0 / 0, comes last
        usable = np.sum(~np.isnan(ratios), axis=1)
        middle = usable // 2 if upper else (usable - 1) // 2
        rows = np.arange(len(ratios))
        medians = ratios[rows, np.clip(middle, 0, len(edges) - 1)]
        known = np.isfinite(gradients).all(axis=1) & (usable >= 2)
        return np.where(known, medians, math.nan)

    def _median_ratio(self, trace: Trace, *, upper: bool) -> float:
        gradients = layer_gradients(trace, "step_gradient/abs_mean")
        if not len(gradients) or not np.all(np.isfinite(gradients)):
            return math.nan
        layers = trace.header.layers
        edges = [
            (gradients[u], gradients[v])
            for u, v in trace.header.edges
            if not (layers[u] in self.exclude or layers[v] in self.exclude)
        ]
        ratios = sorted(
            math.inf if later == 0 else float(earlier / later)
            for earlier, later in edges
            if earlier > 0 or later > 0
        )
        if len(ratios) < 2:
            return math.nan
        return ratios[len(ratios) // 2 if upper else (len(ratios) - 1) // 2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExponentiallyAmplifiedGradients(_GradientRatio):
    """EAG: gradients explode from layer to layer on their way back.

    Positive when the median ratio of adjacent layers (the lower of two middle
    values) is above the threshold in two successive epochs of the early stage, one
    when that stage has fewer than four epochs, and the loss has not fallen.

    Do not use on nets whose layers differ in scale on purpose.

    Attributes:
        threshold: ratio, 1000.
        patience: epochs in a row.
        progress_guard: share of the loss scale; a net that learned this much is
            not stopped. `inf` switches the guard off.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> header = Header(
        ...     max_epochs=20,
        ...     variables=("a", "b", "c"), variable_layers=("a", "b", "c"),
        ...     variable_sizes=(4, 4, 4), kernels=(True, True, True),
        ...     layers=("a", "b", "c"), edges=((0, 1), (1, 2)),
        ... )
        >>> column = {"step_gradient/abs_mean": (9e9, 3e5, 1e1)}
        >>> records = [Record(n, 1.0 * n, {"loss": 2.3}, column) for n in (1, 2)]
        >>> trace = Trace(header, records)
        >>> indicator = ExponentiallyAmplifiedGradients()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, True]
        >>> print(indicator(trace))
        EAG at epoch 2: median gradient ratio 3e+04 > 1e+03, layer a
    """

    id = "EAG"
    advice = (
        "lower the learning rate, clip gradients, use a smaller initialisation, "
        "or add normalisation or residual connections"
    )
    threshold: float = 1e3

    def measure(self, trace: Trace) -> float:
        """Median ratio of adjacent layers, the lower of two middle values."""
        return self._median_ratio(trace, upper=False)

    def measure_all(self, trace: Trace) -> np.ndarray:
        """`measure` of every prefix, [T]."""
        return self._median_ratios(trace, upper=False)

    def layer(self, trace: Trace) -> str | None:
        """The layer with the largest gradient."""
        return extreme_layer(
            trace, "step_gradient/abs_mean", np.nanargmax, self.exclude
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExponentiallyReducedGradients(_GradientRatio):
    """ERG: gradients vanish from layer to layer on their way back.

    Positive when the median ratio of adjacent layers (the upper of two middle
    values) is below the threshold, or when the flow is dead: the first layer (all of
    them in a net with several inputs), or half of all layers, had a gradient of
    exactly zero in every sampled step. Two
    successive epochs of the early stage, one when it has fewer than four.

    Do not use on nets that are frozen by multiplying with zero on purpose.

    Attributes:
        threshold: ratio, 1e-3. A dead flow measures 0.
        patience: epochs in a row.
        progress_guard: share of the loss scale; a net that learned this much is
            not stopped. `inf` switches the guard off.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> header = Header(
        ...     max_epochs=20,
        ...     variables=("a", "b", "c"), variable_layers=("a", "b", "c"),
        ...     variable_sizes=(4, 4, 4), kernels=(True, True, True),
        ...     layers=("a", "b", "c"), edges=((0, 1), (1, 2)),
        ... )
        >>> column = {"step_gradient/abs_mean": (1e-9, 2e-5, 1e-1)}
        >>> records = [Record(n, 1.0 * n, {"loss": 2.3}, column) for n in (1, 2)]
        >>> trace = Trace(header, records)
        >>> indicator = ExponentiallyReducedGradients()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, True]
        >>> print(indicator(trace))
        ERG at epoch 2: median gradient ratio 0.0002 < 0.001, layer a
    """

    id = "ERG"
    fires = "below"
    advice = (
        "use ReLU-like activations with He initialisation, "
        "or add normalisation or residual connections; "
        "if the gradients are zero, lower the learning rate"
    )
    threshold: float = 1e-3

    def measure(self, trace: Trace) -> float:
        """Median ratio, the upper of two middle values; 0 for a dead flow."""
        if self._dead_flow(trace):
            return 0.0
        return self._median_ratio(trace, upper=True)

    def measure_all(self, trace: Trace) -> np.ndarray:
        """`measure` of every prefix, [T]."""
        gradients = layer_gradient_table(trace, "step_gradient/abs_mean")
        dead = self._dead_flows(trace, gradients)
        return np.where(dead, 0.0, self._median_ratios(trace, upper=True))

    def layer(self, trace: Trace) -> str | None:
        """The layer with the smallest gradient."""
        return extreme_layer(
            trace, "step_gradient/abs_mean", np.nanargmin, self.exclude
        )

    @classmethod
    def describe(cls, value: float) -> str:
        """Says when the value stands for a dead flow."""
        return "gradient flow" if value == 0 else cls.quantity

    def _dead_flow(self, trace: Trace) -> bool:
        gradients = layer_gradients(trace, "step_gradient/abs_mean")
        return bool(self._dead_flows(trace, gradients[None])[0])

    def _dead_flows(self, trace: Trace, gradients: np.ndarray) -> np.ndarray:
        """Whether the flow is dead in each row of `gradients`, [T, L]."""
        header = trace.header
        kept = np.array([name not in self.exclude for name in header.layers], bool)
        if not kept.any() or not gradients.size:
            return np.zeros(len(gradients), bool)
        dead = gradients == 0
        first = kept.copy()
        first[[v for u, v in header.edges if kept[u]]] = False
        quiet = dead[:, first].all(axis=1) | (dead[:, kept].mean(axis=1) >= 0.5)
        return np.asarray(np.isfinite(gradients[:, kept]).all(axis=1) & quiet)


def layer_gradients(trace: Trace, name: str) -> np.ndarray:
    """One number per layer at the last epoch, [L]: the mean over its kernels."""
    table = trace.table(name)
    if not len(table) or not trace.header.layers:
        return np.zeros(0)
    return np.asarray(_per_layer(trace, table[-1:])[0])


def layer_gradient_table(trace: Trace, name: str) -> np.ndarray:
    """`layer_gradients` at every epoch, [T, L]; [T, 0] without layers."""
    if not trace.header.layers:
        return np.zeros((len(trace), 0))
    return _per_layer(trace, trace.table(name))


def _per_layer(trace: Trace, rows: np.ndarray) -> np.ndarray:
    """Means over the kernels of each layer, [T, L], of rows of variables, [T, V]."""
    shares = trace.header.kernel_shares
    # A variable of another layer must not spread its nan: 0 * nan is nan.
    missing = np.isnan(rows)
    values = np.where(missing, 0.0, rows) @ shares
    if missing.any():
        unknown = missing.astype(float) @ (shares > 0) > 0
        values = np.where(unknown, np.nan, values)
    return np.asarray(values)


def extreme_layer(
    trace: Trace,
    name: str,
    argument: Callable[[np.ndarray], np.integer],
    exclude: tuple[str, ...],
) -> str | None:
    """The layer at which `argument` (such as `np.nanargmax`) points, or `None`."""
    values = layer_gradients(trace, name)
    for position, layer in enumerate(trace.header.layers):
        if layer in exclude and len(values):
            values[position] = np.nan
    if not len(values) or np.all(np.isnan(values)):
        return None
    return trace.header.layers[int(argument(values))]


def _unit(trace: Trace) -> float:
    """max(1, |first loss|), 1 where that is unknown."""
    first = losses(trace)[0]
    return max(1.0, abs(float(first))) if math.isfinite(first) else 1.0


def _least_finite(trace: Trace) -> float:
    """Share of the sampled steps that must have a finite gradient."""
    return 0.5 if trace.header.loss_scaled else 1.0


def _losses_finite(trace: Trace) -> bool:
    """Whether the logs of the last epoch that exist are finite."""
    scalars = trace.last.scalars if trace.last else {}
    return all(
        math.isfinite(scalars[name]) for name in ("loss", "val_loss") if name in scalars
    )
