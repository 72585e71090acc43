"""Faults of disks, files, clocks and sizes; those of processes are elsewhere.

Which test stands for which fault is told by `examples/benchmarks/faults.py`.
"""

from __future__ import annotations

import datetime
import functools
import gc
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from searches import (
    bayesian_oracle,
    hyperband_oracle,
    random_oracle,
    search,
    statuses,
)

import kt_bttackler as ktb
from kt_bttackler import DiagnosisCallback, TraceStore, project, report, results
from kt_bttackler.trace import read_trace

RANDOM = np.random.default_rng(1)
X = RANDOM.normal(size=(48, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("float32")[:, None]
FIT: dict[str, Any] = {
    "x": X, "y": Y, "validation_data": (X, Y), "batch_size": 16, "verbose": 0,
}  # fmt: skip


def build(hp: Any) -> Any:
    rate = hp.Float("rate", 0.01, 0.1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.SGD(rate), "binary_crossentropy")
    return model


def build_broken(hp: Any) -> Any:
    hp.Float("rate", 0.01, 0.1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", lambda y, p: keras.losses.mean_squared_error(y, p) * np.nan)
    return model


def tuner(folder: Any, trials: int, **kwargs: Any) -> Any:
    arguments = {"hypermodel": build, "max_trials": trials, "seed": 1} | kwargs
    return ktb.RandomSearch(
        objective="val_loss", directory=folder, project_name="p", **arguments
    )


def by_rate(trial: Any) -> dict[str, float]:
    return {"val_loss": float(trial.hyperparameters.values["lr"])}


# --- every trial is broken ---------------------------------------------------------


def test_a_search_without_any_healthy_trial_ends(tmp_path: Any) -> None:
    searching = tuner(tmp_path, 4, hypermodel=build_broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # such as "All-NaN slice"
        searching.search(**FIT, epochs=3, callbacks=[DiagnosisCallback()])
        ktb.summary(searching)
    trials = list(searching.oracle.trials.values())
    assert statuses(trials) == ["STOPPED"] * 4
    assert {trial.score for trial in trials} == {None}
    assert "4 stopped" in report.as_text(results.study(tmp_path / "p"))


# --- disks -------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: pathlib.Path) -> pathlib.Path:
    """Takes all the room that is left; returns the file to be deleted."""
    ballast = place / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


def test_a_full_disk_under_the_traces_costs_one_warning(
    small_disk: Any, tmp_path: Any
) -> None:
    fill(small_disk)
    plain = tuner(tmp_path / "plain", 2)
    plain.search(**FIT, epochs=4)
    searching = tuner(tmp_path / "watched", 2)
    callback = DiagnosisCallback(trace_dir=small_disk / "traces")
    with pytest.warns(RuntimeWarning) as told:
        searching.search(**FIT, epochs=4, callbacks=[callback])
    messages = [str(w.message) for w in told if w.category is RuntimeWarning]
    assert len(messages) == 2  # one of each training
    assert all("trace file is off: OSError" in m for m in messages)
    assert all("No space left" in m for m in messages)
    for one, other in zip(
        searching.oracle.trials.values(), plain.oracle.trials.values(), strict=True
    ):
        assert (one.status, one.score) == (other.status, other.score)


def test_a_disk_that_fills_up_loses_no_trial(small_disk: Any) -> None:
    ballast: list[pathlib.Path] = []

    def script(trial: Any) -> Any:
        if trial.trial_id == "2":
            ballast.append(fill(small_disk))
        if trial.trial_id == "4":
            ballast[0].unlink()
        return by_rate(trial)

    with pytest.warns(RuntimeWarning, match="No space left") as told:
        trials = search(random_oracle(6), script, small_disk)
    assert sum(w.category is RuntimeWarning for w in told) == 1
    states = [trial.get_state() for trial in trials]
    assert statuses(trials) == ["COMPLETED"] * 6
    again = random_oracle(6)
    search(again, by_rate, small_disk)
    assert [trial.get_state() for trial in again.trials.values()] == states


def test_a_search_that_ended_on_a_full_disk_goes_on(small_disk: Any) -> None:
    ballast = []

    def script(trial: Any) -> Any:
        if trial.trial_id == "3":
            ballast.append(fill(small_disk))
            raise KeyboardInterrupt
        return by_rate(trial)

    with pytest.raises(KeyboardInterrupt):
        search(random_oracle(6), script, small_disk)
    before = {
        path.parent.name: project.read_trial(path)["score"]
        for path in (small_disk / "p").glob("trial_*/trial.json")
    }
    ballast[0].unlink()
    trials = search(random_oracle(6), by_rate, small_disk)
    assert statuses(trials) == ["COMPLETED"] * 6
    for trial in trials[:3]:
        assert before[f"trial_{trial.trial_id}"] == trial.score


def test_a_disk_that_cannot_be_written_costs_one_warning(small_disk: Any) -> None:
    def script(trial: Any) -> Any:
        options = "remount,rw" if trial.trial_id in "34" else "remount,ro"
        subprocess.run(["mount", "-o", options, str(small_disk)], check=True)
        return {"val_loss": float(trial.hyperparameters.values["rate"])}

    searching = tuner(small_disk, 5)
    searching.run_trial = lambda trial, **_: script(trial)
    with pytest.warns(RuntimeWarning, match="Read-only file system") as told:
        searching.search(verbose=0)
    trials = list(searching.oracle.trials.values())
    assert statuses(trials) == ["COMPLETED"] * 5
    assert sum("goes on in memory" in str(w.message) for w in told) == 1
    again = tuner(small_disk, 5).oracle.trials.values()
    assert [t.get_state() for t in again] == [t.get_state() for t in trials]


# --- files that are cut ------------------------------------------------------------


@pytest.mark.parametrize("name", ["oracle.json", "trial_1/trial.json", "tuner0.json"])
@pytest.mark.parametrize("make", [random_oracle, bayesian_oracle, hyperband_oracle])
def test_a_file_cut_at_every_tenth_costs_no_search(
    make: Any, name: str, tmp_path: Any
) -> None:
    size = {} if make is hyperband_oracle else {"max_trials": 4}

    def interrupted(trial: Any) -> Any:
        if trial.trial_id.lstrip("0") == "3":
            raise KeyboardInterrupt
        return by_rate(trial)

    for tenth in range(10):
        folder = tmp_path / str(tenth)
        with pytest.raises(KeyboardInterrupt):
            search(make(**size), interrupted, folder)
        width = "000" if make is hyperband_oracle else ""
        path = folder / "p" / name.replace("_1", f"_{width}1")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * tenth // 10])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trials = search(make(**size), by_rate, folder)
        assert path.with_name(f"{path.name}.corrupt").exists()
        expected = 23 if make is hyperband_oracle else 4
        lost = statuses(trials).count("FAILED")
        assert lost == (1 if "trial" in name else 0)
        assert len(trials) == expected
        assert statuses(trials).count("COMPLETED") == expected - lost


# --- an older version --------------------------------------------------------------


def test_projects_of_every_release_are_read(tmp_path: Any) -> None:
    releases = sorted((pathlib.Path(__file__).parent / "stored").iterdir())
    assert releases
    for release in releases:
        folder = tmp_path / release.name
        shutil.copytree(release, folder)
        found = results.study(folder / "p")
        assert [(t.id, t.status) for t in found.trials] == [
            ("0", "STOPPED"), ("1", "COMPLETED"),
        ]  # fmt: skip
        assert found.trials[0].causes[0] == "ERG"
        assert read_trace(folder / "p" / "trial_0" / "trace-0.jsonl").epoch == 3
        trials = search(random_oracle(3, stopped_value="worst"), by_rate, folder)
        assert statuses(trials) == ["STOPPED", "COMPLETED", "COMPLETED"]
        assert not list(folder.rglob("*.corrupt"))


def test_a_trace_of_a_newer_version_is_refused_with_its_schema(tmp_path: Any) -> None:
    path = tmp_path / "trace-0.jsonl"
    path.write_text('{"schema":2,"header":{}}\n')
    with pytest.raises(ValueError, match="schema 2 is unknown, this version reads 1"):
        read_trace(path)


# --- clocks ------------------------------------------------------------------------


def test_clocks_that_jump_make_no_negative_durations(
    tmp_path: Any, monkeypatch: Any
) -> None:
    day = datetime.timedelta(days=1).total_seconds()
    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() + day * (-1) ** calls[0]

    monkeypatch.setattr(time, "time", jumping)
    searching = tuner(tmp_path, 3)
    searching.search(**FIT, epochs=4, callbacks=[DiagnosisCallback()])
    for trace in TraceStore(tmp_path / "p"):
        assert (np.diff(trace.seconds, prepend=0.0) > 0).all()
        assert trace.seconds[-1] < 100
    found = results.study(tmp_path / "p")
    assert all(0 < trial.seconds < 100 for trial in found.trials)
    assert all(trial.seconds_saved >= 0 for trial in found.trials)


# --- several at once ---------------------------------------------------------------


def test_early_stopping_ours_and_the_median_rule_at_once(tmp_path: Any) -> None:
    rule = ktb.AnyOf((ktb.AnyFinding(), ktb.MedianStoppingRule(2, min_completed=1)))
    diagnosis = ktb.Diagnosis(ktb.Diagnosis().indicators, rule)
    searching = tuner(tmp_path, 4, executions_per_trial=3)
    early = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=0.05)
    searching.search(**FIT, epochs=6, callbacks=[early, DiagnosisCallback(diagnosis)])
    for trial in searching.oracle.trials.values():
        folder = tmp_path / "p" / f"trial_{trial.trial_id}"
        traces = sorted(folder.glob("trace-*.jsonl"))
        stopped = trial.status == "STOPPED"
        assert len(traces) == (1 if stopped else 3)
        assert len(list(folder.glob("verdict-0.json"))) <= 1
        verdict = ktb.diagnosis_of(folder)
        assert (verdict is not None and not verdict.benign) == stopped
        if stopped:
            assert verdict.cause in trial.message
        assert [read_trace(path).header.execution for path in traces] == list(
            range(len(traces))
        )


# --- sizes -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_of_ten_thousand_trials(tmp_path: Any) -> None:
    if os.path.isdir("/dev/shm"):  # a disk that is busy would be measured, too
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            run_ten_thousand(folder)
    else:
        run_ten_thousand(tmp_path)


def run_ten_thousand(folder: Any) -> None:
    oracle = random_oracle(10_000)
    moments = []

    def script(trial: Any) -> Any:
        moments.append(time.process_time())
        return by_rate(trial)

    trials = search(oracle, script, folder)
    assert statuses(trials) == ["COMPLETED"] * 10_000
    per_trial = np.diff(moments)
    early, late = np.median(per_trial[100:600]), np.median(per_trial[-500:])
    print(f"{early * 1e3:.1f} ms CPU per trial at 350, {late * 1e3:.1f} ms at 9,750")
    # KerasTuner writes a list of all trials after each of them.
    assert late < 0.5
    began = time.perf_counter()
    again = random_oracle(10_000)
    search(again, by_rate, folder)
    assert len(again.trials) == 10_000
    assert time.perf_counter() - began < 120


def deep(hp: Any) -> Any:
    hp.Float("rate", 0.01, 0.1)
    layers = [keras.Input((4,))]
    for _ in range(1000):
        layers.append(keras.layers.Dense(4, activation="relu"))
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=False, jit_compile=False)
    return model


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_of_a_thousand_layers(tmp_path: Any, request: Any) -> None:
    # Keras goes through a chain of layers by recursion.
    request.addfinalizer(
        functools.partial(sys.setrecursionlimit, sys.getrecursionlimit())
    )
    sys.setrecursionlimit(50_000)
    searching = tuner(tmp_path, 1, hypermodel=deep)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* is off")
        searching.search(X, Y, epochs=3, verbose=0, validation_data=(X, Y), callbacks=[DiagnosisCallback(stop=False)])  # fmt: skip
    (path,) = (tmp_path / "p").glob("trial_*/trace-0.jsonl")
    trace = read_trace(path)
    assert (trace.epoch, trace.end) == (3, "finished")
    assert len(trace.header.layers) == 1001
    per_epoch = path.stat().st_size / 3
    print(f"{per_epoch / 2**20:.2f} MB of trace per epoch")
    assert per_epoch < 2 * 2**20


def resident_kilobytes() -> int:
    """Memory that this process has now, not the most that it ever had."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_does_not_grow_over_a_search(tmp_path: Any) -> None:
    models: list[weakref.ref[Any]] = []

    def remembered(hp: Any) -> Any:
        model = build(hp)
        models.append(weakref.ref(model))
        return model

    def grown(name: str, callbacks: list[Any]) -> tuple[float, int]:
        models.clear()
        searching = tuner(tmp_path / name, 200, hypermodel=remembered)
        begin, sizes = searching.on_trial_begin, []

        def noted(trial: Any) -> None:
            if len(sizes) % 20 == 0:
                gc.collect()
            sizes.append(resident_kilobytes())
            begin(trial)

        searching.on_trial_begin = noted
        data = {**FIT, "batch_size": 48}
        searching.search(**data, epochs=1, callbacks=callbacks)
        gc.collect()
        alive = sum(model() is not None for model in models)
        # TensorFlow's own growth is steady; the first trials fill caches.
        return (np.mean(sizes[-20:]) - np.mean(sizes[90:110])) / 1024, alive

    watched, alive = grown("watched", [DiagnosisCallback()])
    plain, alive_plain = grown("plain", [])
    print(f"100 trials: {watched:.1f} MB watched, {plain:.1f} MB plain; {alive} models")
    assert alive <= max(alive_plain, 1)
    assert watched - plain < 10
