from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tapping import KERAS, Watch, compiled, dense_model, vectors

layers = keras.layers

# Before 3.7 the model has another `train_step` while it is traced: as ever, twice.
ONCE = 1 if KERAS >= (3, 7) else 2


def traces_of(model, callbacks=()):
    """How often the training step is run in Python while a model is trained."""
    traces = []

    class Counting(type(model)):
        def compute_loss(self, *args, **kwargs):
            traces.append(1)
            return super().compute_loss(*args, **kwargs)

    model.__class__ = Counting
    model.fit(*vectors(20), batch_size=5, verbose=0, callbacks=list(callbacks))
    return len(traces)


def functional_model(**options):
    x = inputs = keras.Input((4,))
    x = keras.Sequential([layers.Dense(3), layers.BatchNormalization()])(x)
    return compiled(keras.Model(inputs, layers.Dense(1)(x)), **options)


@pytest.mark.parametrize("build", [dense_model, functional_model])
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_a_tapped_training_is_traced_once_where_keras_traces_twice(build, options):
    assert traces_of(build(optimizer="adam", **options)) == 2
    watch = Watch()
    assert traces_of(build(optimizer="adam", **options), [watch]) == ONCE
    assert watch.observed is None


def test_a_model_that_is_compiled_again_is_traced_once_again():
    model = dense_model(optimizer="adam")
    model.fit(*vectors(), verbose=0, callbacks=[Watch()])
    assert traces_of(compiled(model, "rmsprop"), [Watch()]) == ONCE


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_the_optimizer_is_as_keras_builds_it(policy):
    def trained(callbacks):
        keras.backend.clear_session()  # for the same names
        keras.utils.set_random_seed(0)
        options = {"use_ema": True, "gradient_accumulation_steps": 2}
        model = dense_model(optimizer=keras.optimizers.AdamW(**options))
        model.fit(*vectors(20), batch_size=5, verbose=0, callbacks=callbacks)
        return model.optimizer.variables + model.trainable_variables

    keras.config.set_dtype_policy(policy)
    try:
        variables = trained([]), trained([Watch()])
    finally:
        keras.config.set_dtype_policy("float32")
    for plain, early in zip(*variables, strict=True):
        assert plain.path == early.path
        assert plain.dtype == early.dtype
        np.testing.assert_array_equal(plain, early)


class OwnStep(keras.Sequential):
    """Trains its last layer alone."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.layers[-1].trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {"loss": loss}


class Halving(keras.optimizers.SGD):
    """Goes its own way to `apply`."""

    def apply(self, grads, trainable_variables=None):
        return super().apply([0.5 * each for each in grads], trainable_variables)


def own_step():
    return compiled(OwnStep([keras.Input((4,)), layers.Dense(3), layers.Dense(1)]))


def unbuilt():
    return compiled(keras.Sequential([layers.Dense(3), layers.Dense(1)]), "adam")


@pytest.mark.parametrize(
    ("build", "variables"),
    [
        (own_step, 2),
        (unbuilt, 4),
        (lambda: dense_model(optimizer=Halving(momentum=0.9)), 4),
        (lambda: dense_model(optimizer="adam", run_eagerly=True), 4),
    ],
)
def test_trainings_of_another_kind_build_their_optimizer_themselves(build, variables):
    watch = Watch()
    model = build()
    model.fit(*vectors(20), batch_size=5, verbose=0, callbacks=[watch])
    assert watch.observed is None
    seen = [each is not None for each in watch.steps[-1]]
    assert sum(seen) == variables
