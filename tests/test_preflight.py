"""Tests of `preflight`: spaces whose sick regions are known."""

from __future__ import annotations

import json
import random
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest

import kt_bttackler as ktb
from kt_bttackler import files, surroundings
from kt_bttackler.forecast import Configuration, Cost, Forecast
from kt_bttackler.narrowing import narrower
from kt_bttackler.proposals import proposals

X = np.random.default_rng(0).normal(size=(96, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")


def build(hp: Any) -> keras.Model:
    """Broken with a window of 9, with a huge rate, with a softmax over one unit."""
    window = hp.Choice("window", [2, 3, 9])
    rate = hp.Float("rate", 1e-6, 1e15, sampling="log")
    units = hp.Choice("units", [2, 3, 4, 1])
    model = keras.Sequential(
        [
            keras.Input((6, 1)),
            keras.layers.Conv1D(2, window),
            keras.layers.Flatten(),
            keras.layers.Dense(units, activation="softmax"),
        ]
    )
    loss = "mse" if units == 1 else "sparse_categorical_crossentropy"
    # Eagerly: tracing a graph takes longer than such a training.
    model.compile(keras.optimizers.SGD(rate), loss, run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def found() -> Forecast:
    return ktb.preflight(
        build, X, Y, epochs=10, max_trials=50, batch_size=16,
        validation_data=(X[:40], Y[:40]), max_configurations=30,
    )  # fmt: skip


def test_every_configuration_fails_for_its_own_reason(found: Forecast) -> None:
    assert len(found.configurations) == 30
    for configuration in found.configurations:
        values = configuration.values
        if values["window"] == 9:
            assert configuration.outcome == "cannot be built"
            assert configuration.reason.startswith("ValueError: ")
            assert configuration.cost is None
        elif values["units"] == 1:
            # Its gradient is 0: no rate breaks it, and it learns at none.
            assert configuration.outcome == "cannot learn"
            assert "softmax over a single unit" in configuration.reason
        elif values["rate"] > 1e14:
            assert configuration.outcome in ("not finite", "explodes")
        elif values["rate"] < 0.1:
            assert configuration.outcome == "trains"
            assert configuration.reason == ""
    outcomes = {c.outcome for c in found.configurations}
    assert {"cannot be built", "cannot learn", "trains"} < outcomes


def test_default_and_corners_come_first(found: Forecast) -> None:
    kinds = [configuration.kind for configuration in found.configurations]
    assert kinds[:3] == ["default", "corner", "random"]  # the default is the lowest
    assert found.configurations[0].values == {
        "window": 2, "rate": 1e-6, "units": 2
    }  # fmt: skip
    assert {"window": 9, "rate": 1e-6, "units": 2} in [
        c.values for c in found.configurations if c.kind == "corner"
    ]


def test_costs_are_measured_and_add_up(found: Forecast) -> None:
    cost = found.configurations[0].cost
    assert cost is not None
    assert cost.steps == 6
    assert cost.validated
    # Of convolution and output layer; once more for the gradients, and the optimizer.
    parameters = (2 + 1) * 2 + (10 + 1) * 2
    assert cost.parameters == parameters
    assert 2 * 4 * parameters < cost.state_bytes < 2 * 4 * parameters + 100
    assert cost.epoch_seconds is not None
    assert cost.epoch_seconds > 6 * cost.step_seconds
    assert cost.trial_seconds(10) == pytest.approx(
        cost.start_seconds + 10 * cost.epoch_seconds
    )


def test_ranges_exclude_what_failed_and_keep_what_trains(found: Forecast) -> None:
    lines = {each.name: each.line for each in found.ranges}
    assert lines["window"] == 'hp.Choice("window", [2, 3])'
    assert "at 9: " in {each.name: each.because for each in found.ranges}["window"]
    for line in lines.values():  # they can be pasted
        eval(line, {"hp": keras_tuner.HyperParameters()})


def test_the_report_says_what_was_found_and_what_it_rests_on(found: Forecast) -> None:
    text = str(found)
    assert "30 configurations" in text
    for part in (
        "Cannot be built\n",
        "Cannot learn\n",
        "The whole search of 50 trials",
        "This rests on",
        'hp.Choice("window", [2, 3])',
    ):
        assert part in text
    content = json.loads(files.dumps(found.to_dict()))
    assert content["outcomes"]["trains"] == sum(
        c.outcome == "trains" for c in found.configurations
    )
    assert content["search_hours"] > 0
    assert len(content["configurations"]) == 30


def trained() -> list[np.ndarray]:
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(X, Y, batch_size=16, verbose=0)
    return [*model.get_weights(), keras.ops.convert_to_numpy(keras.random.normal((2,)))]


def test_nothing_is_left_behind(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def after(search_first: bool) -> Any:
        keras.utils.clear_session()
        keras.utils.set_random_seed(3)
        keras.layers.Dense(1)
        if search_first:
            ktb.preflight(build, X, Y, max_configurations=2, batch_size=48)
        drawn = random.random(), np.random.random()
        return drawn, keras.layers.Dense(1).name, trained()

    alone, behind = after(False), after(True)
    assert alone[:2] == behind[:2]
    for one, other in zip(alone[2], behind[2], strict=True):
        assert one.tobytes() == other.tobytes()
    assert list(tmp_path.iterdir()) == []


def test_what_is_private_in_keras_and_tensorflow_is_still_there() -> None:
    # Canary of `surroundings`.
    keras.utils.set_random_seed(3)
    assert surroundings.context.context()._rng is not None
    keras.layers.Dense(1)
    state = surroundings.global_state.GLOBAL_STATE_TRACKER.__dict__
    assert "dense" in state["object_name_uids"]
    keras.random.normal((1,))
    assert surroundings.GLOBAL_SEED_GENERATOR in state


def test_a_policy_stays_in_force_in_it() -> None:
    seen = []

    def of_policy(hp: Any) -> keras.Model:
        seen.append(keras.config.dtype_policy().name)
        raise ValueError("enough")

    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        ktb.preflight(of_policy, X, Y)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert seen == ["mixed_bfloat16"]  # there is nothing to vary


def test_the_hypermodel_trains_in_its_own_way() -> None:
    batches = []

    class Own(keras_tuner.HyperModel):
        def build(self, hp: Any) -> keras.Model:
            hp.Int("batch", 8, 32, step=8)
            model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse", run_eagerly=True)
            return model

        def fit(self, hp: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            batches.append(hp.get("batch"))
            return model.fit(*args, batch_size=hp.get("batch"), **kwargs)

    found = ktb.preflight(Own(), X, Y, max_configurations=3)
    steps = [c.cost.steps for c in found.configurations if c.cost]
    assert steps == [96 // batch for batch in batches]
    assert found.search_hours is None
    assert "`max_trials`" in str(found)


def test_a_fault_of_the_data_is_told_for_each_configuration() -> None:
    found = ktb.preflight(build, X, Y[:5], max_configurations=1)
    assert [c.outcome for c in found.configurations] == ["cannot be trained"]
    assert "\n" not in found.configurations[0].reason


def test_the_budget_of_time_is_kept() -> None:
    found = ktb.preflight(build, X, Y, seconds=1e-3)
    assert len(found.configurations) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        ({"epochs": 0}, ValueError, "`epochs` must be an integer of at least 1, got 0"),
        ({"seconds": 0}, ValueError, "`seconds` must be positive, got 0"),
        ({"hypermodel": 3}, TypeError, "`hypermodel` must be a function"),
    ],
)
def test_wrong_arguments_are_named(arguments: Any, error: Any, complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        ktb.preflight(**{"hypermodel": build, "x": X, "y": Y} | arguments)


# --- proposals ----------------------------------------------------------------------


def test_every_configuration_is_proposed_once_and_conditions_are_kept() -> None:
    space = keras_tuner.HyperParameters()
    space.Choice("kind", ["a", "b"])
    with space.conditional_scope("kind", ["b"]):
        space.Int("units", 1, 3)
    proposed = [values for _, values in proposals(space, seed=0)]
    assert len(proposed) == 4
    assert sorted(map(str, proposed)) == sorted(
        map(str, [{"kind": "a"}, *({"kind": "b", "units": n} for n in (1, 2, 3))])
    )


def test_what_a_later_build_declares_is_varied_too() -> None:
    space, seen = keras_tuner.HyperParameters(), []
    space.Choice("kind", ["a", "b"])
    for _, values in proposals(space, seed=0):
        seen.append(values)
        if len(seen) == 1:
            space.Boolean("late")
    assert {"kind": "b", "late": True} in seen


# --- ranges -------------------------------------------------------------------------


def space_of(declare: Any) -> Any:
    hp = keras_tuner.HyperParameters()
    declare(hp)
    return hp.get_config()["space"]


def test_both_ends_of_a_number_are_cut() -> None:
    space = space_of(lambda hp: hp.Int("units", 1, 20, step=1, default=10))
    values = [{"units": n} for n in range(1, 21)]
    outcomes = [None if 5 <= n <= 15 else "explode" for n in range(1, 21)]
    (cut,) = narrower(space, values, outcomes)
    assert cut.line == 'hp.Int("units", 5, 15, default=10)'
    assert cut.because == (
        "above 15: 5 explode, none trains; below 5: 4 explode, none trains"
    )


def test_few_failures_are_no_reason_to_cut() -> None:
    space = space_of(lambda hp: hp.Float("rate", 0.0, 1.0))
    values = [{"rate": n / 8} for n in range(8)]
    assert narrower(space, values, [None] * 7 + ["explodes"]) == ()
    # As many failures as successes, and all in disorder.
    assert narrower(space, values, [None, "explodes"] * 4) == ()
    assert narrower(space, values, ["explodes"] * 8) == ()


def test_one_cause_is_told_once() -> None:
    # The rate is at fault; the kind only goes along with it.
    space = space_of(lambda hp: (hp.Float("rate", 0.0, 1.0), hp.Choice("kind", "abc")))
    values = [{"rate": n / 20, "kind": "c" if n > 14 else "a"} for n in range(20)]
    outcomes = [None] * 12 + ["explodes"] * 8
    assert [cut.name for cut in narrower(space, values, outcomes)] == ["rate"]


def test_ways_to_fail_are_held_apart() -> None:
    # Half of all are broken by their kind, at every rate; the rest by the rate.
    space = space_of(lambda hp: (hp.Float("rate", 0.0, 1.0), hp.Choice("kind", "ab")))
    values = [{"rate": n / 20, "kind": "ab"[n % 2]} for n in range(20)]
    outcomes = [
        "cannot be built"
        if v["kind"] == "b"
        else "diverge"
        if v["rate"] > 0.5
        else None
        for v in values
    ]
    cuts = {cut.name: cut for cut in narrower(space, values, outcomes)}
    assert cuts["kind"].line == 'hp.Fixed("kind", "a")'
    assert cuts["rate"].line == 'hp.Float("rate", 0, 0.55)'
    assert cuts["rate"].because == "above 0.55: 4 diverge, none trains"


def test_choices_lose_their_bad_values() -> None:
    space = space_of(lambda hp: hp.Choice("kind", ["a", "b", "c"], default="b"))
    values = [{"kind": "abc"[n % 3]} for n in range(18)]
    outcomes = ["cannot be built" if v["kind"] == "c" else None for v in values]
    (cut,) = narrower(space, values, outcomes)
    assert cut.line == 'hp.Choice("kind", ["a", "b"], default="b")'


# --- predictions --------------------------------------------------------------------


def forecast(*kinds_outcomes_seconds: Any, **changes: Any) -> Forecast:
    made = []
    for kind, outcome, seconds in kinds_outcomes_seconds:
        cost = Cost(0.0, seconds / 100, seconds, 100, 10, 80, None, True)
        made.append(Configuration(kind, {}, outcome, "E: x", (), cost))
    defaults = {"epochs": 10, "max_trials": 90, "executions": 2, "seconds": 30.0}
    return Forecast(tuple(made), (), **(defaults | changes))


def test_hours_rest_on_random_configurations() -> None:
    found = forecast(
        ("corner", "trains", 900.0),
        ("random", "trains", 1.0),
        ("random", "trains", 3.0),
        ("random", "not finite", 2.0),
        ("random", "cannot be built", 0.0),
    )
    assert found.trial_seconds == (20.0, 60.0)
    expected, low, high = found.search_hours or (0.0, 0.0, 0.0)
    # One of four cannot be built.
    assert expected == pytest.approx(0.75 * 90 * 40 / 3600)
    error = 2 * np.std([20, 60], ddof=1) / np.sqrt(2) * 0.75 * 90 / 3600
    assert low == pytest.approx(max(0, expected - error))
    assert high == pytest.approx(expected + error)
    # One in three of what runs; nine of ten epochs.
    assert found.broken_share == pytest.approx(1 / 3)
    assert found.saved_hours == pytest.approx(0.75 / 3 * 0.9)


def test_without_random_configurations_all_count() -> None:
    found = forecast(("default", "trains", 1.0))
    assert found.trial_seconds == (20.0,)
    assert "nothing that is seen in a few steps" in str(found)
    assert forecast(("default", "cannot be built", 1.0)).search_hours is None
