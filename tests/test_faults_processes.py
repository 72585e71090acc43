"""Searches whose processes are killed; each test is a scenario of `scenarios.py`."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import pytest

# Real processes that train, and KerasTuner's chief looks only every 20 s who is left.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
HERE = pathlib.Path(__file__).parent


def run(scenario: str, folder: Any) -> dict[str, Any]:
    """What a scenario saw."""
    command = [sys.executable, str(HERE / "scenarios.py"), scenario, str(folder)]
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=590,
    )
    logs = "\n".join(p.read_text() for p in pathlib.Path(folder).glob("log*"))
    print(logs[-20_000:])
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def times_run(found: dict[str, Any]) -> dict[str, int]:
    """By trial, how often it was begun."""
    return dict(collections.Counter(trial for _, trial in found["runs"]))


def assert_whole(found: dict[str, Any], trials: int) -> None:
    """Every trial has ended, once, with a whole trace; nothing is left behind."""
    assert len(found["settled"]) == trials
    assert sorted(found["end_order"]) == sorted(found["settled"])
    assert (found["ongoing"], found["retry_queue"]) == ({}, [])
    assert (found["corrupt"], found["lock"]) == ([], False)
    for epochs, end in found["epochs"].values():
        assert epochs == list(range(epochs[0], epochs[0] + len(epochs)))
        assert end in ("finished", "stopped")


def test_killed_at_any_moment_a_search_loses_nothing(tmp_path: Any) -> None:
    found = run("kill_at_random", tmp_path)
    assert found["last"] == 0
    assert found["kills"] >= 5, found["moments"]
    assert found["lost"] == []
    assert_whole(found, 12)
    assert len(found["runs"]) <= 12 + found["kills"]
    # The same trials, to the last digit, as if nothing had happened.
    assert found["settled"] == found["whole"]
    statuses = {status for status, _, _ in found["settled"].values()}
    assert statuses == {"COMPLETED", "STOPPED"}


def test_ctrl_c_in_an_epoch_keeps_everything(tmp_path: Any) -> None:
    found = run("interrupt", tmp_path)
    assert (found["first"], found["second"]) == (130, 0)
    before = found["interrupted"]
    assert before["settled"]
    assert before["lock"] is False
    assert before["settled"].items() <= found["settled"].items()
    assert sorted(times_run(found).values()) == [1] * 5 + [2]
    (running,) = before["ongoing"].values()
    epochs, end = before["epochs"][f"trial_{running}"]
    assert epochs
    assert end is None
    assert_whole(found, 6)


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Any) -> None:
    found = run("two_at_once", tmp_path)
    seconds, message = found["told"]
    assert seconds < 2
    assert f"process {found['holder']} on {socket.gethostname()}" in message
    assert (found["second"], found["third"]) == (0, 0)
    assert {who for who, _ in found["runs_of_first"]} == {"tuner0"}
    assert_whole(found, 6)


@pytest.mark.parametrize("scenario", ["lose_a_worker", "lose_a_worker_of_hyperband"])
def test_the_trial_of_a_killed_worker_is_taken_up(scenario: str, tmp_path: Any) -> None:
    found = run(scenario, tmp_path)
    assert found["codes"] == {"chief": 0, "w0": 0, "w2": 0}
    assert_whole(found, 8 if scenario == "lose_a_worker" else len(found["settled"]))
    assert times_run(found).pop(found["lost"]) == 2
    assert set(times_run(found).values()) == {1, 2}
    assert list(times_run(found).values()).count(2) == 1
    # The diagnosis has crossed gRPC.
    stopped = [
        i for i, (status, _, _) in found["settled"].items() if status == "STOPPED"
    ]
    assert stopped
    assert all(" at epoch " in found["causes"][trial_id] for trial_id in stopped)
    assert found["addresses"] == [True, False], "only the address given is served"
    if scenario != "lose_a_worker":
        rounds = collections.Counter(
            (values["tuner/bracket"], values["tuner/round"])
            for _, _, values in found["settled"].values()
        )
        first = {bracket: n for (bracket, number), n in rounds.items() if number == 0}
        assert first == {2: 4, 1: 3, 0: 3}


def test_a_chief_that_is_killed_comes_back(tmp_path: Any) -> None:
    found = run("lose_the_chief", tmp_path)
    assert found["codes"] == {"chief": 0, "w0": 0, "w1": 0}
    assert found["before"].items() <= found["settled"].items()
    assert set(times_run(found).values()) == {1}, "no trial was run twice"
    assert_whole(found, 8)


def test_a_bad_worker_does_not_stop_a_good_one(tmp_path: Any) -> None:
    found = run("have_a_bad_worker", tmp_path)
    assert found["codes"] == {"chief": 0, "bad": 0, "good": 0}
    statuses = [status for status, _, _ in found["settled"].values()]
    assert statuses.count("FAILED") == 3
    assert len(statuses) == 7
    runs = collections.Counter(who for who, _ in found["runs"])
    assert runs == {"bad": 3, "good": 4}
