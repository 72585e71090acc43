from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from tapping import KERAS

from kt_bttackler import blueprint
from kt_bttackler.graph import inspect_model
from kt_bttackler.labels import Loss

layers, losses = keras.layers, keras.losses
X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.zeros((16, 2), "float32")
# Keras has had means by these names since 3.7.
REDUCTIONS = {"sum_over_batch_size", "sum", None}
if KERAS >= (3, 7):
    REDUCTIONS |= {"mean", "mean_with_sample_weight"}


def model_of(*middle, inputs=(4,), output=None):
    output = layers.Dense(2, name="out") if output is None else output
    return keras.Sequential([keras.Input(inputs), *middle, output])


def compiled(loss, model=None, **options):
    model = model_of() if model is None else model
    model.compile("sgd", loss, **options)
    return model


def functional():
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(2, name="out")(x))


class OwnLoss(losses.MeanSquaredError):
    pass


def of_ones_own(y, z):
    return keras.ops.mean((y - z) ** 2, axis=-1)


@pytest.mark.parametrize("name", ["mse", "MSE", "mean_squared_error"])
def test_names_and_aliases_of_functions(name):
    assert blueprint.only_loss(compiled(name)) == Loss("mean_squared_error")


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("MeanSquaredError", "mean_squared_error"),
        (losses.MeanSquaredError(), "mean_squared_error"),
        (losses.MeanSquaredError, "mean_squared_error"),
        (losses.mean_squared_error, "mean_squared_error"),
        (["mse"], "mean_squared_error"),
        (("mae",), "mean_absolute_error"),
        ("mae", "mean_absolute_error"),
        ("bce", "binary_crossentropy"),
        ("KLDivergence", "kl_divergence"),
        (losses.KLDivergence(), "kl_divergence"),
        (losses.LogCosh(), "log_cosh"),
        ("sparse_categorical_crossentropy", "sparse_categorical_crossentropy"),
        (losses.SparseCategoricalCrossentropy(), "sparse_categorical_crossentropy"),
        (losses.CTC(), "ctc"),
        (None, None),
        (of_ones_own, None),
        (lambda y, z: keras.ops.mean(z), None),
        (OwnLoss(), None),
        (["mse", "mae"], None),
        ([None], None),
        ("crossentropy", None),
    ],
)
def test_losses(loss, name):
    assert blueprint.only_loss(compiled(loss)).name == name


def test_losses_by_the_name_of_the_output():
    model = functional()
    assert blueprint.only_loss(compiled({"out": "mse"}, model)).name == (
        "mean_squared_error"
    )
    assert blueprint.only_loss(compiled({"a": "mse", "b": "mse"}, model)).name is None


def test_options_of_losses():
    assert blueprint.only_loss(
        compiled(losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1))
    ) == Loss("categorical_crossentropy", from_logits=True, label_smoothing=0.1)
    for reduction, mean in (
        ("sum_over_batch_size", True),
        ("mean", True),
        ("mean_with_sample_weight", True),
        ("sum", False),
        (None, False),
    ):
        if reduction not in REDUCTIONS:
            continue
        loss = losses.MeanSquaredError(reduction=reduction)
        assert blueprint.only_loss(compiled(loss)).mean == mean
    ignoring = losses.SparseCategoricalCrossentropy(ignore_class=0)
    assert not blueprint.only_loss(compiled(ignoring)).mean
    assert not blueprint.only_loss(compiled(losses.BinaryCrossentropy(axis=1))).mean
    assert blueprint.only_loss(compiled(losses.BinaryCrossentropy(axis=-1))).mean


def test_what_changes_the_loss_makes_it_unknown():
    class OwnStep(keras.Model):
        def train_step(self, data):
            return {"loss": keras.ops.sum(self(data[0]))}

    class OwnComputation(keras.Model):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    class Plain(keras.Model):
        pass

    x = keras.Input((4,))
    y = layers.Dense(2)(x)
    for kind in (OwnStep, OwnComputation):
        assert blueprint.only_loss(compiled("mse", kind(x, y))).name is None
    assert blueprint.only_loss(compiled("mse", Plain(x, y))).name is not None
    for weights in ([0.5], 0.5, [1.0]):
        assert blueprint.only_loss(compiled("mse", loss_weights=weights)).name is None


def test_a_model_that_is_not_compiled_has_no_loss():
    assert blueprint.only_loss(model_of()) == Loss(None)


def test_parts_that_cannot_be_serialised_do_no_harm():
    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

    class Metric(keras.metrics.Mean):
        def __init__(self, model):
            super().__init__()
            self.model = model

    model = model_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.compile(
            keras.optimizers.SGD(Schedule()),
            "mse",
            metrics=[Metric(model), lambda y, z: keras.ops.mean(z)],
        )
        assert blueprint.only_loss(model).name == "mean_squared_error"


def test_keras_still_keeps_the_arguments_of_compile():
    # Canary of the private attribute that `blueprint` reads loss weights from.
    model = compiled("mse", loss_weights=[0.5])
    assert model._compile_config.config["loss_weights"] == [0.5]
    model = compiled("mse")
    assert model._compile_config.config["loss_weights"] is None


