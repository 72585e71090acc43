"""What a search costs beside its trainings, as it grows to 10,000 trials.

    python examples/benchmarks/scale.py --json scale.json [--smoke]
        [--parts oracle,chief,traces] [--sizes 100,1000,3000,10000]

A measurement that FILE holds is not made again, so that it can be broken off.
Nothing is trained: searches of six floats are made up to a size, and the next trials
are measured.

- `oracle`: creating, reporting and ending one trial, in one process: CPU and wall
  seconds (medians) and bytes written, of the random search of KerasTuner and of this
  package, and of the search algorithms that learn. The Gaussian process fits at most
  400 trials, TPE all.
- `chief`: 64 workers that train for no time at all ask one chief over gRPC, on the
  loopback interface, as tuners do: a trial, a sign of life, a report, the end, and the
  ten best trials. Trials per second, CPU seconds of the chief for each, and how long a
  worker waits for an answer.
- `traces`: the traces of ten epochs of a small network: how long it takes to read those
  of all other trials, as a rule that compares does once in every trial; to ask again,
  as it does at every later epoch; and to make the summary of the search.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import socket
import statistics
import sys
import tempfile
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial

from kt_bttackler import oracles, results
from kt_bttackler.trace import Header, Record, TraceStore, TraceWriter

PACKAGES = ("keras-tuner", "tensorflow", "numpy", "grpcio", "optuna")
SIZES = (100, 1000, 3000, 10_000)
PARTS = ("oracle", "chief", "traces")
THEIRS = "KerasTuner, random"
ORACLES = {
    THEIRS: keras_tuner.oracles.RandomSearchOracle,
    "random": oracles.RandomSearchOracle,
    "GP": oracles.BayesianOptimizationOracle,
    "TPE": oracles.TPEOracle,
}
SERVED = (THEIRS, "random")
WORKERS, NAMES, EPOCHS = 64, [f"x{number}" for number in range(6)], 10
CYCLES = {"GP": 3, "TPE": 3}  # trials that are measured, five by default


class Untrained(keras_tuner.Tuner):
    """A tuner of which only the project directory and the chief are used."""

    def run_trial(self, trial, *args, **kwargs):
        """Does nothing."""


def filled(kind, size, folder, more):
    """An oracle with `size` trials that have ended, and room for `more`."""
    space = keras_tuner.HyperParameters()
    for name in NAMES:
        space.Float(name, 0.0, 1.0)
    oracle = ORACLES[kind](
        objective=keras_tuner.Objective("val_loss", "min"),
        max_trials=size + more,
        hyperparameters=space,
        seed=1,
    )
    Untrained(oracle=oracle, directory=folder, project_name="p")
    oracle.verbose = 0
    dice = np.random.default_rng(size)
    ids, hashes = [], {}
    width = len(str(size + more))
    for number in range(size):
        trial = Trial(space.copy(), f"{number:0{width}d}", "COMPLETED")
        values = dict(zip(NAMES, dice.random(len(NAMES)).tolist(), strict=True))
        trial.hyperparameters.values = values
        trial.score, trial.best_step = float(sum(values.values())), EPOCHS - 1
        trial.metrics.register("val_loss", direction="min")
        trial.metrics.update("val_loss", trial.score, step=trial.best_step)
        oracle.trials[trial.trial_id] = trial
        ids.append(trial.trial_id)
        hashes[trial.trial_id] = f"{number:064x}"  # as long as KerasTuner's
    state = oracle.get_state()
    begun = "2026-01-01T00:00:00.000000"
    display = {
        "search_start": begun,
        "trial_start": dict.fromkeys(ids, begun),
        "trial_number": {trial_id: int(trial_id) + 1 for trial_id in ids},
    }
    oracle.set_state(
        state
        | {
            "start_order": list(ids),
            "end_order": list(ids),
            "run_times": dict.fromkeys(ids, 1),
            "tried_so_far": list(hashes.values()),
            "id_to_hash": hashes,
            "display": display,
        }
    )
    oracle.save()
    return oracle


def bytes_written():
    """By this process so far, to whatever; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/io").read_text().splitlines():
            if line.startswith("wchar:"):
                return int(line.split()[1])
    return 0


def measure_oracle(kind, size):
    """Costs of one more trial, in one process."""
    cycles = CYCLES.get(kind, 5)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        oracle = filled(kind, size, folder, cycles)
        for number in range(cycles):
            moments = [(time.process_time(), time.perf_counter(), bytes_written())]
            trial = oracle.create_trial("tuner0")
            moments.append((time.process_time(), time.perf_counter(), bytes_written()))
            oracle.update_trial(trial.trial_id, {"val_loss": 1.0 + number}, step=1)
            moments.append((time.process_time(), time.perf_counter(), bytes_written()))
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
            moments.append((time.process_time(), time.perf_counter(), bytes_written()))
            rows.append(np.diff(np.array(moments), axis=0))
        state = pathlib.Path(folder, "p", "oracle.json").stat().st_size
    create, update, end = np.median(np.array(rows), axis=0).tolist()
    return {
        "create": {"cpu_seconds": create[0], "wall_seconds": create[1]},
        "update": {"cpu_seconds": update[0], "wall_seconds": update[1]},
        "end": {"cpu_seconds": end[0], "wall_seconds": end[1]},
        "cpu_seconds": create[0] + update[0] + end[0],
        "wall_seconds": create[1] + update[1] + end[1],
        "bytes": int(create[2] + update[2] + end[2]),
        "oracle_json_bytes": state,
    }


def serve(kind, size, folder, more, port, ready):
    """Is the chief, until it is ended."""
    os.environ.update(
        KERASTUNER_TUNER_ID="chief",
        KERASTUNER_ORACLE_IP="127.0.0.1",
        KERASTUNER_ORACLE_PORT=str(port),
    )
    from keras_tuner.src.distribute import oracle_chief

    oracle = filled(kind, size, folder, more)
    ready.set()
    oracle_chief.start_server(oracle)


def cpu_seconds_of(pid):
    """CPU seconds of another process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_chief(kind, size, workers, trials):
    """Throughput of a chief and the waiting of its workers."""
    # Private; the way in which KerasTuner's workers ask.
    from keras_tuner.src.distribute.oracle_client import OracleClient

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    waits = []

    def ask(question, *arguments):
        began = time.perf_counter()
        answer = question(*arguments)
        waits.append(time.perf_counter() - began)
        return answer

    def work(client):
        while (trial := ask(client.create_trial, client.tuner_id)).status == "RUNNING":
            ask(client.get_trial, trial.trial_id)
            ask(client.update_trial, trial.trial_id, {"val_loss": 1.0}, 1)
            trial.status = "COMPLETED"
            ask(client.end_trial, trial)
            ask(client.get_best_trials, 10)

    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (kind, size, folder, trials, port, ready)
        chief = context.Process(target=serve, args=arguments, daemon=True)
        chief.start()
        os.environ.update(
            KERASTUNER_TUNER_ID="worker",
            KERASTUNER_ORACLE_IP="127.0.0.1",
            KERASTUNER_ORACLE_PORT=str(port),
        )
        clients = [OracleClient(None) for _ in range(workers)]
        for number, client in enumerate(clients):
            client.tuner_id = f"worker{number}"
        threads = [threading.Thread(target=work, args=(each,)) for each in clients]
        try:
            ready.wait()
            clients[0].get_space()  # it serves
            cpu, wall = cpu_seconds_of(chief.pid), time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wall = time.perf_counter() - wall
            cpu = cpu_seconds_of(chief.pid) - cpu
        finally:
            chief.kill()
            chief.join()
    return {
        "workers": workers,
        "trials": trials,
        "cpu_seconds_per_trial": cpu / trials,
        "wall_seconds_per_trial": wall / trials,
        "trials_per_second": trials / wall,
        "wait_median_seconds": statistics.median(waits),
        "wait_p95_seconds": float(np.quantile(waits, 0.95)),
    }


def write_trial(folder, number):
    """A trial of a network with six layers, ten epochs of it."""
    layers = tuple(f"dense_{layer}" for layer in range(6))
    variables = tuple(f"{name}/{w}" for name in layers for w in ("kernel", "bias"))
    values = dict(zip(NAMES, np.random.default_rng(number).random(6), strict=True))
    values = {name: float(value) for name, value in values.items()}
    trial_id = f"{number:05d}"
    header = Header(
        trial_id=trial_id,
        max_epochs=EPOCHS,
        objective="val_loss",
        hyperparameters=values,
        variables=variables,
        variable_layers=tuple(v.partition("/")[0] for v in variables),
        variable_sizes=tuple(1024 if "kernel" in v else 32 for v in variables),
        kernels=tuple("kernel" in v for v in variables),
        layers=layers,
        edges=tuple((n, n + 1) for n in range(5)),
        activations=layers,
    )
    place = folder / f"trial_{trial_id}"
    writer = TraceWriter(place / "trace-0.jsonl", header)
    for epoch in range(1, EPOCHS + 1):
        loss = (1 + number % 7) / epoch
        column = tuple(loss * 1.2345678901e-3 * n for n in range(len(variables)))
        writer.append(
            Record(
                epoch,
                float(epoch),
                {"loss": loss, "val_loss": loss, "objective": loss},
                {f"statistic_{n}": column for n in range(6)},
            )
        )
    writer.close("finished")
    space = keras_tuner.HyperParameters()
    for name in NAMES:
        space.Float(name, 0.0, 1.0)
    space.values = values
    trial = Trial(space, trial_id, "COMPLETED")
    trial.score, trial.best_step = loss, EPOCHS - 1
    (place / "trial.json").write_text(json.dumps(trial.get_state()))


def timed(action):
    """CPU and wall seconds of something."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return {
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
    }


