"""The figures in `examples/benchmarks/README.md` are those of the recorded results."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "examples" / "benchmarks"
README = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((BENCHMARKS / "results" / "oracles.json").read_text())
OVERHEAD = json.loads((BENCHMARKS / "results" / "overhead.json").read_text())
TRUST = json.loads((BENCHMARKS / "results" / "trust.json").read_text())
PRESETS = ("conservative", "extended")
sys.path.insert(0, str(BENCHMARKS))

import trust  # noqa: E402
from overhead_parts import tables  # noqa: E402


def interval(fact: dict[str, float]) -> str:
    return f"{fact['mean']:.4f} [{fact['low']:.4f}, {fact['high']:.4f}]"


def cells(first: str) -> list[str]:
    """What stands behind the first cell of a row."""
    (row,) = (line for line in README.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")[1:]]


@pytest.mark.parametrize("task", RESULTS["regret"])
def test_regret(task: str) -> None:
    recorded = RESULTS["regret"][task]
    columns = ("GP", "TPE", "SMAC", "random", "KerasTuner-GP")
    assert cells(task) == [
        interval(recorded[name]["final"]) if name in recorded else ""
        for name in columns
    ]


@pytest.mark.parametrize("name", RESULTS["seconds"])
def test_seconds(name: str) -> None:
    told = {
        "KerasTuner-GP": "KerasTuner's GP",
        "KerasTuner-GP, one thread": "the same, one thread",
    }

    def both(facts: Any) -> str:
        return f"{facts['cpu_seconds']:.3f} / {facts['wall_seconds']:.3f}"

    recorded = RESULTS["seconds"][name]
    assert cells(told.get(name, name)) == [
        both(recorded[trials]) if trials in recorded else ""
        for trials in ("10", "30", "100", "300")
    ]


@pytest.mark.parametrize("name", RESULTS["stopped"])
@pytest.mark.parametrize("scenario", ["flattering", "harsh"])
def test_policies(name: str, scenario: str) -> None:
    recorded = RESULTS["stopped"][name][scenario].values()
    regrets = [interval(facts["regret"]) for facts in recorded]
    assert cells(f"{name}, {scenario}: regret") == regrets
    counts = [f"{facts['stopped']['mean']:.1f}" for facts in recorded]
    assert cells(f"{name}, {scenario}: trials stopped") == counts


def test_every_run_is_recorded() -> None:
    seeds = RESULTS["settings"]["seeds"]
    for recorded in RESULTS["regret"].values():
        for name in ("GP", "TPE", "random"):
            assert len(recorded[name]["runs"]) == seeds == 20


def test_the_gaussian_process_is_faster_and_no_worse_than_kerastuners() -> None:
    seconds = RESULTS["seconds"]
    for unit in ("cpu_seconds", "wall_seconds"):
        theirs = seconds["KerasTuner-GP"]["100"][unit]
        assert 20.0 * seconds["GP"]["100"][unit] < theirs
    for task in ("branin", "hartmann6"):
        recorded = RESULTS["regret"][task]
        ours, theirs = recorded["GP"]["final"], recorded["KerasTuner-GP"]["final"]
        assert ours["mean"] <= theirs["mean"]


def test_trust() -> None:
    assert trust.table(TRUST["presets"], "preset") in README
    if TRUST["settings"]["seeds"] != [0]:
        assert trust.table(TRUST["held_out"], "preset, held-out seeds") in README
    missing = len(TRUST["not_recorded"])
    assert not missing or f"{missing} runs are not recorded" in README
    counts = {
        column: [TRUST["presets"][name][column]["count"] for name in PRESETS]
        for column in ("false_stops", "recall")
    }
    (good, stopped), (bad, found) = (
        (TRUST["outcomes"][key], counts[column])
        for key, column in (("good", "false_stops"), ("bad", "recall"))
    )
    said = (
        f"of {good} that ended well `conservative` stopped {stopped[0]} and `extended` "
        f"{stopped[1]}; of {bad} that ended badly, {found[0]} and {found[1]}"
    )
    main = (BENCHMARKS.parents[1] / "README.md").read_text(encoding="utf-8")
    assert said in " ".join(main.split())


def test_costs() -> None:
    page = BENCHMARKS.parents[1] / "docs" / "cost.md"
    text = page.read_text(encoding="utf-8")
    for block in tables.blocks(OVERHEAD).values():
        assert block in text
