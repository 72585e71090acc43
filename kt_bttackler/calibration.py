"""Chooses thresholds on recorded searches, and proves what they may cost.

```python
found = calibration.calibrate({"cifar": TraceStore("runs/cifar"), ...}, max_regret=0.1)
print(found)
found.save("calibrated.json")               # DiagnosisCallback("calibrated.json")
```
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kt_bttackler import files, measures
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.measures import KillRegret
from kt_bttackler.recording import Recording, Scoring
from kt_bttackler.replay import simulate
from kt_bttackler.spared import adapt, estimate_regret
from kt_bttackler.sweeping import Outcomes, Table, is_tunable
from kt_bttackler.trace import Trace

__all__ = ["Calibration", "adapt", "calibrate", "estimate_regret"]

# How far thresholds go from the given ones towards the nearest good trial. Never all
# the way: the next good trial will lie a little beyond.
STEPS = (0.0, 0.25, 0.5, 0.75)
# Of one search alone, the trials are dealt out into so many parts.
FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A calibrated diagnosis, and what stands behind it.

    Attributes:
        diagnosis: the result.
        thresholds: of each indicator that was tuned, the given and the found one.
        dropped: indicators without a threshold to tune that stop a protected trial.
        step: how far the thresholds went, one of `STEPS`.
        regret: of thresholds that were found without the task (or the part of the
            only task) on which they are judged.
        tried: the regret of each step that was tried.
        judged_on: "tasks" or "parts of one task".
        max_regret: the limit that `regret.upper` keeps.
        provable: the smallest limit that so many top trials can prove.
        seconds_saved: share of the seconds that the result saves, by replay.
        held_out_saved: the same of the thresholds that `regret` judges.
        trials: complete trials of each task.
        unknown: trials that were cut short by an earlier stop, and left out.
    """

    diagnosis: Diagnosis
    thresholds: Mapping[str, tuple[float, float]]
    dropped: tuple[str, ...]
    step: float
    regret: KillRegret
    tried: Mapping[float, KillRegret]
    judged_on: str
    max_regret: float
    provable: float
    seconds_saved: Mapping[str, float]
    held_out_saved: float
    trials: Mapping[str, int]
    unknown: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the diagnosis, for `DiagnosisCallback` and `Diagnosis.load`."""
        files.write_atomically(path, self.diagnosis.to_json() + "\n")

    def __str__(self) -> str:
        regret = self.regret
        tasks = ", ".join(f"{name} ({n} trials)" for name, n in self.trials.items())
        lines = [
            f"Calibrated on {tasks}.",
            f"{regret.top} top trials stand behind the bound; the smallest limit that "
            f"so many can prove is {self.provable:.3f}.",
            f"Judged on {self.judged_on} left out of the choice: {regret.killed:.3g} "
            f"of {regret.top} top trials stopped, kill-regret below {regret.upper:.3f} "
            f"with {100 * regret.confidence:.0f} % confidence (limit "
            f"{self.max_regret:.3g}), {100 * self.held_out_saved:.1f} % of the seconds "
            "saved.",
        ]
        if self.unknown:
            lines.append(f"Left out, cut short by an earlier stop: {self.unknown}.")
        for name, saved in self.seconds_saved.items():
            lines.append(
                f"The result saves {100 * saved:.1f} % of the seconds of {name}."
            )
        for name, (before, after) in self.thresholds.items():
            kept = "kept" if after == before else f"was {before:.4g}"
            lines.append(f"{name}: threshold {after:.4g} ({kept})")
        lines += [f"{name}: left out, it stops good trials" for name in self.dropped]
        return "\n".join(lines)


def calibrate(
    stores: Mapping[str, Iterable[Trace]] | Sequence[Recording],
    *,
    max_regret: float = 0.1,
    diagnosis: Diagnosis | str = "balanced",
    fraction: float = 0.1,
    confidence: float = 0.95,
    score: Scoring = "live",
) -> Calibration:
    """Finds the thresholds that save most time and are proven not to stop good trials.

    A threshold is bounded by the nearest protected trial: the best 2 * `fraction` of
    every task, twice as many as are judged, since the good trials of the next task
    will not lie exactly where those of the recorded ones did. Thresholds that stop a
    protected trial are moved back behind it. From there, those that save time by it
    move towards the bound: by none, a quarter, half or three quarters of the way on a
    logarithmic scale. So each indicator gets a margin in its own measure.

    How far all of them go is chosen by what happens where they were not tuned: each
    task is judged by thresholds found without it. (Thresholds of one task alone can be
    a disaster on another.) The steps are tried from the most cautious on, until the
    upper bound of kill-regret over all top trials of all tasks passes `max_regret`;
    the last step before is taken. Since the order is fixed beforehand and the first
    failure ends it, trying several does not weaken the confidence. With a single task,
    fifths of its trials are left out in turn; that proves nothing about other tasks.

    The bound is that of the procedure on a task that it has not seen. The final
    thresholds come from all tasks. Of the given rule nothing is counted on: every
    finding is taken for a stop.

    Args:
        stores: by name of the task, a `TraceStore` or traces; or recordings. Best
            recorded with `NeverStop()`: only trials that ran to their end count.
        max_regret: limit of the upper bound of kill-regret, in (0, 1).
        diagnosis: whose thresholds are tuned; a preset or a `Diagnosis`. Its rule is
            kept, and must need findings.
        fraction: share of the trials that are the best, in (0, 0.5].
        confidence: of the bound.
        score: how trials are scored, see `replay.simulate`.

    Raises:
        ValueError: an argument is out of its range; so few top trials were recorded
            that they cannot prove the limit, which is told; or no thresholds keep it.
    """
    base = Diagnosis(diagnosis) if isinstance(diagnosis, str) else diagnosis
    if not 0 < max_regret < 1:
        raise ValueError(f"`max_regret` must be in (0, 1), got {max_regret}.")
    if not 0 < fraction <= 0.5:
        raise ValueError(f"`fraction` must be in (0, 0.5], got {fraction}.")
    if not base.rule.needs_findings:
        raise ValueError(
            "`diagnosis` must have a rule that stops on findings alone, got "
            f"{type(base.rule).__name__}, which also compares trials."
        )
    tasks = [
        _Task(recording, base, fraction, score) for recording in _recordings(stores)
    ]
    top = sum(round(float(task.weights.sum())) for task in tasks)
    provable = measures.upper_bound(0, top, confidence)
    if max_regret < provable:
        raise ValueError(
            f"`max_regret` must be at least {provable:.4f}, which is what {top} top "
            f"trials can prove with {100 * confidence:.0f} % confidence when none is "
            f"stopped, got {max_regret}."
        )
    everything = [np.ones(len(task.weights), bool) for task in tasks]
    folds = list(_folds(tasks))
    tried: dict[float, KillRegret] = {}
    step, regret, held_out_saved = -1.0, KillRegret(0.0, 0), 0.0
    for each in STEPS:
        tried[each], saved = _held_out(tasks, folds, base, each, confidence)
        if tried[each].upper > max_regret:
            break
        step, regret, held_out_saved = each, tried[each], saved
    if step < 0:
        first = tried[STEPS[0]]
        raise ValueError(
            f"no thresholds keep `max_regret` {max_regret}: the most cautious step "
            f"already stops {first.killed:.3g} of {first.top} top trials where it was "
            f"not tuned (bound {first.upper:.3f})."
        )
    chosen = _choose(tasks, everything, base, step)
    result = _applied(base, chosen)
    return Calibration(
        diagnosis=result,
        thresholds={
            i.id: (i.threshold, after.threshold)
            for i in base.indicators
            if is_tunable(i) and (after := chosen[i.id]) is not None
        },
        dropped=tuple(name for name, after in chosen.items() if after is None),
        step=step,
        regret=regret,
        tried=tried,
        judged_on="tasks" if len(tasks) > 1 else "parts of one task",
        max_regret=max_regret,
        provable=provable,
        seconds_saved={task.name: task.replayed(result) for task in tasks},
        held_out_saved=held_out_saved,
        trials={task.name: len(task.weights) for task in tasks},
        unknown=sum(task.unknown for task in tasks),
    )


def _recordings(
    stores: Mapping[str, Iterable[Trace]] | Sequence[Recording],
) -> list[Recording]:
    if isinstance(stores, Mapping):
        found = [Recording(traces, name) for name, traces in stores.items()]
    else:
        found = list(stores)
    for recording in found:
        if not recording.complete.any():
            raise ValueError(
                f"`stores` must hold complete trials, {recording.name!r} has none."
            )
    if not found:
        raise ValueError("`stores` must hold at least one recorded search, got none.")
    return found


class _Task:
    """The complete trials of one search, measured once by every indicator."""

    def __init__(
        self, recording: Recording, base: Diagnosis, fraction: float, score: Scoring
    ) -> None:
        self.name = recording.name
        self.unknown = len(recording) - int(recording.complete.sum())
        self.outcomes = Outcomes(recording, score)
        self._pool = recording.completed()
        costs = measures.costs(self.outcomes.scores, recording.direction)
        count = measures.top_count(len(costs), fraction)
        self.weights = measures.top_weights(costs, count)
        self.protected = self.outcomes.best(2 * fraction)
        self.tables = {
            i.id: Table.of(i, self.outcomes.traces)
            for i in base.indicators
            if is_tunable(i)
        }
        # Stops of what has no threshold to tune; benign ones keep their candidates.
        self.fixed = {
            i.id: self._stops_alone(i)
            for i in base.indicators
            if not is_tunable(i) and not i.benign and i.stopping != "never"
        }

    def _stops_alone(self, indicator: QualityIndicator) -> np.ndarray:
        [run] = simulate(self._pool.traces, Diagnosis([indicator]))
        return np.array(
            [
                trial.verdict.epoch if trial.verdict and trial.verdict.stop else 0
                for trial in run.trials
            ],
            int,
        )

    def stops(self, chosen: Mapping[str, QualityIndicator | None]) -> np.ndarray:
        """First stop epoch of each trial, 0 for never, [N]."""
        first = np.zeros(len(self.weights), int)
        for name, indicator in chosen.items():
            if indicator is None:
                continue
            if name in self.tables:
                stops = self.tables[name].stop_epochs(indicator.threshold)
            else:
                stops = self.fixed[name]
            sooner = (stops > 0) & ((first == 0) | (stops < first))
            first = np.where(sooner, stops, first)
        return first

    def replayed(self, diagnosis: Diagnosis) -> float:
        """Share of the seconds that a diagnosis saves, its rule included."""
        [run] = simulate(self._pool, diagnosis)
        saved = sum(trial.seconds_saved for trial in run.trials)
        return saved / self.outcomes.seconds if self.outcomes.seconds else math.nan


def _folds(tasks: Sequence[_Task]) -> Iterable[list[np.ndarray]]:
    """Trials to judge by thresholds of the others: per fold, per task, [N] of bool."""
    if len(tasks) > 1:
        for left_out in tasks:
            yield [np.full(len(task.weights), task is left_out) for task in tasks]
        return
    # Every fifth trial in the order of the scores, so that each part has good ones.
    [task] = tasks
    costs = measures.costs(task.outcomes.scores, task.outcomes.direction)
    place = np.empty(len(costs), int)
    place[np.argsort(costs, kind="stable")] = np.arange(len(costs))
    for part in range(FOLDS):
        yield [place % FOLDS == part]


def _held_out(
    tasks: Sequence[_Task],
    folds: Iterable[Sequence[np.ndarray]],
    base: Diagnosis,
    step: float,
    confidence: float,
) -> tuple[KillRegret, float]:
    """Regret, and share of seconds saved, where thresholds were not tuned."""
    killed, top, saved = 0.0, 0.0, 0.0
    for judged in folds:
        chosen = _choose(tasks, [~part for part in judged], base, step)
        for task, part in zip(tasks, judged, strict=True):
            stops = task.stops(chosen)
            killed += float(task.weights[part & (stops > 0)].sum())
            top += float(task.weights[part].sum())
            saved += float(task.outcomes.saved(stops)[part].sum())
    seconds = sum(task.outcomes.seconds for task in tasks)
    regret = KillRegret(round(killed, 9), round(top), confidence)
    return regret, saved / seconds if seconds else math.nan


def _choose(
    tasks: Sequence[_Task], known: Sequence[np.ndarray], base: Diagnosis, step: float
) -> dict[str, QualityIndicator | None]:
    """Thresholds found on some trials of some tasks; None for what must go."""
    chosen: dict[str, QualityIndicator | None] = {}
    pairs = list(zip(tasks, known, strict=True))
    for indicator in base.indicators:
        name = indicator.id
        if not is_tunable(indicator):
            if name in tasks[0].fixed:
                kills = any(
                    (task.fixed[name][part & task.protected] > 0).any()
                    for task, part in pairs
                )
                chosen[name] = None if kills else indicator
            continue
        found = [task.tables[name] for task in tasks]
        sign = found[0].sign
        bounds = [
            table.safest(part & task.protected)
            for table, (task, part) in zip(found, pairs, strict=True)
        ]
        # The least bold of all tasks.
        nearest = sign * max(sign * bound for bound in bounds)
        cautious = sign * max(sign * nearest, sign * indicator.threshold)
        threshold = cautious
        if step and math.isfinite(nearest) and cautious != nearest:
            bold = _between(cautious, nearest, step)
            if _saved(pairs, name, bold) > _saved(pairs, name, cautious):
                threshold = bold
        chosen[name] = (
            dataclasses.replace(indicator, threshold=threshold)
            if math.isfinite(threshold)
            else None
        )
    return chosen


def _saved(
    pairs: Iterable[tuple[_Task, np.ndarray]], name: str, threshold: float
) -> float:
    return sum(
        float(task.outcomes.saved(task.tables[name].stop_epochs(threshold))[part].sum())
        for task, part in pairs
    )


def _between(start: float, end: float, share: float) -> float:
    """A point on the way, on a logarithmic scale where there is one."""
    if start > 0 and end > 0:
        return float(start * (end / start) ** share)
    return float(start + share * (end - start))


def _applied(
    base: Diagnosis, chosen: Mapping[str, QualityIndicator | None]
) -> Diagnosis:
    indicators = [chosen.get(each.id, each) for each in base.indicators]
    return Diagnosis(
        [each for each in indicators if each is not None],
        base.rule,
        amnesty=base.amnesty,
    )
