"""Tests of successive halving, and of trainings that go on after a promotion."""

from __future__ import annotations

import math
from typing import Any

import keras
import keras_tuner
import pytest
import rungs
from searches import (
    NAN,
    halving_oracle,
    in_turn,
    killed_and_resumed,
    promoted,
    search,
    search_in_parallel,
    space,
    statuses,
    stopped,
)

import kt_bttackler as ktb
from kt_bttackler import context, diagnosed, oracles, training_state


def by_rate(trial: Any) -> dict[str, float]:
    return {"val_loss": 1.0 + trial.hyperparameters.get("lr")}


def sizes(trials: list[Any]) -> list[int]:
    """How many trials ran in each round."""
    numbers = [trial.hyperparameters.values["tuner/round"] for trial in trials]
    return [numbers.count(number) for number in range(max(numbers) + 1)]


# --- the oracle --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_epochs": 9}, [(9, 1), (3, 3), (1, 9)]),
        ({"max_epochs": 9, "min_epochs": 2}, [(3, 3), (1, 9)]),
        ({"max_epochs": 9, "num_initial_trials": 20}, [(20, 1), (7, 3), (3, 9)]),
        ({"max_epochs": 9, "num_initial_trials": 2}, [(2, 1), (1, 3), (1, 9)]),
        ({"max_epochs": 10, "factor": 2}, [(8, 2), (4, 3), (2, 5), (1, 10)]),
        ({"max_epochs": 5, "min_epochs": 5}, [(1, 5)]),
        ({"max_epochs": 243}, [(243, 1), (81, 3), (27, 9), (9, 27), (3, 81), (1, 243)]),
    ],
)
def test_rounds(arguments: Any, expected: Any) -> None:
    assert oracles.SuccessiveHalvingOracle("val_loss", **arguments).rounds == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 1}, "`factor` must be at least 2, got 1"),
        ({"min_epochs": 0}, "`min_epochs` must be at least 1, got 0"),
        ({"max_epochs": 3, "min_epochs": 4}, "`max_epochs` must be at least 4, got 3"),
        ({"num_initial_trials": 0}, "`num_initial_trials` must be at least 1, got 0"),
        ({"stopped_value": "mean"}, "`stopped_value` must be one of"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oracles.SuccessiveHalvingOracle("val_loss", **arguments)


def test_it_understands_diagnosed_trials_by_itself() -> None:
    assert diagnosed(oracles.SuccessiveHalvingOracle) is oracles.SuccessiveHalvingOracle


@pytest.mark.parametrize("direction", ["min", "max"])
def test_the_best_of_each_round_go_on(direction: str, tmp_path: Any) -> None:
    objective = keras_tuner.Objective("val_loss", direction)
    oracle = oracles.SuccessiveHalvingOracle(
        objective, max_epochs=9, hyperparameters=space("lr"), seed=1
    )
    trials = search(oracle, by_rate, tmp_path)
    assert sizes(trials) == [9, 3, 1]
    ranked = sorted(trials[:9], key=lambda t: t.score, reverse=direction == "max")
    best = [trial.trial_id for trial in ranked]
    assert promoted(trials[9:12]) == set(best[:3])
    last = trials[-1].hyperparameters.values
    assert trials[-1].hyperparameters.get("lr") == ranked[0].hyperparameters.get("lr")
    assert (last["tuner/initial_epoch"], last["tuner/epochs"]) == (3, 9)
    assert (last["tuner/bracket"], last["tuner/round"]) == (2, 2)


@pytest.mark.parametrize("bad", [stopped(0.01), NAN, {"val_loss": math.inf}, None])
def test_bad_trials_keep_their_places_and_are_not_promoted(
    bad: Any, tmp_path: Any
) -> None:
    bad_ids = {"0000", "0001", "0004", "0009"}

    def script(trial: Any) -> Any:
        if trial.trial_id not in bad_ids:
            return by_rate(trial)
        if bad is None:
            raise RuntimeError("broken")
        return bad

    trials = search(halving_oracle(), script, tmp_path)
    assert sizes(trials) == [9, 3, 1]
    assert not promoted(trials) & bad_ids


def test_it_ends_when_every_trial_is_stopped(tmp_path: Any) -> None:
    trials = search(halving_oracle(), in_turn(stopped(math.nan)), tmp_path)
    assert statuses(trials) == ["STOPPED"] * 9


def test_the_budget_is_the_whole_one_in_every_round(tmp_path: Any) -> None:
    budgets = []

    def script(trial: Any) -> Any:
        budgets.append(context.running_trial().max_epochs)
        return by_rate(trial)

    search(halving_oracle(), script, tmp_path)
    assert set(budgets) == {9}


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1, 1, 1]), (4, [4, 2, 1]), (9, [9, 3, 1])]
)
def test_a_small_space_makes_the_rounds_smaller(
    count: int, expected: Any, tmp_path: Any
) -> None:
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Int("number", 1, count)
    oracle = halving_oracle(hyperparameters=hyperparameters)
    trials = search(
        oracle, lambda t: {"val_loss": t.hyperparameters.get("number")}, tmp_path
    )
    assert sizes(trials) == expected
    assert trials[-1].hyperparameters.get("number") == 1


