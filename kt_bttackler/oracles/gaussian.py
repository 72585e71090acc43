"""Gaussian process regression, small and fast: numpy and scipy only.

A Matern-5/2 kernel with a length scale for each group of columns, a signal variance
and a noise variance, chosen by maximum a posteriori with analytic gradients
(Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, sections 2.2,
4.2 and 5.4.1). Targets have zero mean; `warp` makes such targets of any finite scores.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_ROOT5 = np.sqrt(5.0)
_LARGEST = 1e100  # squares and differences of it are finite
_WORSE_BOUND, _BETTER_BOUND = 3.0, 20.0

# Means and deviations of the normal priors of the logarithms. Length scales grow with
# the root of the dimension, as distances do (Hvarfner et al., "Vanilla Bayesian
# Optimization Performs Great in High Dimensions", ICML'24, section 4).
_LENGTH_MEAN, _LENGTH_DEVIATION = np.log(0.5), 1.0
_SIGNAL_MEAN, _SIGNAL_DEVIATION = 0.0, 1.0
_NOISE_DEVIATION = 2.0
_LENGTH_BOUNDS = (np.log(1e-2), np.log(1e3))
_SIGNAL_BOUNDS = (np.log(1e-2), np.log(1e2))
# From next to nothing to all of the variance of the targets.
_NOISE_BOUNDS = (np.log(1e-8), 0.0)


def warp(scores: ArrayLike) -> Array:
    """Targets of zero mean and unit variance that no single score can dominate.

    Deviations from the median, z in units of the median deviation, become
    c z / (c + |z|), with c = 3 for scores worse than the median and 20 for better ones.
    The order stays. A huge score, the imputed worst one of a diverged training above
    all, ends a few deviations from the others instead of making them all look equal;
    what lies among the better half, where the optimum is, keeps its proportions almost.
    Ranks would be as robust, but would blow up the noise between scores that are
    all but equal.

    Args:
        scores: [n] finite, the smaller the better.
    """
    clipped = np.clip(np.asarray(scores, dtype=np.float64), -_LARGEST, _LARGEST)
    deviations = clipped - np.median(clipped)
    sizes = np.abs(deviations)
    if not sizes.any():
        return np.zeros(sizes.shape)
    spread = np.median(sizes)
    if spread == 0.0:
        # More than half are equal: the others tell, the better ones if there are any.
        others = deviations < 0 if (deviations < 0).any() else deviations > 0
        spread = np.median(sizes[others])
    bound = np.where(deviations > 0, _WORSE_BOUND, _BETTER_BOUND)
    # In this form neither a spread next to nothing nor a huge size overflows.
    compressed = bound * deviations / (bound * spread + sizes)
    centred: Array = compressed - compressed.mean()
    return np.asarray(centred / centred.std())


@dataclasses.dataclass(frozen=True)
class GaussianProcess:
    """A Gaussian process given the targets at some points.

    Attributes:
        x: [n, columns] points.
        y: [n] targets, of zero mean.
        groups: [columns] which length scale each column has.
        length_scales: [groups].
        signal: variance of the function.
        noise: variance of the noise in the targets.
    """

    x: Array
    y: Array
    groups: NDArray[np.intp]
    length_scales: Array
    signal: float
    noise: float

    @functools.cached_property
    def _scales(self) -> Array:
        """[columns]."""
        scales: Array = self.length_scales[self.groups]
        return scales

    @functools.cached_property
    def _factor(self) -> Array:
        """[n, n] lower Cholesky factor of the covariance of the targets."""
        covariance = self._covariance(self.x)
        covariance[np.diag_indices_from(covariance)] += self.noise
        return cholesky(covariance)

    @functools.cached_property
    def _weights(self) -> Array:
        """[n] inverse of the covariance times the targets."""
        weights: Array = scipy.linalg.cho_solve((self._factor, True), self.y)
        return weights

    def _covariance(self, points: Array) -> Array:
        """[n, m] covariance of the function at `x` and at `points` [m, columns]."""
        ours, theirs = self.x / self._scales, points / self._scales
        squares = (ours**2).sum(axis=1)[:, None] + (theirs**2).sum(axis=1)
        squares -= 2.0 * ours @ theirs.T
        value, _ = _matern(np.sqrt(np.maximum(squares, 0.0)))
        return self.signal * value

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the function, without the noise.

        Args:
            points: [m, columns].

        Returns:
            [m] means and [m] standard deviations.
        """
        covariance = self._covariance(points)
        whitened = scipy.linalg.solve_triangular(
            self._factor, covariance, lower=True, check_finite=False
        )
        variance = self.signal - (whitened**2).sum(axis=0)
        return covariance.T @ self._weights, np.sqrt(np.maximum(variance, 0.0))

    def slopes(self, point: Array) -> tuple[float, float, Array, Array]:
        """What `predict` says of one point, and how it changes there.

        Args:
            point: [columns].

        Returns:
            Mean, standard deviation, and the [columns] derivatives of each.
        """
        offsets = (point - self.x) / self._scales
        value, slope = _matern(np.sqrt((offsets**2).sum(axis=1)))
        covariance = self.signal * value
        solved = scipy.linalg.cho_solve(
            (self._factor, True), covariance, check_finite=False
        )
        deviation = np.sqrt(max(self.signal - covariance @ solved, 1e-18))
        # d covariance / d point: [n, columns].
        slopes = self.signal * slope[:, None] * offsets / self._scales
        return (
            float(covariance @ self._weights),
            float(deviation),
            self._weights @ slopes,
            solved @ slopes / -deviation,
        )

    def with_expected(self, points: Array) -> GaussianProcess:
        """The process as if what it expects had been seen at `points` [m, columns].

        The mean stays as it is, but there is nothing left to learn there: so trials
        that are running are taken into account (Desautels et al., "Parallelizing
        Exploration-Exploitation Tradeoffs with Gaussian Process Bandit Optimization",
        JMLR 2014, section 4).
        """
        if not len(points):
            return self
        expected, _ = self.predict(points)
        return dataclasses.replace(
            self,
            x=np.concatenate([self.x, points]),
            y=np.concatenate([self.y, expected]),
        )


