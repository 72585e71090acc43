from __future__ import annotations

import json
import pathlib
import re

import pytest

import kt_bttackler as ktb

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASH = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_two_commands_set_up_everything_and_run_demo_and_tests():
    assert [block.count("\n") for block in BASH[:2]] == [1, 1]
    assert all(block.startswith("python3 -m venv .venv && ") for block in BASH[:2])
    assert BASH[0].strip().endswith(".venv/bin/kt-bttackler demo")
    assert BASH[1].strip().endswith(".venv/bin/pytest")


def test_every_name_that_the_readme_uses_exists():
    names = set(re.findall(r"\bktb\.(\w+)", README))
    assert "DiagnosisCallback" in names
    for name in names:
        assert getattr(ktb, name)


def test_every_python_block_is_python():
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!https?:)[^)]+)\)", README))
def test_every_linked_file_exists(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_figures_are_those_of_the_recorded_results(name):
    path = ROOT / "examples" / "benchmarks" / "results" / f"arms-{name}.json"
    results = json.loads(path.read_text())
    random, plain = (results["arms"][a]["totals"] for a in ("random", "random without"))
    bayesian = results["arms"]["bayesian"]["totals"]
    ranks = [t["rank_without_diagnosis"] for t in results["comparison"]["stopped"]]
    cells = (
        f"{random['stopped']} of {random['trials']}",
        f"{random['epochs_run']} of {random['epochs_planned']}",
        f"{random['best_score']:.4f} / {plain['best_score']:.4f}",
        f"{min(ranks)} of {plain['trials']}",
        f"{bayesian['stopped']} of {bayesian['trials']}",
        f"{bayesian['epochs_run']} of {bayesian['epochs_planned']}",
    )
    assert " | ".join(cells) in README
    seconds = f"{random['seconds']:.1f} s against {plain['seconds']:.1f} s"
    assert seconds in README.replace("\n", " ")
    if name == "digits":
        ended = f"of the digits ended at {bayesian['best_score']:.4f}"
        assert ended in README.replace("\n", " ")
    assert results["comparison"]["stopped_in_top"] == []
    scores = {t["id"]: t["score"] for t in results["arms"]["random without"]["trials"]}
    for trial in results["arms"]["random"]["trials"]:
        if trial["status"] == "COMPLETED" and not trial["benign"]:
            assert trial["score"] == scores[trial["id"]]
