"""What a search is doing, told while it does it."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from kt_bttackler import report


class Progress:
    """Tells what a search is doing, on a terminal epoch by epoch.

    Args:
        total: number of trials.
        stream: where to write; standard output by default.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._started = time.monotonic()
        self._done = 0

    def begin(self, trial_id: str, configuration: str) -> None:
        """A trial begins."""
        number = f"{self._done + 1} of {self.total}"
        self._say(f"trial {trial_id} ({number}): {configuration}")

    def epoch(self, epoch: int, score: float) -> None:
        """An epoch of it has ended."""
        if self._live:
            self._stream.write(f"\r    epoch {epoch}: val_accuracy {score:.4f} ")
            self._stream.flush()

    def end(self, outcome: str, reason: str = "") -> None:
        """The trial has ended.

        Args:
            outcome: its status or score.
            reason: why it was stopped.
        """
        self._done += 1
        elapsed = time.monotonic() - self._started
        left = elapsed / self._done * (self.total - self._done)
        times = f"{report.duration(elapsed)} elapsed"
        if left > 0:
            times += f", about {report.duration(left)} left"
        if self._live:
            self._stream.write("\r\x1b[K")  # erases the line of the epoch
        if reason:
            self._say(f"    {reason}")
        self._say(f"    {outcome}, {times}")

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def describe(values: dict[str, Any]) -> str:
    """A configuration in one line.

    Args:
        values: hyperparameters of a trial.
    """
    return (
        f"{values['depth']} x {values['width']} {values['activation']}, "
        f"{values['initializer']}, {values['optimizer']} at "
        f"{values['learning_rate']:.2g}, batches of {values['batch_size']}"
    )