def fit(
    x: Array, y: Array, groups: NDArray[np.intp], expected_noise: float = 1e-4
) -> GaussianProcess:
    """The Gaussian process whose hyperparameters are the most probable ones.

    Args:
        x: [n, columns] points in about a unit cube.
        y: [n] targets of about zero mean and unit variance.
        groups: [columns] which length scale each column has.
        expected_noise: variance of the noise that is most probable beforehand.
    """
    count = int(groups.max(initial=-1)) + 1
    noise = np.clip(np.log(max(expected_noise, 1e-300)), *_NOISE_BOUNDS)
    posterior = _Posterior(x, y, groups, count, float(noise))
    bounds = [_LENGTH_BOUNDS] * count + [_SIGNAL_BOUNDS, _NOISE_BOUNDS]
    # The second start explains the targets by short scales, the third by noise.
    starts = [posterior.means, posterior.means.copy(), posterior.means.copy()]
    starts[1][:count] -= 1.5
    starts[2][-1] = np.log(0.3)
    found = [
        scipy.optimize.minimize(
            posterior,
            start,
            jac=True,
            bounds=bounds,
            method="L-BFGS-B",
            options={"maxiter": 40},
        )
        for start in starts
    ]
    best = np.exp(min(found, key=lambda result: float(result.fun)).x)
    return GaussianProcess(
        x, y, groups, best[:count], float(best[count]), float(best[count + 1])
    )


