"""Searches on a real Ray cluster of this machine; see `launches.py`."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

# Three processes that load TensorFlow and train, beside those of Ray.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ENDED = re.compile(r"trial (?P<trial>\S+) (COMPLETED|STOPPED).* \[\d+ of \d+\]$")
HERE = pathlib.Path(__file__).parent
PATH = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = os.environ | {"PYTHONPATH": PATH}


def python(*command: str, folder: Any = None) -> Any:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=590,
    )
    print(done.stdout[-20_000:], done.stderr[-20_000:])
    return done


def run(scenario: str, folder: Any) -> dict[str, Any]:
    """What a scenario saw."""
    done = python(str(HERE / "launches.py"), scenario, str(folder))
    assert done.returncode == 0
    return dict(json.loads(done.stdout.splitlines()[-1]))


def outcomes(found: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """How each worker ended, and how often it was started again."""
    return {n: (e["outcome"], e["restarts"]) for n, e in found["workers"].items()}


def assert_each_ended_once(found: dict[str, Any], trials: int) -> None:
    assert sum(found["trials"].values()) == len(found["settled"]) == trials
    assert set(found["trials"]) == {"COMPLETED", "STOPPED"}
    assert sorted(found["end_order"]) == sorted(found["settled"])
    assert (found["ongoing"], found["retry_queue"]) == ({}, [])
    assert (found["corrupt"], found["lock"]) == ([], False)
    assert all(end in ("finished", "stopped") for _, end in found["epochs"].values())
    told = [ENDED.search(line) for line in found["told"]]
    ended = [match["trial"] for match in told if match]
    assert len(ended) == len(set(ended)) > trials // 2
    assert set(ended) <= set(found["settled"])


def times_run(found: dict[str, Any]) -> dict[str, int]:
    return dict(collections.Counter(trial for _, trial in found["runs"]))


def test_a_worker_killed_in_a_trial_gets_it_again(tmp_path: Any) -> None:
    found = run("kill_a_worker", tmp_path)
    assert_each_ended_once(found, 6)
    (lost,) = found["lost"]
    assert [who for who, trial in found["runs"] if trial == lost] == ["worker1"] * 2
    assert times_run(found) == {
        trial: 1 + (trial == lost) for trial in found["settled"]
    }
    assert outcomes(found) == {"worker0": ("finished", 0), "worker1": ("finished", 1)}
    assert found["project_dir"] == str(tmp_path / "p")
    # Each life is a process of its own.
    processes = found["processes"]
    assert [len(processes[n]) for n in ("chief", "worker0", "worker1")] == [1, 1, 2]
    assert len({p["pid"] for lives in processes.values() for p in lives}) == 4
    # Each worker sees its own GPU, and the chief none.
    gpus = {name: {p["gpus"] for p in lives} for name, lives in processes.items()}
    assert gpus["chief"] == {""}
    assert gpus["worker0"] | gpus["worker1"] == {"0", "1"}
    # Not all addresses of the machine.
    assert {p["address"] for lives in processes.values() for p in lives}.isdisjoint(
        {"0.0.0.0", "::", ""}
    )
    told = "\n".join(found["told"])
    for text in ("worker0: process ", ", GPU 0", "worker1: died (", "[1 of 3]"):
        assert text in told
    assert "not that of the chief" not in told
    assert f"project in {tmp_path / 'p'}" in found["told"][-1]


def test_the_trial_of_a_lost_worker_is_taken_up_and_the_chief_comes_back(
    tmp_path: Any,
) -> None:
    found = run("lose_a_worker_and_the_chief", tmp_path)
    assert_each_ended_once(found, 8)
    assert outcomes(found) == {"worker0": ("finished", 0), "worker1": ("lost", 1)}
    (lost,) = found["lost"]
    assert [who for who, trial in found["runs"] if trial == lost][-1] == "worker0"
    assert any("the chief is away" in line for line in found["told"])
    # There are GPUs, and nobody asked for them.
    assert found["gpus"] == [""] * 3
    assert any("the workers see no GPU" in line for line in found["told"])


def test_for_the_trial_of_the_last_worker_another_one_begins_again(
    tmp_path: Any,
) -> None:
    found = run("lose_the_last_worker", tmp_path)
    assert_each_ended_once(found, 2)
    assert outcomes(found) == {"worker0": ("finished", 1), "worker1": ("lost", 1)}
    (lost,) = found["lost"]
    runners = [who for who, trial in found["runs"] if trial == lost]
    assert runners == ["worker1", "worker1", "worker0"]
    assert "worker0: started again for a trial that waits" in found["told"]


def test_what_the_function_raises_is_told_once(tmp_path: Any) -> None:
    found = run("fail", tmp_path)
    assert found["everywhere"]["error"].startswith("RuntimeError: `search_fn` failed: ")
    assert found["everywhere"]["error"].count("KeyError: 'no such column'") == 1
    assert "must build a tuner and call its `search`" in found["nothing"]["error"]
    workers = found["workers"]
    assert workers["error"].startswith(
        "RuntimeError: no worker is left: failed, OSError: no such disk. "
    )
    told = "\n".join(workers["told"])
    assert told.count("OSError: no such disk") == 1
    assert ", in raises_in_workers\n" in told
    assert "\x1b" not in told
    assert "died" not in told


SCRIPT = """
import sys
import scenarios
scenarios.search(sys.argv[1], verbose="auto", max_trials=3)
"""


def test_the_command_runs_a_script(tmp_path: Any) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ("-m", "kt_bttackler", "launch", "script.py", "--arguments=.")
    done = python(*command, "--workers=2", "--resources=CPU=0.5", folder=tmp_path)
    assert done.returncode == 0
    *lines, last = done.stdout.splitlines()
    counts, _, place = last.removeprefix("trials: ").partition("; project in ")
    assert place == str(tmp_path / "p")
    assert sum(int(count.split()[0]) for count in counts.split(", ")) == 3
    assert any(line.startswith("chief at 127.0.0.1:") for line in lines)
    assert len(list((tmp_path / "p").glob("trial_*"))) == 3
    refused = python(*command, "--workers=1", "--resources=GPU=64", folder=tmp_path)
    assert refused.returncode == 2
    assert "must be at most what this machine has, " in refused.stderr


def settled(folder: Any) -> dict[str, str]:
    """What is written of the trials that have ended."""
    texts = {str(p): p.read_text() for p in folder.glob("p/trial_*/trial.json")}
    return {
        path: text
        for path, text in texts.items()
        if json.loads(text)["status"] in ("COMPLETED", "STOPPED")
    }


# Of a test that runs in the background of a shell, SIGINT is ignored.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from kt_bttackler import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def test_after_ctrl_c_the_same_command_goes_on(tmp_path: Any) -> None:
    script = SCRIPT.replace("max_trials=3", "pause=1.0, max_trials=5")
    (tmp_path / "script.py").write_text(script)
    command = ("-c", INTERRUPTIBLE, "launch", "script.py", "--arguments=.")
    options = ("--workers=2", "--resources=CPU=0.5")
    with subprocess.Popen(
        [sys.executable, *command, *options], cwd=tmp_path, env=ENVIRONMENT
    ) as first:
        deadline = time.monotonic() + 250
        while not settled(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)
        assert first.wait(100) == 130
    before = settled(tmp_path)
    assert 0 < len(before) < 5
    done = python(*command, *options, folder=tmp_path)
    assert done.returncode == 0
    after = settled(tmp_path)
    assert len(after) == 5
    assert before.items() <= after.items()
