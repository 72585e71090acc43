"""Tests of state that survives, in real searches whose trials are scripted."""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import warnings
from typing import Any

import keras_tuner
import pytest
from projects import write_trace
from searches import (
    ROUNDS,
    ScriptedTuner,
    bayesian_oracle,
    halving_oracle,
    hyperband_oracle,
    in_turn,
    killed_and_resumed,
    random_oracle,
    rounds,
    search,
    space,
    statuses,
    stopped,
)

import kt_bttackler as ktb
from kt_bttackler import files, locking, oracles, project
from kt_bttackler.locking import Process, ProjectInUse
from kt_bttackler.oracles.safely import synchronized

FINE = {"val_loss": 0.5}


def by_rate(trial: Any) -> dict[str, float]:
    """A loss that depends on nothing but the values of the trial."""
    return {"val_loss": float(sum(map(float, numbers(trial).values())))}


def numbers(trial: Any) -> dict[str, Any]:
    values = trial.hyperparameters.values
    return {k: v for k, v in values.items() if not k.startswith("tuner/")}


def reopened(oracle: Any, folder: Any, **kwargs: Any) -> Any:
    """The oracle with what it read of the project."""
    ScriptedTuner(oracle, by_rate, directory=folder, project_name="p", **kwargs)
    return oracle


def grid_oracle() -> Any:
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Int("a", 0, 2)
    hyperparameters.Int("b", 0, 1)
    return oracles.GridSearchOracle("val_loss", hyperparameters=hyperparameters)


def edit(path: pathlib.Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


MAKERS = {
    "random": lambda: random_oracle(6),
    "bayesian": lambda: bayesian_oracle(6, num_initial_points=3),
    "hyperband": hyperband_oracle,
    "halving": halving_oracle,
    "grid": grid_oracle,
}


# --- oracle.json -------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_a_search_goes_on_without_its_oracle_file(kind: str, tmp_path: Any) -> None:
    expected = search(MAKERS[kind](), by_rate, tmp_path / "whole")
    killed_in = len(expected) // 2
    started = []

    def until_killed(trial: Any) -> Any:
        started.append(trial)
        if len(started) > killed_in:
            raise KeyboardInterrupt
        return by_rate(trial)

    with pytest.raises(KeyboardInterrupt):
        search(MAKERS[kind](), until_killed, tmp_path)
    (tmp_path / "p" / "oracle.json").write_text('{"ongoing_trials": {"tuner0')
    oracle = MAKERS[kind]()
    with pytest.warns(RuntimeWarning, match=r"oracle\.json cannot be used") as told:
        trials = search(oracle, by_rate, tmp_path)
    assert sum(issubclass(w.category, RuntimeWarning) for w in told) == 1
    assert (tmp_path / "p" / "oracle.json.corrupt").exists()
    assert statuses(trials) == ["COMPLETED"] * len(expected)
    if kind != "halving":  # see `test_brackets_are_found_again`
        assert [numbers(t) for t in trials] == [numbers(t) for t in expected]
    assert oracle.end_order == sorted(oracle.trials)


@pytest.mark.parametrize("killed_in", [1, 8, 9, 11, 13, 20])
@pytest.mark.parametrize("make", [hyperband_oracle, halving_oracle])
def test_brackets_are_found_again(make: Any, killed_in: int, tmp_path: Any) -> None:
    whole = rounds(search(make(), by_rate, tmp_path / "whole"))
    killed_in = min(killed_in, sum(whole.values()) - 1)
    started = []

    def until_killed(trial: Any) -> Any:
        started.append(trial)
        if len(started) > killed_in:
            raise KeyboardInterrupt
        return by_rate(trial)

    with pytest.raises(KeyboardInterrupt):
        search(make(), until_killed, tmp_path)
    (tmp_path / "p" / "oracle.json").unlink()
    assert rounds(search(make(), by_rate, tmp_path)) == whole
    if make is hyperband_oracle:
        assert whole == ROUNDS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"[]",
        b"{}",
        b"\x80\x04K\x01.",
        b"[" * 100_000,
        b'{"start_order": ["../../x"]}',
        b'{"schema": "new"}',
    ],
)
def test_whatever_is_no_oracle_is_set_aside(content: bytes, tmp_path: Any) -> None:
    search(random_oracle(3), by_rate, tmp_path)
    path = tmp_path / "p" / "oracle.json"
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        trials = search(random_oracle(5), by_rate, tmp_path)
    assert statuses(trials) == ["COMPLETED"] * 5
    assert path.with_name("oracle.json.corrupt").read_bytes() == content


