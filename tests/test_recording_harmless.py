"""A training is the same bit for bit, whether every fact of it is recorded or none."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from recording import watcher

layers = keras.layers
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 4, 2)).astype("float32")
Y = RANDOM.integers(0, 3, (64, 1))


class Noisy(layers.Layer):
    """Draws also at inference, as Monte-Carlo dropout does."""

    def __init__(self, seeded=True):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(3) if seeded else None

    def call(self, x):
        shape = keras.ops.shape(x)
        return x + 0.1 * keras.random.normal(shape, dtype=x.dtype, seed=self.seeds)


def sequential(*middle):
    return keras.Sequential(
        [keras.Input((4, 2)), *middle, layers.Dense(3, activation="softmax")]
    )


def dropout_and_norm():
    return sequential(
        layers.Conv1D(4, 2, activation="relu", kernel_regularizer="l2"),
        layers.BatchNormalization(),
        layers.SpatialDropout1D(0.3),
        Noisy(),
        layers.Flatten(),
        layers.Dense(4, activation="tanh", activity_regularizer="l2"),
        layers.Dropout(0.3),
    )


def stateful():
    x = keras.Input(batch_shape=(8, 4, 2))
    h = layers.LSTM(3, stateful=True, recurrent_dropout=0.2)(x)
    return keras.Model(x, layers.Dense(3, activation="softmax")(h))


def several_outputs():
    x = keras.Input((4, 2))
    h = layers.Dropout(0.2)(layers.Dense(3, activation="tanh")(layers.Flatten()(x)))
    return keras.Model(x, [layers.Dense(3, "softmax", name=name)(h) for name in "ab"])


class Subclassed(keras.Model):
    """Not built before the first step, or only in part."""

    def __init__(self, partly):
        super().__init__()
        inner = [layers.Flatten(), layers.Dense(4, activation="relu")]
        self.inner = keras.Sequential(
            [keras.Input((4, 2)), *inner] if partly else inner
        )
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.4)
        self.out = layers.Dense(3, activation="softmax")

    def call(self, x, training=False):
        h = self.norm(self.inner(x), training=training)
        return self.out(self.drop(h, training=training))


MODELS = {
    "dropout and norm": dropout_and_norm,
    "stateful": stateful,
    "several outputs": several_outputs,
    "unbuilt": lambda: Subclassed(partly=False),
    "built in part": lambda: Subclassed(partly=True),
}


def train(build, callbacks, **options):
    keras.backend.clear_session()  # in older Keras a seed does not reset what draws
    keras.utils.set_random_seed(1)
    model = build()
    count = len(getattr(model, "outputs", None) or [0])
    loss = ["sparse_categorical_crossentropy"] * count
    metrics = [["accuracy"]] * count if count > 1 else ["accuracy"]
    model.compile("adam", loss, metrics=metrics, **options)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(64, seed=2)
    if count > 1:
        data = data.map(lambda x, y: (x, (y, y)))
    data = data.batch(8, drop_remainder=True)
    history = model.fit(
        data, epochs=2, validation_data=data.take(2), verbose=0, callbacks=callbacks
    )
    state = [*model.variables, *model.optimizer.variables]
    later = [random.random(), np.random.random(), float(keras.random.uniform(()))]
    return [np.array(v.numpy()) for v in state], history.history, later


def check(build, probe_data=None, **options):
    callback = watcher(probe_data=probe_data)
    plain = train(build, [], **options)
    recorded = train(build, [callback], **options)
    assert recorded[1:] == plain[1:]
    for one, other in zip(plain[0], recorded[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.isnan(callback.trace.scalar("output/spread")).any()
    assert not np.isnan(callback.trace.table("update/moved")[1]).all()
    assert not np.isnan(callback.trace.scalar("output/initial_spread")[0])


@pytest.mark.parametrize(
    ("model", "probe_data"),
    [
        ("dropout and norm", None),
        ("dropout and norm", X[:8]),
        ("stateful", X[:8]),
        ("several outputs", None),
        ("unbuilt", None),
        ("built in part", X[:8]),
    ],
)
def test_training_is_the_same_bit_for_bit(model, probe_data):
    check(MODELS[model], probe_data, jit_compile=False)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("dropout and norm", {"run_eagerly": True}),
        ("built in part", {"steps_per_execution": 3}),
    ],
)
def test_in_other_ways_of_running(model, options):
    check(MODELS[model], X[:8], **{"jit_compile": False} | options)


def test_in_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        check(several_outputs, X[:8], jit_compile=False)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_layers_that_draw_without_a_seed_of_their_own(run_eagerly):
    def build():
        return sequential(
            Noisy(seeded=False), layers.Flatten(), layers.Dense(4, activation="relu")
        )

    check(build, X[:8], jit_compile=False, run_eagerly=run_eagerly)
