"""State that survives: written whole, read with care, made anew where it is lost."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

import kt_bttackler
from kt_bttackler import files, project
from kt_bttackler.fuses import warn
from kt_bttackler.locking import ProjectLock
from kt_bttackler.trace import read_trace

# Of what this package adds to the state of an oracle. Raised when an older version
# could not read it any more.
SCHEMA = 1


class DurableOracleMixin(keras_tuner.Oracle):
    """An oracle whose project directory can be trusted after every accident.

    - `oracle.json` and `trial.json` are replaced as a whole; KerasTuner writes over
      them in place. When they cannot be written, one warning says so and the search
      goes on in memory; every later save tries again.
    - A file that cannot be read is set aside as `*.corrupt`, with a warning.
      `oracle.json` is then made anew of the trials. A trial whose file is lost is run
      again where its trace tells the hyperparameters, and counts as failed otherwise;
      its id is never given to another trial.
    - A trial that was running is run again, once; one that has ended is not.
    - The first write takes the lock of the directory. What another process wrote
      since this one has read is read first.

    A directory that is not a local one ("gs://...") is left to KerasTuner.

    Example:
        >>> import kt_bttackler as ktb
        >>> def search(**kwargs):
        ...     tuner = ktb.RandomSearch(
        ...         lambda hp: hp.Float("rate", 0, 1), "val_loss", 2,
        ...         directory=getfixture("tmp_path"), project_name="p", **kwargs
        ...     )
        ...     tuner.oracle.verbose = 0
        ...     return tuner
        >>> trial = search().oracle.create_trial("tuner0")  # and then it was killed
        >>> search().oracle.create_trial("tuner0").trial_id == trial.trial_id
        True
    """

    trials: dict[str, Trial]
    # Class attributes: an oracle may become one of this class after it was made.
    _lock: ProjectLock | None = None
    _seen: tuple[int, ...] | None = None  # which oracle.json this object knows
    _digest: str = ""  # of what it holds
    _saves_later: bool = False
    _writable: bool = True
    _unsaved: frozenset[str] = frozenset()  # ids of trials

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which does not hold the lock of the directory."""
        return self.__dict__ | {"_lock": None}

    def save(self) -> None:
        """Writes `oracle.json` as a whole, and what could not be written before.

        Raises:
            kt_bttackler.locking.ProjectInUse: another process searches here.
        """
        folder = self._folder()
        if folder is None:
            super().save()
            return
        if self._saves_later:
            return
        self.own_project()
        for trial_id in self._unsaved & self.trials.keys():
            self._save_trial(self.trials[trial_id])
        text = json.dumps(self.get_state())
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest == self._digest and _signature(folder) == self._seen:
            return
        if self._write(folder / project.ORACLE, text):
            self._digest, self._seen = digest, _signature(folder)

    def _save_trial(self, trial: Trial) -> None:
        # Private, but all of KerasTuner's ways to write a trial lead through it.
        folder = self._folder()
        if folder is None:
            super()._save_trial(trial)
            return
        self.own_project()
        path = folder / f"trial_{trial.trial_id}" / project.TRIAL
        written = self._write(path, json.dumps(trial.get_state()))
        alone = frozenset([trial.trial_id])
        self._unsaved = self._unsaved - alone if written else self._unsaved | alone

    def own_project(self) -> None:
        """Takes the lock of the project directory, and reads what is new in it.

        Raises:
            kt_bttackler.locking.ProjectInUse: another process searches here.
        """
        folder = self._folder()
        if folder is None:
            return
        if self._lock is not None and self._lock.path.parent == folder:
            return
        self.disown_project()
        lock = ProjectLock(folder)
        try:
            lock.acquire()
        except OSError as error:
            warn(f"{folder} is not locked against a second search: {error}")
        self._lock = lock
        if self.has_news():
            self.reload()

    def disown_project(self) -> None:
        """Gives the lock of the project directory back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def has_news(self) -> bool:
        """Whether the project directory holds more than this oracle knows."""
        folder = self._folder()
        if folder is None:
            return False
        signature = _signature(folder)
        if signature is not None:
            return signature != self._seen
        return not self.trials and bool(project.trial_folders(folder))

    def reload(self) -> None:
        """Reads the project; mends it in memory and, unless another searches, on disk.

        Raises:
            RuntimeError: it is the project of an oracle of another class.
            ValueError: it was written by a newer version of this package.
        """
        folder = self._folder()
        if folder is None:
            super().reload()
            return
        holder = None if self._lock is not None else ProjectLock(folder).other()
        reader = _Reader(folder, mends=holder is None)
        fresh = not self.start_order
        known = self.trials
        seen = _signature(folder)
        state = reader.oracle()
        if state is not None and state.get("schema", 0) > SCHEMA:
            raise ValueError(
                f"{folder} was written by kt_bttackler {state.get('version')} with "
                f"schema {state['schema']}; version {kt_bttackler.__version__} reads "
                f"schemas up to {SCHEMA}."
            )
        self.trials = reader.trials(self.hyperparameters)
        if state is not None:
            try:
                self._add_lost(reader, state)
                self._take(state)
            except KeyError as error:
                self.trials = known
                raise RuntimeError(
                    f"{folder} holds the project of another kind of oracle: its "
                    f"state has no {error}. Take another `project_name`, or pass "
                    "`overwrite=True`."
                ) from error
            except (TypeError, ValueError, AttributeError) as error:
                reader.give_up(folder / project.ORACLE, error)
                state = None
        if state is None:
            self._add_lost(reader, {})
            self._take(self.rebuilt_state() if fresh else self.get_state())
        reader.mend_tuner_file()
        self._seen, self._digest, self._unsaved = seen, "", frozenset()
        if reader.mends:
            for trial_id in reader.made:
                path = folder / f"trial_{trial_id}" / project.TRIAL
                self._write(path, json.dumps(self.trials[trial_id].get_state()))

    def rebuilt_state(self) -> dict[str, Any]:
        """The state made anew of the trials, where the file of it is lost.

        The random numbers go on behind those that the values of the trials took.
        """
        state = self.get_state()
        hashes: dict[str, str] = {}
        drawn = 0
        for trial_id, trial in self.trials.items():
            try:
                self.update_space(trial.hyperparameters)
            except RuntimeError:  # values that the space must not have
                continue
            values = trial.hyperparameters.values
            # Private; the only way to the hashes which KerasTuner compares.
            own = self._compute_values_hash(values)
            if own not in hashes.values():  # no trial that goes on with another one
                drawn += sum(not name.startswith("tuner/") for name in values)
            hashes[trial_id] = own
        return {
            **state,
            "ongoing_trials": {},
            "hyperparameters": self.hyperparameters.get_config(),
            "start_order": [],
            "end_order": [],
            "run_times": {},
            "retry_queue": [],
            "seed_state": self.seed + drawn,
            "tried_so_far": sorted(set(hashes.values())),
            "id_to_hash": hashes,
        }

    def get_state(self) -> dict[str, Any]:
        """State of the oracle, and what it was written by."""
        own = {"schema": SCHEMA, "version": kt_bttackler.__version__}
        return {**super().get_state(), **own}

    def _take(self, state: dict[str, Any]) -> None:
        """Sets a state, after it was made to agree with the trials."""
        agreeing, ongoing = _agreeing(state, self.trials, self._keeps_ongoing())
        for trial_id in agreeing["retry_queue"]:
            # What a run that was broken off reported is not the result of the next.
            trial = self.trials[trial_id]
            trial.metrics = type(trial.metrics)()
            trial.status = TrialStatus.RUNNING
        self.set_state(agreeing)
        self.tuner_ids.update(ongoing)

    def _keeps_ongoing(self) -> bool:
        """Whether trials that were running may be running still, elsewhere."""
        return False

    def _add_lost(self, reader: _Reader, state: Mapping[str, Any]) -> None:
        """Puts something in the place of trials whose files are lost."""
        named = {*state.get("start_order", ()), *state.get("retry_queue", ())}
        named |= {*state.get("ongoing_trials", {}).values()}
        lost = named - self.trials.keys()
        lost |= {*project.missing_ids([*self.trials, *lost])}
        space = self.hyperparameters
        if "hyperparameters" in state:
            config = copy.deepcopy(state["hyperparameters"])  # it is changed
            space = keras_tuner.HyperParameters.from_config(config)
        for trial_id in lost:
            self.trials[trial_id] = reader.substitute(trial_id, space)
        ids = sorted(self.trials, key=project.order)
        self.trials = {trial_id: self.trials[trial_id] for trial_id in ids}

    def _folder(self) -> pathlib.Path | None:
        """The project directory; None before there is one, or if it is no local one."""
        # Private: the oracle has no public way to its folder.
        folder = getattr(self, "_project_dir", None)
        return None if folder is None or "://" in folder else pathlib.Path(folder)

    def _write(self, path: pathlib.Path, text: str) -> bool:
        """Writes a file as a whole; says once that it could not."""
        try:
            files.write_atomically(path, text)
        except OSError as error:
            if self._writable:
                warn(
                    f"the state of the search is not saved while {path} cannot be "
                    f"written: {error}. The search goes on in memory."
                )
            self._writable = False
            return False
        self._writable = True
        return True


class _Reader:
    """Reads the files of a project; what cannot be read is told, and set aside.

    Args:
        folder: the project directory.
        mends: whether files may be set aside.
    """

    def __init__(self, folder: pathlib.Path, mends: bool) -> None:
        self.mends = mends
        self.made: list[str] = []  # ids of trials that stand for lost ones
        self._folder = folder

    def oracle(self) -> dict[str, Any] | None:
        """The state of the oracle; None when there is none that can be read."""
        state: dict[str, Any] | None
        state = self._read(self._folder / project.ORACLE, project.read_oracle)
        return state

    def trials(self, space: keras_tuner.HyperParameters) -> dict[str, Trial]:
        """All trials by id; those whose file cannot be read have a substitute."""
        found = {}
        for folder in project.trial_folders(self._folder):
            trial_id, path = project.trial_id_of(folder), folder / project.TRIAL
            if not path.exists() and not any(folder.glob(f"{project.TRIAL}*")):
                continue  # killed before anything was written of it
            trial = self._read(path, _load_trial)
            found[trial_id] = trial or self.substitute(trial_id, space)
        return found

    def substitute(self, trial_id: str, space: keras_tuner.HyperParameters) -> Trial:
        """A trial in the place of a lost one: to be run again, or a failed one."""
        self.made.append(trial_id)
        hyperparameters = space.copy()
        try:
            path = self._folder / f"trial_{trial_id}" / "trace-0.jsonl"
            values = read_trace(path, columns=False).header.hyperparameters
            hyperparameters.values = dict(values)
            return Trial(hyperparameters, trial_id, TrialStatus.RUNNING)
        except (OSError, ValueError):
            message = "The files of this trial could not be read."
            return Trial(hyperparameters, trial_id, TrialStatus.FAILED, message)

    def mend_tuner_file(self) -> None:
        """Replaces the file that KerasTuner's own tuner is going to read next."""
        name = f"{os.environ.get('KERASTUNER_TUNER_ID', 'tuner0')}.json"
        path = self._folder / name
        if self.mends and path.exists() and self._read(path, project.read_json) is None:
            files.write_atomically(path, "{}")

    def give_up(self, path: pathlib.Path, error: Exception) -> None:
        """Sets a file aside, with a warning."""
        reason = f"{path} cannot be used: {type(error).__name__}: {error}"
        place = None
        if self.mends:
            try:
                place = project.set_aside(path)
            except OSError:
                pass
        warn(reason if place is None else f"{reason}. It is now {place.name}.")

    def _read(self, path: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Any:
        try:
            return read(path)
        except FileNotFoundError:
            return None
        except Exception as error:
            self.give_up(path, error)
            return None


def _load_trial(path: pathlib.Path) -> Trial:
    return Trial.from_state(project.read_trial(path))


def _agreeing(
    state: Mapping[str, Any], trials: Mapping[str, Trial], keep_ongoing: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """The state of an oracle, made to agree with the trials; and who runs what.

    A process may have been killed between writing a trial and writing the oracle.
    """
    ended = {i: 0 for i, trial in trials.items() if trial.status in project.ENDED}
    ongoing = {
        tuner_id: trial_id
        for tuner_id, trial_id in state["ongoing_trials"].items()
        if keep_ongoing and trials[trial_id].status == TrialStatus.RUNNING
    }
    waiting = [*state["retry_queue"], *state["ongoing_trials"].values(), *trials]
    settled = {*ended, *ongoing.values()}
    now = datetime.datetime.now().isoformat()
    display = {**state["display"]}
    display["search_start"] = display.get("search_start") or now
    for key, make in (("trial_start", lambda i: now), ("trial_number", _number)):
        display[key] = {i: make(i) for i in trials} | {**display.get(key, {})}
    agreeing = {
        **state,
        "ongoing_trials": ongoing,
        "start_order": _merged(state["start_order"], trials),
        "end_order": [i for i in _merged(state["end_order"], ended) if i in ended],
        "retry_queue": [i for i in dict.fromkeys(waiting) if i not in settled],
        "display": display,
    }
    return agreeing, ongoing


def _merged(order: list[str], ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*order, *ids]))


def _number(trial_id: str) -> int:
    return int(trial_id) + 1 if trial_id.isdecimal() else 0


def _signature(folder: pathlib.Path) -> tuple[int, ...] | None:
    """What tells one oracle.json from the next; None when there is none."""
    try:
        stat = (folder / project.ORACLE).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
