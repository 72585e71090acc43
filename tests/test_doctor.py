"""Tests of `kt-bttackler doctor` on project folders made by hand."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from projects import write_stopped, write_trace, write_trial

from kt_bttackler import cli, locking, project

STATE: dict[str, Any] = {
    "ongoing_trials": {},
    "hyperparameters": {"space": [], "values": {}},
    "start_order": ["0", "1"],
    "end_order": ["0", "1"],
    "run_times": {},
    "retry_queue": [],
    "seed": 1,
    "seed_state": 1,
    "tried_so_far": [],
    "id_to_hash": {},
    "display": {},
    "version": "0.1.0",
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A project in which nothing is wrong."""
    for trial_id in ("0", "1"):
        write_trace(write_trial(tmp_path, trial_id), 3)
    (tmp_path / "oracle.json").write_text(json.dumps(STATE))
    (tmp_path / "tuner0.json").write_text("{}")
    return tmp_path


def doctor(folder: pathlib.Path, *options: str) -> int:
    return cli.main(["doctor", str(folder), *options])


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_sound_project_is_fine(folder: Any, capsys: Any) -> None:
    before = contents(folder)
    assert doctor(folder) == doctor(folder, "--fix") == 0
    assert contents(folder) == before
    printed = capsys.readouterr().out
    assert "2 trials (2 COMPLETED)" in printed
    assert "written by kt_bttackler 0.1.0; this is 0.1.0" in printed
    assert printed.endswith("no problem\n")


def test_checkpoints_of_stopped_trials_are_counted(folder: Any, capsys: Any) -> None:
    stopped = write_stopped(folder, "2")
    (stopped / "checkpoint.weights.h5").write_bytes(b"x" * 3 * 2**20)
    (folder / "trial_0" / "checkpoint.weights.h5").write_bytes(b"x" * 2**20)
    assert doctor(folder) == 0
    expected = "checkpoints of stopped trials: 1, 3.0 MB"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "oracle.json",
        "tuner0.json",
        "trial_1/trial.json",
        "trial_1/trace-0.jsonl",
        "trial_2/verdict-0.json",
    ],
)
@pytest.mark.parametrize("content", [b"", b'{"a', b"\x80\x04K\x01.", b"[" * 100_000])
def test_what_cannot_be_read_is_set_aside(
    name: str, content: bytes, folder: Any, capsys: Any
) -> None:
    write_stopped(folder, "2")
    assert doctor(folder) == 0
    path = folder / name
    path.write_bytes(content)
    before = contents(folder)
    assert doctor(folder) == 1
    assert contents(folder) == before
    assert f"{path} cannot be read: " in capsys.readouterr().out
    assert doctor(folder, "--fix") == 0
    assert f"{path} cannot be read: " in capsys.readouterr().out
    assert path.with_name(path.name + ".corrupt").read_bytes() == content
    assert not path.exists()
    assert doctor(folder, "--fix") == 0


def test_nothing_is_overwritten_when_a_second_file_is_set_aside(folder: Any) -> None:
    for content in ("one", "two"):
        (folder / "tuner0.json").write_text(content)
        assert doctor(folder, "--fix") == 0
    names = {"tuner0.json.corrupt": "one", "tuner0.json.corrupt-1": "two"}
    assert {n: (folder / n).read_text() for n in names} == names


def test_orphans_and_half_ended_trials_are_told(folder: Any, capsys: Any) -> None:
    write_trial(folder, "2", status="RUNNING", score=None)
    (folder / "trial_3").mkdir()
    state = {
        **STATE,
        "ongoing_trials": {"w1": "1"},
        "start_order": ["0", "1", "2", "4"],
    }
    (folder / "oracle.json").write_text(json.dumps(state))
    write_trace(folder / "trial_1", 2, end=None)
    assert doctor(folder) == 1
    printed = capsys.readouterr().out
    for expected in (
        "trial 2 was running when its process ended (the next search runs it again)",
        "trial_3 has no trial.json",
        "has trial 1 running on w1, which has ended",
        "the folder of trial 4 is gone",
        "trial_1/trace-0.jsonl has no end: the training was broken off after epoch 2",
        "5 problems",
    ):
        assert expected in printed
    assert doctor(folder, "--fix") == 1, "a trace without its end stays one"


def test_left_overs_of_a_killed_process_are_removed(folder: Any, capsys: Any) -> None:
    left = [
        folder / ".oracle.json.0123456789abcdef",
        folder / "trial_1" / ".trial.json.0123456789abcdef",
        folder / "trial_1" / ".state-0.npz.0123456789abcdef",
        folder / ".search.lock.0123456789abcdef",
    ]
    for path in left:
        path.write_text("half")
    assert doctor(folder) == 1
    assert capsys.readouterr().out.count("was being written") == 4
    assert doctor(folder, "--fix") == 0
    assert not any(path.exists() for path in left)


def test_a_stale_lock_is_removed(folder: Any, capsys: Any) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    holder = locking.Process.this()
    content = {**vars(holder), "pid": done.pid}
    (folder / locking.NAME).write_text(json.dumps(content))
    assert doctor(folder) == 1
    assert f"that of process {done.pid} on" in capsys.readouterr().out
    assert doctor(folder, "--fix") == 0
    assert not (folder / locking.NAME).exists()


def test_a_directory_in_use_is_left_alone(folder: Any, capsys: Any) -> None:
    content = {**vars(locking.Process.this()), "host": "elsewhere"}
    (folder / locking.NAME).write_text(json.dumps(content))
    write_trial(folder, "2", status="RUNNING", score=None)
    assert doctor(folder, "--fix") == 0
    (folder / "trial_1" / "trial.json").write_text("half")
    before = contents(folder)
    assert doctor(folder, "--fix") == 1
    assert contents(folder) == before
    printed = capsys.readouterr().out
    assert "in use by process" in printed
    assert "nothing was mended" in printed


@pytest.mark.parametrize("make", [None, os.mkdir])
def test_what_is_no_project_is_a_mistake(make: Any, tmp_path: Any, capsys: Any) -> None:
    place = tmp_path / "place"
    if make is not None:
        make(place)
    assert doctor(place) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_it_needs_no_tensorflow(folder: Any) -> None:
    program = (
        "import sys; from kt_bttackler import cli; code = cli.main(sys.argv[1:]); "
        "sys.exit(code or 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    command = [sys.executable, "-c", program, "doctor", str(folder)]
    assert subprocess.run(command, timeout=60).returncode == 0


def test_ids_are_confined_and_without_gaps() -> None:
    assert project.missing_ids([]) == project.missing_ids(["x"]) == []
    assert project.missing_ids(["2", "0", "x"]) == ["1"]
    assert project.missing_ids(["007"]) == [f"{n:03d}" for n in range(7)]
    assert len(project.missing_ids(["0", "9" * 30])) < 2000
    for trial_id in ("0", "007", "a-b.c_d", "0 1"):
        assert project.is_trial_id(trial_id)
    for trial_id in ("", "../x", "a/b", "a\\b", "a\0b", "a\nb", 7, None, "x" * 300):
        assert not project.is_trial_id(trial_id)
