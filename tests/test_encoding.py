"""Tests of `kt_bttackler.oracles.encoding`: points among which distances mean much."""

from __future__ import annotations

from typing import Any

import keras_tuner
import numpy as np
import pytest

from kt_bttackler.oracles.encoding import Dimension, Space
from kt_bttackler.oracles.space import axes


def every_kind() -> keras_tuner.HyperParameters:
    """One hyperparameter of each kind."""
    hp = keras_tuner.HyperParameters()
    hp.Float("plain", -1.0, 3.0)
    hp.Float("log", 1e-5, 1e-1, sampling="log")
    hp.Float("reverse", 1.0, 100.0, sampling="reverse_log")
    hp.Float("stepped", 0.0, 1.0, step=0.1)
    hp.Float("log stepped", 1e-4, 1e-1, step=10, sampling="log")
    hp.Int("int", 1, 9)
    hp.Int("every third", 6, 13, step=3)
    hp.Int("log int", 1, 300, sampling="log")
    hp.Int("reverse int", 1, 20, sampling="reverse_log")
    hp.Int("powers", 2, 64, step=2, sampling="log")
    hp.Int("wide", 1, 10**6)
    hp.Choice("numbers", [64, 16, 32])
    hp.Choice("words", ["a", "b", "c"])
    hp.Choice("two", ["x", "y"])
    hp.Boolean("flag")
    hp.Fixed("fixed", 7)
    hp.Choice("single", ["only"])
    return hp


def dimension(name: str, optional: bool = False) -> Dimension:
    (axis,) = (axis for axis in axes(every_kind().space) if axis.name == name)
    return Dimension(axis, optional)


VARYING = [hp.name for hp in every_kind().space if hp.name not in ("fixed", "single")]
NONE: set[str] = set()


@pytest.mark.parametrize("name", VARYING)
def test_values_survive_the_way_to_places_and_back(name: str) -> None:
    one = dimension(name)
    for seed in range(50):
        value = one.axis.hp.random_sample(seed)
        place = one.place(value)
        assert place is not None
        assert 0.0 <= place <= 1.0
        back = one.value(place)
        assert type(back) is type(value)
        assert back == (pytest.approx(value) if isinstance(value, float) else value)
        assert one.snap(np.array([place]))[0] == pytest.approx(place, abs=1e-12)


@pytest.mark.parametrize("name", VARYING)
def test_every_place_is_near_a_value_of_the_space(name: str) -> None:
    one = dimension(name)
    places = np.linspace(0.0, 1.0, 101)
    for place, snapped in zip(places, one.snap(places), strict=True):
        assert one.value(place) == pytest.approx(one.value(snapped))
    low, high = one.ends
    assert one.columns(np.array([low, high]), np.array([True] * 2)).shape[0] == 2
    if one.ordered:
        ends = one.columns(np.array([low, high]), np.array([True, True]))
        assert ends.ravel().tolist() == [0.0, 1.0]


def test_all_values_are_equally_likely_to_be_drawn() -> None:
    hp = keras_tuner.HyperParameters()
    hp.Int("n", 1, 5)
    hp.Choice("word", ["a", "b", "c", "d"])
    places = Space(hp.space).draw(np.random.default_rng(0), 4000)
    for column, count in zip(places.T, (5, 4), strict=True):
        _, counts = np.unique(column, return_counts=True)
        assert len(counts) == count
        assert counts.min() > 0.85 * 4000 / count


def test_choices_without_order_are_at_equal_distances() -> None:
    one = dimension("words")
    places = np.array([one.place(word) for word in "abc"])
    corners = one.columns(places, np.ones(3, dtype=bool))
    apart = np.linalg.norm(corners[:, None] - corners, axis=2)
    assert apart == pytest.approx(1.0 - np.eye(3))


def test_numbers_to_choose_from_are_in_their_order() -> None:
    one = dimension("numbers")
    positions = [
        one.columns(np.array([one.place(n)]), None)[0, 0] for n in (16, 32, 64)
    ]
    assert positions == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", ["plain", "words", "flag", "int"])
