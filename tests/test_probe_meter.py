"""What the probe meter measures, when, and what it says of the inputs."""

from __future__ import annotations

import math
import time
import warnings

import keras
import numpy as np
import pytest
import reference_recording as slow
import tensorflow as tf

from kt_bttackler import probe_meter
from kt_bttackler.probe_data import slice_rows
from kt_bttackler.probe_meter import PROBED_EPOCHS, ProbeMeter

layers = keras.layers
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 3)).astype("float32")
EVERYTHING = frozenset(
    {
        "activation/constant_ratio",
        "activation/dead_ratio",
        "activation/saturated_ratio",
        "activation/abs_max",
        "activation/initial_std",
        "output/spread",
        "output/initial_spread",
        "output/top_share",
        "output/label_top_share",
        "output/neglected_share",
        "label/trivial_loss",
        "model/outputs",
        "model/inputs",
    }
)


@pytest.fixture(autouse=True)
def _nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def small_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(5, activation="relu", name="hidden"),
            layers.Dense(4),
        ]
    )
    model.compile("sgd", "mse")
    return model


def probe_meter_of(model, needs=EVERYTHING, probe_data=None):
    return ProbeMeter(model, needs, probe_data, wants_batch=False)


def test_probes_end_when_epochs_are_short():
    meter = probe_meter_of(small_model(), probe_data=X)
    meter.begin()
    probed = [bool(meter.end_epoch(0.001 * n)[0]) for n in range(1, 21)]
    assert probed == [True] * PROBED_EPOCHS + [False] * (20 - PROBED_EPOCHS)


def test_probes_go_on_when_epochs_are_long():
    meter = probe_meter_of(small_model(), probe_data=X)
    meter.begin()
    assert all(meter.end_epoch(1e4 * n)[0] for n in range(1, 11))


def test_statistics_count_as_cost_of_the_probe(monkeypatch):
    def slow_statistic(output, layer):
        time.sleep(0.2)
        return 0.0

    monkeypatch.setattr(
        probe_meter, "_OF_UNITS", {"activation/abs_max": slow_statistic}
    )
    meter = probe_meter_of(small_model(), {"activation/abs_max"}, X)
    meter.begin()
    # 0.6 s after three probes are more than 0.5 % of these 100 s.
    assert [bool(meter.end_epoch(100.0)[0]) for _ in range(5)] == [True] * 3 + [
        False
    ] * 2


def test_only_what_is_needed_is_measured():
    meter = probe_meter_of(small_model(), {"activation/dead_ratio"}, X)
    meter.begin()
    columns, scalars = meter.end_epoch(1.0)
    assert (list(columns), scalars) == (["activation/dead_ratio"], {})
    assert meter.end_labels() == {}
    assert meter.header_fields() == {"activations": ("hidden",)}
    nothing = probe_meter_of(small_model(), {"loss"}, X)
    nothing.begin()
    assert nothing.end_epoch(1.0) == ({}, {})


def test_large_probe_data_is_sliced():
    x = np.arange(3000.0, dtype="float32").reshape(1000, 3)
    meter = probe_meter_of(small_model(), probe_data=(x, np.zeros((1000, 4))))
    assert meter.batch[0].shape == (128, 3)
    assert meter.batch[1].shape == (128, 4)
    meter = probe_meter_of(small_model(), probe_data=x)
    meter.begin()
    assert meter.header_fields()["inputs"]["abs_max"] == 2999


def test_what_cannot_be_sliced_is_taken_as_it_is():
    ragged = tf.ragged.constant([[1.0], [1.0, 2.0]])
    sparse = tf.sparse.from_dense([[1.0, 0.0]])
    for data in (ragged, sparse, tf.Variable([1.0]), [[1.0]], "text", (X, ["a"])):
        assert slice_rows(data) is None
        probe_meter_of(small_model(), probe_data=data)


def test_data_that_does_not_fit_is_reported():
    meter = probe_meter_of(small_model(), probe_data=np.zeros((4, 7), "float32"))
    with pytest.raises(ValueError, match="incompatible"):
        meter.begin()
    assert meter.unobserved["activation"].startswith("the probe fails: ")
    assert meter.header_fields() == {"activations": ()}
    assert math.isnan(meter.end_labels()["label/trivial_loss"])


def inputs_of(model, x):
    model.compile("sgd", "mse")
    meter = probe_meter_of(model, probe_data=x)
    meter.begin()
    return meter.header_fields()["inputs"]


def sequential(*middle, shape=(3,), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *middle, layers.Dense(1)])


def test_inputs_as_the_first_kernel_sees_them():
    x = X * [1.0, 1000.0, 0.0] + [0.0, 0.0, 5.0]
    plain = inputs_of(sequential(), x)
    assert plain == {
        "abs_max": pytest.approx(slow.abs_max(x), rel=1e-5),
        "std_ratio": pytest.approx(slow.std_ratio(x[:, :2]), rel=1e-4),
        "finite": True,
        "integers": False,
        "image": False,
    }
    normalization = layers.Normalization()
    normalization.adapt(x)
    scaled = inputs_of(sequential(normalization), x)
    assert scaled["std_ratio"] == pytest.approx(1, rel=1e-3)
    assert scaled["abs_max"] < 5
    assert inputs_of(sequential(layers.Rescaling(0.1)), x)["abs_max"] == pytest.approx(
        0.1 * slow.abs_max(x), rel=1e-5
    )
    # What a batch normalisation gives in training is not seen here.
    assert inputs_of(sequential(layers.BatchNormalization()), x) == {}


def test_inputs_of_images():
    pixels = RANDOM.integers(0, 256, (10, 8, 8, 3))
    conv = (layers.Conv2D(2, 3), layers.Flatten())
    for x in (pixels.astype("uint8"), pixels.astype("float32")):
        facts = inputs_of(sequential(*conv, shape=(8, 8, 3)), x)
        assert facts["abs_max"] == pixels.max()
        assert facts["image"]
        assert facts["integers"]
    scaled = sequential(layers.Rescaling(1 / 255), *conv, shape=(8, 8, 3))
    facts = inputs_of(scaled, pixels.astype("uint8"))
    assert facts["abs_max"] <= 1
    assert not facts["integers"]


def test_inputs_of_embeddings_are_no_data():
    tokens = RANDOM.integers(0, 9, (10, 4))
    for middle in ([layers.Flatten()], [layers.LSTM(2)]):
        model = sequential(layers.Embedding(9, 2), *middle, shape=(4,), dtype="int32")
        assert inputs_of(model, tokens) == {}
    ids, reals = keras.Input((4,)), keras.Input((3,))
    h = layers.Flatten()(layers.Embedding(9, 2)(ids))
    y = layers.Concatenate()([h, layers.Dense(2)(reals)])
    facts = inputs_of(keras.Model([ids, reals], layers.Dense(1)(y)), [tokens, X[:10]])
    assert facts["abs_max"] == pytest.approx(slow.abs_max(X[:10]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_not_finite(value):
    x = X.copy()
    x[3, 1] = value
    assert inputs_of(sequential(), x)["finite"] is False
    assert inputs_of(sequential(layers.BatchNormalization()), x) == {"finite": False}
