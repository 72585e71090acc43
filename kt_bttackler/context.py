"""Which trial is running: told by oracle and tuner, read by the callback's copies.

KerasTuner deep-copies the callbacks for every execution and tells them nothing
about the trial. Whoever creates or runs a trial publishes it here, and the copy
reads it. The record is per thread, so that searches side by side do not mix.
"""

from __future__ import annotations

import contextvars
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from kt_bttackler.diagnosis import Verdict


@dataclasses.dataclass
class RunningTrial:
    """The trial that is running in this thread.

    Attributes:
        trial_id: KerasTuner's id.
        hyperparameters: its values.
        oracle: the oracle of the search; tells this trial from one that an
            interrupted search left behind.
        project_dir: the project directory of the search.
        objective: name of the objective.
        direction: "min" or "max".
        max_epochs: E where tuner or oracle know it (Hyperband), else `None`.
        probe_data: rows x of the training data for the probe, or (x, y), or `None`.
        appealed: it was stopped and is run to its end all the same: watched, recorded
            apart, and never stopped.
        verdicts: by execution, the verdict that stopped it. Written by callbacks.
        channels: by execution, the entries of the in-band channel. Written by
            callbacks, for trainings whose History does not reach the oracle.
    """

    trial_id: str
    hyperparameters: Mapping[str, Any]
    oracle: Any
    project_dir: pathlib.Path | None
    objective: str
    direction: str
    max_epochs: int | None = None
    probe_data: Any = None
    appealed: bool = False
    verdicts: dict[int, Verdict] = dataclasses.field(default_factory=dict)
    channels: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
    _copies: dict[int, int] = dataclasses.field(default_factory=dict)
    _claimed: set[pathlib.Path] = dataclasses.field(default_factory=set)

    @classmethod
    def of(
        cls,
        trial: Any,
        oracle: Any,
        project_dir: str | os.PathLike[str] | None,
        max_epochs: int | None = None,
        probe_data: Any = None,
        appealed: bool = False,
    ) -> RunningTrial:
        """From KerasTuner's `Trial` and `Oracle`, or the client of one."""
        return cls(
            trial_id=trial.trial_id,
            hyperparameters=dict(trial.hyperparameters.values),
            oracle=oracle,
            project_dir=None if project_dir is None else pathlib.Path(project_dir),
            objective=oracle.objective.name,
            direction=oracle.objective.direction,
            max_epochs=max_epochs,
            probe_data=probe_data,
            appealed=appealed,
        )

    def next_execution(self, callback: object) -> int:
        """Number of the execution that a new copy of `callback` is for, from 0."""
        execution = self._copies.get(id(callback), 0)
        self._copies[id(callback)] = execution + 1
        return execution

    def claim(self, path: pathlib.Path) -> pathlib.Path:
        """A file for one training of this trial that no other training writes.

        `trace-0.jsonl` for the first one, `trace-0-1.jsonl` for a second fit in the
        same execution, or for a second callback in the list.
        """
        free, number = path, 0
        while free in self._claimed:
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")
        self._claimed.add(free)
        return free


_running: contextvars.ContextVar[RunningTrial | None] = contextvars.ContextVar(
    "running_trial", default=None
)


def publish(trial: RunningTrial | None) -> None:
    """Says which trial runs in this thread from now on; `None`: no trial."""
    _running.set(trial)


def running_trial() -> RunningTrial | None:
    """The trial that runs in this thread, or `None`."""
    return _running.get()
