"""Tests of `kt_bttackler.stats` against slow twins, on the tensors that hurt."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import reference

from kt_bttackler import many_stats, stats

DTYPES = [
    np.float16,
    ml_dtypes.bfloat16,
    np.float32,
    np.float64,
    np.int8,
    np.int32,
    np.int64,
    np.uint8,
    np.bool_,
]
FLOATS = DTYPES[:4]
SHAPES = [(), (0,), (1,), (3,), (2, 3, 4)]
NOT_FINITE = [
    [math.nan],
    [math.inf],
    [-math.inf],
    [math.inf, -math.inf],
    [math.nan, math.inf, -math.inf, math.nan],
]


def heavy_tails(size: int) -> np.ndarray:
    """Student's t with three degrees of freedom and zeros at one place in seven."""
    rng = np.random.default_rng(3)
    return np.where(rng.random(size) < 1 / 7, 0.0, rng.standard_t(3, size))


def noise(size: int) -> np.ndarray:
    return np.random.default_rng(4).normal(size=size)


DISTRIBUTIONS = {
    "normal": noise,
    "heavy tails": heavy_tails,
    "offset": lambda size: 1e6 + 1e-2 * noise(size),
    "negative offset": lambda size: -1e6 + 1e-2 * noise(size),
    "one outlier": lambda size: np.eye(1, size)[0] * 1e4 + 1e-3 * noise(size),
    "tiny": lambda size: 1e-30 * noise(size),
    "large": lambda size: 1e30 * noise(size),
    "denormal in float32": lambda size: 1e-41 * noise(size),
    "lognormal": lambda size: np.exp(2 * noise(size)),
    "two values": lambda size: np.where(noise(size) > 0.05, 1.0, -2.0),
    "rectified": lambda size: np.maximum(noise(size), 0.0),
}


def named(values: tuple[float, ...], names: tuple[str, ...]) -> dict[str, float]:
    assert len(values) == len(names)
    assert all(type(value) is float for value in values)
    return dict(zip(names, values, strict=True))


def assert_close(actual: dict[str, float], expected: dict[str, float]) -> None:
    """Holds the promised precision: 1e-9 of the size or of the standard deviation."""
    deviation = math.sqrt(expected.get("variance", 0.0))
    for name, wanted in expected.items():
        if math.isnan(wanted):
            assert math.isnan(actual[name]), name
            continue
        if name in ("minimum", "maximum", "abs_max", "zero_ratio", "finite"):
            assert actual[name] == wanted, name
            continue
        floor = {"skewness": 1.0, "kurtosis": 1.0, "variance": 0.0}.get(name, deviation)
        allowed = 1e-9 * max(abs(wanted), floor)
        assert abs(actual[name] - wanted) <= allowed, name


def assert_both_agree(tensor: np.ndarray) -> None:
    """Compares `summarize` and `sample` with their twins."""
    assert_close(
        named(stats.summarize(tensor), stats.SUMMARY), reference.summarize(tensor)
    )
    assert_close(named(stats.sample(tensor), stats.SAMPLE), reference.sample(tensor))


def test_names_are_the_ten_statistics_and_two_more():
    assert stats.SUMMARY == (
        "mean",
        "variance",
        "median",
        "minimum",
        "maximum",
        "lower_quartile",
        "upper_quartile",
        "skewness",
        "kurtosis",
        "zero_ratio",
        "abs_mean",
        "finite",
    )
    assert stats.SAMPLE == ("abs_mean", "abs_max", "zero_ratio", "finite")
    assert set(reference.summarize(np.ones(2))) == set(stats.SUMMARY)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_dtype_and_shape_agrees_with_the_twin(dtype, shape):
    rng = np.random.default_rng(1)
    assert_both_agree((5 * rng.normal(size=shape) + 6).astype(dtype))
    if dtype not in (np.uint8, np.bool_):
        assert_both_agree((5 * rng.normal(size=shape)).astype(dtype))


