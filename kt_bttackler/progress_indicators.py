"""Indicators of how far a training gets: from NO_PROGRESS to OVERFIT."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from kt_bttackler.course import (
    LEARNED_FROM_TRIVIAL,
    NEGLIGIBLE_LOSS,
    PROGRESS_NEEDS,
    brief_epochs,
    has_learned,
    last_known,
    losses,
    progress_epochs,
    rate_rose,
    rise_ahead,
    settling_epochs,
    slope,
    stalled,
    trivial_loss,
)
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.outlook import (
    OUTLOOK_NEEDS,
    block_epochs,
    expected_loss,
    hopeless,
    judged_losses,
)
from kt_bttackler.trace import Trace

# Losses are compared with themselves, but with no less than this share of the first.
_LEAST_SCALE = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoProgress(QualityIndicator):
    """NO_PROGRESS: the training is no better than a constant prediction.

    Measures the smallest training loss so far per that of the best constant prediction
    (the entropy of the labels for cross-entropies, their spread for squared and
    absolute errors); at a quarter of the plan, at the third epoch or later, where the
    loss has not fallen by 5 % within the last 10 % of the plan (at least two epochs)
    for two epochs in a row. Not while the learning rate warms up or is to rise, nor
    without a plan, nor on resumed trainings, nor where the loss, as it falls, will lie
    5 % below that of the constant by the end of the plan (dropout raises it, a small
    rate lowers it slowly). At the second epoch it would have stopped good trainings of
    a recorded search, at the third none.

    The loss of the constant is an estimate from a sample of labels. Where it is not
    exact, as for regression, a loss close to it may mean a low signal that is being
    learned: then the loss must be higher than the estimate by twice its error, or the
    outputs must hardly vary (`constant_spread`).

    Where that loss cannot be computed (several outputs, sample weights, a loss of one's
    own), measures 1 minus the share by which the loss has fallen from that of the first
    batch, or of the first epoch where that was higher.

    Attributes:
        threshold: smallest loss per that of a constant, 0.99.
        constant_spread: spread of the outputs per spread of the targets (or range of
            the head) below which they count as constant, 0.05.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> trace = Trace(Header(max_epochs=12), [
        ...     Record(n, 1.0 * n, {"loss": loss, "label/trivial_loss": 2.303})
        ...     for n, loss in enumerate([2.35, 2.32, 2.31, 2.305], 1)
        ... ])
        >>> indicator = NoProgress()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, False, True, True]
        >>> print(indicator(trace))
        NO_PROGRESS at epoch 4: smallest loss per that of a constant 1 > 0.99
    """

    id = "NO_PROGRESS"
    needs = PROGRESS_NEEDS | {"label/trivial_error", "output/spread"}
    quantity = "smallest loss per that of a constant"
    advice = (
        "raise the learning rate (or lower it, if the loss has jumped), check that "
        "inputs are scaled and labels belong to them, and that output and loss fit"
    )
    threshold: float = 0.99
    constant_spread: float = 0.05

    def applies(self, trace: Trace) -> bool:
        """From a quarter of the plan on, while the training is stalled."""
        planned = trace.max_epochs
        if not super().applies(trace) or planned is None:
            return False
        due = trace.epoch >= max(3, planned / 4)
        if not due or not stalled(trace, brief_epochs(planned)):
            return False
        left = planned - trace.epoch
        end = expected_loss(losses(trace)[1:], left, block_epochs(planned))
        # What is unknown compares as false.
        return not end <= (1 - LEARNED_FROM_TRIVIAL) * trivial_loss(trace)

    def measure(self, trace: Trace) -> float:
        """Smallest loss per that of a constant, or per the first; `nan` without."""
        values = losses(trace)
        if len(values) < 2 or not np.all(np.isfinite(values[1:])):
            return math.nan
        best, constant = float(np.min(values[1:])), trivial_loss(trace)
        if not math.isnan(constant):
            return best / constant if constant > NEGLIGIBLE_LOSS else math.nan
        # The loss of a single batch may be low by chance.
        first = float(np.nanmax(values[:2]))
        if abs(first) < NEGLIGIBLE_LOSS:
            return math.nan
        return 1 - (first - best) / abs(first)

    def limit(self, trace: Trace) -> float:
        """The threshold, higher by two errors unless the outputs are constant."""
        error = last_known(trace.scalar("label/trivial_error"))
        constant = last_known(trace.scalar("output/spread")) < self.constant_spread
        if constant or not error > 0:
            return self.threshold
        return self.threshold * (1 + 2 * error / trivial_loss(trace))

    def explain(self, trace: Trace, value: float) -> str:
        """Says what the loss was compared with."""
        known = not math.isnan(trivial_loss(trace))
        return self.quantity if known else "smallest loss per first loss"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossNotDecreasing(QualityIndicator):
    """LOSS_NOT_DECREASING: the loss has not fallen since the first epochs.

    Measures the share by which the smallest training loss of the last 10 % of the plan
    (at least five epochs) lies below that at the end of the first 5 % (at least an
    epoch), where the loss is still above `trivial_share` of that of the best constant
    prediction, or of the first batch where that is unknown. Not while the learning rate
    warms up.

    A warning that supports other findings; in the second half of the plan a ground for
    stopping alone, while the training is stalled and has learned nothing. Sources:
    SageMaker Debugger, DeepDiagnosis, AUTOTRAINER (slow convergence).

    Attributes:
        threshold: share of the loss, 0.01.
        trivial_share: share of the loss of a constant, 0.5.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> trace = Trace(Header(max_epochs=12), [
        ...     Record(n, 1.0 * n, {"loss": 2.3, "label/trivial_loss": 2.303})
        ...     for n in range(1, 9)
        ... ])
        >>> indicator = LossNotDecreasing()
        >>> print([prefix.epoch for prefix in trace.prefixes() if indicator(prefix)])
        [6, 7, 8]
        >>> print(indicator(trace.prefix(6)))  # doctest: +NORMALIZE_WHITESPACE
        LOSS_NOT_DECREASING at epoch 6: fall of the loss since the first epochs
        0 < 0.01 (warning)
        >>> indicator(trace).warning
        False
    """

    id = "LOSS_NOT_DECREASING"
    needs = PROGRESS_NEEDS
    quantity = "fall of the loss since the first epochs"
    advice = (
        "change the learning rate, check that the labels belong to the inputs, and "
        "that output and loss fit"
    )
    fires = "below"
    stage = "settled"
    stopping = "stalled"
    threshold: float = 0.01
    trivial_share: float = 0.5

    def measure(self, trace: Trace) -> float:
        """Share of the fall; `nan` before there are enough epochs, or when low."""
        values = losses(trace)
        start = settling_epochs(trace.max_epochs)
        window = progress_epochs(trace.max_epochs)
        if len(trace) < start + window or trace.header.initial_epoch > 0:
            return math.nan
        if not np.all(np.isfinite(values[start:])):
            return math.nan
        constant = trivial_loss(trace)
        reference = abs(float(values[0])) if math.isnan(constant) else constant
        # An unknown reference compares as false.
        if not values[-1] > self.trivial_share * reference:
            return math.nan
        if abs(values[start]) < NEGLIGIBLE_LOSS:
            return math.nan
        fall = values[start] - np.min(values[-window:])
        return float(fall / abs(values[start]))

    def stops(self, trace: Trace) -> bool:
        """Whether it is late in a stalled training that has learned nothing."""
        planned = trace.max_epochs
        if planned is None or trace.epoch <= planned // 2:
            return False
        return super().stops(trace) and not has_learned(trace)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overfit(QualityIndicator):
    """OVERFIT: the validation loss rises while the training loss falls.

    Measures by how much the validation loss lies above its minimum, per minimum (at
    least 5 % of the first loss), where the minimum is 10 % of the plan old (at least
    five epochs) and the training loss has fallen by `fall` since; 0 where not. In the
    second half of the plan, in two epochs in a row. Sources: UMLAUT and SageMaker
    Debugger, whose tests of one epoch mostly find noise.

    A warning: the best epoch may be a good one. A ground for stopping where the
    validation loss will end above that of a constant prediction (`outlook.hopeless`):
    then at any time, from `beyond_repair` on, and two blocks of 5 % of the plan (at
    least four epochs) are old enough.

    Attributes:
        threshold: share of the smallest validation loss, 0.1.
        beyond_repair: the same in a hopeless training, 0.02.
        fall: share of the training loss, 0.02.
        patience: epochs in a row.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> trace = Trace(Header(max_epochs=20), [
        ...     Record(n, 1.0 * n, {"loss": 2 / n, "val_loss": 1 + 0.05 * abs(n - 6)})
        ...     for n in range(1, 17)
        ... ])
        >>> indicator = Overfit()
        >>> [prefix.epoch for prefix in trace.prefixes() if indicator(prefix)]
        [12, 13, 14, 15, 16]
        >>> print(indicator(trace.prefix(12)))  # doctest: +NORMALIZE_WHITESPACE
        OVERFIT at epoch 12: rise of the validation loss above its minimum
        0.3 > 0.1 (warning)
    """

    id = "OVERFIT"
    needs = PROGRESS_NEEDS | OUTLOOK_NEEDS
    quantity = "rise of the validation loss above its minimum"
    advice = (
        "stop at the best epoch (EarlyStopping with `restore_best_weights=True`), "
        "regularise (dropout, weight decay), augment the data, or use a smaller model"
    )
    stopping = "hopeless"
    threshold: float = 0.1
    beyond_repair: float = 0.02
    fall: float = 0.02
    patience: int = 2

    def applies(self, trace: Trace) -> bool:
        """In the second half of the plan, or in a hopeless training."""
        planned = trace.max_epochs
        if not super().applies(trace) or planned is None:
            return False
        return trace.epoch > planned // 2 or hopeless(trace)

    def limit(self, trace: Trace) -> float:
        """The threshold, lower where nothing can be repaired."""
        return self.beyond_repair if hopeless(trace) else self.threshold

    def measure(self, trace: Trace) -> float:
        """Rise per minimum, 0 without a fall of the training loss."""
        values, checks = losses(trace), trace.scalar("val_loss")
        training = values[1:]
        if not len(checks) or not np.all(np.isfinite([training, checks])):
            return math.nan
        first = values[0] if math.isfinite(values[0]) else training[0]
        least = max(_LEAST_SCALE * abs(float(first)), NEGLIGIBLE_LOSS)
        best = len(checks) - 1 - int(np.argmin(checks[::-1]))
        age = progress_epochs(trace.max_epochs)
        if hopeless(trace):
            age = min(age, 2 * block_epochs(trace.max_epochs or 0))
        if len(checks) - 1 - best < age:
            return 0.0
        fallen = training[best] - np.min(training[best:])
        if fallen < self.fall * max(abs(training[best]), least):
            return 0.0
        return float((checks[-1] - checks[best]) / max(abs(checks[best]), least))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oscillation(QualityIndicator):
    """OSCILLATION: the loss goes up and down and gets nowhere.

    Measures the mean |change| of the training loss over the last `window` epochs per
    mean |loss| (at least 5 % of the first loss), where `turns` of the changes turn
    round and the line fitted through the window does not fall; 0 where not. In the
    second half of the plan, and not while the learning rate rose inside the window
    (restarts, cycles).

    A warning; a ground for stopping where the training will end no better than a
    constant prediction (`outlook.hopeless`), or where the losses that count for that
    swing by more than `lost_gain` of what they are better than a constant's: then
    chance decides how good the last epoch is. Sources: AUTOTRAINER, TheDeepChecker,
    BTTackler.

    Attributes:
        threshold: share of the loss, 0.05.
        turns: share of the changes, 0.6.
        window: epochs, 10.
        lost_gain: mean |change| per mean gain over a constant, 0.5.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> trace = Trace(Header(max_epochs=20), [
        ...     Record(n, 1.0 * n, {"loss": 2.0 + 0.2 * (-1) ** n})
        ...     for n in range(1, 14)
        ... ])
        >>> indicator = Oscillation()
        >>> [prefix.epoch for prefix in trace.prefixes() if indicator(prefix)]
        [12]
        >>> print(indicator(trace.prefix(12)))
        OSCILLATION at epoch 12: mean swing of the loss 0.2 > 0.05 (warning)
    """

    id = "OSCILLATION"
    needs = PROGRESS_NEEDS | OUTLOOK_NEEDS
    quantity = "mean swing of the loss"
    advice = "lower the learning rate or let it decay, or use larger batches"
    stage = "late"
    stopping = "hopeless"
    threshold: float = 0.05
    turns: float = 0.6
    window: int = 10
    lost_gain: float = 0.5

    def stops(self, trace: Trace) -> bool:
        """Whether the training is hopeless, or what it gains is lost in its swings."""
        if trace.header.initial_epoch > 0 or rise_ahead(trace):
            return False
        recent = judged_losses(trace)[-self.window :]
        gain = trivial_loss(trace) - float(np.mean(recent))
        swing = float(np.mean(np.abs(np.diff(recent))))
        # What is unknown compares as false.
        return super().stops(trace) or swing > self.lost_gain * max(gain, 0.0)

    def measure(self, trace: Trace) -> float:
        """Mean |change| per mean |loss|, 0 where the loss falls or runs straight."""
        values = losses(trace)
        window = values[1:][-self.window :]
        if len(window) < self.window or not np.all(np.isfinite(window)):
            return math.nan
        if rate_rose(trace, self.window):
            return math.nan
        first = abs(float(values[0])) if math.isfinite(values[0]) else 0.0
        scale = max(float(np.mean(np.abs(window))), _LEAST_SCALE * first)
        if scale < NEGLIGIBLE_LOSS:
            return math.nan
        changes = np.diff(window)
        turning = float(np.mean(changes[:-1] * changes[1:] < 0))
        if turning < self.turns or slope(window) < 0:
            return 0.0
        return float(np.mean(np.abs(changes))) / scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegulariserDominates(QualityIndicator):
    """REGULARISER_DOMINATES: the loss is hardly more than its weight penalties.

    Measures the share of weight penalties in the training loss where that share rises,
    0 where not; in two epochs in a row, after 5 % of the plan (at least an epoch). A
    warning: the share also rises as a net learns. Source: TheDeepChecker.

    Attributes:
        threshold: share of the loss, 0.9.
        patience: epochs in a row.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> trace = Trace(Header(max_epochs=20), [
        ...     Record(n, 1.0 * n, {"loss": 20.0 + n, "regularization": 19.0 + n})
        ...     for n in (1, 2, 3)
        ... ])
        >>> indicator = RegulariserDominates()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [False, False, True]
        >>> print(indicator(trace))  # doctest: +NORMALIZE_WHITESPACE
        REGULARISER_DOMINATES at epoch 3: rising share of penalties in the loss
        0.957 > 0.9 (warning)
    """

    id = "REGULARISER_DOMINATES"
    needs = frozenset({"loss", "regularization", "learning_rate"})
    quantity = "rising share of penalties in the loss"
    advice = "use smaller weight penalties (the factor of `L1` and `L2`)"
    stage = "settled"
    stopping = "never"
    threshold: float = 0.9
    patience: int = 2

    def measure(self, trace: Trace) -> float:
        """Share of the penalties where it rises; `nan` before two epochs."""
        totals = trace.scalar("loss")[-2:]
        penalties = trace.scalar("regularization")[-2:]
        if len(totals) < 2 or not np.all(np.isfinite([totals, penalties])):
            return math.nan
        if np.any(totals <= 0):
            return math.nan
        before, now = penalties / totals
        return float(now) if now > before else 0.0
