"""The figures of the recorded studies in the README are those of the results."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "examples" / "benchmarks"
README = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((BENCHMARKS / "results" / "studies.json").read_text())
TABULAR = json.loads((BENCHMARKS / "results" / "tabular.json").read_text())
TASKS = RESULTS["tasks"].values()
RULES = [
    name
    for name in RESULTS["pooled"]
    if any(t["rules"][name]["claimed"] or t["rules"][name]["benign"] for t in TASKS)
]


def cells(first: str) -> list[str]:
    """What stands behind the first cell of the last row that begins so."""
    rows = [line for line in README.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in rows[-1].strip("|").split("|")[1:]]


def saved(facts: dict[str, Any]) -> str:
    bad = facts["precision"]
    kinds = "" if bad is None else f", {100 * bad:.0f} % bad"
    return f"{100 * facts['seconds_saved']:.1f} % ({facts['claimed']}{kinds})"


def killed(facts: dict[str, Any]) -> str:
    return f"{facts['killed']:g}/{facts['top']} (< {100 * facts['upper']:.0f} %)"


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    pooled = RESULTS["pooled"][name]
    assert cells(name) == [
        *(saved(task["rules"][name]) for task in TASKS),
        *(killed(pooled[top]) for top in ("top10", "top20")),
    ]


@pytest.mark.parametrize("name", RESULTS["tasks"])
def test_study(name: str) -> None:
    facts = RESULTS["tasks"][name]
    expected = [
        str(facts["trials"]),
        str(facts["bad"]),
        f"{100 * facts['ceiling']:.1f} %",
    ]
    assert cells(name) == expected


def test_default() -> None:
    assert f"chooses `{RESULTS['default']}`" in README


SEARCHES = {
    f"{study}, {oracle}, {arm}": found
    for study, facts in TABULAR["studies"].items()
    for oracle, arms in facts["oracles"].items()
    for arm, found in arms.items()
}


@pytest.mark.parametrize("name", SEARCHES)
def test_search(name: str) -> None:
    def told(measure: str, digits: int) -> str:
        parts = (SEARCHES[name][measure][key] for key in ("mean", "low", "high"))
        mean, low, high = (f"{part:.{digits}f}" for part in parts)
        return f"{mean} [{low}, {high}]"

    assert cells(name) == [
        told("best", 3),
        told("finished", 1),
        told("half_time", 2),
        told("half_time_beside_plain", 2),
    ]
