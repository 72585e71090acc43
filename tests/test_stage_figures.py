"""The figures on stages in the documentation are those of the recorded results."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BENCHMARKS = ROOT / "examples" / "benchmarks"
README = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
DOCS = (ROOT / "docs" / "stages.md").read_text(encoding="utf-8")
RESULTS = json.loads((BENCHMARKS / "results" / "stages.json").read_text())
sys.path.insert(0, str(BENCHMARKS))

import stage_tables  # noqa: E402

PARTS = [part for part in ("rungs", "diagnosis", "workers") if part in RESULTS]


@pytest.mark.parametrize("part", ["plans", "timed", "gains", *PARTS])
def test_tables_of_the_benchmark(part: str) -> None:
    assert getattr(stage_tables, part)(RESULTS) in README


@pytest.mark.parametrize("part", ["gains", *(p for p in PARTS if p != "diagnosis")])
def test_tables_of_the_page(part: str) -> None:
    assert getattr(stage_tables, part)(RESULTS) in DOCS


def test_what_is_trained_was_predicted() -> None:
    for facts in RESULTS["timed"].values():
        assert facts["stages"]["0"]["epochs"] == facts["plan"]["to_train"]
    for part in {"rungs", "workers"} & set(PARTS):
        assert RESULTS[part]["trained"] == RESULTS[part]["to_train"]


def test_the_gain_is_that_of_the_merge_rate() -> None:
    """Where an epoch takes a second of CPU time; to store and read takes little."""
    ratios: dict[str, Any] = stage_tables.ratios(RESULTS)
    shared = ratios["B"]
    assert shared["KerasTuner, CPU"] >= 0.8 * shared["merge rate"]
    own = RESULTS["timed"]["B"]["stages"]["0"]
    assert own["cpu_seconds_per_epoch"] >= 1
    assert own["loading"] + own["saving"] < 0.03 * own["cpu_seconds"]