@pytest.mark.parametrize("seed", range(4))
def test_workers_promote_the_same_trials(seed: int, tmp_path: Any) -> None:
    def script(trial: Any) -> Any:
        rate = trial.hyperparameters.get("lr")
        if trial.hyperparameters.values["tuner/round"] == 0 and rate > 0.8:
            return None if rate > 0.95 else stopped(0.01)
        return {"val_loss": 1.0 + rate}

    alone = search_in_parallel(halving_oracle(), script, tmp_path / "1", 1)
    trials = search_in_parallel(halving_oracle(), script, tmp_path / "5", 5, seed)
    assert sizes(trials) == sizes(alone) == [9, 3, 1]
    assert promoted(trials[:12]) == promoted(alone[:12])
    assert trials[-1].hyperparameters.get("lr") == alone[-1].hyperparameters.get("lr")


def facts(trials: list[Any]) -> list[Any]:
    return [(t.trial_id, t.status, t.score, t.hyperparameters.values) for t in trials]


@pytest.mark.parametrize("killed_in", [0, 5, 9, 12])
def test_a_search_that_was_killed_is_the_same_search(
    killed_in: int, tmp_path: Any
) -> None:
    def script(trial: Any) -> Any:
        return stopped() if trial.trial_id in ("0003", "0010") else by_rate(trial)

    alone = search(halving_oracle(), script, tmp_path / "alone")
    again = killed_and_resumed(halving_oracle, script, killed_in, tmp_path / "killed")
    assert facts(again) == facts(alone)


def test_a_resumed_search_keeps_its_rounds(tmp_path: Any) -> None:
    def make() -> Any:
        made.append(halving_oracle(max_epochs=9 if not made else 27))
        return made[-1]

    made: list[Any] = []
    trials = killed_and_resumed(make, by_rate, 3, tmp_path)
    assert sizes(trials) == [9, 3, 1]
    assert made[1].rounds == made[0].rounds


# --- states that are kept for promotions -------------------------------------------


def test_states_are_kept_as_long_as_a_promotion_may_need_them(tmp_path: Any) -> None:
    kept = []

    def script(trial: Any) -> Any:
        kept.append(rungs.states(tmp_path))
        folder = tmp_path / "p" / f"trial_{trial.trial_id}"
        training_state.path_of(folder, 0).touch()
        if trial.trial_id == "0002":
            return stopped()
        return {"val_loss": float(trial.trial_id)}

    search(halving_oracle(num_initial_trials=4, max_epochs=9), script, tmp_path)
    # Rounds of 4, 2 and 1. A stopped trial is not gone on with. Who was promoted is
    # needed until the promoted one has ended; the rest while there are places.
    assert kept == [
        set(),
        {"0000"},
        {"0000", "0001"},
        {"0000", "0001"},
        {"0000", "0001", "0003"},
        {"0001", "0003", "0004"},
        {"0004", "0005"},
    ]
    assert rungs.states(tmp_path) == set()


# --- trainings that go on ----------------------------------------------------------


