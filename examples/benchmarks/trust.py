"""How far a diagnosis can be trusted: what it stops, what it should not have stopped.

    python examples/benchmarks/trust.py --json FILE [--store DIR] [--seeds 7]
        [--step record|judge] [--only TEXT] [--incomplete] [--smoke]

Matched faulty and healthy trainings, and healthy ones that look faulty, are trained to
their end and recorded; then every preset and every single rule is replayed over the
same traces. A run is judged by its outcome: it is bad when its final validation loss
lies above the mean of the trivial predictor's and the median of its healthy twin's over
the same seeds. What was recorded under --store is not trained again.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The nets are tiny: a second thread costs more than it gives.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

from trust_cases import judging, recording, runs

PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "scikit-learn")
# The indicators were revised on the runs of these seeds; all others are held out.
DEVELOPMENT_SEEDS = (0, 1, 2, 3, 4)
SMOKE = ("cancer-softmax-of-one", "digits-rate-low", "hard-five-epochs")


def chosen_runs(options):
    """The runs that the options ask for."""
    seeds = range(options.seeds)
    if not options.smoke:
        return runs.all_runs(seeds, lambda case: options.only in case)
    return [
        dataclasses.replace(run, configuration=run.configuration.but(epochs=4))
        for run in runs.all_runs(seeds, lambda case: case in SMOKE)
    ]


def record_all(chosen, store, diagnosis, versions):
    """Trains what has not been trained yet."""
    for number, run in enumerate(chosen, 1):
        facts, trained = recording.record(run, store, diagnosis, versions)
        if trained:
            print(
                f"{number}/{len(chosen)} {run.id}: {float(facts['val_loss']):.4g} "
                f"(trivial {facts['trivial']:.4g}), {facts['cpu_seconds']:.1f} s CPU",
                flush=True,
            )


def outcomes_of(chosen, store, incomplete):
    """The facts of all recorded runs, with the limit and whether they are bad.

    Args:
        chosen: list of `Run`.
        store: folder of all runs.
        incomplete: judge what is recorded though something is missing.

    Returns:
        The rows, and the ids of the runs that are missing.
    """
    known = {run.id: recording.facts_of(run, store) for run in chosen}
    missing = [run for run, facts in known.items() if facts is None]
    if missing and not incomplete:
        raise SystemExit(f"not recorded yet: {', '.join(missing)}")
    rows = []
    for run in chosen:
        facts = known[run.id]
        twins = [
            known[other.id]
            for other in chosen
            if other.twin == "healthy" and other.case == run.compared_with
        ]
        twins = [twin for twin in twins if twin is not None]
        if facts is None or (run.compared_with and not twins):
            continue
        limit = runs.bad_above(
            facts["trivial"],
            [twin["val_loss"] for twin in twins],
            twins[0]["trivial"] if twins else facts["trivial"],
        )
        rows.append((run, facts, limit, runs.is_bad(facts["val_loss"], limit)))
    return rows, missing


def judge_all(rows, store):
    """Replays every preset and rule.

    Returns:
        Summaries of the presets, of the rules, of the presets on the runs of held-out
        seeds, and what was said of each run.
    """
    presets = judging.presets()
    rules = judging.single_rules(presets)
    names = {**{f"preset {n}": d for n, d in presets.items()}, **rules}
    said = {}
    for run, *_ in rows:
        said[run.id] = judging.replay(recording.trace_of(run, store), names)
    outcomes = [
        judging.Outcome(run.id, bad, facts["epochs"], run.expected)
        for run, facts, _, bad in rows
    ]

    held_out = [
        o for o, (run, *_) in zip(outcomes, rows, strict=True) if is_held_out(run)
    ]

    def summary(name, rule=None, among=outcomes):
        judgements = {run: by_name[name] for run, by_name in said.items()}
        return judging.summarise(among, judgements, rule)

    return (
        {name: summary(f"preset {name}") for name in presets},
        {name: summary(name, name.partition(" ")[0]) for name in rules},
        {name: summary(f"preset {name}", among=held_out) for name in presets},
        {
            run: {
                name: dataclasses.asdict(by_name[f"preset {name}"]) for name in presets
            }
            for run, by_name in said.items()
        },
    )


def is_held_out(run):
    """Whether nobody has looked at the seed of a run."""
    return run.seed not in DEVELOPMENT_SEEDS


def quality(rows):
    """How many runs there are, and which did not end as their twin's name says."""
    good = [run.id for run, _, _, bad in rows if not bad]
    return {
        "runs": len(rows),
        "bad": len(rows) - len(good),
        "good": len(good),
        "healthy_runs": sum(run.twin == "healthy" for run, *_ in rows),
        "faulty_but_good": [i for i in good if "/faulty/" in i],
        "healthy_but_bad": [
            run.id for run, _, _, bad in rows if bad and run.twin == "healthy"
        ],
        "cpu_minutes": sum(facts["cpu_seconds"] for _, facts, *_ in rows) / 60,
    }


