"""The executions of trials, trained in stages; the part of the tuner that does it."""

from __future__ import annotations

import collections
import contextlib
import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial

from kt_bttackler import context, files
from kt_bttackler.fuses import warn
from kt_bttackler.oracles.mixin import is_late
from kt_bttackler.roles import is_worker
from kt_bttackler.stages import callbacks as stage_callbacks
from kt_bttackler.stages import identity
from kt_bttackler.stages.ahead import Ahead, Beginning, Upcoming
from kt_bttackler.stages.data import DATA, NEUTRAL, SearchData
from kt_bttackler.stages.planning import static_values, upcoming
from kt_bttackler.stages.schedules import Schedule, collecting
from kt_bttackler.stages.staged_training import StagedTraining, Usage
from kt_bttackler.stages.store import StageStore
from kt_bttackler.stages.verdicts import StageVerdict
from kt_bttackler.stages.warm import BATCH_SIZE, WarmModel
from kt_bttackler.training_state import TrainingState

_FIT = inspect.signature(keras.Model.fit)


class TrainsInStages(keras_tuner.Tuner):
    """Trains the executions of a trial in stages; stands before KerasTuner's class."""

    _execution: int  # both of `DiagnosedTuner`
    _seed_of: Any

    epochs: int | None
    stage_store: StageStore
    usage: Usage
    _code_version: str
    _data_version: str | None
    _stateless: Sequence[type[keras.callbacks.Callback]]
    _warm: collections.OrderedDict[str, WarmModel]
    _warm_models: int
    _data: dict[int, SearchData]
    _second_opinion: int
    _control_share: float
    _workers: int
    _given: tuple[tuple[Any, ...], dict[str, Any]]
    _given_oracle: keras_tuner.Oracle
    _known_trials: float

    def pre_create_trial(self) -> None:
        """Trains the stages of all trials that are known, if others do so, too."""
        super().pre_create_trial()
        if self._workers > 1 and self._known_trials < 1:
            try:
                self._known_trials = self._train_ahead()
            except Exception as error:  # the trials that are run next will tell
                warn(f"stages are not trained ahead: {type(error).__name__}: {error}")
        self._known_trials -= 1

    def _train_ahead(self) -> float:
        """Returns for how many trials there is nothing more to do ahead."""
        args, kwargs = self._given
        arguments, callbacks = self._arguments(*args, **kwargs)
        if stage_callbacks.watcher_of(callbacks) is not None:
            return math.inf  # the trace of a trial is one of its own training
        oracle = self._given_oracle
        if is_worker() and not isinstance(oracle, keras_tuner.oracles.GridSearchOracle):
            return math.inf  # only the chief knows what it draws
        trials = upcoming(oracle, self.oracle.get_space())
        usage = Usage()

        def begin(each: Upcoming) -> Beginning:
            keras.utils.set_random_seed(each.seed)
            return self._beginning(each.trial.hyperparameters, arguments, each.seed)

        def train(
            begins: Beginning, each: Upcoming, schedules: Any, until: int
        ) -> bool:
            own = copy.deepcopy(stage_callbacks.of_stages(callbacks))
            training = self._training(
                begins, each.trial, schedules, arguments, each.epochs, own, usage, until
            )
            return training.run(begins.initial, wait=False)

        ahead = Ahead(self._workers, self.stage_store, begin, train, self._warm_models)
        try:
            ahead.run(
                [
                    Upcoming(trial, self._seed_of(trial, number), epochs)
                    for trial in trials
                    for epochs in [self._epochs_of(trial, arguments)]
                    for number in range(self.executions_per_trial)
                ],
                lambda: is_late(self.oracle),
            )
        finally:
            self.usage.add(usage)
        return math.inf if is_worker() else len(trials)

    def _arguments(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], list[Any]]:
        """Arguments of `fit` by name, and the callbacks among them."""
        with _fatal():
            given = _FIT.bind_partial(None, *args, **kwargs).arguments
            arguments = {name: given[name] for name in given if name != "self"}
            callbacks = list(arguments.get("callbacks") or ())
            stage_callbacks.check(callbacks, self._stateless)
        return arguments, callbacks

    def _epochs_of(self, trial: Trial, arguments: Mapping[str, Any]) -> int:
        epochs = trial.hyperparameters.values.get("tuner/epochs", self.epochs)
        return int(epochs or arguments.get("epochs", 1))

    def _build_and_fit_model(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        # Private, but kept for overriding by KerasTuner: one call is one execution.
        arguments, callbacks = self._arguments(*args, **kwargs)
        seed = self._seed_of(trial, self._execution - 1)
        epochs = self._epochs_of(trial, arguments)
        training = self._train(trial, arguments, seed, epochs, callbacks, self.usage)
        self._save_best(trial, training, callbacks)
        verdict = training.verdict
        if verdict is not None and verdict.scope != "trial":
            if self._is_confirmed(verdict, trial, arguments, seed, training, callbacks):
                training.share_verdict()
        return _history(training)

    def _train(
        self,
        trial: Trial,
        arguments: Mapping[str, Any],
        seed: int,
        epochs: int,
        callbacks: Sequence[Any],
        usage: Usage,
    ) -> StagedTraining:
        begins = self._beginning(trial.hyperparameters, arguments, seed)
        training = self._training(
            begins, trial, begins.schedules, arguments, epochs, callbacks, usage
        )
        training.run(begins.initial)
        return training

    def _beginning(
        self,
        hp: keras_tuner.HyperParameters,
        arguments: Mapping[str, Any],
        seed: int,
    ) -> Beginning:
        """Builds a model, and names its root."""
        with collecting() as schedules:
            model = self._try_build(hp)
        with _fatal():
            data = self._data_of(arguments, seed)
            if BATCH_SIZE in schedules and data.rows is None:
                raise ValueError(
                    "`x` must be in arrays where the batch size is scheduled, got a "
                    f"{type(arguments['x']).__name__}."
                )
            facts = self._facts(hp, schedules, model, data, arguments, seed)
            root = identity.root_name(facts)
            warm, initial = self._warm_model(root, model, schedules)
        self.stage_store.describe(root, facts)
        return Beginning(root, schedules, data, warm, initial)

    def _training(
        self,
        begins: Beginning,
        trial: Trial,
        schedules: Mapping[str, Schedule],
        arguments: Mapping[str, Any],
        epochs: int,
        callbacks: Sequence[Any],
        usage: Usage,
        until: int | None = None,
    ) -> StagedTraining:
        hp = trial.hyperparameters
        return StagedTraining(
            begins.warm,
            schedules,
            epochs,
            begins.root,
            self.stage_store,
            lambda *args, **kwargs: self.hypermodel.fit(hp, *args, **kwargs),
            begins.data.rows,
            begins.data.arguments(arguments),
            [c for c in callbacks if not stage_callbacks.saves_best_epoch(c)],
            self.oracle.objective,
            usage,
            trial.trial_id,
            stage_callbacks.judge_of(callbacks),
            self._control_share,
            until,
        )

    def _is_confirmed(
        self,
        verdict: StageVerdict,
        trial: Trial,
        arguments: Mapping[str, Any],
        seed: int,
        training: StagedTraining,
        callbacks: Sequence[Any],
    ) -> bool:
        """Whether a verdict may end other trials.

        All trials begin with the same weights. If many depend on a stage, the same
        values must be as sick with others.
        """
        if training.at_stake(verdict.epoch) < self._second_opinion:
            return True
        running = context.running_trial()
        watching = stage_callbacks.same_diagnosis(callbacks, self.oracle.objective)
        other, usage = (seed + 1) % 2**32, Usage()
        context.publish(None)  # it is not one of the trial's own executions
        try:
            keras.utils.set_random_seed(other)
            second = self._train(
                trial, arguments, other, verdict.epoch, [watching], usage
            )
        finally:
            context.publish(running)
        self.usage.second_opinions += 1
        self.usage.add(usage)
        return second.verdict is not None

    def _data_of(self, arguments: Mapping[str, Any], seed: int) -> SearchData:
        """The data of the search, which are the same in all its trials."""
        known = self._data.get(seed)
        if known is None or not known.is_of(arguments):
            known = self._data[seed] = SearchData(arguments, seed, self._data_version)
        return known

    def _facts(
        self,
        hp: keras_tuner.HyperParameters,
        schedules: Mapping[str, Schedule],
        model: keras.Model,
        data: SearchData,
        arguments: Mapping[str, Any],
        seed: int,
    ) -> dict[str, Any]:
        """All that the first epochs of a training depend on, but for the schedules."""
        objective = self.oracle.objective
        others = {
            name: value
            for name, value in arguments.items()
            if name not in (*NEUTRAL, *DATA)
            and not (name == BATCH_SIZE and BATCH_SIZE in schedules)
        }
        return {
            "seed": seed,
            "hyperparameters": static_values(hp, schedules),
            "objective": [objective.name, objective.direction],
            "data": data.fingerprint,
            "fit": others,
            "apply": {
                name: identity.source_digest(schedule.apply)
                for name, schedule in schedules.items()
                if schedule.apply is not None
            },
            "program": [
                self._code_version,
                identity.source_digest(self.hypermodel.build),
                identity.source_digest(self.hypermodel.fit),
            ],
            **identity.of_model(model, schedules),
            **identity.of_machine(),
            **identity.of_settings(),
        }

    def _warm_model(
        self, root: str, model: keras.Model, schedules: Mapping[str, Schedule]
    ) -> tuple[WarmModel, TrainingState | None]:
        """A compiled model to train, and the state to begin with if it was trained."""
        fresh = WarmModel(model, schedules)
        fresh.build_optimizer(schedules)
        warm = self._warm.pop(root, None)
        initial = None
        if warm is None or not model.built:
            warm = fresh
        else:
            initial = TrainingState.of(model, 0, root)
        self._warm[root] = warm
        while len(self._warm) > max(1, self._warm_models):
            self._warm.popitem(last=False)
        if self._warm_models == 0:
            self._warm.clear()
        return warm, initial

    def _save_best(
        self,
        trial: Trial,
        training: StagedTraining,
        callbacks: Sequence[Any],
    ) -> None:
        """Writes the weights of the best epoch where KerasTuner looks for them."""
        model = training.model
        if training.best is not None:
            for variable, value in zip(
                model.variables, training.best.weights, strict=True
            ):
                if value.dtype.kind == "V":  # bfloat16, unknown to numpy's files
                    value = value.view(variable.numpy().dtype)
                variable.assign(value)
            for callback in callbacks:
                if stage_callbacks.saves_best_epoch(callback):
                    epoch = training.best.epoch
                    callback.set_model(model)
                    callback.on_epoch_end(epoch, training.history[epoch])
        # Private: where `load_model` looks for the shapes of models without an input.
        path = self._get_build_config_fname(trial.trial_id)
        files.write_atomically(path, files.dumps(model.get_build_config()))


@contextlib.contextmanager
def _fatal() -> Iterator[None]:
    """Within it a mistake of the user ends the search, not only the trial."""
    try:
        yield
    except ValueError as error:
        raise keras_tuner.errors.FatalValueError(str(error)) from error
    except TypeError as error:
        raise keras_tuner.errors.FatalTypeError(str(error)) from error


def _history(training: StagedTraining) -> keras.callbacks.History:
    """The history of all epochs, as one `fit` would have returned it."""
    history = keras.callbacks.History()
    history.epoch = list(range(len(training.history)))
    history.history = {}
    for logs in training.history:
        for name, value in logs.items():
            history.history.setdefault(name, []).append(value)
    for name, value in training.channel.items():
        history.history[name] = [value] * len(training.history)
    return history
