"""Tests of `kt_bttackler.oracles.space`: KerasTuner's kinds as coordinates."""

from __future__ import annotations

from typing import Any

import keras_tuner
import numpy as np
import pytest
from keras_tuner.engine import hyperparameters as kinds

from kt_bttackler.oracles.space import Axis, axes


def axis_of(kind: str, *args: Any, **kwargs: Any) -> Axis:
    hp = keras_tuner.HyperParameters()
    getattr(hp, kind)("x", *args, **kwargs)
    (axis,) = axes(hp.space)
    return axis


LISTED = {
    "int": (axis_of("Int", 3, 9), [3, 4, 5, 6, 7, 8, 9]),
    "int with step": (axis_of("Int", 6, 13, step=3), [6, 9, 12]),
    "int, log, step": (
        axis_of("Int", 2, 40, step=2, sampling="log"),
        [2, 4, 8, 16, 32],
    ),
    "int, reverse log, step": (
        axis_of("Int", 2, 32, step=4, sampling="reverse_log"),
        [32, 26, 2],
    ),
    "float with step": (axis_of("Float", 0, 1, step=0.25), [0, 0.25, 0.5, 0.75, 1]),
    "float, log, step": (
        axis_of("Float", 1e-3, 1, step=10, sampling="log"),
        [1e-3, 1e-2, 1e-1, 1],
    ),
    "ordered choice": (axis_of("Choice", [64, 16, 32, 16]), [16, 32, 64]),
    "choice": (axis_of("Choice", ["b", "a", "b"]), ["b", "a"]),
    "numbers without order": (axis_of("Choice", [3, 1], ordered=False), [3, 1]),
    "boolean": (axis_of("Boolean"), [False, True]),
}


@pytest.mark.parametrize("name", LISTED)
def test_listed_values_are_numbered(name: str) -> None:
    axis, values = LISTED[name]
    coordinates = range(int(axis.low), int(axis.high) + 1)
    decoded = [axis.decode(coordinate) for coordinate in coordinates]
    if axis.hp.__class__ is kinds.Int and axis.hp.sampling == "reverse_log":
        decoded, values = sorted(decoded), sorted(values)
    if isinstance(values[0], int | float):
        assert decoded == pytest.approx(values)
    else:
        assert decoded == values
    assert [axis.encode(axis.decode(c)) for c in coordinates] == list(coordinates)
    assert axis.find([axis.decode(c) for c in coordinates]) == list(coordinates)
    assert {type(value) for value in decoded} == {type(axis.hp.default)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ordered choice", "int"), ("choice", "category"), ("boolean", "category")],
)
def test_what_has_an_order_keeps_it(name: str, kind: str) -> None:
    assert LISTED[name][0].kind == kind


@pytest.mark.parametrize("sampling", ["linear", "log", "reverse_log"])
@pytest.mark.parametrize("kind", ["Int", "Float"])
def test_ranges_are_kept_to_their_ends(kind: str, sampling: str) -> None:
    axis = axis_of(kind, 1, 1000, sampling=sampling)
    number = int if kind == "Int" else float
    for coordinate in np.linspace(axis.low, axis.high, 101):
        value = axis.decode(coordinate if axis.kind == "float" else round(coordinate))
        assert type(value) is number
        assert 1 <= value <= 1000
        assert axis.decode(axis.encode(value)) == pytest.approx(value)
    assert {axis.decode(axis.low), axis.decode(axis.high)} == {1, 1000}
    assert (axis.encode(0.5), axis.encode(2000)) == (axis.encode(1), axis.encode(1000))


def test_a_huge_range_is_not_listed() -> None:
    axis = axis_of("Int", 0, 10**12)
    assert axis.decode(axis.encode(123_456_789)) == 123_456_789


def test_logarithmic_ranges_are_sampled_so() -> None:
    assert axis_of("Float", 1e-3, 1, sampling="log").log
    assert axis_of("Int", 1, 512, sampling="log").log
    # Half of the way on a reversed logarithm is near the upper end.
    assert axis_of("Float", 1, 100, sampling="reverse_log").decode(0.5) == 91


@pytest.mark.parametrize(
    ("axis", "value"),
    [
        (axis_of("Fixed", "adam"), "adam"),
        (axis_of("Choice", ["adam"]), "adam"),
        (axis_of("Int", 5, 5), 5),
        (axis_of("Int", 5, 6, step=2), 5),
        (axis_of("Int", 5, 5, sampling="log"), 5),
        (axis_of("Float", 0.5, 0.5), 0.5),
        (axis_of("Float", 0.5, 0.5, sampling="reverse_log"), 0.5),
    ],
)
def test_what_cannot_vary_is_constant(axis: Axis, value: Any) -> None:
    assert axis.kind == "constant"
    assert axis.decode(axis.encode(value)) == value


def test_values_that_a_worker_sent_are_found_again() -> None:
    # Over gRPC floats have 32 bits.
    for axis in (
        axis_of("Choice", [0.1, 0.01, 0.001]),
        axis_of("Float", 0, 1, step=0.1),
        axis_of("Float", 1e-3, 0.1, step=10, sampling="log"),
    ):
        for coordinate in range(int(axis.high) + 1):
            sent = float(np.float32(axis.decode(coordinate)))
            assert axis.encode(sent) == coordinate


def test_a_kind_of_the_users_is_sampled_by_probability() -> None:
    class Letter(kinds.HyperParameter):
        def prob_to_value(self, prob: float) -> str:
            return chr(ord("a") + int(prob * 25))

        def value_to_prob(self, value: str) -> float:
            return (ord(value) - ord("a") + 0.5) / 25

    (axis,) = axes([Letter("x")])
    assert (axis.kind, axis.low, axis.high) == ("float", 0, 1)
    assert axis.decode(axis.encode("m")) == "m"


def test_a_growing_space_keeps_its_keys() -> None:
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b"])
    with hp.conditional_scope("kind", ["a"]):
        hp.Int("size", 1, 3)
    before = axes(hp.space)
    with hp.conditional_scope("kind", ["b"]):
        hp.Float("size", 0.0, 1.0)
    after = axes(hp.space)
    assert [axis.key for axis in after[:2]] == [axis.key for axis in before]
    assert len({axis.key for axis in after}) == 3
    active = [axis.is_active({"kind": "b"}) for axis in after]
    assert active == [True, False, True]
