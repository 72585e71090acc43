"""Every fact recorded of models and data of all kinds: right, or unknown, never harm."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import reference_recording as slow
import tensorflow as tf
from recording import compiled, fit, sequential, watcher
from tapping import KERAS

from kt_bttackler.output_meter import OutputMeter

layers, losses = keras.layers, keras.losses
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6)).astype("float32")
CLASSES = RANDOM.choice(3, 64, p=[0.6, 0.3, 0.1])
REAL = RANDOM.normal(size=(64, 3)).astype("float32")
TOKENS = RANDOM.integers(0, 9, (64, 5))
TAGS = RANDOM.integers(0, 3, (64, 5))
IMAGES = RANDOM.random((64, 6, 6, 2)).astype("float32")
SPARSE = "sparse_categorical_crossentropy"


def trivial(trace):
    return trace.scalar("label/trivial_loss")[-1]


def check_trivial(trace, name, labels):
    minimum = slow.trivial_loss(name, labels)
    for found, error in zip(
        trace.scalar("label/trivial_loss"),
        trace.scalar("label/trivial_error"),
        strict=True,
    ):
        assert abs(found - minimum) <= error + 1e-6


def check_complete(trace):
    """What is there for whatever model trains."""
    assert len(trace) == 2
    assert (trace.table("weight/initial_finite")[0] == 1).all()
    assert not np.isnan(trace.table("gradient/initial_norm")[0]).all()
    assert not np.isnan(trace.table("update/moved")[1]).all()
    assert not np.isnan(trace.table("activation/abs_max")).any()
    assert len(trace.header.activations) > 0
    assert trace.scalar("output/spread")[-1] > 0
    assert trace.scalar("output/initial_spread")[0] > 0


class Subclassed(keras.Model):
    def __init__(self, head=None):
        super().__init__()
        self.normalization = layers.Rescaling(0.5)
        self.hidden = layers.Dense(4, activation="relu")
        self.drop = layers.Dropout(0.2)
        self.out = head or layers.Dense(3, activation="softmax")

    def call(self, x, training=False):
        h = self.hidden(self.normalization(x))
        return self.out(self.drop(h, training=training))


class Scalar(Subclassed):
    """One number per row, without an axis of units."""

    def call(self, x, training=False):
        return keras.ops.squeeze(super().call(x, training), -1)


@pytest.mark.parametrize("probe", [None, X, (X, CLASSES)])
def test_subclassed_models_are_watched_from_the_first_step_on(probe):
    model = compiled(Subclassed(), SPARSE)
    trace = fit(model, X, CLASSES, probe_data=probe)
    check_complete(trace)
    check_trivial(trace, SPARSE, CLASSES)
    assert trace.header.dropout_rates == (0.2,)
    rows = X[:16] if probe is None else X
    assert trace.header.inputs["abs_max"] == pytest.approx(slow.abs_max(rows) / 2)
    # Nobody saw the weights before the first step, when they were made.
    assert np.isnan(trace.table("update/moved")[0]).all()
    assert trace.header.outputs[0]["activation"] == "softmax"


def test_models_that_are_built_in_part_are_not_built_by_the_probe():
    backbone = sequential(layers.Dense(4, activation="relu"), inputs=(4,))
    model = compiled(Subclassed(backbone), "mse")
    trace = fit(model, X, REAL, probe_data=X)
    check_complete(trace)
    assert trace.header.inputs["abs_max"] == pytest.approx(slow.abs_max(X) / 2)


@pytest.mark.parametrize(
    ("head", "loss", "labels"),
    [("sigmoid", "binary_crossentropy", CLASSES > 0), ("linear", "mse", REAL[:, 0])],
)
def test_scalar_outputs(head, loss, labels):
    model = compiled(Scalar(layers.Dense(1, activation=head)), loss)
    trace = fit(model, X, labels.astype("float32"), probe_data=(X, labels))
    output = np.asarray(model(X))
    assert output.shape == (64,)
    scale = 1 if head == "sigmoid" else slow.stds(labels)[0]
    assert trace.scalar("output/spread")[-1] == pytest.approx(
        slow.stds(output)[0] / scale, 1e-4
    )
    if head == "sigmoid":
        assert trace.scalar("output/top_share")[-1] == slow.top_share(output > 0.5)
        assert not math.isnan(trace.scalar("output/neglected_share")[-1])
    assert trace.header.outputs[0]["units"] is None


def several_inputs(outputs):
    a, b = keras.Input((6,), name="a"), keras.Input((5,), name="b")
    embedded = layers.Flatten()(layers.Embedding(9, 2)(b))
    h = layers.Concatenate()([layers.Dense(4, activation="relu")(a), embedded])
    return keras.Model({"a": a, "b": b}, outputs(layers.Dense(4, "tanh")(h)))


@pytest.mark.parametrize("options", [{}, {"loss_weights": {"p": 0.5, "q": 2.0}}])
def test_several_inputs_and_outputs(options):
    model = several_inputs(
        lambda h: {
            "p": layers.Dense(3, name="p")(h),
            "q": layers.Dense(3, activation="softmax", name="q")(h),
        }
    )
    compiled(model, {"p": "mse", "q": SPARSE}, **options)
    x = {"a": X, "b": TOKENS}
    trace = fit(model, x, {"p": REAL, "q": CLASSES}, probe_data=x)
    check_complete(trace)
    assert math.isnan(trivial(trace))
    assert [fact["activation"] for fact in trace.header.outputs] == [
        "linear",
        "softmax",
    ]
    assert trace.scalar("output/spread")[-1] == pytest.approx(
        max(slow.stds(model(x)["q"])), 1e-4
    )
    assert "output/top_share" not in trace.last.scalars
    assert trace.header.inputs["abs_max"] == pytest.approx(slow.abs_max(X))


def test_lists_of_one_output():
    a = keras.Input((6,))
    model = keras.Model([a], [layers.Dense(3)(layers.Dense(4, "relu")(a))])
    trace = fit(compiled(model, ["mae"]), [X], [REAL])
    check_complete(trace)
    check_trivial(trace, "mean_absolute_error", REAL)


def tagger(mask_zero=False, head=None):
    keras.utils.set_random_seed(0)
    embedding = layers.Embedding(9, 4, mask_zero=mask_zero)
    lstm = layers.LSTM(4, return_sequences=True)
    return sequential(
        embedding,
        lstm,
        output=head or layers.Dense(3, activation="softmax"),
        inputs=(5,),
        dtype="int32",
    )


@pytest.mark.parametrize("mask_zero", [False, True])
def test_sequences_of_labels(mask_zero):
    model = compiled(tagger(mask_zero), SPARSE)
    trace = fit(model, TOKENS, TAGS, probe_data=(TOKENS, TAGS))
    check_complete(trace)
    if mask_zero:
        assert math.isnan(trivial(trace))
    else:
        check_trivial(trace, SPARSE, TAGS)
    chosen = np.asarray(model(TOKENS)).argmax(axis=-1)
    assert trace.scalar("output/top_share")[-1] == slow.top_share(chosen)
    assert trace.scalar("output/neglected_share")[-1] == slow.neglected_share(
        TAGS, chosen
    )
    assert trace.header.inputs == {}


@pytest.mark.parametrize(
    "weights",
    [{"sample_weight": RANDOM.random(64)}, {"class_weight": {0: 1.0, 1: 2.0, 2: 9.0}}],
)
def test_weights_make_the_trivial_loss_unknown(weights):
    model = compiled(
        sequential(layers.Dense(4, "relu"), output=layers.Dense(3, "softmax")), SPARSE
    )
    trace = fit(model, X, CLASSES, **weights)
    check_complete(trace)
    assert math.isnan(trivial(trace))
    assert not math.isnan(trace.scalar("output/top_share")[-1])


@pytest.mark.parametrize("kind", ["activity", "add_loss", "own step", "own loss"])
def test_training_losses_with_other_parts_have_no_trivial_loss(kind):
    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
            variables = self.trainable_variables
            gradients = tape.gradient(loss, variables)
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return {"loss": loss}

    class OwnLoss(keras.Model):
        def compute_loss(self, x, y, y_pred, *others, **named):
            return keras.ops.mean((y - y_pred) ** 2)

    class Adds(layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.mean(x**2))
            return x

    activity = "l2" if kind == "activity" else None
    x = keras.Input((6,))
    h = layers.Dense(4, activation="relu", activity_regularizer=activity)(x)
    h = Adds()(h) if kind == "add_loss" else h
    model = {"own step": Own, "own loss": OwnLoss}.get(kind, keras.Model)
    trace = fit(compiled(model(x, layers.Dense(3)(h)), "mse"), X, REAL)
    check_complete(trace)
    assert math.isnan(trivial(trace))


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = sequential(
            layers.Dense(4, activation="relu"),
            output=layers.Dense(3, activation="softmax"),
        )
        compiled(model, SPARSE, keras.optimizers.Adam(0.01))
        trace = fit(model, X, CLASSES, probe_data=(X, CLASSES))
        check_complete(trace)
        check_trivial(trace, SPARSE, CLASSES)
        assert trace.header.half_precision
        assert trace.header.adaptive_optimizer
        output = np.asarray(model(X))
        assert output.dtype == np.float16
        assert trace.scalar("output/spread")[-1] == pytest.approx(
            max(slow.stds(output)), 1e-3
        )
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("steps_per_execution", [2, 3, 4])
def test_several_steps_per_execution(steps_per_execution):
    model = sequential(layers.Dense(4, activation="relu"))
    compiled(model, "mse", steps_per_execution=steps_per_execution)
    trace = fit(model, X, REAL)
    # Keras before 3.7 does not tell of an execution that runs out of data.
    seen = 3 if KERAS < (3, 7) and steps_per_execution == 3 else 4
    assert trace.scalar("steps").tolist() == [seen, seen]
    assert np.isnan(trace.table("update/ratio")).all()
    assert trace.table("update/moved")[0, 0] > 1
    assert math.isfinite(trivial(trace))
    assert trace.scalar("output/spread")[-1] > 0


def sorted_batches(count, repeat=1):
    labels = np.sort(np.arange(16 * count) % 10)
    for _ in range(repeat):
        for k in range(count):
            batch = labels[16 * k : 16 * k + 16]
            yield RANDOM.normal(size=(16, 6)) + batch[:, None], batch


def classifier():
    hidden = layers.Dense(4, activation="relu")
    return compiled(sequential(hidden, output=layers.Dense(10, "softmax")), SPARSE)


def test_a_dataset_of_unknown_length():
    signature = (tf.TensorSpec((16, 6)), tf.TensorSpec((16,), tf.int32))
    data = tf.data.Dataset.from_generator(
        lambda: sorted_batches(100), output_signature=signature
    )
    trace = fit(classifier(), data, probe_data=X)
    check_complete(trace)
    assert trace.scalar("steps").tolist() == [100, 100]
    # In the first epoch early batches only are seen, which hold few of the classes.
    first, second = trace.scalar("label/trivial_loss")
    assert first < 0.8 * math.log(10)
    assert second == pytest.approx(math.log(10), rel=0.05)


def test_a_generator():
    batches = sorted_batches(30, repeat=2)
    trace = fit(classifier(), batches, steps_per_epoch=30)
    check_complete(trace)
    assert trivial(trace) == pytest.approx(math.log(10), rel=0.05)


@pytest.mark.parametrize("shuffled", [False, True])
def test_datasets(shuffled):
    data = tf.data.Dataset.from_tensor_slices((X, CLASSES))
    data = data.shuffle(64, seed=1) if shuffled else data
    trace = fit(classifier(), data.batch(16))
    check_complete(trace)
    check_trivial(trace, SPARSE, CLASSES)


def test_integer_images():
    pixels = (255 * IMAGES).astype("uint8")
    for rescaling in ([], [layers.Rescaling(1 / 255)]):
        model = sequential(
            *rescaling,
            layers.Conv2D(3, 3, activation="relu"),
            layers.Flatten(),
            inputs=(6, 6, 2),
        )
        trace = fit(compiled(model, "mse"), pixels, 1e-3 * REAL)
        assert trace.header.inputs == {
            "abs_max": pytest.approx(1 if rescaling else 255, rel=0.02),
            "std_ratio": pytest.approx(1, rel=0.3),
            "finite": True,
            "integers": not rescaling,
            "image": True,
        }


def test_channels_first():
    model = sequential(
        layers.Conv2D(5, 3, activation="relu", data_format="channels_first"),
        layers.Flatten(),
        inputs=(2, 6, 6),
    )
    images = np.moveaxis(IMAGES, -1, 1)
    try:
        model(images[:2])
    except Exception as error:
        pytest.skip(f"not on this machine: {type(error).__name__}")
    model.layers[0].bias.assign([9, -9, 9, -9, 9])
    trace = fit(compiled(model, "mse", keras.optimizers.SGD(0.0)), images, REAL)
    assert trace.table("activation/dead_ratio")[0] == pytest.approx(0.4)


def test_a_second_fit_is_recorded_anew():
    model = sequential(layers.Dense(4, activation="relu"))
    compiled(model, "mse")
    for _ in range(2):
        trace = fit(model, X, REAL)
        check_complete(trace)
        check_trivial(trace, "mean_squared_error", REAL)
        assert not np.isnan(trace.table("update/ratio")[:, 0]).any()


def test_no_labels_at_all():
    class Autoencoder(Subclassed):
        def call(self, x, training=False):
            y = super().call(x, training)
            self.add_loss(keras.ops.mean((x[:, :3] - y) ** 2))
            return y

    trace = fit(compiled(Autoencoder(), None), X)
    check_complete(trace)
    assert math.isnan(trivial(trace))
    assert trace.header.outputs[0]["loss"] is None
    assert math.isnan(trace.header.outputs[0]["target_std"])


def test_labels_that_are_no_numbers():
    class Own(Subclassed):
        def train_step(self, data):
            return super().train_step((data[0], tf.cast(data[1] == b"a", tf.float32)))

    names = np.array(["a", "b"])[CLASSES % 2]
    data = tf.data.Dataset.from_tensor_slices((X, names)).batch(16)
    model = compiled(Own(layers.Dense(1, "sigmoid")), "binary_crossentropy")
    for probe in (None, X, (X, names)):
        trace = fit(model, data, probe_data=probe)
        assert math.isnan(trivial(trace))
        assert "output/top_share" not in trace.last.scalars
        assert trace.scalar("output/spread")[-1] > 0


@pytest.mark.parametrize("where", ["inputs", "labels"])
def test_what_is_not_finite_does_no_harm(where):
    x, y = X.copy(), REAL.copy()
    (x if where == "inputs" else y)[3] = math.nan
    model = compiled(sequential(layers.Dense(4, activation="relu")), "mse")
    trace = fit(model, x, y)
    assert math.isnan(trivial(trace)) == (where == "labels")
    assert trace.header.inputs["finite"] == (where == "labels")
    assert not (trace.scalar("output/spread") > 0).any()


def test_huge_activations_do_no_harm():
    huge = keras.initializers.RandomNormal(stddev=1e30)
    model = sequential(
        layers.Dense(4, activation="relu", kernel_initializer=huge),
        layers.Dense(4, activation="relu", kernel_initializer=huge),
    )
    trace = fit(compiled(model, "mse"), X, REAL, probe_data=X)
    assert trace.table("activation/initial_std")[0, 0] > 1e29
    assert trace.table("weight/initial_finite")[0].all()
    assert not np.isfinite(trace.table("update/moved")[1, 0])


def test_probe_data_that_does_not_fit_costs_one_warning_and_the_probe():
    model = compiled(sequential(layers.Dense(4, activation="relu")), "mse")
    trace = fit(model, X, REAL, probe_data=X[:, :2], warned=1)
    assert trace.header.unobserved["activation"].startswith("the probe fails: ")
    check_trivial(trace, "mean_squared_error", REAL)
    assert trace.table("update/ratio")[0, 0] > 0
    assert len(trace.header.variables) == 4


def test_facts_that_fail_cost_one_warning_and_leave_the_rest(monkeypatch):
    def fails(self, heads):
        raise RuntimeError("no facts")

    monkeypatch.setattr(OutputMeter, "facts", fails)
    model = compiled(sequential(layers.Dense(4, activation="relu")), "mse")
    trace = fit(model, X, REAL, warned=1)
    assert trace.header.outputs == ()
    assert len(trace.header.variables) == 4
    assert trace.table("update/ratio")[1, 0] > 0


def test_data_that_cannot_be_kept_is_no_ground_for_a_warning():
    class Sums(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = layers.Dense(3, activation="relu")
            self.out = layers.Dense(1)

        def call(self, x):
            sums = tf.reduce_sum(x, axis=1, keepdims=True)
            return self.out(self.hidden(sums))

    x = tf.ragged.constant([[1.0], [1.0, 2.0], [3.0], [4.0]])
    data = tf.data.Dataset.from_tensor_slices((x, REAL[:4, :1])).batch(2)
    model = Sums()
    model._convert_input_args = False
    model._allow_non_tensor_positional_args = True
    trace = fit(compiled(model, "mse", jit_compile=False), data)
    assert trace.header.unobserved["activation"] == "no probe data"
    assert math.isnan(trivial(trace))
    assert trace.table("update/moved")[1, 0] > 1


def test_short_epochs_are_probed_three_times():
    model = compiled(sequential(layers.Dense(4, activation="relu")), "mse")
    callback = watcher(probe_data=X)
    model.fit(X, REAL, epochs=8, verbose=0, callbacks=[callback])
    probed = ~np.isnan(callback.trace.table("activation/abs_max")[:, 0])
    assert probed.tolist() == [True] * 3 + [False] * 5
    assert not np.isnan(callback.trace.scalar("label/trivial_loss")).any()
