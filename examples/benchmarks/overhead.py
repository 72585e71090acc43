"""What watching a training costs: CPU time with and without the default callback.

    python examples/benchmarks/overhead.py --json overhead.json [--smoke]
        [--models cnn,lstm,transformer,tabular,resnet] [--epochs 20] [--epoch-seconds 5]
        [--page FILE]

Three arms train copies of one model in one process: plain, plain again, and watched.
They take turns step by step, so that whatever else the machine does hits all three
alike, and each step, with all that callbacks do after it, is charged to its arm by the
CPU time of the whole process. `plain again` per `plain` is the null: what the method
itself resolves. Operations run on one thread each, and two at a time; a recurrent model
wants `TF_NUM_INTEROP_THREADS=1`: how often two threads wake each other differs by up to
a tenth of a step between copies of it. Other copies still differ by about a hundredth.
So a derived ratio stands beside the measured one: CPU time of the hooks, timed one by
one in that training, plus the number of steps times what the tap adds to a step, the
mean over many copies. The epoch in which the step is traced comes before those that
count in the measured ratio: what it costs to set up is measured apart, on fresh models.
The derived one counts it.

Every model is trained at a batch size that makes a step long enough (`--step-ms` per
trainable variable), and at a small one beside the figure that the cost model foretells.
A port of the published way (ten statistics of w, |w|, g and |g| of every layer, after
every batch) and a GradientTape on a probe batch are timed in the same run; their
gradients come from the tap here, so the port is dearer still in truth. What AGV costs,
which looks at every step, is measured on one model with and without it. A model of
eight million parameters is trained with its statistics on the worker and on the
training thread, and its peak memory is compared in processes of their own.

A model that lies in the file, measured with the same settings, is not measured again.
`--page` writes the tables into a page.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Before TensorFlow is loaded.
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

from overhead_parts import cost_model, models, single, tables, turns

from kt_bttackler import Diagnosis

PACKAGES = ("tensorflow", "keras", "numpy", "scipy")
THREADS = ("TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS")
SMALL_BATCH = 16
AGV_MODEL = "tabular"
SMOKE = {
    "epochs": 3,
    "epoch_seconds": 0.2,
    "step_ms": 0.1,
    "small_epochs": 4,
    "small_epoch_seconds": 0.2,
    "setup_cpu_seconds": 0.0,
    "repeats": 1,
    "copies": 2,
    "copy_steps": 3,
}


def long_steps(make, options):
    """The ratio at a batch size that makes a step long enough."""
    batch, seconds = models.batch_for(make, options.step_ms / 1000)
    # A few percent more than asked for: later steps may be faster.
    steps = max(2, round(1.05 * options.epoch_seconds / seconds))
    meters, callbacks = turns.train_in_turns(make, batch, steps, options.epochs + 1)
    taps = turns.tap_seconds(make, batch, options.copies, options.copy_steps)
    cpu = {arm: meter.cpu for arm, meter in meters.items()}
    plain, watched = sum(cpu["plain"][1:]), sum(cpu["watched"][1:])
    return {
        **turns.ratio(cpu["watched"], cpu["plain"]),
        "null": turns.ratio(cpu["plain again"], cpu["plain"]),
        "derived": turns.derived_ratio(callbacks["watched"], cpu["plain"], taps),
        "tap_seconds": taps,
        "batch": batch,
        "steps": steps,
        "step_seconds": statistics.median(meters["plain"].wall[1:]) / steps,
        "step_cpu_seconds": plain / options.epochs / steps,
        "added_seconds_per_step": (watched - plain) / options.epochs / steps,
        "epoch_cpu_seconds": cpu,
    }


def short_steps(make, options):
    """The ratio at a small batch size, and where its parts come from."""
    model, _ = models.compiled(make)
    _, seconds = models.batch_for(make, 0.0)  # the smallest batch: SMALL_BATCH
    steps = max(20, round(options.small_epoch_seconds / seconds))
    meters, callbacks = turns.train_in_turns(
        make, SMALL_BATCH, steps, options.small_epochs + 1
    )
    watching = callbacks["watched"]
    cpu = {arm: meter.cpu for arm, meter in meters.items()}
    plain = cpu["plain"][1:]
    # The better of two: the null is noise here as well.
    added = sum(cpu["watched"][1:]) - (sum(plain) + sum(cpu["plain again"][1:])) / 2
    in_hooks = sum(map(sum, watching.step_hooks[1:])) + sum(watching.epoch_hooks[1:])
    return {
        **turns.ratio(cpu["watched"], cpu["plain"]),
        "null": turns.ratio(cpu["plain again"], cpu["plain"]),
        "batch": SMALL_BATCH,
        "steps": steps,
        "epochs": options.small_epochs,
        "step_cpu_seconds": sum(plain) / len(plain) / steps,
        "hooks": cost_model.hooks(watching, model),
        "tap_ms_per_step": 1000 * (added - in_hooks) / len(plain) / steps,
    }


def without_agv(options):
    """CPU time with AGV per without it, at the small batches where it would show."""
    diagnoses = {
        "plain": Diagnosis().without("AGV"),
        "plain again": Diagnosis().without("AGV"),
        "watched": Diagnosis(),
    }
    meters, _ = turns.train_in_turns(
        models.MODELS[AGV_MODEL],
        SMALL_BATCH,
        max(20, round(200 * options.small_epoch_seconds)),
        2 * options.small_epochs + 1,
        {arm: turns.TimedDiagnosis(diagnosis) for arm, diagnosis in diagnoses.items()},
    )
    cpu = {arm: meter.cpu for arm, meter in meters.items()}
    return {
        "model": AGV_MODEL,
        **turns.ratio(cpu["watched"], cpu["plain"]),
        "null": turns.ratio(cpu["plain again"], cpu["plain"]),
    }


def measure(name, options):
    """All figures of one model."""
    make = models.MODELS[name]
    started = time.perf_counter()
    model, _ = models.compiled(make)
    facts = {
        **long_steps(make, options),
        "epochs": options.epochs,
        "threads": {variable: os.environ[variable] for variable in THREADS},
        "parameters": int(model.count_params()),
        "variables": len(model.trainable_variables),
        "small": short_steps(make, options),
    }
    batch, steps = facts["batch"], facts["steps"]
    facts |= single.set_up(make, batch, options.setup_cpu_seconds)
    facts |= single.one_epoch(make, batch, steps, options.setup_cpu_seconds)
    facts |= single.baselines(make, batch)
    facts["seconds"] = time.perf_counter() - started
    return facts


def foretold(results):
    """Fits the cost model and sets what it foretells beside what was measured."""
    large = results.get("large")
    cost = results["cost_model"] = cost_model.fit(results["models"], large)
    for facts in results["models"].values():
        sizes = facts["variables"], facts["parameters"]
        for part in (facts, facts["small"]):
            added = cost_model.foretell(cost, *sizes, part["steps"]) / 1000
            plain = part["steps"] * part["step_cpu_seconds"]
            part["foretold"] = 1 + added / plain
        # Of the foretold cost: what was measured is as small as its own noise.
        per_step = (facts["foretold"] - 1) * facts["step_cpu_seconds"]
        facts["published_times"] = facts["published_seconds_per_step"] / per_step


def show(name, facts):
    """Prints one model."""
    small = facts["small"]
    print(
        f"{name:12} {facts['ratio']:.4f} [{facts['low']:.4f}, {facts['high']:.4f}] "
        f"null {facts['null']['ratio']:.4f} "
        f"derived {facts['derived']['ratio']:.4f} [{facts['derived']['low']:.4f}, "
        f"{facts['derived']['high']:.4f}] foretold {facts['foretold']:.4f} | "
        f"small {small['ratio']:.4f} null {small['null']['ratio']:.4f} "
        f"foretold {small['foretold']:.4f} | set-up {facts['setup_seconds']:+.2f} s, "
        f"built {facts['setup_seconds_built']:+.2f} s of "
        f"{facts['first_step_seconds']:.2f} s | published "
        f"{facts['published_times']:.0f} times",
        flush=True,
    )


def parsed():
    """The options, and the settings that results depend on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, help="file for the results")
    parser.add_argument("--models", default=",".join(models.MODELS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--epoch-seconds", type=float, default=5.0)
    parser.add_argument("--step-ms", type=float, default=2.0, help="per variable")
    parser.add_argument("--small-epochs", type=int, default=6)
    parser.add_argument("--small-epoch-seconds", type=float, default=2.0)
    parser.add_argument("--copies", type=int, default=12, help="to time the tap in")
    parser.add_argument("--copy-steps", type=int, default=30, help="of each copy")
    parser.add_argument("--setup-cpu-seconds", type=float, default=12.0)
    parser.add_argument("--repeats", type=int, default=5, help="of the large model")
    parser.add_argument("--page", help="Markdown page to write the tables into")
    parser.add_argument("--smoke", action="store_true", help="a few seconds a model")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(SMOKE)
    unsettled = ("json", "models", "page", "smoke")
    return options, {k: v for k, v in vars(options).items() if k not in unsettled}


def main():
    """Measures, and writes what it has after every model."""
    options, settings = parsed()
    target = pathlib.Path(options.json)
    results = json.loads(target.read_text()) if target.exists() else {}
    if results.get("settings") != settings:
        results = {"settings": settings, "models": {}}
    results["versions"] = {p: importlib.metadata.version(p) for p in PACKAGES} | {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }

    def write():
        foretold(results)
        target.write_text(json.dumps(results, indent=1) + "\n")

    for name in options.models.split(","):
        if name not in results["models"]:
            results["models"][name] = measure(name, options)
            write()
        show(name, results["models"][name])
    if "agv" not in results:
        results["agv"] = without_agv(options)
        write()
    if "large" not in results:
        results["large"] = single.worker(options.repeats)
        results["large"]["memory"] = single.memory(options.repeats)
        write()
    print(json.dumps({k: results[k] for k in ("agv", "large", "cost_model")}, indent=1))
    if options.page:
        tables.write_into(options.page, results)


if __name__ == "__main__":
    main()
