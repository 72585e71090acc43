"""`avoid_diagnosed`: proposals that would very likely be stopped are turned away."""

from __future__ import annotations

import copy
from typing import Any

import keras_tuner
import numpy as np
import pytest
from searches import in_turn, search, space, statuses, stopped, verdict

import kt_bttackler as ktb
from kt_bttackler import channel, oracles
from kt_bttackler.oracles import avoidance

ORACLES = [
    oracles.RandomSearchOracle,
    oracles.BayesianOptimizationOracle,
    oracles.TPEOracle,
]


def sick_right_half(trial: Any) -> Any:
    """Trials in the right half are stopped, with last values that tempt a search."""
    x = trial.hyperparameters.get("x")
    return stopped(last=0.0) if x > 0.5 else {"val_loss": abs(x - 0.45)}


def shares(
    folder: Any, cls: Any = oracles.RandomSearchOracle, trials: int = 60, **kwargs: Any
) -> float:
    """Share of the later half of the trials that were stopped."""
    oracle = cls("val_loss", trials, hyperparameters=space("x", "y"), seed=5, **kwargs)
    ended = search(oracle, sick_right_half, folder)
    assert len(ended) == trials
    return statuses(ended[trials // 2 :]).count("STOPPED") / (trials / 2)


@pytest.mark.parametrize("cls", ORACLES)
def test_later_trials_keep_away_and_a_tenth_explores(cls: Any, tmp_path: Any) -> None:
    # A stopped trial tells a lower loss than any other, so that all are tempted.
    kept_away = shares(tmp_path, cls, trials=40, avoid_diagnosed=True)
    assert kept_away <= 0.35


def test_without_it_nothing_is_turned_away(tmp_path: Any) -> None:
    assert shares(tmp_path / "a", trials=100) > 0.4
    explored = shares(tmp_path / "b", trials=100, avoid_diagnosed=True)
    assert 0.0 < explored < 0.25


def test_the_neighbourhood_of_the_best_trial_is_never_avoided(tmp_path: Any) -> None:
    oracle = oracles.RandomSearchOracle(
        "val_loss", 40, hyperparameters=space("x", "y"), seed=5
    )
    search(oracle, sick_right_half, tmp_path)
    best = oracle.get_best_trials()[0].hyperparameters.values
    given = {
        "trials": oracle.trials,
        "hyperparameters": oracle.hyperparameters,
        "direction": "min",
        "seed": 5,
    }
    near = {"x": best["x"] + 0.09, "y": best["y"]}
    far = {"x": 0.99, "y": best["y"]}
    assert near["x"] > 0.5, "it lies where trials are stopped"
    changed = 0
    for number in range(20):
        assert avoidance.instead(near, str(number), **given) == near
        instead = avoidance.instead(far, str(number), **given)
        changed += instead != far
        assert instead == avoidance.instead(far, str(number), **given)
        assert instead == far or instead["x"] < 0.6
    assert 14 <= changed < 20, "a tenth is not examined"


def test_few_trials_teach_nothing(tmp_path: Any) -> None:
    oracle = oracles.RandomSearchOracle(
        "val_loss", 8, hyperparameters=space("x"), seed=5, avoid_diagnosed=True
    )
    plain = oracles.RandomSearchOracle(
        "val_loss", 8, hyperparameters=space("x"), seed=5
    )
    values = [
        [t.hyperparameters.get("x") for t in search(each, sick_right_half, folder)]
        for each, folder in ((oracle, tmp_path / "a"), (plain, tmp_path / "b"))
    ]
    assert values[0] == values[1]


def test_a_small_space_is_still_searched_to_its_end(tmp_path: Any) -> None:
    values = keras_tuner.HyperParameters()
    values.Int("x", 0, 23)

    def script(trial: Any) -> Any:
        x = trial.hyperparameters.get("x")
        return stopped(2.0) if x > 11 else {"val_loss": float(x)}

    oracle = oracles.RandomSearchOracle(
        "val_loss", 24, hyperparameters=values, seed=1, avoid_diagnosed=True
    )
    plain = oracles.RandomSearchOracle("val_loss", 24, hyperparameters=values, seed=1)
    found = {t.hyperparameters.get("x") for t in search(oracle, script, tmp_path / "a")}
    usual = search(plain, script, tmp_path / "b")
    assert found >= set(range(12))
    assert len(found) >= len(usual) - 3


def test_choices_and_scopes_are_understood(tmp_path: Any) -> None:
    values = keras_tuner.HyperParameters()
    values.Choice("optimizer", ["sgd", "adam", "lion"])
    with values.conditional_scope("optimizer", ["sgd"]):
        values.Float("momentum", 0.0, 1.0)
    values.Float("rate", 1e-4, 1.0, sampling="log")

    def script(trial: Any) -> Any:
        ill = trial.hyperparameters.get("optimizer") == "sgd"
        return stopped(2.0) if ill else {"val_loss": 1.0}

    oracle = oracles.RandomSearchOracle(
        "val_loss", 60, hyperparameters=values, seed=1, avoid_diagnosed=True
    )
    ended = search(oracle, script, tmp_path)
    late = [trial.hyperparameters.values for trial in ended[30:]]
    assert sum(each["optimizer"] == "sgd" for each in late) <= 6
    for each in late:
        assert ("momentum" in each) == (each["optimizer"] == "sgd")


def test_hyperband_goes_on_with_the_trials_it_promotes(tmp_path: Any) -> None:
    def run(folder: Any, **kwargs: Any) -> list[Any]:
        oracle = oracles.HyperbandOracle(
            "val_loss", 9, 3, hyperparameters=space("x"), seed=1, **kwargs
        )
        return search(oracle, sick_right_half, folder)

    ended = run(tmp_path / "a", avoid_diagnosed=True)
    by_id = {trial.trial_id: trial for trial in ended}
    promoted = [t for t in ended if "tuner/trial_id" in t.hyperparameters.values]
    assert promoted
    for trial in promoted:
        before = by_id[trial.hyperparameters.values["tuner/trial_id"]]
        assert trial.hyperparameters.get("x") == before.hyperparameters.get("x")
    assert len(ended) == len(run(tmp_path / "b"))


def test_a_resumed_search_turns_the_same_away(tmp_path: Any) -> None:
    def oracle() -> Any:
        made = oracles.RandomSearchOracle(
            "val_loss",
            40,
            hyperparameters=space("x", "y"),
            seed=5,
            avoid_diagnosed=True,
        )
        made._set_project_dir(tmp_path, "p")
        return made

    def step(one: Any) -> Any:
        trial = one.create_trial("t")
        result = sick_right_half(trial)
        one.update_trial(trial.trial_id, result)
        trial.status = "COMPLETED"
        one.end_trial(trial)
        return trial.hyperparameters.values

    first = oracle()
    for _ in range(25):
        step(first)
    first.save()
    second = oracle()
    second.reload()
    second_values = [copy.copy(step(second)) for _ in range(5)]
    assert second_values == [step(first) for _ in range(5)]


def test_a_grid_is_visited_as_it_is(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="`avoid_diagnosed` must be False in a grid"):
        oracles.GridSearchOracle("val_loss", avoid_diagnosed=True)
    with pytest.raises(ValueError, match="`avoid_diagnosed` must be False in a grid"):
        ktb.GridSearch(
            lambda hp: None, "val_loss", directory=tmp_path, avoid_diagnosed=True
        )


def test_a_failure_costs_a_warning_and_no_proposal(
    tmp_path: Any, monkeypatch: Any, caplog: Any
) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("no forest")

    monkeypatch.setattr(avoidance, "instead", fail)
    oracle = oracles.RandomSearchOracle(
        "val_loss", 3, hyperparameters=space("x"), seed=5, avoid_diagnosed=True
    )
    assert len(search(oracle, sick_right_half, tmp_path)) == 3
    assert "Diagnosed trials are not avoided" in caplog.text


def test_scores_that_are_not_finite_are_no_best_trial(tmp_path: Any) -> None:
    oracle = oracles.RandomSearchOracle(
        "val_loss", 30, hyperparameters=space("x"), seed=5, avoid_diagnosed=True
    )
    outcomes = [stopped(2.0), {"val_loss": float("inf")}, {"val_loss": float("nan")}]
    ended = search(oracle, in_turn(*outcomes * 10), tmp_path)
    assert len(ended) == 30


def test_a_benign_stop_is_no_reason_to_keep_away(tmp_path: Any) -> None:
    def script(trial: Any) -> Any:
        benign = channel.encode(verdict("NMG"), {"val_loss": 0.3})
        ill = trial.hyperparameters.get("x") > 0.5
        return {"val_loss": 0.2} | benign if ill else {"val_loss": 0.5}

    oracle = oracles.RandomSearchOracle(
        "val_loss", 40, hyperparameters=space("x"), seed=5, avoid_diagnosed=True
    )
    ended = search(oracle, script, tmp_path)
    assert statuses(ended) == ["COMPLETED"] * 40
    assert np.mean([t.hyperparameters.get("x") > 0.5 for t in ended[20:]]) > 0.3
