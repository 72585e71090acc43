"""The course of a training: its stage in the plan, its learning rate, its progress.

Indicators ask here where a training is (`early_epochs`, `warming_up`), what it has
learned (`progress`, `has_learned`) and whether it goes on improving (`improving`).
"""

from __future__ import annotations

import math

import numpy as np

from kt_bttackler.trace import Trace

# Early means the first epochs when the planned number is unknown (E is None).
EARLY_EPOCHS_WITHOUT_PLAN = 5
# A loss this small everywhere leaves nothing to learn.
NEGLIGIBLE_LOSS = 1e-12
# A training improves while its loss falls by this share of the first loss, and has
# learned when its loss lies the last of these shares below that of the best constant
# prediction, or, where that is unknown, the other below the first loss.
IMPROVEMENT = 0.05
LEARNED_FROM_FIRST = 0.1
LEARNED_FROM_TRIVIAL = 0.05
# A fall over two epochs that cannot be chance, as a share of the loss scale, and one
# that need not be when the second epoch brings more than the first.
TELLING_FALL = 0.01
TAKE_OFF = 0.002
# A fall keeps its pace while it is at least this share of the one before.
STEADY = 2 / 3
# What `improving`, `stalled` and `has_learned` read.
PROGRESS_NEEDS = frozenset(
    {
        "loss",
        "first_batch_loss",
        "regularization",
        "first_regularization",
        "learning_rate",
        "label/trivial_loss",
        "label/trivial_error",
    }
)


def early_epochs(max_epochs: int | None) -> int:
    """Number of epochs of the early stage, half of the planned ones."""
    return EARLY_EPOCHS_WITHOUT_PLAN if max_epochs is None else max_epochs // 2


