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

from kt_bttackler.course import early_epochs, settling_epochs, stalled, warming_up
from kt_bttackler.outlook import hopeless
from kt_bttackler.trace import Trace

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
        warning: it is no ground for stopping. Rules never see it.

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
    warning: bool = False

    def __str__(self) -> str:
        sign = "<" if self.value < self.threshold else ">"
        sign = ">=" if self.value == self.threshold else sign
        place = f", layer {self.layer}" if self.layer else ""
        return (
            f"{self.indicator} at epoch {self.epoch}: {self.quantity} "
            f"{self.value:.3g} {sign} {self.threshold:.3g}{place}"
            f"{' (warning)' if self.warning else ''}"
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
            columns such as "step_gradient/abs_mean" and "activation/constant_ratio",
            or fields of the header that describe the model ("model/outputs"). Only
            what some indicator needs is recorded.
        quantity: what `measure` returns, in words.
        advice: what to try when it is positive.
        fires: whether a value "above" or "below" the threshold is positive.
        stage: "start" (from n = 1 on, but not of a resumed training), "early" (n <=
            E/2), "settled" (after the warm-up and 5 % of the plan, at least one
            epoch), "late" (n > E/2) or "any".
        min_epochs: smallest n at which it judges.
        stopping: when a finding is a ground for stopping: "always", while the
            training is "stalled" (see `stalled`), or "never". Else it is a warning.
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
    stage: ClassVar[Literal["start", "early", "settled", "late", "any"]] = "any"
    min_epochs: ClassVar[int] = 1
    stopping: ClassVar[Literal["always", "stalled", "hopeless", "never"]] = "always"
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

    def measure_all(self, trace: Trace) -> np.ndarray:
        """`measure` of every prefix of `trace`, [T].

        An indicator may compute them together, which is quicker; `check_indicator`
        holds the two equal.

        Args:
            trace: all that is known of the training.
        """
        return np.array([self.measure(prefix) for prefix in trace.prefixes()])

    def suspects(self, trace: Trace) -> np.ndarray:
        """Where `measure` is beyond the limit, [T] of bool.

        At no other epoch can the indicator be positive: a replay asks it at these.
        Where rounding may decide, it is asked, too.

        Args:
            trace: all that is known of the training.
        """
        if type(self).measure_all is QualityIndicator.measure_all:
            return np.ones(len(trace), bool)  # asking measures one by one, too
        values = self.measure_all(trace).tolist()
        if type(self).limit is QualityIndicator.limit:
            limits = [self.threshold] * len(trace)
        else:
            limits = [self.limit(prefix) for prefix in trace.prefixes()]
        return np.array(
            [
                self._beyond(value, limit) or math.isclose(value, limit)
                for value, limit in zip(values, limits, strict=True)
            ],
            dtype=bool,
        )

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
        # Early epochs of a resumed training were judged when they were trained.
        resumed = trace.header.initial_epoch > 0
        if self.stage == "start":
            return not resumed
        if self.stage == "early":
            return n <= early_epochs(planned) and not resumed and not warming_up(trace)
        if self.stage == "settled":
            return n > settling_epochs(planned) and not warming_up(trace)
        if self.stage == "late":
            return planned is not None and n > planned // 2
        return True

    def stops(self, trace: Trace) -> bool:
        """Whether a finding at the last epoch is a ground for stopping.

        If not it is a warning: shown, but no rule sees it.
        """
        if self.stopping == "stalled":
            return stalled(trace)
        if self.stopping == "hopeless":
            return hopeless(trace)
        return self.stopping == "always"

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

    def explain(self, trace: Trace, value: float) -> str:
        """What `value` is at the last epoch, in words; may say more than `describe`."""
        return self.describe(value)

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
            if previous is None or not self._held(previous):
                return None
            earlier = previous
        return Finding(
            indicator=self.id,
            epoch=trace.epoch,
            value=value,
            threshold=self.limit(trace),
            layer=self.layer(trace),
            advice=self.advice,
            quantity=self.explain(trace, value),
            warning=not self.stops(trace),
        )

    def _positive(self, trace: Trace) -> float | None:
        """The measure where it is beyond the threshold, else `None`."""
        if not self.applies(trace):
            return None
        value = self.measure(trace)
        return value if self._beyond(value, self.limit(trace)) else None

    def _held(self, trace: Trace) -> bool:
        """Whether an earlier measurement counts for the patience."""
        return self._positive(trace) is not None

    def _beyond(self, value: float, limit: float) -> bool:
        return value > limit if self.fires == "above" else value < limit

    def _patience(self, trace: Trace) -> int:
        patience = int(getattr(self, "patience", 1))
        # One epoch of doubt is a large share of a short early stage. What may be a
        # warning need not hurry.
        hurried = self.stopping == "always" and early_epochs(trace.max_epochs) < 4
        return 1 if hurried else patience

    def _previous(self, trace: Trace) -> Trace | None:
        """The prefix that ends at the measurement before the last one."""
        return trace.prefix(len(trace) - 1) if len(trace) > 1 else None