class _Posterior:
    """Negative log posterior of the logarithms of length scales, signal and noise."""

    def __init__(
        self,
        x: Array,
        y: Array,
        groups: NDArray[np.intp],
        count: int,
        noise_mean: float = 0.0,
    ) -> None:
        self._y = y
        squares = np.zeros((count, len(x), len(x)))
        for column, group in zip(x.T, groups, strict=True):
            squares[group] += (column[:, None] - column) ** 2
        self._squares = squares.reshape(count, len(x) ** 2)
        length_mean = _LENGTH_MEAN + 0.5 * np.log(max(count, 1))
        self.means = np.append(np.full(count, length_mean), [_SIGNAL_MEAN, noise_mean])
        self._deviations = np.append(
            np.full(count, _LENGTH_DEVIATION), [_SIGNAL_DEVIATION, _NOISE_DEVIATION]
        )

    def __call__(self, logarithms: Array) -> tuple[float, Array]:
        """The value and its gradient."""
        likelihood, gradient = self.log_likelihood(logarithms)
        scaled = (logarithms - self.means) / self._deviations
        value = 0.5 * float(scaled @ scaled) - likelihood
        return value, scaled / self._deviations - gradient

    def log_likelihood(self, logarithms: Array) -> tuple[float, Array]:
        """Log marginal likelihood and its gradient, equations 2.30 and 5.9."""
        n = len(self._y)
        inverse_squares = np.exp(-2.0 * logarithms[:-2])
        signal, noise = np.exp(logarithms[-2:])
        distances = np.sqrt(inverse_squares @ self._squares)
        value, slope = _matern(distances)
        covariance = (signal * value).reshape(n, n)
        covariance[np.diag_indices(n)] += noise
        factor = cholesky(covariance)
        weights = scipy.linalg.cho_solve((factor, True), self._y, check_finite=False)
        log_determinant = 2.0 * np.log(np.diag(factor)).sum()
        likelihood = -0.5 * (
            self._y @ weights + log_determinant + n * np.log(2.0 * np.pi)
        )
        inverse = scipy.linalg.cho_solve((factor, True), np.eye(n), check_finite=False)
        # Half the derivative of the likelihood by each entry of the covariance.
        pull = 0.5 * (np.outer(weights, weights) - inverse)
        flat = pull.ravel()
        lengths = -signal * inverse_squares * (self._squares @ (flat * slope))
        by_signal = signal * (flat @ value)
        by_noise = noise * np.trace(pull)
        return float(likelihood), np.append(lengths, [by_signal, by_noise])


def log_expected_improvement(
    mean: ArrayLike, deviation: ArrayLike, best: float
) -> tuple[Array, Array, Array]:
    """Logarithm of how far below `best` a normal variable lies on average.

    A point where no improvement is to be expected has a logarithm and a slope still
    (Ament et al., "Unexpected Improvements to Expected Improvement", NeurIPS 2023,
    section 4.1).

    Args:
        mean: [n] means.
        deviation: [n] standard deviations, positive.
        best: what is to be improved on.

    Returns:
        [n] logarithms, and their derivatives by mean and by deviation.
    """
    deviation = np.asarray(deviation, dtype=np.float64)
    z = (best - np.asarray(mean, dtype=np.float64)) / deviation
    # Phi / phi, where phi is not lost to rounding, and (phi + z Phi) / phi.
    low = np.minimum(z, -1.0)
    tail = np.sqrt(np.pi / 2.0) * scipy.special.erfcx(-low / np.sqrt(2.0))
    rest = np.maximum(1.0 + low * tail, 1e-300)
    log_density = -0.5 * (z**2 + np.log(2.0 * np.pi))
    high = np.maximum(z, -1.0)
    density, below = np.exp(log_density), scipy.special.ndtr(high)
    whole = np.exp(-0.5 * high**2) / np.sqrt(2.0 * np.pi) + high * below
    is_low = z < -1.0
    logarithm = np.log(deviation) + np.where(
        is_low, log_density + np.log(rest), np.log(whole)
    )
    by_mean = np.where(is_low, tail / rest, below / whole) / -deviation
    by_deviation = np.where(is_low, 1.0 / rest, density / whole) / deviation
    return logarithm, by_mean, by_deviation


def log_likelihood(
    x: Array, y: Array, groups: NDArray[np.intp], logarithms: Array
) -> tuple[float, Array]:
    """Log marginal likelihood of hyperparameters, and its gradient.

    Args:
        x: [n, columns] points.
        y: [n] targets.
        groups: [columns] which length scale each column has.
        logarithms: [groups + 2] of the length scales, the signal and the noise.
    """
    return _Posterior(x, y, groups, len(logarithms) - 2).log_likelihood(logarithms)


def cholesky(covariance: Array) -> Array:
    """Lower Cholesky factor; adds as little to the diagonal as makes it work."""
    jitter = 0.0
    scale = float(np.diag(covariance).mean())
    while True:
        try:
            factor: Array = scipy.linalg.cholesky(
                covariance + jitter * np.eye(len(covariance)),
                lower=True,
                check_finite=False,
            )
            return factor
        except np.linalg.LinAlgError:
            if jitter > scale:
                raise
            jitter = max(10.0 * jitter, 1e-10 * scale)


def _matern(distances: Array) -> tuple[Array, Array]:
    """Matern-5/2 at scaled distances r, and its derivative by r divided by r."""
    scaled = _ROOT5 * distances
    decay = np.exp(-scaled)
    linear = 1.0 + scaled
    return (linear + scaled**2 / 3.0) * decay, -5.0 / 3.0 * linear * decay
