"""What the tuners of this package add to KerasTuner's."""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial
from keras_tuner.engine.tuner import maybe_distribute

from kt_bttackler import channel, context, training_state
from kt_bttackler.durable_tuner import DurableTuner
from kt_bttackler.oracles import diagnosed, requested
from kt_bttackler.probe_data import slice_rows
from kt_bttackler.searching import TimedSearch, checked_seconds
from kt_bttackler.training_state import KeepState, TrainingState

_logger = logging.getLogger(__name__)


class DiagnosedTuner(TimedSearch, DurableTuner):
    """What the tuners of this package add to KerasTuner's.

    It stands behind KerasTuner's class in the bases, where its constructor receives
    the oracle which that class has made, before the project is reloaded.

    - The oracle is made one that understands diagnosed trials.
    - The callbacks know their trial, in the workers of a distributed search, too,
      and are given rows of x that are in memory to probe the model with.
    - A verdict reaches the oracle even if `HyperModel.fit` returns a number or a dict.
    - A trial whose first execution was diagnosed is not executed again.
    - With `seed`, every execution has a seed of its own, made of it, the trial and
      the execution, so that what is stopped does not shift the trainings after it.
    - It survives accidents, and deletes checkpoints of stopped trials: see
      `kt_bttackler.durable_tuner.DurableTuner`.
    - `search` shows its progress in a few lines, and ends by the clock: see
      `kt_bttackler.searching.TimedSearch`.

    Args:
        oracle: the oracle of the search.
        hypermodel: a function that builds a model, or a `keras_tuner.HyperModel`.
        stopped_value: what a stopped trial counts for the search algorithm; see
            `kt_bttackler.oracles.DiagnosedOracleMixin`.
        avoid_diagnosed: turn proposals away that would very likely be stopped; see
            there.
        max_seconds: after so many seconds of `search` no new trial begins; the one
            that is running is trained to its end. `None` sets no limit.
        keep_stopped: number of stopped trials, the newest, whose whole state is kept
            on disk, so that `kt_bttackler.run_on` goes on with them exactly where
            they were stopped. Each takes about three times the size of its weights.
        **kwargs: arguments of `DurableTuner` and `keras_tuner.Tuner`.

    Raises:
        ValueError: there is no such `stopped_value`, a grid search is to avoid
            something, `max_seconds` is no positive number,
            `keep_stopped` is negative, or there is nothing to
            build models with.
    """

    seed: int | None = None
    keep_stopped: int = 0
    # The class of the oracle, where it is not the given one made to understand.
    oracle_class: ClassVar[type[keras_tuner.Oracle] | None] = None

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        hypermodel: Any = None,
        *args: Any,
        stopped_value: str = "last",
        avoid_diagnosed: bool = False,
        max_seconds: float | None = None,
        keep_stopped: int = 0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(keep_stopped, int) or keep_stopped < 0:
            raise ValueError(
                f"`keep_stopped` must be a whole number of at least 0, got "
                f"{keep_stopped!r}."
            )
        # KerasTuner asks this of its own tuners, but not where a subclass has a
        # `run_trial`, as this one has.
        if hypermodel is None and type(self).run_trial is DiagnosedTuner.run_trial:
            raise ValueError(
                "`hypermodel` must be given unless `run_trial` is overridden, got None."
            )
        self.max_seconds = checked_seconds(max_seconds)
        self._shows_progress = True
        oracle.__class__ = self.oracle_class or diagnosed(type(oracle))
        oracle.begin_diagnosing(stopped_value, avoid_diagnosed)
        self.oracle = oracle
        self.begin_diagnosing()
        self.keep_stopped = keep_stopped
        super().__init__(oracle, hypermodel, *args, **kwargs)

    def begin_diagnosing(self) -> None:
        """Sets what this class keeps; for a tuner that becomes one of its class."""
        self._max_epochs = getattr(self.oracle, "max_epochs", None)
        self._execution = 0
        self._first_result: Any = None
        # Of a stopped trial that is run on; see `appealing`.
        self._appealed = False
        self._kept_states: Mapping[int, TrainingState] = {}

    @contextlib.contextmanager
    def appealing(self, states: Mapping[int, TrainingState]) -> Iterator[None]:
        """Trials run in it are never stopped, and recorded apart.

        Args:
            states: by execution, what it goes on with; others begin anew.
        """
        self._appealed, self._kept_states = True, states
        try:
            yield
        finally:
            self._appealed, self._kept_states = False, {}
            context.publish(None)  # the oracle does not end this trial once more

    def run_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        """Runs the executions of a trial; its callbacks know which one it is."""
        if kwargs.get("callbacks") is None:
            kwargs.pop("callbacks", None)
        self._execution, self._first_result = 0, None
        context.publish(
            context.RunningTrial.of(
                trial,
                self.oracle,
                self.project_dir,
                # A worker's oracle, which only asks the chief, does not know it.
                max_epochs=getattr(self.oracle, "max_epochs", self._max_epochs),
                probe_data=_probe_rows(args, kwargs),
                appealed=self._appealed,
            )
        )
        try:
            result = super().run_trial(trial, *args, **kwargs)
            if self.keep_stopped and not self._appealed:
                self._forget_states(trial)
            return result
        except BaseException:
            context.publish(None)
            raise
        finally:
            self._first_result = None

    def _build_and_fit_model(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        # Private, but kept for overriding by KerasTuner: one call is one execution.
        execution, self._execution = self._execution, self._execution + 1
        if execution > 0 and _is_diagnosed(self._first_result):
            return self._first_result
        if self.seed is not None:
            keras.utils.set_random_seed(self._seed_of(trial, execution))
        if execution == 0:
            requested.watch(trial.hyperparameters)
        if execution in self._kept_states:
            kwargs["initial_epoch"] = self._kept_states[execution].epoch
        elif self.keep_stopped and not self._appealed:
            folder = self.get_trial_dir(trial.trial_id)
            path = training_state.path_of(folder, execution, stopped=True)
            keeper = KeepState(path, None, self._origin(trial))
            # The last one: it looks whether another has ended the training.
            kwargs["callbacks"] = [*kwargs.get("callbacks", ()), keeper]
        result = super()._build_and_fit_model(trial, *args, **kwargs)
        if execution == 0:
            unread = requested.entries(trial.hyperparameters)
            if unread:
                result = _with_requests(result, unread, self.oracle.objective)
            running = context.running_trial()
            entries = running.channels.get(0) if running is not None else None
            if entries:
                result = with_channel(result, entries, self.oracle.objective)
            self._first_result = result
        return result

    def _build_hypermodel(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        # Private. Tuners that promote trials have one of their own.
        model = super()._build_hypermodel(hp)
        state = self._kept_states.get(self._execution - 1)
        if state is not None:
            with maybe_distribute(self.distribution_strategy):
                state.restore(model)
            if self.seed is not None:
                state.restore_random_numbers()
        return model

    def _forget_states(self, trial: Trial) -> None:
        """Keeps the state of this trial if a diagnosis has ended it, and of few."""
        running = context.running_trial()
        if running is None or not running.verdicts:
            training_state.forget(self.get_trial_dir(trial.trial_id), stopped=True)
        training_state.forget_stopped(self.project_dir, self.keep_stopped)

    def _seed_of(self, trial: Trial, execution: int) -> int:
        """The seed of an execution, counted from 0."""
        name = f"{self.seed}/{self._origin(trial)}/{execution}"
        return zlib.crc32(name.encode())

    def _origin(self, trial: Trial) -> str:
        """Id of the trial in which the training began, of which its seeds are made."""
        return str(trial.trial_id)


def _probe_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Rows of x, and of y, to probe models with; None unless they are in memory."""
    x = kwargs.get("x", args[0] if args else None)
    y = kwargs.get("y", args[1] if len(args) > 1 else None)
    try:
        labelled = None if y is None else slice_rows((x, y))
        return slice_rows(x) if labelled is None else labelled
    except Exception as error:
        _logger.warning("No rows of x to probe the model with: %r", error)
        return None


def _is_diagnosed(result: Any) -> bool:
    """Whether the result of an execution carries a harmful verdict."""
    if isinstance(result, list):
        return any(_is_diagnosed(part) for part in result)
    if isinstance(result, keras.callbacks.History):
        metrics = {name: values[-1] for name, values in result.history.items()}
    elif isinstance(result, Mapping):
        metrics = dict(result)
    else:
        return False
    message = channel.decode(metrics)
    verdict = None if message is None else message.verdict
    return verdict is not None and not verdict.benign


def _with_requests(result: Any, unread: Mapping[str, float], objective: Any) -> Any:
    """Adds to a result which hyperparameters were not asked for."""
    if isinstance(result, list):
        return [_with_requests(part, unread, objective) for part in result]
    if isinstance(result, keras.callbacks.History):
        epochs = max(map(len, result.history.values()), default=0)
        result.history.update(
            {name: [value] * epochs for name, value in unread.items()}
        )
        return result
    return with_channel(result, unread, objective)


def with_channel(result: Any, entries: Mapping[str, float], objective: Any) -> Any:
    """Adds a verdict to what `HyperModel.fit` returned; a History carries it already.

    What was returned is the value of the trial, and so its last one.
    """
    if isinstance(result, list):
        return [with_channel(part, entries, objective) for part in result]
    if isinstance(result, keras.callbacks.History):
        return result
    metrics = dict(result) if isinstance(result, Mapping) else {objective.name: result}
    parts = getattr(objective, "objectives", [objective])  # of a MultiObjective
    last = {part.name: metrics[part.name] for part in parts if part.name in metrics}
    return metrics | channel.with_last(entries, last)
