"""The eleven parametric families of learning curves of Domhan et al. (IJCAI'15).

`domhan_forecast` fits each by least squares, leaves out those that fit badly or stand
apart from the rest, and mixes the others by weights from a Markov chain, as the
curve-fitting assessor of NNI does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from kt_bttackler.extrapolation import (
    SMALLEST,
    Forecast,
    check_time,
    distrust,
    wanted_epochs,
)

# With fewer families that agree there is no forecast.
_MIN_FAMILIES = 4
_MAX_EVALUATIONS = 100
# A residual beyond is no fit, whatever its size.
_LARGEST = 1e3
# The curve is fitted as if it rose from here to there: some families never are 0.
_LOW, _HIGH = 0.1, 0.9
_CHAINS = 10
_STEPS = 200
_STEP = 0.05


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of learning curves.

    Attributes:
        curve: its values at epochs x; parameters that must be positive are given by
            their logarithm.
        start: parameters from which to fit a curve that rises from 0.1 to 0.9.
    """

    curve: Callable[..., Any]
    start: tuple[float, ...]


FAMILIES = {
    "vapor pressure": Family(
        lambda x, a, b, c: np.exp(a + b / x + c * np.log(x)), (0.0, -1.0, 0.0)
    ),
    "pow3": Family(
        lambda x, c, a, log_alpha: c - a * x ** -np.exp(log_alpha), (1.0, 1.0, -0.7)
    ),
    "log log linear": Family(
        lambda x, a, log_b: np.log(np.maximum(a * np.log(x) + np.exp(log_b), SMALLEST)),
        (0.5, 0.0),
    ),
    "hill3": Family(
        lambda x, limit, log_eta, log_kappa: (
            limit / (1 + (np.exp(log_kappa) / x) ** np.exp(log_eta))
        ),
        (1.0, 0.0, 1.0),
    ),
    "log power": Family(
        lambda x, a, b, log_c: a / (1 + (np.exp(b) / x) ** np.exp(log_c)),
        (1.0, 1.0, 0.0),
    ),
    "pow4": Family(
        lambda x, c, log_a, log_b, log_alpha: (
            c - (np.exp(log_a) * x + np.exp(log_b)) ** -np.exp(log_alpha)
        ),
        (1.2, 0.0, 0.0, -0.7),
    ),
    "mmf": Family(
        lambda x, alpha, beta, log_kappa, log_delta: (
            alpha - (alpha - beta) / (1 + (np.exp(log_kappa) * x) ** np.exp(log_delta))
        ),
        (1.0, 0.0, -1.2, 0.0),
    ),
    "exp4": Family(
        lambda x, c, log_a, b, log_alpha: (
            c - np.exp(b - np.exp(log_a) * x ** np.exp(log_alpha))
        ),
        (1.0, -1.2, 0.0, 0.0),
    ),
    "janoschek": Family(
        lambda x, alpha, beta, log_kappa, log_delta: (
            alpha - (alpha - beta) * np.exp(-np.exp(log_kappa) * x ** np.exp(log_delta))
        ),
        (1.0, 0.0, -1.2, 0.0),
    ),
    "weibull": Family(
        lambda x, alpha, beta, log_kappa, log_delta: (
            alpha
            - (alpha - beta) * np.exp(-((np.exp(log_kappa) * x) ** np.exp(log_delta)))
        ),
        (1.0, 0.0, -1.2, 0.0),
    ),
    # The paper's ln x has no inverse at x = 1.
    "ilog2": Family(lambda x, c, a: c - a / np.log(x + 1), (1.0, 0.5)),
}


