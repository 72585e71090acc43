"""The statistics of `kt_bttackler.stats` once more: slow, in float64, plain to read."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import numpy as np
import scipy.stats


def summarize(tensor: np.ndarray) -> dict[str, float]:
    """Summarizes all elements by numpy and scipy, one line a statistic."""
    everything = np.asarray(tensor).astype(np.float64).ravel()
    finite = float(np.isfinite(everything).all())
    x = everything[np.isfinite(everything)]
    names = "mean variance median minimum maximum lower_quartile upper_quartile "
    names += "skewness kurtosis zero_ratio abs_mean"
    if x.size == 0:
        return dict.fromkeys(names.split(), math.nan) | {"finite": finite}
    # Centred moments do not change under a shift; without it scipy itself loses the
    # digits of values such as 1e6 + 1e-2 * noise.
    near_zero = x - x[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns of constants
        skewness = float(scipy.stats.skew(near_zero, bias=True))
        kurtosis = float(scipy.stats.kurtosis(near_zero, bias=True, fisher=True))
    return {
        "mean": math.fsum(x) / x.size,
        "variance": float(np.var(near_zero)),
        "median": float(np.median(x)),
        "minimum": min(x.tolist()),
        "maximum": max(x.tolist()),
        "lower_quartile": float(np.quantile(x, 0.25, method="linear")),
        "upper_quartile": float(np.quantile(x, 0.75, method="linear")),
        "skewness": skewness,
        "kurtosis": kurtosis,
        "zero_ratio": sum(value == 0.0 for value in x.tolist()) / x.size,
        "abs_mean": math.fsum(abs(value) for value in x.tolist()) / x.size,
        "finite": finite,
    }


def sample(tensor: np.ndarray) -> dict[str, float]:
    """Measures all elements by plain Python."""
    everything = [float(value) for value in np.asarray(tensor).ravel().tolist()]
    sizes = [abs(value) for value in everything if math.isfinite(value)]
    finite = float(len(sizes) == len(everything))
    if not sizes:
        return dict.fromkeys(("abs_mean", "abs_max", "zero_ratio"), math.nan) | {
            "finite": finite
        }
    return {
        "abs_mean": math.fsum(sizes) / len(sizes),
        "abs_max": max(sizes),
        "zero_ratio": sizes.count(0.0) / len(sizes),
        "finite": finite,
    }


def exact_moments(tensor: np.ndarray) -> dict[str, float]:
    """Computes the moments in rational arithmetic, which never rounds."""
    x = [Fraction(value) for value in tensor.ravel().tolist()]
    mean = sum(x) / len(x)
    second, third, fourth = (
        sum((value - mean) ** power for value in x) / len(x) for power in (2, 3, 4)
    )
    # The only roundings are here. The ratios are taken before the root, so that the
    # moments of tiny values do not underflow.
    skewness = math.copysign(math.sqrt(third**2 / second**3), third)
    return {
        "mean": float(mean),
        "variance": float(second),
        "skewness": skewness,
        "kurtosis": float(fourth / second**2 - 3),
        "abs_mean": float(sum(abs(value) for value in x) / len(x)),
    }
