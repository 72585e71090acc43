"""What a search is doing, told while it does it.

On a terminal one line is kept up to date while a trial runs; what has ended stays, in
two or three lines for each trial. Elsewhere, in notebooks too, there are only those.

```
trial 0003 (4 of 50): learning_rate 0.01, units 32
    ERG at epoch 3: median gradient ratio 4e-05 < 0.001, layer conv2d_1
    stopped, val_accuracy 0.101; best 0.913 (trial 0001); 2 diagnosed (AGV 1, ERG 1);
    5 min 2 s elapsed, about 58 min left
```
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from kt_bttackler.diagnosis import Verdict, reason
from kt_bttackler.report import configuration, duration, shown

WIDTH = 99


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a trial has ended.

    Attributes:
        trial_id: its id.
        status: KerasTuner's.
        score: its score, or `None`.
        verdict: what ended it, or `None`.
        message: why it was stopped or failed.
    """

    trial_id: str
    status: str
    score: float | None
    verdict: Verdict | None = None
    message: str = ""


class Progress:
    """Tells what a search is doing, on a terminal epoch by epoch.

    Args:
        total: number of trials, or `None` when nobody knows.
        objective: name of the objective.
        direction: "min" or "max".
        seconds: until no new trial begins, or `None`.
        stream: where to write; standard output by default.
        clock: seconds, for tests.

    Example:
        >>> progress = Progress(2, "val_loss", "min", clock=lambda: 0.0)
        >>> progress.begin("0", {"lr": 0.1})
        trial 0 (1 of 2): lr 0.1
        >>> progress.end(Ended("0", "COMPLETED", 0.25))
            val_loss 0.25; best 0.25 (trial 0); 0.0 s elapsed, about 0.0 s left
    """

    def __init__(
        self,
        total: int | None,
        objective: str,
        direction: str,
        *,
        seconds: float | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self._objective = objective
        self._sign = -1.0 if direction == "max" else 1.0
        self._seconds = seconds
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._clock = clock
        self._started = clock()
        self._before, self._done = 0, 0
        self._best: tuple[float, str] | None = None
        self._causes: Counter[str] = Counter()
        self._trial = ""

    def remember(self, trial: Ended) -> None:
        """A trial had ended before this search was taken up again."""
        self._before += 1
        self._count(trial)

    def begin(self, trial_id: str, hyperparameters: Mapping[str, Any]) -> None:
        """A trial begins."""
        number = str(self._before + self._done + 1)
        number += f" of {self.total}" if self.total else ""
        self._trial = f"trial {trial_id} ({number})"
        self._say(f"{self._trial}: {configuration(hyperparameters) or 'the defaults'}")

    def epoch(self, epoch: int, planned: int | None, score: float | None) -> None:
        """An epoch of it has ended.

        Args:
            epoch: from 1.
            planned: epochs that it is to run, or `None`.
            score: the objective, or `None`.
        """
        if not self._live:
            return
        parts = [f"epoch {epoch}" + (f" of {planned}" if planned else "")]
        if score is not None:
            parts.append(f"{self._objective} {shown(score)}")
        left = self._left()
        if left is not None:
            parts.append(f"about {duration(left)} left")
        parts += self._so_far()
        width = min(WIDTH, shutil.get_terminal_size().columns - 1)
        line = f"    {'; '.join(parts)}"[:width]
        self._stream.write(f"\r\x1b[K{line}")
        self._stream.flush()

    def end(self, trial: Ended) -> None:
        """The trial has ended."""
        self._done += 1
        self._count(trial)
        if self._live:
            self._stream.write("\r\x1b[K")  # erases the line of the epoch
        told = reason(trial.message)
        if told:
            self._say(f"    {told}")
        status = "" if trial.status == "COMPLETED" else f"{trial.status.lower()}, "
        parts = [f"{status}{self._objective} {shown(trial.score)}", *self._so_far()]
        times = f"{duration(self._clock() - self._started)} elapsed"
        left = self._left()
        if left is not None and self._before + self._done != self.total:
            times += f", about {duration(left)} left"
        self._say(f"    {'; '.join([*parts, times])}")

    def finish(self, out_of_time: bool) -> None:
        """The search has ended.

        Args:
            out_of_time: for its budget of seconds, before all trials were run.
        """
        number = self._before + self._done
        if not self._done and number and not out_of_time:
            self._say(f"All {number} trials had been run before; none is left to do.")
        if out_of_time:
            self._say(
                f"`max_seconds` is over after {number}"
                + (f" of {self.total}" if self.total else "")
                + " trials; the same search goes on from here when it is run again."
            )

    def _count(self, trial: Ended) -> None:
        if trial.verdict is not None:
            self._causes[trial.verdict.cause or "?"] += 1
        if trial.status == "COMPLETED" and trial.score is not None:
            candidate = (self._sign * trial.score, trial.trial_id)
            self._best = min(self._best or candidate, candidate)

    def _so_far(self) -> list[str]:
        parts = []
        if self._best is not None:
            score, trial_id = self._best
            value = shown(self._sign * score)
            parts.append(f"best {value} (trial {trial_id})")
        if self._causes:
            why = ", ".join(f"{c} {n}" for c, n in self._causes.most_common())
            parts.append(f"{self._causes.total()} diagnosed ({why})")
        return parts

    def _left(self) -> float | None:
        """Seconds until the search ends, as the trials so far tell."""
        known = []
        elapsed = self._clock() - self._started
        if self._seconds is not None:
            known.append(max(0.0, self._seconds - elapsed))
        if self.total and self._done:
            trials = max(0, self.total - self._before - self._done)
            known.append(elapsed / self._done * trials)
        return min(known, default=None)

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
