"""Tree-structured Parzen estimators, by optuna."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kt_bttackler.oracles.mixin import DiagnosedOracleMixin
from kt_bttackler.oracles.space import Axis
from kt_bttackler.oracles.suggesting import (
    Observation,
    SuggestingOracle,
    load,
    only_errors_of,
)

if TYPE_CHECKING:
    import optuna


class TPEOracle(DiagnosedOracleMixin, SuggestingOracle):
    """Search by tree-structured Parzen estimators (TPE) that knows diagnosed trials.

    After some random trials, values are drawn where good trials lie more densely than
    bad ones (Bergstra et al., 2011). The estimators are optuna's; they look at all
    hyperparameters together where the same ones took part, count trials that still run
    as bad ones, and leave those out of account that did not take part. optuna keeps no
    records: what it needs is told anew for every suggestion, so that a resumed search
    goes on as if it had not been interrupted.

    It needs optuna: `pip install 'kt-bttackler[tpe]'`.

    Args:
        *args: arguments of `SuggestingOracle`.
        **kwargs: arguments of `SuggestingOracle` and of `DiagnosedOracleMixin`, among
            them `stopped_value`.

    Raises:
        ImportError: optuna is not installed.
        ValueError: there is no such `stopped_value`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        load("optuna", "tpe")
        super().__init__(*args, **kwargs)

    def suggest(
        self, space: Sequence[Axis], observations: Sequence[Observation], seed: int
    ) -> dict[str, Any]:
        """Values for the next trial, by optuna's `TPESampler`."""
        import optuna

        with only_errors_of("optuna"), warnings.catch_warnings():
            # Options of the sampler that have been experimental for years.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=1,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=seed,
            )
            directions = optuna.study.StudyDirection
            minimize = self.objective.direction == "min"
            study = optuna.create_study(
                sampler=sampler,
                direction=directions.MINIMIZE if minimize else directions.MAXIMIZE,
            )
            study.add_trials(_told(space, each) for each in observations)
            asked = study.ask()
            values: dict[str, Any] = {}
            for axis in space:
                if axis.name not in values and axis.is_active(values):
                    values[axis.name] = axis.decode(_coordinate(asked, axis))
        return values


def _told(space: Sequence[Axis], observation: Observation) -> optuna.trial.FrozenTrial:
    import optuna

    distributions = {
        axis.key: _distribution(axis)
        for axis in space
        if axis.kind != "constant" and axis.key in observation.coordinates
    }
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.RUNNING if observation.score is None else states.COMPLETE,
        params={key: observation.coordinates[key] for key in distributions},
        distributions=distributions,
        value=observation.score,
    )


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    from optuna import distributions

    if axis.kind == "category":
        return distributions.CategoricalDistribution(range(int(axis.high) + 1))
    if axis.kind == "int":
        return distributions.IntDistribution(int(axis.low), int(axis.high), axis.log)
    return distributions.FloatDistribution(axis.low, axis.high, axis.log)


def _coordinate(asked: optuna.Trial, axis: Axis) -> float:
    if axis.kind == "constant":
        return axis.low
    if axis.kind == "category":
        return int(asked.suggest_categorical(axis.key, range(int(axis.high) + 1)))
    if axis.kind == "int":
        low, high = int(axis.low), int(axis.high)
        return asked.suggest_int(axis.key, low, high, log=axis.log)
    return asked.suggest_float(axis.key, axis.low, axis.high, log=axis.log)
