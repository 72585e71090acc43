"""What an indicator is: one number of a trace, a threshold, and when to judge.

An indicator is a frozen dataclass and a pure function of a trace prefix: its fields
are its thresholds, `measure` is its definition, and this base class compares.

```python
@dataclasses.dataclass(frozen=True)
class LossAboveFirst(QualityIndicator):
    needs = frozenset({"loss"})
    quantity = "training loss per first training loss"
    threshold: float = 3.0

    def measure(self, trace):
        losses = trace.scalar("loss")
        return losses[-1] / losses[0]
```
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import ClassVar, Literal

import numpy as np

from kt_bttackler.trace import Trace

# Early means the first epochs when the planned number is unknown (E is None).
EARLY_EPOCHS_WITHOUT_PLAN = 5
# A loss this small everywhere leaves nothing to learn.
NEGLIGIBLE_LOSS = 1e-12
# Severity is a logarithm of value / threshold, kept in this range for plots.
SEVERITY_RANGE = 3.0


@dataclasses.dataclass(frozen=True)
class Finding:
    """One indicator that is positive at one epoch; its `str` is what users read.

    Attributes:
        indicator: id of the indicator, such as "ERG".
        epoch: n, from 1.
        value: what was measured.
        threshold: what it was compared with.
        layer: the layer that stands out, where there is one.
        advice: what to try.
        quantity: what `value` is, in words.

    Example:
        >>> print(Finding("PLC", 2, 1e-5, 1e-3, quantity="mean change of the loss"))
        PLC at epoch 2: mean change of the loss 1e-05 < 0.001
    """

    indicator: str
    epoch: int
    value: float
    threshold: float
    layer: str | None = None
    advice: str = ""
    quantity: str = "value"

    def __str__(self) -> str:
        sign = "<" if self.value < self.threshold else ">"
        sign = ">=" if self.value == self.threshold else sign
        place = f", layer {self.layer}" if self.layer else ""
        return (
            f"{self.indicator} at epoch {self.epoch}: {self.quantity} "
            f"{self.value:.3g} {sign} {self.threshold:.3g}{place}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityIndicator:
    """Base class of indicators.

    A subclass is a frozen dataclass that sets `needs` and `quantity`, gives
    `threshold` a default and defines `measure`. Where an indicator is positive for
    two epochs in a row before it says so, it has a field `patience`.

    Attributes:
        threshold: bound of `measure`, in its unit.
        exclude: names of layers to leave out.
        id: short name; by default made of the class name.
        needs: statistics it reads: logs of Keras ("loss", "val_loss"), "objective",
            or columns such as "step_gradient/abs_mean" and
            "activation/constant_ratio". Only what some indicator needs is recorded.
        quantity: what `measure` returns, in words.
        advice: what to try when it is positive.
        fires: whether a value "above" or "below" the threshold is positive.
        stage: "early" (n <= E/2), "late" (n > E/2) or "any".
        min_epochs: smallest n at which it judges.
        benign: positive means that nothing is gained by going on, not that the
            training is bad.
    """

    threshold: float = math.nan
    exclude: tuple[str, ...] = ()

    id: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    quantity: ClassVar[str] = "value"
    advice: ClassVar[str] = ""
    fires: ClassVar[Literal["above", "below"]] = "above"
    stage: ClassVar[Literal["early", "late", "any"]] = "any"
    min_epochs: ClassVar[int] = 1
    benign: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "id" not in vars(cls):
            cls.id = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).upper()

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, int | float) or math.isnan(self.threshold):
            raise ValueError(f"`threshold` must be a number, got {self.threshold!r}.")
        if isinstance(self.exclude, str):
            raise ValueError(
                f"`exclude` must be a tuple of layer names, got {self.exclude!r}."
            )
        object.__setattr__(self, "exclude", tuple(self.exclude))

    def measure(self, trace: Trace) -> float:
        """The number of the last epoch of `trace`; `nan` where it has none yet.

        Args:
            trace: all that is known up to and including this epoch.
        """
        raise NotImplementedError

    def applies(self, trace: Trace) -> bool:
        """Whether the last epoch of `trace` is one at which to judge.

        Never at the last planned epoch, where nothing is left to save, and never
        on an epoch that a non-finite value broke off.
        """
        n, planned = trace.epoch, trace.max_epochs
        if not n or trace.partial or (planned is not None and n >= planned):
            return False
        if n < self.min_epochs:
            return False
        if self.stage == "early":
            # Early epochs of a resumed training were judged when they were trained.
            resumed = trace.header.initial_epoch > 0
            return n <= early_epochs(planned) and not resumed and not warming_up(trace)
        if self.stage == "late":
            return planned is not None and n > planned // 2
        return True

    def limit(self, trace: Trace) -> float:
        """The threshold in force for this trace."""
        return self.threshold

    def layer(self, trace: Trace) -> str | None:
        """The layer that stands out at the last epoch, where there is one."""
        return None

    @classmethod
    def describe(cls, value: float) -> str:
        """What `value` is, in words."""
        return cls.quantity

    def severity(self, trace: Trace) -> float:
        """How far the last epoch is over the threshold: 0 fires, in [-3, 3].

        The base-10 logarithm of measure per threshold, or of its inverse where
        small values are bad; `nan` where there is no measure.
        """
        value, limit = self.measure(trace), self.limit(trace)
        if math.isnan(value):
            return math.nan
        if value < 0 or limit <= 0:
            return SEVERITY_RANGE if self._beyond(value, limit) else -SEVERITY_RANGE
        with np.errstate(divide="ignore"):
            severity = float(np.log10(value) - np.log10(limit))
        severity = severity if self.fires == "above" else -severity
        return max(-SEVERITY_RANGE, min(SEVERITY_RANGE, severity))

    def __call__(self, trace: Trace) -> Finding | None:
        """Judges the last epoch of `trace`."""
        value = self._positive(trace)
        if value is None:
            return None
        earlier = trace
        for _ in range(self._patience(trace) - 1):
            previous = self._previous(earlier)
            if previous is None or self._positive(previous) is None:
                return None
            earlier = previous
        return Finding(
            indicator=self.id,
            epoch=trace.epoch,
            value=value,
            threshold=self.limit(trace),
            layer=self.layer(trace),
            advice=self.advice,
            quantity=self.describe(value),
        )

    def _positive(self, trace: Trace) -> float | None:
        """The measure where it is beyond the threshold, else `None`."""
        if not self.applies(trace):
            return None
        value = self.measure(trace)
        return value if self._beyond(value, self.limit(trace)) else None

    def _beyond(self, value: float, limit: float) -> bool:
        return value > limit if self.fires == "above" else value < limit

    def _patience(self, trace: Trace) -> int:
        # One epoch of doubt is a large share of a short early stage.
        patience = int(getattr(self, "patience", 1))
        return patience if early_epochs(trace.max_epochs) >= 4 else 1

    def _previous(self, trace: Trace) -> Trace | None:
        """The prefix that ends at the measurement before the last one."""
        return trace.prefix(len(trace) - 1) if len(trace) > 1 else None


def early_epochs(max_epochs: int | None) -> int:
    """Number of epochs of the early stage, half of the planned ones."""
    return EARLY_EPOCHS_WITHOUT_PLAN if max_epochs is None else max_epochs // 2


def window_epochs(max_epochs: int) -> int:
    """Window of the late indicators: 30 % of the planned epochs, in [4, 20].

    Example:
        >>> [window_epochs(planned) for planned in (5, 20, 100)]
        [4, 6, 20]
    """
    return min(max(round(0.3 * max_epochs), 4), 20)


def warmup_epochs(trace: Trace) -> int:
    """Leading epochs with a rising learning rate, or as many as were declared."""
    planned = trace.header.planned_learning_rates
    if len(planned) > trace.epoch:  # from the start of the first epoch on
        rising = _leading_rises(np.array(planned[: trace.epoch + 1]))
    else:
        # The rate at the start is not known: a rise shows in the second epoch.
        rising = _leading_rises(trace.scalar("learning_rate"))
        rising += rising > 0
    return max(rising, trace.header.warmup_epochs)


def _leading_rises(rates: np.ndarray) -> int:
    rises = np.diff(rates) > 0
    return len(rises) if rises.all() else int(np.argmin(rises))


def warming_up(trace: Trace) -> bool:
    """Whether the learning rate has only been rising up to the last epoch."""
    return trace.epoch <= warmup_epochs(trace)


def rise_ahead(trace: Trace) -> bool:
    """Whether the schedule will raise the learning rate after the last epoch."""
    ahead = np.array(trace.header.planned_learning_rates[trace.epoch :])
    return len(ahead) > 1 and bool(np.any(np.diff(ahead) > 0))


def losses(trace: Trace) -> np.ndarray:
    """Training losses from the first batch on: l0, l1 .. ln, [T + 1].

    Weight penalties are taken off where they are known, so that a shrinking
    penalty does not look like progress. l0 is `nan` when it is unknown.
    """
    penalties = np.nan_to_num(trace.scalar("regularization"))
    first = trace.scalar("first_batch_loss")[:1]
    if np.any(penalties[:1] > 0):
        first = first - trace.scalar("first_regularization")[:1]
    return np.concatenate([first, trace.scalar("loss") - penalties])


def loss_scale(values: np.ndarray) -> float:
    """D, the largest magnitude of the losses so far."""
    known = values[~np.isnan(values)]
    return float(np.max(np.abs(known))) if len(known) else math.nan


def progress(trace: Trace) -> float:
    """Share of the loss scale by which the training loss has fallen so far.

    1 for a loss that is negligible from the start: nothing is left to learn; and for
    a training that was resumed: it was found worth going on with.
    """
    if trace.header.initial_epoch > 0:
        return 1.0
    values = losses(trace)
    known = values[np.isfinite(values)]
    if not len(known):
        return math.nan
    scale = loss_scale(known)
    if scale < NEGLIGIBLE_LOSS:
        return 1.0
    return float((known[0] - np.min(known)) / scale)


def learned(trace: Trace, guard: float) -> bool:
    """Whether a training is spared for its progress, or because that is unknown.

    Args:
        trace: all that is known of it.
        guard: share of the loss scale; `inf` spares nothing.
    """
    return guard != math.inf and not progress(trace) < guard
