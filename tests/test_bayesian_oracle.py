"""Tests of `kt_bttackler.oracles.bayesian` in searches whose trials are scripted."""

from __future__ import annotations

import logging
import math
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
from searches import (
    ScriptedTuner,
    bayesian_oracle,
    in_turn,
    random_oracle,
    search,
    space,
    statuses,
    stopped,
)

import kt_bttackler as ktb
from kt_bttackler import oracles
from kt_bttackler.oracles import bayesian, gaussian, requested

STOCK = keras_tuner.oracles


@pytest.fixture(autouse=True)
def _no_suggestion_fails(caplog: Any, request: Any) -> Any:
    """An error would only show as a random suggestion."""
    with caplog.at_level(logging.WARNING):
        yield
    if "failing" not in request.node.name:
        assert "drawn at random" not in caplog.text


def values(trials: list[Any], name: str = "lr") -> list[Any]:
    return [trial.hyperparameters.values.get(name) for trial in trials]


def valley(trial: Any) -> dict[str, float]:
    """Lowest where every hyperparameter is 0.3."""
    numbers = trial.hyperparameters.values.values()
    return {"val_loss": sum((number - 0.3) ** 2 for number in numbers)}


def end(oracle: Any, trial: Any, score: float) -> None:
    oracle.update_trial(trial.trial_id, {"val_loss": score})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def begun(oracle: Any, folder: Any) -> Any:
    """The oracle with a project folder, to ask it without a search."""
    tuner = ScriptedTuner(
        oracle, lambda trial: None, directory=folder, project_name="p"
    )
    tuner.save()
    oracle.verbose = 0
    return oracle


# --- the search ----------------------------------------------------------------------


def test_it_is_an_oracle_of_kerastuners_class() -> None:
    oracle = oracles.BayesianOptimizationOracle("val_accuracy", 7, 2, 1e-3, 1.5, 9)
    assert isinstance(oracle, STOCK.BayesianOptimizationOracle)
    assert isinstance(oracle, oracles.DiagnosedOracleMixin)
    assert (oracle.max_trials, oracle.num_initial_points) == (7, 2)
    assert (oracle.alpha, oracle.beta, oracle.seed) == (1e-3, 1.5, 9)


def test_the_best_is_found(tmp_path: Any) -> None:
    names = ("a", "b", "c", "d")
    best = {}
    for make in (bayesian_oracle, random_oracle):
        oracle = make(max_trials=30, hyperparameters=space(*names), seed=5)
        trials = search(oracle, valley, tmp_path / make.__name__)
        best[make] = min(trial.score for trial in trials)
    assert best[bayesian_oracle] < 0.01 < best[random_oracle]


def test_initial_points_are_spread_evenly(tmp_path: Any) -> None:
    oracle = bayesian_oracle(16, num_initial_points=16)
    rates = sorted(values(search(oracle, valley, tmp_path)))
    # One in each sixteenth, which random ones would not be.
    assert [int(16 * rate) for rate in rates] == list(range(16))


def test_a_maximum_is_the_minimum_of_the_negative(tmp_path: Any) -> None:
    def run(direction: str, sign: float) -> list[Any]:
        objective = keras_tuner.Objective("val_loss", direction)
        oracle = bayesian_oracle(12, objective=objective, num_initial_points=4)

        def script(trial: Any) -> Any:
            return {"val_loss": sign * valley(trial)["val_loss"]}

        return values(search(oracle, script, tmp_path / direction))

    assert run("min", 1.0) == run("max", -1.0)


def test_several_objectives_are_summed(tmp_path: Any) -> None:
    objective = ["val_loss", keras_tuner.Objective("val_accuracy", "max")]
    oracle = bayesian_oracle(14, objective=objective, num_initial_points=6)

    def script(trial: Any) -> Any:
        loss, accuracy = valley(trial)["val_loss"], 1.0 - valley(trial)["val_loss"]
        both = {"val_loss": loss, "val_accuracy": accuracy}
        return both | {"multi_objective": loss - accuracy}

    rates = values(search(oracle, script, tmp_path))
    assert min(abs(rate - 0.3) for rate in rates[6:]) < 0.02


def test_a_large_beta_explores(tmp_path: Any) -> None:
    def spread(beta: float) -> float:
        oracle = bayesian_oracle(16, num_initial_points=6, beta=beta)
        return float(np.std(values(search(oracle, valley, tmp_path / f"{beta}"))[6:]))

    assert spread(0.1) < 0.1 < spread(50.0)


