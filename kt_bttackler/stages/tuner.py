"""A tuner that trains what trials have in common once."""

from __future__ import annotations

import collections
import contextlib
import inspect
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial

from kt_bttackler import context, files
from kt_bttackler.diagnosed_tuner import DiagnosedTuner
from kt_bttackler.stages import callbacks as stage_callbacks
from kt_bttackler.stages import identity
from kt_bttackler.stages.data import DATA, NEUTRAL, SearchData
from kt_bttackler.stages.planning import static_values
from kt_bttackler.stages.schedules import Schedule, collecting
from kt_bttackler.stages.staged_training import StagedTraining, Usage
from kt_bttackler.stages.store import StageStore, byte_count
from kt_bttackler.stages.verdicts import StageVerdict
from kt_bttackler.stages.warm import BATCH_SIZE, WarmModel
from kt_bttackler.training_state import TrainingState

_FIT = inspect.signature(keras.Model.fit)


class _TrainsInStages(keras_tuner.Tuner):
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

    def _build_and_fit_model(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        # Private, but kept for overriding by KerasTuner: one call is one execution.
        with _fatal():
            given = _FIT.bind_partial(None, *args, **kwargs).arguments
            arguments = {name: given[name] for name in given if name != "self"}
            callbacks = list(arguments.get("callbacks") or ())
            stage_callbacks.check(callbacks, self._stateless)
        seed = self._seed_of(trial, self._execution - 1)
        epochs = trial.hyperparameters.values.get("tuner/epochs", self.epochs)
        epochs = epochs or given.get("epochs", 1)
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
        hp = trial.hyperparameters
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
        training = StagedTraining(
            warm,
            schedules,
            epochs,
            root,
            self.stage_store,
            lambda *args, **kwargs: self.hypermodel.fit(hp, *args, **kwargs),
            data.rows,
            data.arguments(arguments),
            [c for c in callbacks if not stage_callbacks.saves_best_epoch(c)],
            self.oracle.objective,
            usage,
            trial.trial_id,
            stage_callbacks.judge_of(callbacks),
            self._control_share,
        )
        training.run(initial)
        return training

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
        self.usage.trained += usage.trained
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


class StageTuner(DiagnosedTuner, _TrainsInStages):
    """Trains every beginning that trials share once.

    What changes during a training is declared with `stages.schedule` in `build`. Every
    trial goes on from the deepest state on its path that an earlier trial has left,
    here, in another process or in another study with the same `stage_dir`. Its weights,
    its optimizer and its history are those, bit for bit, of a training from its first
    epoch with the same seed on the same machine.

    All trials with the same architecture begin with the same weights and see the rows
    in the same order, which is drawn anew for every epoch (`stages.epoch_order`). This
    makes them comparable; they are no independent samples.

    Random numbers must come from Keras's layers or from a `SeedGenerator` that belongs
    to the model. `fit` must not depend on `hp`.

    Args:
        hypermodel: a function that builds a model, or a `keras_tuner.HyperModel`.
        oracle: of the search. With grid search and random search staged trials are the
            trials; adaptive oracles see the same results in the same order, too.
        epochs: of every trial; Hyperband and successive halving have their own.
        seed: of all trainings.
        stage_dir: folder of the states; by default `stages` in the project.
        disk_budget: most bytes of states, such as 2_000_000_000 or "2GB"; by default
            there is no limit. What has to go is trained again when it is needed.
        code_version: a name for whatever else a training depends on that is in the
            source of neither `build`, `fit`, layers nor losses: helper functions.
        data_version: a name for data that is not in arrays. A `tf.data.Dataset` must
            give the same batches in the same order in every epoch.
        stateless: classes of callbacks that neither change the training nor keep a
            state from epoch to epoch.
        warm_models: compiled models that are kept for trials to come.
        second_opinion: with a `DiagnosisCallback`, a verdict that would end at least so
            many other trials must be given with another seed, too, before it does.
        control_share: share of the trials that a verdict of another trial would end
            which are trained to their end nevertheless; see `usage.controls`.
        **kwargs: arguments of `DiagnosedTuner`.

    Raises:
        ValueError: an argument is out of its range.

    Attributes:
        usage: epochs of the trials so far, epochs trained for them, and the seconds in
            which states were written, read and waited for, in this process.
    """

    def __init__(
        self,
        hypermodel: Any = None,
        oracle: keras_tuner.Oracle | None = None,
        *,
        epochs: int | None = None,
        seed: int = 0,
        stage_dir: str | os.PathLike[str] | None = None,
        disk_budget: int | str | None = None,
        code_version: str = "",
        data_version: str | None = None,
        stateless: Sequence[type[keras.callbacks.Callback]] = (),
        warm_models: int = 4,
        second_opinion: int = 4,
        control_share: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if oracle is None:
            raise ValueError("`oracle` must be given, got None.")
        if epochs is not None and epochs < 1:
            raise ValueError(f"`epochs` must be at least 1, got {epochs}.")
        if warm_models < 0:
            raise ValueError(f"`warm_models` must be at least 0, got {warm_models}.")
        if not 0 <= control_share <= 1:
            raise ValueError(f"`control_share` must be in [0, 1], got {control_share}.")
        if kwargs.get("distribution_strategy") is not None:
            raise ValueError(
                "`distribution_strategy` must be None for staged trials, got "
                f"{kwargs['distribution_strategy']!r}."
            )
        budget = byte_count(disk_budget)
        self.seed = seed
        self.epochs = epochs
        self.usage = Usage()
        self._code_version = code_version
        self._data_version = data_version
        self._stateless = tuple(stateless)
        self._warm = collections.OrderedDict()
        self._warm_models = warm_models
        self._second_opinion = second_opinion
        self._control_share = control_share
        self._data = {}
        super().__init__(oracle, hypermodel, **kwargs)
        folder = pathlib.Path(stage_dir or pathlib.Path(self.project_dir) / "stages")
        self.stage_store = StageStore(folder, budget)
        self._max_epochs = self._max_epochs or epochs

    def search(self, *fit_args: Any, **fit_kwargs: Any) -> None:
        """Searches; takes the arguments of `fit`, as KerasTuner's tuners do.

        `epochs` may be given here instead of in the constructor.
        """
        self._data = {}
        try:
            super().search(*fit_args, **fit_kwargs)
        finally:
            self._data = {}

    def _origin(self, trial: Trial) -> str:
        """All trials begin with the same seed."""
        return "stages"


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