def settling_epochs(max_epochs: int | None) -> int:
    """Epochs in which a training settles: 5 % of the planned ones, at least one.

    An unknown plan is taken for one of 100 epochs.

    Example:
        >>> [settling_epochs(planned) for planned in (5, 20, 100, None)]
        [1, 1, 5, 5]
    """
    return max(1, (100 if max_epochs is None else max_epochs) // 20)


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


def rate_rose(trace: Trace, length: int) -> bool:
    """Whether the learning rate rose within the last `length` epochs."""
    rates = trace.scalar("learning_rate")[-length:]
    return bool(np.any(np.diff(rates) > 0))


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


def validation_losses(trace: Trace) -> np.ndarray:
    """Validation losses without weight penalties, where these are known, [T]."""
    penalties = np.nan_to_num(trace.scalar("regularization"))
    return np.asarray(trace.scalar("val_loss") - penalties)


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

    It is when its loss has fallen by the share `guard`, or is on the way to do so by
    the end of the plan; while it is `falling` or `taking_off`; and in the first 5 % of
    a plan, which is for slow starters.

    Args:
        trace: all that is known of it.
        guard: share of the loss scale; `inf` spares nothing.
    """
    if guard == math.inf:
        return False
    planned = trace.max_epochs
    share = 1.0 if planned is None else min(1.0, trace.epoch / planned)
    if hasty(trace) or not progress(trace) < guard * share:
        return True
    return falling(trace) or taking_off(trace)


def taking_off(trace: Trace) -> bool:
    """Whether a slow start gathers speed.

    The training loss fell in both of the last two epochs, by more in the second, and
    by 0.2 % of the loss scale in all. A learning rate that is too small does not.
    """
    first, second = _last_falls(trace)
    return second > first > 0 and first + second >= TAKE_OFF


def falling(trace: Trace) -> bool:
    """Whether the training loss fell in both of the last two epochs, by 1 % in all.

    That is of the loss scale, and too much for chance. Where it comes down from an
    explosion it must be fast enough: by the share of the last epoch again and again it
    has to get below its beginning within the plan.
    """
    falls = _last_falls(trace)
    if not min(falls) > 0 or sum(falls) < TELLING_FALL:
        return False
    values = losses(trace)
    start, (before, last) = values[np.isfinite(values)][0], values[-2:]
    if last <= start or trace.max_epochs is None:
        return True
    left = trace.max_epochs - trace.epoch
    return bool(last > 0 and last * (last / before) ** left < start)


def _last_falls(trace: Trace) -> tuple[float, float]:
    """Falls of the loss in the last two epochs, per loss scale; 0 where unknown."""
    values = losses(trace)[1:][-3:]  # that of the first batch alone is too noisy
    if len(values) < 3 or not np.isfinite(values).all():
        return 0.0, 0.0
    scale = loss_scale(values)
    if scale < NEGLIGIBLE_LOSS:
        return 0.0, 0.0
    first, second = (float(fall) / scale for fall in -np.diff(values))
    return first, second


def keeping_pace(trace: Trace) -> bool:
    """Whether the training loss falls epoch by epoch, and does not slow down.

    It fell in each of the last epochs (5 % of the plan, at least six), in their newer
    half by at least two thirds of what it did in the older one; and at the newer pace
    it will fall by another 1 % of the loss scale within the plan. A plateau that ends
    looks like this; a net that settles on the best constant prediction slows down.
    """
    planned = trace.max_epochs
    if planned is None:
        return False
    # In long plans no more epochs than PLC waits for.
    half = max(6, settling_epochs(planned)) // 2
    values = losses(trace)[1:][-2 * half - 1 :]
    if len(values) < 2 * half + 1 or not np.isfinite(values).all():
        return False
    older, newer = values[0] - values[half], values[half] - values[-1]
    if not np.all(np.diff(values) < 0) or newer < STEADY * older:
        return False
    ahead = newer / half * (planned - trace.epoch)
    return bool(ahead >= TELLING_FALL * loss_scale(values))


def hasty(trace: Trace) -> bool:
    """Whether the first 5 % of a known plan have not passed yet."""
    planned = trace.max_epochs
    return planned is not None and trace.epoch < settling_epochs(planned)


def progress_epochs(max_epochs: int | None) -> int:
    """Epochs within which a training is asked to improve: 10 % of the plan, 5 or more.

    Example:
        >>> [progress_epochs(planned) for planned in (20, 100, None)]
        [5, 10, 5]
    """
    return max(5, (max_epochs or 0) // 10)


def brief_epochs(max_epochs: int | None) -> int:
    """The same for indicators that have waited already: 10 % of the plan, 2 or more."""
    return max(2, (max_epochs or 0) // 10)


def improving(trace: Trace, window: int | None = None) -> bool:
    """Whether the training loss fell by 5 % within the last epochs.

    It did when the best loss of the window lies that much below the best one before
    (less while there are fewer epochs than in the window: what counts is the pace), or
    when the last two losses lie that much below the two before (coming down from an
    explosion; swings come to nothing). The 5 % are of |l0|, or of the best loss before
    the window where that is less. What is unknown is taken for an improvement, and so
    is a resumed training.

    Args:
        trace: all that is known of the training.
        window: epochs; by default 10 % of the plan, at least five.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> curve = [2.3, 2.1, 1.9, 1.7] + 6 * [1.69]
        >>> trace = Trace(Header(max_epochs=20), [
        ...     Record(n, 1.0 * n, {"loss": loss}) for n, loss in enumerate(curve, 1)
        ... ])
        >>> [prefix.epoch for prefix in trace.prefixes() if not improving(prefix)]
        [9, 10]
    """
    values = losses(trace)
    values = values[np.isfinite(values)]
    if trace.header.initial_epoch > 0 or len(values) < 2:
        return True
    length = window or progress_epochs(trace.max_epochs)
    start = max(1, len(values) - length)
    before, recent = values[:start], values[start:]
    best = float(np.min(before))
    scale = min(abs(float(values[0])), abs(best))
    if scale < NEGLIGIBLE_LOSS:
        return True
    pace = len(recent) / length
    if best - np.min(recent) >= IMPROVEMENT * scale * pace:
        return True
    if len(values) < 4:
        return False
    return bool(np.mean(values[-4:-2]) - np.mean(values[-2:]) >= IMPROVEMENT * scale)


def stalled(trace: Trace, window: int | None = None) -> bool:
    """The progress gate: whether two successive epochs found no improvement.

    Both must lie behind the first 5 % of the plan and behind the warm-up of the
    learning rate, no rise of it may lie ahead, and the loss must not be taking off.
    `window` is that of `improving`.
    """
    settled = max(settling_epochs(trace.max_epochs), warmup_epochs(trace))
    if len(trace) < 2 or trace.epoch - 1 <= settled or rise_ahead(trace):
        return False
    if taking_off(trace):
        return False
    earlier = trace.prefix(len(trace) - 1)
    return not improving(trace, window) and not improving(earlier, window)


def has_learned(trace: Trace) -> bool:
    """Whether the recent losses show that something was learned, and kept.

    The best loss of the last 10 % of the plan (at least five epochs) lies 5 % below the
    loss of the best constant prediction, in doubt about which two of its errors count
    for the training; or, where that is unknown, 10 % of |l0| below l0. Unlike
    `progress` this forgets what an explosion has destroyed, and what it cost. Unknown
    counts as learned.
    """
    values = losses(trace)
    first = values[np.isfinite(values)][:1]
    recent = values[1:][-progress_epochs(trace.max_epochs) :]
    recent = recent[np.isfinite(recent)]
    if not len(first) or not len(recent) or trace.header.initial_epoch > 0:
        return True
    best, start, constant = float(np.min(recent)), float(first[0]), trivial_loss(trace)
    if constant > NEGLIGIBLE_LOSS:
        error = np.nan_to_num(last_known(trace.scalar("label/trivial_error")))
        return best <= (1 - LEARNED_FROM_TRIVIAL) * (constant + 2 * float(error))
    return start - best >= LEARNED_FROM_FIRST * abs(start)


def trivial_loss(trace: Trace) -> float:
    """The newest estimate of the best constant prediction's loss, or `nan`."""
    return last_known(trace.scalar("label/trivial_loss"))


def surely_trivial_loss(trace: Trace) -> float:
    """What the best constant prediction costs at least: two errors off the estimate."""
    error = last_known(trace.scalar("label/trivial_error"))
    return trivial_loss(trace) - (2 * error if error > 0 else 0.0)


def largest_known(values: np.ndarray) -> float:
    """The largest number among those that are one, else `nan`."""
    known = values[~np.isnan(values)]
    return float(np.max(known)) if len(known) else math.nan


def last_known(values: np.ndarray) -> float:
    """The last number of a column that is one, else `nan`."""
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else math.nan


def slope(values: np.ndarray) -> float:
    """Slope per epoch of the straight line that fits a curve best, `nan` of one value.

    Example:
        >>> slope(np.array([1.0, 2.0, 4.0]))
        1.5
    """
    epochs = np.arange(len(values)) - (len(values) - 1) / 2
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.divide(epochs @ values, epochs @ epochs))
