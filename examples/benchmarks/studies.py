"""What diagnosis saves and costs on the recorded searches of `studies/`.

Every preset and every single indicator is replayed on searches whose trainings all ran
to their end, trial after trial on one worker:

    python examples/benchmarks/studies.py --json studies.json [--folder DIR] [--smoke]

- *claimed*: trials stopped as harmful; benign stops are counted apart.
- *epochs*, *seconds*: share saved, with a 95 % bootstrap interval over the trials.
- *killed*: of the best 10 and 20 % of the trials those stopped as harmful, with the
  95 % upper bound of that share (Clopper-Pearson).
- *precision*, *recall*: of what is claimed against what is *bad*: trials that end no
  better than the trivial predictor (`trivial_score` and its margin in `card.json`).
- *ceiling*: the seconds saved per seconds that stopping exactly the bad trials after
  their first epoch would save.

The thresholds of two presets are also calibrated on all studies, and judged on each
study by those found without it. The limit of kill-regret is 10 %, or what so few trials
can prove.

The preset chosen as default saves most seconds, as a mean over the tasks, among those
that stop none of the best 10 % of any task.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import platform

import numpy as np

from kt_bttackler import calibration, catalog, measures
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.learning_curves import LearningCurveExtrapolation
from kt_bttackler.median_stopping import MedianStoppingRule
from kt_bttackler.presets import PRESETS
from kt_bttackler.replay import Recording, simulate
from kt_bttackler.rules import AnyFinding
from kt_bttackler.trace import TraceStore

STUDIES = pathlib.Path(__file__).parent / "studies"
PACKAGES = ("numpy", "scipy")
RESAMPLES = 1000
CALIBRATED = ("balanced", "extended")
QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)  # of the final scores


def diagnoses():
    """What is replayed, by name: presets, single indicators, rules that compare."""
    found = {name: Diagnosis(name) for name in PRESETS}
    for indicator in (*catalog.SEVEN, *catalog.FURTHER):
        found[indicator.id] = Diagnosis((indicator(),), AnyFinding())
    for rule in (MedianStoppingRule(), LearningCurveExtrapolation()):
        found[rule.id] = Diagnosis((), rule)
    return found


def is_bad(scores, card):
    """Whether each trial ends no better than the trivial predictor, [N]."""
    margin = card.get("trivial_margin", 0.0)
    if card["direction"] == "max":
        better = scores > card["trivial_score"] + margin
    else:
        better = scores < card["trivial_score"] - margin
    return ~better  # also where there is no score


def ceiling(recording, bad):
    """Seconds that stopping the bad trials after their first epoch would save."""
    seconds = [trace.seconds for trace in recording.traces]
    return sum(each[-1] - each[0] for each, b in zip(seconds, bad, strict=True) if b)


def judge(recording, diagnosis, bad):
    """What a diagnosis does to a recorded search."""
    [run] = simulate(recording, diagnosis)
    by_index = sorted(run.trials, key=lambda trial: trial.index)
    harmful = np.array([trial.outcome == "stopped" for trial in by_index])
    benign = np.array([trial.outcome == "benign" for trial in by_index])
    saved = np.array([trial.seconds_saved for trial in by_index])
    epochs = sum(trial.epochs_saved for trial in by_index)
    planned = sum(len(trace) for trace in recording.traces)
    own = np.array([trace.seconds[-1] for trace in recording.traces])
    scores = recording.full_scores("last")
    kept = [trial.score for trial in by_index]
    hits = int((harmful & bad).sum())
    stops = [trial.epochs for trial in by_index if trial.outcome == "stopped"]
    dice = np.random.default_rng(0)
    draws = dice.integers(len(own), size=(RESAMPLES, len(own)))
    shares = saved[draws].sum(axis=1) / own[draws].sum(axis=1)
    possible = ceiling(recording, bad)
    lost = measures.benign_loss(
        recording.full_scores(), kept, benign, direction=recording.direction
    )
    facts = {
        "claimed": int(harmful.sum()),
        "benign": int(benign.sum()),
        "stop_epochs": [min(stops), max(stops)] if stops else None,
        "epochs_saved": epochs / planned,
        "seconds_saved": float(saved.sum() / own.sum()),
        "seconds_saved_interval": list(measures.interval(shares)),
        "seconds_saved_by_harmful": float(saved[harmful].sum() / own.sum()),
        "precision": hits / int(harmful.sum()) if harmful.any() else None,
        "recall": hits / int(bad.sum()) if bad.any() else None,
        "share_of_ceiling": float(saved.sum() / possible) if possible else None,
        "largest_benign_loss": float(max(lost, default=0.0)),
        "stopped_trials": [t.trial_id for t in by_index if t.outcome == "stopped"],
    }
    for name, fraction in (("top10", 0.1), ("top20", 0.2)):
        facts[name] = regret_facts(
            measures.kill_regret(
                scores, harmful, direction=recording.direction, fraction=fraction
            )
        )
    return facts


def regret_facts(regret):
    """A kill-regret for JSON."""
    return {"killed": regret.killed, "top": regret.top, "upper": regret.upper}


def study_facts(folder, recording, wanted):
    """Everything about one study."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    scores = recording.full_scores("last")
    bad = is_bad(scores, card)
    finite = scores[np.isfinite(scores)]
    return {
        "trials": len(recording),
        "trivial_score": card["trivial_score"],
        "seconds": recording.seconds,
        "bad": int(bad.sum()),
        "ceiling": ceiling(recording, bad) / recording.seconds,
        "quantiles": np.quantile(finite, QUANTILES).tolist(),
        "rules": {name: judge(recording, d, bad) for name, d in wanted.items()},
    }


