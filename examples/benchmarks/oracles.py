"""How fast search algorithms suggest, how well they search, and what misleads them.

    python examples/benchmarks/oracles.py --json oracles.json [--smoke]
        [--oracles random,GP,TPE,KerasTuner-GP,SMAC] [--parts seconds,regret,stopped]
        [--seeds 20] [--trials 40]

- `seconds`: of one suggestion after 10, 30, 100 and 300 trials with six floats, wall
  clock and CPU, medians over seeds. KerasTuner's Gaussian process is timed as it is and
  with one thread of the linear algebra, up to 100 trials.
- `regret`: how far the true value of the trial that seemed best lies above the optimum,
  after 10, 20, 30 and 40 trials. KerasTuner's Gaussian process and SMAC take seconds
  for a suggestion: they have the first five seeds, and the former two tasks only.
- `stopped`: the five policies of `stopped_value`, where a part of the space is stopped
  early and shows a misleading last value: see `search_tasks.simulated_training`.

All search with the defaults of their classes, but that TPE and SMAC have as many
initial points as the Gaussian processes: three for each hyperparameter. Intervals are
95 % bootstrap intervals of the mean over seeds. Results are written as they come; what
the file holds is not run again.
"""

import argparse
import contextlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_tuner
import numpy as np
import search_tasks
from threadpoolctl import threadpool_limits

from kt_bttackler import channel, oracles
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.indicators import Finding

PACKAGES = ("keras-tuner", "numpy", "scipy", "scikit-learn", "optuna", "smac")
ORACLES = {
    "random": oracles.RandomSearchOracle,
    "GP": oracles.BayesianOptimizationOracle,
    "TPE": oracles.TPEOracle,
    "KerasTuner-GP": keras_tuner.oracles.BayesianOptimizationOracle,
    "SMAC": oracles.SMACOracle,
}
THEIRS = "KerasTuner-GP"
SLOW = (THEIRS, "SMAC")
PARTS = ("seconds", "regret", "stopped")
TIMED_AT = (10, 30, 100, 300)
CHECKPOINTS = (10, 20, 30, 40)
TASKS_OF_THEIRS = ("branin", "hartmann6")
SCENARIOS = {"flattering": True, "harsh": False}
STOPPED = ("GP", "TPE")


class Searcher(keras_tuner.Tuner):
    """KerasTuner's Tuner; a trial is a call of `evaluate` with its values."""

    evaluate = None

    def run_trial(self, trial, *args, **kwargs):
        """What `evaluate` says of the values of the trial."""
        return self.evaluate(dict(trial.hyperparameters.values))


def make_oracle(name, space, seed, trials, **options):
    """An oracle of a class of `ORACLES`.

    KerasTuner draws with seed, seed + 1, and so on, so that neighbouring seeds would
    share their draws.
    """
    if name != "random":
        options.setdefault("num_initial_points", 3 * len(space.space))
    return ORACLES[name](
        objective=keras_tuner.Objective("val_loss", "min"),
        max_trials=trials,
        hyperparameters=space,
        seed=1000 * seed + 1,
        **options,
    )


