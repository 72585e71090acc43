"""A tuner whose project survives, and whose checkpoints do not fill the disk."""

from __future__ import annotations

import json
import logging
import pathlib
import time
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from kt_bttackler import checkpoints, files, project
from kt_bttackler.asking import PatientStub
from kt_bttackler.fuses import warn
from kt_bttackler.locking import ProjectLock
from kt_bttackler.roles import is_restarted, is_worker
from kt_bttackler.signs import SignsOfLife

_logger = logging.getLogger(__name__)
# Between two questions of a worker for which there is nothing to do yet.
_IDLE_SECONDS = 1.0


class DurableTuner(keras_tuner.Tuner):
    """What a tuner of this package adds to KerasTuner's so that a search survives.

    - Its own file is written as a whole, and set aside when it cannot be read. A
      project that lacks it goes on; KerasTuner would begin anew over its trials.
    - While it searches, it holds the lock of the project directory, unless a chief
      does. Workers never overwrite a project: each of them would delete it again.
    - The checkpoint of a stopped trial is deleted unless it is among the best trials.
    - A worker tells its chief that it is alive, waits a second before it asks again
      when there is nothing to do, and asks again when the chief dies over a question.

    Args:
        oracle: the oracle of the search, a `DurableOracleMixin`.
        hypermodel: see `keras_tuner.Tuner`.
        *args: arguments of `keras_tuner.Tuner`.
        keep_checkpoints: of stopped trials only the checkpoints of those among so
            many best trials of the search are kept; None keeps all. Those of trials
            that were not stopped are never deleted.
        lost_after: on a chief, seconds without a sign of life after which the trial of
            a worker is put back; see `kt_bttackler.oracles.served`.
        **kwargs: arguments of `keras_tuner.Tuner`.

    Raises:
        ValueError: an argument is out of its range.
        kt_bttackler.locking.ProjectInUse: another process searches in the directory
            that is to be overwritten.

    Example:
        >>> import kt_bttackler as ktb
        >>> tuner = ktb.RandomSearch(
        ...     lambda hp: None, "val_loss", directory=getfixture("tmp_path"),
        ...     keep_checkpoints=3, lost_after=60.0,
        ... )
        >>> tuner.keep_checkpoints, tuner.oracle.lost_after
        (3, 60.0)
    """

    # Class attributes: a tuner may become one of this class after it was made.
    keep_checkpoints: int | None = 10
    _stopped_ids: set[str] | None = None  # of trials whose checkpoints may go
    _signs: SignsOfLife | None = None
    _answered = True

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        hypermodel: Any = None,
        *args: Any,
        keep_checkpoints: int | None = 10,
        lost_after: float = 120.0,
        **kwargs: Any,
    ) -> None:
        if keep_checkpoints is not None and keep_checkpoints < 0:
            raise ValueError(
                f"`keep_checkpoints` must be at least 0, got {keep_checkpoints}."
            )
        if not lost_after > 0:
            raise ValueError(f"`lost_after` must be above 0, got {lost_after}.")
        self.keep_checkpoints = keep_checkpoints
        oracle.lost_after = lost_after
        if kwargs.get("overwrite"):
            kwargs["overwrite"] = _may_overwrite(kwargs)
        super().__init__(oracle, hypermodel, *args, **kwargs)
        if is_worker():
            self.oracle.stub = PatientStub(self.oracle.stub)
        elif self.oracle.has_news():
            warn(
                f"{self.project_dir} has trials but no {self.tuner_id}.json: the "
                "search goes on with them."
            )
            self.reload()

    def search(self, *args: Any, **kwargs: Any) -> Any:
        """As the tuner does, while it holds the lock of the project directory.

        Raises:
            kt_bttackler.locking.ProjectInUse: another process searches here.
        """
        if not is_worker():
            self.oracle.own_project()
        self._answered = True
        try:
            return super().search(*args, **kwargs)
        finally:
            self._end_signs()
            if not is_worker():
                self.oracle.disown_project()

    def save(self) -> None:
        """Writes the state of oracle and tuner, each as a whole."""
        if "://" in str(self.project_dir):
            super().save()
            return
        if not is_worker():
            self.oracle.save()
        path, text = self._state_path(), json.dumps(self.get_state())
        try:
            if not path.exists() or files.read_text(path) != text:
                files.write_atomically(path, text)
        except (OSError, ValueError) as error:
            warn(f"the state of the tuner is not saved: {error}")

    def reload(self) -> None:
        """Reads the state of oracle and tuner; one that cannot be read is set aside."""
        if "://" in str(self.project_dir):
            super().reload()
            return
        if not is_worker():
            self.oracle.reload()
        try:
            state = project.read_json(self._state_path())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            place = project.set_aside(self._state_path())
            warn(f"{self._state_path()}: {error}. It is now {place.name}.")
            return
        self.set_state(state)

    def pre_create_trial(self) -> None:
        """Waits when there was nothing to do; KerasTuner asks without a pause."""
        super().pre_create_trial()
        if not self._answered:
            time.sleep(_IDLE_SECONDS)
        self._answered = False

    def on_trial_begin(self, trial: Trial) -> None:
        """Begins to tell the chief that the trial is alive."""
        self._answered = True
        if is_worker():
            self._signs = SignsOfLife()
            self._signs.begin(self.oracle, trial.trial_id)
        super().on_trial_begin(trial)

    def on_trial_end(self, trial: Trial) -> None:
        """Ends the trial; deletes checkpoints that nobody will ask for."""
        try:
            super().on_trial_end(trial)
        finally:
            self._end_signs()
        try:
            self._forget_checkpoints(trial)
        except Exception as error:
            _logger.warning("Checkpoints are left behind: %r", error)

    def _end_signs(self) -> None:
        if self._signs is not None:
            self._signs.end()
            self._signs = None

    def _forget_checkpoints(self, trial: Trial) -> None:
        if self.keep_checkpoints is None:
            return
        if self._stopped_ids is None:
            known = getattr(self.oracle, "trials", {})  # a worker's oracle has none
            self._stopped_ids = {i for i, t in known.items() if _is_stopped(t)}
        # Not `trial`: what was made of it is known where the oracle is.
        if _is_stopped(self.oracle.get_trial(trial.trial_id)):
            self._stopped_ids.add(trial.trial_id)
        if not self._stopped_ids:
            return
        best = self.oracle.get_best_trials(self.keep_checkpoints)
        unwanted = self._stopped_ids - {trial.trial_id for trial in best}
        for trial_id in unwanted:
            checkpoints.delete(self.get_trial_dir(trial_id))
        self._stopped_ids -= unwanted

    def _state_path(self) -> pathlib.Path:
        return pathlib.Path(self.project_dir) / f"{self.tuner_id}.json"


def _may_overwrite(kwargs: dict[str, Any]) -> bool:
    """Whether this process may delete the project; raises if another one uses it."""
    if is_worker() or is_restarted():
        return False
    directory = str(kwargs.get("directory") or ".")
    if "://" not in directory:
        name = kwargs.get("project_name") or "untitled_project"
        ProjectLock(pathlib.Path(directory, name)).check()
    return True


def _is_stopped(trial: Trial) -> bool:
    return bool(trial.status == TrialStatus.STOPPED)