def test_much_noise_is_seen_through(tmp_path: Any) -> None:
    noise = np.random.default_rng(0)

    def script(trial: Any) -> Any:
        return {"val_loss": valley(trial)["val_loss"] + 0.02 * noise.normal()}

    rates = values(search(bayesian_oracle(24), script, tmp_path))
    assert np.median(np.abs(np.array(rates[-8:]) - 0.3)) < 0.15


# --- kinds of hyperparameters --------------------------------------------------------


def build_every_kind(hp: keras_tuner.HyperParameters) -> None:
    hp.Float("plain", -1.0, 3.0)
    hp.Float("log", 1e-5, 1e-1, sampling="log")
    hp.Float("reverse", 1.0, 100.0, sampling="reverse_log")
    hp.Float("stepped", 0.0, 1.0, step=0.25)
    hp.Float("powers", 1e-4, 1e-1, step=10, sampling="log")
    hp.Int("int", 6, 13, step=3)
    hp.Int("log int", 1, 300, sampling="log")
    hp.Int("reverse int", 1, 20, sampling="reverse_log")
    hp.Choice("numbers", [64, 16, 32])
    kind = hp.Choice("kind", ["dense", "conv", "none"])
    flag = hp.Boolean("flag")
    hp.Fixed("fixed", 7)
    with hp.conditional_scope("kind", ["dense"]):
        if kind == "dense":
            hp.Int("units", 8, 64, step=8)
    with hp.conditional_scope("flag", [True]):
        if flag:
            hp.Choice("rare", ["x", "y", "z"])


def test_every_kind_of_hyperparameter(tmp_path: Any) -> None:
    hyperparameters = keras_tuner.HyperParameters()
    build_every_kind(hyperparameters)

    def script(trial: Any) -> Any:
        hp = trial.hyperparameters
        build_every_kind(hp)
        loss = abs(math.log10(hp.get("log")) + 3.0) + abs(hp.get("plain"))
        loss += {"dense": 0.0, "conv": 1.0, "none": 2.0}[hp.get("kind")]
        if hp.get("kind") == "dense":
            loss += abs(hp.get("units") - 32) / 64
        return {"val_loss": loss + (0.0 if hp.get("flag") else 0.5)}

    oracle = bayesian_oracle(30, hyperparameters=hyperparameters, num_initial_points=10)
    trials = search(oracle, script, tmp_path)
    for trial in trials:
        mine = trial.hyperparameters.values
        assert ("units" in mine) == (mine["kind"] == "dense")
        assert ("rare" in mine) == mine["flag"]
        for hp in trial.hyperparameters.space:
            if hp.name not in mine:
                continue
            value = mine[hp.name]
            if getattr(hp, "step", None) is not None or not hasattr(hp, "step"):
                assert value in list(hp.values)
            else:
                assert hp.min_value <= value <= hp.max_value
            assert type(value) is type(hp.default)
    assert values(trials[-8:], "kind").count("dense") >= 6
    assert min(trial.score for trial in trials[10:]) < 0.8
    assert min(t.score for t in trials[10:]) < min(t.score for t in trials[:10])


def test_a_space_may_grow(tmp_path: Any) -> None:
    def script(trial: Any) -> Any:
        hp = trial.hyperparameters
        loss = (hp.get("lr") - 0.3) ** 2
        if int(trial.trial_id) >= 8:
            loss += (hp.Float("late", 0.0, 1.0, default=1.0) - 0.6) ** 2
        return {"val_loss": loss}

    trials = search(bayesian_oracle(20, num_initial_points=4), script, tmp_path)
    late = values(trials, "late")
    assert late[:9] == [None] * 8 + [late[8]]
    assert len(set(late[9:])) > 5
    assert min(abs(value - 0.6) for value in late[9:]) < 0.1


def build_loop(hp: keras_tuner.HyperParameters) -> list[float]:
    """Hyperparameters in a loop, without a conditional scope."""
    return [hp.Float(f"x{number}", 0.0, 1.0) for number in range(hp.Int("n", 1, 3))]


def loop_loss(numbers: list[float]) -> float:
    return sum((number - 0.3) ** 2 for number in numbers) + abs(len(numbers) - 2)


