"""Callbacks of trials that go on from stored states.

A stage is trained once and stands for several trials. So a callback must not make the
training another one, and one that keeps a state from epoch to epoch must be told of the
epochs that were not trained again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_tuner

from kt_bttackler.callback import DiagnosisCallback
from kt_bttackler.stages.verdicts import judge_name
from kt_bttackler.trace import Trace

# They keep no state that a training which goes on would miss.
_WITHOUT_STATE = (
    keras.callbacks.ProgbarLogger,
    keras.callbacks.TensorBoard,
    keras.callbacks.TerminateOnNaN,
)
# Of the search itself: KerasTuner's own have no public names.
_OF_THE_SEARCH = ("keras_tuner.", "tensorboard.")


def check(
    callbacks: Sequence[Any], stateless: Sequence[type[keras.callbacks.Callback]]
) -> None:
    """Refuses callbacks that would make the results of staged trials others.

    Args:
        callbacks: those of a trial.
        stateless: classes that the user declares to be without state.

    Raises:
        ValueError: a callback is not known to be harmless.
    """
    exactly = (keras.callbacks.EarlyStopping, *_WITHOUT_STATE)
    for callback in callbacks:
        if type(callback) in exactly:
            continue
        if type(callback).__module__.startswith(_OF_THE_SEARCH):
            continue
        if not isinstance(callback, (DiagnosisCallback, *stateless)):
            raise ValueError(
                "`callbacks` must not change the training nor keep a state from epoch "
                f"to epoch, got {type(callback).__name__}. What changes in a training "
                "is declared with `stages.schedule`; a callback that only watches is "
                "declared with `stateless=`."
            )


def of_stages(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks of stages that are trained for no trial in particular.

    Those of the user, but for what writes into the folder of a trial.
    """
    return [c for c in callbacks if not isinstance(c, keras.callbacks.TensorBoard)]


def judge_of(callbacks: Sequence[Any]) -> str | None:
    """Names the diagnosis that may end a trial; `None` if none may."""
    stopper = _stopper(callbacks)
    return None if stopper is None else judge_name(stopper.diagnosis)


def same_diagnosis(callbacks: Sequence[Any], objective: Any) -> DiagnosisCallback:
    """A callback with the diagnosis that may end a trial."""
    stopper = _stopper(callbacks)
    if stopper is None:
        raise ValueError(
            "`callbacks` must have a DiagnosisCallback that stops, got none."
        )
    return DiagnosisCallback(stopper.diagnosis, objective=objective)


def _stopper(callbacks: Sequence[Any]) -> DiagnosisCallback | None:
    watching = (c for c in callbacks if isinstance(c, DiagnosisCallback))
    return next((c for c in watching if c.stops), None)


def watcher_of(callbacks: Sequence[Any]) -> DiagnosisCallback | None:
    """The first callback that diagnoses the trial."""
    return next((c for c in callbacks if isinstance(c, DiagnosisCallback)), None)


def recorded_by(watcher: DiagnosisCallback) -> Trace | None:
    """What it has recorded; `None` if its diagnosis could not begin."""
    try:
        return watcher.trace
    except AttributeError:  # it was copied since
        return None


def watch_only(callbacks: Sequence[Any]) -> None:
    """Lets no diagnosis end the trial."""
    for callback in callbacks:
        if isinstance(callback, DiagnosisCallback):
            callback.stops = False


def saves_best_epoch(callback: Any) -> bool:
    """Whether it is KerasTuner's, which writes the weights of every better epoch."""
    return type(callback).__name__ == "SaveBestEpoch"


def prepare(callbacks: Sequence[Any]) -> None:
    """Makes the callbacks of one trial fit for stages.

    The weights of the best epoch are kept by the tuner; `EarlyStopping` would give
    them to the model that the next trial goes on with. It would also ask a model which
    was not trained yet whether its metric is to grow.
    """
    for callback in _early_stopping(callbacks):
        callback.restore_best_weights = False
        if callback.mode == "auto":
            with contextlib.suppress(ValueError):  # a metric unknown to KerasTuner
                oracle = keras_tuner.oracles.RandomSearchOracle(callback.monitor)
                callback.mode = oracle.objective.direction


def tell_again(
    callbacks: Sequence[Any], model: keras.Model, history: Sequence[Mapping[str, float]]
) -> int | None:
    """Tells callbacks of epochs that are not trained again.

    Args:
        callbacks: those of the trial.
        model: that of the training.
        history: the logs of those epochs.

    Returns:
        After how many epochs a callback ended the training; `None` if none did.
    """
    told = _early_stopping(callbacks)
    for callback in told:
        callback.set_model(model)
        callback.on_train_begin()
    model.stop_training = False
    ended = None
    for epoch, logs in enumerate(history):
        for callback in told:
            callback.on_epoch_end(epoch, dict(logs))
        if model.stop_training:
            ended = epoch + 1
            break
    model.stop_training = False
    return ended


def _early_stopping(callbacks: Sequence[Any]) -> list[keras.callbacks.EarlyStopping]:
    return [c for c in callbacks if isinstance(c, keras.callbacks.EarlyStopping)]
