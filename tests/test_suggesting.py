"""Tests of the oracles that leave suggestions to another library: TPE and SMAC."""

from __future__ import annotations

import inspect
import logging
import math
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import keras_tuner
import pytest
from searches import ScriptedTuner, search, space, statuses, stopped

import kt_bttackler as ktb
from kt_bttackler import oracles
from kt_bttackler.oracles.space import axes
from kt_bttackler.oracles.suggesting import Observation

ORACLES = [oracles.TPEOracle, oracles.SMACOracle]


@pytest.fixture(autouse=True)
def _no_fault_is_overlooked(caplog: Any, request: Any) -> Iterator[None]:
    # A library that fails costs a warning and the suggestion, not the search.
    yield
    if "fault" not in request.fixturenames:
        records = caplog.get_records("call")
        assert not [r for r in records if r.levelno >= logging.WARNING]


def oracle_of(cls: Any, max_trials: int, **kwargs: Any) -> Any:
    defaults = {"objective": "val_loss", "num_initial_points": 4, "seed": 3}
    return cls(max_trials=max_trials, **(defaults | kwargs))


def loss_at(best: float, **kwargs: Any) -> Any:
    return lambda trial: {"val_loss": abs(trial.hyperparameters.get("lr") - best)}


def rates(trials: list[Any]) -> list[float]:
    return [trial.hyperparameters.get("lr") for trial in trials]


# --- the classes -------------------------------------------------------------------


def test_they_are_loaded_when_they_are_needed() -> None:
    program = (
        "import sys, kt_bttackler as ktb\n"
        "ktb.oracles.TPEOracle, ktb.oracles.SMACOracle, ktb.TPE, ktb.SMAC\n"
        "assert not {'optuna', 'smac'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("cls", "library", "extra"),
    [
        (oracles.TPEOracle, "optuna", "tpe"),
        (oracles.SMACOracle, "smac", "smac"),
        (ktb.TPE, "optuna", "tpe"),
        (ktb.SMAC, "smac", "smac"),
    ],
)
def test_a_missing_library_is_told_in_one_line(
    cls: Any, library: str, extra: str, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError) as caught:
        cls(objective="val_loss")
    message = str(caught.value)
    assert message.startswith(f"{library} cannot be imported")
    assert message.endswith(f"pip install 'kt-bttackler[{extra}]'")
    assert "\n" not in message


@pytest.mark.parametrize("cls", [ktb.TPE, ktb.SMAC])
def test_tuners_take_the_arguments_of_bayesian_search(cls: Any, tmp_path: Any) -> None:
    bayesian = inspect.signature(keras_tuner.BayesianOptimization).parameters
    own = list(inspect.signature(cls).parameters)
    expected = [name for name in bayesian if name not in ("alpha", "beta")]
    assert [name for name in own if name in expected] == expected
    assert set(own) - set(expected) >= {"stopped_value"}
    tuner = cls(
        lambda hp: hp.Float("lr", 0, 1),
        "val_accuracy",
        7,
        2,
        0,
        stopped_value="worst",
        directory=tmp_path,
    )
    assert isinstance(tuner.oracle, ktb.oracles.DiagnosedOracleMixin)
    assert (tuner.oracle.max_trials, tuner.oracle.num_initial_points) == (7, 2)
    assert (tuner.seed, tuner.oracle.stopped_value) == (0, "worst")
    assert tuner.oracle.objective.direction == "max"
    assert [hp.name for hp in tuner.oracle.get_space().space] == ["lr"]


@pytest.mark.parametrize("cls", ORACLES)
def test_zero_is_a_seed_and_ten_points_are_drawn_first(cls: Any) -> None:
    one, other = (cls("val_loss", seed=0, hyperparameters=space("a")) for _ in range(2))
    values = [oracle.populate_space("0")["values"] for oracle in (one, other)]
    assert values[0] == values[1]
    assert one.num_initial_points == 10


def test_the_parts_of_kerastuner_we_lean_on_are_there() -> None:
    # Canary: these are private.
    oracle = oracle_of(oracles.TPEOracle, 3, hyperparameters=space("lr"))
    values = oracle._random_values()
    assert list(values) == ["lr"]
    assert not keras_tuner.Oracle._duplicate(oracle, values)
    oracle._tried_so_far.add(oracle._compute_values_hash(values))
    assert keras_tuner.Oracle._duplicate(oracle, values)


