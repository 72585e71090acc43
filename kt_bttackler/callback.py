"""`DiagnosisCallback`: watches a training, judges every epoch, ends hopeless ones.

```python
model.fit(x, y, epochs=20, callbacks=[ktb.DiagnosisCallback()])
```
"""

from __future__ import annotations

import math
import os
import pathlib
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import keras

from kt_bttackler import channel, context, files
from kt_bttackler.diagnosis import Diagnosis, Verdict
from kt_bttackler.fuses import Fuses
from kt_bttackler.indicators import Finding, QualityIndicator
from kt_bttackler.recorder import Recorder
from kt_bttackler.tensorboard import DiagnosisWriter
from kt_bttackler.trace import Header, Record, Trace, TraceStore, TraceWriter
from kt_bttackler.worker import Worker

# An indicator that takes longer is switched off.
INDICATOR_SECONDS = 2.0

_COPIED = (
    "this callback was copied for every trial of a search, and the copies have the "
    "{name}s; ask `kt_bttackler.diagnosis_of(trial)` or read the trial's folder"
)


class DiagnosisCallback(keras.callbacks.Callback):
    """Diagnoses one training, or every training of a search.

    While it only watches, the training is the same bit for bit. A fault of the
    diagnosis costs one warning and that part of the diagnosis, never the training.

    In a search KerasTuner copies the callback for every execution. With an oracle of
    this package the copies know their trial and write
    `<project>/trial_<id>/trace-<execution>.jsonl` and `verdict-<execution>.json`.

    Args:
        diagnosis: a `Diagnosis`, the name of a preset, or the path of a JSON file.
        stop: end a training when the diagnosis says so. False only watches.
        objective: name of a metric or a `keras_tuner.Objective`. Default: that of
            the search; in `fit` `val_loss` where there is one, else `loss`.
        epochs: E, the planned epochs, when they are more than this `fit` is told.
        tap: where gradients come from: "training", the real steps, or "probe", a
            `GradientTape` on the probe batch.
        probe_data: inputs x, or (x, y), for the probe. Default: in a search with a
            tuner of this package 128 rows of x, else the first training batch.
        log_dir: folder for TensorBoard. Default: beside Keras's own `TensorBoard`
            callback, or nowhere.
        trace_dir: folder for traces. Default: the trial's folder, or nowhere.
        warmup_epochs: leading epochs in which the early indicators keep quiet.
            Default: while the learning rate rises.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: `diagnosis` or `objective` is of another type.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> callback = DiagnosisCallback()
        >>> x = np.zeros((8, 2), "float32")
        >>> _ = model.fit(x, np.full(8, np.nan), verbose=0, callbacks=[callback])
        >>> print(callback.verdict.cause)
        AGV
    """

    def __init__(
        self,
        diagnosis: Diagnosis | str | os.PathLike[str] | None = None,
        *,
        stop: bool = True,
        objective: Any = None,
        epochs: int | None = None,
        tap: Literal["training", "probe"] = "training",
        probe_data: Any = None,
        log_dir: str | os.PathLike[str] | None = None,
        trace_dir: str | os.PathLike[str] | None = None,
        warmup_epochs: int | None = None,
    ) -> None:
        super().__init__()
        if tap not in ("training", "probe"):
            raise ValueError(f"`tap` must be 'training' or 'probe', got {tap!r}.")
        for name, value, least in (("epochs", epochs, 1), ("warmup_epochs", warmup_epochs, 0)):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(
                    f"`{name}` must be an integer of at least {least}, got {value!r}."
                )
        self.diagnosis = _diagnosis(diagnosis)
        self.stop = stop
        self.tap = tap
        self._objective = _objective(objective)
        self._epochs = epochs
        self._probe_data = probe_data
        self._log_dir = log_dir
        self._trace_dir = trace_dir
        self._warmup_epochs = warmup_epochs or 0
        self._copies = 0
        # Set by __deepcopy__ in the copies that a search makes.
        self._in_search = False
        self._trial: context.RunningTrial | None = None
        self._execution: int | None = None
        self._training: _Training | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> DiagnosisCallback:
        """A fresh callback with the same arguments, for the trial that runs now."""
        fresh = type(self).__new__(type(self))
        fresh.__dict__.update(self.__dict__)
        fresh._copies = 0
        fresh._training = None
        fresh._in_search = True
        fresh._trial = context.running_trial()
        fresh._execution = (
            None if fresh._trial is None else fresh._trial.next_execution(self)
        )
        fresh._model = None
        fresh.params = None
        self._copies += 1
        memo[id(self)] = fresh
        return fresh

    @property
    def verdict(self) -> Verdict | None:
        """The verdict that ended the training, else the last that found something."""
        self._own("verdict")
        return self._training.verdict if self._training else None

    @property
    def trace(self) -> Trace | None:
        """What was recorded of the last training; `None` before the first."""
        self._own("trace")
        return self._training.trace if self._training else None

    def _own(self, name: str) -> None:
        if self._training is None and self._copies:
            raise AttributeError(_COPIED.format(name=name))

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Installs the taps."""
        fuses = Fuses()
        self._training = fuses("diagnosis", _Training, self, fuses)
        self._guarded("begin")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Forgets the samples of the epoch before."""
        self._guarded("begin_epoch", epoch + 1)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Samples gradients; ends an epoch that can only be lost."""
        self._guarded("end_step", batch, logs or {})

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Cuts the validation short that would follow a broken epoch."""
        self._guarded("begin_validation")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Records the epoch, judges, and ends the training if it must be."""
        self._guarded("end_epoch", epoch + 1, logs or {})

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Restores the model and tells the oracle, through the History."""
        if self._training is not None:
            # Has a fuse of its own: the model is let go whatever failed before.
            self._training.fuses("end of the diagnosis", self._training.end)

    def _guarded(self, hook: str, *arguments: Any) -> None:
        if self._training is not None:
            self._training.fuses("diagnosis", getattr(self._training, hook), *arguments)


