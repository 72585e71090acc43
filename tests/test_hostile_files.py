"""What a hostile or broken file can do: nothing but be refused with a `ValueError`."""

from __future__ import annotations

import ast
import json
import math
import os
import pathlib
import pickle
import resource
import subprocess
import sys
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import projects
import pytest
import specimens

import kt_bttackler
from kt_bttackler import files, locking, project, report, results
from kt_bttackler.diagnosis import Diagnosis, Verdict
from kt_bttackler.trace import Trace, TraceStore, TraceWriter, read_trace

PACKAGE = pathlib.Path(kt_bttackler.__file__).parent
SETTINGS = hypothesis.settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from([10**400, "nan", "../x", 1e308, -1, 2**70])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)


def trace_file(folder: pathlib.Path) -> pathlib.Path:
    """A real trace, of a training that is sick."""
    path = folder / "trace-0.jsonl"
    writer = TraceWriter(path, specimens.SICK["ERG"].header)
    for record in specimens.SICK["ERG"].records:
        writer.append(record)
    writer.close("stopped")
    return path


def use(trace: Trace) -> None:
    """Reads everything of a trace."""
    names = {n for record in trace.records for n in (*record.scalars, *record.columns)}
    for name in names:
        assert trace.scalar(name).shape == (len(trace),)
        assert trace.table(name).shape[0] == len(trace)
    repr(trace)
    assert isinstance(trace.moment, float)


def is_refused_or_read(path: pathlib.Path) -> bool:
    try:
        use(read_trace(path))
    except ValueError as error:
        refusal = str(error)
    else:
        return True
    assert str(path) in refusal
    return False


# --- traces ------------------------------------------------------------------------


@SETTINGS
@hypothesis.given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path: Any) -> None:
    path = tmp_path / "trace-0.jsonl"
    path.write_bytes(content)
    is_refused_or_read(path)


