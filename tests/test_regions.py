"""Which hyperparameter values go with which diagnosis."""

import random

import pytest
from test_report import trial

from kt_bttackler.regions import regions
from kt_bttackler.report import as_text
from kt_bttackler.study import Study


def trials(count, cause, **values):
    """Trials with hyperparameters drawn at random; `cause` names theirs, or None."""
    draw = random.Random(0)
    made = []
    for number in range(count):
        drawn = {name: value(draw) for name, value in values.items()}
        found = cause(drawn, draw)
        made.append(
            trial(
                str(number),
                status="STOPPED" if found else "COMPLETED",
                causes=(found,) if found else (),
                hyperparameters=drawn,
            )
        )
    return made


def rate(draw):
    return 10 ** draw.uniform(-4, 0)


def units(draw):
    return draw.choice([16, 32, 64])


def test_a_bound_of_a_number_is_found():
    made = trials(40, lambda v, _: "AGV" if v["lr"] > 0.03 else None, lr=rate, n=units)
    (region,) = regions(made)
    assert (region.cause, region.hyperparameter, region.relation) == ("AGV", "lr", ">")
    largest_good = max(t.hyperparameters["lr"] for t in made if not t.causes)
    smallest_bad = min(t.hyperparameters["lr"] for t in made if t.causes)
    assert largest_good < region.value < smallest_bad
    assert (region.hits, region.elsewhere) == (region.trials, 0)
    assert region.trials + region.others == 40


def test_small_values_and_choices_are_found_too():
    def cause(values, draw):
        if values["lr"] < 1e-3:
            return "PLC"
        return "LAR" if values["activation"] == "relu" else None

    made = trials(
        80,
        cause,
        lr=rate,
        activation=lambda draw: draw.choice(["relu", "tanh", "elu"]),
    )
    found = {region.cause: region for region in regions(made)}
    assert (found["PLC"].hyperparameter, found["PLC"].relation) == ("lr", "<=")
    assert str(found["LAR"]).startswith("activation = relu: LAR in ")


def test_chance_is_no_region():
    made = [
        region
        for seed in range(20)
        for region in regions(
            trials(
                30,
                lambda _, draw, seed=seed: "AGV" if draw.random() < 0.3 else None,
                **{f"x{seed + k}": rate for k in range(4)},
            )
        )
    ]
    assert len(made) <= 2


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_trials_say_nothing(count):
    assert regions(trials(count, lambda *_: "AGV", lr=rate)) == ()


def test_conditional_and_mixed_values_are_no_trouble():
    made = trials(30, lambda v, _: "AGV" if v["lr"] > 0.03 else None, lr=rate)
    for number, each in enumerate(made):
        if number % 2:
            each.hyperparameters["momentum"] = 0.9 if number % 4 == 1 else "none"
        each.hyperparameters["tuner/epochs"] = 3 if each.causes else 10
    (region,) = regions(made)
    assert region.hyperparameter == "lr"


def test_the_report_names_them():
    made = trials(40, lambda v, _: "AGV" if v["lr"] > 0.03 else None, lr=rate)
    (region,) = regions(made)
    text = as_text(Study("val_loss", "min", tuple(made)))
    assert f"Where it happens\n{region}" in text
