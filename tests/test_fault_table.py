"""The table of `examples/benchmarks/faults.py`, and the result that is recorded of it."""

from __future__ import annotations

import ast
import json
import pathlib
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BENCHMARKS = ROOT / "examples" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import faults  # noqa: E402


def test_there_are_24_faults() -> None:
    assert [fault.number for fault in faults.FAULTS] == list(range(1, 25))


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: str(fault.number))
def test_every_test_of_the_table_exists(fault: Any) -> None:
    for test in map(faults.node, fault.tests):
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        assert not name or name in names, test


@pytest.mark.parametrize("kind", ["failure", "error", "skipped", None])
def test_only_what_has_passed_was_survived(kind: Any, tmp_path: Any) -> None:
    fault = faults.Fault(1, "it", ("a::b", "c"))
    suite = ElementTree.Element("testsuite")
    for module, name in (("a", "test_b[0]"), ("a", "test_b[1]"), ("c", "test_x")):
        case = {"classname": f"tests.test_{module}", "name": name, "time": "1.5"}
        ElementTree.SubElement(suite, "testcase", case)
    if kind is not None:
        ElementTree.SubElement(suite[1], kind)
    report = tmp_path / "report.xml"
    ElementTree.ElementTree(suite).write(report)
    outcomes = faults.outcomes_in(report)
    result = faults.judged(fault, outcomes)
    assert result["survived"] == (kind is None)
    assert (result["passed"], result["seconds"]) == (3 - (kind is not None), 4.5)
    del outcomes["tests/test_c.py::test_x"]
    assert not faults.judged(fault, outcomes)["survived"], "a test was not run"


def test_faults_that_are_run_again_leave_the_others(
    tmp_path: Any, monkeypatch: Any
) -> None:
    result = tmp_path / "faults.json"
    for number, outcome in ((18, None), (17, "failure"), (17, None)):
        suite = ElementTree.Element("testsuite")
        (test,) = faults.FAULTS[number - 1].tests
        name = f"test_{test.partition('::')[2]}"
        case = {"classname": "tests.test_faults", "name": name, "time": "1.5"}
        ElementTree.SubElement(suite, "testcase", case)
        if outcome:
            ElementTree.SubElement(suite[0], outcome)
        report = tmp_path / "report.xml"
        ElementTree.ElementTree(suite).write(report)
        command = f"faults.py --json {result} --only {number} --junit {report}"
        monkeypatch.setattr(sys, "argv", command.split())
        assert faults.main() == (outcome is not None)
    recorded = json.loads(result.read_text())
    assert recorded["settings"] == {"faults": [17, 18]}
    assert list(recorded["results"]) == ["17", "18"]
    assert recorded["survived"] == 2
    recorded["versions"]["numpy"] = "0.1"
    result.write_text(json.dumps(recorded))
    with pytest.raises(SystemExit):
        faults.main()


def test_the_recorded_result_is_of_this_table() -> None:
    recorded = json.loads((BENCHMARKS / "results" / "faults.json").read_text())
    for fault in faults.FAULTS:
        result = recorded["results"][str(fault.number)]
        assert result["fault"] == fault.text
        assert result["tests"] == [faults.node(test) for test in fault.tests]
    survived = sum(each["survived"] for each in recorded["results"].values())
    assert recorded["survived"] == survived
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert f"were survived: {survived} of {len(faults.FAULTS)} in" in page
