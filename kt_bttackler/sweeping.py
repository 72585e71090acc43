"""Sweeps thresholds over recorded trainings that are measured once.

```python
swept = sweeping.sweep(recording, PassiveLossChanges(), np.logspace(-4, -1, 1000))
swept.thresholds[swept.killed == 0].max()
```
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kt_bttackler import measures
from kt_bttackler.gradient_indicators import AbnormalGradientValues
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.outlook_indicators import WorseThanConstant
from kt_bttackler.recording import Recording, Scoring
from kt_bttackler.trace import Trace

# Methods in which a threshold may play another part than `measure` beyond `limit`.
_COMPARING = ("__call__", "_positive", "_held", "_beyond")


def is_tunable(indicator: QualityIndicator) -> bool:
    """Whether a threshold decides when the indicator stops a training as harmful.

    Not for benign indicators, for those that only warn, for AGV, whose point is what
    is not finite, nor for those that compare in a way of their own, as
    WORSE_THAN_CONSTANT, whose threshold also decides where it judges.

    Example:
        >>> from kt_bttackler import AbnormalGradientValues, PassiveLossChanges
        >>> is_tunable(PassiveLossChanges()), is_tunable(AbnormalGradientValues())
        (True, False)
    """
    if isinstance(indicator, AbnormalGradientValues | WorseThanConstant):
        return False
    if indicator.benign or indicator.stopping == "never":
        return False
    own = type(indicator)
    return all(
        getattr(own, name) is getattr(QualityIndicator, name) for name in _COMPARING
    )


def levels(indicator: QualityIndicator, trace: Trace) -> np.ndarray:
    """How far the threshold must be for the indicator to be quiet, at each epoch, [T].

    At epoch n a threshold stops the training if the level is beyond it: above it
    where the indicator fires above, below it where it fires below. A level holds what
    was measured in all epochs of the indicator's patience. It is `nan` where no
    threshold stops.

    Args:
        indicator: a tunable one; its own threshold does not matter.
        trace: all that is known of the training.
    """
    found = np.full(len(trace), math.nan)
    mildest = min if indicator.fires == "above" else max
    values = indicator.measure_all(trace)
    for n, prefix in enumerate(trace.prefixes(), 1):
        if math.isnan(values[n - 1]) or not indicator.applies(prefix):
            continue
        level, earlier = _in_units(indicator, prefix, float(values[n - 1])), prefix
        for _ in range(indicator._patience(prefix) - 1):
            previous = indicator._previous(earlier)
            if previous is None or not indicator.applies(previous):
                level = math.nan
                break
            value = float(values[len(previous) - 1])
            level = mildest(level, _in_units(indicator, previous, value))
            earlier = previous
        # `min` and `max` keep or lose a nan as it comes.
        if not math.isnan(level) and indicator.stops(prefix):
            found[n - 1] = level
    return found


def _in_units(indicator: QualityIndicator, trace: Trace, value: float) -> float:
    """A measure in units of the threshold, whatever the limit in force."""
    limit = indicator.limit(trace)
    if math.isnan(value) or limit == indicator.threshold:
        return value
    other = dataclasses.replace(indicator, threshold=2 * indicator.threshold)
    if math.isclose(other.limit(trace), 2 * limit):  # proportional to the threshold
        return value * indicator.threshold / limit
    if not indicator._beyond(value, limit):
        return math.nan
    # The limit has nothing to do with the threshold, and is passed.
    return math.inf if indicator.fires == "above" else -math.inf


@dataclasses.dataclass(frozen=True)
class Table:
    """Levels of one indicator over a recorded search.

    Attributes:
        indicator: the indicator.
        sign: 1 where it fires above its threshold, -1 where below.
        values: sign * level of each trial at each epoch, [N, T]; minus infinity where
            no threshold stops.
    """

    indicator: QualityIndicator
    sign: int
    values: np.ndarray

    @classmethod
    def of(cls, indicator: QualityIndicator, traces: Sequence[Trace]) -> Table:
        """Measures each trace once."""
        sign = 1 if indicator.fires == "above" else -1
        longest = max(map(len, traces), default=0)
        values = np.full((len(traces), longest), -math.inf)
        for row, trace in zip(values, traces, strict=True):
            found = sign * levels(indicator, trace)
            row[: len(found)] = np.where(np.isnan(found), -math.inf, found)
        return cls(indicator, sign, values)

    def rows(self, chosen: np.ndarray) -> Table:
        """The table of some trials, [N] of bool."""
        return dataclasses.replace(self, values=self.values[chosen])

    def stop_epochs(self, threshold: float) -> np.ndarray:
        """The number of epochs after which each trial is stopped, [N]; 0 for never."""
        beyond = self.values > self.sign * threshold
        if not beyond.size:
            return np.zeros(len(beyond), int)
        first = np.argmax(beyond, axis=1)
        return np.where(beyond.any(axis=1), first + 1, 0)

    def safest(self, chosen: np.ndarray) -> float:
        """The boldest threshold that stops none of some trials, [N] of bool.

        Infinite, on the bold side, when no threshold would stop one.
        """
        level = np.max(self.values[chosen], initial=-math.inf)
        return float(self.sign * level)


class Outcomes:
    """The complete trials of a recorded search, and what stopping them saves.

    Args:
        recording: the recorded search.
        score: see `replay.simulate`.

    Attributes:
        traces: the complete trials, N of them.
        scores: what they score at their end, [N].
        direction: "min" or "max".
        seconds: of all of them together.
    """

    def __init__(self, recording: Recording, score: Scoring = "live") -> None:
        pool = recording.completed()
        self.traces = pool.traces
        self.scores = pool.full_scores(score)
        self.direction = recording.direction
        self.seconds = pool.seconds
        # Seconds saved by a stop after so many epochs; of none, nothing.
        longest = max(map(len, self.traces), default=0)
        self._saved = np.zeros((len(self.traces), longest + 1))
        for row, trace in zip(self._saved, self.traces, strict=True):
            ends = trace.seconds
            left = ends[-1] - ends
            delay = trace.header.stop_delay
            row[1 : len(left) + 1] = np.append(left[delay:], np.zeros(delay))[
                : len(left)
            ]

    def best(self, fraction: float) -> np.ndarray:
        """Which trials are among the best `fraction`, ties included, [N] of bool."""
        count = measures.top_count(len(self.scores), fraction)
        costs = measures.costs(self.scores, self.direction)
        return measures.top_weights(costs, count) > 0

    def saved(self, stop_epochs: np.ndarray) -> np.ndarray:
        """Seconds saved by stopping each trial after so many epochs, [N]."""
        return np.asarray(self._saved[np.arange(len(stop_epochs)), stop_epochs])


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What each threshold of one indicator, alone, would have done.

    Attributes:
        thresholds: [K].
        claimed: trials stopped, [K].
        seconds_saved: share of the seconds of all complete trials, [K].
        killed: of the best trials those stopped, [K]; fractions where trials tie.
        top: how many the best trials are.
    """

    thresholds: np.ndarray
    claimed: np.ndarray
    seconds_saved: np.ndarray
    killed: np.ndarray
    top: int


