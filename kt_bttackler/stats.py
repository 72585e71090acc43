"""Statistics of one tensor, from a single sort and a single pass.

Everything here is numpy on the host; nothing is computed in a model's graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

SUMMARY: tuple[str, ...] = (
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
"""What `summarize` returns: the ten statistics of BTTackler, then two of ours."""

SAMPLE: tuple[str, ...] = ("abs_mean", "abs_max", "zero_ratio", "finite")
"""What `sample` returns."""

MAX_SORTED = 10_000_000
"""Elements above which `summarize` sorts a strided subsample of the tensor."""

# `np.dot` of 10,000 elements or more wakes the threads of OpenBLAS, which then
# compete with training; 8192 also keeps the working set in a core's cache.
_DOT_CHUNK = 8_192
_SUM_CHUNK = 65_536


def summarize(tensor: np.ndarray) -> tuple[float, ...]:
    """Summarizes a tensor by the statistics named in `SUMMARY`, in that order.

    Moments are population moments (ddof 0), kurtosis is Fisher's (0 for a normal
    distribution), quartiles interpolate linearly, -0.0 counts as zero. `finite` is
    1.0 if every element is finite, else 0.0, and the other statistics then describe
    the finite elements alone. Statistics that do not exist are nan: all but `finite`
    without a finite element, skewness and kurtosis of a constant tensor.

    Results differ from exact arithmetic by at most 1e-9 of their own size or of the
    standard deviation, whichever is larger (1e-9 of max(1, size) for skewness and
    kurtosis). int64 beyond 2**53 is rounded to float64 first.

    A tensor of more than `MAX_SORTED` elements is represented by a fixed strided
    subsample; `minimum`, `maximum` and `finite` still cover every element. For m kept
    elements (between half a million and `MAX_SORTED`, mostly several million) and no
    pattern in the tensor that repeats with the stride, the standard error of the mean
    is sqrt(variance / m), that of a share or of the rank of a quantile at most
    0.5 / sqrt(m), below 1e-3. Variance, skewness and kurtosis of heavy tails converge
    more slowly, because the subsample misses most of the extremes.

    Args:
        tensor: Real numbers (float16 to float64, bfloat16, integers or booleans) of
            any shape and memory layout; not modified.

    Returns:
        One float per name in `SUMMARY`.

    Raises:
        TypeError: If the elements are not real numbers of at most 64 bits.

    Example:
        >>> summary = summarize(np.array([-3.0, 0.0, 0.0, 1.0, 7.0]))
        >>> for name, value in zip(SUMMARY, summary, strict=True):
        ...     print(f"{name:14} {value:7.4f}")
        mean            1.0000
        variance       10.8000
        median          0.0000
        minimum        -3.0000
        maximum         7.0000
        lower_quartile  0.0000
        upper_quartile  1.0000
        skewness        0.8453
        kurtosis       -0.3354
        zero_ratio      0.4000
        abs_mean        2.2000
        finite          1.0000
    """
    flat, dtype = _flatten(tensor)
    ordered = _subsample(flat).astype(dtype)
    ordered.sort()
    # -inf sorts first, inf and then nan last. The bounds need the array's own type:
    # a float64 bound would have `searchsorted` convert the whole array.
    first = ordered.searchsorted(dtype.type(-math.inf), side="right")
    last = ordered.searchsorted(dtype.type(math.inf), side="left")
    values = ordered[first:last]
    if flat.size > MAX_SORTED:
        minimum, maximum, finite = _extremes(flat, dtype)
    else:
        finite = values.size == ordered.size
        minimum = float(values[0]) if values.size else math.nan
        maximum = float(values[-1]) if values.size else math.nan
    if not values.size:
        unknown = dict.fromkeys(SUMMARY, math.nan)
        unknown |= {"minimum": minimum, "maximum": maximum, "finite": float(finite)}
        return tuple(unknown.values())

    median = _quantile(values, 0.5)
    mean, variance, skewness, kurtosis, zero_ratio, abs_mean = _moments(values, median)
    summary = (
        mean,
        variance,
        median,
        minimum,
        maximum,
        _quantile(values, 0.25),
        _quantile(values, 0.75),
        skewness,
        kurtosis,
        zero_ratio,
        abs_mean,
        float(finite),
    )
    return tuple(value + 0.0 for value in summary)  # without the sign of -0.0


def sample(tensor: np.ndarray) -> tuple[float, float, float, float]:
    """Measures a tensor by the statistics named in `SAMPLE`, in that order.

    This is the cheap measurement for sampled training steps: no sort, no copy beyond
    chunks, every element counted whatever the size. `finite` is 1.0 if every element
    is finite, else 0.0, and the other three then describe the finite elements alone;
    without any they are nan.

    Args:
        tensor: Real numbers of any shape and memory layout, as for `summarize`; not
            modified.

    Returns:
        Mean of |x|, maximum of |x|, share of zeros, and `finite`. The mean is within
        1e-9 of its own size; where a float64 cannot hold the sum, the maximum stands
        in for it.

    Raises:
        TypeError: If the elements are not real numbers of at most 64 bits.

    Example:
        >>> sample(np.array([0.0, -1.0, 3.0, 4.0, np.inf]))
        (2.0, 4.0, 0.25, 0.0)
    """
    flat, dtype = _flatten(tensor)
    count, zero, total, abs_max, finite = 0, 0, 0.0, math.nan, True
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, _SUM_CHUNK):
            chunk = flat[start : start + _SUM_CHUNK].astype(dtype, copy=False)
            magnitude = np.abs(chunk)
            largest = float(magnitude.max())  # nan if there is one
            if not math.isfinite(largest):
                finite = False
                magnitude = magnitude[np.isfinite(magnitude)]
                if not magnitude.size:
                    continue
                largest = float(magnitude.max())
            count += magnitude.size
            # Faster than to count the elements of a float array that are not zero.
            zero += int(np.count_nonzero(magnitude == 0))
            # `einsum` sums float64 twice as fast as `sum`; of at most a chunk, its
            # rounding stays below 1e-11.
            total += float(np.einsum("i->", magnitude.astype(np.float64, copy=False)))
            abs_max = largest if math.isnan(abs_max) else max(abs_max, largest)
    if not count:
        return math.nan, math.nan, math.nan, float(finite)
    return min(total / count, abs_max), abs_max, zero / count, float(finite)


def about_mean(
    first: Any, second: Any, third: Any, fourth: Any, constant: Any
) -> tuple[Any, Any, Any, Any]:
    """From moments about the median, numbers or arrays, to those about the mean.

    The two are never more than one standard deviation apart, so these differences
    keep their precision.

    Args:
        first: mean deviation from the median; the others are means of its powers.
        second: of its square.
        third: of its cube.
        fourth: of its fourth power.
        constant: all elements are the same.

    Returns:
        Mean less median, variance, skewness, Fisher kurtosis.
    """
    m2 = second - first**2
    m3 = third - 3 * first * second + 2 * first**3
    m4 = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    spread = np.where(constant, math.nan, m2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return first, m2, m3 / spread**1.5, m4 / spread**2 - 3.0


def _flatten(tensor: np.ndarray) -> tuple[np.ndarray, np.dtype]:
    """Returns the elements in memory order [n] and the float type that holds them."""
    flat = np.asarray(tensor).ravel(order="K")
    try:
        dtype = np.result_type(flat.dtype, np.float32)
    except TypeError:
        dtype = flat.dtype
    if dtype not in (np.float32, np.float64):
        raise TypeError(
            "`tensor` must hold real numbers of at most 64 bits, "
            f"got dtype {flat.dtype}."
        )
    return flat, dtype


def _subsample(flat: np.ndarray) -> np.ndarray:
    """Thins [n] to at most `MAX_SORTED` elements at equal distances.

    The stride shares no factor with n, hence with no dimension of the tensor: a
    stride of 2 would see every other column only of a matrix with an even width.
    """
    stride = -(-flat.size // MAX_SORTED)
    while stride > 1 and math.gcd(stride, flat.size) > 1:
        stride += 1
    return flat[:: max(stride, 1)]


def _chunks(flat: np.ndarray, dtype: np.dtype, finite: bool) -> Iterator[np.ndarray]:
    """Yields [n] piecewise as `dtype`, without non-finite elements unless `finite`."""
    for start in range(0, flat.size, _SUM_CHUNK):
        chunk = flat[start : start + _SUM_CHUNK].astype(dtype, copy=False)
        yield chunk if finite else chunk[np.isfinite(chunk)]


def _extremes(flat: np.ndarray, dtype: np.dtype) -> tuple[float, float, bool]:
    """Returns minimum and maximum of the finite elements, and if all are finite."""
    if not flat.size:
        return math.nan, math.nan, True
    # Both reductions return nan if there is one.
    ends = [(chunk.min(), chunk.max()) for chunk in _chunks(flat, dtype, finite=True)]
    finite = bool(np.isfinite(ends).all())
    if not finite:
        ends = [
            (chunk.min(), chunk.max())
            for chunk in _chunks(flat, dtype, finite=False)
            if chunk.size
        ]
    if not ends:
        return math.nan, math.nan, finite
    lows, highs = zip(*ends, strict=True)
    return float(min(lows)), float(max(highs)), finite


def _quantile(values: np.ndarray, share: float) -> float:
    """Interpolates linearly, in float64, between neighbours in sorted `values` [n]."""
    position = (values.size - 1) * share
    index = int(position)
    low = float(values[index])
    high = float(values[min(index + 1, values.size - 1)])
    # Weighting both ends cannot overflow as their difference can; clipping undoes
    # the rounding of the smallest numbers.
    value = low * (1.0 - (position - index)) + high * (position - index)
    return min(max(value, low), high)


def _moments(values: np.ndarray, median: float) -> tuple[float, ...]:
    """Measures sorted, finite, non-empty `values` [n] in one pass.

    Args:
        values: float32 or float64, ascending.
        median: Their median.

    Returns:
        Mean, variance, skewness, kurtosis, share of zeros, mean of |x|.
    """
    negative = int(values.searchsorted(values.dtype.type(0), side="left"))
    positive = values.size - int(
        values.searchsorted(values.dtype.type(0), side="right")
    )
    zero = values.size - negative - positive

    # Deviations are taken from the median, which is known before the pass, and in a
    # unit, a power of two, in which their fourth powers neither overflow nor vanish.
    largest = max(-float(values[0]), float(values[-1]))
    exponent = min(max(math.frexp(largest)[1], -1000), 1000)
    unit, per_unit = 2.0**exponent, 2.0**-exponent
    centre = median * per_unit
    below = _power_sums(values[:negative], centre, per_unit)
    above = _power_sums(values[values.size - positive :], centre, per_unit)
    first, second, third, fourth = (
        (low + zero * (-centre) ** power + high) / values.size
        for power, (low, high) in enumerate(zip(below, above, strict=True), start=1)
    )
    mean, variance, skewness, kurtosis = about_mean(
        first, second, third, fourth, values[0] == values[-1]
    )
    magnitudes = above[0] - below[0] + (positive - negative) * centre
    return (
        median + mean * unit,
        variance * unit * unit,
        float(skewness),
        float(kurtosis),
        zero / values.size,
        magnitudes / values.size * unit,
    )


def _power_sums(
    values: np.ndarray, centre: float, per_unit: float
) -> tuple[float, float, float, float]:
    """Sums the first four powers of `values * per_unit - centre` in float64."""
    first = second = third = fourth = 0.0
    for start in range(0, values.size, _DOT_CHUNK):
        deviation = values[start : start + _DOT_CHUNK].astype(np.float64)
        deviation *= per_unit
        deviation -= centre
        square = deviation * deviation
        first += float(deviation.sum())
        second += float(square.sum())
        third += float(np.dot(square, deviation))
        fourth += float(np.dot(square, square))
    return first, second, third, fourth
