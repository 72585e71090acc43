"""Statistics of gradients: which steps are sampled, and what is kept of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from kt_bttackler import stats
from kt_bttackler.taps import Gradients, GradientTap

SAMPLED_STEPS = 10
# Statistics are written with the digits that float32 tensors have.
_SIGNIFICANT_DIGITS = 7
_ABS_MEAN = stats.SAMPLE.index("abs_mean")
_FINITE = stats.SAMPLE.index("finite")

Columns = dict[str, tuple[float, ...]]
Submit = Callable[..., "Future[Any]"]


class GradientMeter:
    """Reduces the gradients of one training, epoch by epoch.

    Args:
        tap: where gradients come from.
        submit: runs a reduction now or later, in order.
        per_epoch: sample once at the end of an epoch, not in the steps.
    """

    def __init__(self, tap: GradientTap, submit: Submit, *, per_epoch: bool) -> None:
        self.tap = tap
        self._submit = submit
        self._per_epoch = per_epoch
        self._schedule = SampledSteps(None)
        self._epoch = _Epoch()

    def begin_epoch(self, steps: int | None) -> None:
        """Starts an epoch of `steps` steps, `None` when unknown."""
        self._schedule = SampledSteps(steps)
        # Another one: a worker may still fill that of the epoch before.
        self._epoch = _Epoch()

    def end_step(self, step: int) -> Future[bool] | None:
        """Samples the gradients when it is their turn.

        Args:
            step: number of the step within the epoch, from 0.

        Returns:
            Whether they were finite, once that is known; `None` when it is not
            their turn.
        """
        if self._per_epoch or not self._schedule.due(step):
            return None
        return self._take(self.tap.gradients(), summarize=self._schedule.before_last)

    def end_epoch(self, steps: int) -> Future[Columns]:
        """Columns of an epoch that had `steps` steps; empty without gradients."""
        last = self.tap.gradients()
        if self._per_epoch or self._schedule.last != steps - 1:
            self._take(last, summarize=False)
        return self._submit(_columns, self._epoch, last)

    def finite_so_far(self) -> Columns:
        """Finiteness of the gradients sampled in the running epoch."""
        if not self._epoch.samples:
            return {}
        finite = np.array(self._epoch.samples)[:, :, _FINITE]
        return {"step_gradient/finite": rounded(_over_steps(np.nanmean, finite))}

    def _take(self, gradients: Gradients, *, summarize: bool) -> Future[bool]:
        rows = self.tap.batch_size()
        return self._submit(_reduce, self._epoch, gradients, rows, summarize)


@dataclasses.dataclass
class _Epoch:
    """What was sampled in one epoch.

    Attributes:
        samples: statistics of each sampled step, [V, S].
        rows: rows of the batch of each sampled step, `None` where unknown.
        summary: statistics of the last but one step, [V, S].
    """

    samples: list[np.ndarray] = dataclasses.field(default_factory=list)
    rows: list[int | None] = dataclasses.field(default_factory=list)
    summary: np.ndarray | None = None


def _reduce(
    epoch: _Epoch, gradients: Gradients, rows: int | None, summarize: bool
) -> bool:
    """Adds a sampled step to its epoch; returns whether all of it is finite."""
    sample = np.array([_sample(gradient) for gradient in gradients])
    if not len(sample) or np.isnan(sample).all():
        return True
    epoch.samples.append(sample)
    epoch.rows.append(rows)
    # The last batch may be a small one; what it leaves is then too noisy for the
    # statistics of the epoch, and those of the step before it are kept.
    if summarize and rows is not None:
        epoch.summary = _summary(gradients)
    return not np.any(sample[:, _FINITE] == 0)


def _columns(epoch: _Epoch, last: Gradients) -> Columns:
    """The columns of an epoch whose newest gradients are `last`."""
    if not epoch.samples:
        return {}
    values = np.array(epoch.samples)
    # All are whole where the sizes of the batches are unknown.
    sizes = np.array([0 if size is None else size for size in epoch.rows])
    whole = sizes == sizes.max()
    summary = epoch.summary
    if summary is None or whole[-1]:
        summary = _summary(last)
    kept = values[whole]
    columns = {
        f"step_gradient/{name}": _over_steps(np.nanmean, kept[:, :, k])
        for k, name in enumerate(stats.SAMPLE)
    }
    columns["step_gradient/abs_mean_median"] = _over_steps(
        np.nanmedian, kept[:, :, _ABS_MEAN]
    )
    # A small last batch may break as well as a whole one.
    columns["step_gradient/finite"] = _over_steps(np.nanmean, values[:, :, _FINITE])
    return by_statistic("gradient", summary) | {
        name: rounded(column) for name, column in columns.items()
    }


class SampledSteps:
    """Which steps of an epoch are sampled.

    Up to ten, evenly spread, with the first, the last but one and the last; steps
    1, 2, 4, 8, ... where their number is not known.

    Example:
        >>> schedule = SampledSteps(100)
        >>> [step for step in range(100) if schedule.due(step)]
        [0, 12, 24, 37, 49, 61, 74, 86, 98, 99]
        >>> schedule = SampledSteps(None)
        >>> [step for step in range(20) if schedule.due(step)]
        [0, 1, 3, 7, 15]

    Args:
        steps: steps of the epoch, or `None` when unknown.
    """

    def __init__(self, steps: int | None) -> None:
        self._steps = steps
        self.last = -1
        if steps is not None:
            spread = np.linspace(0, max(steps - 2, 0), SAMPLED_STEPS - 1)
            self._due = sorted({*spread.round().astype(int).tolist(), steps - 1})

    def due(self, step: int) -> bool:
        """Whether `step`, from 0, is sampled; ask in order, each step once.

        With several steps per execution only every k-th step is asked for.
        """
        if self._steps is None:
            is_due = (step + 1).bit_length() > (self.last + 1).bit_length()
        else:
            is_due = bool(self._due) and step >= self._due[0]
            while self._due and step >= self._due[0]:
                self._due.pop(0)
        if is_due:
            self.last = step
        return is_due

    @property
    def before_last(self) -> bool:
        """Whether the newest sampled step comes before the last of the epoch."""
        return self._steps is None or self.last == self._steps - 2


def weight_columns(weights: list[np.ndarray]) -> Columns:
    """The ten statistics of each variable."""
    return by_statistic("weight", _summary(list(weights)))


def by_statistic(group: str, table: np.ndarray) -> Columns:
    """Columns of a table [V, statistics] in the order of `stats.SUMMARY`."""
    return {
        f"{group}/{name}": rounded(table[:, k]) for k, name in enumerate(stats.SUMMARY)
    }


def rounded(values: Any) -> tuple[float, ...]:
    """Numbers with the digits they have, so that files are short and exact."""
    return tuple(float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values)


def _sample(gradient: np.ndarray | None) -> tuple[float, ...]:
    if gradient is None:
        return (math.nan,) * len(stats.SAMPLE)
    return stats.sample(gradient)


def _summary(arrays: Gradients) -> np.ndarray:
    absent = (math.nan,) * len(stats.SUMMARY)
    rows = [absent if array is None else stats.summarize(array) for array in arrays]
    return np.array(rows).reshape(len(rows), len(stats.SUMMARY))


def _over_steps(reduce: Callable[..., np.ndarray], values: np.ndarray) -> np.ndarray:
    """Reduces [steps, V] to [V]; `nan` for variables that had no gradient."""
    result = np.full(values.shape[1], np.nan)
    known = ~np.isnan(values).all(axis=0)
    result[known] = reduce(values[:, known], axis=0)
    return result
