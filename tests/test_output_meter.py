"""What outputs have to do with the labels."""

from __future__ import annotations

import math
import time
import tracemalloc
import warnings

import keras
import numpy as np
import pytest
import reference_recording as slow

from kt_bttackler.output_meter import OutputMeter
from kt_bttackler.probe import Head

layers, losses = keras.layers, keras.losses
RANDOM = np.random.default_rng(0)
CLASSES = RANDOM.choice(4, 60, p=[0.5, 0.3, 0.15, 0.05])
SCORES = RANDOM.normal(size=(60, 4)).astype("float32")
SOFTMAX, SIGMOID, LINEAR = Head("softmax", 4), Head("sigmoid", 1), Head("linear", 1)


@pytest.fixture(autouse=True)
def _nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def small_model(loss):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(5, activation="relu", name="hidden"),
            layers.Dense(4),
        ]
    )
    model.compile("sgd", loss)
    return model


def meter_of(loss, labels, *, weight=None):
    meter = OutputMeter(small_model(loss))
    meter.add(labels, weight)
    return meter


def spread(meter, output, head):
    return meter.spread(meter.stds([output]), [head])


@pytest.mark.parametrize(
    ("loss", "labels", "head", "scale"),
    [
        ("mse", SCORES, SOFTMAX, 1),
        ("mse", SCORES, Head("tanh", 4), 2),
        ("mse", SCORES, Head("hard_tanh", 4), 2),
        ("mse", SCORES, Head("linear", 4), max(slow.stds(SCORES))),
        ("mse", SCORES, Head("relu", 4), max(slow.stds(SCORES))),
        ("mse", SCORES, Head(None, 4), max(slow.stds(SCORES))),
        ("sparse_categorical_crossentropy", CLASSES, SOFTMAX, 1),
        ("sparse_categorical_crossentropy", CLASSES, Head(None, 4), 1),
        ("sparse_categorical_crossentropy", CLASSES, Head("linear", 4), 1),
        ("mse", np.full(60, 3.0), LINEAR, math.nan),
        ("mse", None, LINEAR, math.nan),
        ("mse", np.array(["a"] * 60), LINEAR, math.nan),
    ],
)
def test_spread_on_the_scale_of_the_output(loss, labels, head, scale):
    expected = max(slow.stds(SCORES)) / scale
    found = spread(meter_of(loss, labels), SCORES, head)
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (losses.SparseCategoricalCrossentropy(from_logits=True), None),
        (losses.CategoricalCrossentropy(from_logits=True), None),
        (losses.CategoricalFocalCrossentropy(from_logits=True), None),
        (losses.BinaryCrossentropy(from_logits=True), "binary"),
        (losses.BinaryFocalCrossentropy(from_logits=True), "binary"),
    ],
)
def test_of_logits_the_probabilities_spread(loss, kind):
    found = spread(meter_of(loss, None), 3 * SCORES, Head("linear", 4))
    probabilities = slow.probabilities(3 * SCORES, kind)
    assert found == pytest.approx(max(slow.stds(probabilities)), rel=1e-5)


def test_a_single_logit_spreads():
    for loss in (losses.BinaryCrossentropy, losses.BinaryFocalCrossentropy):
        meter = meter_of(loss(from_logits=True), CLASSES > 0)
        assert spread(meter, SCORES[:, :1], LINEAR) > 0.1
        assert spread(meter, SCORES[:, 0], Head(None, None)) > 0.1


