"""Tests of Hyperband: its brackets among diagnosed trials, and what rises in them."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import keras_tuner
import pytest
import rungs
from searches import (
    NAN,
    ROUNDS,
    ScriptedTuner,
    end,
    hyperband_oracle,
    in_turn,
    killed_and_resumed,
    promoted,
    rounds,
    search,
    search_in_parallel,
    statuses,
    stopped,
)

import kt_bttackler as ktb
from kt_bttackler import oracles

STOCK = keras_tuner.oracles


def by_rate(trial: Any) -> dict[str, float]:
    return {"val_loss": 1.0 + trial.hyperparameters.get("lr")}


def healthy_except(is_bad: Any, bad: Any = None) -> Any:
    def script(trial: Any) -> Any:
        if is_bad(trial):
            return stopped(math.nan) if bad is None else bad
        return by_rate(trial)

    return script


# --- brackets ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [stopped(math.nan), stopped(0.01), NAN, {"val_loss": math.inf}]
)
@pytest.mark.parametrize("bad_ids", [(), (0,), (0, 3, 6, 13, 16)])
def test_brackets_keep_their_size(bad_ids: Any, bad: Any, tmp_path: Any) -> None:
    # With KerasTuner alone one stopped trial gives 9, 2, 0, every third 9, 0, 0.
    script = healthy_except(lambda trial: int(trial.trial_id) in bad_ids, bad)
    trials = search(hyperband_oracle(), script, tmp_path)
    assert rounds(trials) == ROUNDS
    assert not promoted(trials) & {f"{number:04d}" for number in bad_ids}


def test_trials_that_fail_keep_their_places_too(tmp_path: Any) -> None:
    bad_ids = {0, 1, 4, 10, 14}

    def script(trial: Any) -> Any:
        if int(trial.trial_id) in bad_ids:
            raise RuntimeError("broken")
        return by_rate(trial)

    trials = search(hyperband_oracle(), script, tmp_path)
    assert rounds(trials) == ROUNDS
    assert statuses(trials).count("FAILED") == len(bad_ids)
    assert not promoted(trials) & {f"{number:04d}" for number in bad_ids}


def test_a_trial_that_is_retried_has_not_ended(tmp_path: Any) -> None:
    failures = {"0000": 1, "0009": 1}

    def script(trial: Any) -> Any:
        if failures.pop(trial.trial_id, 0):
            raise RuntimeError("broken for once")
        return by_rate(trial)

    trials = search(hyperband_oracle(max_retries_per_trial=1), script, tmp_path)
    assert rounds(trials) == ROUNDS
    assert set(statuses(trials)) == {"COMPLETED"}


@pytest.mark.parametrize("direction", ["min", "max"])
def test_the_best_rise(direction: str, tmp_path: Any) -> None:
    oracle = hyperband_oracle()
    oracle.objective = keras_tuner.Objective("val_loss", direction)
    script = healthy_except(lambda trial: trial.trial_id == "0001")
    trials = search(oracle, script, tmp_path)
    sign = 1 if direction == "min" else -1
    for before, after in (((2, 0), (2, 1)), ((2, 1), (2, 2)), ((1, 0), (1, 1))):
        ranked = sorted(
            (t for t in in_round(trials, before) if t.status == "COMPLETED"),
            key=lambda trial: sign * trial.score,
        )
        risen = {
            t.hyperparameters.values["tuner/trial_id"] for t in in_round(trials, after)
        }
        assert risen == {trial.trial_id for trial in ranked[: ROUNDS[after]]}


def in_round(trials: list[Any], where: tuple[int, int]) -> list[Any]:
    def place(trial: Any) -> tuple[int, int]:
        values = trial.hyperparameters.values
        return values["tuner/bracket"], values["tuner/round"]

    return [trial for trial in trials if place(trial) == where]


def test_a_promoted_trial_is_told_where_it_goes_on(tmp_path: Any) -> None:
    trials = search(hyperband_oracle(), by_rate, tmp_path)
    epochs = {2: [1, 3, 9], 1: [3, 9], 0: [9]}
    for trial in trials:
        values = trial.hyperparameters.values
        planned = epochs[values["tuner/bracket"]]
        number = values["tuner/round"]
        assert values["tuner/epochs"] == planned[number]
        assert values["tuner/initial_epoch"] == (planned[number - 1] if number else 0)
        assert ("tuner/trial_id" in values) == (number > 0)
        if number:
            past = next(t for t in trials if t.trial_id == values["tuner/trial_id"])
            assert past.hyperparameters.get("lr") == trial.hyperparameters.get("lr")


@pytest.mark.parametrize("bad", [stopped(0.01), {"val_loss": math.inf}])
@pytest.mark.parametrize("bad_round", [0, 1])
def test_a_round_of_stopped_trials_ends_its_bracket(
    bad_round: int, bad: Any, tmp_path: Any
) -> None:
    def is_bad(trial: Any) -> bool:
        values = trial.hyperparameters.values
        return (values["tuner/bracket"], values["tuner/round"]) == (2, bad_round)

    oracle = hyperband_oracle()
    trials = search(oracle, healthy_except(is_bad, bad), tmp_path)
    expected = {k: v for k, v in ROUNDS.items() if k[0] < 2 or k[1] <= bad_round}
    assert rounds(trials) == expected
    # Infinity is no verdict, but there are no weights to go on with either.
    scores = [oracle.trials[trial_id].score for trial_id in promoted(trials)]
    assert scores
    assert all(score is not None and 1.0 <= score < 2.0 for score in scores)


def test_few_survivors_fill_what_they_can(tmp_path: Any) -> None:
    # Two of nine survive: both rise, and one of them reaches the last round.
    survivors = ("0004", "0005")

    def is_bad(trial: Any) -> bool:
        values = trial.hyperparameters.values
        first = (values["tuner/bracket"], values["tuner/round"]) == (2, 0)
        return first and trial.trial_id not in survivors

    trials = search(hyperband_oracle(), healthy_except(is_bad), tmp_path)
    assert rounds(trials) == ROUNDS | {(2, 1): 2}
    assert set(survivors) <= promoted(trials)


def test_hyperband_ends_when_every_trial_is_stopped(tmp_path: Any) -> None:
    oracle = hyperband_oracle(hyperband_iterations=2)
    trials = search(oracle, in_turn(stopped(math.nan)), tmp_path)
    assert rounds(trials) == {(2, 0): 18, (1, 0): 10, (0, 0): 6}
    assert statuses(trials) == ["STOPPED"] * 34


def test_healthy_searches_are_those_of_kerastuner(tmp_path: Any) -> None:
    def sequence(oracle: Any, name: str) -> list[Any]:
        trials = search(oracle, by_rate, tmp_path / name)
        return [trial.hyperparameters.values for trial in trials]

    stock = STOCK.HyperbandOracle(
        "val_loss",
        max_epochs=9,
        hyperband_iterations=2,
        seed=1,
        hyperparameters=hyperband_oracle().hyperparameters,
    )
    ours = hyperband_oracle(hyperband_iterations=2)
    assert sequence(ours, "ours") == sequence(stock, "stock")


def test_a_subclass_with_an_algorithm_of_its_own_keeps_it(tmp_path: Any) -> None:
    class Mine(STOCK.HyperbandOracle):
        def populate_space(self, trial_id: str) -> dict[str, Any]:
            asked.append(trial_id)
            return super().populate_space(trial_id)

    asked: list[str] = []
    oracle = ktb.diagnosed(Mine)(
        "val_loss", max_epochs=9, hyperparameters=hyperband_oracle().hyperparameters
    )
    trials = search(oracle, in_turn({"val_loss": 0.5}, stopped()), tmp_path)
    assert len(asked) >= len(trials) > 9
    assert statuses(trials).count("STOPPED") == len(trials) - 1


def test_hyperband_of_kerastuner_still_has_the_parts_we_lean_on() -> None:
    # Canary: all of these are private.
    oracle = hyperband_oracle()
    assert oracle._brackets == [{"bracket_num": 2, "rounds": [[], [], []]}]
    assert (oracle._current_bracket, oracle._current_iteration) == (2, 0)
    assert [oracle._get_size(2, number) for number in range(3)] == [9, 3, 1]
    assert [oracle._get_epochs(2, number) for number in range(3)] == [1, 3, 9]
    assert oracle._get_num_rounds(2) == 3
    oracle._increment_bracket_num()
    oracle._start_new_bracket()
    assert oracle._brackets[-1] == {"bracket_num": 1, "rounds": [[], []]}


# --- small spaces ------------------------------------------------------------------


def numbers(count: int) -> keras_tuner.HyperParameters:
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Int("number", 1, count)
    return hyperparameters


def by_number(trial: Any) -> dict[str, float]:
    return {"val_loss": float(trial.hyperparameters.get("number"))}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        # KerasTuner alone ends without any promotion as long as there are under 9.
        (1, {(2, 0): 1, (2, 1): 1, (2, 2): 1}),
        (3, {(2, 0): 3, (2, 1): 1, (2, 2): 1}),
        (6, {(2, 0): 6, (2, 1): 2, (2, 2): 1}),
        (9, {(2, 0): 9, (2, 1): 3, (2, 2): 1}),
        (11, {(2, 0): 9, (2, 1): 3, (2, 2): 1, (1, 0): 2, (1, 1): 1}),
        (16, ROUNDS | {(0, 0): 2}),
        (17, ROUNDS),
    ],
)
def test_a_small_space_does_not_end_the_search_early(
    count: int, expected: Any, tmp_path: Any
) -> None:
    oracle = hyperband_oracle(hyperparameters=numbers(count))
    trials = search(oracle, by_number, tmp_path)
    assert rounds(trials) == expected
    first = [t for t in trials if t.hyperparameters.values["tuner/round"] == 0]
    tried = [t.hyperparameters.get("number") for t in first]
    assert sorted(tried) == list(range(1, count + 1))
    assert oracle.get_best_trials()[0].hyperparameters.get("number") == 1
    best = [t for t in trials if t.hyperparameters.get("number") == 1]
    assert max(t.hyperparameters.values["tuner/epochs"] for t in best) == 9


def test_a_small_space_with_conditions_is_tried_to_its_end(tmp_path: Any) -> None:
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Choice("kind", ["a", "b"])
    hyperparameters.Fixed("always", 3)
    with hyperparameters.conditional_scope("kind", ["b"]):
        hyperparameters.Boolean("flag")
        hyperparameters.Float("rate", 0.0, 1.0, step=0.5)
    oracle = hyperband_oracle(hyperparameters=hyperparameters)
    trials = search(oracle, in_turn({"val_loss": 0.5}), tmp_path)
    first = [t for t in trials if t.hyperparameters.values["tuner/round"] == 0]
    assert len(first) == 1 + 2 * 3
    assert rounds(trials) == {(2, 0): 7, (2, 1): 3, (2, 2): 1}


def test_a_space_that_the_first_trial_makes_known_is_searched(tmp_path: Any) -> None:
    # KerasTuner's Hyperband takes the empty values of the first trial for none.
    def script(trial: Any) -> Any:
        return {"val_loss": trial.hyperparameters.Float("lr", 0.0, 1.0)}

    oracle = oracles.HyperbandOracle("val_loss", max_epochs=9, seed=1)
    assert rounds(search(oracle, script, tmp_path)) == ROUNDS


# --- workers, and processes that end -----------------------------------------------


def test_nobody_healthy_loses_a_place_to_a_stopped_trial_that_ended_first(
    tmp_path: Any,
) -> None:
    # Several workers: seven trials end stopped while two healthy ones still run.
    oracle = hyperband_oracle()
    ScriptedTuner(oracle, lambda trial: None, directory=tmp_path, project_name="p")
    oracle.verbose = 0
    started = [oracle.create_trial(f"worker{number}") for number in range(9)]
    for doomed in started[:7]:
        end(oracle, doomed, in_turn(stopped(math.nan)))
    # A tenth asks now: nobody may rise yet, so it is a trial of the next bracket.
    early = oracle.create_trial("worker0")
    assert early.hyperparameters.values["tuner/bracket"] == 1
    for healthy in started[7:]:
        end(oracle, healthy, in_turn({"val_loss": 1.0}))
    risen = [oracle.create_trial(f"worker{number}") for number in (1, 2)]
    values = [trial.hyperparameters.values for trial in risen]
    assert [value["tuner/round"] for value in values] == [1, 1]
    assert [value["tuner/bracket"] for value in values] == [2, 2]
    assert {value["tuner/trial_id"] for value in values} == {"0007", "0008"}


@pytest.mark.parametrize("seed", range(4))
def test_workers_fill_the_same_rounds_with_the_best(seed: int, tmp_path: Any) -> None:
    def script(trial: Any) -> Any:
        rate = trial.hyperparameters.get("lr")
        if trial.hyperparameters.values["tuner/round"] == 0 and rate > 0.8:
            return None if rate > 0.95 else stopped(0.01)
        return {"val_loss": 1.0 + rate}

    trials = search_in_parallel(hyperband_oracle(), script, tmp_path, 5, seed)
    assert rounds(trials) == ROUNDS
    for where in ((2, 1), (2, 2), (1, 1)):
        before = in_round(trials, (where[0], where[1] - 1))
        ranked = sorted(
            (t for t in before if t.status == "COMPLETED"), key=lambda t: t.score
        )
        risen = promoted(in_round(trials, where))
        assert risen == {t.trial_id for t in ranked[: ROUNDS[where]]}


@pytest.mark.parametrize("count", [1, 6, 11])
def test_workers_search_a_small_space_to_its_end(count: int, tmp_path: Any) -> None:
    oracle = hyperband_oracle(hyperparameters=numbers(count))
    trials = search_in_parallel(oracle, by_number, tmp_path)
    best = [t for t in trials if t.hyperparameters.get("number") == 1]
    assert max(t.hyperparameters.values["tuner/epochs"] for t in best) == 9
    first = [t for t in trials if t.hyperparameters.values["tuner/round"] == 0]
    assert len(first) == count


def facts(trials: list[Any]) -> list[Any]:
    return [(t.trial_id, t.status, t.score, t.hyperparameters.values) for t in trials]


@pytest.mark.parametrize("killed_in", [0, 4, 9, 12, 13, 22])
def test_a_search_that_was_killed_is_the_same_search(
    killed_in: int, tmp_path: Any
) -> None:
    script = healthy_except(lambda trial: trial.trial_id in ("0002", "0010"))
    alone = search(hyperband_oracle(), script, tmp_path / "alone")
    again = killed_and_resumed(hyperband_oracle, script, killed_in, tmp_path / "killed")
    assert facts(again) == facts(alone)


@pytest.mark.parametrize("killed_in", [2, 6, 8])
def test_a_small_space_is_resumed(killed_in: int, tmp_path: Any) -> None:
    def make() -> Any:
        return hyperband_oracle(hyperparameters=numbers(6))

    alone = search(make(), by_number, tmp_path / "alone")
    again = killed_and_resumed(make, by_number, killed_in, tmp_path / "killed")
    assert facts(again) == facts(alone)


def test_state_is_strict_json_without_a_limit_of_iterations(tmp_path: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    oracle = hyperband_oracle(hyperband_iterations=None)
    oracle.max_trials = 30
    assert len(search(oracle, by_rate, tmp_path)) == 30
    text = (pathlib.Path(tmp_path) / "p" / "oracle.json").read_text()
    json.loads(text, parse_constant=refuse)
    resumed = hyperband_oracle(hyperband_iterations=None)
    resumed.max_trials = 50
    assert len(search(resumed, by_rate, tmp_path)) == 50


# --- trainings that go on ----------------------------------------------------------


@pytest.fixture(scope="module")
def hyperband(tmp_path_factory: Any) -> Any:
    """A search with real trainings: tuner, what they ended with, folder."""
    folder = tmp_path_factory.mktemp("hyperband")
    tuner = rungs.tuner(ktb.Hyperband, folder, max_epochs=3, factor=3)
    return tuner, rungs.searched(tuner), folder


def test_rungs_are_one_training_bit_for_bit(hyperband: Any) -> None:
    tuner, ends, _ = hyperband
    (trial_id,) = rungs.finalists(tuner)
    whole = rungs.uninterrupted(tuner, trial_id)
    assert rungs.same(ends.values[trial_id, 0], whole)


def test_traces_begin_where_their_training_went_on(hyperband: Any) -> None:
    tuner, _, folder = hyperband
    for trial_id, trial in tuner.oracle.trials.items():
        values = trial.hyperparameters.values
        trace = ktb.TraceStore(folder / "p" / f"trial_{trial_id}").trial(trial_id)
        first = values["tuner/initial_epoch"]
        assert trace.header.initial_epoch == first
        epochs = [record.epoch for record in trace.records]
        assert epochs == list(range(first + 1, values["tuner/epochs"] + 1))
        assert trace.max_epochs == 3


def test_no_state_is_left_in_the_end_but_the_best_weights_are(hyperband: Any) -> None:
    tuner, _, folder = hyperband
    assert rungs.states(folder) == set()
    for trial_id in tuner.oracle.trials:
        assert (folder / "p" / f"trial_{trial_id}" / "checkpoint.weights.h5").exists()
    (trial_id,) = rungs.finalists(tuner)  # its predecessor has no state any more
    trial = tuner.oracle.trials[trial_id]
    loss = tuner.load_model(trial).evaluate(rungs.X, rungs.Y, verbose=0)
    assert loss == pytest.approx(trial.score, rel=1e-4)
