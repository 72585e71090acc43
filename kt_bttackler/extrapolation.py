"""What a learning curve will come to: forecasts that know how unsure they are.

A curve is given as quality, more is better, in units in which its worst value is 0 and
the level that it should reach is 1. The cheap ensemble is here, the eleven families of
Domhan et al. (IJCAI'15) are in `kt_bttackler.curve_families`.
"""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
from scipy.special import ndtr

# Differences below this, in the units of a forecast, are rounding.
SMALLEST = 1e-9
# Parameters of a family: level, slope and shape.
_PARAMETERS = 3
_RESAMPLES = 100
_REWEIGHTINGS = 4
# Families whose residuals are below this share of their late gain fit equally well.
_RESOLUTION = 0.02
# Share of its gain per doubling that a family may be wrong by at the next doubling. Put
# such that of curves that end 5 % of their rise above the level, at most one in twenty
# is taken for lost; the residuals alone promise far too much.
_DISTRUST = 0.5


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The value of a curve at a later epoch, as a mixture of normal distributions.

    Example:
        >>> forecast = Forecast(np.array([0.2, 0.4]), np.array([0.1, 0.1]), np.ones(2))
        >>> round(forecast.chance_above(0.3), 3)
        0.5
        >>> [round(end, 2) for end in forecast.interval(0.9)]
        [0.07, 0.53]

    Attributes:
        means: centre of each part, [K].
        spreads: standard deviation of each part, above 0, [K].
        weights: share of each part, in any unit, [K].
    """

    means: np.ndarray
    spreads: np.ndarray
    weights: np.ndarray

    def chance_above(self, level: float) -> float:
        """Probability of a value above `level`."""
        chances = ndtr((self.means - level) / self.spreads)
        return float(np.average(chances, weights=self.weights))

    def interval(self, coverage: float) -> tuple[float, float]:
        """The central interval that holds the value with probability `coverage`."""
        tail = (1 - coverage) / 2
        return self._level(1 - tail), self._level(tail)

    def _level(self, chance: float) -> float:
        """The level above which the value is with probability `chance`."""
        low = float(np.min(self.means - 10 * self.spreads))
        high = float(np.max(self.means + 10 * self.spreads))
        for _ in range(50):  # halves the range each time
            middle = (low + high) / 2
            if self.chance_above(middle) > chance:
                low = middle
            else:
                high = middle
        return (low + high) / 2


def fast_forecast(
    epochs: np.ndarray, values: np.ndarray, planned: int, deadline: float = math.inf
) -> Forecast:
    """Forecasts by three families: powers and logarithm, exponential, hyperbola.

    Each is `c + a g(x)` with one parameter in g, which comes from a grid, so that every
    fit is a closed form and none can fail to converge. Outliers are weighted down (soft
    L1), residuals are resampled for the uncertainty of the fit, and in every resample
    the families are weighted by AICc. They have equally many parameters, so that AICc
    compares their residuals. What is far ahead is believed less, see `distrust`.

    Args:
        epochs: x, absolute epochs, rising, [n], n >= 6.
        values: y, finite, [n].
        planned: E, the epoch to forecast.
        deadline: reading of `time.monotonic` at which to give up.

    Returns:
        The distribution of y(E), noise included.

    Raises:
        TimeoutError: the deadline has passed.

    Example:
        >>> epochs = np.arange(1.0, 11.0)
        >>> forecast = fast_forecast(epochs, 0.8 - 0.8 / epochs, planned=20)
        >>> forecast.chance_above(0.65) > 0.95, forecast.chance_above(1.0) < 0.05
        (True, True)
    """
    n = len(values)
    freedom = n / (n - _PARAMETERS)
    rows = np.random.default_rng(0).integers(0, n, size=(_RESAMPLES, n))
    wanted = wanted_epochs(epochs, planned)
    means, variances, scores = [], [], []
    for at_all in _shapes(np.concatenate([epochs, wanted]), epochs[-1]):
        check_time(deadline)
        shape, ahead = at_all[:n], at_all[n:]
        weights, curve = _robust_fit(shape, values)
        residuals = (values - curve) * math.sqrt(freedom)
        resamples = np.vstack([values, curve + residuals[rows]])
        level, slope, chosen, errors = _fit(shape, weights, resamples)
        start, now, end = level + slope * ahead[:, chosen]
        resolution = (_RESOLUTION * (now[0] - start[0])) ** 2 + SMALLEST**2
        doubt = distrust(now - start, epochs, planned)
        means.append(end)
        variances.append(errors * freedom + resolution + doubt**2)
        scores.append(n * np.log(errors + resolution))
    score = np.array(scores)
    shares = np.exp((score.min(axis=0) - score) / 2)
    shares /= shares.sum(axis=0)
    spreads = np.sqrt(np.array(variances))
    return Forecast(np.ravel(means), spreads.ravel(), shares.ravel())


def wanted_epochs(epochs: np.ndarray, planned: int) -> np.ndarray:
    """Where a forecast needs its families: before the late gain, now, at E, [3]."""
    return np.array([max(epochs[-1] / 2, epochs[0]), epochs[-1], planned])


def distrust(gain: np.ndarray, epochs: np.ndarray, planned: int) -> np.ndarray:
    """Standard deviation by which families may be wrong although they fit.

    A share of what the family says was gained while the epochs last doubled, for every
    doubling that is to come.

    Args:
        gain: what was gained between the first two of `wanted_epochs`, [K].
        epochs: x, [n].
        planned: E.
    """
    start, now, end = wanted_epochs(epochs, planned)
    doublings = math.log2(end / now) / math.log2(now / start)
    return np.asarray(_DISTRUST * doublings * np.abs(gain))


def check_time(deadline: float) -> None:
    """Gives up when the time is over.

    Args:
        deadline: reading of `time.monotonic`.

    Raises:
        TimeoutError: it is later than that.
    """
    if time.monotonic() > deadline:
        raise TimeoutError("the time for one decision is over")


def _shapes(x: np.ndarray, now: float) -> tuple[np.ndarray, ...]:
    """Of each family g(x) for every parameter of its grid, [M, G]."""
    x = x[:, None]
    power = np.hstack([np.log(x), -(x ** -np.geomspace(0.05, 4, 19))])
    exponential = -np.exp(-np.geomspace(0.2, 20, 20) * x / now)
    hyperbola = -1 / (1 + x / (np.geomspace(0.02, 5, 20) * now))
    return power, exponential, hyperbola


def _robust_fit(shape: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the points, [n], and the curve fitted with them, [n]."""
    weights = np.ones(len(values))
    curve = values
    for _ in range(_REWEIGHTINGS):
        level, slope, chosen, _ = _fit(shape, weights, values[None])
        curve = level + slope * shape[:, chosen[0]]
        residuals = values - curve
        scale = 2 * 1.4826 * float(np.median(np.abs(residuals)))
        weights = 1 / np.sqrt(1 + (residuals / max(scale, SMALLEST)) ** 2)
    return weights, curve


def _fit(
    shape: np.ndarray, weights: np.ndarray, curves: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weighted least squares of `level + slope * shape`, for many curves at once.

    Args:
        shape: g at the points for every parameter of the grid, [n, G].
        weights: of the points, [n].
        curves: [B, n].

    Returns:
        Level, slope, position of the parameter in the grid and mean squared error of
        the best fit to each curve, [B] each.
    """
    share = weights / weights.sum()
    centres = share @ shape
    around = shape - centres
    powers = np.maximum(share @ around**2, np.finfo(float).tiny)
    means = curves @ share
    rests = curves - means[:, None]
    slopes = (rests * share) @ around / powers
    errors = np.maximum((rests**2 @ share)[:, None] - slopes**2 * powers, 0.0)
    chosen = errors.argmin(axis=1)
    every = np.arange(len(curves))
    slope = slopes[every, chosen]
    return means - slope * centres[chosen], slope, chosen, errors[every, chosen]
