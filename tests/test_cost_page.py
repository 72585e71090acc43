"""The page on the cost of watching quotes the recorded benchmark."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BENCHMARKS = ROOT / "examples" / "benchmarks"
PAGE = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
RESULTS = json.loads((BENCHMARKS / "results" / "overhead.json").read_text())


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in [name for name in sys.modules if name.startswith("overhead_parts")]:
        monkeypatch.delitem(sys.modules, name)
    from overhead_parts import cost_model, tables

    return tables, cost_model


def test_figures_are_those_of_the_recorded_results(parts):
    tables, _ = parts
    for block in tables.blocks(RESULTS).values():
        assert block in PAGE


def test_writing_the_figures_again_changes_nothing(parts, tmp_path):
    tables, _ = parts
    page = tmp_path / "cost.md"
    page.write_text(PAGE, encoding="utf-8")
    tables.write_into(page, RESULTS)
    assert page.read_text(encoding="utf-8") == PAGE


def test_the_formula_of_the_page_is_the_cost_model(parts):
    _, cost_model = parts
    cost = RESULTS["cost_model"]
    v, p, n, s = 36, 0.5, 200, 10
    by_hand = (
        n * (cost["step"] + cost["step_per_variable"] * v)
        + s * (cost["sampled_step"] + cost["sampled_step_per_variable"] * v)
        + s * cost["sampled_step_per_million_parameters"] * p
        + cost["epoch"]
        + cost["epoch_per_variable"] * v
        + cost["epoch_per_million_parameters"] * p
    )
    assert cost_model.foretell(cost, v, p * 1e6, n) == pytest.approx(by_hand)


def test_every_model_was_measured():
    assert list(RESULTS["models"]) == [
        "cnn",
        "lstm",
        "transformer",
        "tabular",
        "resnet",
    ]
    for facts in RESULTS["models"].values():
        assert facts["low"] <= facts["ratio"] <= facts["high"]
        assert {"setup_seconds", "foretold", "null", "small"} <= set(facts)