class _Training:
    """One training that is being watched."""

    def __init__(self, callback: DiagnosisCallback, fuses: Fuses) -> None:
        self.fuses = fuses
        self.verdict: Verdict | None = None
        self.trace = Trace(Header())
        self._callback = callback
        self._model = callback.model
        self._trial = callback._trial
        self._diagnosis = callback.diagnosis
        self._findings: list[tuple[Finding, ...]] = []
        self._disabled: set[str] = set()
        self._epoch = 0
        self._suspected = False  # something was not finite in this epoch
        self._broken = False  # and the epoch was broken off for it
        self._last_logs: dict[str, float] = {}
        self._started = time.time()
        probe_data = callback._probe_data
        if probe_data is None and self._trial is not None:
            probe_data = self._trial.probe_data
        # Statistics of large models, and every indicator, run beside the training.
        self._worker = Worker()
        self._recorder = Recorder(
            self._model,
            self._diagnosis.needs,
            callback.tap,
            probe_data,
            fuses,
            self._worker,
        )
        self._unfinished: Callable[[], Record] | None = None
        self._trace_path = self._choose_trace_path()
        self._trace_file: TraceWriter | None = None
        self._log_dir = self._choose_log_dir()
        self._board: DiagnosisWriter | None = None
        if callback._in_search and self._trial is None:
            warnings.warn(
                "the running trial is unknown here (a worker with KerasTuner's own "
                "tuner): traces go to `trace_dir`, scalars to `log_dir`, and nothing "
                "is compared with other trials. A tuner of kt_bttackler knows.",
                stacklevel=2,
            )

    def begin(self) -> None:
        self._recorder.begin(self._callback.params.get("steps"))

    def begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._suspected = False
        self._recorder.begin_epoch()

    def end_step(self, step: int, logs: Mapping[str, float]) -> None:
        finite = self._recorder.end_step(step, logs)
        if self._suspected or (finite and math.isfinite(logs.get("loss", 0.0))):
            return
        # Judged now, once, on a record that holds no more than this, so that the
        # rest of a lost epoch is not trained. The epoch's own record follows.
        self._suspected = True
        self._finish_epoch()
        trace = self._extended(self._recorder.broken_record(self._epoch, logs))
        verdict = self._judge([*self._findings, self._findings_of(trace)], trace)
        if verdict is not None and verdict.stop and self._callback.stop:
            self._broken = True
            self._model.stop_training = True

    def begin_validation(self) -> None:
        if self._broken:
            # Keras looks at this flag after every validation batch.
            self._model.stop_evaluating = True

    def end_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        scalars = {name: float(value) for name, value in logs.items()}
        if self._broken:
            scalars = {k: v for k, v in scalars.items() if not k.startswith("val_")}
        else:
            self._last_logs = dict(scalars)
        objective, _ = self._objective(scalars)
        if objective in scalars:
            scalars["objective"] = scalars[objective]
        self._finish_epoch()
        self._unfinished = self._recorder.end_epoch(
            epoch, scalars, partial=self._broken
        )
        # The statistics of a large model are waited for at the end of the next epoch.
        if not self._recorder.large or self._broken:
            self._finish_epoch()

    def _finish_epoch(self) -> None:
        """Records and judges the epoch that is measured but not judged yet."""
        if self._unfinished is None:
            return
        finish, self._unfinished = self._unfinished, None
        record = finish()
        self.trace = self._extended(record)
        self.fuses("trace file", self._write_record, record)
        self._findings.append(self._findings_of(self.trace))
        verdict = self._judge(self._findings, self.trace)
        if verdict is not None and not (self.verdict and self.verdict.stop):
            self.verdict = verdict
            self.fuses("verdict file", self._write_verdict, verdict)
            if verdict.stop and self._callback.stop:
                self._model.stop_training = True
        self.fuses("TensorBoard", self._write_scalars)

    def end(self) -> None:
        self.fuses("diagnosis", self._finish_epoch)
        self._recorder.end()
        self._worker.close()
        stopped = self.verdict if self.verdict and self.verdict.stop else None
        stopped = stopped if self._callback.stop else None
        self.trace.end = "stopped" if stopped else "finished"
        if self._trace_file is not None:
            self.fuses("trace file", self._trace_file.close, self.trace.end)
        self.fuses("TensorBoard", self._close_board)
        if self._callback._in_search:
            self._tell_oracle(stopped)

    def _extended(self, record: Record) -> Trace:
        """The trace with one record more; the header is complete from the first on."""
        if len(self.trace):
            return self.trace.with_record(record)
        return Trace(self._header(record), [record])

    def _header(self, record: Record) -> Header:
        callback, trial = self._callback, self._trial
        planned = callback._epochs or (trial.max_epochs if trial else None)
        planned = planned or callback.params.get("epochs")
        objective, direction = self._objective(record.scalars)
        model_fields = self.fuses(
            "model graph", self._recorder.header_fields, planned, otherwise={}
        )
        return Header(
            trial_id=trial.trial_id if trial else None,
            execution=callback._execution or 0,
            started=self._started,
            initial_epoch=record.epoch - 1,
            max_epochs=planned,
            objective=objective,
            direction=direction,
            hyperparameters=dict(trial.hyperparameters) if trial else {},
            warmup_epochs=callback._warmup_epochs,
            **model_fields,
        )

    def _objective(self, logs: Mapping[str, float]) -> tuple[str, str]:
        if self._callback._objective is not None:
            return self._callback._objective
        if self._trial is not None:
            return self._trial.objective, self._trial.direction
        return ("val_loss" if "val_loss" in logs else "loss"), "min"

    def _findings_of(self, trace: Trace) -> tuple[Finding, ...]:
        def ask(indicator: QualityIndicator, trace: Trace) -> Finding | None:
            found: Finding | None = self._worker.run(
                indicator, trace, seconds=INDICATOR_SECONDS
            )
            return found

        return self._diagnosis.findings(trace, self._disabled, ask)

    def _judge(
        self, findings: list[tuple[Finding, ...]], trace: Trace
    ) -> Verdict | None:
        last = findings[-self._diagnosis.rule.lookback :]
        verdict = self.fuses("rule", self._diagnosis.judge, last, trace, self._peers())
        return verdict if isinstance(verdict, Verdict) else None

    def _peers(self) -> _Peers:
        return _Peers(self._trial)

    def _choose_trace_path(self) -> pathlib.Path | None:
        trial, folder = self._trial, self._callback._trace_dir
        if trial is not None:
            place = pathlib.Path(folder) if folder else trial.project_dir
            if place is None:
                return None
            name = f"trace-{self._callback._execution}.jsonl"
            return place / f"trial_{trial.trial_id}" / name
        if folder is None:
            return None
        # Nothing tells one training from the next: the first free number.
        number = 0
        while (path := pathlib.Path(folder) / f"trace-{number}.jsonl").exists():
            number += 1
        return path

    def _choose_log_dir(self) -> pathlib.Path | None:
        folder, per_trial = self._callback._log_dir, False
        if folder is None:
            keras_board = _sibling_tensorboard(self._callback)
            if keras_board is None:
                return None
            folder = keras_board.log_dir
            # KerasTuner gives each trial a folder of its own, but only to this class.
            per_trial = type(keras_board).__name__ == "TensorBoard"
        place = pathlib.Path(folder)
        if self._trial is not None and not per_trial:
            place = place / self._trial.trial_id / f"execution{self._callback._execution}"
        return place / "diagnosis"

    def _write_record(self, record: Record) -> None:
        if self._trace_path is None:
            return
        if self._trace_file is None:
            self._trace_file = TraceWriter(self._trace_path, self.trace.header)
        self._trace_file.append(record)

    def _write_verdict(self, verdict: Verdict) -> None:
        if self._trace_path is not None:
            name = self._trace_path.name.replace("trace-", "verdict-", 1)
            path = self._trace_path.with_name(name).with_suffix(".json")
            files.write_atomically(path, verdict.to_json())

    def _write_scalars(self) -> None:
        if self._log_dir is None:
            return
        if self._board is None:
            self._board = DiagnosisWriter(self._log_dir)
        self._board.add_epoch(self.trace, self._diagnosis)

    def _close_board(self) -> None:
        if self._board is not None:
            if self.verdict is not None:
                self._board.add_verdict(self.verdict)
            self._board.close()

    def _tell_oracle(self, stopped: Verdict | None) -> None:
        entries = channel.encode(stopped, self._last_logs)
        execution = self._callback._execution
        if self._trial is not None and execution is not None:
            self._trial.channels[execution] = entries
            if stopped is not None:
                self._trial.verdicts[execution] = stopped
        if not execution:  # the first execution decides, or it is unknown which it is
            history = self._model.history.history
            length = max((len(values) for values in history.values()), default=0)
            history.update({key: [value] * length for key, value in entries.items()})


