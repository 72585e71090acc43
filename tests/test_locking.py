"""Tests of `kt_bttackler.locking` with real processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from kt_bttackler import files, locking
from kt_bttackler.locking import Process, ProjectInUse, ProjectLock

HOLD = """
import sys, time
from kt_bttackler.locking import ProjectLock
ProjectLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(60)
"""
RACE = """
import os, sys, time
from kt_bttackler.locking import ProjectInUse, ProjectLock
lock = ProjectLock(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    lock.acquire()
    print("held", flush=True)
except ProjectInUse:
    print("refused", flush=True)
sys.stdin.readline()
"""


def start(program: str, folder: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def write(lock: ProjectLock, process: Process) -> None:
    lock.path.write_text(files.dumps(dataclasses.asdict(process)))


def test_a_second_process_is_refused_at_once_and_told_by_whom(tmp_path: Any) -> None:
    holder = start(HOLD, tmp_path)
    try:
        began = time.monotonic()
        with pytest.raises(ProjectInUse) as refusal:
            ProjectLock(tmp_path).acquire()
        assert time.monotonic() - began < 2
        expected = f"process {holder.pid} on {socket.gethostname()}"
        assert expected in str(refusal.value)
        assert ProjectLock(tmp_path).other().pid == holder.pid
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over(
    reaped: bool, tmp_path: Any
) -> None:
    holder = start(HOLD, tmp_path)
    holder.send_signal(signal.SIGKILL)
    if reaped:
        holder.wait()
    else:
        time.sleep(0.2)  # it is a zombie until somebody waits for it
    lock = ProjectLock(tmp_path)
    assert lock.read().pid == holder.pid
    lock.acquire()
    assert lock.read() == Process.this()
    holder.wait()


def test_a_process_that_ends_by_itself_leaves_no_lock(tmp_path: Any) -> None:
    program = HOLD.replace("time.sleep(60)", "")
    start(program, tmp_path).wait(10)
    assert list(tmp_path.iterdir()) == []


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path: Any) -> None:
    lock = ProjectLock(tmp_path)
    write(lock, dataclasses.replace(Process.this(), started="1"))
    assert lock.other() is None
    lock.acquire()
    assert lock.read() == Process.this()


def test_a_process_that_cannot_be_looked_up_is_waited_for(tmp_path: Any) -> None:
    lock = ProjectLock(tmp_path)
    write(lock, dataclasses.replace(Process.this(), host="another-machine"))
    with pytest.raises(ProjectInUse, match="on another-machine"):
        lock.acquire()
    old = time.time() - locking.EXPIRES - 5
    os.utime(lock.path, (old, old))
    lock.acquire()
    assert lock.read() == Process.this()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "\0" * 50_000])
def test_an_unreadable_lock_is_waited_for_until_it_expires(
    content: str, tmp_path: Any
) -> None:
    lock = ProjectLock(tmp_path)
    lock.path.write_text(content)
    with pytest.raises(ProjectInUse, match="an unknown machine"):
        lock.acquire()
    os.utime(lock.path, (1, 1))
    lock.acquire()


def test_the_same_process_may_search_twice_in_a_directory(tmp_path: Any) -> None:
    first, second = ProjectLock(tmp_path), ProjectLock(tmp_path)
    first.acquire()
    second.acquire()
    assert first.other() is None
    second.release()
    assert first.read() is None


def test_a_lock_is_renewed_while_it_is_held(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(locking, "RENEWED", 0.05)
    lock = ProjectLock(tmp_path)
    lock.acquire()
    os.utime(lock.path, (1, 1))
    deadline = time.monotonic() + 10
    while lock.path.stat().st_mtime < 2:
        assert time.monotonic() < deadline, "the lock was not renewed"
        time.sleep(0.02)
    lock.release()


def test_a_file_system_without_links_has_locks_too(
    tmp_path: Any, monkeypatch: Any
) -> None:
    def no_links(*arguments: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    lock = ProjectLock(tmp_path)
    lock.acquire()
    assert lock.read() == Process.this()
    lock.release()
    write(lock, dataclasses.replace(Process.this(), host="another-machine"))
    with pytest.raises(ProjectInUse):
        lock.acquire()


def test_of_many_that_find_a_stale_lock_one_takes_it_over(tmp_path: Any) -> None:
    for _ in range(3):
        write(ProjectLock(tmp_path), dataclasses.replace(Process.this(), started="1"))
        racers = [start(RACE, tmp_path) for _ in range(6)]
        for racer in racers:
            racer.stdin.write("\n")
            racer.stdin.flush()
        outcomes = [racer.stdout.readline().strip() for racer in racers]
        for racer in racers:
            racer.communicate("\n", timeout=10)
        assert sorted(outcomes) == ["held"] + ["refused"] * 5
