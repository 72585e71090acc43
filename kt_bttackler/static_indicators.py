"""Indicators of what is known before the first step: data, model and optimizer.

A training that cannot start well is known at its first epoch. What they find holds as
long as the training lasts, so that it stands beside whatever ends it later. Unlike the
seven they look for errors of code and of data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kt_bttackler.course import largest_known, rise_ahead, warming_up
from kt_bttackler.indicators import SEVERITY_RANGE, QualityIndicator
from kt_bttackler.trace import Trace

# Lowest and highest output of the heads that cannot give every number.
_REACH = {
    "sigmoid": (0.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "softplus": (0.0, math.inf),
    "exponential": (0.0, math.inf),
}
_REGRESSIONS = (
    "mean_squared_error",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_logarithmic_error",
    "huber",
    "log_cosh",
)
_CROSS_ENTROPIES = (
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "sparse_categorical_crossentropy",
)
_BINARY = ("binary_crossentropy", "binary_focal_crossentropy")
# Targets that stick out of a head's reach by less than this share of their range are
# rounding; by more than the second share they are not a few outliers.
_ROUNDING = 0.01
_BEYOND = 0.25
# A softmax over one unit gives the same for every row; over several, it does not.
_CONSTANT = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputLossMismatch(QualityIndicator):
    """OUTPUT_LOSS_MISMATCH: output layer, loss and targets contradict each other.

    Counts the contradictions: a softmax over one unit, which is always 1; targets that
    a bounded head cannot reach under a regression loss; softmax or sigmoid with
    `from_logits=True`; a cross-entropy of probabilities whose output is no softmax, or
    a binary one whose output is neither sigmoid nor softmax.

    A ground for stopping is in a model with one output the softmax over one unit (but
    for binary cross-entropies, which Keras computes from its logits), and targets far
    out of reach: more than a quarter of their range, and spread more widely than the
    head can be. The others often train, and are warnings. What is unknown (activations
    and losses of one's own) is no contradiction. Sources: AUTOTRAINER, NeuraLint,
    UMLAUT.

    Attributes:
        threshold: contradictions, 0.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> output = {"activation": "softmax", "units": 1, "from_logits": False,
        ...           "loss": "mean_squared_error"}
        >>> trace = Trace(Header(max_epochs=20, outputs=(output,)), [
        ...     Record(n, 1.0 * n, {"loss": 0.5}) for n in (1, 2, 3)
        ... ])
        >>> indicator = OutputLossMismatch()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [True, True, True]
        >>> print(indicator(trace.prefix(1)))  # doctest: +NORMALIZE_WHITESPACE
        OUTPUT_LOSS_MISMATCH at epoch 1: contradictions of output and loss
        (softmax over a single unit) 1 > 0
    """

    id = "OUTPUT_LOSS_MISMATCH"
    needs = frozenset({"model/outputs", "output/initial_spread"})
    quantity = "contradictions of output and loss"
    advice = (
        "let output and loss fit: softmax with categorical_crossentropy, one sigmoid "
        "unit with binary_crossentropy, a linear output for regression (or targets "
        "scaled into the range of the output), `from_logits=True` only with a linear "
        "output"
    )
    stage = "start"
    threshold: float = 0.0

    def measure(self, trace: Trace) -> float:
        """Number of contradictions; `nan` where nothing is known of the outputs."""
        if not trace.header.outputs:
            return math.nan
        return float(len(self._contradictions(trace)))

    def explain(self, trace: Trace, value: float) -> str:
        """Names the contradictions."""
        return f"{self.quantity} ({', '.join(self._contradictions(trace))})"

    def stops(self, trace: Trace) -> bool:
        """Whether the only output of the model can never be right."""
        if len(trace.header.outputs) != 1:
            return False
        (output,) = trace.header.outputs
        # Keras computes a binary cross-entropy from the logits of a softmax: it trains.
        constant = _is_constant(output, trace) and output.get("loss") not in _BINARY
        return constant or _is_far_off(output)

    def _contradictions(self, trace: Trace) -> list[str]:
        found: list[str] = []
        for output in trace.header.outputs:
            head, loss = output.get("activation"), output.get("loss")
            logits = bool(output.get("from_logits"))
            if _is_constant(output, trace):
                found.append("softmax over a single unit")
            if _share_beyond(output) > _ROUNDING:
                found.append(f"targets that {head} cannot reach")
            if loss in (*_CROSS_ENTROPIES, *_BINARY) and head is not None:
                if logits and head in ("softmax", "sigmoid"):
                    found.append(f"from_logits=True after {head}")
                elif logits:
                    continue
                elif loss in _CROSS_ENTROPIES and head != "softmax":
                    found.append(f"{loss} of {head}")
                elif loss in _BINARY and head not in (
                    "sigmoid",
                    "hard_sigmoid",
                    "softmax",
                ):
                    found.append(f"{loss} of {head}")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputScale(QualityIndicator):
    """INPUT_SCALE: the inputs are large, or their features differ in scale.

    Measures the largest |input| of the probe rows, or the ratio of the largest to the
    smallest standard deviation of a feature, whichever is further beyond its bound;
    infinity when an input is not finite. Images of whole numbers are asked to stay
    below `image_threshold`: these are pixels from 0 to 255.

    A warning: many nets train all the same. Inputs that are not finite are a ground for
    stopping unless the loss is finite, as then the model knows how to read them.
    Sources: UMLAUT, AUTOTRAINER, SageMaker Debugger, with wider bounds.

    Attributes:
        threshold: largest |input|, 100.
        image_threshold: the same for images of whole numbers, 2.
        ratio_threshold: ratio of standard deviations, 1000.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> inputs = {"abs_max": 255.0, "std_ratio": 3.0, "finite": True,
        ...           "integers": True, "image": True}
        >>> trace = Trace(Header(max_epochs=20, inputs=inputs), [
        ...     Record(n, 1.0 * n, {"loss": 2.3}) for n in (1, 2)
        ... ])
        >>> indicator = InputScale()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [True, True]
        >>> print(indicator(trace.prefix(1)))
        INPUT_SCALE at epoch 1: largest input 255 > 2 (warning)
    """

    id = "INPUT_SCALE"
    needs = frozenset({"loss", "model/inputs"})
    quantity = "largest input, or ratio of feature spreads"
    advice = (
        "scale the inputs (divide images by 255, standardise features), add a "
        "Normalization or Rescaling layer, and look for missing values"
    )
    stage = "start"
    threshold: float = 100.0
    image_threshold: float = 2.0
    ratio_threshold: float = 1e3

    def measure(self, trace: Trace) -> float:
        """The number that is furthest beyond its bound; infinity when not finite."""
        return self._worst(trace)[0]

    def limit(self, trace: Trace) -> float:
        """The bound of what is measured."""
        return self._worst(trace)[1]

    def explain(self, trace: Trace, value: float) -> str:
        """Says what was measured."""
        return self._worst(trace)[2]

    def stops(self, trace: Trace) -> bool:
        """Whether neither inputs nor loss are finite."""
        return math.isinf(self.measure(trace)) and not math.isfinite(
            trace.scalar("loss")[-1]
        )

    def _worst(self, trace: Trace) -> tuple[float, float, str]:
        inputs = trace.header.inputs
        if inputs.get("finite") is False:
            return math.inf, self.threshold, "inputs that are not finite"
        pixels = inputs.get("image") and inputs.get("integers")
        bound = self.image_threshold if pixels else self.threshold
        size = (_number(inputs, "abs_max"), bound, "largest input")
        spread = (
            _number(inputs, "std_ratio"),
            self.ratio_threshold,
            "ratio of feature spreads",
        )
        # An unknown ratio compares as false.
        return spread if spread[0] / spread[1] > size[0] / size[1] else size


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningRateRange(QualityIndicator):
    """LR_RANGE: the learning rate can hardly be meant.

    Measures the largest learning rate so far where that is positive, above `threshold`
    (optimizers that scale their steps: `adaptive_threshold`), else that of the first
    epoch, positive below `smallest`. A warning: Adadelta, for one, is used with 1. A
    rate that is not positive is a ground for stopping when no epoch had another one,
    from the second epoch on; a single one may begin a warm-up. Small rates are no
    finding where the rate has risen since or is scheduled to. Source: UMLAUT, with
    wider bounds.

    Attributes:
        threshold: learning rate, 1.
        adaptive_threshold: the same for adaptive optimizers, 0.1.
        smallest: learning rate, 1e-7.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> trace = Trace(Header(max_epochs=20), [
        ...     Record(n, 1.0 * n, {"loss": 2.3, "learning_rate": 10.0}) for n in (1, 2)
        ... ])
        >>> indicator = LearningRateRange()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [True, True]
        >>> print(indicator(trace.prefix(1)))
        LR_RANGE at epoch 1: learning rate 10 > 1 (warning)
    """

    id = "LR_RANGE"
    needs = frozenset({"learning_rate", "model/adaptive_optimizer"})
    quantity = "learning rate"
    advice = "search learning rates between 1e-5 and 0.1 (SGD up to 1), on a log scale"
    stage = "start"
    threshold: float = 1.0
    adaptive_threshold: float = 0.1
    smallest: float = 1e-7

    def measure(self, trace: Trace) -> float:
        """The learning rate; `nan` for a small one that rises or may still rise."""
        rates = trace.scalar("learning_rate")
        if not len(rates):
            return math.nan
        largest, first = largest_known(rates), float(rates[0])
        if largest > self._largest(trace):
            return largest
        rises = warming_up(trace) or rise_ahead(trace) or bool(np.any(rates > first))
        return math.nan if first < self.smallest and rises else first

    def limit(self, trace: Trace) -> float:
        """The bound on the side of the rate."""
        if self.measure(trace) < self.smallest:
            return self.smallest
        return self._largest(trace)

    def severity(self, trace: Trace) -> float:
        """Base-10 logarithm of the rate per bound, of either side."""
        rate = self.measure(trace)
        if 0 < rate < self.smallest:
            return min(SEVERITY_RANGE, math.log10(self.smallest / rate))
        return SEVERITY_RANGE if rate <= 0 else super().severity(trace)

    def stops(self, trace: Trace) -> bool:
        """Whether no epoch had a positive rate."""
        return len(trace) > 1 and self._never_positive(trace)

    def _largest(self, trace: Trace) -> float:
        adaptive = trace.header.adaptive_optimizer
        return self.adaptive_threshold if adaptive else self.threshold

    def _never_positive(self, trace: Trace) -> bool:
        return bool(np.all(trace.scalar("learning_rate") <= 0))

    def _beyond(self, value: float, limit: float) -> bool:
        return value < self.smallest or (limit > self.smallest and value > limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HighDropout(QualityIndicator):
    """HIGH_DROPOUT: a dropout layer leaves hardly anything. A warning.

    Measures the largest rate of a dropout layer. Source: UMLAUT,
    with a wider bound.

    Attributes:
        threshold: rate, 0.7.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> header = Header(max_epochs=20, dropout_rates=(0.2, 0.9))
        >>> trace = Trace(header, [Record(n, 1.0 * n, {"loss": 2.3}) for n in (1, 2)])
        >>> indicator = HighDropout()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [True, True]
        >>> print(indicator(trace.prefix(1)))
        HIGH_DROPOUT at epoch 1: largest dropout rate 0.9 > 0.7 (warning)
    """

    id = "HIGH_DROPOUT"
    needs = frozenset({"model/dropout_rates"})
    quantity = "largest dropout rate"
    advice = "drop at most half of the units"
    stage = "start"
    stopping = "never"
    threshold: float = 0.7

    def measure(self, trace: Trace) -> float:
        """The largest rate; `nan` without dropout."""
        return max(map(float, trace.header.dropout_rates), default=math.nan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearStack(QualityIndicator):
    """LINEAR_STACK: two dense layers in a row do what one could. A warning.

    Counts pairs of adjacent linear dense layers with neither activation nor
    normalisation nor dropout in between. Do not use on
    factorised layers, where the bottleneck is the point. Source: UMLAUT, which flags
    every linear hidden layer.

    Attributes:
        threshold: pairs, 0.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> header = Header(max_epochs=20, linear_pairs=(("dense", "dense_1"),))
        >>> trace = Trace(header, [Record(n, 1.0 * n, {"loss": 2.3}) for n in (1, 2)])
        >>> indicator = LinearStack()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [True, True]
        >>> print(indicator(trace.prefix(1)))  # doctest: +NORMALIZE_WHITESPACE
        LINEAR_STACK at epoch 1: pairs of dense layers without activation in between
        1 > 0, layer dense (warning)
    """

    id = "LINEAR_STACK"
    needs = frozenset({"model/linear_pairs"})
    quantity = "pairs of dense layers without activation in between"
    advice = "give the first of the two an activation, or drop it"
    stage = "start"
    stopping = "never"
    threshold: float = 0.0

    def measure(self, trace: Trace) -> float:
        """Number of pairs."""
        return float(len(self._pairs(trace)))

    def layer(self, trace: Trace) -> str | None:
        """The first layer of the first pair."""
        pairs = self._pairs(trace)
        return pairs[0][0] if pairs else None

    def _pairs(self, trace: Trace) -> list[tuple[str, str]]:
        return [
            (first, second)
            for first, second in trace.header.linear_pairs
            if first not in self.exclude and second not in self.exclude
        ]


def _is_constant(output: Mapping[str, Any], trace: Trace) -> bool:
    """Whether an output is a softmax over one unit.

    One that varies over the probe runs along another axis than that of the units.
    """
    spread = trace.scalar("output/initial_spread")[:1]
    varies = bool(np.any(spread > _CONSTANT))
    single = output.get("activation") == "softmax" and output.get("units") == 1
    return single and not varies


def _share_beyond(output: Mapping[str, Any]) -> float:
    """Share of the range of regression targets that the head cannot reach."""
    low, high = _number(output, "target_min"), _number(output, "target_max")
    reach = _REACH.get(str(output.get("activation")))
    if reach is None or output.get("loss") not in _REGRESSIONS or not low <= high:
        return 0.0
    beyond = max(0.0, reach[0] - low) + max(0.0, high - reach[1])
    return beyond / (high - low) if high > low else float(beyond > 0)


def _is_far_off(output: Mapping[str, Any]) -> bool:
    """Whether more than a few outliers are beyond the reach of the head."""
    if not _share_beyond(output) > _BEYOND:
        return False
    low, high = _REACH[str(output["activation"])]
    # Numbers within [low, high] have no larger standard deviation than this.
    widest = (high - low) / 2
    return math.isinf(high) or _number(output, "target_std") > widest


def _number(facts: Mapping[str, Any], name: str) -> float:
    """A fact of the header as a number; `nan` where it is unknown.

    Read from a file, numbers that are not finite are strings.
    """
    value = facts.get(name)
    return math.nan if value is None else float(value)