@SETTINGS
@hypothesis.given(data=st.data())
def test_any_value_in_any_place_is_read_or_refused(data: Any, tmp_path: Any) -> None:
    path = trace_file(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    line = data.draw(st.sampled_from(lines))
    place = line["header"] if "header" in line and data.draw(st.booleans()) else line
    key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(JSON)
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    if is_refused_or_read(path):
        Diagnosis()  # what it judges is checked by the callers, see `Fuses`
    list(TraceStore(tmp_path))


@SETTINGS
@hypothesis.given(data=st.data())
def test_flipped_and_cut_bytes_are_read_or_refused(data: Any, tmp_path: Any) -> None:
    path = trace_file(tmp_path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    is_refused_or_read(path)


def test_a_line_of_ten_gigabytes_is_not_read(tmp_path: Any) -> None:
    path = trace_file(tmp_path)
    with open(path, "r+b") as file:
        file.truncate(10 * 2**30)  # a hole: it takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="larger than 1073741824 bytes"):
        read_trace(path)
    with open(path, "r+b") as file:
        file.truncate(2**29)
    with pytest.raises(ValueError, match="a line is longer than 16777216 bytes"):
        read_trace(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024, f"{grown} KB"


@pytest.mark.parametrize("nested", ["[" * 200_000, '{"a":' * 200_000])
def test_nesting_is_refused(nested: str, tmp_path: Any) -> None:
    path = tmp_path / "trace-0.jsonl"
    path.write_text(nested + "\n")
    assert not is_refused_or_read(path)
    with pytest.raises(ValueError, match="nested too deeply"):
        files.loads(nested)
    with pytest.raises(ValueError, match="not a verdict"):
        Verdict.from_json(nested)
    with pytest.raises(ValueError, match="nested too deeply"):
        project.read_json(path)


class Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, target: pathlib.Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_nothing_is_unpickled(tmp_path: Any) -> None:
    from kt_bttackler import demo_data
    from kt_bttackler.cli import UsageError

    target = tmp_path / "executed"
    payload = pickle.dumps(Exploit(target))
    folder = projects.write_stopped(tmp_path / "p", "0")
    for name in ("trial.json", "trace-0.jsonl", "verdict-0.json"):
        (folder / name).write_bytes(payload)
    (tmp_path / "p" / "oracle.json").write_bytes(payload)
    (tmp_path / "p" / locking.NAME).write_bytes(payload)
    array = np.array([Exploit(target)], dtype=object)
    np.savez(tmp_path / "data.npz", x_train=array, y_train=array, x_test=array, y_test=array)  # fmt: skip
    report.as_text(results.study(tmp_path / "p"))
    locking.ProjectLock(tmp_path / "p").read()
    with pytest.raises(UsageError):
        demo_data.load(tmp_path / "data.npz")
    assert not target.exists()
    pickle.loads(payload)
    assert target.exists(), "the exploit is none"


def test_the_package_neither_unpickles_nor_evaluates() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "testing.py":
            continue  # it loads what it has just dumped, to see that it can be
        for node in ast.walk(ast.parse(path.read_text())):
            place = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
                assert not names & forbidden, place
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in forbidden, place
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__"), place
            assert not called.endswith((".read_pickle", ".system", "load_model")), place
            if called in ("np.load", "numpy.load"):
                assert "allow_pickle=False" in ast.unparse(node), place
            if "subprocess" in called or called == "os.popen":
                assert "shell=True" not in ast.unparse(node), place


# --- verdicts, states of trials and oracles, locks ---------------------------------


@SETTINGS
@hypothesis.given(data=st.data())
def test_any_value_in_a_verdict_is_read_or_refused(data: Any) -> None:
    content = json.loads(projects.ERG.to_json())
    place = data.draw(st.sampled_from([content, *content["findings"]]))
    key = data.draw(st.sampled_from([*sorted(place), "another"]))
    place[key] = data.draw(JSON)
    try:
        verdict = Verdict.from_json(json.dumps(content, allow_nan=False))
    except ValueError:
        return
    assert Verdict.from_json(verdict.to_json()) == verdict or math.isnan(
        sum(f.value + f.threshold for f in verdict.findings)
    )
    assert str(verdict)


@SETTINGS
@hypothesis.given(content=st.text(max_size=200) | JSON.map(repr))
def test_any_text_is_no_verdict(content: str) -> None:
    with pytest.raises(ValueError, match="not a verdict"):
        Verdict.from_json(content)


@SETTINGS
@hypothesis.given(data=st.data())
def test_any_value_in_a_trial_is_reported_or_refused(data: Any, tmp_path: Any) -> None:
    folder = projects.write_stopped(tmp_path, "0")
    path = folder / project.TRIAL
    state = json.loads(path.read_text())
    place: Any = state
    while isinstance(place, dict) and place:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = place[key]
    path.write_text(json.dumps(state))
    found = results.study(tmp_path)
    assert len(found.trials) == 1
    assert report.as_text(found)
    results.diagnosis_of(folder)


@SETTINGS
@hypothesis.given(content=JSON)
def test_any_lock_names_somebody(content: Any, tmp_path: Any) -> None:
    lock = locking.ProjectLock(tmp_path)
    lock.path.write_text(json.dumps(content))
    holder = lock.read()
    assert isinstance(holder, locking.Process)
    assert str(holder)
    lock.is_stale(holder)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Any) -> None:
    path = tmp_path / "oracle.json"
    path.write_bytes(b"")
    os.truncate(path, 2**30)
    with pytest.raises(ValueError, match="is larger than 67108864 bytes"):
        project.read_json(path)


def test_cut_at_every_tenth_nothing_is_half_read(tmp_path: Any) -> None:
    folder = projects.write_stopped(tmp_path, "0")
    readers = {
        "trial.json": project.read_trial,
        "verdict-0.json": lambda path: Verdict.from_json(path.read_text()),
    }
    for name, read in readers.items():
        path = folder / name
        content = path.read_bytes()
        for tenth in range(10):
            path.write_bytes(content[: len(content) * tenth // 10])
            with pytest.raises(ValueError):  # noqa: PT011
                read(path)
    path = trace_file(tmp_path)
    content, whole = path.read_bytes(), read_trace(path)
    for tenth in range(1, 11):
        path.write_bytes(content[: len(content) * tenth // 10])
        if b"\n" not in path.read_bytes():
            assert not is_refused_or_read(path)
            continue
        part = read_trace(path)
        assert part.records == whole.records[: len(part)]
        assert (part.end is None) == (tenth < 10)


def test_markup_in_names_stays_text(tmp_path: Any) -> None:
    name = "<script>alert(1)</script>|`x`](javascript:1)"
    folder = projects.write_stopped(tmp_path, "0")
    state = json.loads((folder / "trial.json").read_text())
    state["hyperparameters"]["values"] = {name: name}
    (folder / "trial.json").write_text(json.dumps(state))
    printed = report.as_text(results.study(tmp_path))
    assert "\x1b" not in printed


def test_reading_needs_no_tensorflow() -> None:
    program = (
        "import sys, kt_bttackler.project, kt_bttackler.locking, kt_bttackler.doctor;"
        "sys.exit('tensorflow' in sys.modules or 'keras_tuner' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
