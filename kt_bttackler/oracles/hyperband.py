"""Hyperband among diagnosed trials: brackets keep their size, nobody doomed rises."""

from __future__ import annotations

import logging
import math
from typing import Any

from keras_tuner.engine.trial import Trial, TrialStatus

from kt_bttackler.oracles import view
from kt_bttackler.oracles.mixin import DiagnosedOracleMixin

_logger = logging.getLogger(__name__)


class DiagnosedHyperbandMixin(DiagnosedOracleMixin):
    """Keeps stopped trials in the arithmetic of a bracket and out of its next round.

    KerasTuner promotes the best of a round once enough of its trials have completed.
    A stopped trial counts here as completed and worse than every other, whatever
    `stopped_value` is: Hyperband only ranks. When nobody else is left for a place of
    the next round, the place is given to the stopped trial without running it, where
    it ranks last again. So as many trials run in a round as deserve to, and a bracket
    ends even if all of them were stopped.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """As Hyperband does, but never promotes a trial that was stopped."""
        while True:
            response = super().populate_space(trial_id)
            try:
                if self._leave_place_empty(trial_id, response):
                    continue
            except Exception as error:
                _logger.warning("A stopped trial may be promoted: %r", error)
            return response

    def _leave_place_empty(self, trial_id: str, response: dict[str, Any]) -> bool:
        """Takes a promotion back that went to a trial that cannot go on.

        Each time one more place of a bracket is taken, so asking again comes to an
        end.
        """
        values = response.get("values") or {}
        past_id = values.get("tuner/trial_id")
        if past_id is None or not _cannot_go_on(self.trials[past_id]):
            return False
        for bracket in self._brackets:  # private: the places of each round
            for places in bracket["rounds"]:
                for place in places:
                    if place["id"] == trial_id:
                        place["id"] = past_id
                        return True
        return False

    def _shown(self) -> dict[str, Any]:
        last = math.inf if self.objective.direction == "min" else -math.inf
        trials = dict(self.trials)
        for trial_id, trial in trials.items():
            if _cannot_go_on(trial):
                trials[trial_id] = view.completed_with(trial, last)
        return {"trials": trials}


def _cannot_go_on(trial: Trial) -> bool:
    """Whether the trial was stopped, or has no weights worth going on with."""
    if trial.status == TrialStatus.COMPLETED:
        return not view.is_finite(trial.score)
    return bool(trial.status == TrialStatus.STOPPED)
