from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kt_bttackler.probe import ActivationInfo, ActivationProbe
from kt_bttackler.probe_data import BatchKeeper, slice_rows
from kt_bttackler.taps import TrainingTap

layers = keras.layers


def rows(count=6, *shape, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, *shape)).astype("float32")


def observed(model, x):
    return {info.name: info.activation for info in ActivationProbe(model, x).layers}


def test_outputs_of_activations_are_those_of_the_layers():
    x = keras.Input((4,))
    a = layers.Dense(5, activation="relu", name="a")(x)
    b = layers.Dense(3, activation="sigmoid", name="b")(a)
    model = keras.Model(x, layers.Dense(1, name="out")(b))
    data = rows(6, 4)
    probe = ActivationProbe(model, data)
    outputs = probe.run().activations
    assert probe.layers == (
        ActivationInfo("a", "relu", bounded=False),
        ActivationInfo("b", "sigmoid", bounded=True),
    )
    expected = keras.Model(x, [a, b])(data)
    for found, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(found, wanted.numpy())
    model.get_layer("a").set_weights([np.zeros((4, 5)), np.full(5, -1.0)])
    assert not probe.run().activations[0].any()


def test_activation_layers_are_observed_instead_of_linear_ones():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(2, 3),
            layers.BatchNormalization(),
            layers.Activation("swish", name="swish"),
            layers.Conv2D(2, 3, activation="tanh", name="conv"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(3),
            layers.LeakyReLU(name="leaky"),
            layers.PReLU(name="slopes"),
            layers.ELU(name="elu"),
            layers.ReLU(name="relu"),
            layers.Dense(3, activation=layers.ReLU(name="inside"), name="with_layer"),
            layers.Softmax(),
            layers.Dense(2),
        ]
    )
    assert observed(model, rows(6, 8, 8, 1)) == {
        "swish": "silu",
        "conv": "tanh",
        "leaky": "leaky_relu",
        "slopes": "prelu",
        "elu": "elu",
        "relu": "relu",
        "with_layer/inside": "relu",
    }


@pytest.mark.parametrize(
    "tail",
    [
        [layers.Dense(2, activation="softmax")],
        [layers.Dense(2, activation="sigmoid")],
        [layers.Dense(2, activation="relu"), layers.Activation("sigmoid")],
        [layers.Dense(2), layers.Dropout(0.5), layers.ReLU()],
        [
            layers.Dense(2, activation="relu"),
            layers.Activation("tanh", dtype="float64"),
        ],
        [
            keras.Sequential(
                [layers.Dense(2, activation="relu"), layers.Reshape((2, 1))]
            )
        ],
    ],
)
def test_the_layers_that_make_the_output_are_left_out(tail):
    hidden = layers.Dense(3, activation="relu", name="hidden")
    model = keras.Sequential([hidden, layers.Dropout(0.1), *tail])
    model(rows(2, 4))
    assert observed(model, rows(6, 4)) == {"hidden": "relu"}


def test_all_outputs_count():
    x = keras.Input((4,))
    h = layers.Dense(3, activation="relu", name="h")(x)
    model = keras.Model(
        x,
        {
            "a": layers.Dense(1, activation="sigmoid")(h),
            "b": layers.Activation("tanh")(layers.Dense(1, activation="relu")(h)),
        },
    )
    assert observed(model, rows(6, 4)) == {"h": "relu"}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(3, activation="gelu", name="hidden")
        self.out = layers.Dense(1, activation="relu", name="out")

    def call(self, x):
        return tf.nn.softmax(self.out(self.hidden(x)))


def test_subclassed_and_nested_models():
    model = Subclassed()
    model(rows(2, 4))
    assert observed(model, rows(6, 4)) == {"hidden": "gelu"}
    x = keras.Input((4,))
    inner = keras.Sequential([layers.Dense(4, activation="relu", name="a")], name="in")
    outer = keras.Model(x, layers.Dense(1)(inner(x)))
    assert observed(outer, rows(6, 4)) == {"in/a": "relu"}


def test_operations_of_functional_models():
    x = keras.Input((4,))
    h = keras.ops.relu(layers.Dense(3)(x))
    h = keras.activations.gelu(layers.Dense(3)(h))
    model = keras.Model(x, keras.ops.sigmoid(layers.Dense(1)(h)))
    probe = ActivationProbe(model, rows(6, 4))
    assert [info.activation for info in probe.layers] == ["relu", "gelu"]
    assert (probe.run().activations[0] >= 0).all()


def test_shared_layers_are_one_entry_with_the_rows_of_all_calls():
    shared = layers.Dense(4, activation="relu", name="shared")
    one, two = keras.Input((4,)), keras.Input((4,))
    model = keras.Model(
        [one, two], layers.Dense(1)(layers.Add()([shared(one), shared(two)]))
    )
    probe = ActivationProbe(model, [rows(6, 4), rows(6, 4, seed=1)])
    (output,) = probe.run().activations
    assert output.shape == (12, 4)

    x = keras.Input((None, 4))
    short = layers.Cropping1D(1)(x)
    h = layers.Concatenate(axis=1)([shared(x), shared(short)])
    probe = ActivationProbe(keras.Model(x, layers.Dense(1)(h)), rows(6, 5, 4))
    (output,) = probe.run().activations
    assert output.shape == (6 * 5 + 6 * 3, 4)


