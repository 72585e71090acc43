"""Tests of `kt_bttackler.oracles` in real searches whose trials are scripted."""

from __future__ import annotations

import collections
import copy
import json
import logging
import math
import pathlib
import threading
from typing import Any

import keras_tuner
import pytest
from keras_tuner.engine.trial import Trial
from searches import NAN, ScriptedTuner, search, space, statuses, stopped, verdict

from kt_bttackler import channel, context, diagnosed, oracles
from kt_bttackler.oracles.view import view

ALL = [
    oracles.RandomSearchOracle,
    oracles.GridSearchOracle,
    oracles.BayesianOptimizationOracle,
    oracles.HyperbandOracle,
]
STOCK = keras_tuner.oracles


def random_oracle(max_trials: int = 3, **kwargs: Any) -> Any:
    defaults = {"objective": "val_loss", "hyperparameters": space("lr"), "seed": 1}
    return oracles.RandomSearchOracle(max_trials=max_trials, **(defaults | kwargs))


def bayesian_oracle(max_trials: int, **kwargs: Any) -> Any:
    defaults = {"objective": "val_loss", "hyperparameters": space("lr"), "seed": 3}
    return oracles.BayesianOptimizationOracle(
        max_trials=max_trials, **(defaults | kwargs)
    )


def hyperband_oracle(**kwargs: Any) -> Any:
    kwargs = {"max_epochs": 9, "factor": 3, "hyperparameters": space("lr")} | kwargs
    return oracles.HyperbandOracle("val_loss", seed=1, **kwargs)


def in_turn(*outcomes: Any) -> Any:
    """A script in which the n-th trial has the n-th outcome; the last one repeats."""
    left = list(outcomes)
    return lambda trial: left.pop(0) if len(left) > 1 else left[0]


# --- the class -------------------------------------------------------------------


def test_the_same_class_comes_back_and_only_once() -> None:
    cls = diagnosed(STOCK.RandomSearchOracle)
    assert diagnosed(STOCK.RandomSearchOracle) is cls
    assert diagnosed(cls) is cls
    assert cls is oracles.RandomSearchOracle
    assert issubclass(cls, STOCK.RandomSearchOracle)
    assert cls.__name__ == "DiagnosedRandomSearchOracle"
    assert "stopped_value" in cls.__doc__
    assert "max_trials" in cls.__doc__


def test_positional_arguments_are_those_of_the_class() -> None:
    cls = oracles.BayesianOptimizationOracle
    oracle = cls("val_accuracy", 7, 2, stopped_value="skip")
    assert (oracle.max_trials, oracle.num_initial_points) == (7, 2)
    assert oracle.objective.direction == "max"
    assert oracle.stopped_value == "skip"


def test_a_class_of_the_user_is_diagnosed() -> None:
    class Mine(keras_tuner.Oracle):
        def populate_space(self, trial_id: str) -> dict[str, Any]:
            return {"status": "RUNNING", "values": self._random_values()}

    oracle = diagnosed(Mine)("val_loss", max_trials=2, hyperparameters=space("lr"))
    assert oracle.stopped_value == "last"
    assert isinstance(oracle, Mine)


@pytest.mark.parametrize("wrong", [int, "RandomSearchOracle", keras_tuner.Tuner, None])
def test_what_is_no_oracle_class_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="`oracle_class` must be"):
        diagnosed(wrong)


@pytest.mark.parametrize("cls", ALL)
def test_an_unknown_policy_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"`stopped_value` must be one of .*'mean'"):
        cls("val_loss", stopped_value="mean")


# --- what becomes of a trial -----------------------------------------------------


def test_a_harmful_verdict_stops_the_trial_with_its_last_value(tmp_path: Any) -> None:
    # The best epoch had 0.1, which is what KerasTuner scores.
    trials = search(random_oracle(), in_turn(stopped(last=2.0, best=0.1)), tmp_path)
    assert statuses(trials) == ["STOPPED"] * 3
    assert [trial.score for trial in trials] == [2.0] * 3
    assert trials[0].best_step == 2  # epoch 3, counted from 0
    expected = "ERG at epoch 3: median gradient ratio 4e-05 < 0.001, layer conv"
    assert trials[0].message == expected


