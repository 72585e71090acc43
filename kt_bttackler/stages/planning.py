"""What a search by stages will take, told before any training."""

from __future__ import annotations

import copy
import dataclasses
import random
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import keras_tuner

from kt_bttackler import files
from kt_bttackler.oracles.successive_halving import SuccessiveHalvingOracle
from kt_bttackler.stages.schedules import Schedule, collecting
from kt_bttackler.stages.tree import StageTree, split, state_ids, values_of

# A merge rate that is hardly worth the stored states.
_LITTLE = 1.1
_FREE_OF_RESULTS = (
    keras_tuner.oracles.GridSearchOracle,
    keras_tuner.oracles.RandomSearchOracle,
)
_IN_ROUNDS = (keras_tuner.oracles.HyperbandOracle, SuccessiveHalvingOracle)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a search will take; prints as a table.

    Attributes:
        tree: the stages of all trials.
        states: how many states will be kept.
        state_bytes: size of one state, at most.
        disk_budget: most bytes of states; `None` for no limit.
        seconds_per_epoch: what an epoch takes; `None` if unknown.
        warnings: why little or nothing will be shared; empty if much is.
    """

    tree: StageTree
    states: int
    state_bytes: int
    disk_budget: int | None
    seconds_per_epoch: float | None
    warnings: tuple[str, ...]

    @property
    def trials(self) -> int:
        """How many trials there will be."""
        return self.tree.trials

    @property
    def total_epochs(self) -> int:
        """Epochs of all trials."""
        return self.tree.total_epochs

    @property
    def unique_epochs(self) -> int:
        """Epochs to train."""
        return self.tree.unique_epochs

    @property
    def merge_rate(self) -> float:
        """Epochs of all trials by epochs to train; 1 when nothing is shared."""
        return self.tree.merge_rate

    @property
    def disk_peak(self) -> int:
        """Bytes that the states will take, at most."""
        peak = self.states * self.state_bytes
        return peak if self.disk_budget is None else min(peak, self.disk_budget)

    @property
    def seconds(self) -> float | None:
        """What the training will take with one worker; `None` if unknown."""
        if self.seconds_per_epoch is None:
            return None
        return self.unique_epochs * self.seconds_per_epoch

    def __str__(self) -> str:
        rows = [
            ("trials", f"{self.trials:,}"),
            ("epochs of all trials", f"{self.total_epochs:,}"),
            ("epochs to train", f"{self.unique_epochs:,}"),
            ("merge rate", f"{self.merge_rate:.2f}"),
            ("epochs of the longest path", f"{self.tree.critical_path:,}"),
            ("states kept", f"{self.states:,}"),
            ("disk, at most", f"{self.disk_peak / 1e6:,.1f} MB"),
        ]
        if self.seconds is not None and self.seconds_per_epoch is not None:
            alone = self.total_epochs * self.seconds_per_epoch
            rows.append(("expected time", f"{_clock(self.seconds)}"))
            rows.append(("without sharing", f"{_clock(alone)}"))
        lines = [f"{name:<28}{value:>14}" for name, value in rows]
        return "\n".join([*lines, *(f"! {warning}" for warning in self.warnings)])


def plan(
    tuner: Any,
    *,
    epochs: int | None = None,
    trials: int | None = None,
    seconds_per_epoch: float | None = None,
) -> Plan:
    """What the search of a `StageTuner` will take.

    A copy of the oracle is asked for its trials and is told results drawn at random. So
    the plan is exact for grid search and random search, and an estimate where the
    trials depend on results. Models are built, but not trained.

    Args:
        tuner: the tuner, before its search.
        epochs: of a trial, where the tuner does not know them.
        trials: ask for no more than these.
        seconds_per_epoch: what an epoch takes, if it is known.

    Raises:
        ValueError: nobody knows how many epochs a trial has.
    """
    walk = _Walk(tuner, epochs, trials)
    with tempfile.TemporaryDirectory() as folder:
        walker = _Walker(
            oracle=copy.deepcopy(tuner.oracle),
            hypermodel=tuner.hypermodel,
            directory=folder,
            project_name="plan",
        )
        walker.walk = walk
        walker.search(verbose=0)
    return Plan(
        tree=walk.tree,
        states=len(walk.states),
        state_bytes=walk.state_bytes,
        disk_budget=tuner.stage_store.disk_budget,
        seconds_per_epoch=seconds_per_epoch,
        warnings=tuple(walk.warnings()),
    )


def upcoming(oracle: Any, space: keras_tuner.HyperParameters) -> list[Any]:
    """The trials that an oracle will create whatever the results are.

    All of grid search and random search, a round of Hyperband and successive halving,
    none of those that learn. Those that are running are not among them.

    Args:
        oracle: that of the search, one of this package; it is left as it is.
        space: the hyperparameters that it searches.
    """
    found: list[Any] = []
    if not isinstance(oracle, (*_FREE_OF_RESULTS, *_IN_ROUNDS)):
        return found
    oracle = copy.deepcopy(oracle)
    with tempfile.TemporaryDirectory() as folder:
        walker = _Walker(oracle=oracle, directory=folder, project_name="upcoming")
        oracle.update_space(space)
        if isinstance(oracle, _FREE_OF_RESULTS):
            walker.walk = _Collected(found)
            walker.search(verbose=0)
        else:
            trial = oracle.create_trial("upcoming-0")
            while trial.status == "RUNNING":
                found.append(trial)
                trial = oracle.create_trial(f"upcoming-{len(found)}")
        oracle.disown_project()
    return found


class _Collected:
    """Notes trials that do not depend on results."""

    is_over = False

    def __init__(self, found: list[Any]) -> None:
        self._found = found

    def visit(self, trial: Any) -> float:
        self._found.append(trial)
        return 0.0


class _Walk:
    """What was seen of the trials so far."""

    def __init__(self, tuner: Any, epochs: int | None, trials: int | None) -> None:
        self.tree = StageTree()
        self.states: set[str] = set()
        self.state_bytes = 0
        self._tuner = tuner
        self._epochs = epochs or tuner.epochs
        self._most = trials
        self._dice = random.Random(0)
        self._schedules: dict[str, Schedule] = {}
        # By root, the schedules of its first trial: models are built once per root.
        self._roots: dict[str, dict[str, Schedule]] = {}
        self._static: dict[str, set[str]] = {}
        self._effects: dict[str, int] = {}

    @property
    def is_over(self) -> bool:
        return self._most is not None and self.tree.trials >= self._most

    def visit(self, trial: Any) -> float:
        """Adds a trial; returns a result for it."""
        hp = trial.hyperparameters
        epochs = hp.values.get("tuner/epochs", self._epochs)
        if epochs is None:
            raise keras_tuner.errors.FatalValueError(
                "`epochs` must be given where the tuner does not know them, got None."
            )
        root = self._root(hp, self._schedules)
        if root not in self._roots:
            self._schedules = self._build(hp)
            root = self._root(hp, self._schedules)
            self._roots[root] = self._schedules
        schedules = [each.chosen_as(hp.values) for each in self._roots[root].values()]
        self.tree.add(split(schedules, epochs), root)
        names = state_ids(root, values_of(schedules, epochs))
        kept = {epochs}.union(*(each.branches(epochs) for each in schedules)) - {0}
        self.states.update(names[epoch] for epoch in kept)
        for each in schedules:
            for key, epoch in each.first_effects(epochs).items():
                name = f"{each.name}/{key}"
                self._effects[name] = min(epoch, self._effects.get(name, epoch))
        return self._dice.random()

    def warnings(self) -> list[str]:
        """Why little is shared, if it is little."""
        if self.tree.merge_rate >= _LITTLE:
            return []
        found = [f"little is shared: the merge rate is {self.tree.merge_rate:.2f}"]
        varying = [name for name, seen in self._static.items() if len(seen) > 1]
        if not self._schedules:
            found.append(
                "no value is declared with `stages.schedule`: trials that differ in "
                "values that never change have no epoch in common"
            )
        elif len(self._roots) == self.tree.trials > 1:
            found.append(
                "no two trials have the same values of what never changes: "
                + ", ".join(varying)
            )
        early = [name for name, epoch in self._effects.items() if epoch <= 1]
        if early:
            found.append("tells from the first epochs on: " + ", ".join(early))
        return found

    def _root(
        self, hp: keras_tuner.HyperParameters, schedules: Mapping[str, Schedule]
    ) -> str:
        static = static_values(hp, schedules)
        return files.dumps(dict(sorted(static.items())))

    def _build(self, hp: keras_tuner.HyperParameters) -> dict[str, Schedule]:
        with collecting() as schedules:
            model = self._tuner.hypermodel.build(hp)
        if model.built and getattr(model, "optimizer", None) is not None:
            model.optimizer.build(model.trainable_variables)
            # The weights of the best epoch come on top.
            arrays = [*model.variables, *model.variables, *model.optimizer.variables]
            size = sum(variable.numpy().nbytes for variable in arrays)
            self.state_bytes = max(self.state_bytes, size)
        for name, value in static_values(hp, schedules).items():
            self._static.setdefault(name, set()).add(str(value))
        return schedules


class _Walker(keras_tuner.engine.base_tuner.BaseTuner):
    """A tuner whose trials are looked at, not run."""

    walk: _Walk | _Collected

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Tells the oracle a result that means nothing."""
        value = self.walk.visit(trial)
        objective = self.oracle.objective
        parts = getattr(objective, "objectives", [objective])
        return {part.name: value for part in (*parts, objective)}

    def pre_create_trial(self) -> None:
        """Ends the search where the user has seen enough."""
        if self.walk.is_over:
            self.oracle.max_trials = len(self.oracle.trials)


def static_values(
    hp: keras_tuner.HyperParameters, schedules: Iterable[str]
) -> dict[str, Any]:
    """The hyperparameters that are the same in all epochs of a trial.

    Args:
        hp: those of the trial.
        schedules: names of the schedules.
    """
    prefixes = ("tuner/", *(f"{name}/" for name in schedules))
    known = {each.name for each in hp.space}
    return {
        name: value
        for name, value in hp.values.items()
        if not name.startswith(prefixes) and (name not in known or hp.is_active(name))
    }


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