def table(summaries, title):
    """A Markdown table of summaries."""

    def percent(value):
        return "-" if value is None else f"{100 * value:.0f} %"

    def cell(part):
        if not part["total"]:
            return "-"
        interval = f"[{100 * part['low']:.0f}, {100 * part['high']:.0f}]"
        return f"{part['count']}/{part['total']} {percent(part['share'])} {interval}"

    lines = [
        f"| {title} | recall | false stops | false warnings | right cause "
        "| time to verdict | early causes | others |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, part in summaries.items():
        counts = ("recall", "false_stops", "false_warnings", "right_cause")
        times = ("", "_early_causes", "_other_causes")
        cells = [cell(part[key]) for key in counts]
        cells += [percent(part[f"time_to_verdict{key}"]) for key in times]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show(results):
    """Prints what came of it."""
    facts = results["outcomes"]
    print(
        f"{facts['runs']} runs, {facts['bad']} bad, {facts['good']} good; "
        f"{facts['cpu_minutes']:.1f} CPU minutes"
    )
    print("not recorded:", *results["not_recorded"])
    print("faulty, but good:", *facts["faulty_but_good"])
    print("healthy, but bad:", *facts["healthy_but_bad"])
    print("\n" + table(results["presets"], "preset"))
    print("\n" + table(results["held_out"], "preset, held-out seeds"))
    print("\n" + table(results["rules"], "rule"))
    for name, part in results["presets"].items():
        print(f"\n{name}: missed", *part["missed"])
        print(f"{name}: stopped wrongly", *part["stopped_wrongly"])


def main():
    """Records, judges and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, help="file for the results")
    parser.add_argument("--store", help="folder of the recorded runs, kept")
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--step", choices=("record", "judge"), help="default: both")
    parser.add_argument("--only", default="", help="cases with this in their id")
    parser.add_argument(
        "--incomplete",
        action="store_true",
        help="judge what is recorded, and say how much is not",
    )
    parser.add_argument("--smoke", action="store_true", help="a few short runs")
    options = parser.parse_args()
    if options.smoke:
        options.seeds = 1
    store = options.store or ("trust-smoke" if options.smoke else "trust")
    chosen = chosen_runs(options)
    versions = {p: importlib.metadata.version(p) for p in PACKAGES}
    versions["python"] = platform.python_version()
    if options.step != "judge":
        diagnosis = recording.recorder(judging.presets())
        record_all(chosen, store, diagnosis, versions)
    if options.step == "record":
        return
    rows, missing = outcomes_of(chosen, store, options.incomplete)
    presets, rules, held_out, said = judge_all(rows, store)
    results = {
        "settings": {"seeds": list(range(options.seeds)), "only": options.only},
        "versions": versions,
        "not_recorded": missing,
        "outcomes": quality(rows),
        "presets": presets,
        "held_out": held_out,
        "rules": rules,
        "runs": [
            {
                "run": run.id,
                "seed": run.seed,
                "bad": bad,
                "val_loss": facts["val_loss"],
                "bad_above": limit,
                "trivial": facts["trivial"],
                "epochs": facts["epochs"],
                "cpu_seconds": facts["cpu_seconds"],
                "expected": run.expected,
                "said": said[run.id],
            }
            for run, facts, limit, bad in rows
        ],
    }
    pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
