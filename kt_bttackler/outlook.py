"""The outlook of a training: whether it can still end better than a constant.

The loss of the best constant prediction (`course.trivial_loss`) is the yardstick: a
training that ends above it was for nothing, whatever happened on the way. Indicators
ask here whether that is to be expected (`hopeless`), and what the training loss will be
at the end of the plan (`expected_loss`).
"""

from __future__ import annotations

import math

import numpy as np

from kt_bttackler.course import (
    NEGLIGIBLE_LOSS,
    keeping_pace,
    last_known,
    losses,
    rate_rose,
    rise_ahead,
    trivial_loss,
    validation_losses,
    warming_up,
)
from kt_bttackler.trace import Trace

# Share of the plan before which nothing is foretold.
_EARLIEST = 0.2
# A loss is no better than a constant's above these multiples of it, in the first and in
# the second half of the plan. A plateau that ends, ends in the first half as a rule.
WORSE, NO_BETTER = 1.05, 0.99
# Validation targets are another sample, and may be of another time: the estimate from
# training labels is trusted to this many of its standard errors.
_ERRORS = 5
# Beyond this multiple of what the training began with, also a rising learning rate is
# no excuse.
_BLOWN_UP = 3.0
# A validation that begins above this multiple of the loss of a constant, and gets
# better while the training does, is of other data.
_FAR = 1.5
# Averages over the steps have caught up after so many times their length.
_CAUGHT_UP = 3
# What `hopeless` and `expected_loss` read.
OUTLOOK_NEEDS = frozenset(
    {
        "loss",
        "val_loss",
        "first_batch_loss",
        "regularization",
        "first_regularization",
        "learning_rate",
        "steps",
        "label/trivial_loss",
        "label/trivial_error",
        "model/averaging_steps",
    }
)


def block_epochs(max_epochs: int) -> int:
    """Epochs whose mean counts as one loss: 5 % of the plan, two or more.

    Example:
        >>> [block_epochs(planned) for planned in (5, 20, 100)]
        [2, 2, 5]
    """
    return max(2, max_epochs // 20)


def judged_losses(trace: Trace) -> np.ndarray:
    """The losses that the outlook is judged by, [T], without weight penalties.

    Those of the validation where the search goes by a loss. An accuracy may be good
    while the loss is not, so with another objective, or without a validation, they are
    the training losses. So are they while averages of normalisation layers, by which a
    validation goes, have not caught up with the weights.
    """
    by_loss = trace.header.objective in ("loss", "val_loss")
    checks = validation_losses(trace)
    taken = float(np.nansum(trace.scalar("steps")))
    settled = taken >= _CAUGHT_UP * trace.header.averaging_steps
    if not by_loss or not settled or not np.isfinite(checks[-1:]).all():
        return losses(trace)[1:]
    return checks


def _drifted(values: np.ndarray, constant: float, block: int) -> bool:
    """Whether the validation seems to be of another distribution.

    Its loss began far above that of the constant, and falls. What comes later in a time
    series can lie further from the training labels than any of these from another;
    then their constant is no yardstick, and a loss above it may be a good one.

    Args:
        values: one judged loss per epoch.
        constant: the loss of the best constant prediction for the training labels.
        block: epochs whose mean counts as one loss.
    """
    first, last = np.mean(values[:block]), np.mean(values[-block:])
    return bool(first > _FAR * constant and last < first)


def worst_bearable(
    trace: Trace, worse: float = WORSE, no_better: float = NO_BETTER
) -> float:
    """Multiple of the constant's loss above which a loss is no better than that.

    Args:
        trace: all that is known of the training.
        worse: the multiple in the first half of the plan, were the loss exact.
        no_better: the same in the second half, unless the training loss keeps its pace.
    """
    late = trace.epoch > (trace.max_epochs or 0) // 2
    limit = no_better if late and not keeping_pace(trace) else worse
    error = last_known(trace.scalar("label/trivial_error"))
    return limit + _ERRORS * error / trivial_loss(trace) if error > 0 else limit


def expected_loss(values: np.ndarray, left: int, block: int) -> float:
    """Where a falling curve will be after `left` epochs more.

    It goes on along the line through the means of its last two blocks; or, where it
    fell by a smaller share from the second last block to the last than in the block
    before, by that share again and again. Curves flatten, so that either is rather too
    low. A curve that does not fall stays where it is.

    Args:
        values: one loss per epoch.
        left: epochs.
        block: epochs whose mean counts as one loss.

    Returns:
        `nan` where there are fewer than two blocks.

    Example:
        >>> expected_loss(np.array([9.0, 8.0, 7.0, 6.0]), left=2, block=1)
        4.0
        >>> round(expected_loss(np.array([9.0, 5.0, 4.0]), left=1, block=1), 2)
        3.2
    """
    if len(values) < 2 * block:
        return math.nan
    starts = range(len(values) - block, -1, -block)
    means = [float(np.mean(values[start : start + block])) for start in starts]
    last, before = means[:2]
    if not last < before:
        return last
    ahead = (left + (block - 1) / 2) / block
    earlier = means[2] if len(means) > 2 else math.nan
    # An unknown mean compares as false.
    if last > 0 and last / before >= before / earlier:
        return float(last * (last / before) ** ahead)
    return last - (before - last) * ahead


def hopeless(trace: Trace, worse: float = WORSE, no_better: float = NO_BETTER) -> bool:
    """Whether the training will end no better than a constant prediction.

    It is when none of the last two blocks' losses was better, and the curve will not
    get there by the end of the plan. Not in the first 20 % of the plan, without one, on
    resumed trainings, nor while the learning rate rises or is to rise, unless the loss
    has blown up; nor where the training loss is below that of a constant and the
    validation, which began far above it, falls, too: it is of other data then. Where
    the loss of the constant is unknown nothing is foretold.

    Args:
        trace: all that is known of the training.
        worse: see `worst_bearable`.
        no_better: see there.

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
        >>> [prefix.epoch for prefix in trace.prefixes() if hopeless(prefix)]
        [7, 8, 9, 10, 11, 12]
    """
    planned, constant = trace.max_epochs, trivial_loss(trace)
    if planned is None or trace.header.initial_epoch > 0:
        return False
    block = block_epochs(planned)
    if trace.epoch < max(2 * block, _EARLIEST * planned) or len(trace) < 2 * block:
        return False
    if not constant > NEGLIGIBLE_LOSS:
        return False
    values = judged_losses(trace)
    recent = values[-2 * block :]
    if not np.isfinite(values[-3 * block :]).all():
        return False
    limit = worst_bearable(trace, worse, no_better) * constant
    if not np.min(recent) > limit:
        return False
    if losses(trace)[-1] < constant and _drifted(values, constant, block):
        return False
    if rate_rose(trace, 2 * block) or warming_up(trace) or rise_ahead(trace):
        first = np.nan_to_num(losses(trace)[0])
        if not np.min(recent) > _BLOWN_UP * max(abs(float(first)), constant):
            return False
    return expected_loss(values, planned - trace.epoch, block) > limit
