from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from kt_bttackler.taps import ProbeTap, StepRecorder, TrainingTap

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
    assert last.rows == [5, 4]
    for one, other in ((each.steps[3], last.steps[0]), (each.steps[4], last.steps[1])):
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


def count_traces(model):
    """Count how often the training step is run in Python from now on."""
    traces = []
    original = type(model).train_step

    class Counting(type(model)):
        def train_step(self, data):
            traces.append(1)
            return original(self, data)

    model.__class__ = Counting
    return traces


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_the_tap_costs_no_second_trace(steps_per_execution):
    model = dense_model(steps_per_execution=steps_per_execution)
    traces = count_traces(model)
    watch = Watch()
    model.fit(*vectors(20), batch_size=5, epochs=2, verbose=0, callbacks=[watch])
    assert watch.observed is None
    assert len(traces) == 1


def test_second_fit_needs_no_new_trace_and_starts_blank():
    model = dense_model()
    traces = count_traces(model)
    x, y = vectors()
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[Watch()])
    first = len(traces)
    blank = TrainingTap()
    blank.install(model)
    assert blank.gradients() == [None] * 4
    assert blank.batch_size() is None
    check_one_step(model, x, y)
    assert len(traces) == first


def test_second_fit_after_one_without_a_tap():
    model = dense_model()
    model.fit(*vectors(), batch_size=8, verbose=0)
    check_one_step(model, *vectors())


def test_second_compile():
    model = dense_model()
    check_one_step(model, *vectors())
    model.layers[0].trainable = False
    watch = check_one_step(compiled(model, "adam"), *vectors())
    assert len(watch.steps[0]) == 2


def test_new_shapes_after_the_tap_are_still_observed_by_the_next_tap():
    model = keras.Sequential([keras.Input((None, 4)), layers.Dense(1)])
    compiled(model)
    x, y = np.ones((4, 2, 4), "float32"), np.ones((4, 2, 1), "float32")
    model.fit(x, y, verbose=0, callbacks=[Watch()])
    longer = np.ones((4, 3, 4), "float32"), np.ones((4, 3, 1), "float32")
    model.fit(*longer, verbose=0)
    check_one_step(model, *longer)


def test_rebuilt_training_function_is_followed_by_a_second_install():
    model = dense_model()

    class Rebuild(Watch):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.make_train_function(force=True)
            self.tap.install(self.model)

    watch = Rebuild()
    model.fit(*vectors(), batch_size=8, epochs=3, verbose=0, callbacks=[watch])
    assert len({step[0].tobytes() for step in watch.steps}) == 3


def test_two_taps_on_one_training():
    one, other = Watch(), Watch()
    dense_model().fit(*vectors(), verbose=0, callbacks=[one, other])
    for a, b in zip(one.steps[0], other.steps[0], strict=True):
        np.testing.assert_array_equal(a, b)


class Noise(layers.Layer):
    """Draws by TensorFlow's stateful operations, seeded by position in the graph."""

    def call(self, x, training=False):
        return x + 0.1 * tf.random.normal(tf.shape(x)) if training else x


class DrawsAfterUpdate(keras.Model):
    """Draws once more behind the first update of a step, as a GAN does."""

    def __init__(self):
        super().__init__()
        self.out = keras.Sequential([layers.Dense(4, activation="relu"), Noise()])
        self.head = layers.Dense(1)

    def call(self, x, training=False):
        return self.head(self.out(x, training=training))

    def train_step(self, data):
        for _ in range(2):
            logs = super().train_step(data)
        return logs


def dropout_model():
    return keras.Sequential(
        [
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            Noise(),
            layers.Dense(1),
        ]
    )


def lstm_model():
    return keras.Sequential(
        [layers.Reshape((4, 1)), layers.LSTM(3, dropout=0.2), layers.Dense(1)]
    )


@pytest.mark.parametrize("build", [dropout_model, lstm_model, DrawsAfterUpdate])
@pytest.mark.parametrize("mode", [{}, {"run_eagerly": True}])
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_training_is_the_same_bit_by_bit(build, mode, optimizer):
    def weights(callbacks):
        keras.utils.set_random_seed(1)
        data = tf.data.Dataset.from_tensor_slices(vectors(30)).shuffle(30, seed=2)
        chosen = keras.optimizers.SGD(0.05, 0.9) if optimizer == "momentum" else "adam"
        model = compiled(build(), chosen, jit_compile=False, **mode)
        history = model.fit(data.batch(7), epochs=3, verbose=0, callbacks=callbacks)
        variables = model.variables + model.optimizer.variables
        return [each.numpy() for each in variables], history.history["loss"]

    plain, loss = weights([])
    tapped, same_loss = weights([Watch()])
    assert loss == same_loss
    for one, other in zip(plain, tapped, strict=True):
        np.testing.assert_array_equal(one, other)


