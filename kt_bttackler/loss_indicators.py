"""Indicators of the loss curve: PLC, ULC and NMG (BTTackler, KDD'24, section 4)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from kt_bttackler.course import (
    NEGLIGIBLE_LOSS,
    falling,
    hasty,
    keeping_pace,
    loss_scale,
    losses,
    rate_rose,
    rise_ahead,
    settling_epochs,
    stalled,
    surely_trivial_loss,
    taking_off,
    validation_losses,
    warmup_epochs,
    window_epochs,
)
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.trace import Trace

# A validation loss that falls by this share of D within an epoch is not passive.
_MOVING = 1e-3
# A loss above this multiple of that of a constant is no better than it.
_NO_BETTER = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassiveLossChanges(QualityIndicator):
    """PLC: the training loss does not move.

    Measures the mean |change| of the training loss from epoch to epoch, from the
    first batch on, per D, the largest |loss| so far. Needs two changes, and 5 % of the
    plan to lie behind: long plans are for slow starters. Not while the learning rate
    warms up or is still scheduled to rise; nor while the loss falls
    (`course.falling`), is about to (`course.taking_off`), or does so steadily
    (`course.keeping_pace`); nor where the validation loss, which is ahead of it, has
    just fallen by 1e-3 D.

    With `gap="median"` an explosion no longer hides a flat curve: the median |change|
    per |l0|, over steps of 5 % of the plan (at least an epoch), so that long trainings
    are not asked to hurry. A curve that fell at once and has been flat since is flat,
    too: `progress_guard` spares it, as its median loss lies below l0. And the training
    must have stalled: two epochs, after the first 5 % of the plan, in which the loss
    had not fallen by 5 % within the last 10 % of the plan (at least five epochs). A
    loss that lies 1 % below that of the best constant prediction is spared, too: what
    crawls along a plateau there is learning.

    Do not use on losses with a large constant offset.

    Attributes:
        threshold: share of D, 1e-3; of |l0| with `gap="median"`.
        gap: "mean" or "median".
        progress_guard: with `gap="median"`, share of |l0|; a net whose losses lie this
            far below l0 is not stopped. `inf` switches off this guard and those of a
            falling loss.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> stuck = [2.3026, 2.3027, 2.3025]
        >>> trace = Trace(Header(max_epochs=10), [
        ...     Record(n, 1.0 * n, {"loss": loss, "first_batch_loss": 2.303})
        ...     for n, loss in enumerate(stuck, 1)
        ... ])
        >>> indicator = PassiveLossChanges()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, True, True]
        >>> print(indicator(trace))
        PLC at epoch 3: mean change of the loss 0.000101 < 0.001
    """

    id = "PLC"
    needs = frozenset(
        {
            "loss",
            "val_loss",
            "first_batch_loss",
            "learning_rate",
            "regularization",
            "first_regularization",
        }
    )
    quantity = "mean change of the loss"
    advice = (
        "raise the learning rate, check that the loss fits the output and the "
        "labels, and that the optimizer reaches every layer"
    )
    fires = "below"
    stage = "early"
    min_epochs = 2
    threshold: float = 1e-3
    gap: Literal["mean", "median"] = "mean"
    progress_guard: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gap not in ("mean", "median"):
            raise ValueError(f"`gap` must be 'mean' or 'median', got {self.gap!r}.")
        if self.gap == "median":
            # Labels are looked at by those who ask for them only.
            labels = {"label/trivial_loss", "label/trivial_error"}
            object.__setattr__(self, "needs", self.needs | labels)

    def applies(self, trace: Trace) -> bool:
        """In the early stage, unless the learning rate is still to rise."""
        if not super().applies(trace) or hasty(trace) or rise_ahead(trace):
            return False
        return not self._spared(trace)

    def measure(self, trace: Trace) -> float:
        """Mean |change| per D, or median per |l0|; `nan` before two changes."""
        return self._change(self._values(trace), trace.max_epochs)

    def measure_all(self, trace: Trace) -> np.ndarray:
        """`measure` of every prefix, [T]."""
        known = losses(trace)
        if warmup_epochs(trace) or trace.header.planned_learning_rates:
            return super().measure_all(trace)  # each prefix has a warm-up of its own
        start = int(np.isnan(known[:1]).any())
        return np.array(
            [
                self._change(known[start : n + 1], trace.max_epochs)
                for n in range(1, len(known))
            ]
        )

    def _change(self, values: np.ndarray, max_epochs: int | None) -> float:
        if len(values) < 3 or not np.all(np.isfinite(values)):
            return math.nan
        if self.gap == "mean":
            scale, gap = loss_scale(values), float(np.mean(np.abs(np.diff(values))))
        else:
            steps = values[:: -settling_epochs(max_epochs)]
            if len(steps) < 3:
                return math.nan
            scale, gap = abs(values[0]), float(np.median(np.abs(np.diff(steps))))
        return math.nan if scale < NEGLIGIBLE_LOSS else float(gap / scale)

    def explain(self, trace: Trace, value: float) -> str:
        """Says which gap was measured."""
        return f"{self.gap} change of the loss"

    def _values(self, trace: Trace) -> np.ndarray:
        # What is flat while the rate warms up says nothing.
        values = losses(trace)[warmup_epochs(trace) :]
        return values[1:] if np.isnan(values[:1]).any() else values

    def _spared(self, trace: Trace) -> bool:
        if self.progress_guard == math.inf:
            return False
        if falling(trace) or taking_off(trace) or keeping_pace(trace):
            return True
        if self.gap == "mean":
            return self._validation_falls(trace)
        values = self._values(trace)
        if len(values) < 2 or not stalled(trace):
            return True
        if float(np.min(values[1:])) < _NO_BETTER * surely_trivial_loss(trace):
            return True
        fall = float(values[0] - np.median(values[1:]))
        return not fall < self.progress_guard * abs(float(values[0]))

    def _validation_falls(self, trace: Trace) -> bool:
        # It is ahead of the training loss, which is the mean over an epoch.
        checks = validation_losses(trace)[-2:]
        if len(checks) < 2:
            return False
        fall = float(checks[0] - checks[1])
        return fall >= _MOVING * loss_scale(self._values(trace))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnexpectedLossChanges(QualityIndicator):
    """ULC: late in the training the loss still jumps, and it rises.

    Over the last 30 % of the planned epochs (at least 4, at most 20) measures the
    standard deviation of the training loss per mean |loss| of the window, where the
    line fitted through the window rises by at least `rise`; 0 where it does not.
    Not while the learning rate rose inside the window (restarts, cycles), not on a
    resumed training, whose largest loss is unknown, and not where the window keeps
    half of what there was to learn (`progress_guard`): a good training may stumble.

    Do not use with losses that are resampled every epoch, as in adversarial nets.

    Attributes:
        threshold: share of the mean |loss|, 0.2.
        rise: rise of the fitted line over the window, as a share, 0.05.
        progress_guard: share of D by which the mean loss of the window lies below the
            first loss for the training to be spared. `inf` spares nothing.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> curve = [2.0, 1.0, 0.8, 0.7, 0.6, 1.0, 0.9, 1.6, 1.2]
        >>> trace = Trace(Header(max_epochs=10), [
        ...     Record(n, 1.0 * n, {"loss": loss}) for n, loss in enumerate(curve, 1)
        ... ])
        >>> indicator = UnexpectedLossChanges()
        >>> [p.epoch for p in trace.prefixes() if indicator(p)]
        [8, 9]
        >>> print(indicator(trace.prefix(8)))
        ULC at epoch 8: spread of a rising loss 0.354 > 0.2
    """

    id = "ULC"
    needs = frozenset({"loss", "first_batch_loss", "learning_rate"})
    quantity = "spread of a rising loss"
    advice = "lower the learning rate or let it decay, or use larger batches"
    stage = "late"
    threshold: float = 0.2
    rise: float = 0.05
    progress_guard: float = 0.5

    def applies(self, trace: Trace) -> bool:
        """Late in a training that has not kept what it learned."""
        return super().applies(trace) and not self._spared(trace)

    def _spared(self, trace: Trace) -> bool:
        window, values = _window(trace, "loss"), losses(trace)
        known = values[np.isfinite(values)]
        if self.progress_guard == math.inf or window is None or not len(known):
            return False
        kept = float(known[0] - np.mean(window))
        return kept >= self.progress_guard * loss_scale(known)

    def measure(self, trace: Trace) -> float:
        """Spread of the window where it rises, 0 where not; `nan` before."""
        window = _window(trace, "loss")
        resumed = trace.header.initial_epoch > 0
        if window is None or resumed or rate_rose(trace, len(window)):
            return math.nan
        scale = max(float(np.mean(np.abs(window))), 0.1 * loss_scale(losses(trace)))
        if scale < NEGLIGIBLE_LOSS:
            return math.nan
        return self._spread(window, scale)

    def measure_all(self, trace: Trace) -> np.ndarray:
        """`measure` of every prefix, [T]."""
        values = np.full(len(trace), math.nan)
        if trace.max_epochs is None or trace.header.initial_epoch > 0:
            return values
        length = window_epochs(trace.max_epochs)
        curve, known = trace.scalar("loss"), losses(trace)
        rose = np.diff(trace.scalar("learning_rate")) > 0
        for n in range(length, len(trace) + 1):
            window = curve[n - length : n]
            if not np.isfinite(window).all() or rose[n - length : n - 1].any():
                continue
            mean = float(np.mean(np.abs(window)))
            scale = max(mean, 0.1 * loss_scale(known[: n + 1]))
            if scale >= NEGLIGIBLE_LOSS:
                values[n - 1] = self._spread(window, scale)
        return values

    def _spread(self, window: np.ndarray, scale: float) -> float:
        """Spread per scale of a window that rises, else 0."""
        # The slope of the line of least squares.
        places = np.arange(len(window)) - (len(window) - 1) / 2
        slope = float(np.dot(places, window) / np.dot(places, places))
        if slope * (len(window) - 1) / scale < self.rise:
            return 0.0
        return float(np.std(window)) / scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoMoreGain(QualityIndicator):
    """NMG: late in the training, the best loss is long past. Benign.

    Measures the age of the best training loss in windows: 1 when none of the last
    30 % of the planned epochs (at least 4, at most 20) reached it. The objective
    must not have improved in the window either. The trial is ended as completed,
    with its best score: it stays a candidate for the best.

    Do not use with learning-rate restarts that come back late.

    Attributes:
        threshold: windows, 1; positive from there on.
        require_objective: ask the objective too. The paper does not.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> curve = [2.0, 1.0, 0.6, 0.5, 0.4, 0.5, 0.5, 0.5, 0.5]
        >>> trace = Trace(Header(max_epochs=10), [
        ...     Record(n, 1.0 * n, {"loss": loss, "objective": loss})
        ...     for n, loss in enumerate(curve, 1)
        ... ])
        >>> indicator = NoMoreGain()
        >>> [p.epoch for p in trace.prefixes() if indicator(p)]
        [9]
        >>> print(indicator(trace))
        NMG at epoch 9: age of the best loss in windows 1 >= 1
    """

    id = "NMG"
    needs = frozenset({"loss", "objective"})
    quantity = "age of the best loss in windows"
    advice = "plan fewer epochs, or let the learning rate decay earlier"
    stage = "late"
    benign = True
    threshold: float = 1.0
    require_objective: bool = True

    def measure(self, trace: Trace) -> float:
        """Age of the best loss in windows, 0 while the objective gains."""
        window = _window(trace, "loss")
        if window is None or len(trace) <= len(window):
            return math.nan
        values = trace.scalar("loss")
        if not np.all(np.isfinite(values)):
            return math.nan
        if self.require_objective:
            gained = _objective_gained(trace, len(window))
            if gained is None:
                return math.nan
            if gained:
                return 0.0
        newest_best = len(values) - 1 - int(np.argmin(values[::-1]))
        return (len(values) - 1 - newest_best) / len(window)

    def measure_all(self, trace: Trace) -> np.ndarray:
        """`measure` of every prefix, [T]."""
        ages = np.full(len(trace), math.nan)
        if trace.max_epochs is None:
            return ages
        length = window_epochs(trace.max_epochs)
        values = trace.scalar("loss")
        known = np.logical_and.accumulate(np.isfinite(values))
        best = np.minimum.accumulate(values)
        places = np.arange(len(values))
        newest = np.maximum.accumulate(np.where(values == best, places, 0))
        ages = np.where(known, (places - newest) / length, math.nan)
        if self.require_objective:
            sign = -1.0 if trace.header.direction == "max" else 1.0
            goals = sign * trace.scalar("objective")
            ages[~np.logical_and.accumulate(np.isfinite(goals))] = math.nan
            lowest = np.minimum.accumulate(goals)
            # Falling since the window began is having gained within it.
            gained = np.zeros(len(goals), bool)
            gained[length:] = lowest[length:] < lowest[:-length]
            ages[gained & ~np.isnan(ages)] = 0.0
        ages[:length] = math.nan
        return ages

    def _beyond(self, value: float, limit: float) -> bool:
        return value >= limit  # the age is a whole number of epochs


def _window(trace: Trace, name: str) -> np.ndarray | None:
    """The last window of a finite curve, or `None` before it is full."""
    if trace.max_epochs is None:
        return None
    length = window_epochs(trace.max_epochs)
    values = trace.scalar(name)[-length:]
    if len(values) < length or not np.all(np.isfinite(values)):
        return None
    return values


def _objective_gained(trace: Trace, length: int) -> bool | None:
    """Whether the best objective lies in the last `length` epochs."""
    sign = -1.0 if trace.header.direction == "max" else 1.0
    values = sign * trace.scalar("objective")
    if not np.all(np.isfinite(values)):
        return None
    return bool(np.min(values[-length:]) < np.min(values[:-length]))