def test_what_is_inactive_is_equally_far_from_everything(name: str) -> None:
    one = dimension(name, optional=True)
    places = one.snap(np.linspace(*one.ends, 7))
    there = one.columns(places, np.ones(7, dtype=bool))
    away = one.columns(places, np.zeros(7, dtype=bool))
    assert np.ptp(away, axis=0) == pytest.approx(0.0)
    assert np.linalg.norm(there - away, axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("optional", [False, True])
def test_the_slopes_of_the_columns(optional: bool) -> None:
    one = dimension("log", optional)
    ends = one.columns(np.array([0.4 - 1e-6, 0.4 + 1e-6]), np.ones(2, dtype=bool))
    assert one.slopes(0.4) == pytest.approx((ends[1] - ends[0]) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("value", ["z", None, 3])
def test_a_value_that_is_not_among_the_choices_has_no_place(value: Any) -> None:
    assert dimension("words").place(value) is None


# --- scopes --------------------------------------------------------------------------


def scoped() -> keras_tuner.HyperParameters:
    """Layers whose size depends on their kind, and one name in two scopes."""
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["dense", "conv", "none"])
    with hp.conditional_scope("kind", ["dense"]):
        hp.Int("units", 8, 64)
        hp.Boolean("bias")
        with hp.conditional_scope("bias", [True]):
            hp.Float("start", 0.0, 1.0)
    with hp.conditional_scope("kind", ["conv"]):
        hp.Int("units", 1, 4)
    return hp


def test_values_in_closed_scopes_are_nowhere_to_be_seen() -> None:
    trials = [
        {"kind": "none"},
        {"kind": "none", "units": 3, "bias": True, "start": 0.7},
        {"kind": "dense", "units": 8, "bias": False, "start": 0.2},
        {"kind": "dense", "units": 8, "bias": False},
        {"kind": "conv", "units": 3},
    ]
    space = Space(scoped().space, trials, [NONE] * 5)
    columns = space.columns(space.places, space.active)
    assert (columns[0] == columns[1]).all()
    assert (columns[2] == columns[3]).all()
    apart = np.linalg.norm(columns[:, None] - columns, axis=2)
    assert (apart[np.ix_([0, 2, 4], [0, 2, 4])] + np.eye(3) > 0.5).all()
    assert space.active.tolist()[4] == [True, False, False, False, True]


def test_only_what_is_in_scope_becomes_a_value() -> None:
    space = Space(scoped().space)
    points = space.draw(np.random.default_rng(0), 200)
    active = space.activity(points)
    for point, flags in zip(points, active, strict=True):
        values = space.values(point)
        again = Space(scoped().space, [values], [NONE])
        assert again.active[0].tolist() == flags.tolist()
        assert again.places[0][flags] == pytest.approx(point[flags])
        assert ("units" in values) == (values["kind"] != "none")
        assert ("start" in values) == (values.get("bias") is True)


def test_a_hyperparameter_that_is_newer_than_a_trial_was_inactive() -> None:
    hp = every_kind()
    space = Space(hp.space, [{"plain": 0.0}, dict(hp.values)], [NONE, NONE])
    assert space.active.sum(axis=1).tolist() == [1, len(VARYING)]
    assert all(each.optional for each in space.dimensions[1:])
    assert not space.dimensions[0].optional


# --- what nobody asked for -----------------------------------------------------------


def loop(layers: int, *units: int) -> dict[str, Any]:
    named = {f"units_{number}": size for number, size in enumerate(units)}
    return {"rate": 0.1 * sum(units) % 1.0, "layers": layers} | named


def loop_space() -> Any:
    hp = keras_tuner.HyperParameters()
    hp.Float("rate", 0.0, 1.0)
    hp.Int("layers", 1, 3)
    for number in range(3):
        hp.Int(f"units_{number}", 1, 9)
    return hp.space


def unread(layers: int) -> set[str]:
    return {f"units_{number}" for number in range(layers, 3)}


LOOPS = [loop(n, 1 + n, 9 - n, 4 + n) for n in (1, 2, 3)] + [
    loop(n, 9 - n, 2 + n, 5 - n) for n in (3, 1, 2)
]


def test_values_that_nobody_asked_for_are_nowhere_to_be_seen() -> None:
    trials = [*LOOPS, loop(1, 5, 1, 1), loop(1, 5, 9, 9)]
    trials[-1]["rate"] = trials[-2]["rate"]
    space = Space(loop_space(), trials, [unread(each["layers"]) for each in trials])
    columns = space.columns(space.places, space.active)
    assert (columns[-1] == columns[-2]).all()
    assert space.active[:, -1].tolist() == [t["layers"] == 3 for t in trials]


def test_when_a_value_is_asked_for_is_learnt() -> None:
    names = [unread(each["layers"]) for each in LOOPS]
    space = Space(loop_space(), LOOPS, names)
    points = space.draw(np.random.default_rng(0), 100)
    active = space.activity(points)
    for point, flags in zip(points, active, strict=True):
        layers = space.values(point)["layers"]
        assert flags.tolist() == [True, True, True, layers >= 2, layers >= 3]
        assert len(space.values(point)) == 5  # KerasTuner wants all of them


def test_a_trial_that_runs_asks_for_what_others_like_it_asked_for() -> None:
    names = [*(unread(each["layers"]) for each in LOOPS), None]
    space = Space(loop_space(), [*LOOPS, loop(1, 2, 2, 2)], names)
    assert space.active[-1].tolist() == [True, True, True, False, False]


def test_what_nobody_ever_asked_for_counts_as_read_in_another_way() -> None:
    space = Space(loop_space(), LOOPS, [{"rate", "units_0"}] * len(LOOPS))
    assert space.active.all()


def test_without_a_pattern_all_is_asked_for() -> None:
    random = np.random.default_rng(1)
    trials = [loop(2, *random.integers(1, 9, 3)) for _ in range(10)]
    names = [{"units_2"} if number % 2 else NONE for number in range(10)]
    space = Space(loop_space(), trials, names)
    points = space.draw(random, 50)
    # Either no rule at all, or one by what happened to fit; never an error.
    assert space.activity(points)[:, :4].all()


def test_a_space_without_anything_to_vary() -> None:
    hp = keras_tuner.HyperParameters()
    hp.Fixed("fixed", 7)
    space = Space(hp.space, [{"fixed": 7}], [NONE])
    points = space.draw(np.random.default_rng(0), 3)
    assert points.shape == (3, 0)
    assert space.values(points[0]) == {"fixed": 7}
    assert space.columns(points, space.activity(points)).shape == (3, 0)
