"""What runs in the processes of a launched search: its chief and its workers.

Every process calls the same function, and learns from variables of the environment what
it is, as in KerasTuner's distributed mode. Nothing here knows Ray.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kt_bttackler import project, roles
from kt_bttackler.diagnosis import reason

CHIEF = "chief"
# What a worker is doing: before, in and after the search of its tuner.
LOADING, SEARCHING, SEARCHED = "loading", "searching", "searched"
# Seconds after which a file that another machine wrote is to be seen here.
_SEEN_WITHIN = 10.0


def environment(name: str, ip: str, port: int, gpus: bool = False) -> dict[str, str]:
    """Variables that tell KerasTuner what a process is in the search.

    Args:
        name: "chief", or the id of the worker.
        ip: address to which the chief is bound.
        port: its port.
        gpus: whether it is given GPUs; else it is to see none, or it would take the
            memory of all.

    Example:
        >>> environment("worker0", "10.0.0.2", 8000)["KERASTUNER_ORACLE_PORT"]
        '8000'
    """
    variables = {
        "KERASTUNER_TUNER_ID": name,
        "KERASTUNER_ORACLE_IP": ip,
        "KERASTUNER_ORACLE_PORT": str(port),
    }
    return variables if gpus else variables | {"CUDA_VISIBLE_DEVICES": ""}


def run(search_fn: Callable[[], object], folder: str) -> None:
    """Calls a search function as the main program would.

    Args:
        search_fn: the function.
        folder: working directory of the driver; where it does not exist, that of the
            process stays as it is.

    Raises:
        RuntimeError: the function ended the process with an exit code.
    """
    with contextlib.suppress(OSError):
        os.chdir(folder)
    try:
        search_fn()
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise RuntimeError(f"it ended with exit code {stop.code}") from stop


@contextlib.contextmanager
def observed(
    begun: Callable[[Any], object], ended: Callable[[Any], object]
) -> Iterator[None]:
    """Calls back before and after each search of any tuner in this process.

    The function of the user builds the tuner; this is how the process finds it.

    Args:
        begun: called with the tuner before it searches.
        ended: called with the tuner after it has searched.
    """
    from keras_tuner.engine.base_tuner import BaseTuner

    search = BaseTuner.search

    @functools.wraps(search)
    def observed_search(tuner: Any, *args: Any, **kwargs: Any) -> Any:
        begun(tuner)
        result = search(tuner, *args, **kwargs)
        ended(tuner)
        return result

    BaseTuner.search = observed_search
    try:
        yield
    finally:
        BaseTuner.search = search


@dataclasses.dataclass(frozen=True)
class News:
    """How a search is going.

    Attributes:
        lines: what has happened since the last news.
        stages: by worker, what it is doing.
        begun: whether the chief was told to begin.
        searching: whether the chief has come to its search.
        ended: whether its function has returned or raised.
        error: what went wrong with it, with a traceback, or "".
        project_dir: of the search, or "" before it has begun.
        trials: number of trials by status.
        waiting: number of trials that run, or wait to be run again.
    """

    lines: tuple[str, ...] = ()
    stages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    begun: bool = False
    searching: bool = False
    ended: bool = False
    error: str = ""
    project_dir: str = ""
    trials: Mapping[str, int] = dataclasses.field(default_factory=dict)
    waiting: int = 0


class Bulletin:
    """Tells in lines what has become of the trials of a search.

    What had ended before it was asked first is known.
    """

    def __init__(self) -> None:
        self._told: set[str] | None = None
        self._runners: dict[str, str] = {}

    def lines(self, oracle: Any) -> list[str]:
        """What is new in the oracle of a chief since the last call."""
        ended = list(dict.fromkeys(oracle.end_order))
        running = {t.trial_id: name for name, t in list(oracle.ongoing_trials.items())}
        if self._told is None:
            self._told = set(ended)
        lines = []
        for number, trial_id in enumerate(ended, 1):
            if trial_id not in self._told:
                self._told.add(trial_id)
                runner = self._runners.get(trial_id) or running.get(trial_id)
                of = getattr(oracle, "max_trials", None)
                count = f"{number} of {of}" if of else f"{number}"
                lines.append(f"{_prefix(runner)}{_outcome(oracle, trial_id)} [{count}]")
        for trial_id, name in running.items():
            if trial_id not in self._told and self._runners.get(trial_id) != name:
                self._runners[trial_id] = name
                lines.append(f"{name}: trial {trial_id} begins")
        return lines


class Chief:
    """The chief of a search, which runs in a thread, and what the driver asks it."""

    def __init__(self) -> None:
        self._tuner: Any = None
        self._lines: list[str] = []
        self._stages: dict[str, str] = {}
        self._bulletin = Bulletin()
        self._error, self._begun, self._ended = "", False, False

    def begin(
        self,
        load: Callable[[], Callable[[], object]],
        folder: str,
        restarted: bool = False,
    ) -> None:
        """Begins the search.

        Args:
            load: gives the search function.
            folder: working directory of the driver.
            restarted: whether this chief takes the place of one that died.
        """
        self._begun = True
        if restarted:
            os.environ[roles.RESTARTED] = "1"
        threading.Thread(
            target=self._search, args=(load, folder), name="search", daemon=True
        ).start()

    def hear(self, name: str, stage: str, line: str = "") -> None:
        """A worker tells what it is doing."""
        self._stages[name] = stage
        if line:
            self._lines.append(f"{name}: {line}")

    def news(self) -> News:
        """What is new."""
        lines, self._lines = self._lines, []
        news = News(
            begun=self._begun,
            ended=self._ended,
            error=self._error,
            stages=dict(self._stages),
        )
        tuner = self._tuner
        if tuner is None:
            return dataclasses.replace(news, lines=tuple(lines))
        folder, oracle = str(tuner.project_dir), tuner.oracle
        # Copied first: the search goes on in another thread.
        statuses = [trial.status for trial in list(oracle.trials.values())]
        ended = set(oracle.end_order)
        return dataclasses.replace(
            news,
            lines=(*lines, *self._bulletin.lines(oracle)),
            searching=True,
            project_dir=folder if "://" in folder else os.path.abspath(folder),
            trials=dict(collections.Counter(statuses)),
            waiting=len(statuses) - len(ended),
        )

    def lose(self, name: str) -> None:
        """A worker will not come back."""
        if self._tuner is not None:
            lose_worker(self._tuner.oracle, name)

    def _search(self, load: Callable[[], Callable[[], object]], folder: str) -> None:
        try:
            with observed(self._begin, lambda tuner: None):
                run(load(), folder)
            if self._tuner is None:
                self._error = (
                    "`search_fn` must build a tuner and call its `search`; it "
                    "returned without."
                )
        except BaseException:  # also one that is to end the process: told, not lost
            self._error = f"`search_fn` failed: {traceback.format_exc()}"
        finally:
            self._ended = True

    def _begin(self, tuner: Any) -> None:
        self._tuner, self._bulletin = tuner, Bulletin()


def lose_worker(oracle: Any, name: str) -> None:
    """Frees what a worker holds that will not come back.

    An oracle of this package puts its trial back for another worker. In any other one
    the trial ends as invalid, which is run again if `max_retries_per_trial` allows it.

    Args:
        oracle: the oracle of the chief.
        name: id of the worker.
    """
    if hasattr(oracle, "lose_worker"):
        oracle.lose_worker(name)
        return
    trial = oracle.ongoing_trials.get(name)
    if trial is not None:
        trial.status, trial.message = "INVALID", f"Worker {name} was lost."
        oracle.end_trial(trial)
    oracle.tuner_ids.discard(name)


def work(
    name: str, load: Callable[[], Callable[[], object]], chief: Any, folder: str
) -> None:
    """What a worker does, in a process of its own.

    Args:
        name: its id.
        load: gives the search function.
        chief: a handle of the chief.
        folder: working directory of the driver.
    """
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    place = f"process {os.getpid()} on {socket.gethostname()}"
    place += f", GPU {devices}" if devices else ""
    chief.hear.remote(name, LOADING, place)

    def begun(tuner: Any) -> None:
        line, folder = "", str(tuner.project_dir)
        if not _is_shared(folder):
            line = f"{folder} is not that of the chief; what is recorded stays here"
        chief.hear.remote(name, SEARCHING, line)

    with observed(begun, lambda tuner: chief.hear.remote(name, SEARCHED)):
        run(load(), folder)


def _is_shared(folder: str) -> bool:
    """Whether what the chief writes is seen here."""
    deadline = time.monotonic() + _SEEN_WITHIN
    while "://" not in folder and not pathlib.Path(folder, project.ORACLE).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _prefix(runner: str | None) -> str:
    return "" if runner is None else f"{runner}: "


def _outcome(oracle: Any, trial_id: str) -> str:
    """What a trial has come to, in one line."""
    trial = oracle.trials[trial_id]
    score = (
        "" if trial.score is None else f", {oracle.objective.name} {trial.score:.4g}"
    )
    message = reason(trial.message or "")
    return f"trial {trial_id} {trial.status}{score}{': ' * bool(message)}{message}"