@pytest.mark.parametrize("last", [math.nan, math.inf, -math.inf, None])
def test_a_last_value_that_is_not_finite_is_no_score(last: Any, tmp_path: Any) -> None:
    trials = search(random_oracle(), in_turn(stopped(last=last)), tmp_path)
    assert statuses(trials) == ["STOPPED"] * 3
    assert [trial.score for trial in trials] == [None] * 3


def test_a_benign_verdict_leaves_the_best_value(tmp_path: Any) -> None:
    script = in_turn(stopped(last=2.0, best=0.1, cause="NMG"))
    trial = search(random_oracle(1), script, tmp_path)[0]
    assert (trial.status, trial.score) == ("COMPLETED", 0.1)
    assert trial.message.startswith("NMG at epoch 3: ")


def test_a_healthy_trial_is_as_in_kerastuner(tmp_path: Any) -> None:
    healthy = {"val_loss": 0.4, **channel.encode(None, {})}
    for outcome in (healthy, {"val_loss": 0.4}, 0.4):
        oracle = random_oracle(1, objective="val_loss")
        trial = search(oracle, in_turn(outcome), tmp_path / str(outcome))[0]
        assert (trial.status, trial.score, trial.message) == ("COMPLETED", 0.4, None)


def test_the_last_value_of_several_objectives_is_their_sum(tmp_path: Any) -> None:
    objective = ["val_loss", keras_tuner.Objective("val_accuracy", "max")]
    last = {"val_loss": 3.0, "val_accuracy": 0.25}
    metrics = {"val_loss": 1.0, "val_accuracy": 0.5, "multi_objective": 0.5}
    metrics |= channel.encode(verdict(), last)
    trial = search(random_oracle(1, objective=objective), in_turn(metrics), tmp_path)[0]
    assert (trial.status, trial.score) == ("STOPPED", 2.75)


def test_nan_without_a_verdict_is_no_failure(tmp_path: Any) -> None:
    # KerasTuner ends a search at the third failed trial in a row, and a retry of a
    # trial with NaN is trained for nothing: its result is dropped.
    script = in_turn(NAN, NAN, NAN, NAN, {"val_loss": 0.5})
    trials = search(random_oracle(5, max_retries_per_trial=2), script, tmp_path)
    assert statuses(trials) == ["STOPPED"] * 4 + ["COMPLETED"]
    assert (trials[0].score, trials[0].message) == (None, "val_loss is nan")


@pytest.mark.parametrize("last", [2.0, math.nan])
def test_ten_diagnosed_trials_in_a_row_do_not_end_a_search(
    last: float, tmp_path: Any
) -> None:
    script = in_turn(*[stopped(last)] * 10, {"val_loss": 0.5})
    trials = search(random_oracle(12), script, tmp_path)
    assert statuses(trials) == ["STOPPED"] * 10 + ["COMPLETED"] * 2


def test_exceptions_fail_as_in_kerastuner(tmp_path: Any) -> None:
    def script(trial: Any) -> Any:
        raise keras_tuner.errors.FailedTrialError("too large")

    with pytest.raises(RuntimeError, match="consecutive failures"):
        search(random_oracle(5), script, tmp_path)


def test_a_malformed_message_costs_the_diagnosis_only(
    tmp_path: Any, caplog: Any
) -> None:
    metrics = {"val_loss": 0.5, "diagnosis/stopped": 1.0, "diagnosis/epoch": math.nan}
    with caplog.at_level(logging.WARNING):
        trials = search(random_oracle(2), in_turn(metrics), tmp_path)
    assert statuses(trials) == ["COMPLETED"] * 2
    assert "The diagnosis of trial 0 is lost" in caplog.text


