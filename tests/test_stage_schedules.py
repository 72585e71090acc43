"""Tests of schedules: their values, their hyperparameters, where they part."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import subprocess
import sys
from typing import Any

import keras_tuner
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_bttackler import stages
from kt_bttackler.stages import Range, schedule, schedules


def values(epochs: int, kind: Any, /, **options: Any) -> list[float]:
    made = schedule(None, "rate", kind, **options)
    assert made == made.at(0)
    return [made.at(epoch) for epoch in range(epochs)]


def test_constant() -> None:
    assert values(3, "constant", value=0.1) == [0.1] * 3


def test_step() -> None:
    assert values(5, "step", start=0.1, milestones=(1, 3), factor=0.1) == [
        0.1,
        0.01,
        0.01,
        0.001,
        0.001,
    ]
    assert values(4, "step", start=1, milestones=(1, 2), factor=(2, 5)) == [
        1,
        2,
        10,
        10,
    ]


def test_step_sorts_its_milestones() -> None:
    assert values(4, "step", start=8, milestones=(3, 1), factor=0.5) == [8, 4, 4, 2]


def test_piecewise_keeps_whole_numbers() -> None:
    found = values(4, "piecewise", values=(32, 128), boundaries=2)
    assert found == [32, 32, 128, 128]
    assert all(type(value) is int for value in found)


def test_exponential() -> None:
    assert values(5, "exponential", start=1.0, rate=0.5, every=2) == [
        1,
        1,
        0.5,
        0.5,
        0.25,
    ]


def test_warmup() -> None:
    then = {"kind": "step", "start": 0.3, "milestones": 2, "factor": 0.1}
    assert values(6, "warmup", epochs=2, then=then) == [0.1, 0.2, 0.3, 0.3, 0.03, 0.03]


def test_cosine() -> None:
    found = values(6, "cosine", start=1.0, epochs=4, end=0.2)
    expected = [0.2 + 0.4 * (1 + math.cos(math.pi * e / 4)) for e in range(5)]
    assert found == pytest.approx([*expected, 0.2], abs=1e-11)


def test_cosine_restarts() -> None:
    found = values(7, "cosine_restarts", start=1.0, restarts=(2,), epochs=6)
    half, quarter = 0.5, (1 + math.sqrt(0.5)) / 2
    expected = [1, half, 1, quarter, half, 1 - quarter, 0]
    assert found == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(
    ("shape", "decay"),
    [
        ("linear", [0.75, 0.5, 0.25, 0]),
        ("cosine", [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(1, 5)]),
        ("sqrt", [1 - math.sqrt(n / 4) for n in range(1, 5)]),
    ],
)
def test_warmup_stable_decay(shape: str, decay: list[float]) -> None:
    found = values(
        9, "wsd", peak=1.0, warmup=1, decay_start=3, decay_epochs=3, shape=shape
    )
    assert found == pytest.approx([0.5, 1, 1, *decay, 0, 0], abs=1e-11)


def test_custom() -> None:
    assert values(
        3, "custom", function=lambda epoch, low: low / (epoch + 1), low=6
    ) == [
        6,
        3,
        2,
    ]


def test_values_have_twelve_digits() -> None:
    assert values(2, "step", start=0.1, milestones=1, factor=0.1) == [0.1, 0.01]
    assert 0.1 * 0.1 != 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "steps"}, "`kind` must be one of"),
        ({"kind": "constant", "value": math.nan}, "`value` must be a finite number"),
        ({"kind": "constant", "value": True}, "`value` must be a finite number"),
        ({"kind": "constant", "value": []}, "`value` must be a finite number"),
        (
            {"kind": "step", "start": 1, "milestones": 0, "factor": 1},
            "`milestone` must be a whole number of at least 1, got 0.",
        ),
        (
            {"kind": "step", "start": 1, "milestones": (1, 2, 3), "factor": (1, 2)},
            "`factor` must be one factor or as many",
        ),
        (
            {"kind": "piecewise", "values": (1, 2), "boundaries": (1, 2)},
            "`values` must be one more than",
        ),
        (
            {
                "kind": "wsd",
                "peak": 1,
                "decay_start": 1,
                "decay_epochs": 1,
                "shape": "x",
            },
            "`shape` must be",
        ),
        (
            {
                "kind": "wsd",
                "peak": 1,
                "decay_start": 1,
                "decay_epochs": 2,
                "warmup": 2,
            },
            "`decay_start` must be a whole number of at least 2, got 1.",
        ),
    ],
)
def test_mistakes_are_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(None, "rate", **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0), "`high` must be above `low`"),
        ((0, 1, "log"), "`low` must be positive"),
        ((0, 1, "cubic"), "`sampling` must be"),
        ((0, 1, "linear", 1), "`levels` must be at least 2"),
    ],
)
def test_mistakes_of_a_range_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Range(*arguments)


def test_options_are_ordinary_hyperparameters() -> None:
    hp = keras_tuner.HyperParameters()
    made = schedule(
        hp,
        "rate",
        "step",
        start=Range(1e-3, 1e-1, "log"),
        milestones=([10, 15], 20),
        factor=Range(0.1, 0.5, levels=3),
    )
    described = {each.name: type(each).__name__ for each in hp.space}
    assert described == {
        "rate/start": "Float",
        "rate/milestone_1": "Choice",
        "rate/factor": "Choice",
    }
    assert hp.space[2].values == [0.1, 0.3, 0.5]
    assert {f"rate/{key}": value for key, value in made.chosen.items()} == hp.values
    hp.values.update({"rate/milestone_1": 15, "rate/factor": 0.5, "rate/start": 0.04})
    again = schedule(hp, "rate", "step", start=Range(1e-3, 1e-1, "log"),
                     milestones=([10, 15], 20), factor=Range(0.1, 0.5, levels=3))  # fmt: skip
    assert [again.at(epoch) for epoch in (14, 15, 20)] == [0.04, 0.02, 0.01]
    assert [made.chosen_as(hp.values).at(e) for e in (14, 15, 20)] == [0.04, 0.02, 0.01]


def test_a_range_of_whole_numbers() -> None:
    hp = keras_tuner.HyperParameters()
    schedule(hp, "size", "piecewise", values=(16, 32), boundaries=Range(2, 9))
    assert type(hp.space[0]).__name__ == "Int"
    assert Range(2, 9, levels=3).candidates == (2, 6, 9)


def test_the_kind_may_be_chosen() -> None:
    hp = keras_tuner.HyperParameters()
    kinds = {
        "constant": {"value": [0.1, 0.2]},
        "step": {"start": [0.1, 0.3], "milestones": [2, 4], "factor": 0.5},
    }
    assert schedule(hp, "rate", kinds).at(9) == 0.1
    assert not hp.is_active("rate/step/milestone")
    hp.values["rate/kind"] = "step"
    hp.ensure_active_values()  # as KerasTuner does: it draws what is missing
    hp.values |= {"rate/step/start": 0.1, "rate/step/milestone": 2}
    again = schedule(hp, "rate", kinds)
    assert hp.is_active("rate/step/milestone")
    assert not hp.is_active("rate/constant/value")
    assert again.at(9) == 0.05
    # Another kind, another start, another milestone.
    assert again.branches(6) == {0, 2}


def test_a_name_is_declared_once() -> None:
    with schedules.collecting() as declared:
        schedule(None, "rate", value=0.1)
        with pytest.raises(ValueError, match="declared once, got 'rate' again"):
            schedule(None, "rate", value=0.1)
    assert list(declared) == ["rate"]
    schedule(None, "rate", value=0.1)
    assert list(declared) == ["rate"]


def test_copies_keep_their_values() -> None:
    made = schedule(None, "rate", "step", start=0.1, milestones=1, factor=0.1)
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert (again, again.at(1)) == (0.1, 0.01)
    assert json.dumps([made]) == "[0.1]"


def brute_force_branches(hp_options: Any, chosen: Any, epochs: int) -> set[int]:
    """First epochs in which any combination of other choices differs."""
    keys = list(hp_options)
    sequences = []
    for combination in itertools.product(*hp_options.values()):
        start, first, second, factor = combination
        milestones = sorted([first, second])
        sequences.append(
            (
                dict(zip(keys, combination, strict=True)),
                [
                    start * factor ** sum(e >= m for m in milestones)
                    for e in range(epochs)
                ],
            )
        )
    (own,) = [sequence for values, sequence in sequences if values == chosen]
    found = set()
    for _, other in sequences:
        differing = [e for e in range(epochs) if not math.isclose(own[e], other[e])]
        if differing:
            found.add(differing[0])
    return found


@given(
    start=st.sampled_from([1.0, 2.0]),
    first=st.sampled_from([2, 4]),
    second=st.sampled_from([5, 7]),
    factor=st.sampled_from([0.1, 0.5]),
)
def test_branches_are_where_other_trials_part(
    start: float, first: int, second: int, factor: float
) -> None:
    hp = keras_tuner.HyperParameters()
    options = {
        "rate/start": [1.0, 2.0],
        "rate/milestone_1": [2, 4],
        "rate/milestone_2": [5, 7],
        "rate/factor": [0.1, 0.5],
    }
    chosen = dict(zip(options, (start, first, second, factor), strict=True))
    hp.values.update(chosen)
    made = schedule(
        hp,
        "rate",
        "step",
        start=[1.0, 2.0],
        milestones=([2, 4], [5, 7]),
        factor=[0.1, 0.5],
    )
    assert made.branches(9) == brute_force_branches(options, chosen, 9)


def test_first_effects() -> None:
    hp = keras_tuner.HyperParameters()
    made = schedule(hp, "rate", "cosine", start=0.1, epochs=[10, 20])
    assert made.first_effects(10) == {"epochs": 1}
    late = schedule(hp, "late", "piecewise", values=(1, [2, 3]), boundaries=30)
    assert late.first_effects(10) == {"value_2": 10}
    assert late.branches(10) == set()


def test_schedules_and_trees_need_no_tensorflow() -> None:
    code = (
        "import sys; from kt_bttackler import stages; "
        "stages.schedule(None, 'rate', value=0.1).segments(3); stages.StageTree(); "
        "print([m for m in ('tensorflow', 'keras', 'keras_tuner') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert {"Stage", "StageTuner", "plan", "schedule"} <= set(stages.__all__)
