from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tapping import Watch, compiled, dense_model, vectors

from kt_bttackler.early_variables import early_variables


def traced_steps(model, callbacks=()):
    """How often the training step is run in Python while a model is trained."""
    traces = []
    original = model.train_step

    def counting(data):
        traces.append(1)
        return original(data)

    object.__setattr__(model, "train_step", counting)
    model.fit(*vectors(20), batch_size=5, verbose=0, callbacks=list(callbacks))
    return len(traces)


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_a_tapped_training_is_traced_once_where_keras_traces_twice(options):
    assert traced_steps(dense_model(optimizer="adam", **options)) == 2
    watch = Watch()
    assert traced_steps(dense_model(optimizer="adam", **options), [watch]) == 1
    assert watch.observed is None


def test_variables_of_the_optimizer_are_as_keras_makes_them():
    def trained(callbacks):
        keras.utils.set_random_seed(0)
        keras.backend.clear_session()  # for the same names
        optimizer = keras.optimizers.AdamW(use_ema=True, gradient_accumulation_steps=2)
        model = dense_model(optimizer=optimizer)
        model.fit(*vectors(20), batch_size=5, verbose=0, callbacks=callbacks)
        return model.optimizer.variables

    for plain, early in zip(trained([]), trained([Watch()]), strict=True):
        assert (plain.path, plain.dtype, plain.trainable) == (
            early.path,
            early.dtype,
            early.trainable,
        )
        np.testing.assert_array_equal(plain, early)


def test_a_value_that_needs_the_graph_is_left_to_it():
    made = []

    @tf.function
    def step(x):
        with early_variables():
            if not made:
                made.append(tf.Variable(lambda: tf.reduce_sum(x)))
        return made[0] + x[0]

    assert step(tf.constant([1.0, 2.0])) == 4.0


def test_a_training_can_be_compiled_with_another_optimizer():
    model = dense_model(optimizer="adam")
    model.fit(*vectors(), verbose=0, callbacks=[Watch()])
    compiled(model, "rmsprop")
    assert traced_steps(model, [Watch()]) == 1
