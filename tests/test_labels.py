from __future__ import annotations

import math
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import reference_recording as slow

from kt_bttackler.labels import (
    LABELLED_EPOCHS,
    MOST_ROWS,
    LabelledSteps,
    LabelSample,
    Loss,
    as_rows,
    class_labels,
    top_share,
)

RANDOM = np.random.default_rng(0)
ONE_HOT = np.eye(5)[RANDOM.choice(5, 400, p=[0.4, 0.3, 0.2, 0.05, 0.05])]
SOFT = RANDOM.dirichlet([0.3, 1.0, 2.0], 400)
CLASSES = ONE_HOT.argmax(axis=1)
BITS = (RANDOM.random((400, 4)) < [0.1, 0.5, 0.7, 0.99]).astype("float32")
REAL = RANDOM.gamma(1.5, 3.0, (400, 2)) * [1.0, 5.0]
CCE, SPARSE = "categorical_crossentropy", "sparse_categorical_crossentropy"
BCE, MSE, MAE = "binary_crossentropy", "mean_squared_error", "mean_absolute_error"


@pytest.fixture(autouse=True)
def _nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def sample_of(labels, rows=50):
    sample = LabelSample()
    for start in range(0, len(labels), rows):
        sample.add(labels[start : start + rows])
    return sample


def trivial(labels, name, **options):
    return sample_of(labels).trivial_loss(Loss(name, **options))


@pytest.mark.parametrize(
    ("name", "labels", "smoothing"),
    [
        (CCE, ONE_HOT, 0.0),
        (CCE, ONE_HOT, 0.2),
        (CCE, SOFT, 0.0),
        (CCE, np.eye(3)[RANDOM.integers(0, 3, (60, 7))], 0.1),
        (SPARSE, CLASSES, 0.0),
        (SPARSE, CLASSES[:, None], 0.0),
        (SPARSE, CLASSES.reshape(100, 4), 0.0),
        (SPARSE, CLASSES.reshape(40, 5, 2), 0.0),
        (BCE, BITS, 0.0),
        (BCE, BITS, 0.3),
        (BCE, BITS[:, 0], 0.0),
        (BCE, BITS[:, 1] > 0.5, 0.0),
        (BCE, SOFT, 0.0),
        (MSE, REAL, 0.0),
        (MSE, REAL[:, 0], 0.0),
        (MSE, REAL.reshape(50, 8, 2), 0.0),
        (MAE, REAL, 0.0),
        (MAE, REAL.reshape(100, 4, 2), 0.0),
        ("mean_absolute_percentage_error", REAL, 0.0),
        ("mean_squared_logarithmic_error", REAL, 0.0),
        ("huber", REAL, 0.0),
        ("log_cosh", REAL, 0.0),
        ("hinge", BITS, 0.0),
        ("hinge", 2 * BITS - 1, 0.0),
        ("squared_hinge", BITS, 0.0),
    ],
)
def test_the_trivial_loss_is_the_minimum_over_constants(name, labels, smoothing):
    estimate, error = trivial(labels, name, label_smoothing=smoothing)
    assert 0 < error < 0.2 * estimate
    minimum = slow.trivial_loss(name, labels, smoothing)
    assert minimum - 1e-6 <= estimate <= minimum + error


@pytest.mark.parametrize("name", [CCE, SPARSE, BCE, MSE, MAE])
def test_a_sample_gives_that_of_all_labels_within_its_error(name):
    random = np.random.default_rng(1)
    everything = {
        CCE: np.eye(8)[random.choice(8, 20_000, p=np.arange(1, 9) / 36)],
        SPARSE: random.choice(8, 20_000, p=np.arange(1, 9) / 36),
        BCE: (random.random((20_000, 3)) < [0.1, 0.3, 0.5]).astype(float),
        MSE: random.normal(size=(20_000, 2)),
        MAE: random.exponential(size=(20_000, 2)),
    }[name]
    truth = {
        CCE: lambda: slow.trivial_loss(CCE, everything),
        SPARSE: lambda: slow.trivial_loss(SPARSE, everything),
        BCE: lambda: slow.trivial_loss(BCE, everything),
        MSE: lambda: slow.trivial_loss(MSE, everything),
        MAE: lambda: np.mean(np.abs(everything - np.median(everything, axis=0))),
    }[name]()
    deviations = []
    for _ in range(200):
        rows = random.choice(20_000, 150, replace=False)
        estimate, error = trivial(everything[rows], name)
        deviations.append((estimate - truth) / error)
    assert abs(np.mean(deviations)) < 0.5
    assert 0.6 < np.std(deviations) < 1.4


