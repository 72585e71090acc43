"""How fast recorded trainings are replayed, and thresholds swept.

    python examples/benchmarks/replay.py --json FILE [--repeats 7] [--smoke]

Synthetic traces of 20 epochs and 10 layers, half of them sick, judged by the seven
indicators (the presets "paper" and "conservative"). Every figure is the median of the
repeats; no training runs, TensorFlow is not loaded.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time

import numpy as np

from kt_bttackler import replay
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.sweeping import sweep
from kt_bttackler.trace import Header, Record, Trace

PACKAGES = ("kt_bttackler", "numpy", "scipy")
PRESETS = ("paper", "conservative")
EPOCHS, LAYERS = 20, 10


def header(trial_id, started):
    """That of a chain of dense layers."""
    names = tuple(f"dense_{k}" for k in range(LAYERS))
    return Header(
        trial_id=trial_id,
        started=started,
        max_epochs=EPOCHS,
        objective="val_loss",
        variables=tuple(f"{name}/{v}" for name in names for v in ("kernel", "bias")),
        variable_layers=tuple(name for name in names for _ in range(2)),
        variable_sizes=(4096, 64) * LAYERS,
        kernels=(True, False) * LAYERS,
        layers=names,
        edges=tuple((k, k + 1) for k in range(LAYERS - 1)),
        activations=names,
    )


def training(draw, number):
    """A training that learns, or, every second one, one that is stuck or explodes."""
    n = np.arange(1, EPOCHS + 1)
    losses = 0.3 + 2.0 * np.exp(-n / draw.uniform(2, 20))
    losses *= 1 + 0.01 * draw.normal(size=EPOCHS)
    if number % 4 == 1:
        losses = 2.3026 + 1e-5 * draw.normal(size=EPOCHS)
    if number % 4 == 3:
        losses[draw.integers(3, 15) :] = np.nan
    records = []
    for epoch, loss in enumerate(losses.tolist(), 1):
        gradients = tuple(draw.lognormal(-5, 0.5, 2 * LAYERS).tolist())
        columns = {
            "step_gradient/abs_mean": gradients,
            "step_gradient/abs_mean_median": gradients,
            "step_gradient/zero_ratio": (0.0,) * 2 * LAYERS,
            "step_gradient/finite": (1.0,) * 2 * LAYERS,
            "activation/constant_ratio": tuple(draw.uniform(0, 0.3, LAYERS).tolist()),
        }
        scalars = {
            "loss": loss,
            "val_loss": loss,
            "objective": loss,
            "learning_rate": 0.01,
            "regularization": 0.0,
        }
        if epoch == 1:
            scalars |= {"first_batch_loss": 2.4, "first_regularization": 0.0}
        records.append(Record(epoch, 2.0 * epoch, scalars, columns))
    return Trace(header(f"{number:04d}", 50.0 * number), records, "finished")


def fresh(traces):
    """The same traces, of which nothing is measured or laid in columns yet."""
    return [Trace(dataclasses.replace(t.header), t.records, t.end) for t in traces]


def seconds(action, *arguments):
    """What came of it, and the CPU seconds it took (everything runs in one thread)."""
    start = time.process_time()
    result = action(*arguments)
    return result, time.process_time() - start


def measure(traces, preset, orders):
    """Trial replays a second, measured afresh and measured once."""
    diagnosis = Diagnosis(preset)
    recording = replay.Recording(fresh(traces))
    _, afresh = seconds(replay.simulate, recording, diagnosis)
    _, again = seconds(
        lambda: replay.simulate(recording, diagnosis, order="resampled", repeats=orders)
    )
    return {
        "afresh_trials_per_second": len(traces) / afresh,
        "measured_once_trials_per_second": orders * len(traces) / again,
    }


def measure_sweep(traces, count):
    """Seconds of a sweep of the thresholds of each of the seven that has one."""
    found = {}
    for name in ("EAG", "ERG", "PLC", "LAR", "ULC"):
        recording = replay.Recording(fresh(traces))
        thresholds = np.logspace(-6, 3, count)
        _, found[name] = seconds(
            sweep, recording, Diagnosis("conservative")[name], thresholds
        )
    return found


def main():
    """Measures and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, help="file for the results")
    parser.add_argument("--repeats", type=int, default=7, help="of every timing")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--thresholds", type=int, default=1000)
    parser.add_argument("--smoke", action="store_true", help="seconds in all")
    options = parser.parse_args()
    if options.smoke:
        options.repeats, options.trials, options.thresholds = 1, 20, 20
    draw = np.random.default_rng(0)
    traces = [training(draw, number) for number in range(options.trials)]
    results = {
        "settings": {
            "repeats": options.repeats,
            "trials": options.trials,
            "thresholds": options.thresholds,
            "epochs": EPOCHS,
            "layers": LAYERS,
            "orders": 5,
            "seed": 0,
        },
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES}
        | {"python": platform.python_version(), "cores": os.cpu_count()},
        "replay": {},
    }
    for preset in PRESETS:
        runs = [measure(traces, preset, orders=5) for _ in range(options.repeats)]
        results["replay"][preset] = {
            name: statistics.median(run[name] for run in runs) for name in runs[0]
        }
        print(preset, results["replay"][preset], flush=True)
    sweeps = [measure_sweep(traces, options.thresholds) for _ in range(options.repeats)]
    results["sweep_seconds"] = {
        name: statistics.median(run[name] for run in sweeps) for name in sweeps[0]
    }
    print("sweep", results["sweep_seconds"])
    pathlib.Path(options.json).write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
