"""KerasTuner's tuners for searches that diagnose themselves.

```python
tuner = ktb.RandomSearch(build_model, objective="val_accuracy", max_trials=50)
tuner.search(x, y, validation_data=(xv, yv), callbacks=[ktb.DiagnosisCallback()])
```

Each takes the arguments of KerasTuner's class of that name and `stopped_value`; `TPE`
and `SMAC` take those of `BayesianOptimization` that are not about Gaussian processes.
The callback is not added by itself: a search without it is KerasTuner's.
"""

from __future__ import annotations

import inspect
import logging
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial

from kt_bttackler import channel, context
from kt_bttackler.oracles import (
    BayesianOptimizationOracle,
    SMACOracle,
    SuccessiveHalvingOracle,
    TPEOracle,
    diagnosed,
    requested,
)
from kt_bttackler.oracles.mixin import seed_of
from kt_bttackler.probe_data import slice_rows
from kt_bttackler.resuming import ResumesTraining

_logger = logging.getLogger(__name__)


class DiagnosedTuner(keras_tuner.Tuner):
    """What the tuners of this module add to KerasTuner's.

    It stands behind KerasTuner's class in the bases, where its constructor receives
    the oracle which that class has made, before the project is reloaded.

    - The oracle is made one that understands diagnosed trials.
    - The callbacks know their trial, in the workers of a distributed search, too,
      and are given rows of x that are in memory to probe the model with.
    - A verdict reaches the oracle even if `HyperModel.fit` returns a number or a dict.
    - A trial whose first execution was diagnosed is not executed again.
    - With `seed`, every execution has a seed of its own, made of it, the trial and
      the execution, so that what is stopped does not shift the trainings after it.

    Args:
        oracle: the oracle of the search.
        hypermodel: a function that builds a model, or a `keras_tuner.HyperModel`.
        stopped_value: what a stopped trial counts for the search algorithm; see
            `kt_bttackler.oracles.DiagnosedOracleMixin`.
        avoid_diagnosed: turn proposals away that would very likely be stopped; see
            there.
        **kwargs: arguments of `keras_tuner.Tuner`.

    Raises:
        ValueError: there is no such `stopped_value`, a grid search is to avoid
            something, or there is nothing to build models with.
    """

    seed: int | None = None
    # The class of the oracle, where it is not the given one made to understand.
    oracle_class: ClassVar[type[keras_tuner.Oracle] | None] = None

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        hypermodel: Any = None,
        *args: Any,
        stopped_value: str = "last",
        avoid_diagnosed: bool = False,
        **kwargs: Any,
    ) -> None:
        # KerasTuner asks this of its own tuners, but not where a subclass has a
        # `run_trial`, as this one has.
        if hypermodel is None and type(self).run_trial is DiagnosedTuner.run_trial:
            raise ValueError(
                "`hypermodel` must be given unless `run_trial` is overridden, got None."
            )
        oracle.__class__ = self.oracle_class or diagnosed(type(oracle))
        oracle.begin_diagnosing(stopped_value, avoid_diagnosed)
        self.oracle = oracle
        self.begin_diagnosing()
        super().__init__(oracle, hypermodel, *args, **kwargs)

    def begin_diagnosing(self) -> None:
        """Sets what this class keeps; for a tuner that becomes one of its class."""
        self._max_epochs = getattr(self.oracle, "max_epochs", None)
        self._execution = 0
        self._first_result: Any = None

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
            )
        )
        try:
            return super().run_trial(trial, *args, **kwargs)
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
            name = f"{self.seed}/{self._origin(trial)}/{execution}"
            keras.utils.set_random_seed(zlib.crc32(name.encode()))
        if execution == 0:
            requested.watch(trial.hyperparameters)
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

    def _origin(self, trial: Trial) -> str:
        """Id of the trial in which the training began, of which its seeds are made."""
        return str(trial.trial_id)


class _GivenSeed:
    """Stands before KerasTuner's class, to see the seed that the user gave it.

    Not all of those classes keep it, and all take 0 for no seed.
    """

    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if _GivenSeed not in cls.__bases__:
            return  # a subclass of the user's, with arguments of its own
        given = inspect.signature(cls.__bases__[1])
        *named, others = given.parameters.values()
        own = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in (("stopped_value", "last"), ("avoid_diagnosed", False))
        ]
        cls.__signature__ = given.replace(parameters=[*named, *own, others])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(super().__init__).bind(*args, **kwargs)
        given = bound.arguments.get("seed")
        bound.arguments["seed"] = seed_of(given)
        super().__init__(*bound.args, **bound.kwargs)
        self.seed = given


class RandomSearch(_GivenSeed, keras_tuner.RandomSearch, DiagnosedTuner):
    """`keras_tuner.RandomSearch` that understands diagnosed trials.

    It takes the arguments of that class and those of `DiagnosedTuner`.
    """


class GridSearch(_GivenSeed, keras_tuner.GridSearch, DiagnosedTuner):
    """`keras_tuner.GridSearch` that understands diagnosed trials.

    It takes the arguments of that class and those of `DiagnosedTuner`.
    """


