"""KerasTuner's tuners for searches that diagnose themselves.

```python
tuner = ktb.RandomSearch(build_model, objective="val_accuracy", max_trials=50)
tuner.search(x, y, validation_data=(xv, yv), callbacks=[ktb.DiagnosisCallback()])
```

Each takes the arguments of KerasTuner's class of that name and those of
`DiagnosedTuner`; `TPE` and `SMAC` take those of `BayesianOptimization` that are not
about Gaussian processes.
The callback is not added by itself: a search without it is KerasTuner's.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any, ClassVar

import keras_tuner

from kt_bttackler.brackets import hyperband_trials
from kt_bttackler.diagnosed_tuner import DiagnosedTuner
from kt_bttackler.oracles import (
    BayesianOptimizationOracle,
    SMACOracle,
    SuccessiveHalvingOracle,
    TPEOracle,
)
from kt_bttackler.oracles.mixin import seed_of
from kt_bttackler.resuming import ResumesTraining

_logger = logging.getLogger(__name__)


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
            for name, default in (
                ("stopped_value", "last"),
                ("avoid_diagnosed", False),
                ("max_seconds", None),
                ("keep_checkpoints", 10),
                ("lost_after", 120.0),
                ("keep_stopped", 0),
            )
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

    def expected_trials(self) -> int | None:
        """Number of trials of the whole search; `None` in a worker."""
        oracle = self.oracle
        if oracle.max_trials or not isinstance(oracle, keras_tuner.Oracle):
            return super().expected_trials()
        once = hyperband_trials(oracle.max_epochs, oracle.factor)
        return once * int(oracle.hyperband_iterations)


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

    def expected_trials(self) -> int | None:
        """Number of trials of the whole search; `None` in a worker."""
        if not isinstance(self.oracle, keras_tuner.Oracle):
            return super().expected_trials()
        rounds: list[tuple[int, int]] = self.oracle.rounds
        return sum(trials for trials, _ in rounds)


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
