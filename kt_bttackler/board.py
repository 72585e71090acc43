"""What TensorBoard is shown of a training that is being watched."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable

import keras
import numpy as np

from kt_bttackler.callers import callers
from kt_bttackler.context import RunningTrial
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.tensorboard import DiagnosisWriter, Reading
from kt_bttackler.tensorboard_study import Entry, StudyBoard
from kt_bttackler.trace import Trace


class TrainingBoard:
    """One training in TensorBoard, and its line in the view of the search.

    Without a folder nothing is written.

    Args:
        log_dir: TensorBoard's folder; by default that of Keras's `TensorBoard` among
            the callbacks, or nowhere.
        trial: the trial it belongs to, or `None`.
        execution: number of the execution.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None,
        trial: RunningTrial | None,
        execution: int | None,
    ) -> None:
        self._trial = trial
        self._execution = execution or 0
        self._run = self._choose_run(log_dir)
        self._writer: DiagnosisWriter | None = None
        self._entry: Entry | None = None

    @property
    def shown(self) -> bool:
        """Whether there is a folder to write to."""
        return self._run is not None

    def begin(
        self,
        objective: tuple[str, str],
        indicators: Iterable[str],
        started: float,
    ) -> None:
        """The training begins.

        Args:
            objective: name and direction.
            indicators: ids of those that judge.
            started: Unix time.
        """
        study = self._study()
        if study is None or self._trial is None:
            return
        name, direction = objective
        self._entry = Entry(
            trial=self._trial.trial_id,
            hyperparameters=dict(self._trial.hyperparameters),
            objective=name,
            direction=direction,
            indicators=list(indicators),
            started=started,
        )
        study.begin(self._entry)

    def add_epoch(self, trace: Trace, readings: Iterable[Reading]) -> None:
        """Shows what was read at the last epoch of `trace`."""
        if self._run is None:
            return
        if self._writer is None:
            self._writer = DiagnosisWriter(self._run)
        self._writer.add_epoch(trace, readings)
        self._writer.add_score(_score(trace, None), trace.epoch)

    def close(self, trace: Trace, verdict: Verdict | None, stopped: bool) -> None:
        """Shows how the training has ended.

        Args:
            trace: all of it.
            verdict: on it, or `None`.
            stopped: it was ended for that.
        """
        if self._writer is not None:
            if stopped:
                self._writer.add_score(_score(trace, verdict), trace.epoch)
            saved = _epochs_saved(trace) if stopped else 0
            self._writer.add_end(trace, verdict, stopped, saved)
            self._writer.close()

    def end(self, trace: Trace, stopped: Verdict | None) -> None:
        """Says in the view of the search how the training has ended.

        Args:
            trace: all of it.
            stopped: the verdict that it was ended for, or `None`.
        """
        study = self._study()
        if study is None or self._entry is None:
            return
        score = _score(trace, stopped)
        saved = _epochs_saved(trace) if stopped else 0
        entry = dataclasses.replace(
            self._entry,
            status="stopped" if stopped and not stopped.benign else "completed",
            cause=(stopped.cause or "") if stopped else "",
            why=str(stopped) if stopped else "",
            score=score if math.isfinite(score) else None,
            epochs_run=len(trace),
            epochs_saved=saved,
            seconds_per_epoch=_seconds_per_epoch(trace),
        )
        study.end(entry)

    def _choose_run(
        self, log_dir: str | os.PathLike[str] | None
    ) -> pathlib.Path | None:
        per_trial = False
        if log_dir is None:
            keras_board = _sibling_tensorboard()
            if keras_board is None:
                return None
            log_dir = keras_board.log_dir
            # KerasTuner gives each trial a folder of its own, but only to this class.
            per_trial = type(keras_board).__name__ == "TensorBoard"
        place = pathlib.Path(log_dir)
        if self._trial is not None and not per_trial:
            place = place / self._trial.trial_id / f"execution{self._execution}"
        return place / "diagnosis"

    def _study(self) -> StudyBoard | None:
        """The view of the search, for the first execution of a trial: it decides."""
        if self._run is None or self._trial is None or self._execution > 0:
            return None
        execution = self._run.parent
        if (execution.parent.name, execution.name) != (
            self._trial.trial_id,
            "execution0",
        ):
            return None
        return StudyBoard(execution.parent.parent)


def _score(trace: Trace, stopped: Verdict | None) -> float:
    """The best objective so far; of a training that was stopped, the last."""
    values = trace.scalar("objective")
    values = values[np.isfinite(values)]
    if not values.size:
        return math.nan
    if stopped is not None and not stopped.benign:
        return float(values[-1])
    return float(values.max() if trace.header.direction == "max" else values.min())


def _epochs_saved(trace: Trace) -> int:
    """Planned epochs that a training was not given; a rung plans its own."""
    values = trace.header.hyperparameters
    planned = values.get("tuner/epochs", trace.max_epochs)
    return 0 if planned is None else max(0, int(planned) - trace.epoch)


def _seconds_per_epoch(trace: Trace) -> float | None:
    """Mean seconds of the epochs after the first, which contains the set-up."""
    seconds = trace.seconds
    if len(seconds) < 2:
        return None
    return float(seconds[-1] - seconds[0]) / (len(seconds) - 1)


def _sibling_tensorboard() -> keras.callbacks.TensorBoard | None:
    """Keras's `TensorBoard` among the callbacks that are being called, or `None`."""
    for caller in callers():
        if isinstance(caller, keras.callbacks.CallbackList):
            boards = (
                callback
                for callback in caller.callbacks
                if isinstance(callback, keras.callbacks.TensorBoard)
            )
            return next(boards, None)
    return None