def sweep(
    recording: Recording,
    indicator: QualityIndicator,
    thresholds: Sequence[float] | np.ndarray,
    *,
    fraction: float = 0.1,
    score: Scoring = "live",
) -> Sweep:
    """Judges the complete trials of a recorded search by many thresholds.

    Every finding of the indicator stops; no rule protects anything.

    Args:
        recording: the recorded search.
        indicator: a tunable one.
        thresholds: [K].
        fraction: share of the trials that are the best.
        score: see `replay.simulate`.

    Raises:
        ValueError: no threshold decides when the indicator stops a training.

    Example:
        >>> from kt_bttackler import PassiveLossChanges
        >>> from kt_bttackler.trace import Header, Record
        >>> def curve(name, rate):
        ...     losses = [2.0 * rate**n for n in range(1, 11)]
        ...     return Trace(Header(name, max_epochs=10), [
        ...         Record(n, 1.0 * n, {"loss": loss, "objective": loss})
        ...         for n, loss in enumerate(losses, 1)
        ...     ], "finished")
        >>> recording = Recording([curve("a", 0.8), curve("b", 0.9999)])
        >>> unguarded = PassiveLossChanges(progress_guard=math.inf)
        >>> swept = sweep(recording, unguarded, [1e-5, 1e-3, 1.0])
        >>> swept.claimed.tolist(), swept.killed.tolist()
        ([0, 1, 2], [0.0, 0.0, 1.0])
    """
    if not is_tunable(indicator):
        raise ValueError(f"`indicator` has no threshold to sweep: {indicator.id}.")
    outcomes = Outcomes(recording, score)
    table = Table.of(indicator, outcomes.traces)
    count = measures.top_count(len(outcomes.scores), fraction)
    costs = measures.costs(outcomes.scores, outcomes.direction)
    weights = measures.top_weights(costs, count)
    claimed, saved, killed = [], [], []
    for threshold in thresholds:
        stops = table.stop_epochs(float(threshold))
        claimed.append(int((stops > 0).sum()))
        saved.append(float(outcomes.saved(stops).sum()))
        killed.append(float(weights[stops > 0].sum()))
    return Sweep(
        thresholds=np.asarray(thresholds, float),
        claimed=np.array(claimed, int),
        seconds_saved=np.array(saved) / max(outcomes.seconds, 1e-9),
        killed=np.array(killed),
        top=round(float(weights.sum())),
    )
