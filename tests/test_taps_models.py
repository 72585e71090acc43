from __future__ import annotations

import keras
import numpy as np
import pytest
from tapping import (
    KERAS,
    Watch,
    check_one_step,
    compiled,
    dense_model,
    tape_gradients,
    tokens,
    vectors,
)

layers = keras.layers


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(3, activation="relu")
        self.out = layers.Dense(1)

    def call(self, x):
        return self.out(self.hidden(x))


def functional_model():
    x = keras.Input((4,))
    h = layers.Dense(4, activation="relu")(x)
    h = layers.Add()([h, layers.BatchNormalization()(layers.Dense(4)(h))])
    return keras.Model(x, layers.Dense(1)(h))


def nested_model():
    inner = keras.Sequential([layers.Dense(4, activation="tanh"), layers.Dense(4)])
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(1)(inner(x)))


def shared_model():
    x = keras.Input((4,))
    shared = layers.Dense(4, activation="tanh")
    return keras.Model(x, layers.Dense(1)(shared(shared(x))))


def wide_and_narrow_model():
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(1)(layers.Dense(7, use_bias=False)(x)))


@pytest.mark.parametrize(
    "build",
    [
        dense_model,
        functional_model,
        nested_model,
        shared_model,
        wide_and_narrow_model,
        Subclassed,
    ],
)
def test_gradients_are_those_of_the_training_step(build):
    # The gradient of a bias before a normalisation is zero but for rounding.
    keras.utils.set_random_seed(0)
    check_one_step(compiled(build()), *vectors())


def test_model_that_is_built_by_its_first_step():
    model = compiled(Subclassed(), keras.optimizers.SGD(0.5))

    class Unbuilt(Watch):
        def on_train_batch_begin(self, batch, logs=None):
            assert not self.model.trainable_variables

    watch = Unbuilt()
    x, y = vectors()
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[watch])
    assert watch.observed is None
    step = zip(model.get_weights(), watch.steps[0], strict=True)
    model.set_weights([after + 0.5 * gradient for after, gradient in step])
    for found, wanted in zip(watch.steps[0], tape_gradients(model, x, y), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(KERAS < (3, 6), reason="Keras 3.5 cannot train such a model")
def test_several_outputs_one_of_them_without_a_loss():
    x = keras.Input((4,))
    h = layers.Dense(4, activation="relu")(x)
    model = keras.Model(
        x,
        {
            "a": layers.Dense(1, name="a")(h),
            "b": layers.Dense(1, name="b")(h),
            "unused": layers.Dense(1, name="unused")(h),
        },
    )
    model.compile("sgd", {"a": "mse", "b": "mae"})
    data, y = vectors()
    watch = check_one_step(model, data, {"a": y, "b": 2 * y})
    unseen = [
        variable.path
        for variable, gradient in zip(
            model.trainable_variables, watch.steps[0], strict=True
        )
        if gradient is None
    ]
    assert unseen == ["unused/kernel", "unused/bias"]


def test_frozen_layers_have_no_place_in_the_list():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])
    model.layers[0].trainable = False
    watch = check_one_step(compiled(model), *vectors())
    assert [g.shape for g in watch.steps[0]] == [(3, 1), (1,)]


def test_embeddings_are_the_rows_that_were_looked_up():
    model = keras.Sequential(
        [keras.Input((5,)), layers.Embedding(20, 3), layers.Flatten(), layers.Dense(1)]
    )
    watch = check_one_step(compiled(model), *tokens())
    assert watch.steps[0][0].shape == (8 * 5, 3)


def test_embedding_gradients_follow_the_size_of_the_batch():
    model = compiled(
        keras.Sequential([layers.Embedding(20, 3), layers.Flatten(), layers.Dense(1)])
    )
    watch = Watch()
    model.fit(*tokens(rows=10), batch_size=8, verbose=0, callbacks=[watch])
    assert [step[0].shape for step in watch.steps] == [(40, 3), (10, 3)]
    assert watch.rows == [8, 2]


@pytest.mark.parametrize("cell", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_recurrent_layers(cell):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Embedding(20, 3),
            layers.Bidirectional(cell(2, return_sequences=True)),
            cell(2),
            layers.Dense(1),
        ]
    )
    check_one_step(compiled(model), *tokens(), rtol=1e-4)


def test_attention():
    x = keras.Input((5,))
    h = layers.Embedding(20, 4)(x)
    h = layers.LayerNormalization()(h + layers.MultiHeadAttention(2, 3)(h, h))
    model = keras.Model(x, layers.Dense(1)(layers.GlobalAveragePooling1D()(h)))
    check_one_step(compiled(model), *tokens(), rtol=1e-4)