def test_model_and_optimizer_are_untouched_outside_a_step(tmp_path):
    model = dense_model()
    names = set(vars(model)), set(vars(model.optimizer))

    class Save(Watch):
        def on_epoch_end(self, epoch, logs=None):
            assert "apply" not in vars(self.model.optimizer)
            assert "train_step" not in vars(self.model)
            self.model.save(tmp_path / "during.keras")
            pickle.dumps(self.model)
            copy.deepcopy(self.model)

    model.fit(*vectors(), verbose=0, callbacks=[Save()])
    assert set(vars(model)) - names[0] <= {"history", "_eval_epoch_iterator"}
    assert not {"apply", "train_step"} & set(vars(model.optimizer))
    model.save(tmp_path / "after.keras")
    for again in (
        keras.saving.load_model(tmp_path / "during.keras"),
        keras.saving.load_model(tmp_path / "after.keras"),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ):
        for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        check_one_step(again, *vectors())


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_nothing_stays_behind_an_exception(run_eagerly):
    class Breaking(keras.Sequential):
        def compute_loss(self, *args, **kwargs):
            raise RuntimeError("broken")

    model = Breaking([keras.Input((4,)), layers.Dense(1)])
    compiled(model, run_eagerly=run_eagerly)
    watch = Watch()
    with pytest.raises(RuntimeError, match="broken"):
        model.fit(*vectors(), verbose=0, callbacks=[watch])
    assert "apply" not in vars(model.optimizer)
    assert "train_step" not in vars(model)
    watch.tap.restore()
    watch.tap.restore()
    assert watch.tap.gradients() == []


def test_other_wrappers_of_apply_stay_in_place():
    model = dense_model()
    seen = []
    original = model.optimizer.apply

    def counted(grads, trainable_variables=None):
        seen.append(len(grads))
        return original(grads, trainable_variables)

    object.__setattr__(model.optimizer, "apply", counted)
    check_one_step(model, *vectors())
    assert set(seen) == {4}
    assert vars(model.optimizer)["apply"] is counted


def test_models_are_garbage_once_they_are_let_go():
    model = dense_model()
    watch = Watch()
    model.fit(*vectors(), verbose=0, callbacks=[watch])
    gone = weakref.ref(model)
    del model, watch
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None


def test_failure_of_the_recorder_does_not_reach_the_training(monkeypatch):
    def fail(*_):
        raise ValueError("no room")

    monkeypatch.setattr(StepRecorder, "_record_update", fail)
    watch = Watch()
    dense_model().fit(*vectors(), batch_size=8, verbose=0, callbacks=[watch])
    assert watch.observed == "no gradients observed: ValueError: no room"


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
    model = compiled(dropout_model())
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


REPLICAS = """
import sys
import keras, numpy as np, tensorflow as tf
sys.path.insert(0, {folder!r})
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
from kt_bttackler.probe import ActivationProbe
from kt_bttackler.taps import ProbeTap
from test_probe import Keep
from test_taps import Watch, as_numpy, tape_gradients, tokens

def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((5,)), keras.layers.Embedding(20, 3), keras.layers.Flatten(),
        keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model

x, y = tokens(12)
for policy, tolerance in (("float32", 1e-5), ("mixed_float16", 2e-2)):
    keras.config.set_dtype_policy(policy)
    single = build()
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = build()
    watch = Watch()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(data, verbose=0, callbacks=[watch])
    assert watch.observed is None, watch.observed
    assert watch.rows == [8, 4], watch.rows
    assert "apply" not in vars(model.optimizer)
    expected = tape_gradients(single, x[:8], y[:8])
    for found, wanted in zip(watch.steps[0][1:], expected[1:], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance / 10)
    # Per replica a mean over 4 rows, scaled by 1 / replicas.
    assert watch.steps[0][0].shape == (40, 3), watch.steps[0][0].shape
    np.testing.assert_allclose(
        watch.steps[0][0], as_numpy(expected[0]), rtol=tolerance, atol=tolerance / 10)
    second = Watch()
    model.fit(data, verbose=0, callbacks=[second])
    assert second.rows == [8, 4]
    assert second.observed is None
    keep = Keep()
    model.fit(data, verbose=0, callbacks=[keep])
    for found, wanted in zip(keep.keeper.batch(), (x, y)):
        np.testing.assert_array_equal(np.sort(found[:, 0]), np.sort(wanted[:8, 0]))
    probe = ActivationProbe(model, x[:8])
    assert [each.shape for each in probe.run()] == [(8, 4)]
    tap = ProbeTap(x[:8], y[:8])
    tap.install(model)
    assert all(each is not None for each in tap.gradients()), tap.observed()
    assert np.isfinite(tap.gradients()[0]).all()
print("replicas agree")
"""


def test_replicas_give_the_gradient_of_the_whole_batch(pytestconfig):
    folder = str(pytestconfig.rootpath / "tests")
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS.format(folder=folder)],
        capture_output=True,
        text=True,
        cwd=pytestconfig.rootpath,
        timeout=120,
        check=False,
    )
    assert "replicas agree" in done.stdout, done.stderr[-3000:]


def test_private_names_that_the_tap_relies_on():
    model = dense_model()
    model.optimizer.build(model.trainable_variables)
    assert model.optimizer._trainable_variables == model.trainable_variables
