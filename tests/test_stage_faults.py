"""Faults: a search that is killed, files that are damaged, several processes."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
from typing import Any

import keras
import keras_tuner
import pytest
import staging
from staging import EPOCHS, ROWS, searched, tuner

import kt_bttackler as ktb
from kt_bttackler import files
from kt_bttackler.stages.store import StageStore, byte_count
from kt_bttackler.stages.turns import Turn

WORKER = pathlib.Path(__file__).with_name("stage_worker.py")
UNIQUE = 13  # of the four trials of 5 epochs


class Killed(BaseException):
    """Stands for the end of the process."""


class Kill(keras.callbacks.Callback):
    """Ends the process in an epoch, counted over the whole search."""

    def __init__(self, after: int, count: Any = None) -> None:
        super().__init__()
        self.after = after
        self.count = collections.Counter() if count is None else count

    def __deepcopy__(self, memo: Any) -> Kill:
        return Kill(self.after, self.count)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.count["batches"] += 1
        if self.count["batches"] > self.after:
            raise Killed


@pytest.fixture(scope="module")
def expected(tmp_path_factory: Any) -> dict[str, Any]:
    made = tuner(staging.build_dense, tmp_path_factory.mktemp("whole"))
    histories = staging.histories(made)
    assert searched(made, fit=ROWS).trained == UNIQUE
    return histories


def test_a_killed_search_goes_on_where_it_was(expected: Any, tmp_path: Any) -> None:
    trained, found, dice = 0, {}, random.Random(0)
    kills = 0
    while len(found) < len(expected):
        made = tuner(staging.build_dense, tmp_path)
        made._stateless = (*made._stateless, Kill)
        histories = staging.histories(made)
        ends = staging.Ends()
        try:
            made.search(**ROWS, callbacks=[ends, Kill(dice.randint(1, 20))])
        except Killed:
            kills += 1
        trained += ends.trained
        found |= histories
    assert found == expected
    assert kills >= 3
    # At most what lies between two states, and the epoch that was broken off.
    assert trained <= UNIQUE + 2 * kills


def test_killed_between_two_files(
    expected: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    """The state is written, what vouches for it is not."""
    real = files.write_atomically

    def dying(path: Any, text: str) -> None:
        if "stages" in str(path) and not str(path).endswith("root.json"):
            raise Killed
        real(path, text)

    monkeypatch.setattr(files, "write_atomically", dying)
    with pytest.raises(Killed):
        searched(tuner(staging.build_dense, tmp_path), fit=ROWS)
    monkeypatch.undo()
    made = tuner(staging.build_dense, tmp_path)
    histories = staging.histories(made)
    assert searched(made, fit=ROWS).trained == UNIQUE
    assert histories == expected


def test_a_store_that_is_deleted_in_a_search(expected: Any, tmp_path: Any) -> None:
    made = tuner(staging.build_dense, tmp_path, stage_dir=tmp_path / "s")
    histories = staging.histories(made)
    original = made.on_trial_end

    def deleting(trial: Any) -> None:
        original(trial)
        shutil.rmtree(tmp_path / "s")

    made.on_trial_end = deleting
    assert searched(made, fit=ROWS).trained == 4 * EPOCHS
    assert histories == expected


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(expected: Any, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("not a folder")
    made = tuner(staging.build_dense, tmp_path, stage_dir=tmp_path / "file")
    histories = staging.histories(made)
    with pytest.warns(RuntimeWarning, match="a stage may be trained again"):
        assert searched(made, fit=ROWS).trained == 4 * EPOCHS
    assert histories == expected


@pytest.mark.parametrize(
    "suffix",
    [
        ".npz",
        pytest.param(".best.npz", marks=pytest.mark.slow),
        pytest.param(".json", marks=pytest.mark.slow),
    ],
)
def test_a_flipped_byte_is_noticed(suffix: str, expected: Any, tmp_path: Any) -> None:
    """Each file of each state in turn; the state is trained again, nothing else is."""
    # The highest loss is the first one: states have weights of an earlier epoch, too.
    objective = keras_tuner.Objective("val_loss", "max")

    def study(name: str) -> Any:
        oracle = ktb.oracles.GridSearchOracle(objective)
        return tuner(
            staging.build_dense,
            tmp_path,
            oracle,
            stage_dir=tmp_path / "s",
            project_name=name,
        )

    searched(study("first"), fit=ROWS)
    paths = [p for p in (tmp_path / "s").glob("*/*") if _suffix(p) == suffix]
    assert paths
    for number, path in enumerate(sorted(paths)):
        content = bytearray(path.read_bytes())
        content[random.Random(number).randrange(len(content))] ^= 0x10
        path.write_bytes(content)
    again = study("second")
    histories = staging.histories(again)
    with pytest.warns(RuntimeWarning, match="damaged and was removed"):
        searched(again, fit=ROWS)
    assert histories == expected
    assert again.usage.trained <= UNIQUE


def _suffix(path: pathlib.Path) -> str:
    return "" if path.name == "root.json" else path.name.removeprefix(path.name[:32])


def test_states_that_cannot_be_what_they_say(tmp_path: Any) -> None:
    store = StageStore(tmp_path)
    (tmp_path / "root").mkdir()
    path = tmp_path / "root" / "name.json"
    for content in ("", "[]", '{"history": 3}', '{"history": [], "sha256": {}}', "\0"):
        path.write_text(content)
        with pytest.warns(RuntimeWarning, match="damaged and was removed"):
            assert store.load("root", "name") is None
        assert not path.exists()
    assert store.load("root", "name") is None


def test_room_is_made_of_what_is_missed_least(tmp_path: Any) -> None:
    made = tuner(staging.build_dense, tmp_path, stage_dir=tmp_path / "s")
    searched(made, fit=ROWS)
    everything = {p.name: files.loads(p.read_text()) for p in _states(tmp_path)}
    store = StageStore(tmp_path / "s", made.stage_store.disk_usage())
    assert store._make_room(1)
    gone = set(everything) - {path.name for path in _states(tmp_path)}
    assert len(gone) == 1
    # An end of a trial, from which no other goes on.
    assert all(not everything[name]["branch"] for name in gone)
    store._make_room(store.disk_budget)
    assert not _states(tmp_path)


def _states(folder: pathlib.Path) -> list[pathlib.Path]:
    return [p for p in (folder / "s").glob("*/*.json") if p.name != "root.json"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1k", 1000), (7, 7), (None, None)],
)
def test_budgets(text: Any, expected: Any) -> None:
    assert byte_count(text) == expected


def test_a_turn_passes_on_when_its_file_is_removed(tmp_path: Any) -> None:
    first, second, third = (Turn(tmp_path / "lock") for _ in range(3))
    assert first.take()
    (tmp_path / "lock").unlink()  # by somebody who cleans up
    assert second.take(wait=False)
    assert not third.take(wait=False)
    second.release()
    first.release()
    assert third.take(wait=False)
    third.release()
    assert not list(tmp_path.iterdir())


def test_without_locks_there_is_no_waiting(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("kt_bttackler.stages.turns.fcntl", None)
    assert Turn(tmp_path / "lock").take()
    assert Turn(tmp_path / "lock").take()


def _start(
    folder: Any, project: str, seconds: float, workers: int = 1
) -> subprocess.Popen[bytes]:
    arguments = map(str, (WORKER, folder, project, seconds, workers))
    command = [sys.executable, *arguments]
    root = str(WORKER.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


def _epochs(folder: pathlib.Path) -> list[str]:
    path = folder / "epochs.txt"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "number", [pytest.param(1, marks=pytest.mark.slow), 2], ids=["lazily", "ahead"]
)
def test_two_processes_train_no_stage_twice(number: int, tmp_path: Any) -> None:
    workers = [_start(tmp_path, name, 0.1, number) for name in ("one", "two")]
    assert [worker.wait(280) for worker in workers] == [0, 0]
    one, two = (
        json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two")
    )
    assert one == two
    epochs = _epochs(tmp_path)
    assert len(epochs) == len(set(epochs)) == UNIQUE


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills(tmp_path: Any) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert _start(whole, "p", 0).wait() == 0
    dice, kills = random.Random(0), 0
    folder = tmp_path / "killed"
    folder.mkdir()
    number = 0
    while kills < 20:
        worker = _start(folder, f"p{number}", 0.3)
        before = len(_epochs(folder))
        while worker.poll() is None and len(_epochs(folder)) == before:
            time.sleep(0.05)
        time.sleep(dice.uniform(0, 1))
        if worker.poll() is None:
            worker.kill()
            kills += 1
        if worker.wait() == 0:
            # Finished: begin anew, without the states.
            _assert_same(folder / f"p{number}.json", whole / "p.json")
            number += 1
            shutil.rmtree(folder / "stages")
    assert _start(folder, f"p{number}", 0).wait() == 0
    _assert_same(folder / f"p{number}.json", whole / "p.json")
    # Every kill costs at most what lies between two states.
    assert len(_epochs(folder)) <= UNIQUE * (number + 1) + 2 * kills


def _assert_same(one: pathlib.Path, other: pathlib.Path) -> None:
    assert json.loads(one.read_text()) == json.loads(other.read_text())
