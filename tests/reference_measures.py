"""Slow twins of the measures, written from their definitions with plain loops."""

import math
from fractions import Fraction


def better(one, other, direction):
    return one > other if direction == "max" else one < other


def scored(scores):
    return [score for score in scores if math.isfinite(score)]


def places(scores, count, direction):
    """What each of the scores counts among the best `count`, as exact fractions."""
    finite = scored(scores)
    count = min(count, len(finite))
    counted = []
    for score in scores:
        if not math.isfinite(score) or count == 0:
            counted.append(Fraction(0))
            continue
        above = sum(better(other, score, direction) for other in finite)
        tied = sum(other == score for other in finite)
        left = max(0, count - above)
        counted.append(Fraction(min(left, tied), tied))
    return counted


def top10_hit_ratio(runs, baseline_runs, direction="max"):
    ratios = []
    for own in runs:
        for other in baseline_runs:
            own, other = scored(own), scored(other)
            total = min(10, len(own) + len(other))
            if total == 0:
                return math.nan
            counted = places(own + other, total, direction)
            ratios.append(sum(counted[: len(own)]) / total)
    return float(sum(ratios) / len(ratios))


def time_saving(ends, scores, other_ends, other_scores, budget, direction="max"):
    """Ratio, whether it was reached, T_i, T_j, and the score that was to be reached."""
    target, first = None, None
    for end, score in sorted(zip(other_ends, other_scores, strict=True)):
        if end <= budget and math.isfinite(score):
            if target is None or better(score, target, direction):
                target, first = score, end
    if target is None:
        return math.nan, False, math.nan, math.nan, math.nan
    own_first, reached = budget, False
    for end, score in sorted(zip(ends, scores, strict=True)):
        if end <= budget and math.isfinite(score):
            if not better(target, score, direction):
                own_first, reached = end, True
                break
    ratio = (first - own_first) / first if first > 0 else math.nan
    return ratio, reached, own_first, first, target


def kill_regret(full_scores, stopped, direction="max", fraction=0.1):
    """How many of the best were stopped, and how many the best are."""
    count = 0
    while count < fraction * len(full_scores) - 1e-9:
        count += 1
    counted = places(full_scores, count, direction)
    killed = sum(place for place, ended in zip(counted, stopped, strict=True) if ended)
    return float(killed), int(sum(counted))


def upper_bound(successes, trials, confidence):
    """By bisection: the rate at which so few successes are just too unlikely."""
    if trials == 0:
        return 1.0

    def at_most(rate):
        return sum(
            math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k)
            for k in range(math.ceil(successes) + 1)
        )

    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if at_most(middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def benign_loss(full_scores, kept_scores, benign, direction="max"):
    lost = []
    for full, kept, was_benign in zip(full_scores, kept_scores, benign, strict=True):
        loss = full - kept if direction == "max" else kept - full
        if was_benign and math.isfinite(loss):
            lost.append(loss)
    return lost
