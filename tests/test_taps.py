from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tapping import (
    KERAS,
    Watch,
    as_numpy,
    check_one_step,
    compiled,
    dense_model,
    tape_gradients,
    tokens,
    vectors,
)

from kt_bttackler.taps import ProbeTap

layers = keras.layers


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_gradients_are_seen_before_clipping(clip):
    optimizer = keras.optimizers.SGD(**{clip: 1e-4})
    check_one_step(dense_model(optimizer=optimizer), *vectors())


def test_accumulation_shows_the_gradient_of_the_micro_batch():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=3)
    watch = check_one_step(dense_model(optimizer=optimizer), *vectors())
    assert watch.tap.observed() == "no gradients observed: the tap is not installed"


def test_constant_loss_scale_is_divided_out():
    optimizer = keras.optimizers.SGD(loss_scale_factor=1024.0)
    check_one_step(dense_model(optimizer=optimizer), *vectors())


@pytest.mark.parametrize(("first", "second"), [(1024.0, None), (None, 1024.0)])
def test_second_compile_with_another_loss_scale(first, second):
    model = dense_model(optimizer=keras.optimizers.SGD(loss_scale_factor=first))
    check_one_step(model, *vectors())
    compiled(model, keras.optimizers.SGD(loss_scale_factor=second))
    check_one_step(model, *vectors())


@pytest.mark.parametrize(
    "options", [{"run_eagerly": True}, {"jit_compile": True}, {"jit_compile": False}]
)
def test_execution_modes(options):
    check_one_step(dense_model(**options), *vectors())


def test_arrays_keep_their_values_when_training_goes_on():
    for jit_compile in (False, True):
        model = dense_model(jit_compile=jit_compile)
        kept = []

        class Keep(Watch):
            def on_train_batch_end(self, batch, logs=None, kept=kept):
                super().on_train_batch_end(batch, logs)
                kept.append(self.tap.gradients())

        watch = Keep()
        model.fit(*vectors(24), batch_size=8, epochs=2, verbose=0, callbacks=[watch])
        for held, copied in zip(kept, watch.steps, strict=True):
            for array, same in zip(held, copied, strict=True):
                np.testing.assert_array_equal(array, same)
                assert not array.flags.writeable
        assert not np.array_equal(kept[0][0], kept[1][0])


def test_several_steps_per_execution_show_the_last_one():
    data = vectors(24)
    each, last = Watch(), Watch()
    for watch, steps in ((each, 1), (last, 4)):
        keras.utils.set_random_seed(0)
        model = dense_model(steps_per_execution=steps)
        model.fit(*data, batch_size=5, shuffle=False, verbose=0, callbacks=[watch])
    assert each.rows == [5, 5, 5, 5, 4]
    # Before 3.7 Keras breaks an execution off that runs out of data.
    assert last.rows == ([5, 4] if KERAS >= (3, 7) else [5])
    for one, other in zip(each.steps[3:], last.steps, strict=KERAS >= (3, 7)):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_generators_of_unknown_length():
    def batches():
        for rows in (8, 8, 3):
            yield vectors(rows)

    watch = Watch()
    dense_model().fit(batches(), verbose=0, callbacks=[watch])
    assert watch.rows == [8, 8, 3]
    assert watch.observed is None

    signature = (
        tf.TensorSpec((None, 4), tf.float32),
        tf.TensorSpec((None, 1), tf.float32),
    )
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    watch = Watch()
    dense_model().fit(dataset, verbose=0, callbacks=[watch])
    assert watch.rows == [8, 8, 3]


class Half:
    """Mixed precision while a test runs."""

    def __enter__(self):
        keras.config.set_dtype_policy("mixed_float16")

    def __exit__(self, *_):
        keras.config.set_dtype_policy("float32")


def test_mixed_precision_gives_unscaled_gradients():
    with Half():
        model = keras.Sequential(
            [keras.Input((4,)), layers.Dense(3), layers.Dense(1, dtype="float32")]
        )
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(), initial_scale=128.0
        )
        compiled(model, optimizer=optimizer, jit_compile=False)
        check_one_step(model, *vectors(), rtol=2e-3)
        compiled(model)  # Keras wraps optimizers itself
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def test_overflow_step_of_mixed_precision_is_not_finite():
    with Half():
        model = keras.Sequential(
            [keras.Input((4,)), layers.Dense(3), layers.Dense(1, dtype="float32")]
        )
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(), initial_scale=2.0**24
        )
        compiled(model, optimizer=optimizer, jit_compile=False)
        x, y = vectors()
        before = model.get_weights()
        watch = Watch()
        model.fit(x, 100 * y, batch_size=8, epochs=25, verbose=0, callbacks=[watch])
    finite = [all(np.isfinite(g).all() for g in step) for step in watch.steps]
    assert not finite[0]
    first_seen = finite.index(True)  # until then no step has changed the weights
    model.set_weights(before)
    with Half():
        expected = tape_gradients(model, x, 100 * y)
    for found, wanted in zip(watch.steps[first_seen], expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-2)