class BayesianOptimization(
    _GivenSeed, keras_tuner.BayesianOptimization, DiagnosedTuner
):
    """`keras_tuner.BayesianOptimization` with an oracle of this package.

    It takes the arguments of that class and those of `DiagnosedTuner`. How it searches
    is told in `kt_bttackler.oracles.BayesianOptimizationOracle`.
    """

    oracle_class = BayesianOptimizationOracle


class _ResumingHyperband(ResumesTraining, keras_tuner.Hyperband):
    """Goes on with trainings in this package's way."""


class Hyperband(_GivenSeed, _ResumingHyperband, DiagnosedTuner):
    """`keras_tuner.Hyperband` that understands diagnosed trials.

    It takes the arguments of that class and those of `DiagnosedTuner`. A stopped
    trial keeps its place in the bracket and is never promoted; it ranks last whatever
    `stopped_value` is. Diagnoses take `max_epochs` for the planned epochs in every
    round. A promoted trial goes on with its training exactly where it ended: see
    `kt_bttackler.resuming.ResumesTraining`.
    """


class _Halving(ResumesTraining):
    """Makes the oracle of successive halving.

    Args:
        hypermodel: a function that builds a model, or a `keras_tuner.HyperModel`.
        objective: see `kt_bttackler.oracles.SuccessiveHalvingOracle`, as for all
            arguments that follow.
        max_epochs: see there.
        factor: see there.
        min_epochs: see there.
        num_initial_trials: see there.
        seed: see there.
        hyperparameters: see there.
        tune_new_entries: see there.
        allow_new_entries: see there.
        max_retries_per_trial: see there.
        max_consecutive_failed_trials: see there.
        **kwargs: arguments of `DiagnosedTuner`.
    """

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        max_epochs: int = 100,
        factor: int = 3,
        min_epochs: int = 1,
        num_initial_trials: int | None = None,
        seed: int | None = None,
        hyperparameters: keras_tuner.HyperParameters | None = None,
        tune_new_entries: bool = True,
        allow_new_entries: bool = True,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int = 3,
        **kwargs: Any,
    ) -> None:
        oracle = SuccessiveHalvingOracle(
            objective=objective,
            max_epochs=max_epochs,
            factor=factor,
            min_epochs=min_epochs,
            num_initial_trials=num_initial_trials,
            seed=seed,
            hyperparameters=hyperparameters,
            tune_new_entries=tune_new_entries,
            allow_new_entries=allow_new_entries,
            max_retries_per_trial=max_retries_per_trial,
            max_consecutive_failed_trials=max_consecutive_failed_trials,
        )
        super().__init__(oracle=oracle, hypermodel=hypermodel, **kwargs)


class SuccessiveHalving(_GivenSeed, _Halving, DiagnosedTuner):
    """Trains many trials for a few epochs, the best of them for more, and so on.

    It takes the arguments of `kt_bttackler.oracles.SuccessiveHalvingOracle` and those
    of `DiagnosedTuner`. Stopped and promoted trials are treated as in `Hyperband`.
    """


class _Suggested(keras_tuner.Tuner):
    """Makes an oracle of its own, as KerasTuner's tuners do.

    Args:
        hypermodel: a function that builds a model, or a `keras_tuner.HyperModel`.
        objective: see `kt_bttackler.oracles.suggesting.SuggestingOracle`, as for all
            arguments that follow.
        max_trials: see there.
        num_initial_points: see there.
        seed: see there.
        hyperparameters: see there.
        tune_new_entries: see there.
        allow_new_entries: see there.
        max_retries_per_trial: see there.
        max_consecutive_failed_trials: see there.
        **kwargs: arguments of `DiagnosedTuner`.
    """

    oracle_class: ClassVar[type[keras_tuner.Oracle]]

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        max_trials: int | None = 10,
        num_initial_points: int | None = None,
        seed: int | None = None,
        hyperparameters: keras_tuner.HyperParameters | None = None,
        tune_new_entries: bool = True,
        allow_new_entries: bool = True,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int = 3,
        **kwargs: Any,
    ) -> None:
        oracle = self.oracle_class(
            objective=objective,
            max_trials=max_trials,
            num_initial_points=num_initial_points,
            seed=seed,
            hyperparameters=hyperparameters,
            tune_new_entries=tune_new_entries,
            allow_new_entries=allow_new_entries,
            max_retries_per_trial=max_retries_per_trial,
            max_consecutive_failed_trials=max_consecutive_failed_trials,
        )
        super().__init__(oracle=oracle, hypermodel=hypermodel, **kwargs)


class TPE(_GivenSeed, _Suggested, DiagnosedTuner):
    """Search by tree-structured Parzen estimators; see `oracles.TPEOracle`.

    It takes the arguments of `keras_tuner.BayesianOptimization`, without those of the
    Gaussian process, and those of `DiagnosedTuner`.
    """

    oracle_class = TPEOracle


class SMAC(_GivenSeed, _Suggested, DiagnosedTuner):
    """Search by SMAC's random forests; see `oracles.SMACOracle`.

    It takes the arguments of `keras_tuner.BayesianOptimization`, without those of the
    Gaussian process, and those of `DiagnosedTuner`.
    """

    oracle_class = SMACOracle


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
