"""The search of the demo: its space, its model, its tuner."""

from __future__ import annotations

import argparse
import logging
import pathlib
import warnings
from typing import Any

import keras
import keras_tuner

from kt_bttackler import tuners
from kt_bttackler.callback import DiagnosisCallback
from kt_bttackler.demo_data import Data
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.rules import NeverStop

OBJECTIVE = "val_accuracy"
HYPERBAND_FACTOR = 3

# A wide space on purpose: about half of it is what people try, the rest is what
# they try by accident.
_INITIALIZERS = {
    "glorot_uniform": keras.initializers.GlorotUniform,
    "he_normal": keras.initializers.HeNormal,
    "wide_normal": lambda: keras.initializers.RandomNormal(stddev=2.0),
    "zeros": keras.initializers.Zeros,
}
_OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
}
_ACTIVATIONS = ["relu", "tanh", "sigmoid", "elu", "leaky_relu"]


class WideSpace(keras_tuner.HyperModel):
    """A small classifier: dense layers for features, convolutions for images.

    Args:
        shape: of one input.
        classes: number of classes.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self._shape = shape
        self._classes = classes

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Builds the model of one configuration."""
        images = len(self._shape) == 3
        # A grid varies the last one first.
        hp.Choice("batch_size", [32, 64, 128, 256])
        initializer = hp.Choice("initializer", list(_INITIALIZERS))
        activation = hp.Choice("activation", _ACTIVATIONS)
        width = hp.Choice("width", [8, 16, 32] if images else [16, 32, 64, 128])
        depth = hp.Int("depth", 1, 4 if images else 6)
        optimizer = hp.Choice("optimizer", list(_OPTIMIZERS))
        learning_rate = hp.Float("learning_rate", 1e-5, 10.0, sampling="log")
        model = keras.Sequential([keras.Input(self._shape)])
        for _ in range(depth):
            how = {
                "activation": activation,
                "kernel_initializer": _INITIALIZERS[initializer](),
            }
            if not images:
                model.add(keras.layers.Dense(width, **how))
                continue
            model.add(keras.layers.Conv2D(width, 3, padding="same", **how))
            if min(model.output_shape[1:3]) >= 4:
                model.add(keras.layers.MaxPooling2D())
        if images:
            model.add(keras.layers.Flatten())
        model.add(keras.layers.Dense(self._classes, activation="softmax"))
        model.compile(
            _OPTIMIZERS[optimizer](learning_rate=learning_rate),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        return model

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        *args: Any,
        **how: Any,
    ) -> keras.callbacks.History:
        """Trains it, with the batch size of the configuration."""
        return model.fit(*args, batch_size=hp.get("batch_size"), **how)


def make_tuner(
    options: argparse.Namespace,
    data: Data,
    project: pathlib.Path,
    trials: int,
) -> keras_tuner.Tuner:
    """The tuner that the options ask for, of that many trials."""
    common = {
        "hypermodel": WideSpace(data.x_train.shape[1:], data.classes),
        "objective": OBJECTIVE,
        "seed": options.seed,
        "directory": str(project.parent),
        "project_name": project.name,
    }
    if options.tuner == "hyperband":
        tuner = tuners.Hyperband(
            max_epochs=options.epochs, factor=HYPERBAND_FACTOR, **common
        )
        # Hyperband has no such argument, but every oracle keeps to this limit.
        tuner.oracle.max_trials = trials
        return tuner
    tuner_class = {
        "random": tuners.RandomSearch,
        "grid": tuners.GridSearch,
        "bayesian": tuners.BayesianOptimization,
        "tpe": tuners.TPE,
        "smac": tuners.SMAC,
    }[options.tuner]
    if options.tuner not in ("random", "grid"):
        # The default is for longer searches: KerasTuner's is three times as many
        # points as there are hyperparameters, more than the demo has trials.
        common["num_initial_points"] = max(3, trials // 3)
    return tuner_class(max_trials=trials, **common)


def search(
    tuner: keras_tuner.Tuner,
    options: argparse.Namespace,
    data: Data,
    project: pathlib.Path,
) -> None:
    """Searches, with a diagnosis or with a record only."""
    if options.no_diagnosis:
        diagnosis = DiagnosisCallback(Diagnosis((), NeverStop()))
    else:
        diagnosis = DiagnosisCallback()
    board = keras.callbacks.TensorBoard(str(project / "tensorboard"), write_graph=False)
    # A search builds one model after the other, of which TensorFlow warns.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # KerasTuner's, about metrics of a trial that ended with NaN.
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        tuner.search(
            data.x_train,
            data.y_train,
            epochs=options.epochs,
            validation_data=(data.x_test, data.y_test),
            callbacks=[diagnosis, board],
            verbose="auto",
        )