def test_values_of_the_wrong_kind_are_no_state(tmp_path: Any) -> None:
    search(random_oracle(3), by_rate, tmp_path)
    edit(tmp_path / "p" / "oracle.json", hyperparameters={"space": [7], "values": {}})
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        trials = search(random_oracle(5), by_rate, tmp_path)
    assert statuses(trials) == ["COMPLETED"] * 5


def test_a_project_of_another_oracle_is_refused(tmp_path: Any) -> None:
    search(random_oracle(3), by_rate, tmp_path)
    with pytest.raises(RuntimeError, match="another kind of oracle"):
        reopened(hyperband_oracle(), tmp_path)
    assert not list((tmp_path / "p").glob("*.corrupt"))


def test_a_newer_schema_is_refused_with_its_version(tmp_path: Any) -> None:
    search(random_oracle(3), by_rate, tmp_path)
    path = tmp_path / "p" / "oracle.json"
    edit(path, schema=9, version="7.1")
    with pytest.raises(ValueError, match=r"kt_bttackler 7\.1 with schema 9"):
        reopened(random_oracle(3), tmp_path)
    state = json.loads(path.read_text())
    del state["schema"], state["version"]
    path.write_text(json.dumps(state))
    assert len(reopened(random_oracle(3), tmp_path).trials) == 3


# --- trial.json --------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_a_lost_trial_costs_no_other_one(kind: str, tmp_path: Any) -> None:
    killed_and_resumed_until = 5
    started = []

    def until_killed(trial: Any) -> Any:
        started.append(trial)
        if len(started) > killed_and_resumed_until:
            raise KeyboardInterrupt
        return by_rate(trial)

    with pytest.raises(KeyboardInterrupt):
        search(MAKERS[kind](), until_killed, tmp_path)
    paths = sorted((tmp_path / "p").glob("trial_*/trial.json"))
    before = [path.read_text() for path in paths]
    paths[1].write_text(before[1][:50])
    with pytest.warns(RuntimeWarning, match=r"trial\.json cannot be used"):
        trials = search(MAKERS[kind](), by_rate, tmp_path)
    assert paths[1].with_name("trial.json.corrupt").exists()
    assert [path.read_text() for path in paths[2:4]] == before[2:4]
    assert len(trials) >= 6
    assert statuses(trials).count("FAILED") == 1
    assert len({trial.trial_id for trial in trials}) == len(trials)
    again = reopened(MAKERS[kind](), tmp_path)
    assert statuses(list(again.trials.values())).count("FAILED") == 1


def test_a_lost_trial_is_run_again_where_its_trace_tells_the_values(
    tmp_path: Any,
) -> None:
    trials = search(random_oracle(4), by_rate, tmp_path)
    folder = tmp_path / "p" / "trial_2"
    write_trace(folder, 2, hyperparameters=dict(trials[2].hyperparameters.values))
    (folder / "trial.json").write_text("")
    with pytest.warns(RuntimeWarning):
        again = search(random_oracle(4), by_rate, tmp_path)
    assert [trial.score for trial in again] == [trial.score for trial in trials]
    assert statuses(again) == ["COMPLETED"] * 4


def test_no_trial_is_overwritten_where_a_folder_is_gone(tmp_path: Any) -> None:
    search(random_oracle(4), by_rate, tmp_path)
    last = (tmp_path / "p" / "trial_3" / "trial.json").read_text()
    (tmp_path / "p" / "trial_1" / "trial.json").unlink()
    (tmp_path / "p" / "trial_1").rmdir()
    trials = search(random_oracle(6), by_rate, tmp_path)
    assert statuses(trials) == ["COMPLETED", "FAILED", *["COMPLETED"] * 4]
    assert (tmp_path / "p" / "trial_3" / "trial.json").read_text() == last


