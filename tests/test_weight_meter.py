from __future__ import annotations

import math
import tracemalloc
import warnings

import keras
import numpy as np
import pytest
import reference_recording as slow
from tapping import KERAS

from kt_bttackler.graph import inspect_model
from kt_bttackler.weight_meter import WeightMeter, gradient_norms, initial_columns

layers = keras.layers
X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
Y = X[:, :1] ** 2


class Watch(keras.callbacks.Callback):
    """Measures a training, and keeps copies of all its weights."""

    def __init__(self, steps=5):
        super().__init__()
        self.steps = steps
        self.columns, self.copies, self.behind = [], [], 0

    def copy(self):
        return [np.array(v.numpy()) for v in self.model.trainable_variables]

    def on_train_begin(self, logs=None):
        self.kernels = kernels_of(self.model)
        self.meter = WeightMeter(self.model, self.kernels)

    def on_epoch_begin(self, epoch, logs=None):
        self.meter.begin_epoch(self.steps)
        self.copies.append([self.copy()])

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:  # older Keras numbers an execution by its first step
            self.behind = self.model.steps_per_execution - 1
        self.meter.end_step(batch + self.behind)
        self.copies[-1].append(self.copy())

    def on_epoch_end(self, epoch, logs=None):
        self.columns.append(self.meter.end_epoch())


def kernels_of(model):
    return tuple(variable.kernel for variable in inspect_model(model).variables)


def network(**options):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dense(1),
        ]
    )
    model.compile(**{"optimizer": keras.optimizers.Adam(0.01), "loss": "mse"} | options)
    return model


def watched(model, watch=None, epochs=3, **options):
    watch = Watch() if watch is None else watch
    fit = {"batch_size": 8, "epochs": epochs, "verbose": 0, "callbacks": [watch]}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model.fit(X, Y, **fit | options)
    return watch


def expected_ratios(watch, epoch, sampled):
    copies = watch.copies[epoch]
    return [
        np.mean([slow.update_ratio(copies[k][v], copies[k + 1][v]) for k in sampled])
        if kernel
        else math.nan
        for v, kernel in enumerate(watch.kernels)
    ]


def expected_moves(watch, epoch):
    first, last = watch.copies[epoch][0], watch.copies[epoch][-1]
    return [
        slow.moved(before, after) if kernel else math.nan
        for before, after, kernel in zip(first, last, watch.kernels, strict=True)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"jit_compile": False},
        {"jit_compile": True},
        {"run_eagerly": True},
        {"optimizer": "sgd"},
        {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9)},
        {"optimizer": keras.optimizers.Adam(0.01, use_ema=True)},
    ],
)
def test_updates_are_those_of_copied_weights(options):
    watch = watched(network(**options))
    for epoch, columns in enumerate(watch.columns):
        ratios = expected_ratios(watch, epoch, (0, 2, 4))
        np.testing.assert_allclose(columns["update/ratio"], ratios, 1e-6)
        np.testing.assert_allclose(
            columns["update/moved"], expected_moves(watch, epoch), 1e-6
        )
        assert math.isnan(columns["update/moved"][1])  # a bias is no kernel


@pytest.mark.parametrize(
    ("steps", "sampled"), [(None, [0]), (1, [0]), (2, [0, 1]), (5, [0, 2, 4])]
)
def test_sampled_steps(steps, sampled):
    watch = watched(network(), Watch(steps))
    np.testing.assert_allclose(
        watch.columns[1]["update/ratio"], expected_ratios(watch, 1, sampled), 1e-6
    )


def test_executions_of_several_steps_are_not_compared():
    for steps_per_execution in (2, 4, 5):
        watch = watched(network(steps_per_execution=steps_per_execution))
        for epoch, columns in enumerate(watch.columns):
            assert "update/ratio" not in columns
            if KERAS < (3, 7) and steps_per_execution < 5:
                continue  # it does not tell of an execution that runs out of data
            np.testing.assert_allclose(
                columns["update/moved"], expected_moves(watch, epoch), 1e-6
            )


def test_weights_that_stay():
    watch = watched(network(optimizer=keras.optimizers.SGD(0.0)))
    for columns in watch.columns:
        assert columns["update/ratio"][0] == columns["update/moved"][0] == 0
    model = network(optimizer=keras.optimizers.SGD(1e-12))
    assert watched(model).columns[0]["update/moved"][0] <= 1