@pytest.mark.parametrize("size", [7, 1000, 30_011])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_distribution_agrees_with_the_twin(distribution, dtype, size):
    tensor = DISTRIBUTIONS[distribution](size).astype(dtype)
    assert_both_agree(tensor)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_small_floats_of_many_elements_agree_with_the_twin(dtype):
    assert_both_agree(heavy_tails(20_003).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_moments_agree_with_rational_arithmetic(distribution, dtype):
    tensor = DISTRIBUTIONS[distribution](700).astype(dtype)
    if np.ptp(tensor) == 0:
        pytest.skip("constant once it is rounded")
    expected = reference.exact_moments(tensor)
    assert_close(named(stats.summarize(tensor), stats.SUMMARY), expected)


@pytest.mark.parametrize("exponent", [-900, -300, 300, 900])
def test_extreme_float64_scales_without_overflow_or_underflow(exponent):
    tensor = heavy_tails(501)
    plain = named(stats.summarize(tensor), stats.SUMMARY)
    scaled = named(stats.summarize(np.ldexp(tensor, exponent)), stats.SUMMARY)
    for name in ("skewness", "kurtosis", "zero_ratio", "finite"):
        assert scaled[name] == plain[name], name
    for name in ("mean", "median", "minimum", "upper_quartile", "abs_mean"):
        assert scaled[name] == math.ldexp(plain[name], exponent), name


def test_largest_and_smallest_float64_give_no_warning_and_no_nan():
    top = np.finfo(np.float64).max
    summary = named(stats.summarize(np.array([-top, top, top, top])), stats.SUMMARY)
    assert summary["median"] == top
    assert summary["lower_quartile"] == pytest.approx(top / 2)
    assert summary["variance"] == math.inf
    assert summary["skewness"] == pytest.approx(-2 / math.sqrt(3))
    assert stats.sample(np.full(9, top)) == (top, top, 0.0, 1.0)

    bottom = np.array([0.0, 0.0, 0.0, 5e-324])
    summary = named(stats.summarize(bottom), stats.SUMMARY)
    assert summary["maximum"] == 5e-324
    assert summary["skewness"] == pytest.approx(2 / math.sqrt(3))


@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -3.0, 1e6, 1e-41, 5e-324])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 20_001])
def test_constant_has_no_variance_and_no_shape(size, dtype, value):
    tensor = np.full(size, value, dtype)
    summary = named(stats.summarize(tensor), stats.SUMMARY)
    stored = float(tensor[0])
    for name in ("mean", "median", "minimum", "maximum", "lower_quartile"):
        assert summary[name] == stored, name
    assert summary["upper_quartile"] == stored
    assert summary["variance"] == 0.0
    assert math.isnan(summary["skewness"])
    assert math.isnan(summary["kurtosis"])
    assert summary["abs_mean"] == abs(stored)
    assert summary["zero_ratio"] == float(stored == 0.0)
    assert_both_agree(tensor)