def test_the_lock_is_free_after_a_search_with_faults(
    tmp_path: Any, monkeypatch: Any
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise OSError("broken")

    for place in ("context.RunningTrial.of", "oracles.view.view", "channel.decode"):
        monkeypatch.setattr(f"kt_bttackler.{place}", broken)
    oracle = random_oracle(2)
    trials = search(oracle, in_turn({"val_loss": 0.5}), tmp_path)
    assert statuses(trials) == ["COMPLETED"] * 2
    thread = threading.Thread(target=oracle.create_trial, args=("other",), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_best_trials_are_completed_then_stopped_by_last_value(tmp_path: Any) -> None:
    outcomes = [
        stopped(last=0.2),
        stopped(last=math.nan),
        {"val_loss": 0.9},
        stopped(last=0.1),
        {"val_loss": 0.5},
    ]
    oracle = random_oracle(5)
    search(oracle, in_turn(*outcomes), tmp_path)
    best = oracle.get_best_trials(4)
    assert [trial.score for trial in best] == [0.5, 0.9, 0.1, 0.2]
    assert [trial.score for trial in oracle.get_best_trials(9)][4:] == [None]
    assert len(oracle.get_best_trials()) == 1


def test_best_of_stopped_trials_only_when_maximising(tmp_path: Any) -> None:
    def accuracy(last: float) -> dict[str, float]:
        entries = channel.encode(verdict(), {"val_accuracy": last})
        return {"val_accuracy": 0.9} | entries

    script = in_turn(accuracy(0.1), accuracy(math.nan), accuracy(0.3))
    oracle = random_oracle(3, objective="val_accuracy")
    search(oracle, script, tmp_path)
    assert [trial.score for trial in oracle.get_best_trials(3)] == [0.3, 0.1, None]


# --- who runs --------------------------------------------------------------------


def test_the_running_trial_is_published_and_cleared(tmp_path: Any) -> None:
    seen = []

    def script(trial: Any) -> Any:
        running = context.running_trial()
        assert running is not None
        seen.append((running.trial_id, running.objective, running.direction))
        assert running.project_dir == pathlib.Path(tmp_path) / "p"
        assert running.hyperparameters == trial.hyperparameters.values
        assert running.max_epochs is None
        return {"val_loss": 0.5}

    search(random_oracle(2), script, tmp_path)
    assert seen == [("0", "val_loss", "min"), ("1", "val_loss", "min")]
    assert context.running_trial() is None


def test_hyperband_publishes_the_whole_budget(tmp_path: Any) -> None:
    budgets = []

    def script(trial: Any) -> Any:
        budgets.append(context.running_trial().max_epochs)
        return {"val_loss": 0.5}

    search(hyperband_oracle(), script, tmp_path)
    assert set(budgets) == {9}


def test_the_project_folder_of_an_oracle_is_where_we_look_for_it() -> None:
    # Canary: `_project_dir` and `_set_project_dir` are private.
    oracle = random_oracle()
    assert getattr(oracle, "_project_dir", None) is None
    assert isinstance(keras_tuner.Oracle._project_dir, property)


# --- what the algorithm is shown ---------------------------------------------------


def trial(
    status: str, score: float | None = None, best: float | None = None, key: str = "0"
) -> Any:
    made = Trial(keras_tuner.HyperParameters(), key, status)
    made.score = score
    if best is not None:
        made.metrics.register("val_loss", "min")
        made.metrics.update("val_loss", best)
    return made


MINIMUM = keras_tuner.Objective("val_loss", "min")


def told(stopped_value: str, direction: str = "min") -> list[Any]:
    trials = [
        trial("COMPLETED", 1.0, 1.0),
        trial("COMPLETED", 5.0, 5.0),
        trial("COMPLETED", 6.0, 6.0),
        trial("STOPPED", 2.0, 0.5),
        trial("STOPPED", 9.0, 3.0),
        trial("STOPPED", None, 0.25),
        trial("COMPLETED", math.inf, math.inf),
        trial("COMPLETED", math.nan, math.nan),
        trial("FAILED"),
    ]
    objective = keras_tuner.Objective("val_loss", direction)
    shown = view(dict(enumerate(trials)), (), objective, stopped_value).trials
    return [t.score if t.status == "COMPLETED" else None for t in shown.values()]


def test_policies_when_minimising() -> None:
    assert told("last") == [1, 5, 6, 2, 9, 9, 9, 9, None]
    assert told("best") == [1, 5, 6, 0.5, 3, 0.25, 9, 9, None]
    assert told("worst") == [1, 5, 6, 9, 9, 9, 9, 9, None]
    assert told("skip") == [1, 5, 6, None, None, None, 9, 9, None]
    assert told("censored") == [1, 5, 6, 5, 9, 9, 9, 9, None]


def test_policies_when_maximising() -> None:
    assert told("last", "max") == [1, 5, 6, 2, 9, 1, 1, 1, None]
    assert told("worst", "max") == [1, 5, 6, 1, 1, 1, 1, 1, None]
    assert told("censored", "max") == [1, 5, 6, 2, 5, 1, 1, 1, None]


def test_the_view_changes_no_trial() -> None:
    trials = {"0": trial("STOPPED", 2.0, 1.0), "1": trial("COMPLETED", math.inf)}
    before = {key: dict(vars(value)) for key, value in trials.items()}
    view(trials, (), MINIMUM, "last")
    assert {key: vars(value) for key, value in trials.items()} == before


def test_without_any_finite_value_trials_are_left_out() -> None:
    trials = {"0": trial("STOPPED"), "1": trial("COMPLETED", -math.inf)}
    seen = view(trials, (), MINIMUM, "last")
    assert (seen.completed, seen.left_out) == (0, 2)
    assert statuses(list(seen.trials.values())) == ["FAILED"] * 2


def test_a_trial_that_waits_to_be_run_again_is_not_shown() -> None:
    trials = {"0": trial("RUNNING", key="0"), "1": trial("RUNNING", key="1")}
    seen = view(trials, {"1"}, MINIMUM, "last")
    assert seen.trials["0"].status == "FAILED"
    # The same object: KerasTuner compares by identity who is ongoing.
    assert seen.trials["1"] is trials["1"]
    assert seen.left_out == 0


def test_the_oracle_is_as_before_after_a_suggestion(tmp_path: Any) -> None:
    oracle = bayesian_oracle(4, num_initial_points=2)
    trials = search(oracle, in_turn(stopped(math.nan)), tmp_path)
    assert oracle.num_initial_points == 2
    assert statuses(list(oracle.trials.values())) == ["STOPPED"] * 4
    assert all(oracle.trials[t.trial_id] is t for t in trials)


# --- Bayesian optimisation ---------------------------------------------------------


def test_stock_bayesian_optimisation_cannot_take_a_stopped_trial() -> None:
    # Canary: when KerasTuner can, the view may become smaller.
    oracle = STOCK.BayesianOptimizationOracle(
        "val_loss", num_initial_points=1, hyperparameters=space("lr")
    )
    oracle.trials = {"0": trial("STOPPED", 1.0), "1": trial("COMPLETED", 1.0)}
    with pytest.raises(UnboundLocalError):
        oracle.populate_space("2")


def test_bayesian_optimisation_survives_a_first_trial_that_was_stopped(
    tmp_path: Any,
) -> None:
    script = in_turn(stopped(2.0), {"val_loss": 1.0}, {"val_loss": 0.5})
    trials = search(bayesian_oracle(4, num_initial_points=2), script, tmp_path)
    assert statuses(trials) == ["STOPPED"] + ["COMPLETED"] * 3


def test_the_gaussian_process_gets_the_last_value(tmp_path: Any) -> None:
    oracle = bayesian_oracle(3, num_initial_points=2)
    search(oracle, in_turn({"val_loss": 0.5}, stopped(2.0, best=0.1), NAN), tmp_path)
    # The first two were fitted for the third; KerasTuner alone gives both 0.5.
    fitted = oracle.gpr.y_train_ * oracle.gpr._y_train_std + oracle.gpr._y_train_mean
    assert fitted == pytest.approx([0.5, 2.0])


@pytest.mark.parametrize("kind", ["verdict", "inf"])
def test_values_that_are_not_finite_do_not_attract_proposals(
    kind: str, tmp_path: Any
) -> None:
    bad = {"verdict": stopped(math.nan), "inf": {"val_loss": math.inf}}

    def script(trial: Any) -> Any:
        lr = trial.hyperparameters.get("lr")
        return bad[kind] if lr > 0.5 else {"val_loss": 1.0 + abs(lr - 0.25)}

    # Little exploration, so that eight proposals say enough.
    oracle = bayesian_oracle(16, num_initial_points=8, beta=1.0, seed=1)
    trials = search(oracle, script, tmp_path)
    rates = [trial.hyperparameters.get("lr") for trial in trials]
    assert any(rate > 0.5 for rate in rates[:8])
    proposed = rates[8:]
    # With NaN or infinity as 0, the best loss there is, it is above 80 %.
    assert sum(rate > 0.5 for rate in proposed) / len(proposed) < 0.2


def test_while_there_is_no_finite_value_suggestions_are_random(tmp_path: Any) -> None:
    oracle = bayesian_oracle(8, num_initial_points=3)
    trials = search(oracle, in_turn(stopped(math.nan)), tmp_path)
    assert statuses(trials) == ["STOPPED"] * 8
    assert not hasattr(oracle.gpr, "X_train_")
    assert len({trial.hyperparameters.get("lr") for trial in trials}) == 8


@pytest.mark.parametrize("points", [3, None])
def test_left_out_trials_count_as_initial_points(points: Any, tmp_path: Any) -> None:
    # None is KerasTuner's three per dimension, and at least three.
    oracle = bayesian_oracle(4, num_initial_points=points, stopped_value="skip")
    outcomes = [stopped(2.0), stopped(2.0), {"val_loss": 0.5}, {"val_loss": 0.4}]
    search(oracle, in_turn(*outcomes), tmp_path)
    # The fourth suggestion came from the Gaussian process, fitted to the third trial.
    assert oracle.gpr.X_train_.shape == (1, 1)


def test_kerastuner_makes_as_many_initial_points_as_we_think(tmp_path: Any) -> None:
    oracle = bayesian_oracle(8, hyperparameters=space("a", "b"))
    fitted = []

    def script(trial: Any) -> Any:
        fitted.append(hasattr(oracle.gpr, "X_train_"))
        return {"val_loss": 0.5}

    search(oracle, script, tmp_path)
    assert fitted == [False] * 6 + [True] * 2


# --- Hyperband ---------------------------------------------------------------------

# Rounds of the brackets of 9 epochs, halved by 3: 9, 3, 1; then 5, 2; then 3.
ROUNDS = {(2, 0): 9, (2, 1): 3, (2, 2): 1, (1, 0): 5, (1, 1): 2, (0, 0): 3}


def rounds(trials: list[Any]) -> dict[tuple[int, int], int]:
    """How many trials ran in each round of each bracket."""
    values = [trial.hyperparameters.values for trial in trials]
    return dict(
        collections.Counter((v["tuner/bracket"], v["tuner/round"]) for v in values)
    )


def promoted(trials: list[Any]) -> set[str]:
    return {trial.hyperparameters.values.get("tuner/trial_id") for trial in trials} - {
        None
    }


def healthy_except(is_bad: Any, bad: Any = None) -> Any:
    def script(trial: Any) -> Any:
        if is_bad(trial):
            return stopped(math.nan) if bad is None else bad
        return {"val_loss": 1.0 + trial.hyperparameters.get("lr")}

    return script


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


def test_the_best_rise(tmp_path: Any) -> None:
    script = healthy_except(lambda trial: trial.trial_id == "0001")
    trials = search(hyperband_oracle(), script, tmp_path)
    first = [t for t in trials[:9] if t.status == "COMPLETED"]
    best = {t.trial_id for t in sorted(first, key=lambda t: t.score)[:2]}
    assert best <= promoted(trials[:12])


@pytest.mark.parametrize("bad_round", [0, 1])
def test_a_round_of_stopped_trials_ends_its_bracket(
    bad_round: int, tmp_path: Any
) -> None:
    def is_bad(trial: Any) -> bool:
        values = trial.hyperparameters.values
        return (values["tuner/bracket"], values["tuner/round"]) == (2, bad_round)

    oracle = hyperband_oracle()
    trials = search(oracle, healthy_except(is_bad), tmp_path)
    expected = {k: v for k, v in ROUNDS.items() if k[0] < 2 or k[1] <= bad_round}
    assert rounds(trials) == expected
    by_id = {trial.trial_id: trial for trial in trials}
    assert {by_id[trial_id].status for trial_id in promoted(trials)} == {"COMPLETED"}


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


def test_nobody_healthy_loses_a_place_to_a_stopped_trial_that_ended_first(
    tmp_path: Any,
) -> None:
    # Several workers: seven trials end stopped while two healthy ones still run.
    oracle = hyperband_oracle()
    ScriptedTuner(oracle, lambda trial: None, directory=tmp_path, project_name="p")
    oracle.verbose = 0

    def end(trial: Any, outcome: dict[str, float]) -> None:
        oracle.update_trial(trial.trial_id, outcome)
        trial.status = "COMPLETED"
        oracle.end_trial(trial)

    started = [oracle.create_trial(f"worker{number}") for number in range(9)]
    for doomed in started[:7]:
        end(doomed, stopped(math.nan))
    # A tenth asks now: nobody may rise yet, so it is a trial of the next bracket.
    early = oracle.create_trial("worker0")
    assert early.hyperparameters.values["tuner/bracket"] == 1
    for healthy in started[7:]:
        end(healthy, {"val_loss": 1.0})
    risen = [oracle.create_trial(f"worker{number}") for number in (1, 2)]
    values = [trial.hyperparameters.values for trial in risen]
    assert [value["tuner/round"] for value in values] == [1, 1]
    assert {value["tuner/trial_id"] for value in values} == {"0007", "0008"}


def test_hyperband_of_kerastuner_still_has_the_parts_we_lean_on() -> None:
    # Canary: `_brackets` is private.
    oracle = hyperband_oracle()
    oracle.populate_space("0000")
    assert oracle._brackets == [
        {"bracket_num": 2, "rounds": [[{"past_id": None, "id": "0000"}], [], []]}
    ]


# --- resuming ----------------------------------------------------------------------


def facts(oracle: Any) -> dict[str, Any]:
    return {
        trial_id: (trial.status, trial.score, trial.message, trial.best_step)
        for trial_id, trial in oracle.trials.items()
    }


class Killed(BaseException):
    """Stands for the end of the process."""


def kill(trial: Any) -> Any:
    raise Killed


def search_until_killed(oracle: Any, outcomes: list[Any], folder: Any) -> None:
    """The process ends in the trial after `outcomes`."""
    left = list(outcomes)
    with pytest.raises(Killed):
        search(oracle, lambda trial: left.pop(0) if left else kill(trial), folder)


def restarted(make: Any, before: list[Any], after: list[Any], folder: Any) -> Any:
    """An oracle whose search was killed after `before` and resumed."""
    first = make()
    search_until_killed(first, before, folder)
    second = make()
    tuner = ScriptedTuner(second, in_turn(*after), directory=folder, project_name="p")
    done = {k: v for k, v in facts(first).items() if v[0] != "RUNNING"}
    assert {k: facts(second)[k] for k in done} == done
    tuner.search(verbose=0)
    assert {k: facts(second)[k] for k in done} == done
    return second


def test_a_resumed_search_goes_on(tmp_path: Any) -> None:
    def make() -> Any:
        return random_oracle(6, stopped_value="skip")

    before = [stopped(2.0), NAN, {"val_loss": 0.4}]
    oracle = restarted(make, before, [stopped(1.0), {"val_loss": 0.5}], tmp_path)
    expected = ["STOPPED", "STOPPED", "COMPLETED", "STOPPED", "COMPLETED", "COMPLETED"]
    assert statuses([oracle.trials[f"{number}"] for number in range(6)]) == expected
    assert oracle.stopped_value == "skip"


def test_a_resumed_bayesian_search_goes_on(tmp_path: Any) -> None:
    def make() -> Any:
        return bayesian_oracle(6, num_initial_points=2)

    before = [stopped(math.nan), {"val_loss": 0.4}, stopped(2.0)]
    oracle = restarted(make, before, [{"val_loss": 0.5}], tmp_path)
    assert len(oracle.trials) == 6


def test_a_resumed_hyperband_search_goes_on(tmp_path: Any) -> None:
    before = [stopped(math.nan)] * 8 + [{"val_loss": 0.4}] * 2
    oracle = restarted(hyperband_oracle, before, [{"val_loss": 0.5}], tmp_path)
    expected = ROUNDS | {(2, 1): 1, (2, 2): 1}
    assert rounds(list(oracle.trials.values())) == expected


def test_a_second_worker_is_not_told_of_a_trial_that_waits(tmp_path: Any) -> None:
    # The waiting trial is RUNNING without a tuner: KerasTuner alone would give it
    # the score of the trial before it.
    oracle = bayesian_oracle(6, num_initial_points=1)
    oracle.trials = {"0": trial("COMPLETED", 1.0), "1": trial("RUNNING", key="1")}
    for made in oracle.trials.values():
        made.hyperparameters = space("lr")
    oracle.populate_space("2")
    assert len(oracle.gpr.X_train_) == 1


def test_a_project_keeps_the_policy_it_began_with(tmp_path: Any, caplog: Any) -> None:
    search(random_oracle(2, stopped_value="worst"), in_turn(stopped()), tmp_path)
    oracle = random_oracle(2)
    ScriptedTuner(oracle, kill, directory=tmp_path, project_name="p")
    assert oracle.stopped_value == "worst"
    assert "begun with stopped_value='worst'" in caplog.text


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (STOCK.BayesianOptimizationOracle, oracles.BayesianOptimizationOracle),
        (oracles.BayesianOptimizationOracle, STOCK.BayesianOptimizationOracle),
        (STOCK.HyperbandOracle, oracles.HyperbandOracle),
        (oracles.HyperbandOracle, STOCK.HyperbandOracle),
    ],
)
def test_projects_are_exchanged_with_kerastuner(
    writer: Any, reader: Any, tmp_path: Any
) -> None:
    first = writer("val_loss", hyperparameters=space("lr"), seed=1)
    search_until_killed(first, [{"val_loss": 0.5}] * 3, tmp_path)
    second = reader("val_loss", hyperparameters=space("lr"), seed=1)
    search_until_killed(second, [{"val_loss": 0.4}] * 2, tmp_path)
    done = {k: v for k, v in facts(first).items() if v[0] == "COMPLETED"}
    assert {k: facts(second)[k] for k in done} == done
    assert statuses(list(second.trials.values())).count("COMPLETED") == 5


def test_state_is_strict_json(tmp_path: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    search(random_oracle(3), in_turn(stopped(2.0), stopped(None)), tmp_path)
    paths = list(pathlib.Path(tmp_path).glob("p/**/*.json"))
    assert len(paths) == 5  # oracle, tuner, three trials
    for path in paths:
        json.loads(path.read_text(), parse_constant=refuse)


def test_an_oracle_can_be_copied(tmp_path: Any) -> None:
    oracle = random_oracle(2, stopped_value="best")
    assert copy.deepcopy(oracle).stopped_value == "best"