@pytest.mark.parametrize(
    ("middle", "masked"),
    [
        ([layers.Embedding(5, 3), layers.LSTM(2)], False),
        ([layers.Embedding(5, 3, mask_zero=True), layers.LSTM(2)], True),
        ([layers.Reshape((4, 1)), layers.Masking(), layers.LSTM(2)], True),
        (
            [
                keras.Sequential(
                    [layers.Embedding(5, 3, mask_zero=True), layers.LSTM(2)]
                )
            ],
            True,
        ),
    ],
)
def test_masks(middle, masked):
    assert blueprint.masks(model_of(*middle)) == masked


class Lazy(keras.Model):
    def __init__(self, backbone=None):
        super().__init__()
        self.backbone = backbone or layers.Dense(3)
        self.out = layers.Dense(2)

    def call(self, x):
        return self.out(self.backbone(x))


def test_built_means_all_layers():
    assert blueprint.is_built(model_of())
    assert blueprint.is_built(functional())
    assert not blueprint.is_built(keras.Sequential([layers.Dense(2)]))
    model = Lazy(model_of())
    assert model.variables
    assert not blueprint.is_built(model)
    model(X)
    assert blueprint.is_built(model)


class Adds(layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.mean(x**2))
        return x


@pytest.mark.parametrize(
    ("middle", "adds"),
    [
        ([layers.Dense(3, kernel_regularizer="l2", bias_regularizer="l1")], False),
        ([layers.BatchNormalization(beta_regularizer="l2")], False),
        ([layers.Dense(3, activity_regularizer="l2")], True),
        ([layers.ActivityRegularization(0.1)], True),
        ([layers.Dense(3, kernel_regularizer="l2"), Adds()], True),
    ],
)
def test_losses_besides_the_compiled_one(middle, adds):
    model = compiled("mse", model_of(*middle))
    model.fit(X, Y, verbose=0)
    assert blueprint.adds_losses(model) == adds
    model(X)
    assert blueprint.adds_losses(model) == adds


def structure(model, optimizer="sgd"):
    model.compile(optimizer, "mse")
    return blueprint.structure(model, inspect_model(model))


@pytest.mark.parametrize(
    ("optimizer", "adaptive"),
    [
        ("adam", True),
        ("adamw", True),
        ("rmsprop", True),
        ("lion", True),
        ("sgd", False),
        (keras.optimizers.SGD(momentum=0.9, nesterov=True), False),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), True),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), False),
    ],
)
def test_adaptive_optimizers(optimizer, adaptive):
    assert structure(model_of(), optimizer)["adaptive_optimizer"] == adaptive


def test_dropout_rates():
    inner = keras.Sequential([layers.Dropout(0.9), layers.Dense(4)])
    rates = structure(
        model_of(
            layers.Dropout(0.25),
            inner,
            layers.GaussianNoise(0.3),
            layers.AlphaDropout(0.5),
            layers.Reshape((2, 2)),
            layers.SpatialDropout1D(0.0),
            layers.LSTM(2, dropout=0.8),
        )
    )["dropout_rates"]
    assert rates == (0.25, 0.9, 0.5, 0.0)


@pytest.mark.parametrize(
    ("layers", "steps"),
    [
        ([keras.layers.Dense(2)], 0),
        ([keras.layers.BatchNormalization()], 100),
        (
            [
                keras.layers.BatchNormalization(momentum=0.9),
                keras.Sequential([keras.layers.BatchNormalization(momentum=0.998)]),
            ],
            500,
        ),
        ([keras.layers.BatchNormalization(momentum=1.0)], 1e9),
    ],
)
def test_averages_are_as_long_as_those_of_the_slowest_layer(layers, steps):
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("sgd", "mse")
    assert structure(model)["averaging_steps"] == pytest.approx(steps)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_half_precision(policy):
    model = model_of(layers.Dense(2, dtype=policy))
    assert structure(model)["half_precision"] == (policy == "mixed_float16")


def linear_pairs(*middle, **options):
    return structure(model_of(*middle, **options))["linear_pairs"]


def test_linear_pairs():
    first = layers.Dense(3, name="first")
    assert linear_pairs(first) == (("first", "out"),)
    for between in (
        layers.ReLU(),
        layers.Activation("tanh"),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.LayerNormalization(),
    ):
        assert linear_pairs(layers.Dense(3), between) == ()
    assert linear_pairs(layers.Dense(3, activation="relu")) == ()
    assert linear_pairs(layers.Dense(3), output=layers.Dense(2, "softmax")) == ()
    middle = layers.Dense(3, name="a"), layers.Dense(3, name="b")
    assert linear_pairs(*middle) == (("a", "b"), ("b", "out"))


def test_linear_pairs_of_models_built_in_other_ways():
    model = keras.Sequential([layers.Dense(3, name="a"), layers.Dense(2, name="b")])
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    assert structure(model)["linear_pairs"] == (("a", "b"),)
    model = Lazy()
    model(X)
    assert structure(model)["linear_pairs"] == ()  # nobody knows what is in between
    x = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    model = keras.Model(x, layers.Dense(2)(shared(shared(x))))
    assert structure(model)["linear_pairs"] == ()
