"""One training that is being watched: recorded, judged, and ended if it must be."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from kt_bttackler import channel, context, files
from kt_bttackler.board import TrainingBoard
from kt_bttackler.diagnosis import Diagnosis, Verdict, standing
from kt_bttackler.fuses import Fuses, warn
from kt_bttackler.indicators import Finding, QualityIndicator
from kt_bttackler.recorder import Recorder
from kt_bttackler.tensorboard import Reading
from kt_bttackler.trace import Header, Record, Trace, TraceStore, TraceWriter
from kt_bttackler.worker import Worker

# An indicator that takes longer is switched off.
INDICATOR_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How trainings are watched: the arguments of `DiagnosisCallback`.

    Attributes:
        diagnosis: judges every epoch.
        stop: end a training when it says so.
        objective: name and direction, or `None` for those of the search.
        epochs: E where it is more than `fit` is told, else `None`.
        tap: "training" or "probe".
        probe_data: x or (x, y), or `None`.
        log_dir: folder for TensorBoard, or `None`.
        trace_dir: folder for traces, or `None`.
        warmup_epochs: leading epochs in which early indicators keep quiet.
    """

    diagnosis: Diagnosis
    stop: bool
    objective: tuple[str, str] | None
    epochs: int | None
    tap: str
    probe_data: Any
    log_dir: str | os.PathLike[str] | None
    trace_dir: str | os.PathLike[str] | None
    warmup_epochs: int


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a training stands.

    Attributes:
        in_search: it is one of a search.
        trial: the trial it belongs to; `None` when that is unknown or there is none.
        execution: number of the execution, `None` when unknown.
    """

    in_search: bool = False
    trial: context.RunningTrial | None = None
    execution: int | None = None


class WatchedTraining:
    """One training that is being watched, from its begin to its end.

    Args:
        model: the model.
        params: what Keras tells callbacks: `epochs`, `steps`.
        settings: how to watch.
        place: where the training stands.
        fuses: switches off what fails.
    """

    def __init__(
        self,
        model: keras.Model,
        params: Mapping[str, Any],
        settings: Settings,
        place: Place,
        fuses: Fuses,
    ) -> None:
        self.fuses = fuses
        self.verdict: Verdict | None = None
        self.trace = Trace(Header())
        self._model = model
        self._params = params
        self._settings = settings
        self._diagnosis = settings.diagnosis
        self._place = place
        self._trial = place.trial
        self._appealed = place.trial is not None and place.trial.appealed
        self._stops = settings.stop and not self._appealed
        self._findings: list[tuple[Finding, ...]] = []
        self._disabled: set[str] = set()
        self._before = Trace(Header())  # of epochs that another training has trained
        self._epoch = 0
        self._suspected = False  # something was not finite in this epoch
        self._broken = False  # and the epoch was broken off for it
        self._last_logs: dict[str, float] = {}
        self._started = time.time()
        probe_data = settings.probe_data
        if probe_data is None and self._trial is not None:
            probe_data = self._trial.probe_data
        # Statistics of large models, and every indicator, run beside the training.
        self._worker = Worker()
        self._recorder = Recorder(
            self._model,
            self._diagnosis.needs,
            settings.tap,
            probe_data,
            fuses,
            self._worker,
        )
        self._unfinished: Callable[[], Record] | None = None
        self._trace_path = self._choose_trace_path()
        self._peers = _Peers(self._trial, self._trace_path)
        self._trace_file: TraceWriter | None = None
        self._board = TrainingBoard(settings.log_dir, self._trial, place.execution)
        self._readings: list[Reading] = []  # of the last epoch
        if place.in_search and self._trial is None:
            warn(
                "the running trial is unknown here: the oracle does not understand "
                "verdicts (take a tuner of kt_bttackler, or `diagnosed(OracleClass)`), "
                "or this is a worker with KerasTuner's own tuner. Traces go to "
                "`trace_dir`, scalars to `log_dir`, and nothing is compared with "
                "other trials."
            )

    def begin(self) -> None:
        """Installs the taps."""
        self._recorder.begin(self._params.get("steps"))
        self.fuses(
            "study in TensorBoard",
            self._board.begin,
            self._objective({}),
            [indicator.id for indicator in self._diagnosis.indicators],
            self._started,
        )

    def go_on(self, before: Trace) -> None:
        """Takes over what another training has recorded of the epochs before."""
        self._before = before
        if before.last is not None:
            self._started -= before.last.seconds
        # What was found then, where the rule looks back at it.
        last = len(before)
        for epoch in range(max(1, last + 2 - self._diagnosis.rule.lookback), last + 1):
            self._findings.append(self._findings_of(before.prefix(epoch)))

    def begin_epoch(self, epoch: int) -> None:
        """Starts epoch `epoch`, from 1."""
        self._epoch = epoch
        self._suspected = False
        self._recorder.begin_epoch()

    def end_step(self, step: int, logs: Mapping[str, Any]) -> None:
        """Samples gradients; ends an epoch that can only be lost."""
        numbers = _numbers(logs)
        finite = self._recorder.end_step(step, numbers)
        if self._suspected or (finite and math.isfinite(numbers.get("loss", 0.0))):
            return
        # Judged now, once, on a record that holds no more than this, so that the
        # rest of a lost epoch is not trained. The epoch's own record follows.
        self._suspected = True
        self._finish_epoch()
        broken = self._recorder.broken_record(self._epoch, numbers)
        trace = self._extended(self._placed(broken))
        verdict = self._judge([*self._findings, self._findings_of(trace)], trace)
        if verdict is not None and verdict.stop and self._stops:
            self._broken = True
            self._model.stop_training = True

    def begin_validation(self) -> None:
        """Cuts the validation short that would follow a broken epoch."""
        if self._broken:
            # Keras looks at this flag after every validation batch.
            self._model.stop_evaluating = True

    def end_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        """Records epoch `epoch`, judges, and ends the training if it must be."""
        scalars = _numbers(logs)
        if self._broken:
            # The validation was cut short: what it measured must mislead nobody.
            for name in [name for name in logs if name.startswith("val_")]:
                logs[name] = math.nan
                scalars.pop(name, None)
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
        record = self._placed(finish())
        self.trace = self._extended(record)
        self.fuses("trace file", self._write_record, record)
        self._findings.append(self._findings_of(self.trace))
        verdict = self._judge(self._findings, self.trace)
        if verdict is not None and standing(self.verdict, verdict) is verdict:
            self.verdict = verdict
            self.fuses("verdict file", self._write_verdict, verdict)
            if verdict.stop and self._stops:
                self._model.stop_training = True
        self.fuses("TensorBoard", self._board.add_epoch, self.trace, self._readings)

    def end(self) -> None:
        """Lets the model go, and tells the oracle through the History."""
        self.fuses("diagnosis", self._finish_epoch)
        self._recorder.end()
        self._worker.close()
        self._broken = False
        stopped = self.verdict if self.verdict and self.verdict.stop else None
        stopped = stopped if self._stops else None
        self.trace.end = "stopped" if stopped else "finished"
        if self._trace_file is not None:
            self.fuses("trace file", self._trace_file.close, self.trace.end)
        self.fuses(
            "TensorBoard", self._board.close, self.trace, self.verdict, bool(stopped)
        )
        self.fuses("study in TensorBoard", self._board.end, self.trace, stopped)
        if self._place.in_search:
            self._tell_oracle(stopped)

    def _extended(self, record: Record) -> Trace:
        """The trace with one record more; the header is complete from the first on."""
        if len(self.trace):
            return self.trace.with_record(record)
        return Trace(self._header(record), [*self._before.records, record])

    def _placed(self, record: Record) -> Record:
        """The record with the seconds since the epochs before began."""
        if self._before.last is None:
            return record
        passed = record.seconds + self._before.last.seconds
        return dataclasses.replace(record, seconds=passed)

    def _header(self, record: Record) -> Header:
        trial = self._trial
        planned = self._settings.epochs or (trial.max_epochs if trial else None)
        planned = planned or self._params.get("epochs")
        objective, direction = self._objective(record.scalars)
        own: dict[str, Any] = {
            "trial_id": trial.trial_id if trial else None,
            "execution": self._place.execution or 0,
            "started": self._started,
            "max_epochs": planned,
            "objective": objective,
            "direction": direction,
            "hyperparameters": dict(trial.hyperparameters) if trial else {},
            "warmup_epochs": self._settings.warmup_epochs,
        }
        if len(self._before):
            return dataclasses.replace(self._before.header, **own)
        model_fields = self.fuses(
            "model graph", self._recorder.header_fields, planned, otherwise={}
        )
        return Header(initial_epoch=record.epoch - 1, **own, **model_fields)

    def _objective(self, logs: Mapping[str, float]) -> tuple[str, str]:
        if self._settings.objective is not None:
            return self._settings.objective
        if self._trial is not None:
            return self._trial.objective, self._trial.direction
        if len(self.trace):  # not another one in epochs without a validation
            return self.trace.header.objective, self.trace.header.direction
        return ("val_loss" if "val_loss" in logs else "loss"), "min"

    def _findings_of(self, trace: Trace) -> tuple[Finding, ...]:
        self._readings.clear()
        shown = self._board.shown

        def ask(indicator: QualityIndicator, trace: Trace) -> Finding | None:
            finding: Finding | None
            finding, reading = self._worker.run(
                _examine, indicator, trace, shown, seconds=INDICATOR_SECONDS
            )
            if reading is not None:
                self._readings.append(reading)
            return finding

        return self._diagnosis.findings(trace, self._disabled, ask)

    def _judge(
        self, findings: list[tuple[Finding, ...]], trace: Trace
    ) -> Verdict | None:
        last = findings[-self._diagnosis.rule.lookback :]
        verdict = self.fuses("rule", self._diagnosis.judge, last, trace, self._peers)
        return verdict if isinstance(verdict, Verdict) else None

    def _choose_trace_path(self) -> pathlib.Path | None:
        trial, folder = self._trial, self._settings.trace_dir
        if trial is not None:
            place = pathlib.Path(folder) if folder else trial.project_dir
            if place is None:
                return None
            kind = "appeal" if self._appealed else "trace"
            name = f"{kind}-{self._place.execution}.jsonl"
            return trial.claim(place / f"trial_{trial.trial_id}" / name)
        if folder is None:
            return None
        # Nothing tells one training from the next: the first free number.
        number = 0
        while (path := pathlib.Path(folder) / f"trace-{number}.jsonl").exists():
            number += 1
        return path

    def _write_record(self, record: Record) -> None:
        if self._trace_path is None:
            return
        if self._trace_file is None:
            self._trace_file = TraceWriter(self._trace_path, self.trace.header)
            if not self._appealed:  # what has stopped it stays known
                # Of a run of this trial that was broken off.
                self._path_of("verdict").unlink(missing_ok=True)
                self.fuses("diagnosis file", self._write_diagnosis)
            for before in self._before.records:
                self._trace_file.append(before)
        self._trace_file.append(record)

    def _write_diagnosis(self) -> None:
        """What judges this training, for whoever looks at it later."""
        files.write_atomically(self._path_of("diagnosis"), self._diagnosis.to_json())

    def _write_verdict(self, verdict: Verdict) -> None:
        if self._trace_path is not None and not self._appealed:
            files.write_atomically(self._path_of("verdict"), verdict.to_json())

    def _path_of(self, kind: str) -> pathlib.Path:
        """The file `<kind>-<execution>.json` beside the trace."""
        assert self._trace_path is not None
        name = self._trace_path.name.replace("trace-", f"{kind}-", 1)
        return self._trace_path.with_name(name).with_suffix(".json")

    def _tell_oracle(self, stopped: Verdict | None) -> None:
        entries = channel.encode(stopped, self._last_logs)
        execution = self._place.execution
        history = self._model.history.history
        if stopped is None and 1.0 in history.get(channel.STOPPED, ()):
            return  # another callback has stopped this training
        if self._trial is not None and execution is not None:
            # Of several fits in one execution, the first that was stopped counts.
            if execution not in self._trial.verdicts:
                self._trial.channels[execution] = entries
            if stopped is not None:
                self._trial.verdicts.setdefault(execution, stopped)
        if not execution:  # the first execution decides, or it is unknown which it is
            length = max((len(values) for values in history.values()), default=0)
            history.update({key: [value] * length for key, value in entries.items()})


class _Peers:
    """Traces of the other trials of a search, read when a rule asks for them."""

    def __init__(
        self, trial: context.RunningTrial | None, trace_path: pathlib.Path | None
    ) -> None:
        self._trial = trial
        # Beside the folder of this trial stand those of the others.
        folder = trace_path.parent.parent if trial and trace_path else None
        self._store = TraceStore(folder, columns=False) if folder else None

    def __iter__(self) -> Iterator[Trace]:
        if self._trial is None or self._store is None:
            return
        for trace in self._store:
            if trace.header.trial_id != self._trial.trial_id:
                yield trace


def _examine(
    indicator: QualityIndicator, trace: Trace, shown: bool
) -> tuple[Finding | None, Reading | None]:
    """What an indicator says, and, where it is shown, its value and severity."""
    finding = indicator(trace)
    if not shown:
        return finding, None
    return finding, (indicator, indicator.measure(trace), indicator.severity(trace))


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """The logs that are a number each; metrics may be vectors, and others strings."""
    numbers = {}
    for name, value in logs.items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers
