"""Accidents of real searches: processes that are killed, at their worst moments.

    python tests/scenarios.py SCENARIO FOLDER

runs one and prints what was seen, as JSON. The processes of a search are forked from
this one, which has imported everything but used nothing of it, so that each begins
within a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_tuner
import numpy as np

import kt_bttackler as ktb
from kt_bttackler import locking, project
from kt_bttackler.trace import read_trace

warnings.filterwarnings("ignore", category=DeprecationWarning)
RANDOM = np.random.default_rng(1)
X = RANDOM.normal(size=(64, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("float32")[:, None]
EPOCHS = 5
# A worker that is silent for longer than this is lost; three signs of life fit in it.
LOST_AFTER = 15.0


def build(hp: Any) -> Any:
    """A network that learns, or one that cannot."""
    kind = hp.Choice("kind", ["fine", "dead"])
    rate = hp.Float("rate", 0.01, 0.1, sampling="log")
    start = "zeros" if kind == "dead" else "he_normal"
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="relu", kernel_initializer=start),
            keras.layers.Dense(6, activation="relu", kernel_initializer=start),
            keras.layers.Dense(1, activation="sigmoid", kernel_initializer=start),
        ]
    )
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy")
    return model


class Slowly(keras.callbacks.Callback):
    """Makes an epoch last."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        time.sleep(self.seconds)


def tuner(folder: str, kind: str = "RandomSearch", **kwargs: Any) -> Any:
    """A tuner of this package; it notes in `runs` which trials it runs."""
    if kind == "Hyperband":
        size = {"max_epochs": 4, "factor": 2}
    else:
        size = {"max_trials": kwargs.pop("max_trials", 6)}
    if kind == "BayesianOptimization":
        size["num_initial_points"] = 3
    found = getattr(ktb, kind)(
        build,
        objective="val_loss",
        seed=3,
        directory=folder,
        project_name="p",
        lost_after=LOST_AFTER,
        **size,
        **kwargs,
    )
    begin = found.on_trial_begin

    def noted(trial: Any) -> None:
        with open(f"{folder}/runs", "a") as file:
            file.write(f"{found.tuner_id} {trial.trial_id}\n")
        begin(trial)

    found.on_trial_begin = noted
    return found


def search(
    folder: str,
    kind: str = "RandomSearch",
    pause: float = 0.0,
    verbose: Any = 0,
    **kwargs: Any,
) -> None:
    """A whole search, or the part of this process in one."""
    searching = tuner(folder, kind, **kwargs)
    epochs = {} if kind == "Hyperband" else {"epochs": EPOCHS}
    searching.search(
        X, Y, validation_data=(X, Y), batch_size=16, verbose=verbose, **epochs,
        callbacks=[ktb.DiagnosisCallback(), Slowly(pause)],
    )  # fmt: skip


# --- processes ---------------------------------------------------------------------


def fork(action: Callable[..., Any], *args: Any, log: str, **environment: str) -> int:
    """Runs an action in a new process; returns its id. 130 tells of Ctrl+C."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(log, "a", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                action(*args)
                code = 0
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        import atexit

        atexit._run_exitfuncs()
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """Exit code of a process, -9 if it was killed; None when it still runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    return None


def killed(pid: int, number: int = signal.SIGKILL) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return ended(pid, 30)


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it never happened")
        time.sleep(0.05)


@contextlib.contextmanager
def all_killed(pids: dict[str, int]) -> Iterator[None]:
    try:
        yield
    finally:
        for pid in pids.values():
            with contextlib.suppress(ChildProcessError):
                killed(pid)


# --- what is left of a search ------------------------------------------------------