# --- what they learn ---------------------------------------------------------------


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("cls", ORACLES)
def test_suggestions_gather_around_the_best(
    cls: Any, direction: str, tmp_path: Any
) -> None:
    sign = 1.0 if direction == "min" else -1.0

    def script(trial: Any) -> Any:
        return {"m": sign * (trial.hyperparameters.get("lr") - 0.3) ** 2 + 5.0}

    # SMAC trusts its model earlier, and takes its time.
    max_trials = 16 if cls is oracles.SMACOracle else 40
    oracle = oracle_of(
        cls,
        max_trials,
        objective=keras_tuner.Objective("m", direction),
        num_initial_points=8,
        hyperparameters=space("lr"),
    )
    proposed = rates(search(oracle, script, tmp_path))[max_trials // 2 :]
    # Drawn at random, they are 0.29 away on average.
    assert sum(abs(rate - 0.3) for rate in proposed) / len(proposed) < 0.2


def test_tpe_beats_random_search(tmp_path: Any) -> None:
    def best(cls: Any, seed: int, **kwargs: Any) -> float:
        hyperparameters = keras_tuner.HyperParameters()
        hyperparameters.Float("rate", 1e-5, 1e-1, sampling="log")
        hyperparameters.Int("units", 1, 64)
        hyperparameters.Choice("kind", ["a", "b", "c"])

        def script(trial: Any) -> Any:
            get = trial.hyperparameters.get
            far = abs(math.log10(get("rate")) + 3) + abs(get("units") - 20) / 20
            return {"val_loss": far + 0.5 * (get("kind") != "b")}

        oracle = cls(
            "val_loss", 40, seed=seed, hyperparameters=hyperparameters, **kwargs
        )
        search(oracle, script, tmp_path / f"{cls.__name__}{seed}")
        return float(oracle.get_best_trials()[0].score)

    seeds = range(6)
    ours = [best(oracles.TPEOracle, seed, num_initial_points=10) for seed in seeds]
    random = [best(oracles.RandomSearchOracle, seed) for seed in seeds]
    assert sum(ours) < 0.8 * sum(random)


@pytest.mark.parametrize("bad", [stopped(math.nan), {"val_loss": math.inf}])
@pytest.mark.parametrize("cls", ORACLES)
def test_values_that_are_not_finite_do_not_attract_suggestions(
    cls: Any, bad: Any, tmp_path: Any
) -> None:
    def script(trial: Any) -> Any:
        rate = trial.hyperparameters.get("lr")
        return bad if rate > 0.5 else {"val_loss": 1.0 + abs(rate - 0.25)}

    oracle = oracle_of(cls, 16, num_initial_points=8, hyperparameters=space("lr"))
    tried = rates(search(oracle, script, tmp_path))
    assert any(rate > 0.5 for rate in tried[:8])
    assert sum(rate > 0.5 for rate in tried[8:]) <= 3


@pytest.mark.parametrize("cls", ORACLES)
def test_extreme_scores_are_told(cls: Any, tmp_path: Any) -> None:
    losses = iter([1e308, -1e308, 0.0, 1e-300, 5.0, 5.0, 5.0])
    oracle = oracle_of(cls, 6, num_initial_points=3, hyperparameters=space("lr"))
    search(oracle, lambda trial: {"val_loss": next(losses)}, tmp_path)


@pytest.mark.parametrize("cls", ORACLES)
def test_without_a_finite_score_values_are_random(cls: Any, tmp_path: Any) -> None:
    oracle = oracle_of(cls, 8, hyperparameters=space("lr"))
    oracle.suggest = None  # nobody may ask for it
    trials = search(oracle, lambda trial: stopped(math.nan), tmp_path)
    assert statuses(trials) == ["STOPPED"] * 8
    assert len(set(rates(trials))) == 8


@pytest.mark.parametrize("policy", ["last", "best", "worst", "skip", "censored"])
def test_the_policy_decides_what_is_told(policy: str, tmp_path: Any) -> None:
    told = {"last": 2.0, "best": 0.5, "worst": 3.0, "skip": None, "censored": 2.0}
    outcomes = iter([{"val_loss": 1.0}, {"val_loss": 3.0}, stopped(2.0, best=0.5)] * 2)
    oracle = oracle_of(
        oracles.TPEOracle, 4, stopped_value=policy, hyperparameters=space("lr")
    )
    seen = record_observations(oracle)
    oracle.num_initial_points = 3
    search(oracle, lambda trial: next(outcomes), tmp_path)
    scores = [observation.score for observation in seen[0]]
    assert scores == [s for s in (1.0, 3.0, told[policy]) if s is not None]


def record_observations(oracle: Any) -> list[Any]:
    seen: list[Any] = []
    suggest = oracle.suggest

    def recording(space: Any, observations: Any, seed: int) -> Any:
        seen.append(list(observations))
        return suggest(space, observations, seed)

    oracle.suggest = recording
    return seen


# --- which hyperparameters take part -----------------------------------------------


def scopes() -> keras_tuner.HyperParameters:
    hp = keras_tuner.HyperParameters()
    hp.Fixed("task", "digits")
    with hp.conditional_scope("task", ["digits"]):
        hp.Choice("kind", ["mlp", "cnn", "rnn"])
        with hp.conditional_scope("kind", ["mlp"]):
            hp.Int("units", 100, 200)
        with hp.conditional_scope("kind", ["cnn", "rnn"]):
            hp.Int("size", 3, 7, step=2)
            hp.Boolean("pool")
            with hp.conditional_scope("pool", [True]):
                hp.Float("share", 0.1, 0.9)
    with hp.conditional_scope("task", ["faces"]):
        hp.Boolean("never")
    return hp


@pytest.mark.parametrize("cls", ORACLES)
def test_closed_scopes_take_no_part(cls: Any, tmp_path: Any) -> None:
    worth = {"mlp": 2.0, "cnn": 0.0, "rnn": 1.0}

    def script(trial: Any) -> Any:
        values = trial.hyperparameters.values
        return {"val_loss": worth[values["kind"]] + values.get("size", 0) / 10}

    oracle = oracle_of(cls, 16, hyperparameters=scopes())
    seen = record_observations(oracle)
    trials = search(oracle, script, tmp_path)
    names = {str(key): hp.name for key, hp in enumerate(scopes().space)}
    for trial, told in zip(trials, seen[-1], strict=False):
        values = trial.hyperparameters.values
        expected = {"task", "kind"}
        if values["kind"] == "mlp":
            expected |= {"units"}
        else:
            expected |= {"size", "pool"} | ({"share"} if values["pool"] else set())
        assert set(values) == expected
        assert {names[key] for key in told.coordinates} == expected
    kinds = [trial.hyperparameters.get("kind") for trial in trials]
    assert kinds[4:].count("cnn") > kinds[4:].count("mlp")


@pytest.mark.parametrize("cls", ORACLES)
def test_one_name_in_two_scopes_is_two_hyperparameters(cls: Any) -> None:
    # KerasTuner loses such values when it records a trial; what it is given is right.
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["mlp", "cnn"])
    with hp.conditional_scope("kind", ["mlp"]):
        hp.Int("size", 100, 200)
    with hp.conditional_scope("kind", ["cnn"]):
        hp.Int("size", 3, 7, step=2)
    kind, wide, small = axes(hp.space)
    observations = [
        Observation({kind.key: 0, wide.key: 50}, 1.0),
        Observation({kind.key: 1, small.key: 2}, 2.0),
    ]
    oracle = oracle_of(cls, 4)
    suggested = [
        oracle.suggest([kind, wide, small], observations, seed) for seed in range(6)
    ]
    for values in suggested:
        expected = range(100, 201) if values["kind"] == "mlp" else (3, 5, 7)
        assert values["size"] in expected