def test_recurrent_layers_show_their_output_and_attention_stays_unseen():
    x = keras.Input((5,))
    h = layers.Embedding(9, 4)(x)
    h = layers.MultiHeadAttention(2, 3)(h, h)
    lstm = layers.LSTM(2, return_sequences=True, name="lstm")
    h = layers.Bidirectional(lstm, name="both")(h)
    h = layers.RNN([layers.GRUCell(2), layers.SimpleRNNCell(3)], name="stack")(h)
    model = keras.Model(x, layers.Dense(1)(h))
    probe = ActivationProbe(model, np.arange(30).reshape(6, 5) % 9)
    outputs = {
        info.name: (info.activation, info.bounded, output.shape)
        for info, output in zip(probe.layers, probe.run().activations, strict=True)
    }
    assert outputs == {
        "both/forward_lstm": ("tanh", True, (6, 5, 2)),
        "both/backward_lstm": ("tanh", True, (6, 5, 2)),
        "stack": ("tanh", True, (6, 3)),
    }


class CountingCell(layers.SimpleRNNCell):
    """Counts how often Python runs it."""

    calls = 0

    def call(self, inputs, states, training=False):
        self.calls += 1
        return super().call(inputs, states, training=training)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_recurrent_layers_run_as_graphs_unless_the_model_runs_eagerly(run_eagerly):
    cell = CountingCell(3)
    x = keras.Input((7, 2))
    h = layers.RNN(cell, return_sequences=True, name="h")(x)
    model = keras.Model(x, layers.Dense(1)(layers.LSTM(2)(h)))
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    data = rows(4, 7, 2)
    probe = ActivationProbe(model, data)
    probe.run()
    cell.calls = 0
    model.set_weights([weights + 0.1 for weights in model.get_weights()])
    read = probe.run()
    assert (cell.calls > 0) == run_eagerly
    hidden = keras.Model(x, h)(data)
    np.testing.assert_allclose(read.activations[0], hidden, atol=1e-6)
    np.testing.assert_allclose(read.outputs[0], model(data), atol=1e-6)


def test_inputs_come_as_the_model_takes_them():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    h = layers.Dense(2, activation="relu", name="h")(layers.Concatenate()([a, b]))
    model = keras.Model({"a": a, "b": b}, layers.Dense(1)(h))
    data = {"a": rows(6, 4), "b": tf.constant(rows(6, 3))}
    assert observed(model, data) == {"h": "relu"}


def test_mixed_precision_gives_ordinary_arrays():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(3, activation="relu", name="h"),
                layers.Dense(2),
                layers.Activation("softmax", dtype="float32"),
            ]
        )
        probe = ActivationProbe(model, rows(6, 4))
        assert [info.name for info in probe.layers] == ["h"]
        assert probe.run().activations[0].dtype == np.float32
    finally:
        keras.config.set_dtype_policy("float32")


def test_layers_are_restored_also_after_an_exception():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu")])
    with pytest.raises(ValueError, match="incompatible"):
        ActivationProbe(model, rows(6, 9)).run()
    assert all("call" not in vars(layer) for layer in model.layers)
    assert model(rows(2, 4)).shape == (2, 3)


class Adds(layers.Layer):
    """A loss of its own, as activity regularisers have."""

    def call(self, x):
        self.add_loss(keras.ops.mean(x**2))
        return x