class _Peers:
    """Traces of the other trials of a search, read when a rule asks for them."""

    def __init__(self, trial: context.RunningTrial | None) -> None:
        self._trial = trial

    def __iter__(self) -> Iterator[Trace]:
        if self._trial is None or self._trial.project_dir is None:
            return
        for trace in TraceStore(self._trial.project_dir, columns=False):
            if trace.header.trial_id != self._trial.trial_id:
                yield trace


def _diagnosis(given: Diagnosis | str | os.PathLike[str] | None) -> Diagnosis:
    if given is None:
        return Diagnosis()
    if isinstance(given, Diagnosis):
        return given
    if isinstance(given, os.PathLike) or (
        isinstance(given, str) and given.endswith(".json")
    ):
        return Diagnosis.load(given)
    if isinstance(given, str):
        return Diagnosis(given)
    raise TypeError(
        "`diagnosis` must be a Diagnosis, the name of a preset or the path of a "
        f"JSON file, got {given!r}."
    )


def _objective(given: Any) -> tuple[str, str] | None:
    if given is None:
        return None
    if isinstance(given, str):
        import keras_tuner

        # KerasTuner knows the direction of the usual metrics, and says when not.
        given = keras_tuner.oracles.RandomSearchOracle(objective=given).objective
    try:
        return given.name, given.direction
    except AttributeError:
        raise TypeError(
            "`objective` must be the name of a metric or a keras_tuner.Objective, "
            f"got {given!r}."
        ) from None


def _sibling_tensorboard(
    callback: keras.callbacks.Callback,
) -> keras.callbacks.TensorBoard | None:
    """Keras's `TensorBoard` in the list in which `callback` is, or `None`.

    Keras tells a callback nothing about its siblings, so this looks for the
    `CallbackList` among those who called it.
    """
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        siblings = frame.f_locals.get("self")
        if isinstance(siblings, keras.callbacks.CallbackList):
            for sibling in siblings.callbacks:
                if isinstance(sibling, keras.callbacks.TensorBoard):
                    return sibling
            return None
        frame = frame.f_back
    return None