def test_of_several_outputs_the_largest_spread_counts():
    meter = meter_of("mse", None)
    outputs = [SCORES * 0.1, SCORES[:, :2] * 0.5, SCORES]
    heads = [Head("sigmoid", 4), Head("tanh", 2), Head("linear", 4)]
    expected = max(max(slow.stds(outputs[0])), max(slow.stds(outputs[1])) / 2)
    assert meter.spread(meter.stds(outputs), heads) == pytest.approx(expected)
    assert math.isnan(meter.spread(meter.stds(outputs[2:]), heads[2:]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("loss", ["mse", losses.BinaryCrossentropy(from_logits=True),
                                  losses.CategoricalCrossentropy(from_logits=True)])  # fmt: skip
def test_broken_outputs_do_no_harm(value, loss):
    output = SCORES.copy()
    output[3] = value
    meter = meter_of(loss, np.eye(4)[CLASSES])
    assert isinstance(spread(meter, output, SOFTMAX), float)
    if not math.isfinite(value):
        assert meter.classes([output], None) == {}
    empty = np.zeros((0, 4), "float32")
    assert math.isnan(spread(meter, empty, SOFTMAX))


def shares(loss, labels, output, of_rows=...):
    meter = meter_of(loss, labels)
    return meter.classes([output], labels if of_rows is ... else of_rows)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        ("categorical_crossentropy", np.eye(4)[CLASSES]),
        ("sparse_categorical_crossentropy", CLASSES),
        ("sparse_categorical_crossentropy", CLASSES[:, None].astype("uint8")),
        (losses.SparseCategoricalCrossentropy(from_logits=True), CLASSES),
    ],
)
def test_shares_of_classes(loss, labels):
    output = SCORES - [0.0, 0.0, 9.0, 9.0]  # never the last two
    chosen = output.argmax(axis=1)
    assert shares(loss, labels, output.astype("float32")) == {
        "output/top_share": slow.top_share(chosen),
        "output/label_top_share": slow.top_share(CLASSES),
        "output/neglected_share": slow.neglected_share(CLASSES, chosen),
    }
    assert slow.neglected_share(CLASSES, chosen) > 0


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("shape", [(60,), (60, 1)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_shares_of_two_classes(from_logits, shape, dtype):
    loss = losses.BinaryCrossentropy(from_logits=from_logits)
    labels = (CLASSES > 1).astype(dtype).reshape(shape)
    logits = SCORES[:, :1] - 0.5
    output = logits if from_logits else 1 / (1 + np.exp(-logits))
    for each in (output, output[:, 0]):
        assert shares(loss, labels, each) == {
            "output/top_share": slow.top_share(logits > 0),
            "output/label_top_share": slow.top_share(CLASSES > 1),
            "output/neglected_share": slow.neglected_share(CLASSES > 1, logits > 0),
        }


def test_shares_of_sequences_count_positions():
    output = RANDOM.random((10, 6, 4)).astype("float32")
    labels = CLASSES.reshape(10, 6)
    found = shares("sparse_categorical_crossentropy", labels, output)
    chosen = output.argmax(axis=-1)
    assert found["output/top_share"] == slow.top_share(chosen)
    assert found["output/neglected_share"] == slow.neglected_share(labels, chosen)
    assert found == shares("categorical_crossentropy", np.eye(4)[labels], output)


@pytest.mark.parametrize(
    "of_rows", [None, CLASSES[:7], np.array(["a"] * 60), np.full(60, -1), CLASSES - 0.0]
)
def test_labels_of_the_probe_may_be_missing_or_odd(of_rows):
    found = shares("sparse_categorical_crossentropy", CLASSES, SCORES, of_rows)
    known = of_rows is not None and of_rows.dtype == float
    assert ("output/neglected_share" in found) == known
    assert found["output/label_top_share"] == slow.top_share(CLASSES)


def test_a_probe_of_one_class_is_told_by_its_own_labels():
    ones = np.ones(60, int)
    found = shares("sparse_categorical_crossentropy", CLASSES, SCORES, ones)
    assert found["output/label_top_share"] == 1


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        ("mse", CLASSES),
        (lambda y, z: keras.ops.mean(z), CLASSES),
        ("sparse_categorical_crossentropy", None),
        ("sparse_categorical_crossentropy", np.array(["a"] * 60)),
        ("sparse_categorical_crossentropy", -CLASSES),
        ("binary_crossentropy", np.eye(4)[CLASSES]),
        ("binary_crossentropy", CLASSES),
    ],
)
def test_no_shares_without_classes(loss, labels):
    assert shares(loss, labels, SCORES) == {}
    assert meter_of("mse", CLASSES).classes([SCORES, SCORES], CLASSES) == {}


def test_class_numbers_of_any_size():
    labels = np.where(CLASSES > 0, 10**12, 2)
    tracemalloc.start()
    found = shares("sparse_categorical_crossentropy", labels, SCORES)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20
    assert found["output/neglected_share"] == slow.top_share(labels)


def trivial(loss, labels, **options):
    return meter_of(loss, labels, **options).trivial()["label/trivial_loss"]


