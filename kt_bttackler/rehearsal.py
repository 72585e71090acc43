"""`preflight`: a minute before a search of days.

```python
print(ktb.preflight(build_model, x, y, epochs=20, max_trials=100, batch_size=64))
```
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import keras_tuner

from kt_bttackler import forecast
from kt_bttackler.callback import DiagnosisCallback
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.forecast import Configuration, Cost, Forecast
from kt_bttackler.memory import PeakMemory
from kt_bttackler.narrowing import narrower
from kt_bttackler.pace import FewSteps
from kt_bttackler.probe_data import slice_rows
from kt_bttackler.proposals import proposals
from kt_bttackler.rules import NeverStop
from kt_bttackler.surroundings import fresh_names, unchanged

# What is known before a model has trained for an epoch.
INDICATORS = (
    "OUTPUT_LOSS_MISMATCH",
    "INPUT_SCALE",
    "POOR_INIT",
    "LR_RANGE",
    "HIGH_DROPOUT",
    "LINEAR_STACK",
)
# What is beyond a cut; a loss that explodes is soon not finite.
_FAILURES = {
    forecast.CANNOT_BUILD: "cannot be built",
    forecast.CANNOT_TRAIN: "cannot be trained",
    forecast.NOT_FINITE: "diverge",
    forecast.EXPLODES: "diverge",
    forecast.CONTRADICTORY: "cannot learn",
}
# Steps of a training, the first of which traces the graph.
STEPS = 8


def preflight(
    hypermodel: Callable[[keras_tuner.HyperParameters], keras.Model]
    | keras_tuner.HyperModel,
    x: Any = None,
    y: Any = None,
    *,
    epochs: int = 10,
    max_trials: int | None = None,
    executions_per_trial: int = 1,
    seconds: float = 60.0,
    max_configurations: int = 100,
    hyperparameters: keras_tuner.HyperParameters | None = None,
    seed: int = 0,
    **fit: Any,
) -> Forecast:
    """Tries corners and random points of a search space for a few steps each.

    It tells which configurations cannot be built, start with a loss that is not finite
    or contradict themselves; what a trial and the search will take; and which ranges
    would better be narrower. First comes the default configuration, then that of all
    lowest and of all highest values, then random ones in turn with the default in
    which one hyperparameter has an extreme value.

    Nothing is written, and nothing is left behind: random numbers and the names of
    layers go on as if it had not been called. The time is kept between steps: it is
    overrun at most by the building and the first step of one model.

    Args:
        hypermodel: a function that builds a model, or a `keras_tuner.HyperModel`,
            whose `fit` is used.
        x: as for `search`: arrays, a dataset, ...
        y: as for `search`.
        epochs: planned epochs of a trial, to predict its time.
        max_trials: planned trials, to predict the time of the search.
        executions_per_trial: planned trainings of each trial.
        seconds: budget of time.
        max_configurations: end sooner, after so many.
        hyperparameters: what the tuner is given under this name.
        seed: of the random configurations.
        **fit: further arguments of `search`, such as `validation_data` or
            `batch_size`. `callbacks` and `verbose` are left out.

    Returns:
        What was found; `print` it, or ask its attributes.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: there is nothing to build models with.

    Example:
        >>> import numpy as np
        >>> def build(hp):
        ...     rate = hp.Choice("rate", [1e-3, 1e30])
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     model.compile(keras.optimizers.SGD(rate), "mse")
        ...     return model
        >>> x = np.ones((64, 2), "float32")
        >>> found = preflight(build, x, x.sum(1))
        >>> [configuration.outcome for configuration in found.configurations]
        ['trains', 'not finite']
    """
    for name, number, least in (
        ("epochs", epochs, 1),
        ("max_trials", max_trials, 1),
        ("executions_per_trial", executions_per_trial, 1),
        ("max_configurations", max_configurations, 1),
    ):
        if number is not None and (not isinstance(number, int) or number < least):
            raise ValueError(
                f"`{name}` must be an integer of at least {least}, got {number!r}."
            )
    if not seconds > 0:
        raise ValueError(f"`seconds` must be positive, got {seconds!r}.")
    began = time.monotonic()
    space = hyperparameters.copy() if hyperparameters else keras_tuner.HyperParameters()
    trials = _Trials(
        _hypermodel(hypermodel), space, (x, y), fit, epochs, began + seconds
    )
    tried: list[Configuration] = []
    with unchanged():
        for kind, values in proposals(space, seed):
            tried.append(trials.run(kind, values))
            mean = (time.monotonic() - began) / len(tried)
            # One more must fit in.
            late = time.monotonic() + mean > began + seconds
            if late or len(tried) == max_configurations:
                break
    return Forecast(
        configurations=tuple(tried),
        ranges=narrower(
            space.get_config()["space"],
            [c.values for c in tried],
            [_FAILURES.get(c.outcome) for c in tried],
        ),
        epochs=epochs,
        max_trials=max_trials,
        executions=executions_per_trial,
        seconds=time.monotonic() - began,
    )


class _OfFunction(keras_tuner.HyperModel):
    """A HyperModel of a function that builds models."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def build(self, hp: keras_tuner.HyperParameters) -> Any:
        return self._function(hp)


def _hypermodel(given: Any) -> keras_tuner.HyperModel:
    if isinstance(given, keras_tuner.HyperModel):
        return given
    if callable(given):
        return _OfFunction(given)
    raise TypeError(
        "`hypermodel` must be a function that builds a model or a HyperModel, got "
        f"{given!r}."
    )


