"""Small trainings with a tap, and what a plain gradient tape says about them."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from kt_bttackler.taps import TrainingTap

KERAS = tuple(map(int, keras.version().split(".")[:2]))
layers = keras.layers


class Watch(keras.callbacks.Callback):
    """Taps a training and keeps copies of what it sees after every step."""

    def __init__(self):
        super().__init__()
        self.tap = TrainingTap()
        self.steps = []
        self.rows = []

    def on_train_begin(self, logs=None):
        self.tap.install(self.model)

    def on_train_batch_end(self, batch, logs=None):
        gradients = self.tap.gradients()
        self.steps.append([None if g is None else g.copy() for g in gradients])
        self.rows.append(self.tap.batch_size())
        self.observed = self.tap.observed()

    def on_train_end(self, logs=None):
        self.tap.restore()


def tape_gradients(model, x, y, training=True):
    """What a plain GradientTape says about the current weights."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=training))
    return tape.gradient(loss, [v.value for v in model.trainable_variables])


def as_numpy(gradient):
    return getattr(gradient, "values", gradient).numpy()


def check_one_step(model, x, y, rtol=1e-5):
    """Fit one step and hold the tapped gradients against a tape's."""
    x, y = tf.nest.map_structure(tf.constant, (x, y))
    model(x)
    expected = tape_gradients(model, x, y)
    watch = Watch()
    rows = len(tf.nest.flatten(x)[0])
    fit = {"batch_size": rows, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[watch], **fit)
    assert watch.observed is None
    assert watch.rows == [rows]
    assert len(watch.steps[0]) == len(expected)
    for found, wanted in zip(watch.steps[0], expected, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            wanted = as_numpy(wanted)
            atol = 1e-6 + rtol * np.abs(wanted).max()
            np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)
    return watch


def vectors(rows=8, width=4, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, width)).astype("float32")
    return x, random.normal(size=(rows, 1)).astype("float32")


def tokens(rows=8, length=5, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 20, (rows, length)), vectors(rows)[1]


def compiled(model, optimizer="sgd", **options):
    model.compile(optimizer, "mse", **options)
    return model


def dense_model(**options):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, activation="tanh"), layers.Dense(1)]
    )
    return compiled(model, **options)
