"""What a chief needs that outlives its workers, and workers that outlive their chief.

KerasTuner's protocol has no sign of life. But a worker may ask for its trial at any
time, and the tuners of this package do so every few seconds while one runs: see
`kt_bttackler.signs`.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from keras_tuner.engine.trial import Trial, TrialStatus

from kt_bttackler.fuses import warn
from kt_bttackler.oracles.durable import DurableOracleMixin
from kt_bttackler.oracles.safely import synchronized
from kt_bttackler.roles import is_chief
from kt_bttackler.signs import PERIOD

_logger = logging.getLogger(__name__)
_FAILURES = (TrialStatus.FAILED, TrialStatus.INVALID)


@dataclasses.dataclass
class _Signs:
    """What a chief has heard, in seconds of a clock that never jumps.

    Attributes:
        trials: by id of a trial, when it was last heard of.
        regular: ids of the trials that are expected to be heard of regularly.
        workers: by id of a worker, when it last asked for a trial or ended one.
        failures: by id of a worker, how many trials in a row have failed there.
        retired: by id of a worker that gets no more trials, since when.
    """

    trials: dict[str, float] = dataclasses.field(default_factory=dict)
    regular: set[str] = dataclasses.field(default_factory=set)
    workers: dict[str, float] = dataclasses.field(default_factory=dict)
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    retired: dict[str, float] = dataclasses.field(default_factory=dict)

    def delay(self, seconds: float) -> None:
        """Takes time out in which nobody could be heard."""
        for heard in (self.trials, self.workers):
            heard.update({key: moment + seconds for key, moment in heard.items()})


class ServedOracleMixin(DurableOracleMixin):
    """An oracle that survives its workers, wherever they are.

    - A chief puts a trial back when its worker gave signs of life and then none for
      `lost_after` seconds; another worker takes it up. Workers with KerasTuner's own
      tuner give none, and are waited for.
    - A chief that is started again waits that long for the trials that were running,
      whose workers may have gone on; they are not run twice meanwhile.
    - What is reported of a trial that has ended already is ignored.
    - A worker whose trials fail `max_consecutive_failed_trials` times in a row gets no
      more of them; KerasTuner's chief would answer every worker with an error. The
      others go on. In one process the search ends with an error, as in KerasTuner.

    Attributes:
        lost_after: seconds without a sign of life after which a trial is put back.
    """

    max_consecutive_failed_trials: Any
    lost_after: float = 120.0
    _heard: _Signs | None = None

    @synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """As the oracle does, on a chief with a watch on the workers."""
        self.own_project()
        if not is_chief():
            trial = super().create_trial(tuner_id)
            if trial.status == TrialStatus.STOPPED:
                self.disown_project()
            return trial
        signs = self._signs()
        signs.workers[tuner_id] = time.monotonic()
        if tuner_id in signs.retired:
            return self._nothing_for(tuner_id)
        trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.STOPPED and self._silent(3 * PERIOD):
            # Somebody must be left to take their trials up, should they be lost.
            self.tuner_ids.add(tuner_id)
            return Trial(self.get_space(), status=TrialStatus.IDLE)
        if trial.status == TrialStatus.RUNNING:
            signs.trials[trial.trial_id] = time.monotonic()
        return trial

    def get_trial(self, trial_id: str) -> Trial:
        """The trial; for a chief, a sign that the worker which asks is alive."""
        if self._heard is not None:
            self._heard.trials[trial_id] = time.monotonic()
            self._heard.regular.add(trial_id)
        return super().get_trial(trial_id)

    @synchronized
    def update_trial(
        self, trial_id: str, metrics: Mapping[str, float], step: int = 0
    ) -> Trial:
        """As the oracle does, unless the trial has ended already."""
        if self._is_settled(trial_id):
            return self.trials.get(trial_id) or Trial(
                self.get_space(), trial_id, TrialStatus.STOPPED
            )
        return super().update_trial(trial_id, metrics, step)

    @synchronized
    def end_trial(self, trial: Trial) -> None:
        """As the oracle does; counts every trial once, and failures where they are.

        Raises:
            RuntimeError: in one process, too many trials in a row have failed.
        """
        trial_id = trial.trial_id
        runners = [k for k, v in self.ongoing_trials.items() if v.trial_id == trial_id]
        # Private, as in `_put_back`: the queue of trials to be run (again).
        while trial_id in self._retry_queue:
            self._retry_queue.remove(trial_id)
        # KerasTuner looks for failures anywhere in the past, and raises unsaved.
        limit = self.max_consecutive_failed_trials
        self.max_consecutive_failed_trials = math.inf
        # KerasTuner saves first and then takes the trial off the running ones.
        self._saves_later = True
        try:
            super().end_trial(trial)
        finally:
            self.max_consecutive_failed_trials = limit
            self._saves_later = False
        for tuner_id in runners:
            self.ongoing_trials.pop(tuner_id, None)
        self.save()
        status = self.trials[trial_id].status
        if is_chief():
            for tuner_id in runners:
                self._count(tuner_id, status in _FAILURES, limit)
        elif status == TrialStatus.FAILED:
            self._check_failures(limit)

    @synchronized
    def lose_worker(self, tuner_id: str) -> None:
        """Puts the trial of a worker back at once that will not come back.

        Args:
            tuner_id: its id.
        """
        if tuner_id not in self.ongoing_trials:
            self.tuner_ids.discard(tuner_id)
            return
        self._put_back(tuner_id)
        if not self.tuner_ids:
            # KerasTuner's chief would end with a trial that waits. The lost one stays
            # on its list for `lost_after` seconds, so that another one can come.
            self.tuner_ids.add(tuner_id)
            self._signs().workers[tuner_id] = time.monotonic()

    def _is_settled(self, trial_id: str) -> bool:
        """Whether there is nothing more to report of a trial."""
        return trial_id not in self.trials or trial_id in self.end_order

    def _ignore_late(self, trial: Trial) -> None:
        """Takes note that a worker has ended a trial which was settled before."""
        _logger.warning("A second report of trial %s is ignored.", trial.trial_id)
        for tuner_id, ongoing in list(self.ongoing_trials.items()):
            if ongoing.trial_id == trial.trial_id:
                del self.ongoing_trials[tuner_id]

    def _check_failures(self, limit: int) -> None:
        last = (self.trials[trial_id] for trial_id in reversed(self.end_order))
        failed = itertools.takewhile(lambda t: t.status == TrialStatus.FAILED, last)
        in_a_row = list(itertools.islice(failed, limit))
        if len(in_a_row) >= limit:
            raise RuntimeError(
                "Number of consecutive failures exceeded the limit "
                f"of {limit}.\n" + (in_a_row[0].message or "")
            )

    def _count(self, tuner_id: str, failed: bool, limit: int) -> None:
        signs = self._signs()
        signs.workers[tuner_id] = time.monotonic()
        failures = signs.failures.get(tuner_id, 0) + 1 if failed else 0
        signs.failures[tuner_id] = failures
        if failures >= limit and tuner_id not in signs.retired:
            signs.retired[tuner_id] = time.monotonic()
            warn(
                f"worker {tuner_id} gets no more trials: {failures} in a row have "
                "failed there. Its own output says why."
            )

    def _nothing_for(self, tuner_id: str) -> Trial:
        """The answer to a worker that gets no more trials."""
        signs = self._signs()
        others = self.tuner_ids - signs.retired.keys()
        # KerasTuner's chief begins to end when a worker is sent away, and others may
        # only be about to come.
        waits = time.monotonic() - signs.retired[tuner_id] < self.lost_after
        if others or waits:
            self.tuner_ids.add(tuner_id)
            return Trial(self.get_space(), status=TrialStatus.IDLE)
        self.tuner_ids.discard(tuner_id)
        return Trial(self.get_space(), status=TrialStatus.STOPPED)

    # --- the watch on the workers ---

    def _signs(self) -> _Signs:
        if self._heard is None:
            self._heard = _Signs()
            # Named after the oracle: KerasTuner tells threads by their names.
            threading.Thread(
                target=_watch,
                args=(weakref.ref(self),),
                name=f"watches the workers of oracle {id(self)}",
                daemon=True,
            ).start()
        return self._heard

    def _silent(self, seconds: float) -> dict[str, str]:
        """Running trials, by worker, that were not heard of for so long."""
        signs, now = self._signs(), time.monotonic()
        return {
            tuner_id: trial.trial_id
            for tuner_id, trial in self.ongoing_trials.items()
            if trial.trial_id in signs.regular
            and now - signs.trials.get(trial.trial_id, now) > seconds
        }

    @synchronized
    def _put_back_lost(self, expected: float) -> None:
        """Puts trials back whose workers are lost, and forgets workers that are.

        Args:
            expected: when this should have been called. If it is later, the oracle
                was busy, and could not hear anybody.
        """
        signs, now = self._signs(), time.monotonic()
        if now - expected > 1:
            signs.delay(now - expected)
        for tuner_id, trial_id in self._silent(self.lost_after).items():
            warn(
                f"worker {tuner_id} gave no sign of life for {self.lost_after:g} s: "
                f"trial {trial_id} is put back for another worker."
            )
            self._put_back(tuner_id)
        for tuner_id in self.tuner_ids - self.ongoing_trials.keys():
            if now - signs.workers.setdefault(tuner_id, now) > self.lost_after:
                warn(f"worker {tuner_id} is lost; it had no trial.")
                self.tuner_ids.discard(tuner_id)

    def _put_back(self, tuner_id: str) -> None:
        trial = self.ongoing_trials.pop(tuner_id)
        self.tuner_ids.discard(tuner_id)
        trial.metrics = type(trial.metrics)()  # of the run that was lost
        self._retry_queue.append(trial.trial_id)
        self._signs().regular.discard(trial.trial_id)
        if not self.tuner_ids:
            warn(
                "no worker is left. Start one, or the whole search again, to run the "
                f"trials that wait: {', '.join(self._retry_queue)}."
            )
        self._save_trial(trial)
        self.save()

    def _keeps_ongoing(self) -> bool:
        return is_chief()

    def _take(self, state: dict[str, Any]) -> None:
        super()._take(state)
        if self.ongoing_trials:
            signs, now = self._signs(), time.monotonic()
            ids = [trial.trial_id for trial in self.ongoing_trials.values()]
            signs.trials.update(dict.fromkeys(ids, now))
            signs.regular.update(ids)


def _watch(reference: weakref.ref[ServedOracleMixin]) -> None:
    """Looks after the workers of an oracle as long as there is one."""
    pause = 0.0
    while True:
        expected = time.monotonic() + pause
        time.sleep(pause)
        oracle = reference()
        if oracle is None:
            return
        try:
            oracle._put_back_lost(expected)
        except Exception as error:
            _logger.warning("The workers were not looked after: %r", error)
        pause = min(max(oracle.lost_after / 4, 0.05), PERIOD)
        del oracle
