"""Chief and workers of a launched search, as the process that launched it sees them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from kt_bttackler.launched import CHIEF, SEARCHED, Chief, News, environment, work

# Seconds between two looks at the search.
_PERIOD = 1.0
# Seconds after which it is said that a worker waits for resources; that a chief without
# workers has to end (it looks every 20 s); and that late workers have to.
_TOLD_AFTER, _CHIEF_ENDS_WITHIN, _WORKERS_END_WITHIN = 30.0, 60.0, 15.0
_COLOUR = re.compile(r"\x1b\[\d+m")


@dataclasses.dataclass(frozen=True)
class WorkerEnd:
    """How a worker has ended.

    Attributes:
        outcome: "finished"; "lost", it died once more than it may be started again;
            "failed", the search function raised; "not needed", the search was over
            before it had begun.
        restarts: how often it was started again.
        message: why it was lost or failed, in one line.
    """

    outcome: str
    restarts: int = 0
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Launched:
    """What a launched search has come to.

    Attributes:
        project_dir: its project directory, for `ktb.summary` and a tuner that reloads.
        trials: number of trials by status.
        workers: how each worker ended, by its id.

    Example:
        >>> ends = {"worker0": WorkerEnd("finished", restarts=1)}
        >>> Launched("/shared/p", {"COMPLETED": 3}, ends).workers["worker0"].outcome
        'finished'
    """

    project_dir: str
    trials: Mapping[str, int]
    workers: Mapping[str, WorkerEnd]


class Fleet:
    """Chief and workers of one search, as their driver sees them.

    Args:
        ray: the module.
        search_fn: see `launch`.
        resources: of a worker.
        max_restarts: of each process.
        ip: address of the chief; by default that of this machine in the cluster.
    """

    def __init__(
        self,
        ray: Any,
        search_fn: Callable[[], object],
        resources: Mapping[str, float],
        max_restarts: int,
        ip: str | None = None,
    ) -> None:
        self._ray = ray
        self._resources = dict(resources)
        self._max_restarts = max_restarts
        self._restarts: Counter[str] = Counter()
        self._tasks: dict[str, Any] = {}  # of the workers that are there, by id
        self._since: dict[str, float] = {}  # when they were started
        self._ends: dict[str, WorkerEnd] = {}
        self._stages: dict[str, str] = {}
        self._told: set[str] = set()
        self._news = News()
        self._asked: Any = None  # for the next news
        self._project_dir = ""
        self._served = False  # whether there was a chief before
        self._chief_ended = self._alone_since = 0.0
        node = ray.get_runtime_context().get_node_id()
        self._ip = ip or next(
            each["NodeManagerAddress"] for each in ray.nodes() if each["NodeID"] == node
        )
        self._port = _free_port(self._ip)
        try:
            # Fetched where it runs, so that what fails there is an error of the user's.
            self._load = functools.partial(ray.get, ray.put(search_fn))
        except TypeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"`search_fn` must be sendable to other processes, got {search_fn!r}: "
                f"{reason}"
            ) from error
        self._chief = self._start_chief(node)

    def run(self, workers: int) -> Launched:
        """Starts the workers when the chief is ready; stays until all have ended."""
        while not (self._news.searching or self._news.ended):
            time.sleep(_PERIOD)
            self._listen()
        self._raise_error()
        say(f"chief at {self._ip}:{self._port}, project in {self._project_dir}")
        if not self._resources.get("GPU") and self._ray.cluster_resources().get("GPU"):
            say("the workers see no GPU: `resources_per_worker` asks for none")
        for number in range(workers):
            self._start(f"worker{number}")
        while self._tasks or not self._news.ended:
            self._take_ends()
            self._listen()
            if self._news.ended:
                self._raise_error()
                self._dismiss_late()
            elif not self._tasks:
                self._go_on_without_workers()
            self._tell_who_waits()
        counts = ", ".join(f"{n} {status}" for status, n in self._news.trials.items())
        say(f"trials: {counts or 'none'}; project in {self._project_dir}")
        ends = dict(sorted(self._ends.items()))
        return Launched(self._project_dir, dict(self._news.trials), ends)

    def end(self) -> None:
        """Ends every process that is left."""
        for task in self._tasks.values():
            self._ray.cancel(task, force=True)
        self._ray.kill(self._chief)

    # --- the chief ---

    def _start_chief(self, node: str) -> Any:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        strategy = strategies.NodeAffinitySchedulingStrategy
        actor = self._ray.remote(Chief).options(
            num_cpus=0,
            max_restarts=self._max_restarts,
            scheduling_strategy=strategy(node, soft=False),
            runtime_env=self._runtime_env(CHIEF),
        )
        return actor.remote()

    def _listen(self) -> None:
        """Hears what the chief has to tell, and prints it."""
        errors = self._ray.exceptions
        try:
            self._asked = self._asked or self._chief.news.remote()
            self._news = self._ray.get(self._asked, timeout=10)
            self._asked = None
        except errors.GetTimeoutError:  # it is busy; the answer will be there later
            return
        except errors.ActorUnavailableError:
            self._asked = None
            say("the chief is away; Ray starts it again")
            time.sleep(_PERIOD)
            return
        except errors.RayActorError as error:
            raise RuntimeError(
                f"the chief died too often: {_line(error)}. {self._how_to_go_on()}"
            ) from error
        if not self._news.begun:  # it is new, or was started again
            self._chief.begin.remote(self._load, os.getcwd(), self._served)
            self._served = True
        self._stages.update(self._news.stages)
        self._project_dir = self._news.project_dir or self._project_dir
        for line in self._news.lines:
            say(line)

    def _raise_error(self) -> None:
        if self._news.error:
            raise RuntimeError(self._news.error)

    def _lose(self, name: str) -> None:
        """Tells the chief that a worker will not come back."""
        try:
            self._ray.get(self._chief.lose.remote(name), timeout=60)
        except (
            self._ray.exceptions.GetTimeoutError,
            self._ray.exceptions.RayActorError,
        ):  # a chief that is started again waits for no worker for long
            pass

    # --- the workers ---

    def _start(self, name: str) -> None:
        resources = dict(self._resources)
        task = self._ray.remote(max_calls=1, max_retries=0)(work).options(
            name=name,
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0) or None,
            memory=resources.pop("memory", None),
            resources=resources,
            runtime_env=self._runtime_env(name),
        )
        self._stages.pop(name, None)
        self._ends.pop(name, None)
        self._since[name] = time.monotonic()
        self._tasks[name] = task.remote(name, self._load, self._chief, os.getcwd())

    def _runtime_env(self, name: str) -> dict[str, Any]:
        gpus = name != CHIEF and self._resources.get("GPU", 0) > 0
        return {"env_vars": environment(name, self._ip, self._port, gpus)}

    def _take_ends(self) -> None:
        """Waits a moment for workers that end, and decides what follows."""
        if not self._tasks:
            time.sleep(_PERIOD)
            return
        names = {task: name for name, task in self._tasks.items()}
        ready, _ = self._ray.wait(list(names), timeout=_PERIOD)
        for task in ready:
            name = names[task]
            del self._tasks[name]
            try:
                self._ray.get(task)
                self._end(name, "finished")
            except self._ray.exceptions.RayTaskError as error:
                self._has_failed(name, error)
            except self._ray.exceptions.RayError as error:
                self._has_died(name, _line(error))

    def _has_failed(self, name: str, error: Any) -> None:
        """The function has raised; it would do so again."""
        message = f"{type(error.cause).__name__}: {_line(error.cause)}"
        if message not in self._told:
            self._told.add(message)
            # Its text is the traceback from the worker, with colours of a terminal.
            say(f"{name}: `search_fn` failed: {_COLOUR.sub('', str(error))}")
        self._lose(name)
        self._end(name, "failed", message)

    def _has_died(self, name: str, reason: str) -> None:
        if self._news.ended:
            self._end(name, "not needed")
        elif self._restarts[name] < self._max_restarts:
            self._restarts[name] += 1
            count = f"{self._restarts[name]} of {self._max_restarts}"
            say(f"{name}: died ({reason}); it is started again [{count}]")
            self._start(name)
        else:
            say(f"{name}: lost ({reason})")
            self._lose(name)
            self._end(name, "lost", reason)

    def _end(self, name: str, outcome: str, message: str = "") -> None:
        self._ends[name] = WorkerEnd(outcome, self._restarts[name], message)

    def _go_on_without_workers(self) -> None:
        """Starts a worker again for trials that lost ones left; else waits for the end.

        Raises:
            RuntimeError: there is none to start.
        """
        if not self._news.searching:  # it is being started again
            return
        finished = [n for n, end in self._ends.items() if end.outcome == "finished"]
        able = [n for n in finished if self._restarts[n] < self._max_restarts]
        waiting = self._news.waiting
        if waiting and able:
            self._restarts[able[0]] += 1
            trials = "a trial that waits" if waiting == 1 else f"{waiting} trials"
            say(f"{able[0]}: started again for {trials}")
            self._start(able[0])
            self._alone_since = 0.0
            return
        self._alone_since = self._alone_since or time.monotonic()
        alone = time.monotonic() - self._alone_since
        if finished and not waiting and alone < _CHIEF_ENDS_WITHIN:
            return
        reasons = {
            f"{end.outcome}, {end.message}".rstrip(", ") for end in self._ends.values()
        }
        raise RuntimeError(
            f"no worker is left: {'; '.join(sorted(reasons))}. {self._how_to_go_on()}"
        )

    def _dismiss_late(self) -> None:
        """Ends workers that have come, or would come, after the search was over."""
        self._chief_ended = self._chief_ended or time.monotonic()
        if time.monotonic() - self._chief_ended < _WORKERS_END_WITHIN:
            return
        for name, task in self._tasks.items():
            # Others may be busy with what the function does after its search.
            if self._stages.get(name) != SEARCHED:
                self._ray.cancel(task, force=True)

    def _tell_who_waits(self) -> None:
        for name in self._tasks.keys() - self._stages.keys() - self._told:
            if time.monotonic() - self._since[name] > _TOLD_AFTER:
                self._told.add(name)
                free = self._ray.available_resources()
                offer = {key: free.get(key, 0) for key in self._resources}
                say(f"{name}: waits for {self._resources}; free: {offer}")

    def _how_to_go_on(self) -> str:
        return f"Launch it again to go on; the project is {self._project_dir}"


def _free_port(ip: str) -> int:
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])


def _line(error: BaseException) -> str:
    """The first sentence of what an error says."""
    return (str(error).strip().splitlines() or [""])[0].partition(". ")[0]


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)
