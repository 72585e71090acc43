"""What an oracle does with diagnosed trials, whatever its algorithm."""

from __future__ import annotations

import copy
import logging
import math
import time
import warnings
from collections.abc import Mapping
from typing import Any

from keras_tuner.engine.trial import Trial, TrialStatus

from kt_bttackler import channel, context
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.oracles import view
from kt_bttackler.oracles.safely import synchronized
from kt_bttackler.oracles.served import ServedOracleMixin

_logger = logging.getLogger(__name__)
_SEED_ZERO = 2**31 - 1


def seed_of(seed: int | None) -> int | None:
    """The seed to give to KerasTuner, which takes 0 for no seed."""
    return _SEED_ZERO if seed == 0 else seed


def is_late(oracle: Any) -> bool:
    """Whether the time of a search (`max_seconds`) is over; any oracle may be asked."""
    deadline = getattr(oracle, "deadline", None)
    return deadline is not None and bool(time.monotonic() >= deadline)


class DiagnosedOracleMixin(ServedOracleMixin):
    """Marks diagnosed trials and shows them truthfully to the search algorithm.

    A trial with a harmful verdict ends `STOPPED` with its last objective value as
    score, or None when that is not finite, and the verdict as message. A benign
    verdict leaves it `COMPLETED` with its best value. A trial whose objective is NaN
    ends `STOPPED`, too, and not `FAILED`: three failed ones in a row end a search.

    What the algorithm is told of a stopped trial is derived anew before every
    suggestion. What is added here for diagnoses raises nothing: it logs, and
    KerasTuner's own way is taken. How the search survives accidents is told in
    `DurableOracleMixin` and `ServedOracleMixin`.

    Args:
        *args: arguments of the oracle.
        stopped_value: what a stopped trial counts for the algorithm: "last", its
            last value; "best", its best value; "worst", the worst finite score of
            all ended trials; "skip", nothing, though it counts against `max_trials`
            and as an initial point; "censored", its last value or the median of the
            completed trials, whichever is worse. A value that is not finite counts
            as the worst finite score. A project that is resumed keeps the policy it
            began with.
        avoid_diagnosed: turn proposals away that would very likely be stopped, as
            far as the trials so far tell; see `kt_bttackler.oracles.avoidance`.
        **kwargs: keyword arguments of the oracle.

    Raises:
        ValueError: there is no such policy.
    """

    # Also for an oracle whose class was changed after it was made.
    stopped_value: str = "last"
    avoid_diagnosed: bool = False
    # When no new trial begins any more, by `time.monotonic`; `None`: no such time.
    # No part of the state: a search that is resumed has its own.
    deadline: float | None = None

    def __init__(
        self,
        *args: Any,
        stopped_value: str = "last",
        avoid_diagnosed: bool = False,
        **kwargs: Any,
    ) -> None:
        self.begin_diagnosing(stopped_value, avoid_diagnosed)
        if "seed" in kwargs:
            kwargs["seed"] = seed_of(kwargs["seed"])
        super().__init__(*args, **kwargs)

    def begin_diagnosing(
        self, stopped_value: str = "last", avoid_diagnosed: bool = False
    ) -> None:
        """Sets the arguments of this class; for an oracle that becomes one of it."""
        self.stopped_value = view.checked(stopped_value)
        self.avoid_diagnosed = avoid_diagnosed

    @synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """As the oracle does; tells the callbacks in this thread which trial runs.

        After `deadline` the search is over, for a tuner without a running trial.
        """
        if is_late(self) and tuner_id not in self.ongoing_trials:
            self.tuner_ids.discard(tuner_id)  # a chief waits for those it has
            context.publish(None)
            unset = self.hyperparameters.copy()
            unset.values = {}
            return Trial(hyperparameters=unset, status=TrialStatus.STOPPED)
        trial = super().create_trial(tuner_id)
        try:
            self._publish(trial)
        except Exception as error:
            _logger.warning("Callbacks do not know the running trial: %r", error)
        return trial

    @synchronized
    def update_trial(
        self, trial_id: str, metrics: Mapping[str, float], step: int = 0
    ) -> Trial:
        """As the oracle does; a NaN among the metrics of a stopped trial is no news."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            return super().update_trial(trial_id, metrics, step)

    @synchronized
    def end_trial(self, trial: Trial) -> None:
        """As the oracle does, after the verdict on the trial was read."""
        if self._is_settled(trial.trial_id):
            self._ignore_late(trial)
            return
        try:
            self._judge(trial)
        except Exception as error:
            _logger.warning(
                "The diagnosis of trial %s is lost: %r", trial.trial_id, error
            )
        super().end_trial(trial)
        running = context.running_trial()
        if running is not None and running.trial_id == trial.trial_id:
            context.publish(None)

    @synchronized
    def correct_trial(
        self, trial_id: str, metrics: Mapping[str, float], step: int, message: str
    ) -> Trial:
        """Gives a trial that was stopped the outcome of its whole training.

        It becomes `COMPLETED`, with its best value as score; without a finite one it
        stays `STOPPED`.

        Args:
            trial_id: of a trial that ended.
            metrics: those of its best epoch; what was reported before is dropped.
            step: its best epoch, from 0.
            message: what is to be known of it.
        """
        trial = self.trials[trial_id]
        trial.metrics = type(trial.metrics)()
        # Past `ServedOracleMixin`, which ignores what is reported of ended trials.
        super(ServedOracleMixin, self).update_trial(trial_id, metrics, step)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            self.score_trial(trial)
        trial.status, trial.message = TrialStatus.COMPLETED, message
        if not view.is_finite(trial.score):
            trial.status, trial.score = TrialStatus.STOPPED, None
        # Private: `end_trial` would count the trial as another one that ended.
        self._save_trial(trial)
        self.save()
        return trial

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """As the oracle does, with a truthful view of the trials that ended."""
        try:
            shown = self._shown()
        except Exception as error:
            _logger.warning("Stopped trials are not shown: %r", error)
            shown = {}
        hidden = {name: getattr(self, name) for name in shown}
        self.__dict__.update(shown)
        try:
            response: dict[str, Any] = super().populate_space(trial_id)
        finally:
            self.__dict__.update(hidden)
        if self.avoid_diagnosed:
            try:
                self._avoid(trial_id, response)
            except Exception as error:
                _logger.warning("Diagnosed trials are not avoided: %r", error)
        return response

    def get_best_trials(self, num_trials: int = 1) -> list[Trial]:
        """Completed trials, then the stopped ones by last value, then the others."""
        sign = 1 if self.objective.direction == "min" else -1

        def place(trial: Trial) -> tuple[int, float]:
            if trial.status == TrialStatus.COMPLETED:
                return 0, 0.0
            if trial.status == TrialStatus.STOPPED:
                finite = view.is_finite(trial.score)
                return 1, sign * trial.score if finite else math.inf
            return 2, 0.0

        trials = super().get_best_trials(len(self.trials))
        return sorted(trials, key=place)[:num_trials]

    def get_state(self) -> dict[str, Any]:
        """State of the oracle, and the policy; KerasTuner's own class reads it, too."""
        return {**super().get_state(), "stopped_value": self.stopped_value}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state; that of a project begun by KerasTuner's class, too."""
        super().set_state(state)
        recorded = state.get("stopped_value", self.stopped_value)
        if recorded != self.stopped_value and recorded in view.STOPPED_VALUES:
            _logger.warning(
                "The project was begun with stopped_value=%r, which stays in force "
                "instead of %r.",
                recorded,
                self.stopped_value,
            )
            self.stopped_value = recorded

    def _publish(self, trial: Trial) -> None:
        if trial.status != TrialStatus.RUNNING:
            context.publish(None)
            return
        running = context.RunningTrial.of(
            trial,
            self,
            # Private: the oracle has no public way to its folder. It is unset while
            # no tuner has the oracle.
            getattr(self, "_project_dir", None),
            max_epochs=getattr(self, "max_epochs", None),
        )
        context.publish(running)

    def _avoid(self, trial_id: str, response: dict[str, Any]) -> None:
        """Exchanges values of a new trial that would very likely be stopped."""
        values = response.get("values")
        # A trial of Hyperband that goes on with another one is not a new one.
        if values and "tuner/trial_id" not in values:
            # Imported on demand: few searches need scikit-learn's trees.
            from kt_bttackler.oracles import avoidance

            response["values"] = avoidance.instead(
                values,
                trial_id,
                self.trials,
                self.hyperparameters,
                self.objective.direction,
                self.seed,
            )

    def _judge(self, trial: Trial) -> None:
        """Marks a trial that was diagnosed, or whose objective is NaN."""
        if trial.status != TrialStatus.COMPLETED:
            return
        own = self.trials[trial.trial_id]  # `trial` may have come from a worker
        metrics = {
            name: float(history.get_last_value())
            for name, history in own.metrics.metrics.items()
        }
        message = channel.decode(metrics)
        verdict = None if message is None else message.verdict
        if message is not None and verdict is not None and not verdict.benign:
            last = None
            if self.objective.has_value(message.last):
                last = float(self.objective.get_value(message.last))
            trial.status = TrialStatus.STOPPED
            trial.message = self._in_full(trial, verdict).message
            own.score = last if view.is_finite(last) else None
            own.best_step = max(verdict.epoch - 1, 0)  # KerasTuner counts from 0
            return
        if verdict is not None:
            trial.message = self._in_full(trial, verdict).message
        if math.isnan(self._score(own)):
            # No retry either: KerasTuner trains again, but keeps the first result.
            trial.status = TrialStatus.STOPPED
            trial.message = f"{self.objective.name} is nan"
            own.score, own.best_step = None, 0

    def _in_full(self, trial: Trial, verdict: Verdict) -> Verdict:
        """The verdict as the callback in this process gave it, if it was in this one.

        The channel carries no words, and not all digits.
        """
        running = context.running_trial()
        if running is None or running.trial_id != trial.trial_id:
            return verdict
        return running.verdicts.get(0, verdict)

    def _score(self, trial: Trial) -> float:
        """The score that the oracle would give to a completed trial."""
        scored = copy.copy(trial)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "All-NaN slice"
            self.score_trial(scored)
        return float(scored.score)

    def _shown(self) -> dict[str, Any]:
        """Attributes of the oracle, as the algorithm is to see them for now."""
        ongoing = {trial.trial_id for trial in self.ongoing_trials.values()}
        seen = view.view(self.trials, ongoing, self.objective, self.stopped_value)
        shown: dict[str, Any] = {"trials": seen.trials}
        if seen.left_out and hasattr(self, "num_initial_points"):
            # Left-out trials count as initial points. One must stay: without any
            # trial to fit, the suggestion has to be random.
            default = max(3 * len(self.hyperparameters.space), 3)
            points = (self.num_initial_points or default) - seen.left_out
            shown["num_initial_points"] = max(points, 1)
        return shown
