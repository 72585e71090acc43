"""Bayesian optimisation with a Gaussian process that is fast and hard to mislead."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import keras_tuner
import numpy as np
import scipy.optimize
from keras_tuner.engine.trial import Trial, TrialStatus
from numpy.typing import NDArray
from scipy.stats import qmc
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from kt_bttackler.oracles import gaussian
from kt_bttackler.oracles.encoding import Space
from kt_bttackler.oracles.gaussian import Array, GaussianProcess
from kt_bttackler.oracles.mixin import DiagnosedOracleMixin
from kt_bttackler.oracles.requested import RequestsMixin, unrequested

_logger = logging.getLogger(__name__)

# A suggestion is the best of: random points, neighbours of the best trials, the best
# of all these moved along the gradient, and single steps from the winner.
_RANDOM = 1500
_NEIGHBOURS = 400
_PARENTS = 5
_REFINED = 5
_ROUNDS = 8
# KerasTuner's `beta`, with which the expected improvement is the textbook's.
_USUAL_BETA = 2.6
# More trials than this are thinned out: the time grows with their cube.
_MOST_TRIALS = 400


class _GaussianSearch(RequestsMixin, keras_tuner.oracles.BayesianOptimizationOracle):
    """The algorithm, for trials that are completed with finite scores or left out."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Suggests values for a new trial.

        Args:
            trial_id: id of the trial.

        Returns:
            "status" RUNNING and the "values" by name, or STOPPED when the space is
            exhausted.
        """
        try:
            # On one core, small matrices take no longer, and the sums are the same
            # on every machine: a resumed search suggests what it would have.
            with threadpool_limits(1, user_api="blas"):
                values = self._suggest()
        except Exception as error:
            # KerasTuner never releases the lock of an oracle that raised.
            _logger.warning("Trial %s is drawn at random: %r", trial_id, error)
            values = self._random_values()
        if values is None:
            return {"status": TrialStatus.STOPPED, "values": None}
        return {"status": TrialStatus.RUNNING, "values": values}

    def _suggest(self) -> dict[str, Any] | None:
        """Values that were not tried yet; None if there seem to be no more."""
        # After a reload they lie in the order in which a file system lists them.
        trials = [self.trials[key] for key in self.start_order if key in self.trials]
        # Everything follows from seed and trials, so that nothing is to be saved.
        seeds = [self.seed, len(trials)]
        random = np.random.default_rng(seeds)
        space = Space(
            self.hyperparameters.space,
            [dict(trial.hyperparameters.values) for trial in trials],
            [_unrequested(trial) for trial in trials],
        )
        is_ended = np.array([t.status == TrialStatus.COMPLETED for t in trials])
        default = max(3 * len(self.hyperparameters.space), 3)
        if is_ended.sum() < (self.num_initial_points or default):
            return self._first_new(space, self._spread(space, *seeds))
        sign = 1.0 if self.objective.direction == "min" else -1.0
        ended = np.flatnonzero(is_ended)
        scores = sign * np.array([trials[row].score for row in ended])
        chosen = _most_telling(scores)
        ended, scores = ended[chosen], scores[chosen]
        columns = space.columns(space.places, space.active)
        model = gaussian.fit(
            columns[ended], gaussian.warp(scores), space.groups, self.alpha
        )
        is_running = np.array([t.status == TrialStatus.RUNNING for t in trials])
        model = model.with_expected(columns[is_running])
        best = space.places[ended[np.argsort(scores, kind="stable")[:_PARENTS]]]
        acquisition = _Acquisition(space, model, self.beta / _USUAL_BETA)
        return self._first_new(space, acquisition.best_first(best, random))

    @staticmethod
    def _spread(space: Space, seed: int, number: int) -> Array:
        """Points of which the first is the next of an even series, the rest random."""
        points = space.draw(np.random.default_rng([seed, number]), _RANDOM)
        if space.dimensions:
            series = qmc.Sobol(len(space.dimensions), seed=seed)
            if number:
                series.fast_forward(number)
            points[:1] = space.snap(series.random(1))
        return points

    def _first_new(self, space: Space, points: Array) -> dict[str, Any] | None:
        """Values of the first of the points [n, dims] that was not tried."""
        for point in points:
            values = space.values(point)
            if not self._duplicate(values):
                return values
        return None


class BayesianOptimizationOracle(DiagnosedOracleMixin, _GaussianSearch):
    """Bayesian optimisation with a Gaussian process.

    It takes the arguments of `keras_tuner.oracles.BayesianOptimizationOracle`, and goes
    on with projects that were begun with that. It differs in this:

    - A suggestion takes a fraction of a second instead of many: gradients are analytic
      and candidates are judged together.
    - Scores that are NaN, infinite or huge attract nothing, and hide nothing.
    - Every hyperparameter has a length scale of its own, and how noisy the scores are
      is estimated.
    - Choices without order are at equal distances; hyperparameters in a scope that is
      closed, or that `build` did not ask for, do not matter.
    - The next point is the one of greatest expected improvement, where those that run
      are taken to score as expected. None is suggested twice: a small space ends when
      all of it was tried.
    - Equal seeds and results give equal suggestions, resumed or not.

    Args:
        objective: name of the objective, or a `keras_tuner.Objective`.
        max_trials: how many trials at most.
        num_initial_points: how many trials spread evenly over the space come first;
            by default three for each hyperparameter, and at least three.
        alpha: what variance of the noise of the scores is expected, where their own
            is 1; what it is they tell.
        beta: how much is explored: the deviations of the expected improvement are
            multiplied by `beta` / 2.6, so that the default is the improvement as it
            is expected. The larger, the more is explored.
        seed: seed of all random choices.
        hyperparameters: `keras_tuner.HyperParameters` known in advance.
        allow_new_entries: whether the model may ask for further ones.
        tune_new_entries: whether those are tuned, too.
        max_retries_per_trial: how often a trial that crashed is run again.
        max_consecutive_failed_trials: how many in a row end the search.
        stopped_value: what a stopped trial counts; see `DiagnosedOracleMixin`.
        avoid_diagnosed: turn proposals away that would very likely be stopped; see
            there.
    """


def _unrequested(trial: Trial) -> set[str] | None:
    """Names that a trial did not ask for; None if it did not come to its end."""
    return unrequested(trial) if trial.status == TrialStatus.COMPLETED else None


def _most_telling(scores: Array) -> NDArray[np.intp]:
    """Which trials to fit: all, or else the best half and the latest half."""
    if len(scores) <= _MOST_TRIALS:
        return np.arange(len(scores))
    half = _MOST_TRIALS // 2
    latest = np.arange(len(scores) - half, len(scores))
    best = np.argsort(scores[:-half], kind="stable")[:half]
    return np.sort(np.concatenate([best, latest]))


class _Acquisition:
    """Searches the space for the points that promise the greatest improvement.

    Args:
        space: the space.
        model: what is known of the scores.
        daring: by how much its standard deviations are multiplied.
    """

    def __init__(self, space: Space, model: GaussianProcess, daring: float) -> None:
        self._space, self._model = space, model
        self._daring = max(daring, 1e-3)
        # Not the best score: that may be good luck.
        self._best = float(model.predict(model.x)[0].min())

    def best_first(self, parents: Array, random: np.random.Generator) -> Array:
        """Promising points [n, dims], the best first.

        Args:
            parents: [m, dims] places of the best trials.
            random: source of randomness.
        """
        drawn = self._space.draw(random, _RANDOM)
        points = np.concatenate([drawn, self._neighbours(parents, random)])
        promises = self._promises(points)
        order = np.argsort(-promises, kind="stable")
        moved = self._space.snap(
            np.array([self._ascend(points[row]) for row in order[:_REFINED]])
        )
        points = np.concatenate([moved, points])
        promises = np.concatenate([self._promises(moved), promises])
        order = np.argsort(-promises, kind="stable")
        steps = list(self._climb(points[order[0]], promises[order[0]]))
        return np.concatenate([*steps[::-1], points[order]])

    def _promises(self, points: Array) -> Array:
        """[n] logarithms of the expected improvements at points [n, dims]."""
        active = self._space.activity(points)
        mean, deviation = self._model.predict(self._space.columns(points, active))
        promises, _, _ = gaussian.log_expected_improvement(
            mean, np.maximum(deviation, 1e-9) * self._daring, self._best
        )
        return promises

    def _neighbours(self, parents: Array, random: np.random.Generator) -> Array:
        """Points near the best trials, in some dimensions or in all."""
        count = len(self._space.dimensions)
        centres = parents[random.integers(0, len(parents), _NEIGHBOURS)]
        sizes = 10.0 ** random.uniform(-3.0, -0.5, (_NEIGHBOURS, 1))
        moved = centres + sizes * random.normal(size=centres.shape)
        for number, dimension in enumerate(self._space.dimensions):
            if not dimension.ordered:
                moved[:, number] = random.random(_NEIGHBOURS)
        share = random.choice([1.0 / max(count, 1), 0.5, 1.0], (_NEIGHBOURS, 1))
        moved = np.where(random.random(centres.shape) < share, moved, centres)
        return self._space.snap(np.clip(moved, 0.0, 1.0))

    def _ascend(self, start: Array) -> Array:
        """Follows the gradient from a point [dims] in what is ordered and active."""
        space = self._space
        active = space.activity(start[None])
        free = [
            number
            for number, dimension in enumerate(space.dimensions)
            if dimension.ordered and active[0, number]
        ]
        if not free:
            return start
        point = start.copy()

        def loss(places: Array) -> tuple[float, Array]:
            point[free] = places
            columns = space.columns(point[None], active)[0]
            mean, deviation, *slopes = self._model.slopes(columns)
            promise, by_mean, by_deviation = gaussian.log_expected_improvement(
                mean, deviation * self._daring, self._best
            )
            gradient = by_mean * slopes[0] + by_deviation * self._daring * slopes[1]
            inner = [
                gradient[space.groups == number]
                @ space.dimensions[number].slopes(point[number])
                for number in free
            ]
            return -float(promise), -np.array(inner)

        found = scipy.optimize.minimize(
            loss,
            start[free],
            jac=True,
            bounds=[space.dimensions[number].ends for number in free],
            method="L-BFGS-B",
            options={"maxiter": 30},
        )
        best: Array = start.copy()
        best[free] = found.x
        return best

    def _climb(self, point: Array, promise: float) -> Iterator[Array]:
        """Ever better points [1, dims], each one step in one dimension from the last.

        A gradient tells nothing of choices, and overlooks the grid.
        """
        for _ in range(_ROUNDS):
            steps = self._steps(point)
            if not len(steps):
                return
            promises = self._promises(steps)
            if promises.max() <= promise:
                return
            point, promise = steps[promises.argmax()], promises.max()
            yield point[None]

    def _steps(self, point: Array) -> Array:
        """[n, dims] all neighbours on the grids, and all other choices."""
        steps = []
        for number, dimension in enumerate(self._space.dimensions):
            for place in dimension.steps(point[number]):
                steps.append(point.copy())
                steps[-1][number] = place
        return np.array(steps)
