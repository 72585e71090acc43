"""What is learned from trials that were spared (`Diagnosis(..., amnesty=)`).

```python
estimate = spared.estimate_regret(TraceStore("runs/cifar"), diagnosis)
diagnosis = spared.adapt(TraceStore("runs/cifar"), diagnosis).diagnosis
```

In a search that stops trials, what a stopped one would have become is not known. The
spared ones, drawn at random, tell: each stands for 1 / share of those that the
diagnosis wanted to stop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from kt_bttackler import measures
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.recording import Recording, Scoring
from kt_bttackler.replay import Simulation, simulate
from kt_bttackler.sweeping import is_tunable, levels
from kt_bttackler.trace import Trace


@dataclasses.dataclass(frozen=True)
class RegretEstimate:
    """An unbiased estimate of kill-regret from a search that stopped trials.

    Attributes:
        regret: estimated share of the best trials that the diagnosis wanted to stop;
            `nan` when no trial is known to be good.
        upper: one-sided upper bound (Clopper-Pearson on the spared trials).
        flagged: trials that the diagnosis wanted to stop as harmful.
        spared: of those, how many were left running to their end.
        good: of the spared, how many are among the best.
        top: how many the best trials are.
    """

    regret: float
    upper: float
    flagged: int
    spared: int
    good: int
    top: int

    def __str__(self) -> str:
        rate = "unknown" if math.isnan(self.regret) else f"{self.regret:.3f}"
        return (
            f"{self.flagged} trials were to be stopped, {self.spared} of them were "
            f"spared and ran to their end, {self.good} of these are among the best "
            f"{self.top}. Estimated kill-regret: {rate}, below {self.upper:.3f}."
        )


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """A diagnosis made more cautious by what spared trials became.

    Attributes:
        diagnosis: the result; the given one when no spared trial was good.
        loosened: of each indicator that changed, the old and the new threshold;
            infinite for one that was left out, having no threshold to move.
        estimate: what the search says of the diagnosis that it ran with.
    """

    diagnosis: Diagnosis
    loosened: Mapping[str, tuple[float, float]]
    estimate: RegretEstimate

    def __str__(self) -> str:
        lines = [str(self.estimate)]
        for name, (before, after) in self.loosened.items():
            change = f"{before:.4g} -> {after:.4g}" if math.isfinite(after) else "out"
            lines.append(f"{name}: {change}, it wanted to stop a good trial")
        return "\n".join(lines if self.loosened else [*lines, "Nothing is to change."])


def estimate_regret(
    traces: Recording | Iterable[Trace],
    diagnosis: Diagnosis,
    *,
    fraction: float = 0.1,
    confidence: float = 0.95,
    score: Scoring = "live",
) -> RegretEstimate:
    """Estimates kill-regret from a search that ran with this diagnosis.

    A spared trial counts 1 / share, a trial that nothing was found wrong with counts
    1, and a stopped one nothing: the spared ones stand for it. The best are the best
    `fraction` of that weight. The bound takes the rate of good trials among all that
    were to be stopped for no larger than the spared ones allow.

    Args:
        traces: of the search, a `TraceStore` or a `Recording`.
        diagnosis: the one it ran with, with the same `amnesty`.
        fraction: share of the trials that are the best, in (0, 1].
        confidence: of the bound.
        score: see `replay.simulate`.

    Raises:
        ValueError: the diagnosis spares nobody.
    """
    recording, run = _replayed(traces, diagnosis, score)
    return _estimate(recording, run, diagnosis, fraction, confidence, score)


def adapt(
    traces: Recording | Iterable[Trace],
    diagnosis: Diagnosis,
    *,
    fraction: float = 0.1,
    confidence: float = 0.95,
    score: Scoring = "live",
) -> Adaptation:
    """Loosens each indicator that wanted to stop a spared trial which proved good.

    Its threshold moves beyond the most extreme level that this trial had, by as much
    again as that lay beyond the old threshold (on a logarithmic scale): the next good
    trial may lie a little further out. An indicator without a threshold to move is
    left out.

    Args:
        traces: of the search, a `TraceStore` or a `Recording`.
        diagnosis: the one it ran with, with the same `amnesty`.
        fraction: share of the trials that are the best, in (0, 1].
        confidence: of the estimate's bound.
        score: see `replay.simulate`.

    Raises:
        ValueError: the diagnosis spares nobody.

    Example:
        >>> from kt_bttackler.trace import Header, Record
        >>> def curve(name):
        ...     records = [
        ...         Record(n, 1.0 * n, {"loss": 2 - 0.1 * n, "objective": 2 - 0.1 * n})
        ...         for n in range(1, 11)
        ...     ]
        ...     return Trace(Header(name, max_epochs=10), records, "finished")
        >>> bold = Diagnosis(["PLC"], amnesty=0.5)
        >>> bold = bold.replace("PLC", threshold=0.2, progress_guard=math.inf)
        >>> found = adapt([curve(str(k)) for k in range(10)], bold)
        >>> found.estimate.regret, round(found.diagnosis["PLC"].threshold, 4)
        (1.0, 0.0139)
    """
    recording, run = _replayed(traces, diagnosis, score)
    weights = _weights(recording, run, diagnosis, fraction, score)
    changed = diagnosis
    loosened: dict[str, tuple[float, float]] = {}
    good = _spared(run) & recording.complete & (weights > 0)
    for trial in (
        trial for trial, is_good in zip(run.trials, good, strict=True) if is_good
    ):
        trace = recording.traces[trial.index]
        findings = trial.verdict.findings if trial.verdict else ()
        for name in dict.fromkeys(f.indicator for f in findings if not f.warning):
            known = {indicator.id: indicator for indicator in changed.indicators}
            if name not in known or known[name].benign:
                continue
            before = diagnosis[name].threshold
            if not is_tunable(known[name]):
                changed = changed.without(name)
                loosened[name] = (before, math.inf)
                continue
            sign = 1 if known[name].fires == "above" else -1
            found = sign * levels(diagnosis[name], trace)
            level = sign * float(np.max(found[~np.isnan(found)], initial=-math.inf))
            after = _beyond(before, level)
            if not math.isfinite(after):
                changed = changed.without(name)
                loosened[name] = (before, math.inf)
            elif sign * after > sign * known[name].threshold:
                changed = changed.replace(name, threshold=after)
                loosened[name] = (before, after)
    estimate = _estimate(recording, run, diagnosis, fraction, confidence, score)
    return Adaptation(changed, loosened, estimate)


def _replayed(
    traces: Recording | Iterable[Trace], diagnosis: Diagnosis, score: Scoring
) -> tuple[Recording, Simulation]:
    if not diagnosis.amnesty:
        raise ValueError("`diagnosis` must spare some trials, got an amnesty of 0.")
    recording = traces if isinstance(traces, Recording) else Recording(traces)
    [run] = simulate(recording, diagnosis, score=score)
    return recording, run


def _spared(run: Simulation) -> np.ndarray:
    """Which trials were to be stopped as harmful, and were spared, [N] of bool."""
    return np.array(
        [
            t.verdict is not None and t.verdict.amnesty and not t.verdict.benign
            for t in run.trials
        ],
        bool,
    )


def _stopped(run: Simulation) -> np.ndarray:
    return np.array([trial.outcome == "stopped" for trial in run.trials], bool)


def _weights(
    recording: Recording,
    run: Simulation,
    diagnosis: Diagnosis,
    fraction: float,
    score: Scoring,
) -> np.ndarray:
    """What each trial counts among the best `fraction` of the weight, [N]."""
    full, own = recording.full_scores(score), run.scores
    # A benign stop keeps the trial, with the score that it had.
    costs = measures.costs(np.where(np.isnan(full), own, full), recording.direction)
    weights = np.where(_spared(run), 1 / diagnosis.amnesty, 1.0)
    weights[_stopped(run) | ~np.isfinite(costs)] = 0.0
    left = fraction * len(costs)
    counted = np.zeros(len(costs))
    for k in np.argsort(costs, kind="stable"):
        counted[k] = min(weights[k], left)
        left -= counted[k]
    return counted


def _estimate(
    recording: Recording,
    run: Simulation,
    diagnosis: Diagnosis,
    fraction: float,
    confidence: float,
    score: Scoring,
) -> RegretEstimate:
    counted = _weights(recording, run, diagnosis, fraction, score)
    spared = _spared(run)
    total = float(counted.sum())
    flagged = int((spared | _stopped(run)).sum())
    good = int((spared & (counted > 0)).sum())
    rate = measures.upper_bound(good, int(spared.sum()), confidence)
    top = measures.top_count(len(run.trials), fraction)
    return RegretEstimate(
        regret=float(counted[spared].sum()) / total if total else math.nan,
        upper=min(1.0, rate * flagged / top) if top else 1.0,
        flagged=flagged,
        spared=int(spared.sum()),
        good=good,
        top=top,
    )


def _beyond(threshold: float, level: float) -> float:
    """As far beyond a level as that lies beyond a threshold."""
    if threshold > 0 and level > 0:
        return level * level / threshold
    if level == 0 and threshold > 0:
        return 0.0  # a measure of exactly zero fires below any positive threshold
    return level + (level - threshold)