def domhan_forecast(
    epochs: np.ndarray, values: np.ndarray, planned: int, deadline: float = math.inf
) -> Forecast | None:
    """Forecasts by the eleven families.

    Differs from NNI's assessor where that is at fault: every fit starts anew, from the
    same place, and one that fails is left out; families are compared with each other at
    E, where they will be used; the chains are seeded and walk far enough to matter; a
    curve may fall; and the families' disagreement and distance (`distrust`) give the
    probability that Domhan et al. decide by, in place of a bound on a mean.

    Args:
        epochs: x, absolute epochs, rising, [n], n >= 6.
        values: y, finite, [n].
        planned: E, the epoch to forecast.
        deadline: reading of `time.monotonic` at which to give up.

    Returns:
        The distribution of y(E), noise included; `None` when fewer than four families
        agree.

    Raises:
        TimeoutError: the deadline has passed.

    Example:
        >>> epochs = np.arange(1.0, 11.0)
        >>> forecast = domhan_forecast(epochs, 0.8 - 0.8 / epochs, planned=20)
        >>> forecast.chance_above(0.65) > 0.95, forecast.chance_above(1.0) < 0.05
        (True, True)
    """
    n, low = len(values), float(values.min())
    unit = (float(values.max()) - low) / (_HIGH - _LOW) or 1.0
    seen = _LOW + (values - low) / unit
    fitted = _fit_families(epochs, seen, planned, deadline)
    if len(fitted) < _MIN_FAMILIES:
        return None
    curves, ahead = fitted[:, :n], fitted[:, n:]
    weights = _family_weights(curves, seen, deadline)
    noise = np.mean((weights @ curves - seen) ** 2) * n / (n - 3) + SMALLEST**2
    start, now, end = ahead.T
    doubt = distrust(now - start, epochs, planned)
    means = low + unit * (end - _LOW)
    return Forecast(means, unit * np.sqrt(noise + doubt**2), weights)


def _fit_families(
    epochs: np.ndarray, seen: np.ndarray, planned: int, deadline: float
) -> np.ndarray:
    """Families that fit and agree, at the points and `wanted_epochs`, [K, n + 3]."""
    n = len(seen)
    wanted = np.concatenate([epochs, wanted_epochs(epochs, planned)])
    fitted = []
    for family in FAMILIES.values():
        check_time(deadline)
        curve = family.curve(wanted, *_least_squares(family, epochs, seen))
        error = np.mean((curve[:n] - seen) ** 2)
        if np.all(np.isfinite(curve)) and error < np.mean(seen) ** 2:
            fitted.append(curve)
    if not fitted:
        return np.empty((0, n + 3))
    curves = np.array(fitted)
    ends = curves[:, -1]
    apart = np.abs(ends - np.median(ends))
    return np.asarray(curves[apart <= n / 10 * np.std(ends) + SMALLEST])


def _least_squares(family: Family, epochs: np.ndarray, seen: np.ndarray) -> np.ndarray:
    def residuals(parameters: np.ndarray) -> np.ndarray:
        apart = family.curve(epochs, *parameters) - seen
        bounded = np.clip(np.nan_to_num(apart, nan=_LARGEST), -_LARGEST, _LARGEST)
        return np.asarray(bounded)

    found = least_squares(
        residuals, family.start, method="lm", max_nfev=_MAX_EVALUATIONS
    )
    return np.asarray(found.x)


def _family_weights(
    curves: np.ndarray, seen: np.ndarray, deadline: float
) -> np.ndarray:
    """Mean weights of the families over Metropolis chains, [K]; their sum is 1.

    The likelihood is that of normal residuals with their own mean square as variance.
    """
    n = len(seen)

    def log_likelihood(weights: np.ndarray) -> np.ndarray:
        squares: np.ndarray = np.mean((weights @ curves - seen) ** 2, axis=1)
        return np.asarray(-n / 2 * np.log(squares + 1e-6))

    draw = np.random.default_rng(0)
    weights = draw.uniform(size=(_CHAINS, len(curves)))
    weights /= weights.sum(axis=1, keepdims=True)
    likelihood = log_likelihood(weights)
    total = np.zeros(len(curves))
    for step in range(_STEPS):
        check_time(deadline)
        proposed = weights + _STEP * draw.normal(size=weights.shape)
        inside = np.all(proposed > 0, axis=1)
        proposed = np.abs(proposed) / np.abs(proposed).sum(axis=1, keepdims=True)
        new = np.where(inside, log_likelihood(proposed), -math.inf)
        moves = np.log(draw.uniform(size=_CHAINS)) < new - likelihood
        weights[moves], likelihood[moves] = proposed[moves], new[moves]
        if step >= _STEPS // 2:
            total += weights.sum(axis=0)
    return np.asarray(total / total.sum())
