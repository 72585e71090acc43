from __future__ import annotations

import itertools
import math
import tracemalloc
import warnings

import numpy as np
import pytest
import reference_recording as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kt_bttackler import unit_stats

ACTIVATIONS = [*slow.SATURATING, "relu", "relu6", "leaky_relu", "prelu", "gelu"]
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)
NUMBERS = st.floats(-4, 4, width=32) | st.sampled_from(
    [-1.0, 0.0, 0.5, float(np.float32(0.999)), 1.0]
)


@pytest.fixture(autouse=True)
def _nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def statistics(output):
    """Every statistic of an output."""
    yield unit_stats.abs_max(output)
    yield unit_stats.mean_std(output)
    yield unit_stats.largest_std(output)
    yield unit_stats.std_ratio(output)
    for bounded in (False, True):
        yield unit_stats.constant_ratio(output, bounded=bounded)
    for activation in ACTIVATIONS:
        yield unit_stats.dead_ratio(output, activation)
        yield unit_stats.saturated_ratio(output, activation)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, SHAPES, elements=NUMBERS))
def test_statistics_are_those_of_plain_loops(output):
    approx = pytest.approx
    assert unit_stats.abs_max(output) == slow.abs_max(output)
    assert unit_stats.mean_std(output) == approx(np.mean(slow.stds(output)), abs=1e-12)
    assert unit_stats.largest_std(output) == approx(max(slow.stds(output)), abs=1e-12)
    for activation in ACTIVATIONS:
        assert unit_stats.dead_ratio(output, activation) == approx(
            slow.dead_ratio(output, activation), nan_ok=True
        )
        assert unit_stats.saturated_ratio(output, activation) == approx(
            slow.saturated_ratio(output, activation), nan_ok=True
        )
    if len(slow.by_unit(output)[0]) > 1:
        for bounded in (False, True):
            assert unit_stats.constant_ratio(output, bounded=bounded) == approx(
                slow.constant_ratio(output, bounded)
            )


def test_the_ratio_of_stds_leaves_out_what_never_varies():
    values = np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 20.0, 0.0] + 0.1
    assert unit_stats.std_ratio(values) == pytest.approx(slow.std_ratio(values), 1e-6)
    assert math.isnan(unit_stats.std_ratio(np.full((128, 4), 0.1, "float32")))


def test_a_single_unit_needs_no_axis():
    rows = np.array([0.0, 0.0, 3.0])
    for one, other in zip(statistics(rows), statistics(rows[:, None]), strict=True):
        assert one == pytest.approx(other, nan_ok=True)
    assert unit_stats.largest_std(rows) == pytest.approx(math.sqrt(2))
    assert unit_stats.largest_std(np.float32(3)) == 0


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0), (4, 3, 0), (0, 2, 3)])
def test_empty_outputs_say_nothing(shape):
    assert all(math.isnan(value) for value in statistics(np.zeros(shape, "float32")))


def test_broken_and_huge_numbers_do_no_harm():
    values = [math.nan, math.inf, -math.inf, 3e38, -3e38, 0.0, 1.0]
    for pair in itertools.product(values, repeat=2):
        output = np.array(pair, "float32")[:, None]
        assert all(isinstance(value, float) for value in statistics(output))
    assert unit_stats.largest_std(np.array([[3e38], [-3e38]])) == pytest.approx(3e38)
    assert unit_stats.abs_max(np.array([math.nan, -2.0, 1.0])) == 2
    assert unit_stats.abs_max(np.array([1.0, -math.inf])) == math.inf
    assert math.isnan(unit_stats.abs_max(np.array([math.nan])))
    nothing = np.full((4, 2), math.nan)
    assert unit_stats.dead_ratio(nothing, "relu") == 0
    assert unit_stats.saturated_ratio(nothing, "tanh") == 0
    assert unit_stats.constant_ratio(nothing, bounded=True) == 0


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint8", "bool"])
def test_other_types_of_numbers(dtype):
    output = np.array([[0, 1, 1], [0, 0, 1], [0, 1, 1]]).astype(dtype)
    expected = statistics(output.astype("float32"))
    for one, other in zip(statistics(output), expected, strict=True):
        assert one == pytest.approx(other, nan_ok=True)
    assert unit_stats.constant_ratio(output, bounded=False) == pytest.approx(2 / 3)


def test_half_precision_does_not_overflow():
    output = np.array([[60000.0], [-60000.0]], "float16")
    assert unit_stats.largest_std(output) == 60000
    assert unit_stats.constant_ratio(output, bounded=False) == 0


@pytest.mark.parametrize("activation", slow.SATURATING)
def test_saturated_means_flat_on_95_of_100_rows(activation):
    flat = {"sigmoid": 0.999, "tanh": -0.999, "softsign": 0.95}.get(activation, 1.0)
    output = np.full((100, 2), flat, "float32")
    output[:5, 0] = output[:6, 1] = 0.4
    assert unit_stats.saturated_ratio(output, activation) == 0.5


def test_large_outputs_take_little_memory():
    output = np.random.default_rng(0).normal(size=(64, 64, 64, 20)).astype("float32")
    tracemalloc.start()
    found = unit_stats.largest_std(output)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < output.nbytes
    assert found == pytest.approx(output.reshape(-1, 20).astype("float64").std(0).max())