def runs(folder: str) -> list[list[str]]:
    """Who began which trial, in order."""
    path = pathlib.Path(folder, "runs")
    return (
        [line.split() for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )


def trials(folder: str) -> dict[str, dict[str, Any]]:
    """States of all trials; raises where a file is broken."""
    found = {}
    for place in project.trial_folders(f"{folder}/p"):
        if (place / project.TRIAL).exists():
            state = project.read_trial(place / project.TRIAL)
            found[state["trial_id"]] = state
    return found


def settled(folder: str) -> dict[str, Any]:
    """What the search has come to: the trials that have ended."""
    return {
        i: [t["status"], t["score"], t["hyperparameters"]["values"]]
        for i, t in trials(folder).items()
        if t["status"] in project.ENDED
    }


def facts(folder: str) -> dict[str, Any]:
    """What a test asks for."""
    try:
        oracle = project.read_oracle(f"{folder}/p/oracle.json")
    except FileNotFoundError:
        oracle = {}
    epochs = {}
    for path in sorted(pathlib.Path(folder, "p").glob("trial_*/trace-0.jsonl")):
        trace = read_trace(path)
        epochs[path.parent.name] = [[r.epoch for r in trace.records], trace.end]
    return {
        "settled": settled(folder),
        "causes": {i: t["message"] for i, t in trials(folder).items() if t["message"]},
        "end_order": oracle.get("end_order"),
        "ongoing": oracle.get("ongoing_trials"),
        "retry_queue": oracle.get("retry_queue"),
        "epochs": epochs,
        "runs": runs(folder),
        "corrupt": [str(p) for p in pathlib.Path(folder).rglob("*.corrupt*")],
        "lock": pathlib.Path(folder, "p", locking.NAME).exists(),
    }


# --- scenarios: one process --------------------------------------------------------


def kill_at_random(folder: str, times: int = 20) -> dict[str, Any]:
    """One process that is killed again and again, and one that never is."""
    dice = random.Random(5)
    log = f"{folder}/log"
    size = {"max_trials": 12}
    whole = f"{folder}/whole"
    os.mkdir(whole)
    assert ended(fork(lambda: search(whole, pause=0.1, **size), log=log), 300) == 0
    lost, kills, moments = [], 0, []
    for _ in range(times):
        before, begun = settled(folder), len(runs(folder))
        pid = fork(lambda: search(folder, pause=0.1, **size), log=log)
        with contextlib.suppress(TimeoutError):
            # Not while it only loads; and then at any moment of the next two trials.
            wait_for(lambda n=begun: len(runs(folder)) > n, 60)  # type: ignore[misc]
        time.sleep(dice.uniform(0, 1.5))
        kills += killed(pid) == -signal.SIGKILL
        after = settled(folder)
        moments.append(len(after))
        lost += [i for i in before if after.get(i) != before[i]]
        for place in pathlib.Path(folder, "p").glob("*.json"):
            project.read_json(place)
        if len(after) == 12:
            break
    last = ended(fork(lambda: search(folder, **size), log=log), 300)
    return facts(folder) | {
        "whole": settled(whole), "lost": lost, "kills": kills, "last": last, "moments": moments,
    }  # fmt: skip


def in_an_epoch(folder: str, trial_id: str) -> bool:
    """Whether a trial has an epoch behind it, and others before it."""
    epochs, end = facts(folder)["epochs"].get(f"trial_{trial_id}", ([], None))
    return 0 < len(epochs) < EPOCHS and end is None


def interrupt(folder: str) -> dict[str, Any]:
    """Ctrl+C in the midst of a training; then the same search again."""
    log = f"{folder}/log"
    pid = fork(lambda: search(folder, pause=0.5), log=log)
    wait_for(lambda: len(runs(folder)) >= 2)
    wait_for(lambda: in_an_epoch(folder, runs(folder)[-1][1]))
    first = killed(pid, signal.SIGINT)
    after = facts(folder)
    second = ended(fork(lambda: search(folder), log=log), 120)
    return facts(folder) | {"first": first, "second": second, "interrupted": after}


def two_at_once(folder: str) -> dict[str, Any]:
    """A second search in the directory of the first, before and after its death."""
    log = f"{folder}/log"
    first = fork(lambda: search(folder, pause=1.0), log=log)
    wait_for(lambda: runs(folder))
    found: dict[str, Any] = {"holder": first}
    told = f"{folder}/told"

    def refused() -> None:
        second = tuner(folder)
        began = time.monotonic()
        try:
            second.search(X, Y, validation_data=(X, Y), epochs=1, verbose=0)
        except locking.ProjectInUse as refusal:
            content = [time.monotonic() - began, str(refusal)]
            pathlib.Path(told).write_text(json.dumps(content))

    with all_killed({"first": first}):
        found["second"] = ended(fork(refused, log=log), 60)
        found["told"] = json.loads(pathlib.Path(told).read_text())
        found["runs_of_first"] = runs(folder)
    found["third"] = ended(fork(lambda: search(folder), log=log), 120)
    return facts(folder) | found


# --- scenarios: a chief and its workers --------------------------------------------


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Cluster:
    """A chief and workers on the loopback interface."""

    def __init__(
        self, folder: str, kind: str, pause: float = 0.4, **kwargs: Any
    ) -> None:
        self.folder, self.kind, self.pause, self.kwargs = folder, kind, pause, kwargs
        self.port = free_port()
        self.pids: dict[str, int] = {}

    def start(self, name: str, action: Callable[..., Any] = search) -> None:
        self.pids[name] = fork(
            lambda: action(self.folder, self.kind, self.pause, **self.kwargs),
            log=f"{self.folder}/log-{name}",
            KERASTUNER_TUNER_ID=name,
            KERASTUNER_ORACLE_IP="127.0.0.1",
            KERASTUNER_ORACLE_PORT=self.port,
        )

    def kill_in_a_trial(self, name: str) -> str:
        """Kills a worker while it trains; returns the trial that it leaves."""
        wait_for(lambda: name in [who for who, _ in runs(self.folder)])
        time.sleep(0.6)
        trial = [what for who, what in runs(self.folder) if who == name][-1]
        assert killed(self.pids.pop(name)) == -signal.SIGKILL
        return trial

    def ends(self, seconds: float = 240) -> dict[str, int | None]:
        """Exit codes of all that are left."""
        deadline = time.monotonic() + seconds
        return {
            name: ended(pid, max(deadline - time.monotonic(), 0.1))
            for name, pid in self.pids.items()
        }

    def answers(self, address: str) -> bool:
        with socket.socket() as probe:
            probe.settimeout(2)
            return probe.connect_ex((address, int(self.port))) == 0


def lose_a_worker(folder: str, kind: str = "BayesianOptimization") -> dict[str, Any]:
    """A chief and three workers, of which one is killed in a trial."""
    cluster = Cluster(folder, kind, max_trials=8) if kind != "Hyperband" else Cluster(folder, kind)  # fmt: skip
    with all_killed(cluster.pids):
        for name in ("chief", "w0", "w1", "w2"):
            cluster.start(name)
        lost = cluster.kill_in_a_trial("w1")
        addresses = [cluster.answers(f"127.0.0.{n}") for n in (1, 2)]
        codes = cluster.ends()
    return facts(folder) | {"lost": lost, "codes": codes, "addresses": addresses}


def lose_a_worker_of_hyperband(folder: str) -> dict[str, Any]:
    """The same with Hyperband."""
    return lose_a_worker(folder, "Hyperband")


def lose_the_chief(folder: str) -> dict[str, Any]:
    """The chief is killed in the midst of the trials of two workers, and comes back."""
    cluster = Cluster(folder, "RandomSearch", max_trials=8)
    with all_killed(cluster.pids):
        for name in ("chief", "w0", "w1"):
            cluster.start(name)
        wait_for(lambda: len(runs(folder)) >= 4)
        before = settled(folder)
        assert killed(cluster.pids.pop("chief")) == -signal.SIGKILL
        time.sleep(3)
        cluster.start("chief")
        codes = cluster.ends()
    return facts(folder) | {"before": before, "codes": codes}


def have_a_bad_worker(folder: str) -> dict[str, Any]:
    """A worker on which every trial fails, and one on which none does."""

    def badly(*args: Any, **kwargs: Any) -> None:
        def fails(trial: Any, *args: Any, **kwargs: Any) -> Any:
            raise OSError("no such device")

        bad = tuner(folder, "RandomSearch", **kwargs)
        bad.run_trial = fails
        bad.search(X, Y)

    cluster = Cluster(folder, "RandomSearch", max_trials=7)
    with all_killed(cluster.pids):
        cluster.start("chief")
        cluster.start("bad", badly)
        wait_for(lambda: len(runs(folder)) >= 3)
        cluster.start("good")
        codes = cluster.ends()
    return facts(folder) | {"codes": codes}


SCENARIOS = (
    kill_at_random, interrupt, two_at_once, lose_a_worker, lose_a_worker_of_hyperband,
    lose_the_chief, have_a_bad_worker,
)  # fmt: skip

if __name__ == "__main__":
    assert keras_tuner.__version__
    scenario = {each.__name__: each for each in SCENARIOS}[sys.argv[1]]
    print(json.dumps(scenario(sys.argv[2])))