def test_positions_of_a_row_are_no_independent_labels():
    random = np.random.default_rng(2)
    rows = np.repeat(random.integers(0, 2, (64, 1)), 100, axis=1)
    _, error = trivial(rows * (random.random((64, 100)) < 0.8), SPARSE)
    _, alone = trivial(rows[:, :1], SPARSE)
    _, independent = trivial(random.integers(0, 2, (64, 100)), SPARSE)
    assert error > 3 * independent
    assert alone < 1


@pytest.mark.parametrize("name", [CCE, SPARSE])
@pytest.mark.parametrize("rows", [20, 60, 200])
def test_the_correction_takes_the_bias_off(name, rows):
    random = np.random.default_rng(3)
    shares = np.arange(1, 11) / 55
    truth = -np.sum(shares * np.log(shares))
    plain, corrected = [], []
    for _ in range(400):
        classes = random.choice(10, rows, p=shares)
        counts = np.unique(classes, return_counts=True)[1] / rows
        plain.append(-np.sum(counts * np.log(counts)))
        labels = np.eye(10)[classes] if name == CCE else classes
        corrected.append(trivial(labels, name)[0])
    assert abs(np.mean(corrected) - truth) < 0.35 * abs(np.mean(plain) - truth)


def test_the_correction_of_smoothed_labels_is_smaller():
    random = np.random.default_rng(4)
    truth = slow.trivial_loss(CCE, np.eye(6), 0.3)  # each class once: their shares
    estimates = [
        trivial(np.eye(6)[random.choice(6, 30)], CCE, label_smoothing=0.3)[0]
        for _ in range(1000)
    ]
    assert np.mean(estimates) == pytest.approx(truth, abs=0.005)


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        (ONE_HOT, Loss(None)),
        (REAL, Loss("kl_divergence")),
        (REAL, Loss("huber", delta=math.nan)),
        (REAL, Loss("hinge")),
        (REAL, Loss("poisson")),
        (REAL, Loss(MSE, mean=False)),
        (REAL[:1], Loss(MSE)),
        (np.where(REAL > 3, np.nan, REAL), Loss(MSE)),
        (np.full((9, 2), np.inf), Loss(MAE)),
        (np.array([-1, 1, 1, -1]), Loss(BCE)),
        (np.arange(10), Loss(BCE)),
        (np.arange(10)[:, None], Loss(CCE)),
        (np.zeros((9, 3)), Loss(CCE)),
        (np.array(["a", "b"]), Loss(SPARSE)),
        (np.array([b"a", None], object), Loss(SPARSE)),
        (np.array([1 + 2j, 0]), Loss(MSE)),
        (np.zeros((0, 3)), Loss(CCE)),
        (np.zeros((5, 0)), Loss(MSE)),
        (np.zeros(0), Loss(SPARSE)),
    ],
)
def test_what_is_not_known_is_nan(labels, loss):
    assert all(math.isnan(number) for number in sample_of(labels).trivial_loss(loss))


def test_labels_that_never_change_cost_nothing():
    for name, labels in ((SPARSE, np.full(9, 7)), (BCE, np.ones(9)), (MSE, np.ones(9))):
        assert trivial(labels, name) == (0, 0)


def test_rows_of_labels():
    assert as_rows([0, 1, 1]).shape == (3, 1)
    assert as_rows(np.zeros((3, 4, 5))).shape == (3, 4, 5)
    assert as_rows(np.array([True, False])).tolist() == [[1], [0]]
    for nothing in (None, "cat", np.array(["cat"]), np.float32(3)):
        assert as_rows(nothing) is None


def test_other_shapes_and_no_labels_are_left_out():
    sample = LabelSample()
    assert sample.values().shape == (0, 1)
    sample.add(None)
    sample.add(np.ones((4, 3)))
    sample.add(np.ones((4, 2)))
    sample.add(np.zeros((2, 3), bool))
    assert sample.values().tolist() == [[1] * 3] * 4 + [[0] * 3] * 2


