"""Statistics of gradients: which steps are sampled, and what is kept of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from kt_bttackler import many_stats, stats
from kt_bttackler.taps import Gradients, GradientTap

SAMPLED_STEPS = 10
# To look at all gradients of a large model costs several percent of a step.
_MANY_PARAMETERS = 1_000_000
_MANY_VARIABLES = 100
_STEPS_PER_SAMPLE = 10
_FEWEST_SAMPLES = 4
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
        self._is_large: bool | None = None  # unknown before the first gradients
        self._steps: int | None = None
        self._schedule = SampledSteps(None)
        self._epoch = _Epoch()
        # Of the newest whole batch near the end of the epoch, and its rows.
        self._typical: Gradients | None = None
        self._rows = 0

    def begin_epoch(self, steps: int | None) -> None:
        """Starts an epoch of `steps` steps, `None` when unknown."""
        self._steps = steps
        self._schedule = SampledSteps(steps, sparse=bool(self._is_large))
        # Another one: a worker may still fill that of the epoch before.
        self._epoch = _Epoch()
        self._typical, self._rows = None, 0

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
        gradients = self.tap.gradients()
        if self._is_large is None:
            parameters = sum(0 if g is None else g.size for g in gradients)
            self._is_large = is_large(parameters, len(gradients))
            self._schedule = SampledSteps(self._steps, sparse=self._is_large)
            self._schedule.due(step)
        return self._sample(gradients, near_end=self._schedule.near_end)

    def end_epoch(self, steps: int) -> Future[Columns]:
        """Columns of an epoch that had `steps` steps; empty without gradients."""
        if self._per_epoch or self._schedule.last != steps - 1:
            self._sample(self.tap.gradients(), near_end=True)
        return self._submit(_columns, self._epoch)

    def take_typical(self) -> Gradients:
        """The gradients that stand for the epoch: of its last whole batch.

        Asked for at its end, once: they are not kept. Empty without gradients.
        """
        typical, self._typical = self._typical, None
        gradients = typical or self.tap.gradients()
        return list(gradients) if any(g is not None for g in gradients) else []

    def finite_so_far(self) -> Columns:
        """Finiteness of the gradients sampled in the running epoch."""
        if not self._epoch.samples:
            return {}
        finite = np.array(self._epoch.samples)[:, :, _FINITE]
        return {"step_gradient/finite": rounded(_over_steps(np.nanmean, finite))}

    def _sample(self, gradients: Gradients, *, near_end: bool) -> Future[bool]:
        rows = self.tap.batch_size()
        # The last batch may be a small one; what it leaves is then too noisy for the
        # statistics of the epoch, and those of the step before it are taken.
        is_whole = rows is None or rows >= self._rows
        if near_end and (is_whole or self._typical is None):
            self._typical = gradients
        self._rows = max(self._rows, rows or 0)
        return self._submit(_reduce, self._epoch, gradients, rows)


@dataclasses.dataclass
class _Epoch:
    """What was sampled in one epoch.

    Attributes:
        samples: statistics of each sampled step, [V, S].
        rows: rows of the batch of each sampled step, `None` where unknown.
    """

    samples: list[np.ndarray] = dataclasses.field(default_factory=list)
    rows: list[int | None] = dataclasses.field(default_factory=list)


def _reduce(epoch: _Epoch, gradients: Gradients, rows: int | None) -> bool:
    """Adds a sampled step to its epoch; returns whether all of it is finite."""
    sample = many_stats.sample_all(gradients)
    if not len(sample) or np.isnan(sample).all():
        return True
    epoch.samples.append(sample)
    epoch.rows.append(rows)
    return not np.any(sample[:, _FINITE] == 0)


def _columns(epoch: _Epoch) -> Columns:
    """What the sampled steps of an epoch say of each variable."""
    if not epoch.samples:
        return {}
    values = np.array(epoch.samples)
    # All are whole where the sizes of the batches are unknown.
    sizes = np.array([0 if size is None else size for size in epoch.rows])
    whole = sizes == sizes.max()
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
    return {name: rounded(column) for name, column in columns.items()}


def is_large(parameters: int, variables: int) -> bool:
    """Whether fewer steps are sampled of a model of this size."""
    return parameters > _MANY_PARAMETERS or variables > _MANY_VARIABLES


class SampledSteps:
    """Which steps of an epoch are sampled.

    Up to ten, evenly spread, with the first, the last but one and the last; steps
    1, 2, 4, 8, ... where their number is not known. In models of more than a million
    parameters or a hundred variables one step in ten, but at least four of an epoch.

    Example:
        >>> schedule = SampledSteps(100)
        >>> [step for step in range(100) if schedule.due(step)]
        [0, 12, 24, 37, 49, 61, 74, 86, 98, 99]
        >>> schedule = SampledSteps(None)
        >>> [step for step in range(20) if schedule.due(step)]
        [0, 1, 3, 7, 15]
        >>> schedule = SampledSteps(50, sparse=True)
        >>> [step for step in range(50) if schedule.due(step)]
        [0, 16, 32, 48, 49]

    Args:
        steps: steps of the epoch, or `None` when unknown.
        sparse: sample one step in ten, for a model that `is_large`.
    """

    def __init__(self, steps: int | None, *, sparse: bool = False) -> None:
        self._steps = steps
        self.last = -1
        if steps is not None:
            samples = SAMPLED_STEPS
            if sparse:
                samples = max(_FEWEST_SAMPLES, min(samples, steps // _STEPS_PER_SAMPLE))
            spread = np.linspace(0, max(steps - 2, 0), samples - 1)
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
    def near_end(self) -> bool:
        """Whether the newest sampled step is one of the last two, or may be."""
        return self._steps is None or self.last >= self._steps - 2


def summary_columns(group: str, arrays: list[Any]) -> Columns:
    """The ten statistics of every array, `nan` for `None`; empty without arrays.

    Empties the list: a worker must not keep large arrays longer than it needs them.
    """
    if not arrays:
        return {}
    table = many_stats.summarize_all(arrays)
    arrays.clear()
    return {
        f"{group}/{name}": rounded(table[:, k]) for k, name in enumerate(stats.SUMMARY)
    }


def rounded(values: Any) -> tuple[float, ...]:
    """Numbers with the digits they have, so that files are short and exact."""
    return tuple(float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values)


def _over_steps(reduce: Callable[..., np.ndarray], values: np.ndarray) -> np.ndarray:
    """Reduces [steps, V] to [V]; `nan` for variables that had no gradient."""
    result = np.full(values.shape[1], np.nan)
    known = ~np.isnan(values).all(axis=0)
    result[known] = reduce(values[:, known], axis=0)
    return result