@pytest.mark.parametrize("zeros", [[0.0] * 3, [-0.0] * 3, [-0.0, 0.0, -0.0]], ids=str)
def test_negative_zero_counts_as_zero_and_is_never_reported(zeros):
    tensor = np.array(zeros, np.float32)
    for values in (stats.summarize(tensor), stats.sample(tensor)):
        assert all(math.copysign(1.0, x) == 1.0 for x in values if not math.isnan(x))
    assert named(stats.summarize(tensor), stats.SUMMARY)["zero_ratio"] == 1.0
    assert stats.sample(tensor) == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("bad", NOT_FINITE, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_non_finite_elements_are_reported_and_left_out(dtype, bad):
    good = heavy_tails(100_000)
    mixed = np.concatenate([good[:13], bad, good[13:], bad]).astype(dtype)
    assert stats.summarize(mixed)[-1] == 0.0
    assert stats.sample(mixed)[-1] == 0.0
    assert_both_agree(mixed)
    assert stats.summarize(mixed)[:-1] == stats.summarize(good.astype(dtype))[:-1]


@pytest.mark.parametrize("bad", NOT_FINITE, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_only_non_finite_elements_give_nan_everywhere(dtype, bad):
    for values in (
        stats.summarize(np.array(bad, dtype)),
        stats.sample(np.array(bad, dtype)),
    ):
        assert all(math.isnan(value) for value in values[:-1])
        assert values[-1] == 0.0


def test_empty_tensor_is_finite_and_nothing_else():
    for values in (stats.summarize(np.empty(0)), stats.sample(np.empty((3, 0)))):
        assert all(math.isnan(value) for value in values[:-1])
        assert values[-1] == 1.0


def test_signaling_nan_gives_no_warning():
    signaling = np.array([0x7F800001, 0x3F800000], np.uint32).view(np.float32)
    for tensor in (signaling, np.array([0x7C01, 0x3C00], np.uint16).view(np.float16)):
        assert stats.summarize(tensor)[-1] == 0.0
        assert stats.sample(tensor) == (1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: x[::-1],
        lambda x: x.reshape(30, 40).T,
        lambda x: x.reshape(30, 40)[3:9, ::7],
        lambda x: x.reshape(2, 3, 200).transpose(2, 0, 1),
        lambda x: np.broadcast_to(x[:5], (4, 5)),
        lambda x: x.astype(">f4"),
    ],
    ids=[
        "strided",
        "reversed",
        "transposed",
        "window",
        "permuted",
        "broadcast",
        "swapped",
    ],
)
def test_memory_layout_does_not_matter(view):
    tensor = view(heavy_tails(1200).astype(np.float32))
    assert_both_agree(tensor)
    copied = np.ascontiguousarray(tensor)
    assert stats.summarize(tensor) == stats.summarize(copied)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_read_only_tensor_is_measured_and_never_modified(dtype):
    tensor = heavy_tails(10_000).astype(dtype)
    before = tensor.copy()
    stats.summarize(tensor)
    stats.sample(tensor)
    assert tensor.tobytes() == before.tobytes()
    tensor.flags.writeable = False
    assert_both_agree(tensor)


def test_same_tensor_gives_the_same_numbers():
    tensor = heavy_tails(50_000).astype(np.float32)
    assert stats.summarize(tensor) == stats.summarize(tensor.copy())
    assert stats.sample(tensor) == stats.sample(tensor.copy())


def test_order_of_elements_does_not_matter_to_the_summary():
    tensor = heavy_tails(50_000).astype(np.float32)
    shuffled = np.random.default_rng(0).permutation(tensor)
    assert stats.summarize(shuffled) == stats.summarize(tensor)


def test_sample_and_summary_agree_where_they_overlap():
    tensor = heavy_tails(200_000).astype(np.float32)
    summary = named(stats.summarize(tensor), stats.SUMMARY)
    sampled = named(stats.sample(tensor), stats.SAMPLE)
    assert sampled["abs_mean"] == pytest.approx(summary["abs_mean"], rel=1e-12)
    assert sampled["zero_ratio"] == summary["zero_ratio"]
    assert sampled["abs_max"] == max(-summary["minimum"], summary["maximum"])


@pytest.mark.parametrize(
    "tensor",
    [
        np.ones(2, np.complex64),
        np.ones(2, np.longdouble),
        np.array(["a"]),
        np.array([None]),
        np.zeros(2, "datetime64[s]"),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
@pytest.mark.parametrize("function", [stats.summarize, stats.sample])
def test_what_is_not_a_real_number_is_refused(function, tensor):
    with pytest.raises(TypeError, match="`tensor` must hold real numbers") as error:
        function(tensor)
    assert str(tensor.dtype) in str(error.value)


class TestSubsample:
    """Above `MAX_SORTED` elements, here lowered to keep the tensors small."""

    @pytest.fixture(autouse=True)
    def _lower_the_limit(self, monkeypatch):
        monkeypatch.setattr(stats, "MAX_SORTED", 30_000)

    def test_at_the_limit_every_element_counts(self):
        assert_both_agree(heavy_tails(30_000).astype(np.float32))

    @pytest.mark.parametrize("size", [30_001, 60_000, 90_090, 300_300])
    def test_quantiles_shares_and_mean_are_within_the_documented_error(self, size):
        tensor = heavy_tails(size).astype(np.float32)
        actual = named(stats.summarize(tensor), stats.SUMMARY)
        expected = reference.summarize(tensor)
        kept = len(stats._subsample(tensor))
        error = 4 / math.sqrt(kept)
        assert 5_000 < kept <= 30_000
        assert abs(actual["zero_ratio"] - expected["zero_ratio"]) < 0.5 * error
        spread = math.sqrt(expected["variance"])
        assert abs(actual["mean"] - expected["mean"]) < error * spread
        assert abs(actual["abs_mean"] - expected["abs_mean"]) < error * spread
        for name, share in (("lower_quartile", 0.25), ("upper_quartile", 0.75)):
            assert abs(np.mean(tensor <= actual[name]) - share) < 0.5 * error, name

    @pytest.mark.parametrize("place", [0, 1, 2, 3, 59_998, 59_999])
    def test_extremes_and_finiteness_cover_every_element(self, place):
        tensor = heavy_tails(60_000).astype(np.float32)
        for value, name in ((1e9, "maximum"), (-1e9, "minimum")):
            tensor[place] = value
            assert named(stats.summarize(tensor), stats.SUMMARY)[name] == value
        for value in (math.nan, math.inf, -math.inf):
            tensor[place] = value
            summary = named(stats.summarize(tensor), stats.SUMMARY)
            rest = np.delete(tensor, place)
            assert summary["finite"] == 0.0
            assert summary["minimum"] == rest.min()
            assert summary["maximum"] == rest.max()
            assert math.isfinite(summary["mean"])

    def test_no_finite_element_was_kept(self):
        tensor = np.full(60_000, math.nan, np.float32)
        tensor[1] = 2.0
        summary = named(stats.summarize(tensor), stats.SUMMARY)
        assert (summary["minimum"], summary["maximum"]) == (2.0, 2.0)
        assert math.isnan(summary["mean"])
        assert summary["finite"] == 0.0

    def test_columns_of_a_matrix_are_all_seen(self):
        columns = np.tile(np.arange(64, dtype=np.float32), (1_000, 1))
        summary = named(stats.summarize(columns), stats.SUMMARY)
        assert summary["mean"] == pytest.approx(31.5, abs=0.05)
        assert summary["zero_ratio"] == pytest.approx(1 / 64, rel=0.01)

    def test_sample_counts_every_element(self):
        tensor = np.zeros(60_000, np.float32)
        tensor[1] = 6.0
        assert stats.sample(tensor) == pytest.approx((1e-4, 6.0, 59_999 / 60_000, 1.0))


def test_tensor_past_the_real_limit():
    tensor = np.zeros(stats.MAX_SORTED + 2, np.int8)
    tensor[1::2] = 1
    tensor[5] = -7
    summary = named(stats.summarize(tensor), stats.SUMMARY)
    assert summary["mean"] == pytest.approx(0.5, abs=1e-3)
    assert summary["zero_ratio"] == pytest.approx(0.5, abs=1e-3)
    assert (summary["minimum"], summary["maximum"]) == (-7.0, 1.0)


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 20_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tensors_of_one_size_are_measured_together_as_each_alone(size, dtype):
    tensors = [make(size).astype(dtype) for make in DISTRIBUTIONS.values()]
    tensors += [np.zeros(size, dtype), np.full(size, -3.0, dtype), -tensors[0]]
    tensors += [np.full(size, value, dtype) for value in (math.nan, math.inf)]
    tensors += [None, np.zeros(0, dtype), np.arange(size), tensors[0][:1]]
    broken = tensors[0].copy()
    broken[-1] = -math.inf
    tensors.append(broken)

    summaries = many_stats.summarize_all(tensors)
    samples = many_stats.sample_all(tensors)

    assert summaries.shape == (len(tensors), len(stats.SUMMARY))
    for tensor, summary, sample in zip(tensors, summaries, samples, strict=True):
        if tensor is None:
            assert np.isnan(summary).all()
            assert np.isnan(sample).all()
            continue
        assert_close(
            named(tuple(summary.tolist()), stats.SUMMARY), reference.summarize(tensor)
        )
        assert_close(
            named(tuple(sample.tolist()), stats.SAMPLE), reference.sample(tensor)
        )


def test_many_tensors_of_one_size_are_taken_in_portions(monkeypatch):
    monkeypatch.setattr(many_stats, "_MAX_ROWS_ELEMENTS", 30)
    tensors = list(np.random.default_rng(0).normal(size=(11, 7)))
    for row, tensor in zip(many_stats.sample_all(tensors), tensors, strict=True):
        assert row.tolist() == pytest.approx(stats.sample(tensor), rel=1e-12)


def test_no_tensors_make_an_empty_table():
    assert many_stats.summarize_all([]).shape == (0, len(stats.SUMMARY))