class _Trials:
    """Builds and trains configurations for a few steps.

    Args:
        hypermodel: builds and fits them.
        space: gets what they declare.
        data: x and y.
        fit: further arguments of `fit`.
        epochs: planned ones.
        deadline: of `time.monotonic`.
    """

    def __init__(
        self,
        hypermodel: keras_tuner.HyperModel,
        space: keras_tuner.HyperParameters,
        data: tuple[Any, Any],
        fit: Mapping[str, Any],
        epochs: int,
        deadline: float,
    ) -> None:
        self._hypermodel = hypermodel
        self._space = space
        self._data = tuple(part for part in data if part is not None)
        dropped = ("callbacks", "verbose", "epochs")
        self._fit = {k: v for k, v in fit.items() if k not in dropped}
        self._epochs = epochs
        self._deadline = deadline
        self._rows = slice_rows(data if data[1] is not None else data[0])

    def run(self, kind: str, values: dict[str, Any]) -> Configuration:
        """Tries one configuration; raises nothing that it raises."""
        fresh_names()
        hp = self._space.copy()
        hp.values = dict(values)
        with PeakMemory() as memory:
            began = time.perf_counter()
            try:
                model = self._hypermodel.build(hp)
                if not isinstance(model, keras.Model):
                    raise TypeError(
                        f"`build` returned {type(model).__name__}, no model"
                    )
            except Exception as error:
                return Configuration(
                    kind, hp.values, forecast.CANNOT_BUILD, _one_line(error)
                )
            finally:
                self._space.merge(hp, overwrite=False)
            building = time.perf_counter() - began
            watch = FewSteps(STEPS, self._deadline)
            diagnosis = Diagnosis(("AGV", *INDICATORS), NeverStop())
            callback = DiagnosisCallback(
                diagnosis, stop=False, epochs=self._epochs, probe_data=self._rows
            )
            try:
                self._hypermodel.fit(
                    hp,
                    model,
                    *self._data,
                    **self._fit,
                    epochs=STEPS,
                    verbose=0,
                    callbacks=[watch, callback],
                )
            except Exception as error:
                return Configuration(
                    kind, hp.values, forecast.CANNOT_TRAIN, _one_line(error)
                )
        cost = self._cost(model, watch, building, memory.peak)
        outcome, reason = forecast.TRAINS, ""
        warnings = []
        if callback.trace is not None and len(callback.trace):
            # The first epoch: the later ones only repeat it.
            for finding in diagnosis.findings(callback.trace.prefix(1)):
                said = str(finding).split(": ", 1)[-1].removesuffix(" (warning)")
                said = f"{finding.indicator}: {said}"
                if finding.warning:
                    warnings.append(said)
                elif finding.indicator == "AGV":
                    outcome, reason = forecast.EXPLODES, said
                elif not reason:
                    outcome, reason = forecast.CONTRADICTORY, said
        if watch.broken_at is not None:
            outcome = forecast.NOT_FINITE
            reason = f"the loss of step {watch.broken_at} is {watch.loss}"
        return Configuration(kind, hp.values, outcome, reason, tuple(warnings), cost)

    def _cost(
        self, model: keras.Model, watch: FewSteps, building: float, peak: int | None
    ) -> Cost | None:
        step = watch.training.seconds_per_step
        if step is None:
            return None
        start = building + watch.training.first + watch.validation.first
        epoch, steps = None, watch.steps_per_epoch
        validating = watch.validation.seconds_per_step
        if steps is not None:
            epoch = steps * step
            validation_steps = self._validation_steps(steps)
            if validating is not None and validation_steps is not None:
                epoch += validation_steps * validating
            else:
                validating = None
        trainable = sum(_size(v) for v in model.trainable_variables)
        state = [*model.variables, *model.optimizer.variables]
        return Cost(
            start_seconds=start,
            step_seconds=step,
            epoch_seconds=epoch,
            steps=steps,
            parameters=model.count_params(),
            state_bytes=trainable + sum(map(_size, state)),
            peak_bytes=peak,
            validated=validating is not None,
        )

    def _validation_steps(self, steps: int) -> int | None:
        """Steps of the validation of an epoch; None when unknown."""
        given = self._fit.get("validation_steps")
        if given is not None:
            return int(given)
        rows, split = _rows(self._data), self._fit.get("validation_split")
        data = self._fit.get("validation_data")
        if data is None and not split:
            return None
        try:
            if not isinstance(data, tuple | list) and data is not None:
                return len(data)  # of batches
            held_out = math.floor((rows or 0) * (split or 0))
            validated = _rows(data) if data is not None else held_out
            if rows is None or validated is None:
                return None
            batch = math.ceil((rows - held_out * (data is None)) / steps)
            batch = self._fit.get("validation_batch_size") or batch
            return math.ceil(validated / batch)
        except TypeError:  # a dataset or generator without length
            return None


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}".removesuffix(": ")


def _rows(data: Any) -> int | None:
    """Rows of arrays; None for what is none."""
    leaves = [leaf for leaf in keras.tree.flatten(data) if hasattr(leaf, "shape")]
    return len(leaves[0]) if leaves and len(leaves[0].shape) else None


def _size(variable: Any) -> int:
    """Bytes of a variable."""
    array = keras.ops.convert_to_numpy(variable)
    return int(array.size * array.dtype.itemsize)
