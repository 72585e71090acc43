"""A search on many processes and machines, by Ray.

```python
def search():
    tuner = ktb.RandomSearch(build_model, objective="val_loss", directory="/shared")
    tuner.search(x, y, validation_data=(xv, yv), callbacks=[ktb.DiagnosisCallback()])

ktb.launch(search, workers=4, resources_per_worker={"GPU": 1}, address="auto")
```
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from kt_bttackler.extras import required
from kt_bttackler.fleet import Fleet, Launched, say


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
            worker sees no GPUs but its own, and none without "GPU" here.
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
        fleet = Fleet(ray, search_fn, resources, max_restarts, ip)
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
    say(f"output of the processes: {context.address_info['session_dir']}/logs")
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