@pytest.mark.parametrize("trial_id", ["../../outside", "..", "a/b", "3", ""])
def test_a_trial_that_claims_another_id_is_set_aside(
    trial_id: str, tmp_path: Any
) -> None:
    search(random_oracle(3), by_rate, tmp_path)
    edit(tmp_path / "p" / "trial_1" / "trial.json", trial_id=trial_id)
    with pytest.warns(RuntimeWarning, match="it is of trial"):
        trials = search(random_oracle(4), by_rate, tmp_path)
    assert sorted(trial.trial_id for trial in trials) == ["0", "1", "2", "3"]
    assert {path.name for path in tmp_path.iterdir()} == {"p"}


def test_an_orphan_is_run_again_and_what_has_ended_is_not(tmp_path: Any) -> None:
    search(random_oracle(4), by_rate, tmp_path)
    folder = tmp_path / "p"
    edit(folder / "trial_1" / "trial.json", status="RUNNING", score=None)
    # As KerasTuner's chief leaves a project whose last trial has ended.
    edit(folder / "oracle.json", ongoing_trials={"w1": "3"}, retry_queue=["2", "2"])
    run = []

    def script(trial: Any) -> Any:
        run.append(trial.trial_id)
        return by_rate(trial)

    oracle = random_oracle(5)
    trials = search(oracle, script, folder.parent)
    assert run == ["1", "4"]
    assert statuses(trials) == ["COMPLETED"] * 5
    assert sorted(oracle.end_order) == ["0", "1", "2", "3", "4"]


# --- the file of the tuner ---------------------------------------------------------


