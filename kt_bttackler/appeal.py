"""`run_on`: runs a stopped trial to its planned end, and corrects what is known of it.

```python
ktb.run_on(tuner, "07", x, y, epochs=20, validation_data=(xv, yv), callbacks=callbacks)
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial

from kt_bttackler import results, training_state
from kt_bttackler.callback import DiagnosisCallback
from kt_bttackler.channel import PREFIX
from kt_bttackler.diagnosed_tuner import DiagnosedTuner
from kt_bttackler.fuses import warn
from kt_bttackler.trace import Record, Trace, extend_trace, read_trace
from kt_bttackler.training_state import TrainingState
from kt_bttackler.upgrading import diagnose


def run_on(
    tuner: keras_tuner.Tuner, trial_id: str, *fit_args: Any, **fit_kwargs: Any
) -> Trial:
    """Runs a stopped trial to its planned end: "you were wrong about this one".

    Where the tuner has kept its last state (`keep_stopped=`) the training goes on
    exactly there: weights, optimizer, epoch, and with `seed` the random numbers, so
    that it is, bit for bit, the training that was never stopped. Else it is trained
    anew, with the same seed. Executions that were spared are made up for.

    Then the trial is `COMPLETED`, with the score of its whole training, and what it
    was stopped for stays in its message. Its trace reads as a complete one: what
    followed is added to it. Of a training that is not the same again, as without a
    seed, the new trace takes the place of the old, which is kept beside it as
    `stopped-trace-<execution>.jsonl`. So it counts as evidence for a calibration. The
    verdict file is left as it is.

    Args:
        tuner: the tuner of the search; to go on with an older one, make it again with
            the same arguments.
        trial_id: of the trial, such as "07".
        *fit_args: the arguments of `tuner.search`.
        **fit_kwargs: likewise. A `DiagnosisCallback` among the callbacks watches, and
            stops nothing; without one the default one does.

    Returns:
        The corrected trial.

    Raises:
        TypeError: `tuner` is no tuner with its oracle in this process.
        ValueError: there is no such trial, or no diagnosis has stopped it.
    """
    if not isinstance(tuner, keras_tuner.Tuner) or not isinstance(
        tuner.oracle, keras_tuner.Oracle
    ):
        raise TypeError(
            "`tuner` must be a keras_tuner.Tuner with its oracle in this process, got "
            f"{tuner!r}."
        )
    if not isinstance(tuner, DiagnosedTuner):
        diagnose(tuner)
    trial = _stopped_trial(tuner, trial_id)
    before = trial.message or str(results.diagnosis_of(trial))
    callbacks = list(fit_kwargs.pop("callbacks", None) or ())
    watching = [c for c in callbacks if isinstance(c, DiagnosisCallback)]
    if not watching:
        watching = [DiagnosisCallback()]
        callbacks += watching
    folder = pathlib.Path(tuner.get_trial_dir(trial_id))
    records = _Records(watching[0].trial_folder(folder))
    states = _states(folder, records.before)
    with _best_weights_kept(folder) as kept, tuner.appealing(states):
        outcome = tuner.run_trial(trial, *fit_args, callbacks=callbacks, **fit_kwargs)
        parts = outcome if isinstance(outcome, list) else [outcome]
        for execution in states:
            _prepend(parts[execution], records.before[execution])
        metrics, step = _best(parts, tuner.oracle.objective)
        # The checkpoint that was written meanwhile is the best of the later epochs.
        kept.wanted = bool(states) and step < min(s.epoch for s in states.values())
    epochs = records.settle(states)
    score = tuner.oracle.objective.get_value(metrics)
    message = f"{before}; run on to epoch {epochs}: {tuner.oracle.objective.name} "
    message += f"{score:.4g}" if isinstance(score, float) else str(score)
    corrected = tuner.oracle.correct_trial(trial_id, metrics, step, message)
    training_state.forget(folder, stopped=True)
    return corrected


def _stopped_trial(tuner: keras_tuner.Tuner, trial_id: str) -> Trial:
    trials: Mapping[str, Trial] = tuner.oracle.trials
    stopped = [name for name, t in trials.items() if results.diagnosis_of(t)]
    if trial_id not in stopped:
        known = "no such trial" if trial_id not in trials else "which was not stopped"
        listed = f"stopped are {', '.join(stopped)}" if stopped else "none was stopped"
        raise ValueError(
            f"`trial_id` must be that of a trial which a diagnosis has stopped, got "
            f"{trial_id!r}, {known}; {listed}."
        )
    return trials[trial_id]


class _Records:
    """The traces of a trial before and after it is run on.

    Args:
        folder: where they are.

    Attributes:
        before: by execution, what was recorded until it was stopped.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self.before: dict[int, Trace] = {}
        for path in folder.glob("trace-*.jsonl"):
            number = path.stem.removeprefix("trace-")
            with contextlib.suppress(OSError, ValueError):
                self.before[int(number)] = read_trace(path)
        for path in folder.glob("appeal-*.jsonl"):  # of an attempt that was broken off
            path.unlink()

    def settle(self, states: Mapping[int, TrainingState]) -> int:
        """Makes one trace of each training.

        Args:
            states: by execution, what was gone on with.

        Returns:
            The last epoch.
        """
        last = 0
        for path in sorted(self._folder.glob("appeal-*.jsonl")):
            number = path.stem.removeprefix("appeal-")
            after = read_trace(path)
            last = max(last, after.epoch)
            if not number.isdecimal():  # a second fit in the same execution
                os.replace(path, path.with_name(f"trace-{number}.jsonl"))
                continue
            self._settle(path, int(number), after, int(number) in states)
        return last

    def _settle(
        self, path: pathlib.Path, execution: int, after: Trace, went_on: bool
    ) -> None:
        target = path.with_name(f"trace-{execution}.jsonl")
        before = self.before.get(execution)
        if before is not None and before.last is not None:
            shift = before.last.seconds
            more = after.records
            if not went_on and _same(before, after):
                more = more[len(before) :]
                shift -= after.records[len(before) - 1].seconds
                went_on = True
            if went_on:
                extend_trace(target, [_later(r, shift) for r in more], after.end)
                path.unlink()
                return
        if target.exists():
            os.replace(target, target.with_name(f"stopped-{target.name}"))
        os.replace(path, target)