@pytest.fixture(scope="module")
def halving(tmp_path_factory: Any) -> Any:
    """A search with real trainings of two executions each."""
    folder = tmp_path_factory.mktemp("halving")
    tuner = rungs.tuner(
        ktb.SuccessiveHalving, folder, num_initial_trials=2, executions_per_trial=2
    )
    return tuner, rungs.searched(tuner), folder


@pytest.mark.parametrize("execution", [0, 1])
def test_rungs_are_one_training_bit_for_bit(halving: Any, execution: int) -> None:
    tuner, ends, _ = halving
    (trial_id,) = rungs.finalists(tuner)
    assert len(rungs.lineage(tuner, trial_id)) == 3
    whole = rungs.uninterrupted(tuner, trial_id, execution)
    assert rungs.same(ends.values[trial_id, execution], whole)
    assert ends.epochs[trial_id, execution] == [3, 4]


def test_it_is_a_tuner_like_the_others(halving: Any) -> None:
    tuner, _, folder = halving
    assert statuses(list(tuner.oracle.trials.values())) == ["COMPLETED"] * 4
    assert rungs.states(folder) == set()
    traces = list(ktb.TraceStore(folder / "p"))
    assert {trace.max_epochs for trace in traces} == {4}
    with pytest.raises(ValueError, match="`hypermodel` must be given"):
        ktb.SuccessiveHalving(objective="val_loss", directory=folder)


class Kill(keras.callbacks.Callback):
    """Ends the process in the last epoch of the last trial."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 3:
            raise KeyboardInterrupt


def small(folder: Any, hypermodel: Any = rungs.build) -> Any:
    """Two trials of two epochs, the better of which is trained for two more."""
    return rungs.tuner(
        ktb.SuccessiveHalving,
        folder,
        hypermodel,
        min_epochs=2,
        num_initial_trials=2,
    )


def test_a_training_that_was_killed_goes_on_from_its_promotion(tmp_path: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        rungs.searched(small(tmp_path), Kill())
    tuner = small(tmp_path)
    ends = rungs.searched(tuner)
    assert list(ends.values) == [("0002", 0)]
    assert rungs.same(ends.values["0002", 0], rungs.uninterrupted(tuner, "0002"))
    assert rungs.states(tmp_path) == set()


def test_a_training_that_ended_early_goes_on_where_it_ended(tmp_path: Any) -> None:
    # The loss is never better by 9, so that every rung ends after two epochs.
    patience = keras.callbacks.EarlyStopping(min_delta=9, restore_best_weights=True)
    tuner = rungs.tuner(
        ktb.SuccessiveHalving, tmp_path, max_epochs=9, factor=3, min_epochs=3,
        num_initial_trials=1,
    )  # fmt: skip
    ends = rungs.searched(tuner, patience)
    assert ends.epochs == {("0000", 0): [1, 2], ("0001", 0): [3, 4]}


class LosesStates(keras.callbacks.Callback):
    """Deletes what was kept of each training."""

    def on_train_end(self, logs: Any = None) -> None:
        trial = context.running_trial()
        training_state.forget(trial.project_dir / f"trial_{trial.trial_id}")


def test_without_a_state_training_begins_anew(tmp_path: Any) -> None:
    tuner = rungs.tuner(
        ktb.SuccessiveHalving, tmp_path, min_epochs=2, num_initial_trials=1
    )
    with pytest.warns(RuntimeWarning, match="0001 is trained from its first epoch"):
        ends = rungs.searched(tuner, LosesStates())
    assert ends.epochs["0001", 0] == [1, 2, 3, 4]


class Folds(keras_tuner.HyperModel):
    """Trains models of its own, not the one that it is given."""

    def build(self, hp: Any) -> keras.Model:
        return rungs.build(hp)

    def fit(self, hp: Any, model: Any, *args: Any, **kwargs: Any) -> float:
        history = rungs.build(hp).fit(*args, **kwargs)
        return float(history.history["val_loss"][-1])


def test_models_of_the_users_own_are_trained_from_the_first_epoch(
    tmp_path: Any,
) -> None:
    with pytest.warns(RuntimeWarning, match="is trained from its first epoch"):
        ends = rungs.searched(small(tmp_path, Folds()))
    assert ends.epochs["0002", 0] == [1, 2, 3, 4]