def test_what_a_loop_did_not_ask_for_is_noted_and_does_not_matter(
    tmp_path: Any,
) -> None:
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.values["n"] = 3
    build_loop(hyperparameters)

    def script(trial: Any) -> Any:
        return {"val_loss": loop_loss(build_loop(trial.hyperparameters))}

    oracle = bayesian_oracle(24, hyperparameters=hyperparameters, num_initial_points=8)
    trials = search(oracle, script, tmp_path)
    for trial in trials:
        n = trial.hyperparameters.values["n"]
        names = {f"x{number}" for number in range(n, 3)}
        assert requested.unrequested(trial) == names
        assert len(trial.hyperparameters.values) == 4  # as KerasTuner has it
    assert min(trial.score for trial in trials) < 0.01
    used = [
        tuple(v for k, v in t.hyperparameters.values.items() if k not in names)
        for t, names in ((t, requested.unrequested(t)) for t in trials)
    ]
    assert len(set(used)) == len(trials)
    # It is known after a restart, too.
    again = bayesian_oracle(24, hyperparameters=hyperparameters)
    begun(again, tmp_path)
    assert all(
        requested.unrequested(again.trials[trial.trial_id])
        == requested.unrequested(trial)
        for trial in trials
    )


@pytest.mark.parametrize("result", ["history", "number"])
def test_a_tuner_sends_what_was_not_asked_for(result: str, tmp_path: Any) -> None:
    class Model(keras_tuner.HyperModel):
        def build(self, hp: Any) -> Any:
            self.numbers = build_loop(hp)
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
            return model

        def fit(self, hp: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            history = model.fit(*args, **kwargs)
            loss = loop_loss(self.numbers)
            return history if result == "history" else loss

    class Watcher(ktb.BayesianOptimization):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
            sent = super().run_trial(trial, *args, **kwargs)
            # What a worker would send to the chief, over all executions.
            for one in sent if isinstance(sent, list) else [sent]:
                metrics = getattr(one, "history", one)
                metrics = metrics if isinstance(metrics, dict) else {}
                n = trial.hyperparameters.values["n"]
                for number in range(3):
                    name = f"diagnosis/x{number}/unrequested"
                    known = f"x{number}" in trial.hyperparameters.values
                    assert (name in metrics) == (known and number >= n)
            return sent

    tuner = Watcher(
        Model(), keras_tuner.Objective("loss", "min"), 4, directory=tmp_path, seed=1
    )
    board = keras.callbacks.TensorBoard(tmp_path / "board")
    x = np.zeros((8, 1))
    # KerasTuner's HParams ask for every value, but not on behalf of the model.
    tuner.search(x, x, epochs=2, callbacks=[board], verbose=0)
    assert statuses(list(tuner.oracle.trials.values())) == ["COMPLETED"] * 4
    assert type(tuner.oracle) is oracles.BayesianOptimizationOracle


def test_a_trial_that_reads_its_values_at_once_uses_all_of_them(tmp_path: Any) -> None:
    trials = search(bayesian_oracle(2), valley, tmp_path)
    assert [requested.unrequested(trial) for trial in trials] == [set(), set()]


# --- what misleads -------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"val_loss": math.inf},
        {"val_loss": math.nan},
        stopped(math.nan),
        stopped(math.inf),
        {"val_loss": 1e10},
        {"val_loss": 1e308},
    ],
    ids=["inf", "nan", "stopped at nan", "stopped at inf", "1e10", "1e308"],
)
def test_few_proposals_go_where_training_diverges(bad: Any, tmp_path: Any) -> None:
    def script(trial: Any) -> Any:
        lr, units = values([trial])[0], values([trial], "units")[0]
        if lr > 0.5:
            return bad
        return {"val_loss": 1.0 + (lr - 0.35) ** 2 + (units - 0.5) ** 2}

    oracle = bayesian_oracle(24, hyperparameters=space("lr", "units"))
    trials = search(oracle, script, tmp_path)
    rates = values(trials)
    assert any(rate > 0.5 for rate in rates[:6])
    assert sum(rate > 0.5 for rate in rates[6:]) / len(rates[6:]) < 0.2
    best = min(t.score for t in trials if t.score is not None and t.score > 0.0)
    assert best < 1.01


