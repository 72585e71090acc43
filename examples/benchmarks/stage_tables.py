"""Prints what `stages.py` has measured as the tables of the documentation.

python examples/benchmarks/stage_tables.py examples/benchmarks/results/stages.json
"""

import json
import pathlib
import sys

ARMS = ("KerasTuner", "warm models", "stages")
COMBINATIONS = ("neither", "diagnosis", "stages", "both")


def table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def plans(results):
    """What is to be trained of the spaces."""
    rows = [
        [
            space,
            facts["trials"],
            facts["epochs"],
            facts["to_train"],
            f"{facts['merge_rate']:.2f}",
            f"{facts['two_workers']:g}",
        ]
        for space, facts in results["plans"].items()
    ]
    head = ["space", "trials", "epochs", "to train", "merge rate", "two workers"]
    return table(head, rows)


def timed(results):
    """Seconds of the arms."""
    rows = []
    for case, facts in results["timed"].items():
        for arm in ARMS:
            for run in facts.get(arm, {}).values():
                cells = [
                    case,
                    arm,
                    run["epochs"],
                    f"{run['cpu_seconds_per_epoch']:.2f}",
                ]
                cells += [f"{run['cpu_seconds']:.1f}", f"{run['seconds']:.1f}"]
                moved = run.get("loading", 0) + run.get("saving", 0)
                share = 100 * moved / run["seconds"]
                rows.append([*cells, f"{share:.1f} %" if arm == "stages" else ""])
    head = ["case", "arm", "epochs", "CPU s per epoch", "CPU s", "s", "save and load"]
    return table(head, rows)


def ratios(results):
    """By case: the merge rate, and what the arms took of what stages took."""
    found = {}
    for case, facts in results["timed"].items():
        own = facts["stages"]["0"]
        found[case] = {"merge rate": facts["plan"]["merge_rate"]} | {
            f"{arm}, {name}": facts[arm]["0"][unit] / own[unit]
            for arm in ARMS[:-1]
            if arm in facts
            for unit, name in (("cpu_seconds", "CPU"), ("seconds", "wall"))
        }
    return found


def gains(results):
    """The ratios as a table."""
    columns = [f"{arm}, {unit}" for arm in ARMS[:-1] for unit in ("CPU", "wall")]
    rows = [
        [
            case,
            f"{facts['merge rate']:.2f}",
            *(f"{facts[c]:.2f}" if c in facts else "" for c in columns),
        ]
        for case, facts in ratios(results).items()
    ]
    return table(["case", "merge rate", *columns], rows)


def rungs(results):
    """Epochs of successive halving."""
    facts = results["rungs"]
    trained = facts["trained"]
    rows = [
        [name, facts[key], f"{facts[key] / trained:.2f}"]
        for name, key in (
            ("every rung begins anew", "restarted"),
            ("every rung goes on", "resumed"),
            ("stages", "trained"),
        )
    ]
    return table(["successive halving on B", "epochs", "of stages"], rows)


def diagnosis(results):
    """Stages and diagnosis, each without and with the other."""
    rows = []
    for space, facts in results["diagnosis"].items():
        plain = facts["neither"]["trained"]
        for arm in COMBINATIONS:
            own = facts[arm]
            cells = [space, arm, own["trained"], f"{plain / own['trained']:.2f}"]
            rows.append([*cells, own["stopped"], f"{own['best']:.4f}"])
    head = ["trials", "arm", "epochs", "gain", "stopped", "best"]
    return table(head, rows)


def of_product(facts):
    """What both gain, by the product of what each gains alone."""
    epochs = {arm: facts[arm]["trained"] for arm in COMBINATIONS}
    return epochs["diagnosis"] * epochs["stages"] / epochs["neither"] / epochs["both"]


def workers(results):
    """Two processes."""
    facts = results["workers"]
    row = [facts["to_train"], facts["trained"], f"{facts['makespan']:.1f}"]
    row += [f"{facts['bound']:.1f}", f"{facts['makespan / bound']:.3f}"]
    return table(["to train", "trained", "makespan, s", "bound, s", "ratio"], [row])


if __name__ == "__main__":
    measured = json.loads(pathlib.Path(sys.argv[1]).read_text())
    for part in (plans, timed, gains, rungs, diagnosis, workers):
        if {"gains": "timed"}.get(part.__name__, part.__name__) in measured:
            print(part(measured), end="\n\n")
    for workload, arms in measured.get("diagnosis", {}).items():
        print(workload, "both / product", round(of_product(arms), 3))