@pytest.mark.parametrize("cls", ORACLES)
def test_a_space_may_grow(cls: Any, tmp_path: Any) -> None:
    def script(trial: Any) -> Any:
        hp = trial.hyperparameters
        loss = abs(hp.Float("lr", 0.0, 1.0) - 0.3)
        if int(trial.trial_id) >= 5:
            loss += hp.Int("late", 1, 9, default=5) / 9
            # A default value may lie outside of its range.
            hp.Float("odd", 1.0, 2.0, default=0.5)
        return {"val_loss": loss}

    trials = search(oracle_of(cls, 10), script, tmp_path)
    names = [set(trial.hyperparameters.values) for trial in trials]
    assert names == [{"lr"}] * 5 + [{"lr", "late", "odd"}] * 5
    late = [trial.hyperparameters.get("late") for trial in trials[6:]]
    assert all(1 <= value <= 9 for value in late)
    assert set(late) != {5}


def build_layers(trial: Any) -> Any:
    hp = trial.hyperparameters
    layers = hp.Int("layers", 1, 2)
    units = [hp.Choice(f"units_{i}", [8, 16]) for i in range(layers)]
    return {"val_loss": sum(units) / 10}


def test_what_build_did_not_ask_for_takes_no_part(tmp_path: Any) -> None:
    oracle = oracle_of(oracles.TPEOracle, 12)
    oracle.hyperparameters.Int("by_hand", 0, 10**6)  # read, but never asked for
    seen = record_observations(oracle)
    trials = search(oracle, build_layers, tmp_path)
    keys = {hp.name: str(key) for key, hp in enumerate(oracle.hyperparameters.space)}
    observations = seen[-1]
    assert len(observations) >= 4
    for trial, observation in zip(trials, observations, strict=False):
        layers = trial.hyperparameters.get("layers")
        expected = {"layers", "by_hand", *(f"units_{i}" for i in range(layers))}
        assert set(observation.coordinates) == {keys[name] for name in expected}


