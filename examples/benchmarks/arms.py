"""What diagnosis saves and costs on one data set: the demo's search in three arms.

Random search with and without diagnosis, on the same configurations and seeds, and
Bayesian search with it. Each trial that the diagnosis stopped is looked up in the arm
without: what it would have scored, and its rank there.

    python examples/benchmarks/arms.py --json arms.json [--data FILE.npz] [--seed 0]
        [--trials 20] [--epochs 8] [--rows 3000]

An arm whose result lies in the work folder already is not run again.
"""

import argparse
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys

ARMS = {
    "random": ["--tuner", "random"],
    "random without": ["--tuner", "random", "--no-diagnosis"],
    "bayesian": ["--tuner", "bayesian"],
}
PACKAGES = ("tensorflow", "keras", "keras-tuner", "numpy", "scikit-learn")


def run_arm(name, options, folder):
    """Runs one arm in a process of its own and returns its facts."""
    result = folder / f"{name.replace(' ', '-')}.json"
    if not result.exists():
        command = [sys.executable, "-m", "kt_bttackler", "demo", *ARMS[name]]
        command += ["--directory", str(folder / name.replace(" ", "-"))]
        command += ["--json", str(result)]
        for option in ("data", "seed", "trials", "epochs", "rows"):
            value = getattr(options, option)
            if value is not None:
                command += [f"--{option}", str(value)]
        subprocess.run(command, check=True)
    return json.loads(result.read_text())


def compare(diagnosed, full):
    """Looks every stopped trial up in the arm that ran it to its end."""
    finished = {trial["id"]: trial for trial in full["trials"]}
    scores = sorted((t["score"] for t in finished.values()), reverse=True)
    stopped = []
    for trial in diagnosed["trials"]:
        if trial["status"] != "STOPPED":
            continue
        score = finished[trial["id"]]["score"]
        stopped.append(
            {
                "id": trial["id"],
                "causes": trial["causes"],
                "epochs_run": trial["epochs_run"],
                "score_when_stopped": trial["score"],
                "score_without_diagnosis": score,
                "rank_without_diagnosis": None
                if score is None
                else 1 + scores.index(score),
            }
        )
    top = max(1, len(scores) // 10)
    harmed = [t["id"] for t in stopped if (t["rank_without_diagnosis"] or 1e9) <= top]
    return {"stopped": stopped, "top": top, "stopped_in_top": harmed}


def main():
    """Runs the arms and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, help="file for the results")
    parser.add_argument("--data", help="images; default: scikit-learn's digits")
    parser.add_argument("--folder", default="arms", help="work folder, kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rows", type=int, default=3000)
    options = parser.parse_args()
    folder = pathlib.Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    arms = {name: run_arm(name, options, folder) for name in ARMS}
    results = {
        "settings": {
            "data": pathlib.Path(options.data).name if options.data else "digits",
            "seed": options.seed,
            "trials": options.trials,
            "epochs": options.epochs,
            "rows": options.rows,
        },
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES}
        | {"python": platform.python_version()},
        "comparison": compare(arms["random"], arms["random without"]),
        "arms": arms,
    }
    pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    for name, facts in arms.items():
        print(name, {k: v for k, v in facts.items() if k != "trials"})
    print(json.dumps(results["comparison"], indent=1))


if __name__ == "__main__":
    main()
