"""Searches in which an oracle chooses among recorded trainings, at no cost.

Bayesian searches cannot be replayed as they were: what is stopped early changes what
they propose next. Here an oracle proposes as ever, the recorded configuration nearest
to its proposal takes its place, and what came of that under a diagnosis is what the
oracle is told. A search of hours takes seconds, and can be had with hundreds of seeds.

```python
recording = replay.Recording(TraceStore("studies/mine"))
oracle = oracles.TPEOracle("val_loss", max_trials=50, hyperparameters=space, seed=1)
run = tabular.search(oracle, recording, Diagnosis("balanced"), budget=3600.0)
```
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras_tuner
import numpy as np

from kt_bttackler import channel
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.oracles.encoding import Space
from kt_bttackler.replay import Recording, ReplayedTrial, Simulation, score_of, simulate


def search(
    oracle: keras_tuner.Oracle,
    recording: Recording,
    diagnosis: Diagnosis,
    *,
    workers: int = 1,
    budget: float | None = None,
) -> Simulation:
    """Searches among recorded configurations, on a simulated clock.

    The oracle is told the configuration that was taken for its proposal, so that it
    learns nothing untrue. No configuration is taken twice; with a budget that lasts
    for most of them, all searches end alike.

    Args:
        oracle: an oracle that has not begun, with the space of the recording. One of
            this package understands what a diagnosis says.
        recording: trainings that all ran to their end.
        diagnosis: judges every epoch; `NeverStop` for a search without.
        workers: how many trials train at a time.
        budget: simulated seconds after which everything ends. Default: when the oracle
            or the recording has no more trials.

    Returns:
        The simulated search; its scores are those that a live search reports.

    Raises:
        ValueError: a training was cut short, or has other hyperparameters.
    """
    if not all(recording.complete):
        raise ValueError("`recording` must hold trainings that ran to their end only.")
    table = _Table(oracle, recording)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            _NoTuner(oracle=oracle, directory=folder, project_name="tabular")
            oracle.verbose = 0
            [run] = simulate(
                recording, diagnosis, workers=workers, budget=budget, order=table.choose
            )
    return run


class _NoTuner(keras_tuner.Tuner):
    """Gives an oracle the folder that it wants, and runs nothing."""

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """Is overridden, as KerasTuner wants a hypermodel otherwise."""
        raise NotImplementedError


class _Table:
    """Recorded configurations, of which the one nearest to a proposal is taken."""

    def __init__(self, oracle: keras_tuner.Oracle, recording: Recording) -> None:
        self._oracle = oracle
        self._recording = recording
        values = [trace.header.hyperparameters for trace in recording.traces]
        names = {each.name for each in oracle.get_space().space}
        if any(set(each) != names for each in values):
            raise ValueError(
                f"`recording` must have the hyperparameters {sorted(names)}."
            )
        self._values = values
        self._points = self._place(values)
        self._left = set(range(len(values)))
        self._trials: dict[int, Any] = {}  # KerasTuner's, by index of the trace
        self._told = 0

    def choose(self, ended: Sequence[ReplayedTrial]) -> int | None:
        """The trace to train next, when `ended` are over."""
        for replayed in ended[self._told :]:
            self._tell(replayed)
        self._told = len(ended)
        if not self._left:
            return None
        # One worker each: KerasTuner gives a busy one the trial that it has.
        trial = self._oracle.create_trial(f"worker {len(self._trials)}")
        if trial.status != "RUNNING":
            return None
        [point] = self._place([trial.hyperparameters.values])
        candidates = sorted(self._left)
        distances = np.linalg.norm(self._points[candidates] - point, axis=1)
        index = candidates[int(np.argmin(distances))]
        self._left.remove(index)
        trial.hyperparameters.values = dict(self._values[index])
        self._trials[index] = trial
        return index

    def _tell(self, replayed: ReplayedTrial) -> None:
        """Ends a trial as a tuner does."""
        trace = self._recording.traces[replayed.index].prefix(replayed.epochs)
        stopped = (
            replayed.verdict if replayed.outcome in ("stopped", "benign") else None
        )
        objective = self._recording.objective
        last = {objective: score_of(trace, best=False)}
        metrics = {objective: score_of(trace, best=True)}
        trial = self._trials[replayed.index]
        self._oracle.update_trial(
            trial.trial_id, metrics | channel.encode(stopped, last)
        )
        trial.status = "COMPLETED"
        self._oracle.end_trial(trial)

    def _place(self, values: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Configurations as points whose distances mean something, see `encoding`."""
        asked_for_all: list[set[str] | None] = [set() for _ in values]
        space = Space(self._oracle.get_space().space, values, asked_for_all)
        return np.asarray(space.columns(space.places, space.active))