@pytest.mark.parametrize("cls", ORACLES)
def test_nothing_is_trained_twice_and_a_small_space_comes_to_an_end(
    cls: Any, tmp_path: Any
) -> None:
    trials = search(oracle_of(cls, 40), build_layers, tmp_path)
    trained = [
        (values["layers"], *(values[f"units_{i}"] for i in range(values["layers"])))
        for values in (trial.hyperparameters.values for trial in trials)
    ]
    assert len(trained) == len(set(trained)) <= 6
    assert len(trained) >= 5


@pytest.mark.parametrize("cls", ORACLES)
def test_where_nothing_varies_there_is_one_trial(cls: Any, tmp_path: Any) -> None:
    hp = keras_tuner.HyperParameters()
    hp.Fixed("lr", 0.1)
    oracle = oracle_of(cls, 5, num_initial_points=1, hyperparameters=hp)
    assert len(search(oracle, loss_at(0.3), tmp_path)) == 1


# --- how they run ------------------------------------------------------------------


@pytest.mark.parametrize("cls", ORACLES)
def test_trials_that_run_are_shown_and_not_suggested_again(
    cls: Any, tmp_path: Any
) -> None:
    search(oracle_of(cls, 6, hyperparameters=space("lr")), loss_at(0.3), tmp_path)
    oracle = oracle_of(cls, 12)
    ScriptedTuner(oracle, loss_at(0.3), directory=tmp_path, project_name="p")
    oracle.verbose = 0
    seen = record_observations(oracle)
    running = [oracle.create_trial(f"worker{number}") for number in range(4)]
    assert len(set(rates(running))) == 4
    assert [sum(one.score is None for one in each) for each in seen] == [0, 1, 2, 3]
    for trial in reversed(running):
        oracle.update_trial(trial.trial_id, {"val_loss": 1.0})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    oracle.create_trial("worker0")
    assert [one.score for one in seen[-1]].count(None) == 0


@pytest.mark.parametrize("cls", ORACLES)
def test_nothing_is_left_behind(
    cls: Any, tmp_path: Any, monkeypatch: Any, capfd: Any
) -> None:
    temporary, here = tmp_path / "temporary", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(here)
    monkeypatch.setattr("sys.stdin", None)
    levels = [logging.getLogger(name).level for name in ("optuna", "smac", "root")]
    hp = space("lr")
    search(oracle_of(cls, 7, hyperparameters=hp), loss_at(0.3), tmp_path / "project")
    assert list(temporary.iterdir()) == list(here.iterdir()) == []
    assert levels == [
        logging.getLogger(name).level for name in ("optuna", "smac", "root")
    ]
    assert capfd.readouterr().err == ""


@pytest.fixture
def fault() -> str:
    """A test that asks for this expects warnings."""
    return "library is broken"


@pytest.mark.parametrize("cls", ORACLES)
def test_a_library_that_fails_costs_a_warning(
    cls: Any, fault: str, tmp_path: Any, caplog: Any
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError(fault)

    oracle = oracle_of(cls, 6, hyperparameters=space("lr"))
    oracle.suggest = broken
    trials = search(oracle, loss_at(0.3), tmp_path)
    assert statuses(trials) == ["COMPLETED"] * 6
    assert caplog.text.count("is drawn at random: RuntimeError('library is") == 2
    # KerasTuner never frees the lock of an oracle that raised.
    thread = threading.Thread(target=oracle.create_trial, args=("other",), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_a_project_keeps_its_initial_points(tmp_path: Any) -> None:
    search(
        oracle_of(oracles.TPEOracle, 2, hyperparameters=space("lr")),
        loss_at(0.3),
        tmp_path,
    )
    oracle = oracle_of(oracles.TPEOracle, 2, num_initial_points=9)
    ScriptedTuner(oracle, loss_at(0.3), directory=tmp_path, project_name="p")
    assert oracle.num_initial_points == 4
    assert (pathlib.Path(tmp_path) / "p" / "oracle.json").is_file()