class Noisy(layers.Layer):
    """Draws also at inference, as in Monte-Carlo dropout."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x):
        return keras.random.dropout(x, 0.3, seed=self.seeds)


def noisy_model():
    return keras.Sequential(
        [
            keras.Input((4, 2)),
            layers.Dense(4, activation="relu", activity_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            Adds(),
            Noisy(),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


def stateful_model():
    x = keras.Input(batch_shape=(8, 4, 2))
    h = layers.LSTM(3, stateful=True)(x)
    return keras.Model(x, layers.Dense(1)(h))


def metric_model():
    x = keras.Input((4, 2))
    h = layers.Dropout(0.2)(layers.Dense(3, activation="tanh")(layers.Flatten()(x)))
    return keras.Model(x, [layers.Dense(1, name=name)(h) for name in "ab"])


@pytest.mark.parametrize("build", [noisy_model, stateful_model, metric_model])
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_training_is_the_same_bit_by_bit_with_probes(build, run_eagerly):
    x, y = rows(32, 4, 2), rows(32, 1)

    class Probing(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.keeper, self.tap, self.seen = BatchKeeper(), TrainingTap(), []

        def on_train_begin(self, logs=None):
            self.tap.install(self.model)
            self.keeper.install(self.model)

        def on_train_batch_end(self, batch, logs=None):
            probe = ActivationProbe(self.model, self.keeper.batch()[0])
            self.seen.append(probe.run().activations)

    def train(callbacks):
        keras.utils.set_random_seed(1)
        data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(32, seed=2)
        model = build()
        outputs = len(model.outputs)
        losses = ["mse"] * outputs
        model.compile(
            "adam",
            losses,
            metrics=["mae"] * outputs,
            jit_compile=False,
            run_eagerly=run_eagerly,
        )
        if outputs > 1:
            data = data.map(lambda x, y: (x, (y, y)))
        data = data.batch(8, drop_remainder=True)
        history = model.fit(data, epochs=2, verbose=0, callbacks=callbacks)
        return model.variables, history.history

    probing = Probing()
    plain, expected = train([])
    probed, found = train([probing])
    assert len(probing.seen) == 8
    assert all(probing.seen)
    assert found == expected
    for one, other in zip(plain, probed, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


class Keep(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.keeper = BatchKeeper()

    def on_train_begin(self, logs=None):
        self.keeper.install(self.model)
        assert self.keeper.batch() is None

    def on_train_batch_end(self, batch, logs=None):
        self.keeper.batch()

    def on_train_end(self, logs=None):
        self.keeper.restore()


def small_model(**options):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse", **options)
    return model


@pytest.mark.parametrize(
    "options", [{"jit_compile": False}, {"jit_compile": True}, {"run_eagerly": True}]
)
def test_the_first_batch_is_kept(options):
    x, y, weights = rows(20, 4), rows(20, 1), np.arange(20.0)
    model = small_model(**options)
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(8)
    for _ in range(2):  # the second fit finds the keeper in the training function
        keep = Keep()
        model.fit(data, epochs=2, verbose=0, callbacks=[keep])
        kept = keep.keeper.batch()
        for found, wanted in zip(kept, (x, y, weights), strict=True):
            np.testing.assert_array_equal(found, wanted[:8])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_at_most_128_rows_are_kept(jit_compile):
    x, y = rows(300, 4), rows(300, 1)
    keep = Keep()
    model = small_model(jit_compile=jit_compile)
    model.fit(x, y, batch_size=200, shuffle=False, verbose=0, callbacks=[keep])
    kept = keep.keeper.batch()
    np.testing.assert_array_equal(kept[0], x[:128])
    np.testing.assert_array_equal(kept[1], y[:128])
    assert kept[2] is None


def test_batches_of_several_inputs_keep_their_structure():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    model = keras.Model({"a": a, "b": b}, layers.Dense(1)(layers.Concatenate()([a, b])))
    model.compile("sgd", "mse")
    x = {"a": rows(8, 4), "b": rows(8, 2)}
    keep = Keep()
    model.fit(x, rows(8, 1), batch_size=8, shuffle=False, verbose=0, callbacks=[keep])
    kept = keep.keeper.batch()[0]
    assert kept.keys() == x.keys()
    np.testing.assert_array_equal(kept["b"], x["b"])


def test_batches_of_generators_and_of_changing_length_are_kept():
    def batches():
        for length in (5, 3, 4):
            yield rows(2, length, 4), rows(2, 1)

    model = keras.Sequential([keras.Input((None, 4)), layers.GRU(1)])
    model.compile("sgd", "mse", jit_compile=False)
    keep = Keep()
    model.fit(batches(), verbose=0, callbacks=[keep])
    assert keep.keeper.batch()[0].shape == (2, 5, 4)


def test_ragged_batches_are_not_kept_and_training_goes_on():
    x = tf.ragged.constant([[1.0], [1.0, 2.0], [3.0]])
    data = tf.data.Dataset.from_tensor_slices((x, rows(3, 1))).batch(2)

    class Sums(keras.Model):
        def __init__(self):
            super().__init__()
            self.out = layers.Dense(1)

        def call(self, x):
            return self.out(tf.reduce_sum(x, axis=1, keepdims=True))

    model = Sums()
    model._convert_input_args = False
    model._allow_non_tensor_positional_args = True
    model.compile("sgd", "mse", jit_compile=False)
    keep = Keep()
    model.fit(data, verbose=0, callbacks=[keep])
    assert keep.keeper.batch() is None


def test_slices_are_evenly_spaced():
    x = np.arange(1001)
    chosen = slice_rows(x)
    assert len(chosen) == 128
    assert (chosen[0], chosen[-1]) == (0, 1000)
    assert set(np.diff(chosen)) == {7, 8}
    np.testing.assert_array_equal(slice_rows(x[:5]), x[:5])
    np.testing.assert_array_equal(slice_rows(x, rows=3), [0, 500, 1000])


def test_slices_keep_the_structure():
    x = {"a": np.arange(300), "b": [tf.range(300), np.arange(300.0)], "none": None}
    chosen = slice_rows(x, 4)
    np.testing.assert_array_equal(chosen["a"], chosen["b"][0])
    np.testing.assert_array_equal(chosen["a"], chosen["b"][1])
    assert isinstance(chosen["b"][0], np.ndarray)
    assert chosen["none"] is None


def test_only_arrays_in_memory_are_sliced():
    dataset = tf.data.Dataset.range(4)
    odd = [np.zeros(3), np.zeros(4)]
    for x in (dataset, iter([]), None, odd, np.zeros(0), np.float32(1), "text"):
        assert slice_rows(x) is None
