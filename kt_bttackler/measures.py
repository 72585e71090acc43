"""The measures of a search: top-10 hit ratio, time saving, kill-regret, and bounds.

Pure functions of scores and seconds (BTTackler, KDD'24, definitions 3.3 and 3.4).
Scores that are `nan` or infinite stand for trials without one: they are trials, but
never good ones.

```python
measures.top10_hit_ratio([ours], [baseline], direction="max")
measures.kill_regret(full_scores, stopped, direction="max").upper
```
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

TOP = 10


def top10_hit_ratio(
    runs: Sequence[ArrayLike],
    baseline_runs: Sequence[ArrayLike],
    *,
    direction: str = "max",
) -> float:
    """Top10HR: which share of the best ten trials of two methods is the first one's.

    The trials of a run and of a run of the baseline are pooled; of those that tie at
    the tenth place each counts the same fraction. With fewer than ten scored trials
    in all, the share is of those. The mean is over all pairings of the runs. 0.5 is
    parity.

    Args:
        runs: scores of the trials of each run of the method, [N] each.
        baseline_runs: the same of the baseline.
        direction: "max" or "min".

    Returns:
        A number in [0, 1]; `nan` when some pairing has no scored trial.

    Raises:
        ValueError: there is no run, or no such direction.

    Example:
        >>> top10_hit_ratio([[0.9, 0.8]], [[0.7, 0.6]])
        0.5
        >>> top10_hit_ratio([[0.9] * 10], [[0.9] * 10, [0.8] * 10])
        0.75
    """
    if not len(runs) or not len(baseline_runs):
        raise ValueError("`runs` and `baseline_runs` must hold at least one run each.")
    return float(
        np.mean(
            [
                _hit_ratio(costs(own, direction), costs(other, direction))
                for own in runs
                for other in baseline_runs
            ]
        )
    )


def _hit_ratio(own: np.ndarray, other: np.ndarray) -> float:
    own, other = own[np.isfinite(own)], other[np.isfinite(other)]
    both = np.concatenate([own, other])
    if not len(both):
        return math.nan
    weights = top_weights(both, min(TOP, len(both)))
    return float(weights[: len(own)].sum() / weights.sum())


def hit_ratio_bound(trials_ratio: float) -> float:
    """The Top10HR that more trials alone can give: r / (1 + r).

    In random search, where no good trial is stopped, a method that finishes r times
    the trials of the baseline has this share of the best ten on average, not more.

    Args:
        trials_ratio: r, trials finished per trial that the baseline finished.

    Example:
        >>> hit_ratio_bound(1.0), hit_ratio_bound(3.0)
        (0.5, 0.75)
    """
    if math.isinf(trials_ratio):
        return 1.0
    return trials_ratio / (1 + trials_ratio)


@dataclasses.dataclass(frozen=True)
class TimeSaving:
    """How much sooner a method was as good as the baseline ever got.

    Attributes:
        ratio: (T_j - T_i) / T_j; below 0 the method was slower, `nan` when the
            baseline scored no trial, or at once.
        reached: whether the method got that far. If not, T_i is the budget, and
            `ratio` is the largest that it can be.
        seconds: T_i, when the method was first as good.
        baseline_seconds: T_j, when the baseline first had its best score.
        target: that score.
    """

    ratio: float
    reached: bool
    seconds: float
    baseline_seconds: float
    target: float


def time_saving_for_baseline_accuracy(
    seconds: ArrayLike,
    scores: ArrayLike,
    baseline_seconds: ArrayLike,
    baseline_scores: ArrayLike,
    *,
    budget: float,
    direction: str = "max",
) -> TimeSaving:
    """TSBA: how much sooner the best score of the baseline is reached.

    A trial counts when it ends. Compare runs that saw the same trials in the same
    order: between independent runs the measure is far below 0 without any difference
    of the methods.

    Args:
        seconds: when each trial of the method ended, since the search began, [N].
        scores: its score, [N].
        baseline_seconds: the same of the baseline, [M].
        baseline_scores: the same of the baseline, [M].
        budget: seconds of the search; what ends later does not count.
        direction: "max" or "min".

    Raises:
        ValueError: seconds and scores differ in length, the budget is not positive,
            or there is no such direction.

    Example:
        >>> time_saving_for_baseline_accuracy(
        ...     [10, 20, 30], [0.5, 0.8, 0.9], [20, 40], [0.5, 0.8], budget=60
        ... )  # doctest: +NORMALIZE_WHITESPACE
        TimeSaving(ratio=0.5, reached=True, seconds=20.0, baseline_seconds=40.0,
                   target=0.8)
    """
    if not budget > 0:
        raise ValueError(f"`budget` must be positive, got {budget}.")
    ends, own = _ended(seconds, scores, budget, direction)
    other_ends, other = _ended(baseline_seconds, baseline_scores, budget, direction)
    if not len(other):
        return TimeSaving(math.nan, False, math.nan, math.nan, math.nan)
    target = float(np.min(other))
    other_first = float(np.min(other_ends[other <= target]))
    reached = own <= target
    first = float(np.min(ends[reached])) if reached.any() else float(budget)
    ratio = (other_first - first) / other_first if other_first > 0 else math.nan
    return TimeSaving(
        ratio=ratio,
        reached=bool(reached.any()),
        seconds=first,
        baseline_seconds=other_first,
        target=-target if direction == "max" else target,
    )


def _ended(
    seconds: ArrayLike, scores: ArrayLike, budget: float, direction: str
) -> tuple[np.ndarray, np.ndarray]:
    """Ends and costs of the trials that were scored within the budget."""
    ends, values = np.asarray(seconds, float), costs(scores, direction)
    if ends.shape != values.shape:
        raise ValueError(
            f"`seconds` and `scores` must have the same length, got {ends.size} and "
            f"{values.size}."
        )
    within = (ends <= budget) & np.isfinite(values)
    return ends[within], values[within]


def trials_finished(seconds: ArrayLike, *, budget: float = math.inf) -> int:
    """How many trials ended within the budget.

    Args:
        seconds: when each trial ended, since the search began; `nan` where it did not.
        budget: seconds of the search.

    Example:
        >>> trials_finished([10.0, 20.0, 30.0, float("nan")], budget=20.0)
        2
    """
    return int(np.sum(np.asarray(seconds, float) <= budget))


@dataclasses.dataclass(frozen=True)
class KillRegret:
    """What share of the best trials was stopped, and how sure that is.

    Attributes:
        killed: of the best trials those stopped; a fraction where trials tie at the
            last place.
        top: how many the best trials are.
        confidence: that of `upper`.
    """

    killed: float
    top: int
    confidence: float = 0.95

    @property
    def rate(self) -> float:
        """Share of the best trials that was stopped; `nan` without any."""
        return self.killed / self.top if self.top else math.nan

    @property
    def upper(self) -> float:
        """One-sided upper bound of the rate (Clopper-Pearson); 1 without any trial."""
        return upper_bound(self.killed, self.top, self.confidence)

    def __add__(self, other: KillRegret) -> KillRegret:
        """Both counts together, as of several tasks."""
        return dataclasses.replace(
            self, killed=self.killed + other.killed, top=self.top + other.top
        )


def kill_regret(
    full_scores: ArrayLike,
    stopped: ArrayLike,
    *,
    direction: str = "max",
    fraction: float = 0.1,
    confidence: float = 0.95,
) -> KillRegret:
    """Kill-regret: the share of the best trials, had all run to their end, stopped.

    The best are the best `fraction` of all trials, rounded up, as far as they have a
    score. Count harmful verdicts only: a benign stop keeps the trial as a candidate,
    what it loses is `benign_loss`.

    Args:
        full_scores: score of each trial when it runs to its end, [N].
        stopped: whether it is stopped as harmful, [N].
        direction: "max" or "min".
        fraction: share of the trials that are the best, in (0, 1].
        confidence: of the bound.

    Raises:
        ValueError: an argument is out of its range, or lengths differ.

    Example:
        >>> scores = [0.1 * k for k in range(10)]
        >>> regret = kill_regret(scores, [score < 0.5 for score in scores])
        >>> regret.killed, regret.top, regret.rate, round(regret.upper, 2)
        (0.0, 1, 0.0, 0.95)
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` must be in (0, 1], got {fraction}.")
    values = costs(full_scores, direction)
    ended = np.asarray(stopped, bool)
    if values.shape != ended.shape:
        raise ValueError(
            "`full_scores` and `stopped` must have the same length, got "
            f"{values.size} and {ended.size}."
        )
    weights = top_weights(values, top_count(len(values), fraction))
    return KillRegret(
        # Sums of thirds must not pass for more than they are.
        killed=round(float(weights[ended].sum()), 9),
        top=round(float(weights.sum())),
        confidence=confidence,
    )


def top_count(trials: int, fraction: float) -> int:
    """How many trials the best `fraction` of them are, rounded up.

    Example:
        >>> [top_count(trials, 0.1) for trials in (0, 1, 10, 63)]
        [0, 1, 1, 7]
    """
    return math.ceil(round(fraction * trials, 9))


def top_weights(values: np.ndarray, count: int) -> np.ndarray:
    """What each trial counts among the `count` best, [N].

    1 for those that are better than the last of them, an equal fraction for those
    that tie with it, else 0. Costs that are not finite never count.

    Args:
        values: cost of each trial, [N]; less is better.
        count: how many the best are; fewer where fewer are finite.

    Example:
        >>> top_weights(np.array([3.0, 1.0, 2.0, 2.0]), 2).tolist()
        [0.0, 1.0, 0.5, 0.5]
    """
    weights = np.zeros(len(values))
    finite = np.isfinite(values)
    count = min(count, int(finite.sum()))
    if not count:
        return weights
    last = np.sort(values[finite])[count - 1]
    better, tied = finite & (values < last), finite & (values == last)
    weights[better] = 1.0
    weights[tied] = (count - better.sum()) / tied.sum()
    return weights


def benign_loss(
    full_scores: ArrayLike,
    kept_scores: ArrayLike,
    benign: ArrayLike,
    *,
    direction: str = "max",
) -> np.ndarray:
    """What each benign stop lost: by how much the full training was better, [B].

    Args:
        full_scores: score of each trial when it runs to its end, [N].
        kept_scores: score that it kept, [N].
        benign: whether it was ended because nothing more was gained, [N].
        direction: "max" or "min".

    Returns:
        One number per benign stop with both scores; 0 where nothing was lost, in the
        unit of the score.

    Example:
        >>> benign_loss([0.9, 0.8], [0.85, 0.8], [True, False]).round(3).tolist()
        [0.05]
    """
    lost = costs(kept_scores, direction) - costs(full_scores, direction)
    chosen = lost[np.asarray(benign, bool)]
    return np.asarray(chosen[np.isfinite(chosen)])


def upper_bound(successes: float, trials: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of a rate (Clopper-Pearson, from scipy).

    Args:
        successes: how many of the trials; a fraction is rounded up.
        trials: how many in all; with none nothing is known, and the bound is 1.
        confidence: in (0, 1).

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> round(upper_bound(0, 7), 3), round(upper_bound(0, 59), 4)
        (0.348, 0.0495)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0, 1), got {confidence}.")
    if not 0 <= successes <= trials:
        raise ValueError(
            f"`successes` must be between 0 and {trials}, got {successes}."
        )
    if not trials:
        return 1.0
    test = binomtest(math.ceil(successes), trials, alternative="less")
    return float(test.proportion_ci(confidence, method="exact").high)


def interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """The middle `confidence` of resampled values: a percentile bootstrap interval.

    Args:
        values: one per resample; those that are `nan` are left out.
        confidence: in (0, 1).

    Example:
        >>> low, high = interval(range(101), confidence=0.9)
        >>> round(low, 3), round(high, 3)
        (5.0, 95.0)
    """
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if not len(known):
        return math.nan, math.nan
    tail = 50 * (1 - confidence)
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def costs(scores: ArrayLike, direction: str) -> np.ndarray:
    """Scores as costs: less is better whatever the direction, [N].

    Raises:
        ValueError: there is no such direction, or scores are not a list of numbers.
    """
    if direction not in ("min", "max"):
        raise ValueError(f"`direction` must be 'min' or 'max', got {direction!r}.")
    values = np.asarray(scores, float)
    if values.ndim != 1:
        raise ValueError(f"scores must be a list of numbers, got shape {values.shape}.")
    return -values if direction == "max" else values
