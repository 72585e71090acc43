"""KerasTuner's tuners for searches that diagnose themselves.

```python
tuner = ktb.RandomSearch(build_model, objective="val_accuracy", max_trials=50)
tuner.search(x, y, validation_data=(xv, yv), callbacks=[ktb.DiagnosisCallback()])
```

Each takes the arguments of KerasTuner's class of that name and `stopped_value`. The
callback is not added by itself: a search without it is KerasTuner's.
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
from kt_bttackler.oracles import diagnosed, view
from kt_bttackler.oracles.mixin import seed_of
from kt_bttackler.probe import slice_rows

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
        **kwargs: arguments of `keras_tuner.Tuner`.

    Raises:
        ValueError: there is no such `stopped_value`, or nothing to build models with.
    """

    seed: int | None = None

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        hypermodel: Any = None,
        *args: Any,
        stopped_value: str = "last",
        **kwargs: Any,
    ) -> None:
        # KerasTuner asks this of its own tuners, but not where a subclass has a
        # `run_trial`, as this one has.
        if hypermodel is None and type(self).run_trial is DiagnosedTuner.run_trial:
            raise ValueError(
                "`hypermodel` must be given unless `run_trial` is overridden, got None."
            )
        oracle.__class__ = diagnosed(type(oracle))
        oracle.stopped_value = view.checked(stopped_value)
        self._max_epochs = getattr(oracle, "max_epochs", None)
        self._execution = 0
        self._first_result: Any = None
        super().__init__(oracle, hypermodel, *args, **kwargs)

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
            name = f"{self.seed}/{trial.trial_id}/{execution}"
            keras.utils.set_random_seed(zlib.crc32(name.encode()))
        result = super()._build_and_fit_model(trial, *args, **kwargs)
        if execution == 0:
            running = context.running_trial()
            entries = running.channels.get(0) if running is not None else None
            if entries:
                result = _with_channel(result, entries, self.oracle.objective)
            self._first_result = result
        return result


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
        policy = inspect.Parameter(
            "stopped_value", inspect.Parameter.KEYWORD_ONLY, default="last"
        )
        cls.__signature__ = given.replace(parameters=[*named, policy, others])

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
    """`keras_tuner.BayesianOptimization` that understands diagnosed trials.

    It takes the arguments of that class and those of `DiagnosedTuner`.
    """


class Hyperband(_GivenSeed, keras_tuner.Hyperband, DiagnosedTuner):
    """`keras_tuner.Hyperband` that understands diagnosed trials.

    It takes the arguments of that class and those of `DiagnosedTuner`. A stopped
    trial keeps its place in the bracket and is never promoted; it ranks last whatever
    `stopped_value` is. Diagnoses take `max_epochs` for the planned epochs in every
    round.
    """


def _probe_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Rows of x to probe models with; None unless x is in memory."""
    x = kwargs.get("x", args[0] if args else None)
    try:
        return slice_rows(x)
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


def _with_channel(result: Any, entries: Mapping[str, float], objective: Any) -> Any:
    """Adds a verdict to what `HyperModel.fit` returned; a History carries it already.

    What was returned is the value of the trial, and so its last one.
    """
    if isinstance(result, list):
        return [_with_channel(part, entries, objective) for part in result]
    if isinstance(result, keras.callbacks.History):
        return result
    metrics = dict(result) if isinstance(result, Mapping) else {objective.name: result}
    parts = getattr(objective, "objectives", [objective])  # of a MultiObjective
    last = {part.name: metrics[part.name] for part in parts if part.name in metrics}
    return metrics | channel.with_last(entries, last)