def _same(before: Trace, after: Trace) -> bool:
    """Whether a training is, as far as it was recorded before, the same again."""
    if before.partial or len(after) < len(before):
        return False
    names = ("loss", before.header.objective)
    return all(
        old.epoch == new.epoch
        and all(old.scalars.get(name) == new.scalars.get(name) for name in names)
        for old, new in zip(before.records, after.records, strict=False)
    )


def _later(record: Record, seconds: float) -> Record:
    """A record as that of a training that was under way before.

    What is recorded once, at the begin of a training, is not the begin of this one.
    """

    def lasting(name: str) -> bool:
        return not name.startswith("first_") and "/initial_" not in name

    return dataclasses.replace(
        record,
        seconds=record.seconds + seconds,
        scalars={k: v for k, v in record.scalars.items() if lasting(k)},
        columns={k: v for k, v in record.columns.items() if lasting(k)},
    )


def _states(
    folder: pathlib.Path, before: Mapping[int, Trace]
) -> dict[int, TrainingState]:
    """By execution, the state in which it was stopped, where it can be gone on with."""
    states = {}
    for execution, trace in before.items():
        path = training_state.path_of(folder, execution, stopped=True)
        if trace.partial or not path.exists():  # partial: broken off amid an epoch
            continue
        try:
            state = TrainingState.load(path)
        except Exception as error:
            warn(f"execution {execution} is trained anew: {path}: {error}")
            continue
        if state.epoch == trace.epoch:
            states[execution] = state
    return states


@dataclasses.dataclass
class _Kept:
    """Whether the weights that were the best before are still the best."""

    wanted: bool = True


@contextlib.contextmanager
def _best_weights_kept(folder: pathlib.Path) -> Iterator[_Kept]:
    """Puts the checkpoint of a trial back, unless a better one has come."""
    kept, aside = _Kept(), folder / "kept-checkpoint"
    aside.mkdir(exist_ok=True)
    for path in folder.glob("checkpoint*"):
        shutil.copy2(path, aside / path.name)
    try:
        yield kept
    finally:
        if kept.wanted:
            for path in aside.iterdir():
                os.replace(path, folder / path.name)
        shutil.rmtree(aside)


def _prepend(result: Any, before: Trace) -> None:
    """Gives a History the epochs before those that it is of."""
    if not isinstance(result, keras.callbacks.History):
        return
    for name, values in result.history.items():
        if name.startswith(PREFIX):  # the same in every epoch
            past = [values[-1]] * len(before)
        else:
            past = [float(value) for value in before.scalar(name)]
        result.history[name] = [*past, *values]


def _best(parts: Sequence[Any], objective: Any) -> tuple[dict[str, float], int]:
    """Metrics of the best epoch, and which it was; means over executions.

    As KerasTuner has it, where it is private.
    """
    metrics, steps = [], []
    for part in parts:
        if not isinstance(part, keras.callbacks.History):
            number = not isinstance(part, Mapping)
            metrics.append({objective.name: part} if number else dict(part))
            steps.append(0)
            continue
        epochs = [
            {name: values[n] for name, values in part.history.items()}
            for n in range(max(map(len, part.history.values())))
        ]
        best = 0
        for n, epoch in enumerate(epochs):
            value = objective.get_value(epoch)
            if objective.better_than(value, objective.get_value(epochs[best])):
                best = n
        value = objective.get_value(epochs[best])
        metrics.append({objective.name: value} | epochs[best])
        steps.append(best)
    names = dict.fromkeys(name for each in metrics for name in each)
    means = {
        name: float(np.mean([each[name] for each in metrics if name in each]))
        for name in names
    }
    return means, int(np.mean(steps))
