"""Replays recorded trainings under any diagnosis, on a simulated clock.

```python
store = TraceStore("runs/cifar")                     # recorded with `NeverStop()`
[run] = replay.simulate(store, Diagnosis("balanced"))
for trial in run.trials:
    print(trial.trial_id, trial.outcome, trial.verdict, trial.seconds_saved)
```

Prefixes are judged by the same code as live trainings. What other trials had recorded
by then is seen by the rules that compare, and nothing later.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from kt_bttackler.diagnosis import Diagnosis, Verdict, standing
from kt_bttackler.recording import Recording, Scoring, findings_of, score_of
from kt_bttackler.trace import Trace

__all__ = [
    "Recording",
    "ReplayedTrial",
    "Simulation",
    "findings_of",
    "score_of",
    "simulate",
]

Order = Literal["recorded", "resampled"]
Outcome = Literal["completed", "benign", "stopped", "unknown", "cut"]


@dataclasses.dataclass(frozen=True)
class ReplayedTrial:
    """What became of one trial in a simulated search.

    Attributes:
        trial_id: that of its trace; a trace that is drawn again has a number behind.
        index: which of the recording's traces it is.
        outcome: "completed"; "benign", ended because nothing more was gained;
            "stopped" as harmful; "unknown", its trace was cut short and this
            diagnosis would not have stopped it so soon; "cut" by the budget.
        verdict: the verdict that stopped it, or would have (`amnesty`), else the last
            finding, or `None`.
        started: when it began, in seconds since the search began.
        ended: when it ended; infinite for one that was cut by the budget.
        epochs: how many it trained.
        epochs_saved: how many its trace has more; 0 where that was cut short, too.
        seconds_saved: the seconds of those epochs.
        score: what the search would have known, `nan` for none.
    """

    trial_id: str
    index: int
    outcome: Outcome
    verdict: Verdict | None
    started: float
    ended: float
    epochs: int
    epochs_saved: int
    seconds_saved: float
    score: float


@dataclasses.dataclass(frozen=True)
class Simulation:
    """One simulated search.

    Attributes:
        trials: in the order of their start.
        seconds: when the last trial ended, or the budget.
    """

    trials: tuple[ReplayedTrial, ...]
    seconds: float

    def count(self, *outcomes: Outcome) -> int:
        """How many trials had one of these outcomes."""
        return sum(trial.outcome in outcomes for trial in self.trials)

    @property
    def finished(self) -> int:
        """How many trials ended within the budget, whatever their outcome."""
        return len(self.trials) - self.count("cut")

    @property
    def ends(self) -> np.ndarray:
        """When each trial ended, [N] seconds."""
        return np.array([trial.ended for trial in self.trials])

    @property
    def scores(self) -> np.ndarray:
        """Score of each trial, [N]; `nan` for none."""
        return np.array([trial.score for trial in self.trials])


# Given the trials that have ended, the index of the next trace, or `None` for no more.
Choose = Callable[[Sequence[ReplayedTrial]], int | None]


def simulate(
    traces: Recording | Iterable[Trace],
    diagnosis: Diagnosis,
    *,
    workers: int = 1,
    budget: float | None = None,
    order: Order | Choose = "recorded",
    seed: int = 0,
    repeats: int = 1,
    score: Scoring = "live",
) -> list[Simulation]:
    """Searches again with recorded trainings, under another diagnosis.

    Each worker trains one trial after the other for the seconds that were recorded,
    until the diagnosis stops it. Events at the same moment happen in the order in which
    they were planned. A stop comes `stop_delay` epochs after its verdict, as it did
    live. The set-up of a training is part of its first epoch and cannot be saved; what
    passed between two trainings is in no trace, and is not counted.

    A trial whose trace was cut short, and that this diagnosis would not have stopped
    within what was recorded, is "unknown": it takes the seconds that were recorded and
    has no score.

    Args:
        traces: a `TraceStore`, a `Recording`, or traces, all of one search.
        diagnosis: judges every epoch.
        workers: how many trials train at a time.
        budget: seconds after which everything ends. Default: when all trials are done.
        order: "recorded", each trace once in the order of its start; "resampled",
            drawn with replacement: as many as there are traces or, with a budget, as
            many as it lasts for; or a function that is asked for the index of the
            next trace whenever a worker is free, and given the trials that have ended
            by then, in the order of their end; `None` ends the search.
        seed: of the draw. The same seed gives the same draw under every diagnosis, so
            that simulations can be compared trial by trial.
        repeats: how many searches; with "resampled" each with a draw of its own.
        score: "live", as KerasTuner and this package's oracles score: best epoch of a
            trial that completed or was ended benignly, last epoch of a harmful stop;
            "last", the last epoch of all, as the paper does.

    Returns:
        One `Simulation` per repeat.

    Raises:
        ValueError: an argument is out of its range, or a budget is to be filled with
            traces that took no time.

    Example:
        >>> from kt_bttackler.trace import Header, Record
        >>> def curve(trial_id, *losses):
        ...     records = [
        ...         Record(n, 1.0 * n, {"loss": loss, "objective": loss})
        ...         for n, loss in enumerate(losses, 1)
        ...     ]
        ...     return Trace(Header(trial_id, max_epochs=6), records, "finished")
        >>> pool = [curve("a", 5, 4, 3, 2, 1, 1), curve("b", 2, 2, 2, 2, 2, 2)]
        >>> [run] = simulate(pool, Diagnosis(["PLC"]))
        >>> [(trial.outcome, trial.ended, trial.score) for trial in run.trials]
        [('completed', 6.0, 1), ('stopped', 9.0, 2)]
    """
    recording = traces if isinstance(traces, Recording) else Recording(traces)
    for name, value in (("workers", workers), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if budget is not None and not budget > 0:
        raise ValueError(f"`budget` must be positive, got {budget}.")
    if not callable(order) and order not in ("recorded", "resampled"):
        raise ValueError(f"`order` must be 'recorded' or 'resampled', got {order!r}.")
    if score not in ("live", "last"):
        raise ValueError(f"`score` must be 'live' or 'last', got {score!r}.")
    if budget is not None and order == "resampled" and not recording.seconds > 0:
        raise ValueError("`budget` must not be given for traces that took no time.")
    runs = []
    for repeat in range(repeats):
        search = _Search(recording, diagnosis, score)
        if callable(order):
            drawn = search.chosen(order)
        elif order == "recorded":
            drawn = iter(range(len(recording)))
        else:
            drawn = _draw(len(recording), [seed, repeat], endless=budget is not None)
        runs.append(search.run(drawn, workers, budget))
    return runs


def _draw(size: int, seed: list[int], *, endless: bool) -> Iterator[int]:
    generator = np.random.default_rng(seed)
    while size:
        yield from generator.integers(0, size, size).tolist()
        if not endless:
            return


class _Running:
    """A trial in a simulated search: the trace it follows, and how far it is."""

    def __init__(self, index: int, trace: Trace) -> None:
        self.index = index
        self.trace = trace
        self.ends = [trace.header.started + r.seconds for r in trace.records]
        self.length = len(trace)  # epochs that it is going to train
        self.verdict: Verdict | None = None

    def seen(self, moment: float) -> Trace:
        """What it had recorded at a moment."""
        if moment < self.ends[self.length - 1]:
            return self.trace.prefix(bisect.bisect_right(self.ends, moment))
        return self._final

    @functools.cached_property
    def _final(self) -> Trace:
        """What it had recorded when it had ended."""
        if self.verdict is None or not self.verdict.stop:
            return self.trace
        view = self.trace.prefix(self.length)
        view.end = "stopped"
        return view

    def outcome(self, complete: bool) -> Outcome:
        if self.verdict is not None and self.verdict.stop:
            return "benign" if self.verdict.benign else "stopped"
        return "completed" if complete else "unknown"


class _Peers:
    """The other trials of a simulated search, as they were at a moment."""

    def __init__(self, trials: Sequence[_Running], own: _Running, moment: float):
        self._trials, self._own, self._moment = trials, own, moment

    def __iter__(self) -> Iterator[Trace]:
        for other in self._trials:
            if other is not self._own:
                yield other.seen(self._moment)


class _Search:
    """One simulated search."""

    def __init__(
        self, recording: Recording, diagnosis: Diagnosis, score: Scoring
    ) -> None:
        self._recording = recording
        self._diagnosis = diagnosis
        self._score = score
        self._found = recording.findings(diagnosis)
        self._trials: list[_Running] = []
        self._ended: list[ReplayedTrial] = []
        self._draws: dict[int, int] = {}
        # What happens next: when, in which order, to which trial, after which epoch.
        self._events: list[tuple[float, int, _Running, int]] = []
        self._planned = itertools.count()

    def run(
        self, drawn: Iterator[int], workers: int, budget: float | None
    ) -> Simulation:
        for index in itertools.islice(drawn, workers):
            self._start(index, 0.0)
        moment, limit = 0.0, math.inf if budget is None else budget
        while self._events and self._events[0][0] <= limit:
            moment, _, trial, epochs = heapq.heappop(self._events)
            if epochs < trial.length or self._is_due(trial, epochs):
                self._judge(trial, epochs, moment)
            if epochs < trial.length:
                self._plan(trial, epochs)
            else:
                self._ended.append(self._result(trial, limit))
                for index in itertools.islice(drawn, 1):
                    self._start(index, moment)
        return Simulation(
            trials=tuple(self._result(trial, limit) for trial in self._trials),
            seconds=moment if budget is None else budget,
        )

    def chosen(self, choose: Choose) -> Iterator[int]:
        """The traces that `choose` wants next, each asked for when it is needed."""
        while (index := choose(tuple(self._ended))) is not None:
            yield index

    def _start(self, index: int, moment: float) -> None:
        trace = self._recording.traces[index]
        trial_id, draw = trace.header.trial_id, self._draws.get(index, 0)
        self._draws[index] = draw + 1
        if draw:  # a trial of its own, which happens to go as another one
            trial_id = f"{trial_id if trial_id is not None else index}/{draw}"
        header = dataclasses.replace(trace.header, started=moment, trial_id=trial_id)
        trial = _Running(index, trace.with_header(header))
        self._trials.append(trial)
        self._plan(trial, 0)

    def _is_due(self, trial: _Running, epochs: int) -> bool:
        """Whether the diagnosis has something to say after so many epochs."""
        if trial.verdict is not None and trial.verdict.stop:
            return False
        if not self._diagnosis.rule.needs_findings:
            return True
        return bool(self._found[trial.index][epochs - 1])

    def _plan(self, trial: _Running, epochs: int) -> None:
        """Plans what comes after so many epochs: a judgement, or the end."""
        following = range(epochs + 1, trial.length)
        due = next((n for n in following if self._is_due(trial, n)), trial.length)
        event = (trial.ends[due - 1], next(self._planned), trial, due)
        heapq.heappush(self._events, event)

    def _judge(self, trial: _Running, epochs: int, moment: float) -> None:
        first = max(0, epochs - self._diagnosis.rule.lookback)
        verdict = self._diagnosis.judge(
            list(self._found[trial.index][first:epochs]),
            trial.trace.prefix(epochs),
            _Peers(self._trials, trial, moment),
        )
        trial.verdict = standing(trial.verdict, verdict)
        if trial.verdict is verdict and verdict is not None and verdict.stop:
            delay = trial.trace.header.stop_delay
            trial.length = min(epochs + delay, trial.length)

    def _result(self, trial: _Running, limit: float) -> ReplayedTrial:
        complete = bool(self._recording.complete[trial.index])
        outcome, length = trial.outcome(complete), trial.length
        ended = trial.ends[length - 1]
        if ended > limit:
            outcome, ended = "cut", math.inf
            length = bisect.bisect_right(trial.ends, limit)
        counted = outcome in ("benign", "stopped") and complete
        best = self._score == "live" and outcome != "stopped"
        scored = outcome in ("completed", "benign", "stopped")
        trained = trial.trace.prefix(length)
        return ReplayedTrial(
            trial_id=trial.trace.header.trial_id or str(trial.index),
            index=trial.index,
            outcome=outcome,
            verdict=trial.verdict,
            started=trial.trace.header.started,
            ended=ended,
            epochs=length,
            epochs_saved=len(trial.trace) - length if counted else 0,
            seconds_saved=trial.ends[-1] - ended if counted else 0.0,
            score=score_of(trained, best=best) if scored else math.nan,
        )
