"""What a search algorithm is shown of the trials, so that it learns the truth.

KerasTuner's algorithms know trials that are completed and trials that failed. A
stopped trial is neither, and a score that is not finite misleads them (in the
Gaussian process NaN and infinity become 0, the best loss there is). So before every
suggestion the trials are copied where needed: a stopped trial looks completed with a
finite score, or, when there is nothing to say of it, failed. Nothing here changes a
trial.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
from collections.abc import Collection, Mapping
from typing import Any

from keras_tuner.engine.trial import TrialStatus

STOPPED_VALUES = ("last", "best", "worst", "skip", "censored")
_ENDED = (TrialStatus.COMPLETED, TrialStatus.STOPPED)


@dataclasses.dataclass(frozen=True)
class View:
    """The trials as an algorithm is to see them.

    Attributes:
        trials: by id, in the order of the real ones.
        left_out: how many ended ones are kept from the algorithm.
    """

    trials: dict[str, Any]
    left_out: int


def checked(stopped_value: str) -> str:
    """Returns the policy.

    Raises:
        ValueError: there is no such policy.
    """
    if stopped_value not in STOPPED_VALUES:
        raise ValueError(
            f"`stopped_value` must be one of {STOPPED_VALUES}, got {stopped_value!r}."
        )
    return stopped_value


def view(
    trials: Mapping[str, Any],
    ongoing: Collection[str],
    objective: Any,
    stopped_value: str,
) -> View:
    """What an algorithm that fits a model of the scores is shown.

    A value that is not finite counts as the worst finite score of all ended trials;
    while there is none, the trial is left out.

    Args:
        trials: KerasTuner's trials by id.
        ongoing: ids of the trials that run.
        objective: KerasTuner's objective.
        stopped_value: what a stopped trial counts: "last", its last value; "best",
            its best; "worst", the worst finite score of all ended trials; "skip",
            nothing; "censored", its last value or the median of the completed
            trials, whichever is worse: it was stopped because it would have ended
            in the worse half, how far down is unknown.
    """
    worse = max if objective.direction == "min" else min
    scores = {
        trial_id: trial.score
        for trial_id, trial in trials.items()
        if trial.status in _ENDED and is_finite(trial.score)
    }
    completed = [
        score
        for trial_id, score in scores.items()
        if trials[trial_id].status == TrialStatus.COMPLETED
    ]
    worst = worse(scores.values(), default=None)

    def told(trial: Any) -> float | None:
        if trial.status == TrialStatus.STOPPED:
            if stopped_value == "skip":
                return None
            if stopped_value == "worst":
                return worst
            if stopped_value == "best":
                best = best_value(trial, objective)
                return worst if best is None else best
        if not is_finite(trial.score):
            return worst
        score = float(trial.score)
        if trial.status == TrialStatus.STOPPED and stopped_value == "censored":
            return worse([score, statistics.median(completed)]) if completed else score
        return score

    shown, left_out = {}, 0
    for trial_id, trial in trials.items():
        if trial.status in _ENDED:
            score = told(trial)
            left_out += score is None
            trial = failed(trial) if score is None else completed_with(trial, score)
        elif trial.status == TrialStatus.RUNNING and trial_id not in ongoing:
            # It waits to be run again, after a restart: nothing is known of it.
            trial = failed(trial)
        shown[trial_id] = trial
    return View(shown, left_out)


def completed_with(trial: Any, score: float) -> Any:
    """The trial as if it had completed with `score`."""
    if trial.status == TrialStatus.COMPLETED and trial.score == score:
        return trial
    shown = copy.copy(trial)
    shown.status, shown.score = TrialStatus.COMPLETED, score
    return shown


def failed(trial: Any) -> Any:
    """The trial as if it had failed, which every algorithm leaves out."""
    shown = copy.copy(trial)
    shown.status = TrialStatus.FAILED
    return shown


def is_finite(score: Any) -> bool:
    """Whether there is a score and it is a finite number."""
    return score is not None and math.isfinite(score)


def best_value(trial: Any, objective: Any) -> float | None:
    """The best finite value of the objective that was reported for a trial."""
    if not trial.metrics.exists(objective.name):
        return None
    values = [
        float(observation.mean())
        for observation in trial.metrics.get_history(objective.name)
    ]
    best = min if objective.direction == "min" else max
    return best(filter(math.isfinite, values), default=None)
