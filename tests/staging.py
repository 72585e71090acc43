"""A small study in stages for the tests, and what its trainings ended with."""

from __future__ import annotations

import gc
from typing import Any

import keras
import numpy as np
import reference_stages as reference

import kt_bttackler as ktb
from kt_bttackler import context, stages

_DICE = np.random.default_rng(0)
X = _DICE.normal(size=(42, 6, 6, 1)).astype("float32")
Y = (X.mean(axis=(1, 2, 3)) > 0).astype("int32")
VALIDATION = (X[:10], Y[:10])
FIT = {"x": X, "y": Y, "validation_data": VALIDATION, "batch_size": 20, "verbose": 0}
EPOCHS = 5
STEPS = {"start": 0.01, "milestones": [2, 3], "factor": [0.1, 0.5]}


def network(optimizer: Any, eager: bool = True) -> keras.Model:
    """A model with as many kinds of state as there are.

    Augmentation, moving averages, dropout, and the variables of the optimizer.
    """
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.RandomTranslation(0.2, 0.2),
            layers.Conv2D(3, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Flatten(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile(
        optimizer,
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # Tracing a graph takes longer than such a training.
        run_eagerly=eager,
    )
    return model


def dense(optimizer: Any, **compiled: Any) -> keras.Model:
    """The smallest model with random numbers in its training."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((36,)), layers.Dropout(0.2), layers.Dense(1)])
    model.compile(optimizer, **({"loss": "mse", "run_eagerly": True} | compiled))
    return model


ROWS = {
    "x": X.reshape(42, 36),
    "y": Y.astype("float32"),
    "validation_data": (X[:10].reshape(10, 36), Y[:10].astype("float32")),
    "batch_size": 20,
    "verbose": 0,
}


def build_dense(hp: Any) -> keras.Model:
    rate = stages.schedule(hp, "learning_rate", "step", **STEPS)
    return dense(keras.optimizers.Adam(rate))


class Ends(keras.callbacks.Callback):
    """Notes for every trial its trained epochs and the digest of its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.digests: dict[str, str] = {}
        self.epochs: dict[str, list[int]] = {}
        self.models: set[int] = set()
        self._trial = ""

    def __deepcopy__(self, memo: Any) -> Ends:
        fresh = type(self)()
        fresh.digests, fresh.epochs, fresh.models = (
            self.digests,
            self.epochs,
            self.models,
        )
        trial = context.running_trial()
        fresh._trial = "ahead" if trial is None else trial.trial_id
        return fresh

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.setdefault(self._trial, []).append(epoch)
        self.digests[self._trial] = reference.digest(self.model)
        self.models.add(id(self.model))

    @property
    def trained(self) -> int:
        return sum(map(len, self.epochs.values()))


def tuner(build: Any, folder: Any, oracle: Any = None, **arguments: Any) -> Any:
    """A tuner of a grid search, if no other oracle is given."""
    defaults = {"epochs": EPOCHS, "directory": folder, "project_name": "p"}
    return stages.StageTuner(
        build,
        oracle=oracle or ktb.oracles.GridSearchOracle("val_loss"),
        stateless=[Ends],
        **(defaults | arguments),
    )


def searched(made: Any, *callbacks: Any, fit: Any = None) -> Ends:
    """Searches; returns what the trainings ended with."""
    ends = Ends()
    # KerasTuner collects garbage before every model. What was imported before need
    # not be looked through each time.
    gc.collect()
    gc.freeze()
    try:
        made.search(**(fit or FIT), callbacks=[*callbacks, ends])
    finally:
        gc.unfreeze()
    return ends


def histories(made: Any) -> dict[str, Any]:
    """By trial the history that the tuner returned; filled while it searches."""
    found: dict[str, Any] = {}
    original = made._build_and_fit_model

    def noting(trial: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(trial, *args, **kwargs)
        found[trial.trial_id] = result.history
        return result

    made._build_and_fit_model = noting
    return found
