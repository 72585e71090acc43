"""Simulated searches with a diagnosis beside the same ones without."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kt_bttackler import measures
from kt_bttackler.replay import Simulation


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number of many simulated searches.

    Attributes:
        value: their mean, or median where the table says so.
        low: lower end of the middle 95 %.
        high: upper end.
    """

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Searches:
    """Simulated searches with a diagnosis beside the same ones without.

    Attributes:
        finished: trials finished, per search.
        trials_ratio: of those, per trial finished without the diagnosis.
        hit_ratio: Top10HR against searches without it, each in an order of its own.
        hit_ratio_bound: r / (1 + r), what more trials alone can give.
        time_saving: TSBA, median of pairs that saw the same trials in the same order.
        reached: share of the pairs in which the best score of the other was reached.
        seconds_to_best: until that score was reached, median; the budget where not.
    """

    finished: Spread
    trials_ratio: Spread
    hit_ratio: Spread
    hit_ratio_bound: float
    time_saving: Spread
    reached: float
    seconds_to_best: Spread


def searches_beside(
    runs: Sequence[Simulation],
    plain: Sequence[Simulation],
    others: Sequence[Simulation],
    budget: float,
    direction: str,
) -> Searches:
    """Searches with a diagnosis beside some without.

    Args:
        runs: with it.
        plain: without, in the same orders.
        others: without, in orders of their own.
        budget: of each, in seconds.
        direction: "min" or "max".
    """
    ratios = [
        run.finished / other.finished if other.finished else math.nan
        for run, other in zip(runs, plain, strict=True)
    ]
    savings = [
        saving_of(run, other, budget, direction)
        for run, other in zip(runs, plain, strict=True)
    ]
    pairs = [
        measures.top10_hit_ratio([run.scores], [other.scores], direction=direction)
        for run, other in zip(runs, others, strict=True)
    ]
    low, high = measures.interval(pairs)
    hit_ratio = measures.top10_hit_ratio(
        [run.scores for run in runs],
        [other.scores for other in others],
        direction=direction,
    )
    finished = mean_of([run.finished for run in runs])
    ratio = mean_of(ratios)
    return Searches(
        finished=finished,
        trials_ratio=ratio,
        hit_ratio=Spread(hit_ratio, low, high),
        hit_ratio_bound=measures.hit_ratio_bound(ratio.value),
        time_saving=median_of([saving.ratio for saving in savings]),
        reached=share_of([saving.reached for saving in savings]),
        seconds_to_best=median_of([saving.seconds for saving in savings]),
    )


def saving_of(
    run: Simulation, baseline: Simulation, budget: float, direction: str
) -> measures.TimeSaving:
    """What one search saved beside another."""
    return measures.time_saving_for_baseline_accuracy(
        run.ends,
        run.scores,
        baseline.ends,
        baseline.scores,
        budget=budget,
        direction=direction,
    )


def mean_of(values: Sequence[float]) -> Spread:
    """Mean of the values that are known, and their spread."""
    known = [value for value in values if not math.isnan(value)]
    value = float(np.mean(known)) if known else math.nan
    return Spread(value, *measures.interval(known))


def median_of(values: Sequence[float]) -> Spread:
    """Median of the values that are known, and their spread."""
    known = [value for value in values if not math.isnan(value)]
    value = float(np.median(known)) if known else math.nan
    return Spread(value, *measures.interval(known))


def share_of(values: Sequence[bool]) -> float:
    """Share of the values that are true, `nan` of none."""
    return float(np.mean(values)) if values else math.nan
