"""Promoted trials go on with their training exactly where it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial
from keras_tuner.engine.tuner import maybe_distribute

from kt_bttackler import project, training_state
from kt_bttackler.fuses import warn
from kt_bttackler.training_state import KeepState, TrainingState


class ResumesTraining(keras_tuner.Tuner):
    """What a tuner needs whose oracle promotes trials; stands before KerasTuner's.

    KerasTuner's Hyperband gives a promoted trial the weights of the best epoch and a
    new optimizer: moments are lost, and a schedule of the learning rate begins anew.
    Here it gets all of the last epoch: weights, optimizer, seeds of layers, and, with
    `seed`, the random numbers of Python and numpy. Each execution goes on with the
    execution of the same number.

    So with `seed`, the rungs of a trial together are, bit for bit, one training that
    was never interrupted, if the order of the data in an epoch does not hang on
    earlier epochs. It does not for arrays (Keras shuffles them in the same way in
    every epoch when there is a seed), nor without shuffling; it does for a
    `tf.data.Dataset` that shuffles anew in each epoch.

    Callbacks begin anew in every rung: `LearningRateScheduler` goes by the epoch and
    the rate that `ReduceLROnPlateau` set is kept, but the patience of that one and of
    `EarlyStopping` is counted from the start of the rung. A trial that such a callback
    ended early goes on from the epoch in which it ended, with the weights of that
    epoch. Without a state, as in a project begun by KerasTuner's own tuner, or where
    `HyperModel.fit` trains other models than the one it is given, a promoted trial is
    trained from its first epoch.
    """

    _execution: int  # these three of `DiagnosedTuner`
    _max_epochs: int | None
    _kept_states: Mapping[int, TrainingState]
    seed: int | None
    _state: TrainingState | None = None
    _keeper: KeepState | None = None

    def _build_and_fit_model(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        # Private, but kept for overriding by KerasTuner: one call is one execution.
        values = trial.hyperparameters.values
        if "tuner/epochs" not in values:
            return super()._build_and_fit_model(trial, *args, **kwargs)
        epochs = values["tuner/epochs"]
        self._state = self._state_before(trial)
        callbacks = list(kwargs.get("callbacks") or ())
        # A worker's oracle, which only asks the chief, does not know it.
        last = getattr(self.oracle, "max_epochs", self._max_epochs)
        if last is None or epochs < last:
            folder = self.get_trial_dir(trial.trial_id)
            path = training_state.path_of(folder, self._execution)
            self._keeper = KeepState(path, epochs, self._origin(trial))
            # The last one: it looks whether another has ended the training.
            callbacks.append(self._keeper)
        kwargs |= {
            "epochs": epochs,
            "initial_epoch": self._state.epoch if self._state else 0,
            "callbacks": callbacks,
        }
        try:
            return super()._build_and_fit_model(trial, *args, **kwargs)
        finally:
            self._state = self._keeper = None

    def _build_hypermodel(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        # Private. Not that of KerasTuner's Hyperband, which loads the best weights.
        model = keras_tuner.Tuner._build_hypermodel(self, hp)
        if self._keeper is not None:
            self._keeper.trained_model = model
        if self._state is not None:
            with maybe_distribute(self.distribution_strategy):
                self._state.restore(model)
            if self.seed is not None:
                self._state.restore_random_numbers()
        return model

    def _origin(self, trial: Trial) -> str:
        """Id of the trial in which the training began, of which its seeds are made."""
        if self._state is not None:
            return self._state.origin
        return str(super()._origin(trial))

    def _state_before(self, trial: Trial) -> TrainingState | None:
        """What a promoted trial goes on with; None for a trial that begins."""
        if self._execution in self._kept_states:
            return self._kept_states[self._execution]
        past_id = trial.hyperparameters.values.get("tuner/trial_id")
        if past_id is None:
            return None
        try:
            if not project.is_trial_id(past_id):  # it comes from a file
                raise ValueError(f"{past_id!r} is no trial id")
            folder = self.get_trial_dir(past_id)
            return TrainingState.load(training_state.path_of(folder, self._execution))
        except Exception as error:
            warn(
                f"trial {trial.trial_id} is trained from its first epoch: the state "
                f"of trial {past_id} cannot be had: {type(error).__name__}: {error}"
            )
            return None
