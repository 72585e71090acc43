"""How fast a training goes, measured on its first steps."""

from __future__ import annotations

import math
import time
from typing import Any

import keras


class Pace:
    """Seconds of steps, the first one apart: it traces the graph.

    Attributes:
        first: seconds of the first step.
        count: steps so far.
    """

    def __init__(self) -> None:
        self.first = 0.0
        self.count = 0
        self._later: list[float] = []

    def add(self, seconds: float, steps: int) -> None:
        """Adds steps that were run at once."""
        if self.count == 0:
            self.first = seconds
        else:
            self._later.append(seconds / steps)
        self.count += steps

    @property
    def seconds_per_step(self) -> float | None:
        """Median of the later steps; None without any."""
        ordered = sorted(self._later)
        return ordered[len(ordered) // 2] if ordered else None


class FewSteps(keras.callbacks.Callback):
    """Measures the first steps of a training, and ends it.

    Args:
        steps: so many, of the validation too.
        deadline: of `time.monotonic`; it ends sooner then.

    Attributes:
        training: how fast the steps are.
        validation: how fast those of validation are.
        steps_per_epoch: as Keras knows it, or `None`.
        broken_at: the first step with a loss that is not finite, from 1, or `None`.
        loss: that loss.
    """

    def __init__(self, steps: int, deadline: float) -> None:
        super().__init__()
        self.training, self.validation = Pace(), Pace()
        self.steps_per_epoch: int | None = None
        self.broken_at: int | None = None
        self.loss = math.nan
        self._steps = steps
        self._deadline = deadline
        self._began = 0.0
        self._batch = -1

    def on_train_begin(self, logs: Any = None) -> None:
        """Learns how long an epoch is."""
        self.steps_per_epoch = (self.params or {}).get("steps")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Steps are counted from 0 again."""
        self._batch = -1

    def on_test_begin(self, logs: Any = None) -> None:
        """Steps are counted from 0 again."""
        self._batch = -1

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    on_test_batch_begin = on_train_batch_begin

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Measures; ends the training when it has seen enough."""
        loss = float((logs or {}).get("loss", 0.0))  # waits for the device
        self._add(self.training, batch)
        if self.broken_at is None and not math.isfinite(loss):
            self.broken_at, self.loss = self.training.count, loss
        late = time.monotonic() > self._deadline
        if self.training.count >= self._steps or late or self.broken_at is not None:
            self.model.stop_training = True

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Measures; ends the validation when it has seen enough."""
        self._add(self.validation, batch)
        late = time.monotonic() > self._deadline
        if self.validation.count >= self._steps or late or self.broken_at is not None:
            # Keras looks at this flag after every batch.
            self.model.stop_evaluating = True

    def _add(self, pace: Pace, batch: int) -> None:
        # Several steps may be run at once.
        pace.add(time.perf_counter() - self._began, max(1, batch - self._batch))
        self._batch = batch