def pooled(tasks, name):
    """One rule on all tasks: mean shares, and the best trials of all together."""
    rules = [facts["rules"][name] for facts in tasks.values()]
    result = {
        "seconds_saved": float(np.mean([rule["seconds_saved"] for rule in rules]))
    }
    for top in ("top10", "top20"):
        regret = sum(
            (measures.KillRegret(r[top]["killed"], r[top]["top"]) for r in rules),
            start=measures.KillRegret(0.0, 0),
        )
        result[top] = regret_facts(regret)
    return result


def calibrate(recordings, preset):
    """Thresholds tuned on all studies, and what those tuned without it do to each."""
    top = sum(measures.top_count(len(each), 0.1) for each in recordings)
    limit = max(0.1, math.ceil(1e4 * measures.upper_bound(0, top)) / 1e4)
    try:
        found = calibration.calibrate(
            recordings, diagnosis=preset, max_regret=limit, score="last"
        )
    except ValueError as error:
        return {"max_regret": limit, "refused": str(error)}
    return {
        "max_regret": limit,
        "provable": found.provable,
        "held_out": regret_facts(found.regret),
        "held_out_saved": found.held_out_saved,
        "seconds_saved": dict(found.seconds_saved),
        "thresholds": {k: list(v) for k, v in found.thresholds.items()},
        "dropped": list(found.dropped),
    }


def choose_default(tasks):
    """The preset that saves most and stops none of the best tenth of any task."""
    harmless = [
        name
        for name in PRESETS
        if not any(f["rules"][name]["top10"]["killed"] for f in tasks.values())
    ]
    saved = {name: pooled(tasks, name)["seconds_saved"] for name in harmless}
    return max(saved, key=saved.get, default=None)


def told(facts):
    """The rules of one task, a line each."""
    yield (
        f"{'rule':22}{'claimed':>8}{'benign':>7}{'epochs':>8}{'sec %':>7}"
        f"{'killed 10':>11}{'< %':>5}{'killed 20':>11}{'prec':>6}{'recall':>7}"
        f"{'ceil':>6}"
    )

    def share(value):
        return "-" if value is None else f"{100 * value:.0f}"

    for name, rule in facts["rules"].items():
        first, last = rule["stop_epochs"] or ("", "")
        top10, top20 = rule["top10"], rule["top20"]
        span = f"{first}-{last}" if rule["stop_epochs"] else ""
        yield (
            f"{name:22}{rule['claimed']:8}{rule['benign']:7}{span:>8}"
            f"{100 * rule['seconds_saved']:7.1f}"
            f"{top10['killed']:7g}/{top10['top']:<3}{100 * top10['upper']:5.0f}"
            f"{top20['killed']:7g}/{top20['top']:<3}{share(rule['precision']):>6}"
            f"{share(rule['recall']):>7}{share(rule['share_of_ceiling']):>6}"
        )


def main():
    """Replays everything, prints tables and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, help="file for the results")
    parser.add_argument("--folder", type=pathlib.Path, default=STUDIES)
    parser.add_argument("--smoke", action="store_true", help="the presets only")
    options = parser.parse_args()
    wanted = diagnoses()
    if options.smoke:
        wanted = {name: wanted[name] for name in PRESETS}
    folders = sorted({path.parent for path in options.folder.glob("*/shard-*")})
    if not folders:
        parser.error(f"--folder: no study is in {options.folder}")
    recordings = [Recording(TraceStore(folder), folder.name) for folder in folders]
    tasks = {
        folder.name: study_facts(folder, recording, wanted)
        for folder, recording in zip(folders, recordings, strict=True)
    }
    results = {
        "settings": {"studies": sorted(tasks), "resamples": RESAMPLES},
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES}
        | {"python": platform.python_version()},
        "tasks": tasks,
        "pooled": {name: pooled(tasks, name) for name in wanted},
        "calibrated": {name: calibrate(recordings, name) for name in CALIBRATED},
        "default": choose_default(tasks),
    }
    pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    for name, facts in tasks.items():
        print(
            f"\n{name}: {facts['trials']} trials, {facts['bad']} bad, ceiling "
            f"{100 * facts['ceiling']:.1f} % of {facts['seconds']:.0f} CPU seconds"
        )
        print(*told(facts), sep="\n")
    print("\nall tasks: seconds saved, killed of the best 10 and 20 %")
    for name, facts in results["pooled"].items():
        tops = "  ".join(
            f"{facts[top]['killed']:g}/{facts[top]['top']} (< "
            f"{100 * facts[top]['upper']:.1f} %)"
            for top in ("top10", "top20")
        )
        print(f"{name:22}{100 * facts['seconds_saved']:7.1f} %   {tops}")
    for name, facts in results["calibrated"].items():
        print(f"\n{name} calibrated: {json.dumps(facts)}")
    print(f"\ndefault preset: {results['default']}")


if __name__ == "__main__":
    main()
