"""Indicator of how a training will end: WORSE_THAN_CONSTANT."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from kt_bttackler.course import NEGLIGIBLE_LOSS, trivial_loss
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.outlook import (
    OUTLOOK_NEEDS,
    block_epochs,
    hopeless,
    judged_losses,
    worst_bearable,
)
from kt_bttackler.trace import Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorseThanConstant(QualityIndicator):
    """WORSE_THAN_CONSTANT: the training is going to end worse than a constant answer.

    Measures the smallest loss of the last two blocks of 5 % of the plan (at least four
    epochs) per that of the best constant prediction, which is estimated from the
    training labels. The loss is that of the validation, unless the search goes by
    something else than a loss. Judged where the curve, as it runs, will not get below
    the bound by the end of the plan (`outlook.hopeless`), in two epochs in a row.

    The bound is 1.05 in the first half of the plan and 0.99 in the second, and higher
    by five standard errors of the estimate. It says that nothing came of the training,
    not why: other findings, reported before it, do.

    Validation targets of another distribution are known by a loss that falls far above
    that of the constant, and spared. Do not use on trainings that may generalise long
    after they have learned their rows by heart.

    Attributes:
        threshold: multiple of the loss of a constant, in the first half of the plan,
            1.05.
        late_threshold: the same in the second half, 0.99.
        patience: epochs in a row.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> header = Header(max_epochs=20, objective="val_loss")
        >>> trace = Trace(header, [
        ...     Record(n, 1.0 * n, {
        ...         "loss": 0.6 / n, "val_loss": 0.5 + 0.06 * n,
        ...         "label/trivial_loss": 0.693,
        ...     })
        ...     for n in range(1, 13)
        ... ])
        >>> indicator = WorseThanConstant()
        >>> [prefix.epoch for prefix in trace.prefixes() if indicator(prefix)]
        [8, 9, 10, 11, 12]
        >>> print(indicator(trace.prefix(8)))  # doctest: +NORMALIZE_WHITESPACE
        WORSE_THAN_CONSTANT at epoch 8: smallest recent loss per that of a constant
        1.15 > 1.05
    """

    id = "WORSE_THAN_CONSTANT"
    needs = OUTLOOK_NEEDS
    quantity = "smallest recent loss per that of a constant"
    advice = (
        "where the training loss is low, regularise, use a smaller model or more "
        "data, or stop at the best epoch; where it is not, lower the learning rate, "
        "scale the inputs, and initialise with smaller weights"
    )
    threshold: float = 1.05
    late_threshold: float = 0.99
    patience: int = 2

    def applies(self, trace: Trace) -> bool:
        """Where nothing better than a constant is in sight."""
        return super().applies(trace) and hopeless(
            trace, self.threshold, self.late_threshold
        )

    def measure(self, trace: Trace) -> float:
        """Smallest recent loss per that of a constant; `nan` where it is unknown."""
        constant = trivial_loss(trace)
        if trace.max_epochs is None or not constant > NEGLIGIBLE_LOSS:
            return math.nan
        recent = judged_losses(trace)[-2 * block_epochs(trace.max_epochs) :]
        finite = len(recent) and np.isfinite(recent).all()
        return float(np.min(recent)) / constant if finite else math.nan

    def limit(self, trace: Trace) -> float:
        """The bound of this half of the plan."""
        return worst_bearable(trace, self.threshold, self.late_threshold)
