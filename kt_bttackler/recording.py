"""A recorded search: its trainings, and what indicators find in them.

```python
recording = Recording(TraceStore("runs/cifar"), "cifar")
recording.findings(Diagnosis())[0]           # of the first trial, at each epoch
```
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np

from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.indicators import Finding, QualityIndicator
from kt_bttackler.rules import Findings
from kt_bttackler.trace import Trace

Scoring = Literal["live", "last"]


class Recording:
    """The recorded trainings of one search, and what indicators find in them.

    What an indicator finds in a trace depends on no clock: it is looked for once, and
    then serves any number of simulations.

    A trial is its first execution, which decides on it; further ones are left out.

    Args:
        traces: a `TraceStore`, or traces. An empty one is left out.
        name: of the task, for tables.

    Raises:
        ValueError: traces differ in their objective.

    Attributes:
        traces: in the order of their start, N of them.
        complete: whether each ran to its end, [N] of bool.
        left_out: number of traces of further executions, and of empty ones.
    """

    def __init__(self, traces: Iterable[Trace], name: str = "") -> None:
        self.name = name
        everything = list(traces)
        first: dict[str | int, Trace] = {}
        for number, trace in enumerate(everything):
            if len(trace) and trace.header.execution == 0:
                trial_id = trace.header.trial_id
                first.setdefault(number if trial_id is None else trial_id, trace)
        # Equal starts keep the order in which they came.
        self.traces = tuple(sorted(first.values(), key=lambda t: t.header.started))
        self.left_out = len(everything) - len(self.traces)
        self.complete = np.array([t.end == "finished" for t in self.traces], bool)
        goals = {(t.header.objective, t.header.direction) for t in self.traces}
        if len(goals) > 1:
            raise ValueError(
                f"the traces of a recording must have one objective, got {goals}."
            )
        self.objective, self.direction = goals.pop() if goals else ("loss", "min")
        self._found: list[
            tuple[tuple[QualityIndicator, ...], list[tuple[Findings, ...]]]
        ] = []

    def __len__(self) -> int:
        return len(self.traces)

    @property
    def seconds(self) -> float:
        """Seconds of all trainings together."""
        return float(sum(trace.seconds[-1] for trace in self.traces))

    def findings(self, diagnosis: Diagnosis) -> list[tuple[Findings, ...]]:
        """What is found in each trace at each of its epochs.

        Args:
            diagnosis: whose indicators are asked; its rule is not.
        """
        for indicators, found in self._found:
            if indicators == diagnosis.indicators:
                return found
        found = [findings_of(diagnosis, trace) for trace in self.traces]
        self._found.append((diagnosis.indicators, found))
        return found

    def completed(self) -> Recording:
        """The recording without the trials that were cut short."""
        if self.complete.all():
            return self
        whole = (t for t, c in zip(self.traces, self.complete, strict=True) if c)
        return Recording(whole, self.name)

    def full_scores(self, score: Scoring = "live") -> np.ndarray:
        """Score of each trial that ran to its end, [N]; `nan` where unknown.

        Args:
            score: "live" as KerasTuner scores, by the best epoch; "last" by the last.
        """
        best = score == "live"
        return np.array(
            [
                score_of(trace, best=best) if complete else math.nan
                for trace, complete in zip(self.traces, self.complete, strict=True)
            ]
        )


def findings_of(diagnosis: Diagnosis, trace: Trace) -> tuple[Findings, ...]:
    """What a diagnosis finds at each epoch of one training, as it would live.

    Args:
        diagnosis: whose indicators are asked; its rule is not.
        trace: the whole training.

    Example:
        >>> from kt_bttackler.trace import Header, Record
        >>> trace = Trace(Header(max_epochs=10), [
        ...     Record(n, 1.0 * n, {"loss": 2.3, "first_batch_loss": 2.3})
        ...     for n in range(1, 5)
        ... ])
        >>> [[f.indicator for f in found] for found in findings_of(Diagnosis(), trace)]
        [[], ['PLC'], ['PLC'], ['PLC']]
    """
    suspects: dict[str, np.ndarray] = {}

    def ask(indicator: QualityIndicator, prefix: Trace) -> Finding | None:
        if indicator.id not in suspects:
            try:
                suspects[indicator.id] = indicator.suspects(trace)
            except Exception:
                # It may raise at a later epoch only: asked at each, as it is live.
                suspects[indicator.id] = np.ones(len(trace), bool)
        suspected = suspects[indicator.id][len(prefix) - 1]
        return indicator(prefix) if suspected else None

    disabled: set[str] = set()
    return tuple(
        diagnosis.findings(prefix, disabled, ask) for prefix in trace.prefixes()
    )


def score_of(trace: Trace, *, best: bool) -> float:
    """The objective of a training: of its best or of its last whole epoch.

    Args:
        trace: as far as it went.
        best: what KerasTuner scores; else the last epoch, `nan` where it is not finite.

    Returns:
        `nan` when there is none.
    """
    values = [r.scalars.get("objective", math.nan) for r in trace.records]
    if not best:
        whole = [v for v, r in zip(values, trace.records, strict=True) if not r.partial]
        return whole[-1] if whole and math.isfinite(whole[-1]) else math.nan
    finite = [value for value in values if math.isfinite(value)]
    choose = max if trace.header.direction == "max" else min
    return choose(finite, default=math.nan)