def test_classes():
    assert class_labels(ONE_HOT, Loss(CCE)).tolist() == CLASSES.tolist()
    for labels in (CLASSES, CLASSES[:, None], CLASSES.astype("float16")):
        assert class_labels(labels, Loss(SPARSE)).tolist() == CLASSES.tolist()
    bits = BITS[:, 1]
    for labels in (bits, bits > 0, bits[:, None].astype("int8"), bits * 0.9 + 0.05):
        assert class_labels(labels, Loss(BCE)).tolist() == bits.tolist()
    assert class_labels(np.eye(3)[None], Loss(CCE)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (np.array([-1, 2]), SPARSE),
        (np.array([0.0, np.nan]), SPARSE),
        (np.array([0, 7]), BCE),
        (np.array([-1, 1]), BCE),
        (BITS, BCE),
        (REAL, MSE),
        (np.array(["a"]), SPARSE),
        (None, SPARSE),
        (np.zeros((0, 1)), SPARSE),
        (ONE_HOT, None),
    ],
)
def test_no_classes(labels, name):
    assert class_labels(labels, Loss(name)) is None


def test_class_numbers_may_be_huge():
    classes = np.array([10**6, 3, 10**15, 3, 10**6, 10**6])
    tracemalloc.start()
    assert top_share(class_labels(classes, Loss(SPARSE))) == 0.5
    estimate, _ = trivial(classes, SPARSE)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20
    assert estimate == pytest.approx(
        slow.trivial_loss(SPARSE, [0, 1, 2, 1, 0, 0]) + 2 / 12, abs=1e-6
    )


def test_a_vocabulary_of_many_words_takes_little_memory_and_time():
    words = np.random.default_rng(5).zipf(1.3, (512, 256)) % 30_000
    tracemalloc.start()
    started = time.perf_counter()
    estimate, _ = trivial(words, SPARSE)
    seconds = time.perf_counter() - started
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**25
    assert seconds < 2
    counts = np.unique(words, return_counts=True)[1]
    plain = -np.sum(counts / words.size * np.log(counts / words.size))
    assert estimate == pytest.approx(plain + (len(counts) - 1) / (2 * words.size))


def test_labels_of_images_are_thinned_out():
    random = np.random.default_rng(6)
    classes = (np.add.outer(np.arange(64), np.arange(64)) % 7)[None]
    images = np.eye(7, dtype="float32")[np.repeat(classes, 128, axis=0)]
    sample, sparse = LabelSample(), LabelSample()
    tracemalloc.start()
    for _ in range(40):
        sample.add(images)
        sparse.add(images.argmax(-1))
    estimate, error = sample.trivial_loss(Loss(CCE))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**28
    assert sample.values().shape == (MOST_ROWS, 146, 7)
    exact = slow.trivial_loss(CCE, images[0])
    assert estimate == pytest.approx(exact, rel=0.02)
    assert sparse.trivial_loss(Loss(SPARSE))[0] == pytest.approx(exact, rel=0.02)
    assert error < 0.01
    wide = LabelSample()
    for _ in range(30):
        wide.add((random.random((128, 20_000)) < 0.1).astype("float32"))
    assert wide.values().size < 2**23
    assert wide.trivial_loss(Loss(BCE))[0] == pytest.approx(0.325, abs=0.01)


def test_not_too_many_rows_are_kept():
    sample = LabelSample()
    for _ in range(100):
        sample.add(np.zeros(128))
    assert len(sample.values()) == MOST_ROWS


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 37, 5000])
def test_labelled_steps_reach_from_end_to_end(steps):
    epochs = []
    for epoch in range(LABELLED_EPOCHS + 1):
        schedule = LabelledSteps(steps, epoch)
        epochs.append([step for step in range(steps) if schedule.due(step)])
    *labelled, after = epochs
    assert after == []
    assert all(len(chosen) == min(10, steps) for chosen in labelled)
    assert labelled[0][0] == 0
    assert labelled[-1][-1] >= 0.9 * steps - 1
    if steps > 30:
        assert len({step for chosen in labelled for step in chosen}) == 30


def test_labelled_steps_with_several_steps_per_execution():
    schedule = LabelledSteps(100, 0)
    assert [step for step in range(7, 100, 8) if schedule.due(step)] == [
        7, 15, 23, 31, 47, 55, 63, 71, 87, 95,
    ]  # fmt: skip


def test_sorted_labels_look_as_rich_as_they_are():
    labels = np.sort(RANDOM.integers(0, 10, 6400)).reshape(200, 32)
    sample = LabelSample()
    for epoch in range(LABELLED_EPOCHS):
        schedule = LabelledSteps(200, epoch)
        for step in range(200):
            if schedule.due(step):
                sample.add(labels[step])
    assert sample.trivial_loss(Loss(SPARSE))[0] == pytest.approx(math.log(10), rel=0.03)
