"""A search on many processes and machines, by Ray.

```python
def search():
    tuner = ktb.RandomSearch(build_model, objective="val_loss", directory="/shared")
    tuner.search(x, y, validation_data=(xv, yv), callbacks=[ktb.DiagnosisCallback()])

ktb.launch(search, workers=4, resources_per_worker={"GPU": 1}, address="auto")
```
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from kt_bttackler.extras import required
from kt_bttackler.launched import CHIEF, SEARCHED, Chief, News, environment, work

# Seconds between two looks at the search.
_PERIOD = 1.0
# Seconds after which it is said that a worker waits for resources; that a chief without
# workers has to end (it looks every 20 s); and that late workers have to.
_TOLD_AFTER, _CHIEF_ENDS_WITHIN, _WORKERS_END_WITHIN = 30.0, 60.0, 15.0


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


def launch(
    search_fn: Callable[[], object],
    workers: int = 1,
    resources_per_worker: Mapping[str, float] | None = None,
    max_restarts: int = 3,
    address: str | None = None,
) -> Launched:
    """Runs a search with a chief and several workers, each in a process of its own.

    Every process calls `search_fn`, which would run the whole search if it were
    called here: KerasTuner's distributed mode decides what it does. The chief is on
    this machine, bound to the address that Ray knows it by, or to 127.0.0.1 where Ray
    is started for this machine alone. The ids of the workers are "worker0", "worker1",
    ... A process that dies is started again under its id, whereupon it is handed its
    trial again. When a worker is finally lost, its trial is put back for another one.
    What happens is printed. See `docs/distributed.md`.

    Args:
        search_fn: function of no arguments that builds a tuner and calls its `search`.
            It is sent to the processes; what it needs must be there.
        workers: number of workers, at least 1.
        resources_per_worker: what Ray reserves for a worker, by default `{"CPU": 1}`;
            "GPU", "memory" (bytes) and resources of the cluster's own are others. A
            worker sees no GPUs but its own.
        max_restarts: how often each process may be started again after its death.
        address: "auto" or "host:port" of a running Ray cluster, of which this machine
            is a node. By default the Ray that this process is connected to, or the
            one that the variable RAY_ADDRESS names, or one of this machine alone.

    Returns:
        Project directory, trials by status, and how each worker ended.

    Raises:
        ValueError: an argument is out of its range, cannot be sent, or asks for more
            than this machine has.
        ImportError: Ray is not installed.
        RuntimeError: `search_fn` raised in the chief or called no `search`; or no
            worker is left. What has been searched is kept: launch it again.

    Example:
        See `examples/07_search_on_ray.py`.
    """
    resources = dict(
        {"CPU": 1} if resources_per_worker is None else resources_per_worker
    )
    _check(search_fn, workers, resources, max_restarts)
    ray = required("ray", "`launch`", extra="ray")
    connected = ray.is_initialized()
    if connected and address is not None:
        raise ValueError(
            f"`address` must be None when Ray is initialized already, got {address!r}."
        )
    ip = None if connected else _connect(ray, address, resources)
    try:
        fleet = _Fleet(ray, search_fn, resources, max_restarts, ip)
        try:
            return fleet.run(workers)
        finally:
            fleet.end()
    finally:
        if not connected:
            ray.shutdown()


def _check(
    search_fn: object, workers: int, resources: Mapping[str, float], max_restarts: int
) -> None:
    if not callable(search_fn):
        raise ValueError(f"`search_fn` must be a function, got {search_fn!r}.")
    for name, value, least in (
        ("workers", workers, 1),
        ("max_restarts", max_restarts, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"`{name}` must be a whole number of at least {least}, got {value!r}."
            )
    for name, amount in resources.items():
        if not isinstance(amount, int | float) or not 0 <= amount < float("inf"):
            raise ValueError(
                f"`resources_per_worker[{name!r}]` must be a number of at least 0, "
                f"got {amount!r}."
            )


def _connect(
    ray: Any, address: str | None, resources: Mapping[str, float]
) -> str | None:
    """Connects to a cluster, or makes one of this machine.

    Returns:
        The address that is enough for the chief, where there is no other machine.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise ValueError(
            "`address` must be that of a cluster of which this machine is a node, got "
            f"{address!r}: launch it from a node, or by `ray job submit`."
        )
    # What processes print stays in their files, or progress bars would hide the rest.
    options: dict[str, Any] = {"log_to_driver": False}
    if address == "local":
        options["include_dashboard"] = False
    try:
        context = ray.init(address=address, **options)
    except ConnectionError as error:
        raise ValueError(
            f"`address` must be that of a running Ray cluster, got {address!r}: {error}"
        ) from error
    _say(f"output of the processes: {context.address_info['session_dir']}/logs")
    if address != "local":
        return None
    there = ray.cluster_resources()
    for name, amount in resources.items():
        if amount > there.get(name, 0):
            ray.shutdown()
            raise ValueError(
                f"`resources_per_worker[{name!r}]` must be at most what this machine "
                f"has, {there.get(name, 0):g}, got {amount:g}."
            )
    return "127.0.0.1"


class _Fleet:
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
        _say(f"chief at {self._ip}:{self._port}, project in {self._project_dir}")
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
        _say(f"trials: {counts or 'none'}; project in {self._project_dir}")
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
            self._news = self._ray.get(self._chief.news.remote(), timeout=10)
        except errors.GetTimeoutError:
            return
        except errors.ActorUnavailableError:
            _say("the chief is away; Ray starts it again")
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
            _say(line)

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
        return {"env_vars": environment(name, self._ip, self._port)}

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
            _say(f"{name}: `search_fn` failed: {error.traceback_str}")
        self._lose(name)
        self._end(name, "failed", message)

    def _has_died(self, name: str, reason: str) -> None:
        if self._news.ended:
            self._end(name, "not needed")
        elif self._restarts[name] < self._max_restarts:
            self._restarts[name] += 1
            count = f"{self._restarts[name]} of {self._max_restarts}"
            _say(f"{name}: died ({reason}); it is started again [{count}]")
            self._start(name)
        else:
            _say(f"{name}: lost ({reason})")
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
        waiting = self._ray.get(self._chief.waiting.remote(), timeout=60)
        if waiting and able:
            self._restarts[able[0]] += 1
            _say(f"{able[0]}: started again for {waiting} trials that wait")
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
                _say(f"{name}: waits for {self._resources}; free: {offer}")

    def _how_to_go_on(self) -> str:
        return f"Launch it again to go on; the project is {self._project_dir}"


def _free_port(ip: str) -> int:
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])


def _line(error: BaseException) -> str:
    """The first sentence of what an error says."""
    return (str(error).strip().splitlines() or [""])[0].partition(". ")[0]


def _say(line: str) -> None:
    print(line, flush=True)
