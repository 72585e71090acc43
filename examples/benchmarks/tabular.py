"""Random and Bayesian searches among the recorded trainings, with and without stops.

Each oracle chooses among the configurations of a study of `studies/`, for a share of
the seconds that all of them take, without stops, with the median stopping rule, with
extrapolated learning curves, and with a diagnosis:

    python examples/benchmarks/tabular.py --json tabular.json [--folder DIR]
        [--seeds 200] [--oracles random,GP,TPE,SMAC] [--budget 0.3] [--smoke]

- *best*: score of the best trial that was not stopped as harmful, at the budget.
- *rank*: of that trial among all of the study, from 1, by the same score.
- *finished*: trials that ended within the budget.
- *half time*: share of the budget after which a search is as good as the median plain
  search of its oracle is at the end; 1 where it never is.

The seeds are those of the oracles; arms of one seed draw the same initial points. Means
over the seeds have 95 % bootstrap intervals, as have the differences from the plain
search of the same oracle and seed. Results are written as they come; what the file
holds is not run again, as long as the study has not grown.
"""

import argparse
import importlib.metadata
import json
import math
import os
import pathlib
import platform

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_tuner
import numpy as np

from kt_bttackler import measures, oracles, replay, tabular
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.learning_curves import LearningCurveExtrapolation
from kt_bttackler.median_stopping import MedianStoppingRule
from kt_bttackler.paper_tasks import TASKS
from kt_bttackler.rules import NeverStop
from kt_bttackler.trace import TraceStore

STUDIES = pathlib.Path(__file__).parent / "studies"
PACKAGES = ("keras-tuner", "numpy", "scipy", "scikit-learn", "optuna", "smac")
ORACLES = {
    "random": oracles.RandomSearchOracle,
    "GP": oracles.BayesianOptimizationOracle,
    "TPE": oracles.TPEOracle,
    "SMAC": oracles.SMACOracle,
}
PLAIN = "plain"
ARMS = {
    PLAIN: Diagnosis((), NeverStop()),
    "MSR": Diagnosis((), MedianStoppingRule()),
    "LCE": Diagnosis((), LearningCurveExtrapolation()),
    "conservative": Diagnosis("conservative"),
    "balanced": Diagnosis("balanced"),
}
INITIAL_POINTS = 5
RESAMPLES = 1000


def make_oracle(name, task, seed, trials):
    """An oracle on the space of a task."""
    space = keras_tuner.HyperParameters()
    task.declare(space)
    how = {} if name == "random" else {"num_initial_points": INITIAL_POINTS}
    return ORACLES[name](
        objective=keras_tuner.Objective(task.objective, task.direction),
        max_trials=trials,
        hyperparameters=space,
        # KerasTuner draws with seed, seed + 1, and so on.
        seed=1000 * seed + 1,
        **how,
    )


def run_one(name, arm, task, recording, seed, budget):
    """How one search went: when its best score so far became better, and to what."""
    oracle = make_oracle(name, task, seed, len(recording))
    run = tabular.search(oracle, recording, ARMS[arm], budget=budget)
    found = [t for t in run.trials if t.outcome in ("completed", "benign")]
    costs = measures.costs([t.score for t in found], recording.direction)
    ends, scores, least = [], [], math.inf
    for trial, cost in sorted(
        zip(found, costs, strict=True), key=lambda pair: pair[0].ended
    ):
        if cost < least:
            least = cost
            ends.append(round(trial.ended, 2))
            scores.append(round(trial.score, 6))
    return {"finished": run.finished, "ends": ends, "scores": scores}


def best_of(run, direction):
    """The best score of a search, `nan` for none."""
    costs = measures.costs(run["scores"], direction)
    finite = costs[np.isfinite(costs)]
    sign = -1 if direction == "max" else 1
    return sign * float(finite.min()) if len(finite) else float("nan")


def time_to(run, target, direction, budget):
    """Share of the budget after which a search had reached a score."""
    costs = measures.costs(run["scores"], direction)
    [goal] = measures.costs([target], direction)
    reached = np.asarray(run["ends"])[costs <= goal] if len(costs) else []
    return float(min(reached)) / budget if len(reached) else 1.0