def ours(folder: Any, trials: int = 4, **kwargs: Any) -> Any:
    class Scripted(ktb.RandomSearch):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
            return by_rate(trial)

    return Scripted(
        objective="val_loss", max_trials=trials, seed=1, directory=folder,
        hyperparameters=space("lr"), project_name="p", **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("damage", ["missing", "half", "garbage"])
@pytest.mark.parametrize("whose", ["ours", "stock"])
def test_no_search_begins_anew_over_its_trials(
    whose: str, damage: str, tmp_path: Any
) -> None:
    def run(trials: int) -> Any:
        if whose == "stock":
            return search(random_oracle(trials), by_rate, tmp_path)
        tuner = ours(tmp_path, trials)
        tuner.search(verbose=0)
        return list(tuner.oracle.trials.values())

    before = [trial.get_state() for trial in run(3)]
    path = tmp_path / "p" / "tuner0.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text('{"a' if damage == "half" else "\0\0")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        after = [trial.get_state() for trial in run(5)]
    assert after[:3] == before
    assert len(after) == 5
    assert (tmp_path / "p" / "tuner0.json.corrupt").exists() == (damage != "missing")
    assert sum(issubclass(w.category, RuntimeWarning) for w in told) <= 1
    assert json.loads(path.read_text()) == {}


def test_overwriting_begins_anew(tmp_path: Any) -> None:
    ours(tmp_path).search(verbose=0)
    assert not ours(tmp_path, overwrite=True).oracle.trials


# --- writing -----------------------------------------------------------------------


def test_a_reader_never_sees_half_a_file(tmp_path: Any, monkeypatch: Any) -> None:
    replaced = []
    replace = os.replace

    def checking(source: Any, target: Any) -> None:
        if str(target).endswith(".json"):
            json.loads(pathlib.Path(source).read_text())
            replaced.append(pathlib.Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", checking)
    inodes = set()

    def script(trial: Any) -> Any:
        inodes.add((tmp_path / "p" / "oracle.json").stat().st_ino)
        return by_rate(trial)

    tuner = ours(tmp_path)
    tuner.search(verbose=0)
    assert {"oracle.json", "trial.json", "tuner0.json"} == set(replaced)
    assert {path.name for path in (tmp_path / "p").iterdir()} == {
        "oracle.json", "tuner0.json", *(f"trial_{n}" for n in range(4)),
    }  # fmt: skip


def test_what_cannot_be_written_is_written_later(
    tmp_path: Any, monkeypatch: Any
) -> None:
    write = files.write_atomically
    full = [False]

    def maybe(path: Any, text: str) -> None:
        if full[0] and str(path).endswith(".json"):
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(files, "write_atomically", maybe)

    def script(trial: Any) -> Any:
        full[0] = trial.trial_id in ("1", "2")
        return by_rate(trial)

    with pytest.warns(RuntimeWarning, match="No space left") as told:
        trials = search(random_oracle(5), script, tmp_path)
    assert sum("search goes on in memory" in str(w.message) for w in told) == 1
    states = [trial.get_state() for trial in trials]
    again = reopened(random_oracle(5), tmp_path)
    assert [trial.get_state() for trial in again.trials.values()] == states


def test_the_project_of_kerastuner_is_left_readable_by_it(tmp_path: Any) -> None:
    ours(tmp_path).search(verbose=0)
    stock = keras_tuner.oracles.RandomSearchOracle(
        "val_loss", max_trials=4, hyperparameters=space("lr")
    )
    assert len(reopened(stock, tmp_path).trials) == 4


def test_the_private_names_are_those_of_kerastuner() -> None:
    # Canary: all trials are written by `_save_trial`, and put back in `_retry_queue`.
    source = inspect.getsource(keras_tuner.Oracle)
    assert source.count(".save(os.path.join(self._get_trial_dir(") == 1
    assert list(inspect.signature(keras_tuner.Oracle._save_trial).parameters) == [
        "self", "trial",
    ]  # fmt: skip
    assert "self.trials[self._retry_queue.pop()]" in source
    assert keras_tuner.oracles.RandomSearchOracle("loss")._retry_queue == []
    assert "id_to_hash" in source
    assert "_tried_so_far.add(new_hash_value)" in source


# --- one search at a time ----------------------------------------------------------


def foreign(folder: pathlib.Path) -> pathlib.Path:
    """The lock of a process on another machine."""
    content = {"pid": 1, "host": "elsewhere", "started": "", "system": "", "since": 0}
    path = folder / locking.NAME
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("whose", ["ours", "stock"])
def test_a_second_search_is_refused_and_changes_nothing(
    whose: str, tmp_path: Any
) -> None:
    def run(trials: int) -> None:
        if whose == "stock":
            search(random_oracle(trials), by_rate, tmp_path)
        else:
            ours(tmp_path, trials).search(verbose=0)

    run(3)
    (tmp_path / "p" / "trial_1" / "trial.json").write_text("half")
    foreign(tmp_path / "p")
    before = contents(tmp_path)
    with (
        pytest.warns(RuntimeWarning, match="cannot be used"),
        pytest.raises(ProjectInUse, match="process 1 on elsewhere"),
    ):
        run(6)
    assert contents(tmp_path) == before


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_project_in_use_is_not_overwritten(tmp_path: Any) -> None:
    ours(tmp_path).search(verbose=0)
    foreign(tmp_path / "p")
    with pytest.raises(ProjectInUse):
        ours(tmp_path, overwrite=True)
    assert len(list((tmp_path / "p").glob("trial_*"))) == 4


@pytest.mark.parametrize("whose", ["ours", "stock"])
def test_the_lock_is_held_while_a_search_runs(whose: str, tmp_path: Any) -> None:
    held = []

    def script(trial: Any, **kwargs: Any) -> Any:
        held.append(locking.ProjectLock(tmp_path / "p").read() == Process.this())
        return by_rate(trial)

    if whose == "stock":
        search(random_oracle(2), script, tmp_path)
    else:
        tuner = ours(tmp_path, 2)
        tuner.run_trial = script
        tuner.search(verbose=0)
        assert not (tmp_path / "p" / locking.NAME).exists()
    assert held == [True, True]


def test_what_another_process_did_meanwhile_is_read_first(tmp_path: Any) -> None:
    ours(tmp_path, 2).search(verbose=0)
    early = ours(tmp_path, 6)
    assert len(early.oracle.trials) == 2
    ours(tmp_path, 4).search(verbose=0)
    run = []
    early.run_trial = lambda trial, **_: run.append(trial.trial_id) or by_rate(trial)
    early.search(verbose=0)
    assert run == ["4", "5"]
    values = [numbers(trial)["lr"] for trial in early.oracle.trials.values()]
    assert len(set(values)) == 6


# --- checkpoints -------------------------------------------------------------------


def with_checkpoints(folder: Any, outcomes: list[Any], **kwargs: Any) -> set[str]:
    """Ids of the trials whose checkpoints are left."""
    script = in_turn(*outcomes)
    tuner = ours(folder, len(outcomes), **kwargs)

    def run_trial(trial: Any, *args: Any, **kwargs: Any) -> Any:
        path = pathlib.Path(tuner.get_trial_dir(trial.trial_id))
        (path / "checkpoint.weights.h5").write_bytes(b"weights")
        return script(trial)

    tuner.run_trial = run_trial
    tuner.search(verbose=0)
    left = (pathlib.Path(folder) / "p").glob("trial_*/checkpoint*")
    return {project.trial_id_of(path.parent) for path in left}


def test_checkpoints_of_stopped_trials_outside_the_best_are_deleted(
    tmp_path: Any,
) -> None:
    outcomes = [stopped(3.0), stopped(1.0), FINE, stopped(2.0), FINE]
    assert with_checkpoints(tmp_path / "0", outcomes, keep_checkpoints=0) == {"2", "4"}
    kept = with_checkpoints(tmp_path / "3", outcomes, keep_checkpoints=3)
    assert kept == {"1", "2", "4"}
    everything = {"0", "1", "2", "3", "4"}
    assert (
        with_checkpoints(tmp_path / "a", outcomes, keep_checkpoints=None) == everything
    )
    assert with_checkpoints(tmp_path / "d", outcomes) == everything  # 10 are kept
    benign = [stopped(2.0, cause="NMG")] * 3
    assert len(with_checkpoints(tmp_path / "b", benign, keep_checkpoints=0)) == 3


def test_the_default_keeps_ten(tmp_path: Any) -> None:
    outcomes = [stopped(float(n)) for n in range(14)]
    left = with_checkpoints(tmp_path, outcomes)
    assert left == {f"{n:02d}" for n in range(10)}


def test_a_number_of_checkpoints_below_zero_is_refused(tmp_path: Any) -> None:
    with pytest.raises(
        ValueError, match="`keep_checkpoints` must be at least 0, got -1"
    ):
        ours(tmp_path, keep_checkpoints=-1)
    with pytest.raises(ValueError, match="`lost_after` must be above 0, got 0"):
        ours(tmp_path, lost_after=0)


# --- failures ----------------------------------------------------------------------


def failing(trial: Any) -> Any:
    raise keras_tuner.errors.FailedTrialError("too large")


def test_a_search_that_gave_up_can_be_resumed(tmp_path: Any) -> None:
    with pytest.raises(RuntimeError, match="exceeded the limit of 3"):
        search(random_oracle(6), failing, tmp_path)
    states = project.read_oracle(tmp_path / "p" / "oracle.json")
    assert (states["ongoing_trials"], states["end_order"]) == ({}, ["0", "1", "2"])
    trials = search(random_oracle(6), by_rate, tmp_path)
    assert statuses(trials) == ["FAILED"] * 3 + ["COMPLETED"] * 3


def test_failures_that_are_not_in_a_row_end_nothing(tmp_path: Any) -> None:
    script = in_turn(failing, failing, by_rate, failing, failing, by_rate)
    trials = search(random_oracle(6), lambda trial: script(trial)(trial), tmp_path)
    assert statuses(trials).count("FAILED") == 4


def test_an_exception_leaves_no_lock_behind() -> None:
    class Broken(keras_tuner.Oracle):
        @synchronized
        def create_trial(self, tuner_id: str) -> Any:
            raise OSError(tuner_id)

    oracle = Broken("loss")
    with pytest.raises(OSError, match="w0"):
        oracle.create_trial("w0")
    assert not keras_tuner.src.engine.oracle.LOCKS[oracle].locked()


@pytest.mark.parametrize("killed_in", [0, 1, 3, 5])
def test_resumed_is_as_never_interrupted(killed_in: int, tmp_path: Any) -> None:
    for kind in ("random", "bayesian"):
        whole = search(MAKERS[kind](), by_rate, tmp_path / kind)
        resumed = killed_and_resumed(
            MAKERS[kind], by_rate, killed_in, tmp_path / f"{kind}-killed"
        )
        assert [numbers(t) for t in resumed] == [numbers(t) for t in whole]