def test_the_trivial_loss_is_known_only_for_simple_models():
    assert math.isfinite(trivial("mse", SCORES))
    assert math.isfinite(trivial("mse", [SCORES]))
    assert math.isfinite(trivial("mse", {"out": SCORES}))
    assert math.isnan(trivial("mse", SCORES, weight=np.ones(60)))
    for labels in ([SCORES, SCORES], {"a": SCORES, "b": SCORES}, None, [], [None]):
        assert math.isnan(trivial("mse", labels))


@pytest.mark.parametrize(
    ("loss", "labels", "known"),
    [
        ("sparse_categorical_crossentropy", RANDOM.integers(0, 3, (20, 5)), False),
        ("sparse_categorical_crossentropy", RANDOM.integers(0, 3, (20, 5, 1)), False),
        ("categorical_crossentropy", np.eye(3)[RANDOM.integers(0, 3, (20, 5))], False),
        ("mse", RANDOM.normal(size=(20, 5, 1)), False),
        ("sparse_categorical_crossentropy", RANDOM.integers(0, 3, 20), True),
        ("categorical_crossentropy", np.eye(3)[RANDOM.integers(0, 3, 20)], True),
        ("mse", RANDOM.normal(size=20), True),
    ],
)
def test_masked_positions_make_it_unknown(loss, labels, known):
    def model(mask_zero):
        embedding = layers.Embedding(9, 2, mask_zero=mask_zero)
        return keras.Sequential([keras.Input((5,)), embedding, layers.Dense(3)])

    for mask_zero in (False, True):
        masked = model(mask_zero)
        masked.compile("sgd", loss)
        meter = OutputMeter(masked)
        meter.add(labels)
        found = meter.trivial()["label/trivial_loss"]
        assert math.isfinite(found) == (known or not mask_zero)


def test_facts():
    facts = meter_of("sparse_categorical_crossentropy", CLASSES).facts([SOFTMAX])
    assert facts == (
        {
            "activation": "softmax",
            "units": 4,
            "loss": "sparse_categorical_crossentropy",
            "from_logits": False,
            "target_min": 0.0,
            "target_max": 3.0,
            "target_std": pytest.approx(slow.stds(CLASSES)[0]),
            "target_integers": True,
        },
    )
    (fact,) = meter_of("mse", SCORES.astype("float16")).facts([Head("linear", 4)])
    assert fact["target_std"] == pytest.approx(max(slow.stds(SCORES)), rel=1e-3)
    assert not fact["target_integers"]
    (fact,) = meter_of("bce", CLASSES > 1).facts([SIGMOID])
    assert (fact["target_min"], fact["target_max"], fact["target_integers"]) == (
        0,
        1,
        True,
    )


@pytest.mark.parametrize("labels", [None, np.array(["a", "b"]), [SCORES, SCORES]])
def test_facts_of_unknown_labels(labels):
    (fact,) = meter_of("mse", labels).facts([LINEAR])
    assert all(math.isnan(fact[f"target_{name}"]) for name in ("min", "max", "std"))
    assert fact["target_integers"] is False
    several = meter_of("mse", SCORES).facts([LINEAR, SIGMOID])
    assert [fact["loss"] for fact in several] == [None, None]
    assert [fact["activation"] for fact in several] == ["linear", "sigmoid"]
    assert math.isnan(several[0]["target_min"])


def test_broken_labels_do_no_harm():
    for value in (math.nan, math.inf, -math.inf, 3e38):
        labels = SCORES.copy()
        labels[0, 0] = value
        for loss in ("mse", "mae", "bce", "categorical_crossentropy"):
            meter = meter_of(loss, labels)
            meter.facts([LINEAR])
            meter.trivial()
            assert isinstance(spread(meter, SCORES, Head("linear", 4)), float)


def test_outputs_of_a_segmentation():
    output = RANDOM.normal(size=(128, 64, 64, 20)).astype("float32")
    labels = RANDOM.integers(0, 20, (128, 64, 64))
    for from_logits in (False, True):
        loss = losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        meter = meter_of(loss, labels)
        tracemalloc.start()
        started = time.perf_counter()
        assert 0 < spread(meter, output, Head("softmax", 20)) < 2
        found = meter.classes([output], labels)
        seconds = time.perf_counter() - started
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 2 * output.nbytes
        assert seconds < 10
        assert found["output/top_share"] == pytest.approx(0.05, abs=0.01)