class TwoOptimizers(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Dense(3, activation="tanh")
        self.second = layers.Dense(1)
        self.optimizers = {"second": keras.optimizers.Adam(), "unused": None}
        self.optimizer_of_first = keras.optimizers.SGD()

    def call(self, x):
        return self.second(self.first(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        # In another order than `trainable_variables`.
        for optimizer, part in (
            (self.optimizers["second"], self.second),
            (self.optimizer_of_first, self.first),
        ):
            variables = part.trainable_variables
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {"loss": loss}


def test_several_optimizers():
    check_one_step(compiled(TwoOptimizers()), *vectors())


def test_optimizer_that_was_built_before_and_gets_gradients_only():
    class Short(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            self.optimizer.apply(tape.gradient(loss, self.trainable_weights))
            return {"loss": loss}

    model = compiled(Short([keras.Input((4,)), layers.Dense(3), layers.Dense(1)]))
    model.optimizer.build(model.trainable_variables)
    check_one_step(model, *vectors())


def test_train_step_that_updates_the_variables_of_tensorflow():
    class Raw(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            variables = [each.value for each in self.trainable_weights]
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    model = compiled(Raw([keras.Input((4,)), layers.Dense(3), layers.Dense(1)]))
    check_one_step(model, *vectors())


def test_apply_inside_a_branch_of_the_graph():
    class Branching(keras.Sequential):
        def train_step(self, data):
            x, y = data

            def update():
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(x, y, self(x, training=True))
                gradients = tape.gradient(loss, self.trainable_weights)
                self.optimizer.apply(gradients, self.trainable_weights)
                return loss

            return {"loss": tf.cond(tf.size(x) > 0, update, lambda: 0.0)}

    model = compiled(Branching([keras.Input((4,)), layers.Dense(3), layers.Dense(1)]))
    model.optimizer.build(model.trainable_variables)
    check_one_step(model, *vectors())


def test_train_step_without_an_optimizer_says_so():
    class ByHand(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_weights)
            for variable, gradient in zip(
                self.trainable_weights, gradients, strict=True
            ):
                variable.assign_sub(0.1 * gradient)
            return {"loss": loss}

    model = compiled(ByHand([keras.Input((4,)), layers.Dense(1)]))
    watch = Watch()
    model.fit(*vectors(), batch_size=8, verbose=0, callbacks=[watch])
    assert "without the `apply` of an optimizer" in watch.observed
    assert watch.steps == [[None, None]]
    assert watch.rows == [8]


def test_training_function_of_ones_own_says_so():
    class Own(keras.Sequential):
        def make_train_function(self, force=False):
            self.train_function = lambda iterator: {"loss": 0.0}

    model = compiled(Own([keras.Input((4,)), layers.Dense(1)]))
    watch = Watch()
    model.fit(*vectors(), batch_size=4, steps_per_epoch=1, verbose=0, callbacks=[watch])
    assert "no step has finished that calls `model.train_step`" in watch.observed
    assert watch.rows == [None]


def test_nothing_to_train_says_so():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.trainable = False
    watch = Watch()
    with pytest.warns(UserWarning, match="does not have any trainable"):
        compiled(model).fit(*vectors(), verbose=0, callbacks=[watch])
    assert "no trainable variables" in watch.observed


def test_sparse_gradients_are_not_observed_under_xla():
    model = keras.Sequential(
        [keras.Input((5,)), layers.Embedding(20, 3), layers.Flatten(), layers.Dense(1)]
    )
    watch = Watch()
    compiled(model, jit_compile=True).fit(
        *tokens(10), batch_size=8, verbose=0, callbacks=[watch]
    )
    assert watch.observed is None
    assert [g is None for g in watch.steps[-1]] == [True, False, False]


def test_probe_tap_gives_the_gradients_of_inference():
    hidden = [layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.3)]
    model = compiled(keras.Sequential([*hidden, layers.Dense(1)]))
    x, y = vectors()
    model(x)
    tap = ProbeTap(x, y)
    assert tap.observed() == "no gradients observed: the tap is not installed"
    tap.install(model)
    for found, wanted in zip(
        tap.gradients(), tape_gradients(model, x, y, training=False), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    assert tap.batch_size() == 8
    assert tap.observed() is None
    tap.restore()
    assert tap.gradients() == []


def test_probe_tap_weighs_samples():
    model = dense_model()
    x, y = vectors()
    weighted = ProbeTap(x, y, np.array([1.0] * 4 + [0.0] * 4))
    halved = ProbeTap(x[:4], y[:4])
    weighted.install(model)
    halved.install(model)
    for one, other in zip(weighted.gradients(), halved.gradients(), strict=True):
        np.testing.assert_allclose(one, other / 2, rtol=1e-5)


def test_probe_tap_in_mixed_precision_and_with_embeddings():
    with Half():
        model = keras.Sequential(
            [
                keras.Input((5,)),
                layers.Embedding(20, 3),
                layers.Flatten(),
                layers.Dense(1, dtype="float32"),
            ]
        )
        compiled(model)
        x, y = tokens()
        tap = ProbeTap(x, y)
        tap.install(model)
        found = tap.gradients()
        wanted = tape_gradients(model, x, y)
    assert found[0].shape == (40, 3)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, as_numpy(other), rtol=1e-2, atol=1e-4)


def test_probe_tap_says_why_it_fails():
    model = dense_model()
    tap = ProbeTap(np.ones((3, 9), "float32"), np.ones((3, 1), "float32"))
    tap.install(model)
    assert tap.gradients() == [None] * 4
    assert "the probe batch fails with ValueError" in tap.observed()


def test_probe_tap_leaves_metrics_and_state_alone():
    x = keras.Input((4,))
    h = layers.BatchNormalization()(layers.Dropout(0.5)(x, training=True))
    model = keras.Model(x, [layers.Dense(1)(h), layers.Dense(1)(h)])
    model.compile("sgd", ["mse", "mse"], metrics=["mae", "mae"])
    data, y = vectors()
    model.fit(data, [y, y], verbose=0)
    variables = model.non_trainable_variables + model.metrics_variables
    before = [v.numpy() for v in variables]
    tap = ProbeTap(data, [y, y])
    tap.install(model)
    assert all(g is not None for g in tap.gradients())
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