def with_interval(values):
    """Mean of one value per seed and its bootstrap interval."""
    known = np.asarray(values, float)
    dice = np.random.default_rng(0)
    draws = known[dice.integers(len(known), size=(RESAMPLES, len(known)))]
    low, high = measures.interval(draws.mean(axis=1))
    return {"mean": float(known.mean()), "low": low, "high": high}


def summarise(arms, recording, budget):
    """What the runs of one oracle come to, arm by arm."""
    direction = recording.direction
    pool = np.sort(measures.costs(recording.full_scores(), direction))
    worst = pool[np.isfinite(pool)].max() * (-1 if direction == "max" else 1)
    plain = arms[PLAIN]["runs"]
    target = float(np.median([_or(best_of(r, direction), worst) for r in plain]))
    for arm in arms.values():
        runs = arm["runs"]
        best = np.array([_or(best_of(run, direction), worst) for run in runs])
        costs = measures.costs(best, direction)
        seen = {
            "best": best,
            "rank": 1.0 + np.searchsorted(pool, costs - 1e-12),
            "finished": np.array([run["finished"] for run in runs], float),
            "half_time": np.array(
                [time_to(run, target, direction, budget) for run in runs]
            ),
        }
        for measure, values in seen.items():
            arm[measure] = with_interval(values)
        arm["_seen"] = seen
    for arm in arms.values():
        for measure, values in arm["_seen"].items():
            count = min(len(values), len(arms[PLAIN]["_seen"][measure]))
            difference = values[:count] - arms[PLAIN]["_seen"][measure][:count]
            arm[f"{measure}_beside_plain"] = with_interval(difference)
    for arm in arms.values():
        del arm["_seen"]


def _or(value, otherwise):
    return value if np.isfinite(value) else otherwise


def search_study(folder, place, options, save):
    """Runs what is missing of one study."""
    recording = replay.Recording(TraceStore(folder), folder.name)
    task = TASKS[folder.name]
    budget = options.budget * recording.seconds
    facts = {"trials": len(recording), "budget": round(budget, 2)}
    if {k: place.get(k) for k in facts} != facts:
        place.clear()
        place.update(facts, oracles={})
    for name in options.oracles:
        arms = place["oracles"].setdefault(name, {})
        for arm in ARMS:
            runs = arms.setdefault(arm, {"runs": []})["runs"]
            while len(runs) < options.seeds:
                runs.append(run_one(name, arm, task, recording, len(runs), budget))
                if len(runs) % 10 == 0:
                    save()
        summarise(arms, recording, budget)
        save()
        for arm, found in arms.items():
            print(
                f"{folder.name:22}{name:8}{arm:14}"
                + "".join(
                    f" {measure} {found[measure]['mean']:.4g} "
                    f"[{found[measure]['low']:.4g}, {found[measure]['high']:.4g}]"
                    for measure in ("best", "rank", "finished", "half_time")
                ),
                flush=True,
            )


def main():
    """Runs everything that the file of results does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, help="file for the results")
    parser.add_argument("--folder", type=pathlib.Path, default=STUDIES)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--oracles", default="random,GP,TPE,SMAC")
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--smoke", action="store_true", help="two seeds, no SMAC")
    options = parser.parse_args()
    options.oracles = options.oracles.split(",")
    if options.smoke:
        options.seeds, options.oracles = 2, ["random", "GP", "TPE"]
    path = pathlib.Path(options.json)
    results = json.loads(path.read_text()) if path.exists() else {}
    results["settings"] = {
        "seeds": options.seeds,
        "budget": options.budget,
        "initial_points": INITIAL_POINTS,
        "resamples": RESAMPLES,
    }
    results["versions"] = {p: importlib.metadata.version(p) for p in PACKAGES} | {
        "python": platform.python_version()
    }
    studies = results.setdefault("studies", {})

    def save():
        path.write_text(json.dumps(results) + "\n")

    folders = sorted({each.parent for each in options.folder.glob("*/shard-*")})
    if not folders:
        parser.error(f"--folder: no study is in {options.folder}")
    for folder in folders:
        place = studies.setdefault(folder.name, {})
        search_study(folder, place, options, save)
    save()


if __name__ == "__main__":
    main()
