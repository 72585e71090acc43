"""Searches that are launched on a Ray cluster of this machine, and what befalls them.

    python tests/launches.py SCENARIO FOLDER

runs one and prints what was seen, as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import scenarios

import kt_bttackler as ktb


def search(folder: str, trials: int = 6, pause: float = 0.6) -> None:
    """A search that notes the processes in which it runs, and the GPUs they see."""
    name = os.environ["KERASTUNER_TUNER_ID"]
    fact = {
        "pid": os.getpid(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "address": os.environ["KERASTUNER_ORACLE_IP"],
    }
    with open(f"{folder}/processes-{name}", "a") as file:
        file.write(json.dumps(fact) + "\n")
    scenarios.search(folder, "RandomSearch", pause, "auto", max_trials=trials)


def processes(folder: str, name: str) -> list[dict[str, Any]]:
    path = pathlib.Path(folder, f"processes-{name}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def trial_in_an_epoch(folder: str, name: str) -> str | None:
    """The trial that a worker has begun last, if it is in the midst of its training."""
    begun = [trial for who, trial in scenarios.runs(folder) if who == name]
    return begun[-1] if begun and scenarios.in_an_epoch(folder, begun[-1]) else None


def begun(folder: str, name: str) -> int:
    """How many trials a worker has begun, in all its lives."""
    return len([1 for who, _ in scenarios.runs(folder) if who == name])


def kill_in_a_trial(folder: str, name: str, after: int = 0) -> str:
    """Kills a worker while it trains; returns the trial it leaves.

    Args:
        after: trials that it must have begun before the one in which it is killed.
    """
    scenarios.wait_for(
        lambda: begun(folder, name) > after and trial_in_an_epoch(folder, name), 200
    )
    trial = trial_in_an_epoch(folder, name)
    os.kill(processes(folder, name)[-1]["pid"], signal.SIGKILL)
    assert trial is not None
    return trial


@contextlib.contextmanager
def meanwhile(action: Callable[[], Any]) -> Iterator[list[Any]]:
    """Does something beside the search; its result is in the list at the end."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()
    yield results
    thread.join(5)


def launched(folder: str, search_fn: Callable[[], None], **kwargs: Any) -> Any:
    """What `launch` returns or raises, and what it prints."""
    told = io.StringIO()
    found: dict[str, Any] = {}
    try:
        with contextlib.redirect_stdout(told):
            found = dataclasses.asdict(ktb.launch(search_fn, **kwargs))
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    print(told.getvalue(), file=sys.stderr)
    return found | {"told": told.getvalue().splitlines()}


def kill_a_worker(folder: str) -> dict[str, Any]:
    """One of two workers is killed in a trial; each has a GPU."""
    with meanwhile(lambda: kill_in_a_trial(folder, "worker1")) as lost:
        found = launched(
            folder,
            functools.partial(search, folder),
            workers=2,
            resources_per_worker={"CPU": 1, "GPU": 1},
        )
    names = ("chief", "worker0", "worker1")
    return scenarios.facts(folder) | found | {
        "lost": lost, "processes": {name: processes(folder, name) for name in names},
    }  # fmt: skip


def lose_a_worker_and_the_chief(folder: str) -> dict[str, Any]:
    """A worker is killed twice, which is once too often, and then the chief."""

    def kill() -> str:
        kill_in_a_trial(folder, "worker1")
        lost = kill_in_a_trial(folder, "worker1", begun(folder, "worker1"))
        ended = len(scenarios.settled(folder))
        scenarios.wait_for(lambda: len(scenarios.settled(folder)) > ended, 100)
        os.kill(processes(folder, "chief")[-1]["pid"], signal.SIGKILL)
        return lost

    with meanwhile(kill) as lost:
        found = launched(
            folder, functools.partial(search, folder, 8), workers=2, max_restarts=1
        )
    gpus = [each["gpus"] for n in (0, 1) for each in processes(folder, f"worker{n}")]
    return scenarios.facts(folder) | found | {"lost": lost, "gpus": gpus}


def lose_the_last_worker(folder: str) -> dict[str, Any]:
    """A worker is lost when the other one has done all that there was to do."""

    def unevenly() -> None:
        name = os.environ["KERASTUNER_TUNER_ID"]
        if name == "worker0":
            scenarios.wait_for(lambda: begun(folder, "worker1"), 200)
        search(folder, 2, 5.0 if name == "worker1" else 0.0)

    def kill() -> str:
        scenarios.wait_for(lambda: len(scenarios.settled(folder)) == 1, 200)
        kill_in_a_trial(folder, "worker1")
        return kill_in_a_trial(folder, "worker1", begun(folder, "worker1"))

    with meanwhile(kill) as lost:
        found = launched(folder, unevenly, workers=2, max_restarts=1)
    return scenarios.facts(folder) | found | {"lost": lost}


def fail(folder: str) -> dict[str, Any]:
    """Functions that raise, or do not search."""

    def raises() -> None:
        raise KeyError("no such column")

    def raises_in_workers() -> None:
        if os.environ["KERASTUNER_TUNER_ID"] != "chief":
            raise OSError("no such disk")
        search(folder)

    return {
        "everywhere": launched(folder, raises, workers=2),
        "nothing": launched(folder, lambda: None, workers=2),
        "workers": launched(folder, raises_in_workers, workers=2),
    }


SCENARIOS = (
    kill_a_worker,
    lose_a_worker_and_the_chief,
    lose_the_last_worker,
    fail,
)

if __name__ == "__main__":
    import ray

    # More than there are: nothing here needs a whole processor, or a GPU.
    ray.init(
        address="local", num_cpus=4, num_gpus=2, include_dashboard=False,
        log_to_driver=False,
    )  # fmt: skip
    scenario = {each.__name__: each for each in SCENARIOS}[sys.argv[1]]
    result = scenario(sys.argv[2])
    ray.shutdown()
    print(json.dumps(result))