def search(oracle, evaluate):
    """Runs a search; returns its trials in the order of their start."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(None):
            tuner = Searcher(oracle=oracle, directory=folder, project_name="search")
            tuner.evaluate = evaluate
            tuner.search(verbose=0)
        return [oracle.trials[trial_id] for trial_id in oracle.start_order]


def time_suggestion(name, trials, seed, threads):
    """Wall and CPU seconds of the first suggestion after so many trials."""
    space = keras_tuner.HyperParameters()
    search_tasks.declare_six_floats(space)
    options = {} if name == "random" else {"num_initial_points": trials}
    oracle = make_oracle(name, space, seed, trials, **options)
    search(oracle, lambda values: {"val_loss": search_tasks.hartmann6(values)})
    oracle.max_trials = trials + 1
    with threadpool_limits(threads, user_api="blas"):
        wall, cpu = time.perf_counter(), time.process_time()
        response = oracle.populate_space(f"{trials}")
        seconds = time.perf_counter() - wall, time.process_time() - cpu
    assert response["status"] == "RUNNING"
    return [round(each, 5) for each in seconds]


def measure_seconds(results, save, options):
    """Times suggestions; the slow ones with fewer seeds."""
    timed = [(name, None) for name in options.oracles]
    if THEIRS in options.oracles:
        timed.append((THEIRS, 1))
    for trials in options.timed_at:
        for name, threads in timed:
            if name == THEIRS and trials > 100:
                continue
            label = name if threads is None else f"{name}, one thread"
            facts = results.setdefault(label, {}).setdefault(str(trials), {"runs": []})
            wanted = min(options.repeats, 3) if name in SLOW else options.repeats
            while len(facts["runs"]) < wanted:
                seed = len(facts["runs"])
                facts["runs"].append(time_suggestion(name, trials, seed, threads))
                wall, cpu = zip(*facts["runs"], strict=True)
                facts["wall_seconds"] = statistics.median(wall)
                facts["cpu_seconds"] = statistics.median(cpu)
                save()
            print(f"seconds {label:26} {trials:4} {facts['wall_seconds']:8.3f} wall "
                  f"{facts['cpu_seconds']:8.3f} CPU", flush=True)  # fmt: skip


def run_regret(name, task, seed, trials):
    """Regret of what seems best after each of the checkpoints, and the CPU seconds."""
    noise = np.random.default_rng(seed)

    def evaluate(values):
        seen = task.value(values) + task.noise * noise.normal()
        return {"val_loss": seen}

    start = time.process_time()
    found = search(make_oracle(name, task.space(), seed, trials), evaluate)
    seconds = time.process_time() - start
    regrets = []
    for count in CHECKPOINTS:
        best = min(found[: min(count, len(found))], key=lambda trial: trial.score)
        value = task.value(best.hyperparameters.values) - task.optimum
        regrets.append(float(f"{value:.5g}"))
    return {"regret": regrets, "cpu_seconds": round(seconds, 2)}


def measure_regret(results, save, options):
    """Searches every task with every oracle."""
    tasks = search_tasks.make_tasks()
    for name in options.oracles:
        for task_name, task in tasks.items():
            if name == THEIRS and task_name not in TASKS_OF_THEIRS:
                continue
            seeds = min(options.seeds, 5) if name in SLOW else options.seeds
            facts = results.setdefault(task_name, {}).setdefault(name, {"runs": []})
            while len(facts["runs"]) < seeds:
                seed = len(facts["runs"])
                facts["runs"].append(run_regret(name, task, seed, options.trials))
                facts["final"] = mean_with_interval(
                    [run["regret"][-1] for run in facts["runs"]]
                )
                save()
            print(f"regret {task_name:16} {name:14} {told(facts['final'])}", flush=True)


def run_stopped(name, flattering, policy, seed, trials):
    """Regret of the best training that was not stopped, and how many were."""

    def evaluate(values):
        losses, end = search_tasks.simulated_training(values, flattering)
        if end is None:
            return {"val_loss": float(losses.min())}
        finding = Finding("ULC", end, 1.0, 0.5)
        verdict = Verdict(True, False, end, "ULC", (finding,), "AnyFinding")
        last = {"val_loss": float(losses[end - 1])}
        best = {"val_loss": float(losses[:end].min())}
        return best | channel.encode(verdict, last)

    space = keras_tuner.HyperParameters()
    search_tasks.declare_training(space)
    oracle = make_oracle(name, space, seed, trials, stopped_value=policy)
    found = search(oracle, evaluate)
    finished = [trial.score for trial in found if trial.status == "COMPLETED"]
    stopped = len(found) - len(finished)
    regret = min(finished) - search_tasks.BEST_TRAINING
    return {"regret": float(f"{regret:.5g}"), "stopped": stopped}


def measure_stopped(results, save, options):
    """Searches with every policy."""
    for name in [name for name in options.oracles if name in STOPPED]:
        for scenario, flattering in SCENARIOS.items():
            for policy in oracles.STOPPED_VALUES:
                place = results.setdefault(name, {}).setdefault(scenario, {})
                facts = place.setdefault(policy, {"runs": []})
                while len(facts["runs"]) < options.seeds:
                    seed = len(facts["runs"])
                    facts["runs"].append(
                        run_stopped(name, flattering, policy, seed, options.trials)
                    )
                    for measure in ("regret", "stopped"):
                        facts[measure] = mean_with_interval(
                            [run[measure] for run in facts["runs"]]
                        )
                    save()
                print(f"stopped {name} {scenario:10} {policy:9} regret "
                      f"{told(facts['regret'])}  stopped {told(facts['stopped'])}",
                      flush=True)  # fmt: skip


def mean_with_interval(values):
    """The mean over seeds with a 95 % bootstrap interval."""
    values = np.array(values)
    draws = np.random.default_rng(0).integers(0, len(values), (4000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def told(fact):
    """A mean and its interval, to read."""
    return f"{fact['mean']:.4f} [{fact['low']:.4f}, {fact['high']:.4f}]"


def main():
    """Measures what the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, help="file for the results")
    parser.add_argument("--oracles", default=",".join(ORACLES))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=7, help="of timings")
    parser.add_argument("--smoke", action="store_true", help="a minute in all")
    options = parser.parse_args()
    options.timed_at = TIMED_AT
    if options.smoke:
        options.oracles = "random,GP,TPE"
        options.seeds, options.trials, options.repeats = 1, 22, 1
        options.timed_at = TIMED_AT[:2]
    options.oracles = options.oracles.split(",")
    target = pathlib.Path(options.json)
    settings = {
        "seeds": options.seeds,
        "trials": options.trials,
        "repeats": options.repeats,
        "checkpoints": CHECKPOINTS,
        "seed_of_a_search": "1000 * seed + 1",
    }
    results = {"settings": json.loads(json.dumps(settings))}
    if target.exists():
        before = json.loads(target.read_text())
        if before["settings"] == results["settings"]:
            results = before
    results["versions"] = {p: importlib.metadata.version(p) for p in PACKAGES} | {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }

    def save():
        partial = target.with_suffix(".part")
        partial.write_text(json.dumps(results, indent=None) + "\n")
        partial.replace(target)

    logging.getLogger("optuna").setLevel(logging.ERROR)
    measure = dict(
        zip(PARTS, (measure_seconds, measure_regret, measure_stopped), strict=True)
    )
    for part in options.parts.split(","):
        measure[part](results.setdefault(part, {}), save, options)
    save()


if __name__ == "__main__":
    main()