def test_minus_infinity_is_no_success_when_maximising(tmp_path: Any) -> None:
    def script(trial: Any) -> Any:
        if values([trial])[0] > 0.5:
            return {"val_loss": -math.inf}
        return {"val_loss": -1.0 - valley(trial)["val_loss"]}

    objective = keras_tuner.Objective("val_loss", "max")
    oracle = bayesian_oracle(
        24, objective=objective, hyperparameters=space("lr", "units")
    )
    rates = values(search(oracle, script, tmp_path))
    assert sum(rate > 0.5 for rate in rates[6:]) / len(rates[6:]) < 0.2


def test_the_policy_decides_what_is_told(tmp_path: Any, monkeypatch: Any) -> None:
    told = []
    fit = gaussian.fit

    def spy(x: Any, y: Any, *args: Any) -> Any:
        told.append(y)
        return fit(x, y, *args)

    monkeypatch.setattr(gaussian, "fit", spy)
    monkeypatch.setattr(gaussian, "warp", np.asarray)
    script = [{"val_loss": 0.5}, {"val_loss": 3.0}, stopped(2.0, best=0.1)]
    expected = {"last": 2.0, "best": 0.1, "worst": 3.0, "censored": 2.0}
    for policy, value in expected.items():
        oracle = bayesian_oracle(4, num_initial_points=2, stopped_value=policy)
        search(oracle, in_turn(*script, {"val_loss": 1.0}), tmp_path / policy)
        assert told[-1].tolist() == [0.5, 3.0, value]
    oracle = bayesian_oracle(4, num_initial_points=2, stopped_value="skip")
    search(oracle, in_turn(*script, {"val_loss": 1.0}), tmp_path / "skip")
    assert told[-1].tolist() == [0.5, 3.0]


