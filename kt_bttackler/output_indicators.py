"""Indicators of what the model answers: COLLAPSED_OUTPUT and CLASS_NEGLECT."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from kt_bttackler.activation_indicators import ProbeIndicator
from kt_bttackler.course import PROGRESS_NEEDS, last_known
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.trace import Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollapsedOutput(QualityIndicator):
    """COLLAPSED_OUTPUT: the model answers the same, whatever it is asked.

    Measures how widely the output varies over the probe: the largest standard deviation
    of an output unit per range of the head, or per standard deviation of regression
    targets. In the second half of the plan also asks a classifier for the share of rows
    that are not given to its commonest answer; unless the labels themselves are of one
    class by more than `balance`. Either is the larger number of the last two probes,
    judged after 5 % of the plan (at least an epoch). Labels that are practically of one
    class deserve one answer, and are left alone.

    A ground for stopping at an epoch with a probe while the training is stalled. Else a
    warning: a deep sigmoid net can start from here. Sources: TFCheck, SageMaker
    Debugger (Confusion, ClassImbalance).

    Do not use on generators of a single answer.

    Attributes:
        threshold: share of the scale of the output, 1e-4.
        minority: share of the rows not given to the commonest answer, 0.01.
        balance: share of the commonest label up to which the answers are asked, 0.9.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> trace = Trace(Header(max_epochs=20), [
        ...     Record(n, 1.0 * n, {"loss": 2.3, "output/spread": 1e-6})
        ...     for n in (1, 2, 3)
        ... ])
        >>> indicator = CollapsedOutput()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, True, True]
        >>> print(indicator(trace.prefix(2)))
        COLLAPSED_OUTPUT at epoch 2: spread of the output 1e-06 < 0.0001 (warning)
        >>> print(indicator(trace))
        COLLAPSED_OUTPUT at epoch 3: spread of the output 1e-06 < 0.0001
    """

    id = "COLLAPSED_OUTPUT"
    needs = PROGRESS_NEEDS | {
        "output/spread",
        "output/top_share",
        "output/label_top_share",
    }
    quantity = "spread of the output"
    advice = (
        "lower the learning rate, scale the inputs, and check initialisation, "
        "activations and that output and loss fit"
    )
    fires = "below"
    stage = "settled"
    stopping = "stalled"
    threshold: float = 1e-4
    minority: float = 0.01
    balance: float = 0.9

    def measure(self, trace: Trace) -> float:
        """Spread of the output, or share of other answers; `nan` before two probes."""
        return self._narrowest(trace)[0]

    def limit(self, trace: Trace) -> float:
        """The bound of what is measured."""
        return self._narrowest(trace)[1]

    def explain(self, trace: Trace, value: float) -> str:
        """Says what was measured."""
        return self._narrowest(trace)[2]

    def stops(self, trace: Trace) -> bool:
        """Whether a stalled training has just been probed."""
        return super().stops(trace) and math.isfinite(trace.scalar("output/spread")[-1])

    def _narrowest(self, trace: Trace) -> tuple[float, float, str]:
        label_share = last_known(trace.scalar("output/label_top_share"))
        if label_share > 1 - self.minority:
            return math.nan, self.threshold, self.quantity
        spread = _larger_of_two(trace.scalar("output/spread"))
        others = _larger_of_two(1 - trace.scalar("output/top_share"))
        planned = trace.max_epochs
        late = planned is not None and trace.epoch > planned // 2
        wide = not spread < self.threshold
        if wide and late and label_share <= self.balance and others < self.minority:
            return others, self.minority, "share of rows with another answer"
        return spread, self.threshold, self.quantity


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassNeglect(ProbeIndicator):
    """CLASS_NEGLECT: a class is never recognised. A warning.

    Measures the share among the probe rows of the commonest class (of five rows or
    more) of which no row is recognised, in the second half of the plan, in three
    successive probes. Source: SageMaker Debugger (ClassImbalance); its error per class
    needs the whole validation set, and is left out.

    Attributes:
        threshold: share of the rows, 0.01.
        patience: probes in a row.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> trace = Trace(Header(max_epochs=10), [
        ...     Record(n, 1.0 * n, {"loss": 2.3, "output/neglected_share": 0.1})
        ...     for n in range(1, 10)
        ... ])
        >>> indicator = ClassNeglect()
        >>> [prefix.epoch for prefix in trace.prefixes() if indicator(prefix)]
        [8, 9]
        >>> print(indicator(trace))
        CLASS_NEGLECT at epoch 9: share of a class never recognised 0.1 > 0.01 (warning)
    """

    id = "CLASS_NEGLECT"
    needs = frozenset({"output/neglected_share"})
    quantity = "share of a class never recognised"
    advice = "weight the classes (`class_weight`), or sample the rare ones more often"
    stage = "late"
    stopping = "never"
    threshold: float = 0.01
    patience: int = 3

    def measure(self, trace: Trace) -> float:
        """Share of the neglected class; `nan` without a probe."""
        values = trace.scalar("output/neglected_share")
        return float(values[-1]) if len(values) else math.nan


def _larger_of_two(values: np.ndarray) -> float:
    """The larger of the last two numbers that are known, `nan` before there are two."""
    known = values[~np.isnan(values)]
    return float(np.max(known[-2:])) if len(known) > 1 else math.nan
