"""Sequential model-based algorithm configuration, by SMAC3."""

from __future__ import annotations

import pathlib
import tempfile
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
    import ConfigSpace


class SMACOracle(DiagnosedOracleMixin, SuggestingOracle):
    """Search by SMAC that knows diagnosed trials.

    After some random trials, a random forest predicts the logarithm of the scaled
    objective, and the values of largest expected improvement are tried (Hutter et al.,
    2011; Lindauer et al., 2022). Conditional scopes are conditions of SMAC's space; a
    hyperparameter that `build` did not ask for counts as having its default value; a
    trial that runs is not suggested twice.

    SMAC is told everything anew for every suggestion, so that a resumed search goes on
    as if it had not been interrupted, and its files go to a temporary folder which is
    removed. A suggestion takes half a second.

    It needs SMAC: `pip install 'kt-bttackler[smac]'`.

    Args:
        *args: arguments of `SuggestingOracle`.
        **kwargs: arguments of `SuggestingOracle` and of `DiagnosedOracleMixin`, among
            them `stopped_value`.

    Raises:
        ImportError: SMAC is not installed.
        ValueError: there is no such `stopped_value`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        load("smac", "smac")
        super().__init__(*args, **kwargs)

    def suggest(
        self, space: Sequence[Axis], observations: Sequence[Observation], seed: int
    ) -> dict[str, Any]:
        """Values for the next trial, by SMAC's facade for hyperparameters."""
        with (
            only_errors_of("smac"),
            warnings.catch_warnings(),
            tempfile.TemporaryDirectory() as folder,
        ):
            # Of statistics that SMAC takes of no numbers.
            warnings.simplefilter("ignore", RuntimeWarning)
            # Of its own way to read configurations.
            warnings.filterwarnings(
                "ignore", category=DeprecationWarning, module="smac"
            )
            asked = self._ask(space, observations, seed, folder)
        values: dict[str, Any] = {}
        for axis in space:
            if axis.name not in values and axis.is_active(values):
                coordinate = asked.get(axis.key)
                if coordinate is None:
                    coordinate = axis.encode(axis.hp.default)
                values[axis.name] = axis.decode(coordinate)
        return values

    def _ask(
        self,
        space: Sequence[Axis],
        observations: Sequence[Observation],
        seed: int,
        folder: str,
    ) -> dict[str, float]:
        """Coordinates of SMAC's next configuration by key of the axis."""
        import smac
        from smac.main.exceptions import ConfigurationSpaceExhaustedException
        from smac.model.random_forest import RandomForest
        from smac.runhistory import TrialInfo, TrialValue

        configuration_space = _configuration_space(space)
        told = [
            TrialInfo(_configuration(configuration_space, space, each), seed=0)
            for each in observations
        ]
        scenario = smac.Scenario(
            configuration_space,
            output_directory=pathlib.Path(folder),
            deterministic=True,
            n_trials=2**31,
            seed=seed,
        )
        facade = smac.HyperparameterOptimizationFacade
        # The facade's own forest, but for two arguments of which it takes most of its
        # time: room for a million leaves, and threads that wait for one another.
        forest = RandomForest(
            configuration_space,
            n_trees=10,
            ratio_features=1.0,
            min_samples_split=2,
            min_samples_leaf=1,
            max_leaf_nodes=len(told) + 1,
            n_jobs=1,
            log_y=True,
            seed=seed,
        )
        optimizer = facade(
            scenario,
            model=forest,
            # One that was tried, or SMAC would draw initial points of its own.
            initial_design=facade.get_initial_design(
                scenario, n_configs=0, additional_configs=[told[0].config]
            ),
            # Not SMAC's own handlers, and no question on the standard input.
            logging_level=False,
            overwrite=True,
        )
        costs = self._costs(observations)
        for info, cost in zip(told, costs, strict=True):
            if cost is None:
                optimizer.runhistory.add_running_trial(info)
        for info, cost in zip(told, costs, strict=True):
            if cost is not None:
                optimizer.tell(info, TrialValue(cost=cost), save=False)
        try:
            asked = optimizer.ask()
        except ConfigurationSpaceExhaustedException:
            asked = told[0]  # tried before, so that the search ends
        return dict(asked.config)

    def _costs(self, observations: Sequence[Observation]) -> list[float | None]:
        """Scores from 0, the best, to 1, the worst.

        SMAC takes the logarithm of costs, for which scores may be too large or too far
        apart.
        """
        sign = 1.0 if self.objective.direction == "min" else -1.0
        scores = [sign * each.score for each in observations if each.score is not None]
        best, worst = min(scores), max(scores)
        # Halves, because the difference of two numbers can be infinite.
        spread = (worst / 2 - best / 2) or 1.0
        return [
            None if each.score is None else (sign * each.score / 2 - best / 2) / spread
            for each in observations
        ]


def _configuration_space(space: Sequence[Axis]) -> ConfigSpace.ConfigurationSpace:
    """SMAC's picture of a space, without what is constant or can never be active."""
    import ConfigSpace

    made = ConfigSpace.ConfigurationSpace()
    for number, axis in enumerate(space):
        if axis.kind == "constant":
            continue
        earlier = [
            one for one in space[:number] if one.kind == "constant" or one.key in made
        ]
        scopes = [_openers(condition, earlier) for condition in axis.hp.conditions]
        if any(openers == {} for openers in scopes):
            continue
        child = _hyperparameter(axis)
        made.add(child)
        clauses = []
        for openers in scopes:
            if openers is None:
                continue
            alternatives = [
                ConfigSpace.InCondition(child, made[key], coordinates)
                for key, coordinates in openers.items()
            ]
            clauses.append(_joined(ConfigSpace.OrConjunction, alternatives))
        if clauses:
            made.add(_joined(ConfigSpace.AndConjunction, clauses))
    return made


def _hyperparameter(axis: Axis) -> Any:
    import ConfigSpace

    if axis.kind == "category":
        choices = range(int(axis.high) + 1)
        return ConfigSpace.CategoricalHyperparameter(axis.key, choices)
    if axis.kind == "int":
        return ConfigSpace.UniformIntegerHyperparameter(
            axis.key, int(axis.low), int(axis.high), log=axis.log
        )
    return ConfigSpace.UniformFloatHyperparameter(
        axis.key, float(axis.low), float(axis.high), log=axis.log
    )


def _openers(condition: Any, earlier: Sequence[Axis]) -> dict[str, list[float]] | None:
    """Where parents must lie for a scope to be open; None if a constant opens it."""
    openers = {}
    for parent in earlier:
        if parent.name != condition.name:
            continue
        if parent.kind == "constant":
            if parent.decode(parent.low) in condition.values:
                return None
            continue
        coordinates = parent.find(condition.values)
        if coordinates:
            openers[parent.key] = coordinates
    return openers


def _joined(conjunction: Any, parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else conjunction(*parts)


def _configuration(
    configuration_space: ConfigSpace.ConfigurationSpace,
    space: Sequence[Axis],
    observation: Observation,
) -> ConfigSpace.Configuration:
    """What SMAC is told of the values of a trial."""
    from ConfigSpace.util import deactivate_inactive_hyperparameters

    coordinates = {
        axis.key: observation.coordinates.get(axis.key, axis.encode(axis.hp.default))
        for axis in space
        if axis.key in configuration_space
    }
    return deactivate_inactive_hyperparameters(coordinates, configuration_space)
