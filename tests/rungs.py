"""Real trainings in rungs for the tests, and the same without interruption."""

from __future__ import annotations

import gc
import pathlib
import zlib
from typing import Any

import keras
import numpy as np

import kt_bttackler as ktb
from kt_bttackler import context

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
FIT = {"x": X, "y": Y, "validation_data": (X, Y), "batch_size": 8, "verbose": 0}
SEED = 5


def build(hp: Any) -> keras.Model:
    """A model whose training has as many kinds of state as there are.

    Weights, moving averages, random numbers, moments, averaged weights, a schedule.
    """
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(6, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1),
        ]
    )
    rate = hp.Float("rate", 1e-3, 1e-2)
    schedule = keras.optimizers.schedules.ExponentialDecay(rate, 3, 0.9)
    optimizer = keras.optimizers.Adam(schedule, use_ema=True)
    # Eagerly: tracing a graph takes longer than all of such a training.
    model.compile(optimizer, "mse", run_eagerly=True)
    return model


class Ends(keras.callbacks.Callback):
    """Keeps what every training of a search ended with, by trial and execution."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[str, int], list[np.ndarray]] = {}
        self.epochs: dict[tuple[str, int], list[int]] = {}
        self._key = ("", 0)

    def __deepcopy__(self, memo: Any) -> Ends:
        fresh = type(self)()
        fresh.values, fresh.epochs = self.values, self.epochs
        running = context.running_trial()
        fresh._key = (running.trial_id, running.next_execution(self))
        return fresh

    def on_train_begin(self, logs: Any = None) -> None:
        self.epochs[self._key] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs[self._key].append(epoch + 1)

    def on_train_end(self, logs: Any = None) -> None:
        self.values[self._key] = values_of(self.model)


def values_of(model: keras.Model) -> list[np.ndarray]:
    """Everything that a training changes."""
    variables = [*model.variables, *model.optimizer.variables]
    return [variable.numpy() for variable in variables]


def same(ones: list[np.ndarray], others: list[np.ndarray]) -> bool:
    """Whether all values are equal, bit for bit."""
    pairs = zip(ones, others, strict=True)
    return all(one.tobytes() == other.tobytes() for one, other in pairs)


def tuner(cls: Any, folder: Any, hypermodel: Any = build, **kwargs: Any) -> Any:
    """A tuner of four epochs at most, halved by two."""
    defaults = {"objective": "val_loss", "max_epochs": 4, "factor": 2, "seed": SEED}
    return cls(hypermodel, directory=folder, project_name="p", **(defaults | kwargs))


def searched(made: Any, *callbacks: Any) -> Ends:
    """Searches; returns what the trainings ended with."""
    ends = Ends()
    # KerasTuner collects garbage before every model. What was imported before need
    # not be looked through each time: that takes half of the time.
    gc.collect()
    gc.freeze()
    try:
        made.search(**FIT, callbacks=[ktb.DiagnosisCallback(), *callbacks, ends])
    finally:
        gc.unfreeze()
    return ends


def lineage(made: Any, trial_id: str) -> list[str]:
    """Ids of the trials that a trial goes on with, the first one first."""
    past = made.oracle.trials[trial_id].hyperparameters.values.get("tuner/trial_id")
    return [*(lineage(made, past) if past else []), trial_id]


def finalists(made: Any) -> list[str]:
    """Ids of the trials that rose to the last round."""
    return [
        trial_id
        for trial_id, trial in made.oracle.trials.items()
        if trial.hyperparameters.values["tuner/epochs"] == made.oracle.max_epochs
        and len(lineage(made, trial_id)) > 1
    ]


def uninterrupted(
    made: Any, trial_id: str, execution: int = 0, callbacks: Any = ()
) -> list[np.ndarray]:
    """What the training of a trial ends with if it is one, from the first epoch on."""
    trial = made.oracle.trials[trial_id]
    keras.backend.clear_session()
    name = f"{SEED}/{lineage(made, trial_id)[0]}/{execution}"
    keras.utils.set_random_seed(zlib.crc32(name.encode()))
    model = build(trial.hyperparameters)
    epochs = trial.hyperparameters.values["tuner/epochs"]
    model.fit(**FIT, epochs=epochs, callbacks=list(callbacks))
    return values_of(model)


def states(folder: Any) -> set[str]:
    """Ids of the trials whose state is kept."""
    paths = pathlib.Path(folder).glob("p/trial_*/state-*.npz")
    return {path.parent.name.removeprefix("trial_") for path in paths}