def test_an_epoch_that_nobody_saw_begin_is_not_compared():
    model = network()
    meter = WeightMeter(model, kernels_of(model))
    meter.end_step(0)
    assert meter.end_epoch() == {}
    meter.begin_epoch(1)
    assert meter.end_epoch()["update/moved"][0] == 0
    assert meter.end_epoch() == {}


def test_broken_weights_do_no_harm():
    model = network(optimizer=keras.optimizers.SGD(1e30))
    watch = watched(model)
    assert not np.isfinite(watch.columns[-1]["update/ratio"][0])
    model = network()
    model.layers[0].kernel.assign(np.full((4, 5), 3e38))
    meter = WeightMeter(model, kernels_of(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meter.begin_epoch(1)
        model.layers[0].kernel.assign(np.full((4, 5), -3e38))
        meter.end_step(0)
        columns = meter.end_epoch()
    assert columns["update/ratio"][0] == pytest.approx(2)
    assert columns["update/moved"][0] == pytest.approx(2e7)


def test_zero_weights_have_no_scale():
    model = network()
    model.layers[0].kernel.assign(np.zeros((4, 5)))
    watch = watched(model)
    np.testing.assert_allclose(
        watch.columns[0]["update/ratio"], expected_ratios(watch, 0, (0, 2, 4)), 1e-6
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_other_precision(dtype):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, dtype=dtype), layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.05), "mse")
    watch = watched(model, epochs=1)
    assert initial_columns(model, watch.kernels)["weight/initial_finite"] == (1,) * 4
    np.testing.assert_allclose(
        watch.columns[0]["update/ratio"], expected_ratios(watch, 0, (0, 2, 4)), 1e-5
    )
    np.testing.assert_allclose(
        watch.columns[0]["update/moved"], expected_moves(watch, 0), 1e-5
    )


def test_measuring_takes_little_memory():
    model = keras.Sequential([keras.Input((2000,)), layers.Dense(2000)])
    meter = WeightMeter(model, kernels_of(model))
    size = 4 * 2000 * 2000
    tracemalloc.start()
    meter.begin_epoch(1)
    meter.end_step(0)
    assert meter.end_epoch()["update/moved"][0] == 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 * size  # numbers are taken to double precision bit by bit


@pytest.mark.parametrize(
    ("initializer", "expected"),
    [
        ("glorot_uniform", 0),
        ("zeros", 1),
        ("ones", 1),
        (keras.initializers.Constant(0.3), 1),
        (keras.initializers.RandomNormal(stddev=1e-3), 0),
        (keras.initializers.RandomNormal(stddev=1e-12), 1),
        (keras.initializers.Constant(math.nan), 0),
        (keras.initializers.Constant(math.inf), 0),
        (keras.initializers.Identity(), 0),
    ],
)
def test_units_that_begin_alike(initializer, expected):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(6, kernel_initializer=initializer),
            layers.Dense(1),
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        columns = initial_columns(model, kernels_of(model))
    symmetric = columns["weight/initial_symmetric"]
    np.testing.assert_array_equal(symmetric, [expected, math.nan, 0, math.nan])
    finite = np.isfinite(model.layers[0].kernel.numpy()).all()
    assert columns["weight/initial_finite"] == (finite, 1, 1, 1)
    if finite:
        assert symmetric[0] == slow.symmetric(model.layers[0].kernel.numpy())


def test_units_of_convolutions_and_recurrent_layers():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(3, 3, kernel_initializer="ones"),
            layers.DepthwiseConv2D(3),
            layers.Reshape((16, 3)),
            layers.LSTM(2),
        ]
    )
    columns = initial_columns(model, kernels_of(model))
    np.testing.assert_array_equal(
        columns["weight/initial_symmetric"],
        [1, math.nan, 0, math.nan, 0, 0, math.nan],
    )


def test_norms_of_gradients():
    gradients = [np.array([[3.0, 4.0]], "float32"), None, np.array([1e30, 1e30])]
    assert gradient_norms(gradients) == pytest.approx(
        (5, math.nan, math.sqrt(2) * 1e30), nan_ok=True
    )
    assert gradient_norms([np.array([math.inf]), np.array([math.nan])]) == (
        pytest.approx((math.inf, math.nan), nan_ok=True)
    )