@pytest.mark.parametrize("points", [3, None])
def test_left_out_trials_count_as_initial_points(
    points: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    lengths = []
    fit = gaussian.fit

    def spy(x: Any, *args: Any) -> Any:
        lengths.append(len(x))
        return fit(x, *args)

    monkeypatch.setattr(gaussian, "fit", spy)
    oracle = bayesian_oracle(5, num_initial_points=points, stopped_value="skip")
    outcomes = [stopped(2.0), stopped(2.0), {"val_loss": 0.5}, {"val_loss": 0.4}]
    search(oracle, in_turn(*outcomes), tmp_path)
    # By default there are three for one hyperparameter, as in KerasTuner.
    assert lengths == [1, 2]


def test_a_failing_model_costs_a_warning_only(
    tmp_path: Any, monkeypatch: Any, caplog: Any
) -> None:
    def broken(*args: Any) -> Any:
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr(gaussian, "fit", broken)
    trials = search(bayesian_oracle(5, num_initial_points=2), valley, tmp_path)
    assert statuses(trials) == ["COMPLETED"] * 5
    assert "Trial 4 is drawn at random: LinAlgError('singular')" in caplog.text


# --- the same again ------------------------------------------------------------------


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("killed_in", [0, 3, 6, 9])
def test_a_resumed_search_suggests_what_it_would_have(
    killed_in: int, tmp_path: Any
) -> None:
    def make() -> Any:
        hyperparameters = space("lr", "units")
        hyperparameters.Choice("kind", ["a", "b", "c"])
        hyperparameters.Int("n", 1, 5)
        return bayesian_oracle(
            12, hyperparameters=hyperparameters, num_initial_points=5
        )

    def script(trial: Any) -> Any:
        mine = trial.hyperparameters.values
        if mine["kind"] == "c":
            return stopped(2.0)
        return {"val_loss": (mine["lr"] - 0.3) ** 2 + mine["units"] + 0.1 * mine["n"]}

    def until_killed(trial: Any) -> Any:
        if int(trial.trial_id) == killed_in:
            raise KilledError
        return script(trial)

    whole = search(make(), script, tmp_path / "whole")
    with pytest.raises(KilledError):
        search(make(), until_killed, tmp_path / "parts")
    parts = search(make(), script, tmp_path / "parts")
    assert [t.hyperparameters.values for t in parts] == [
        t.hyperparameters.values for t in whole
    ]


@pytest.mark.parametrize("seed", [0, 7])
def test_equal_seeds_give_equal_searches(seed: int, tmp_path: Any) -> None:
    def run(name: str, seed: int) -> list[Any]:
        oracle = bayesian_oracle(7, num_initial_points=3, seed=seed)
        return values(search(oracle, valley, tmp_path / name))

    first = run("first", seed)
    assert run("second", seed) == first
    assert run("other", seed + 1) != first


# --- several workers -----------------------------------------------------------------


def test_workers_are_sent_to_different_places(tmp_path: Any) -> None:
    oracle = begun(bayesian_oracle(40, hyperparameters=space("a", "b")), tmp_path)
    for _ in range(8):
        trial = oracle.create_trial("first")
        end(oracle, trial, valley(trial)["val_loss"])
    running = [oracle.create_trial(f"worker{number}") for number in range(6)]
    places = np.array([list(t.hyperparameters.values.values()) for t in running])
    apart = np.linalg.norm(places[:, None] - places, axis=2) + np.eye(6)
    assert apart.min() > 1e-4
    assert np.median(apart) > 0.02
    for trial in running:
        end(oracle, trial, valley(trial)["val_loss"])
    best = min(trial.score for trial in oracle.trials.values())
    assert best < 0.05


def test_a_trial_that_waits_to_be_run_again_tells_nothing(tmp_path: Any) -> None:
    oracle = begun(bayesian_oracle(9, num_initial_points=1), tmp_path)
    end(oracle, oracle.create_trial("one"), 1.0)
    lost = oracle.create_trial("two")
    again = begun(bayesian_oracle(9, num_initial_points=1), tmp_path)
    assert again.trials[lost.trial_id].status == "RUNNING"
    assert again.create_trial("two").trial_id == lost.trial_id
    assert again.create_trial("three").status == "RUNNING"


# --- small spaces --------------------------------------------------------------------


def test_a_small_space_is_searched_to_its_end(tmp_path: Any) -> None:
    hyperparameters = keras_tuner.HyperParameters()
    kind = hyperparameters.Choice("kind", ["a", "b"])
    hyperparameters.Int("n", 1, 3)
    with hyperparameters.conditional_scope("kind", ["b"]):
        hyperparameters.Boolean("flag")
    assert kind == "a"
    oracle = bayesian_oracle(
        None, hyperparameters=hyperparameters, num_initial_points=4
    )
    trials = search(oracle, in_turn({"val_loss": 0.5}), tmp_path)
    tried = {str(sorted(t.hyperparameters.values.items())) for t in trials}
    assert len(trials) == len(tried) == 3 + 3 * 2


def test_a_small_loop_is_searched_to_its_end(tmp_path: Any) -> None:
    def build(hp: Any) -> list[int]:
        return [hp.Int(f"x{number}", 1, 2) for number in range(hp.Int("n", 1, 2))]

    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.values["n"] = 2
    build(hyperparameters)

    def script(trial: Any) -> Any:
        return {"val_loss": float(sum(build(trial.hyperparameters)))}

    oracle = bayesian_oracle(
        None, hyperparameters=hyperparameters, num_initial_points=3
    )
    trials = search(oracle, script, tmp_path)
    # (1), (2), (1, 1), (1, 2), (2, 1), (2, 2), and nothing twice.
    assert len(trials) == 6


def test_without_anything_to_vary_there_is_one_trial(tmp_path: Any) -> None:
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Fixed("fixed", 3)
    oracle = bayesian_oracle(5, hyperparameters=hyperparameters)
    assert len(search(oracle, in_turn({"val_loss": 0.5}), tmp_path)) == 1


def test_of_many_trials_the_best_and_the_latest_are_fitted() -> None:
    scores = np.concatenate([np.arange(500.0), np.full(100, 1e3)])
    chosen = bayesian._most_telling(scores)
    assert len(chosen) == 400
    assert set(range(200)) | set(range(400, 600)) == set(chosen.tolist())
    assert len(bayesian._most_telling(scores[:300])) == 300


# --- KerasTuner ----------------------------------------------------------------------


def test_the_private_parts_of_kerastuner_we_lean_on_are_there() -> None:
    # Canary: `_duplicate` and `_random_values` are private.
    oracle = STOCK.RandomSearchOracle("val_loss", hyperparameters=space("lr"), seed=1)
    drawn = oracle._random_values()
    assert not oracle._duplicate(drawn)
    oracle._tried_so_far.add(oracle._compute_values_hash(drawn))
    assert oracle._duplicate(drawn)
