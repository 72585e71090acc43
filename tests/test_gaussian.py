"""Tests of `kt_bttackler.oracles.gaussian`: numbers only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from kt_bttackler.oracles import gaussian
from kt_bttackler.oracles.gaussian import GaussianProcess

RANDOM = np.random.default_rng(0)
X = RANDOM.random((12, 3))
Y = np.sin(5.0 * X[:, 0]) + X[:, 1] ** 2
POINTS = RANDOM.random((5, 3))
OWN_SCALES = np.arange(3)
LENGTHS = np.array([0.4, 1.2, 3.0])
PROCESS = GaussianProcess(X, Y, OWN_SCALES, LENGTHS, signal=1.7, noise=0.01)


def reference() -> GaussianProcessRegressor:
    """scikit-learn's process with the hyperparameters of `PROCESS`."""
    kernel = ConstantKernel(1.7) * Matern(LENGTHS, nu=2.5)
    model = GaussianProcessRegressor(kernel, alpha=0.01, optimizer=None)
    return model.fit(X, Y)


def slopes(function: Any, at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Derivatives by central differences."""
    return np.array(
        [
            (function(at + step * unit) - function(at - step * unit)) / (2.0 * step)
            for unit in np.eye(len(at))
        ]
    )


# --- the process ---------------------------------------------------------------------


def test_predictions_are_those_of_scikit_learn() -> None:
    mean, deviation = PROCESS.predict(POINTS)
    theirs = reference().predict(POINTS, return_std=True)
    assert mean == pytest.approx(theirs[0], abs=1e-10)
    assert deviation == pytest.approx(theirs[1], abs=1e-10)


def test_the_likelihood_is_that_of_scikit_learn() -> None:
    logarithms = np.log([*LENGTHS, 1.7, 0.01])
    value, gradient = gaussian.log_likelihood(X, Y, OWN_SCALES, logarithms)
    assert value == pytest.approx(reference().log_marginal_likelihood_value_)
    kernel = ConstantKernel(1.7) * Matern(LENGTHS, nu=2.5) + WhiteKernel(0.01)
    theirs = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(X, Y)
    _, slope = theirs.log_marginal_likelihood(theirs.kernel_.theta, eval_gradient=True)
    # scikit-learn has the signal first.
    assert gradient == pytest.approx(slope[[1, 2, 3, 0, 4]])


@pytest.mark.parametrize("groups", [[0, 1, 2], [0, 0, 1], [0, 0, 0]])
def test_the_gradient_of_the_likelihood(groups: list[int]) -> None:
    logarithms = RANDOM.normal(size=max(groups) + 3)

    def likelihood(at: np.ndarray) -> float:
        return gaussian.log_likelihood(X, Y, np.array(groups), at)[0]

    _, gradient = gaussian.log_likelihood(X, Y, np.array(groups), logarithms)
    assert gradient == pytest.approx(slopes(likelihood, logarithms), rel=1e-5)


def test_the_slopes_of_mean_and_deviation() -> None:
    for point in POINTS:
        mean, deviation, by_mean, by_deviation = PROCESS.slopes(point)
        assert (mean, deviation) == pytest.approx(
            tuple(np.concatenate(PROCESS.predict(point[None])))
        )
        for place, analytic in ((0, by_mean), (1, by_deviation)):
            numeric = slopes(lambda at, p=place: PROCESS.predict(at[None])[p][0], point)
            assert analytic == pytest.approx(numeric, rel=1e-4, abs=1e-7)


def test_at_a_point_that_was_seen_there_is_no_slope_of_a_norm_to_divide_by() -> None:
    mean, deviation, by_mean, by_deviation = PROCESS.slopes(X[0])
    assert np.isfinite([mean, deviation, *by_mean, *by_deviation]).all()


def test_what_is_expected_changes_no_mean_and_leaves_nothing_to_learn() -> None:
    after = PROCESS.with_expected(POINTS)
    everywhere = RANDOM.random((20, 3))
    before = PROCESS.predict(everywhere)
    assert after.predict(everywhere)[0] == pytest.approx(before[0], abs=1e-8)
    assert (after.predict(everywhere)[1] <= before[1] + 1e-12).all()
    assert (after.predict(POINTS)[1] < 0.2).all()
    assert PROCESS.with_expected(np.empty((0, 3))) is PROCESS


# --- the fit -------------------------------------------------------------------------


def test_a_column_without_influence_gets_a_long_scale() -> None:
    x = RANDOM.random((40, 3))
    process = gaussian.fit(x, gaussian.warp(np.sin(6.0 * x[:, 1])), OWN_SCALES)
    assert process.length_scales[1] < 0.5 * process.length_scales[[0, 2]].min()


def test_the_noise_is_found() -> None:
    x = RANDOM.random((80, 1))
    clean = np.sin(6.0 * x[:, 0])
    noisy = clean + 0.5 * clean.std() * RANDOM.normal(size=80)
    groups = np.array([0])
    assert gaussian.fit(x, gaussian.warp(clean), groups).noise < 0.01
    assert 0.05 < gaussian.fit(x, gaussian.warp(noisy), groups).noise < 0.5
    few, scores = x[:4], gaussian.warp(noisy[:4])
    assert gaussian.fit(few, scores, groups, 0.1).noise > 0.01
    assert gaussian.fit(few, scores, groups, 1e-6).noise < 1e-4


def test_the_fit_predicts_what_it_has_not_seen() -> None:
    x, unseen = RANDOM.random((60, 3)), RANDOM.random((200, 3))

    def function(points: np.ndarray) -> np.ndarray:
        return np.sin(5.0 * points[:, 0]) + points[:, 1] ** 2

    y = function(x)
    process = gaussian.fit(x, (y - y.mean()) / y.std(), OWN_SCALES)
    mean, deviation = process.predict(unseen)
    errors = mean - (function(unseen) - y.mean()) / y.std()
    assert np.abs(errors).mean() < 0.05
    assert (np.abs(errors) < 4.0 * deviation + 1e-3).all()


@pytest.mark.parametrize(
    ("x", "scores"),
    [
        (np.full((1, 2), 0.5), [3.0]),
        (np.zeros((6, 2)), [1.0] * 6),
        (np.zeros((6, 2)), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        (np.repeat(RANDOM.random((3, 2)), 4, axis=0), np.arange(12.0)),
        (np.repeat(RANDOM.random((3, 2)), 4, axis=0), np.repeat([1.0, 2.0, 3.0], 4)),
        (RANDOM.random((9, 2)) * [1.0, 0.0], np.arange(9.0)),
        (RANDOM.random((9, 2)), [*np.arange(8.0), 1e10]),
        (RANDOM.random((9, 2)), [*np.arange(8.0), 1e308]),
        (RANDOM.random((9, 2)), [-1e308, *np.arange(7.0), 1e308]),
        (0.5 + 1e-12 * RANDOM.random((9, 2)), np.arange(9.0)),
        (np.empty((4, 0)), np.arange(4.0)),
    ],
    ids=[
        "one point",
        "one point again and again",
        "one point with different scores",
        "repeated points with different scores",
        "repeated points",
        "a constant column",
        "an outlier",
        "the largest number",
        "the largest numbers",
        "points next to each other",
        "no columns",
    ],
)
@pytest.mark.filterwarnings("error")
def test_degenerate_data_are_fitted(x: np.ndarray, scores: Any) -> None:
    groups = np.arange(x.shape[1])
    process = gaussian.fit(x, gaussian.warp(scores), groups, expected_noise=0.0)
    mean, deviation = process.predict(RANDOM.random((7, x.shape[1])))
    assert np.isfinite(mean).all()
    assert np.isfinite(deviation).all()
    assert (deviation >= 0.0).all()


def test_a_singular_matrix_has_a_factor() -> None:
    ones = np.ones((5, 5))
    factor = gaussian.cholesky(ones)
    assert factor @ factor.T == pytest.approx(ones, abs=1e-6)
    assert gaussian.cholesky(np.eye(2)) == pytest.approx(np.eye(2))


# --- the targets ---------------------------------------------------------------------


def test_targets_are_in_the_order_of_the_scores() -> None:
    scores = RANDOM.normal(size=50) ** 3
    targets = gaussian.warp(scores)
    assert (np.argsort(targets) == np.argsort(scores)).all()
    assert targets.mean() == pytest.approx(0.0, abs=1e-12)
    assert targets.std() == pytest.approx(1.0)


@pytest.mark.parametrize("huge", [1e3, 1e10, 1e150])
def test_a_huge_score_does_not_flatten_the_others(huge: float) -> None:
    scores = np.linspace(0.0, 1.0, 20)
    alone, beside = gaussian.warp(scores), gaussian.warp([*scores, huge])[:-1]
    assert np.ptp(beside) > 0.6 * np.ptp(alone)
    plain = np.array([*scores, huge])
    assert np.ptp((plain / plain.std())[:-1]) < 0.01 * np.ptp(alone)


def test_a_huge_good_score_leaves_the_others_apart() -> None:
    targets = gaussian.warp([*np.linspace(0.0, 1.0, 20), -1e10])
    assert targets.argmin() == 20
    assert np.ptp(targets[:-1]) > 0.3


def test_targets_do_not_depend_on_units() -> None:
    scores = RANDOM.normal(size=30)
    targets = gaussian.warp(scores)
    assert gaussian.warp(1e6 * scores - 3.0) == pytest.approx(targets)
    assert gaussian.warp(1e-6 * scores) == pytest.approx(targets)


def test_equal_scores_are_zero_targets() -> None:
    assert (gaussian.warp([2.0, 2.0, 2.0]) == 0.0).all()


def test_where_most_scores_are_equal_the_others_still_count() -> None:
    targets = gaussian.warp([*[1.0] * 10, 0.5, 1e9])
    assert targets[10] < targets[0] - 0.3
    assert targets[11] > targets[0] + 0.3


# --- the improvement -----------------------------------------------------------------


@pytest.mark.parametrize("z", [-30.0, -5.0, -1.1, -0.9, 0.0, 2.0, 30.0])
def test_the_expected_improvement_and_its_slopes(z: float) -> None:
    mean, deviation = 0.3, 0.7
    best = mean + z * deviation
    value, by_mean, by_deviation = gaussian.log_expected_improvement(
        mean, deviation, best
    )
    if abs(z) < 10:
        expected, _ = scipy.integrate.quad(
            lambda y: (best - y) * scipy.stats.norm.pdf(y, mean, deviation), -20, best
        )
        assert np.exp(value) == pytest.approx(expected, rel=1e-5)

    def logarithm(at: np.ndarray) -> float:
        return float(gaussian.log_expected_improvement(at[0], at[1], best)[0])

    numeric = slopes(logarithm, np.array([mean, deviation]))
    assert [by_mean, by_deviation] == pytest.approx(numeric, rel=1e-4, abs=1e-8)


@pytest.mark.filterwarnings("error")
def test_hopeless_points_have_an_order_still() -> None:
    means = np.array([1.0, 10.0, 1e3, 1e5])
    values, by_mean, by_deviation = gaussian.log_expected_improvement(means, 0.01, 0.0)
    assert (np.diff(values) < 0.0).all()
    assert np.isfinite([values, by_mean, by_deviation]).all()