def measure_traces(size):
    """Writes trials, and reads them."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for number in range(size):
            write_trial(folder, number)
        store = TraceStore(folder, columns=False)
        return {
            "bytes_per_trial": sum(
                path.stat().st_size for path in (folder / "trial_00000").iterdir()
            ),
            "first_read": timed(lambda: sum(1 for _ in store)),
            "next_read": timed(lambda: sum(1 for _ in store)),
            "summary": timed(lambda: results.study(folder).totals()),
        }


class Results:
    """What the file holds, of this machine, these settings and these versions.

    What it holds already is not measured again.
    """

    def __init__(self, path, settings):
        self._path = path
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        versions["python"] = platform.python_version()
        self._content = {"settings": settings, "versions": versions}
        if path.exists():
            before = json.loads(path.read_text())
            if before["settings"] == settings and before["versions"] == versions:
                self._content = before

    def measure(self, part, kind, size, action):
        """Measures one thing, prints and saves it, unless it is there."""
        found = self._content.setdefault(part, {}).setdefault(kind, {})
        if str(size) not in found:
            found[str(size)] = action()
            self._path.write_text(json.dumps(self._content, indent=1) + "\n")
        print(f"{part}, {kind}, {size} trials", flush=True)

    def table(self):
        """Its lines in Markdown."""
        return table(self._content)


def table(content):
    """Results as a table in Markdown, a column for each size, as `docs` show it."""
    parts = [content[part] for part in PARTS if part in content]
    sizes = sorted({int(size) for part in parts for by in part.values() for size in by})
    rows = [["ended trials", *(f"{size:,}" for size in sizes)]]

    def add(label, by_size, cell):
        cells = [by_size.get(str(size)) for size in sizes]
        rows.append([label, *("" if each is None else cell(each) for each in cells)])

    for kind, by_size in content.get("oracle", {}).items():
        add(
            f"one more trial, {kind}: CPU ms",
            by_size,
            lambda found: f"{1000 * found['cpu_seconds']:.1f}",
        )
        if kind not in SERVED:  # nearly all of what a chief would have to do for it
            add(
                f"{kind}: workers that trials of a minute keep busy",
                by_size,
                lambda found: f"{60 / found['cpu_seconds']:,.0f}",
            )
    for kind in SERVED if "oracle" in content else ():
        add(
            f"one more trial, {kind}: kB written",
            content["oracle"][kind],
            lambda found: f"{found['bytes'] / 1000:,.0f}",
        )
    for kind, by_size in content.get("chief", {}).items():
        add(
            f"chief, {kind}: trials per second",
            by_size,
            lambda found: f"{found['trials_per_second']:.1f}",
        )
        add(
            f"chief, {kind}: workers that trials of a minute keep busy",
            by_size,
            lambda found: f"{60 * found['trials_per_second']:,.0f}",
        )
        add(
            f"chief, {kind}: wait for an answer (s), 95 %",
            by_size,
            lambda found: f"{found['wait_p95_seconds']:.2f}",
        )
    for label, key in (
        ("traces of all trials, first read: CPU s", "first_read"),
        ("traces of all trials, next read: CPU s", "next_read"),
        ("`ktb.summary`: CPU s", "summary"),
    ):
        for by_size in content.get("traces", {}).values():
            add(
                label,
                by_size,
                lambda found, key=key: f"{found[key]['cpu_seconds']:.2f}",
            )
    rows.insert(1, ["---"] * len(rows[0]))
    return [f"| {' | '.join(row)} |" for row in rows]


def main():
    """Measures what the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, required=True, metavar="FILE")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--smoke", action="store_true", help="one small size")
    options = parser.parse_args()
    sizes = [20] if options.smoke else [int(size) for size in options.sizes.split(",")]
    workers, trials = (4, 8) if options.smoke else (WORKERS, 2 * WORKERS)
    settings = {
        "workers": workers,
        "trials_of_workers": trials,
        "epochs": EPOCHS,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        "shared",
    }
    measured = Results(options.json, settings)
    parts = options.parts.split(",")
    for size in sizes:
        for kind in ORACLES if "oracle" in parts else ():
            action = functools.partial(measure_oracle, kind, size)
            measured.measure("oracle", kind, size, action)
        for kind in SERVED if "chief" in parts else ():
            action = functools.partial(measure_chief, kind, size, workers, trials)
            measured.measure("chief", kind, size, action)
        if "traces" in parts:
            measured.measure(
                "traces", "all", size, functools.partial(measure_traces, size)
            )
    print(*measured.table(), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
