"""One trial trained in stages: from the deepest state on its path to its end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from kt_bttackler.fuses import warn
from kt_bttackler.stages import callbacks as stage_callbacks
from kt_bttackler.stages.order import OrderedRows
from kt_bttackler.stages.schedules import Schedule
from kt_bttackler.stages.store import Best, Logs, StageState, StageStore
from kt_bttackler.stages.tree import state_ids, values_of
from kt_bttackler.stages.turns import Turn
from kt_bttackler.stages.verdicts import StageVerdict, judge_name
from kt_bttackler.stages.warm import BATCH_SIZE, WarmModel
from kt_bttackler.trace import Trace
from kt_bttackler.training_state import TrainingState

_DEFAULT_BATCH_SIZE = 32


@dataclasses.dataclass
class Usage:
    """What trials took, and what they were spared.

    Attributes:
        trials: how many were run.
        epochs: epochs of these trials.
        trained: epochs that were trained for them.
        saving: seconds in which states were written.
        loading: seconds in which states were looked for and read.
        waiting: seconds in which another process trained what was needed.
        cancelled: trials that were ended by a verdict on a stage of another trial.
        second_opinions: verdicts that were asked for with another seed.
        controls: by id, trials that were trained in spite of such a verdict, and its
            cause.
    """

    trials: int = 0
    epochs: int = 0
    trained: int = 0
    saving: float = 0.0
    loading: float = 0.0
    waiting: float = 0.0
    cancelled: int = 0
    second_opinions: int = 0
    controls: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, other: Usage) -> None:
        """Counts what was done for no trial of the search.

        Args:
            other: counted apart.
        """
        self.trained += other.trained
        self.saving += other.saving
        self.loading += other.loading
        self.waiting += other.waiting


class StagedTraining:
    """One execution of a trial.

    Args:
        warm: the model that trains.
        schedules: what changes in the training, by name.
        epochs: its length.
        root: name of the root.
        store: where states are.
        fit: called with arguments of `fit`.
        rows: the training data; `None` if it is a dataset of the user's.
        arguments: arguments of `fit` that are the same in all its calls.
        callbacks: those of the trial.
        objective: that of the search.
        usage: counts what is done.
        trial: id of the trial.
        judge: names the diagnosis that may end it; `None` if none may.
        control_share: share of the trials that are trained in spite of a verdict.
        until: train no more than these of its epochs.
    """

    def __init__(
        self,
        warm: WarmModel,
        schedules: Mapping[str, Schedule],
        epochs: int,
        root: str,
        store: StageStore,
        fit: Callable[..., Any],
        rows: OrderedRows | None,
        arguments: Mapping[str, Any],
        callbacks: Sequence[Any],
        objective: Any,
        usage: Usage,
        trial: str,
        judge: str | None,
        control_share: float = 0.0,
        until: int | None = None,
    ) -> None:
        self.epochs = epochs if until is None else min(until, epochs)
        self.history: list[Logs] = []
        self.best: Best | None = None
        self.channel: dict[str, float] = {}
        self._warm = warm
        self._schedules = schedules
        self._root = root
        self._store = store
        self._fit = fit
        self._rows = rows
        self._arguments = arguments
        self._callbacks = list(callbacks)
        self._objective = objective
        self._usage = usage
        self._trial = trial
        self._judge = judge
        self._control_share = control_share
        self._watcher = stage_callbacks.watcher_of(self._callbacks)
        self._recorded: Trace | None = None  # by it, or before
        self._is_own = True  # what the diagnosis says; not said of another trial
        self._sequence = values_of(schedules.values(), epochs)
        self._ids = state_ids(root, self._sequence)
        self._branches = set().union(*(s.branches(epochs) for s in schedules.values()))
        self._kept = 0  # epochs of the last state that is in the store
        # What the model is to be given before it is trained; None: it is in it.
        self._state: TrainingState | None = None
        self._turn = self._next_turn()
        self._segment_end = 0
        self._over = False

    def run(self, initial: TrainingState | None, wait: bool = True) -> bool:
        """Trains what is missing.

        Args:
            initial: what the training begins with; `None` if the model is in it.
            wait: while another process trains what is needed.

        Returns:
            False if it was not waited for.
        """
        stage_callbacks.prepare(self._callbacks)
        self._state = initial
        verdict = self._inherited()
        if verdict is not None and self._is_control(verdict):
            stage_callbacks.watch_only(self._callbacks)
            self._usage.controls[self._trial] = verdict.cause
            verdict = None
        if verdict is not None:
            self._is_own = False
            self.epochs = verdict.epoch
        self._go_on()
        if verdict is not None:
            # The stage may have been broken off, or its state had to make room.
            self.history = [dict(logs) for logs in verdict.history]
            self.channel = dict(verdict.entries)
            self._usage.cancelled += 1
        try:
            while not self._over and len(self.history) < self.epochs:
                if not self._wait_for_turn(wait):
                    return False
                if not self._go_on():
                    self._fit_segment()
        finally:
            self._turn.release()
        if self._state is not None and not self.model.built:
            self._state.restore(self.model)  # no batch has told it its shapes
        self._usage.trials += 1
        self._usage.epochs += len(self.history)
        return True

    def _inherited(self) -> StageVerdict | None:
        """The verdict that another trial has met on the path of this one."""
        if self._judge is None:
            return None
        for name in ["root", *self._ids[1:]]:
            verdict = self._store.verdict(self._root, name, self._judge)
            if verdict is None or verdict.epoch > self.epochs:
                continue
            if verdict.concerns(self._sequence):
                return verdict
        return None

    def _is_control(self, verdict: StageVerdict) -> bool:
        """Whether chance, the same in every process, chose the trial as a control.

        What is not finite stays so: there is nothing to find out.
        """
        if verdict.cause == "AGV":
            return False
        return int(self._ids[-1][:8], 16) < self._control_share * 16**8

    @property
    def model(self) -> keras.Model:
        """The model that trains."""
        return self._warm.model

    @property
    def verdict(self) -> StageVerdict | None:
        """The harmful verdict that ended this trial, as the first one that it ends."""
        if not self._is_own or not self.history:
            return None
        return StageVerdict.of(self.channel, self.history, self._trial)

    def at_stake(self, epoch: int) -> int:
        """How many other trials may go through the first epochs of this one.

        Args:
            epoch: how many epochs these are.
        """
        count = 1
        for schedule in self._schedules.values():
            effects = schedule.first_effects(len(self._sequence))
            for key, first in effects.items():
                if first >= epoch:
                    count *= len(schedule.axes[key].candidates)
        return count - 1

    def share_verdict(self) -> None:
        """Lets the verdict end other trials, too."""
        verdict = self.verdict
        if verdict is not None and self._judge is not None:
            name = self._ids[verdict.epoch]
            self._store.note_verdict(self._root, name, self._judge, verdict)

    def _go_on(self) -> bool:
        """Goes on with the deepest state on the path, if it is deeper than this one.

        A trial that a callback ends earlier becomes as short as that.
        """
        begun = time.perf_counter()
        found = self._deepest()
        if found is not None:
            self.history = list(found.history)
            self.best = found.best
            self._kept = found.training.epoch
            self._state = found.training
            if self._watcher is not None:
                name, judge = self._ids[self._kept], judge_name(self._watcher.diagnosis)
                recorded = self._store.trace(self._root, name, judge)
                # That of a large model ends an epoch before. One that ends earlier
                # was left by a process that was killed.
                whole = recorded is not None and recorded.epoch >= self._kept - 1
                self._recorded = recorded if whole else None
        self._usage.loading += time.perf_counter() - begun
        return found is not None

    def _deepest(self) -> StageState | None:
        model = self._warm.model
        for epochs in range(self.epochs, len(self.history), -1):
            if epochs > self.epochs:
                continue
            name = self._ids[epochs]
            history = self._store.history(self._root, name)
            if history is None:
                continue
            ended = stage_callbacks.tell_again(self._callbacks, model, history)
            self.epochs = self.epochs if ended is None else ended
            state = None
            if epochs <= self.epochs:
                state = self._store.load(self._root, name)
            if state is not None:
                return state
        return None

    def _wait_for_turn(self, wait: bool) -> bool:
        """Whether this process may train what the trial needs next."""
        self._turn.release()
        self._turn = self._next_turn()
        begun = time.perf_counter()
        taken = self._turn.take(wait)
        self._usage.waiting += time.perf_counter() - begun
        return taken

    def _next_turn(self) -> Turn:
        """The right to train up to the next state."""
        done = len(self.history)
        ends = [epoch for epoch in self._branches if epoch > done]
        return self._store.turn(self._root, self._ids[min([*ends, self.epochs])])

    def _fit_segment(self) -> None:
        """Trains the epochs that have the same batch size."""
        model = self._warm.model
        start = len(self.history)
        sizes = [dict(values).get(BATCH_SIZE) for values in self._sequence]
        end = start
        while end < self.epochs and sizes[end] == sizes[start]:
            end += 1
        self._segment_end = end
        if self._state is not None:
            begun = time.perf_counter()
            self._state.restore(model)
            self._state.restore_random_numbers()
            self._state = None
            self._usage.loading += time.perf_counter() - begun
        arguments = dict(self._arguments)
        if self._rows is not None:
            default = arguments.pop(BATCH_SIZE, None) or _DEFAULT_BATCH_SIZE
            size = int(sizes[start] or default)
            arguments["x"] = self._rows.dataset(size)
            # Keras would take the batch size of the training, which is now unknown.
            arguments["validation_batch_size"] = (
                arguments.get("validation_batch_size") or size
            )
        self._fit(
            model,
            initial_epoch=start,
            epochs=end,
            callbacks=[_Setter(self), *self._callbacks, _Keeper(self)],
            **arguments,
        )
        told = model.history.history
        seen = {name for logs in self.history for name in logs}
        self.channel = {n: v[-1] for n, v in told.items() if n not in seen and v}

    def begin_fit(self) -> None:
        """Tells callbacks of the epochs before."""
        model = self._warm.model
        stage_callbacks.tell_again(self._callbacks, model, self.history)
        if self._watcher is not None and self._recorded is not None:
            self._watcher.go_on(self._recorded)

    def begin_epoch(self, epoch: int) -> None:
        """Sets the values and the order of the rows; counts epochs from 0."""
        self._warm.set(self._sequence[epoch], self._schedules)
        if self._rows is not None:
            self._rows.begin_epoch(epoch)

    def end_epoch(self, epoch: int, logs: Logs, whole: bool) -> None:
        """Notes the logs, and keeps the state where others may go on from it.

        Args:
            epoch: counted from 0.
            logs: of the epoch.
            whole: whether all its batches were trained. What follows a part of an
                epoch is nobody else's beginning.
        """
        model = self._warm.model
        self.history.append(logs)
        self._usage.trained += 1
        if self._watcher is not None:
            self._recorded = stage_callbacks.recorded_by(self._watcher)
        if self._improves(logs):
            self.best = Best(epoch, [variable.numpy() for variable in model.variables])
        self._over = bool(model.stop_training) or not whole
        ends = self._over or epoch + 1 == self.epochs
        branch = epoch + 1 in self._branches
        if whole and (ends or branch):
            self._keep(epoch + 1, branch)
        if ends:
            return
        if branch and not self._take_next_turn():
            model.stop_training = True
        if epoch + 1 == self._segment_end or model.stop_training:
            # With averaged weights `fit` ends with others than it trained.
            self._state = TrainingState.of(model, epoch + 1, self._root)

    def _take_next_turn(self) -> bool:
        """Whether this process is to train what follows; another may be faster."""
        self._turn.release()
        self._turn = self._next_turn()
        return self._turn.take(wait=False)

    def _improves(self, logs: Logs) -> bool:
        if not self._objective.has_value(logs):
            return True  # it is computed after the training: the last epoch counts
        if self.best is None:
            best = float("inf" if self._objective.direction == "min" else "-inf")
        else:
            best = self._objective.get_value(self.history[self.best.epoch])
        return bool(self._objective.better_than(self._objective.get_value(logs), best))

    def _keep(self, epochs: int, branch: bool) -> None:
        begun = time.perf_counter()
        try:
            training = TrainingState.of(self._warm.model, epochs, self._root)
            state = StageState(training, self.history, self.best)
            cost, name = epochs - self._kept, self._ids[epochs]
            if self._store.save(self._root, name, state, branch=branch, cost=cost):
                self._kept = epochs
                self._keep_recorded(name)
        except Exception as error:
            warn(f"a stage may be trained again: {type(error).__name__}: {error}")
        self._usage.saving += time.perf_counter() - begun

    def _keep_recorded(self, name: str) -> None:
        if self._watcher is not None and self._recorded is not None:
            judge = judge_name(self._watcher.diagnosis)
            self._store.note_trace(self._root, name, judge, self._recorded)


class _Setter(keras.callbacks.Callback):
    """The first callback: sets what the epoch is trained with."""

    def __init__(self, training: StagedTraining) -> None:
        super().__init__()
        self._training = training

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._training.begin_epoch(epoch)


class _Keeper(keras.callbacks.Callback):
    """The last callback: keeps what the others have left."""

    def __init__(self, training: StagedTraining) -> None:
        super().__init__()
        self._training = training
        self._batches = 0
        self._cut = False

    def on_train_begin(self, logs: Any = None) -> None:
        self._training.begin_fit()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batches = batch + 1
        self._cut = bool(self.model.stop_training)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        steps = (self.params or {}).get("steps")
        whole = not self._cut if steps is None else self._batches >= steps
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        self._training.end_epoch(epoch, numbers, whole)
