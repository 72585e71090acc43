import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import reference_extended as reference
import specimens
import specimens_extended
from specimens_extended import (
    HEALTHY,
    INPUTS,
    LEARNING,
    SICK,
    STUCK,
    kernels_and_biases,
    resumed,
    trace,
    with_output,
    without_facts,
)

from kt_bttackler.catalog import FURTHER, SEVEN, known_indicators
from kt_bttackler.course import (
    falling,
    has_learned,
    improving,
    keeping_pace,
    stalled,
    taking_off,
)
from kt_bttackler.diagnosis import Diagnosis, Verdict
from kt_bttackler.indicators import Finding
from kt_bttackler.loss_indicators import PassiveLossChanges
from kt_bttackler.outlook import expected_loss, hopeless
from kt_bttackler.rules import AnyFinding, ProtectTop
from kt_bttackler.testing import check_indicator, same_number
from kt_bttackler.trace import Header, Record, Trace, TraceWriter, read_trace

EVERY_TRACE = {
    **HEALTHY,
    **{f"sick {name}": sick for name, sick in SICK.items()},
    **{f"seven: {name}": each for name, each in specimens.HEALTHY.items()},
    **{f"seven: {name}": each for name, each in specimens.SICK.items()},
}
EXTENDED = Diagnosis("extended")


def fired(indicator, of):
    return [prefix.epoch for prefix in of.prefixes() if indicator(prefix)]


def stopped(indicator, of):
    """Epochs at which a finding is a ground for stopping."""
    findings = [indicator(prefix) for prefix in of.prefixes()]
    return [found.epoch for found in findings if found and not found.warning]


def with_scalars(of, **columns):
    """The trace with other numbers, one for each epoch."""
    records = [
        dataclasses.replace(
            record,
            scalars=record.scalars | {name: v[n] for name, v in columns.items()},
        )
        for n, record in enumerate(of.records)
    ]
    return Trace(of.header, records)


@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
def test_keeps_the_contract(cls):
    check_indicator(cls(), sick=[SICK[cls.id]], healthy=specimens.HEALTHY.values())


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_is_stopped_by_no_preset(name):
    for preset in ("conservative", "balanced", "extended"):
        for prefix in HEALTHY[name].prefixes():
            verdict = Diagnosis(preset)(prefix)
            assert verdict is None or not verdict.stop or verdict.benign, preset


def test_most_healthy_trainings_are_not_even_warned():
    warned = {
        (finding.indicator, name)
        for name, healthy in HEALTHY.items()
        for prefix in healthy.prefixes()
        for finding in EXTENDED.findings(prefix)
        if finding.indicator != "NMG"
    }
    assert warned == {
        ("LOSS_NOT_DECREASING", "low signal"),
        ("LOSS_NOT_DECREASING", "hardly any positives"),
        ("OVERFIT", "an accuracy that is good in spite of the loss"),
    }


@pytest.mark.parametrize("name", EVERY_TRACE)
@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
def test_measures_what_the_reference_measures(cls, name):
    for prefix in EVERY_TRACE[name].prefixes():
        measured = cls().measure(prefix)
        assert isinstance(measured, float)
        expected = reference.FURTHER[cls.id](prefix)
        assert same_number(measured, expected), (prefix.epoch, measured, expected)


@pytest.mark.parametrize("name", EVERY_TRACE)
def test_the_gate_is_that_of_the_reference(name):
    for prefix in EVERY_TRACE[name].prefixes():
        assert improving(prefix) == reference.improving(prefix), prefix.epoch
        assert improving(prefix, 2) == reference.improving(prefix, 2), prefix.epoch
        assert has_learned(prefix) == reference.has_learned(prefix), prefix.epoch
        assert falling(prefix) == reference.falling(prefix), prefix.epoch
        assert taking_off(prefix) == reference.taking_off(prefix), prefix.epoch
        assert keeping_pace(prefix) == reference.keeping_pace(prefix), prefix.epoch
        assert hopeless(prefix) == reference.hopeless(prefix), prefix.epoch


@pytest.mark.parametrize(
    ("indicator_id", "first", "stop"),
    [
        ("OUTPUT_LOSS_MISMATCH", 1, 1),
        ("INPUT_SCALE", 1, None),
        ("POOR_INIT", 1, 1),
        ("LR_RANGE", 1, None),
        ("HIGH_DROPOUT", 1, None),
        ("LINEAR_STACK", 1, None),
        ("UPDATE_RATIO", 3, 3),
        ("DEAD_UNITS", 2, 3),
        ("SATURATION", 2, 3),
        ("UNCHANGED_WEIGHTS", 2, 3),
        ("COLLAPSED_OUTPUT", 2, 3),
        ("NO_PROGRESS", 5, 5),
        ("LOSS_NOT_DECREASING", 6, 11),
        ("REGULARISER_DOMINATES", 5, None),
        ("NUMERIC_EDGE", 1, None),
        ("OSCILLATION", 11, 11),
        ("CLASS_NEGLECT", 13, None),
        ("OVERFIT", 12, None),
        ("WORSE_THAN_CONSTANT", 8, 8),
    ],
)
def test_fires_and_stops_at_its_first_epochs(indicator_id, first, stop):
    indicator, sick = EXTENDED[indicator_id], SICK[indicator_id]
    assert fired(indicator, sick)[0] == first
    assert next(iter(stopped(indicator, sick)), None) == stop


@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
def test_says_what_it_measures_and_what_to_try(cls):
    finding = next(found for p in SICK[cls.id].prefixes() if (found := cls()(p)))
    assert finding.quantity != "value"
    assert len(finding.advice.split()) > 3
    assert str(finding).startswith(f"{cls.id} at epoch {finding.epoch}: ")
    assert str(finding).endswith(" (warning)") == finding.warning


# Corner cases


@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
def test_without_facts_nothing_is_found_and_nothing_raises(cls):
    read_before = ("LR_RANGE", "LOSS_NOT_DECREASING", "NO_PROGRESS", "OSCILLATION")
    read_before += ("OVERFIT", "REGULARISER_DOMINATES")
    for sick in SICK.values():
        for prefix in without_facts(sick).prefixes():
            cls().severity(prefix)
            assert cls()(prefix) is None or cls.id in read_before
    bare = Trace(Header(max_epochs=20), [Record(n, 1.0 * n, {}) for n in range(1, 15)])
    for prefix in bare.prefixes():
        assert cls()(prefix) is None


def test_old_traces_are_judged_without_raising():
    for each in EVERY_TRACE.values():
        for prefix in without_facts(each).prefixes():
            disabled = set()
            EXTENDED.findings(prefix, disabled)
            assert not disabled


@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
@pytest.mark.parametrize("planned", [1, 2, 3, 4, 5])
def test_short_plans_are_never_judged_at_their_last_epoch(cls, planned):
    for name, sick in SICK.items():
        header = dataclasses.replace(sick.header, max_epochs=planned)
        short = Trace(header, sick.records[:planned])
        assert planned not in fired(cls(), short), name
        # Two checks after the first epoch take three.
        early = [n for n in stopped(cls(), short) if n < 3]
        expected = []
        if name == cls.id == "POOR_INIT":
            expected = [1]
        elif name == cls.id == "OUTPUT_LOSS_MISMATCH":  # holds in every epoch
            expected = [1, 2]
        assert early == [n for n in expected if n < planned]


@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
def test_without_a_plan_the_late_rules_keep_quiet(cls):
    sick = SICK[cls.id]
    endless = Trace(dataclasses.replace(sick.header, max_epochs=None), sick.records)
    late = ("NO_PROGRESS", "OSCILLATION", "CLASS_NEGLECT", "OVERFIT")
    late += ("WORSE_THAN_CONSTANT",)
    assert bool(fired(cls(), endless)) == (cls.id not in late)
    assert cls.id != "LOSS_NOT_DECREASING" or not stopped(cls(), endless)


@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
def test_a_resumed_training_is_never_stopped(cls):
    for sick in SICK.values():
        assert stopped(cls(), resumed(sick)) == []


@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
def test_nothing_stops_while_the_learning_rate_warms_up_or_is_to_rise(cls):
    sick = SICK[cls.id]
    static = {"OUTPUT_LOSS_MISMATCH": list(range(1, 15)), "POOR_INIT": [1]}
    expected = static.get(cls.id, [])
    declared = dataclasses.replace(sick.header, warmup_epochs=8)
    early = [n for n in stopped(cls(), Trace(declared, sick.records)) if n < 10]
    assert early == [n for n in expected if n < 10]
    restart = (0.1,) * 15 + (0.2,) + (0.1,) * 5
    planned = dataclasses.replace(sick.header, planned_learning_rates=restart)
    early = [n for n in stopped(cls(), Trace(planned, sick.records)) if n < 15]
    assert early == expected


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
def test_facts_that_are_not_finite_never_raise(cls, value):
    for sick in SICK.values():
        records = [
            dataclasses.replace(
                record,
                scalars=dict.fromkeys(record.scalars, value),
                columns={k: (value,) * len(v) for k, v in record.columns.items()},
            )
            for record in sick.records
        ]
        for prefix in Trace(sick.header, records).prefixes():
            cls()(prefix)
            assert isinstance(cls().severity(prefix), float)


@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
def test_losses_that_are_not_finite_are_the_business_of_agv(cls):
    sick = trace([2.3, math.inf, 2.3, math.nan] * 4)
    assert stopped(cls(), sick) == []
    assert EXTENDED(sick.prefix(2)).cause == "AGV"


@pytest.mark.parametrize("cls", FURTHER, ids=lambda cls: cls.id)
def test_an_epoch_that_was_broken_off_is_not_judged(cls):
    sick = SICK[cls.id]
    broken = [dataclasses.replace(record, partial=True) for record in sick.records]
    assert fired(cls(), Trace(sick.header, broken)) == []


# The gate


def test_a_stuck_training_is_stalled_from_its_third_epoch():
    epochs = [p.epoch for p in trace(STUCK, first=2.303).prefixes() if stalled(p)]
    assert epochs == list(range(3, 20))


@pytest.mark.parametrize(("planned", "first"), [(4, 3), (20, 3), (100, 7), (None, 7)])
def test_the_gate_waits_for_a_share_of_the_plan(planned, first):
    stuck = trace(STUCK, first=2.303, max_epochs=planned)
    assert next(p.epoch for p in stuck.prefixes() if stalled(p)) == first


def test_a_slow_fall_is_an_improvement():
    slow = trace([2.3 - 0.03 * n for n in range(19)], first=2.33)
    assert [p.epoch for p in slow.prefixes() if stalled(p)] == []


def test_swings_are_none_but_coming_down_is():
    swings = trace([2.0 + 0.2 * (-1) ** n for n in range(19)], first=2.0)
    assert stalled(swings)
    down = trace([50.0, 40.0, 30.0, 20.0, 15.0, 10.0, 8.0], first=2.3)
    assert [p.epoch for p in down.prefixes() if stalled(p)] == [3]


def test_a_start_that_gathers_speed_is_taking_off():
    slow = trace([2.299, 2.297, 2.293, 2.293, 2.28], first=2.3)
    # From 2.3 on by 0.001, 0.002, 0.004, 0 and 0.013.
    assert [p.epoch for p in slow.prefixes() if taking_off(p)] == [3]
    steady = trace([2.28, 2.265, 2.251, 2.25], first=2.3)
    assert not any(taking_off(p) for p in steady.prefixes())
    assert [p.epoch for p in steady.prefixes() if falling(p)] == [3]


def test_a_plateau_keeps_its_pace_and_what_settles_does_not():
    plateau = trace([0.693 - 0.0005 * n for n in range(19)], first=0.7)
    # Six falls must be known, and enough epochs left for 1 % more.
    assert [p.epoch for p in plateau.prefixes() if keeping_pace(p)] == []
    longer = trace([0.693 - 0.0005 * n for n in range(39)], first=0.7, max_epochs=40)
    assert [p.epoch for p in longer.prefixes() if keeping_pace(p)] == [
        *range(7, 27),
    ]
    settling = trace([0.693 + 0.1 * 0.8**n for n in range(39)], max_epochs=40)
    assert not any(keeping_pace(p) for p in settling.prefixes())


def test_a_loss_of_zero_has_nothing_left_to_improve():
    assert improving(trace([0.0] * 5, first=0.0))


def test_what_an_explosion_destroyed_is_not_learned():
    lost = trace([2.0, 1.5, 1.2, 90.0, *[2.4] * 9], first=2.3)
    assert has_learned(lost.prefix(3))
    assert not has_learned(lost)


def test_the_loss_of_a_constant_shows_what_was_learned_from_a_bad_start():
    assert has_learned(trace([2.1] * 9, first=2.15))
    assert not has_learned(trace([2.25] * 9, first=2.26))


# The outlook


@pytest.mark.parametrize("block", [1, 2, 3])
def test_where_a_curve_will_be_is_what_the_reference_says(block):
    for each in (*EVERY_TRACE.values(), HEALTHY["ordinary"]):
        values = each.scalar("loss")
        for left in (0, 1, 7):
            measured = expected_loss(values, left, block)
            assert same_number(measured, reference.expected(values, left, block))


def test_curves_are_carried_on_by_line_share_or_not_at_all():
    assert math.isnan(expected_loss(np.array([1.0]), 3, 1))
    line = np.array([9.0, 8.0, 7.0, 6.0])
    assert expected_loss(line, 10, 1) == -4
    flattens = np.array([16.0, 8.0, 4.0])
    assert expected_loss(flattens, 2, 1) == 1
    assert expected_loss(flattens[::-1], 5, 1) == 16


def worse(validation, **facts):
    """A training that learns its rows, with a validation of one's own."""
    scalars = {"val_loss": validation} | facts.pop("scalars", {})
    return trace(LEARNING[: len(validation)], scalars=scalars, **facts)


RISING = [1.8 + 0.1 * n for n in range(19)]


def test_a_validation_that_is_worse_than_a_constant_and_stays_so_is_hopeless():
    epochs = [p.epoch for p in worse(RISING).prefixes() if hopeless(p)]
    # 1.05 x 2.303 is passed at the eighth epoch, so by four epochs at the eleventh.
    assert epochs == list(range(11, 20))
    assert stopped(EXTENDED["WORSE_THAN_CONSTANT"], worse(RISING))[0] == 12


@pytest.mark.parametrize(
    "spared",
    [
        worse(RISING, max_epochs=None),
        worse(RISING, scalars={"label/trivial_loss": math.nan}),
        worse(RISING, scalars={"label/trivial_loss": 0.0}),
        worse(RISING, scalars={"label/trivial_error": 0.5}),
        worse(RISING, objective="val_auc"),
        worse(RISING, averaging_steps=1000.0),
        worse(RISING, scalars={"learning_rate": [0.1, 0.2] * 9 + [0.1]}),
        worse(RISING, warmup_epochs=19),
        worse(RISING, planned_learning_rates=(0.1,) * 20 + (0.2,)),
        worse([2.0, 9.0, 9.0, 2.0] * 4),  # good ones in between
        worse([50.0 * 0.7**n for n in range(19)]),
        worse([math.nan, *[9.0] * 3] * 4),
        resumed(worse(RISING)),
    ],
)
def test_no_hope_is_lost_in_doubt(spared):
    early = spared.prefix(min(len(spared), 10 + spared.header.initial_epoch))
    assert not any(hopeless(prefix) for prefix in early.prefixes())


FAR = [2.303 * (2 + 0.9**n) for n in range(19)]


def test_a_validation_on_other_data_is_no_ground_while_it_gets_better():
    assert not any(hopeless(prefix) for prefix in worse(FAR).prefixes())
    near = [2.303 * (1.2 + 0.2 * 0.9**n) for n in range(19)]
    assert any(hopeless(prefix) for prefix in worse(near).prefixes())
    assert any(hopeless(prefix) for prefix in worse(FAR[::-1]).prefixes())
    stuck = trace([2.4] * 19, scalars={"val_loss": FAR})
    assert any(hopeless(prefix) for prefix in stuck.prefixes())


def test_a_rising_rate_is_no_excuse_for_a_loss_that_has_blown_up():
    blown_up = [2.0, 3.0, *[9.0 * 2.0**n for n in range(17)]]
    rates = {"learning_rate": [0.1 * 2.0**n for n in range(19)]}
    lost = trace(blown_up, first=2.3, scalars=rates | {"val_loss": blown_up})
    assert next(p.epoch for p in lost.prefixes() if hopeless(p)) == 6
    assert "LR_RANGE" in {f.indicator for f in EXTENDED.findings(lost.prefix(8))}


def test_without_a_validation_the_training_loss_counts():
    lost = with_scalars(worse(RISING), val_loss=[math.nan] * 19)
    assert not any(hopeless(prefix) for prefix in lost.prefixes())
    high = with_scalars(trace(RISING, first=1.7), val_loss=[math.nan] * 19)
    assert any(hopeless(prefix) for prefix in high.prefixes())


def test_penalties_are_no_part_of_the_outlook():
    heavy = [loss + 5.0 for loss in LEARNING]
    penalised = trace(heavy, scalars={"val_loss": heavy, "regularization": 5.0})
    assert not any(hopeless(prefix) for prefix in penalised.prefixes())


def test_overfitting_stops_what_is_beyond_repair_only():
    indicator = EXTENDED["OVERFIT"]
    assert stopped(indicator, SICK["OVERFIT"]) == []
    assert stopped(indicator, worse(RISING))[0] == 12
    assert indicator(worse(RISING).prefix(12)).threshold == 0.02


def test_swings_that_eat_the_gain_stop():
    indicator = EXTENDED["OSCILLATION"]
    gain = [2.0 + 0.06 * (-1) ** n for n in range(19)]
    for factor, found in ((1.0, False), (5.0, True)):
        swings = [2.0 + factor * (loss - 2.0) for loss in gain]
        sick = trace(swings, first=2.3, scalars={"val_loss": swings})
        assert bool(fired(indicator, sick))
        assert bool(stopped(indicator, sick)) == found
    unknown = {"val_loss": swings, "label/trivial_loss": math.nan}
    assert stopped(indicator, trace(swings, first=2.3, scalars=unknown)) == []


def test_steps_that_lead_nowhere_by_the_end_of_the_plan_stop():
    indicator = EXTENDED["UPDATE_RATIO"]
    slow = [2.3 - 0.1 * n for n in range(1, 5)]
    few_steps = {
        "columns": {"update/ratio": kernels_and_biases(*[1.5e-4] * 4)},
        "scalars": {"steps": 41.0},
        "max_epochs": 5,
    }
    assert stopped(indicator, trace(slow, first=2.3, **few_steps)) == [3, 4]
    many_steps = few_steps | {"scalars": {"steps": 400.0}}
    assert fired(indicator, trace(slow, first=2.3, **many_steps)) == []
    gets_there = [2.3 - 0.4 * n for n in range(1, 5)]
    assert stopped(indicator, trace(gets_there, first=2.3, **few_steps)) == []
    unknown = few_steps | {"scalars": {"steps": 41.0, "label/trivial_loss": math.nan}}
    assert stopped(indicator, trace(slow, first=2.3, **unknown)) == []


def test_a_wild_output_is_a_sign_of_a_poor_start():
    poor = EXTENDED["POOR_INIT"]
    assert "wild output" in str(poor(trace([11.0], first=12.0).prefix(1)))
    assert poor(trace([11.0], first=11.0).prefix(1)) is None  # 5 x ln 10 = 11.5
    facts = {"first_record": {"output/initial_spread": 6.0}}
    regression = with_output(activation="linear", loss="mean_squared_error")
    assert "wild" in str(poor(trace([9.0], outputs=regression, **facts).prefix(1)))
    assert poor(trace([9.0], outputs=regression).prefix(1)) is None
    lost = trace(
        [30.0 * 0.97**n for n in range(19)],
        first=40.0,
        scalars={"val_loss": [40.0 * 0.98**n for n in range(19)]},
    )
    assert stopped(poor, lost)[0] == 4
    assert EXTENDED(lost.prefix(6)).cause == "POOR_INIT"


# Single rules


@pytest.mark.parametrize(
    ("changes", "found", "stops"),
    [
        ({}, 0, False),
        ({"activation": None}, 0, False),
        ({"activation": "linear"}, 1, False),
        ({"activation": "sigmoid"}, 1, False),
        ({"activation": "relu"}, 1, False),
        ({"from_logits": True}, 1, False),
        ({"activation": "linear", "from_logits": True}, 0, False),
        ({"loss": "binary_crossentropy"}, 0, False),
        ({"loss": "binary_crossentropy", "activation": "hard_sigmoid"}, 0, False),
        ({"loss": "binary_crossentropy", "activation": "tanh"}, 1, False),
        ({"units": 1}, 1, True),
        ({"loss": "mean_squared_error"}, 0, False),
        (
            {"loss": "mean_squared_error", "target_max": 9.0, "target_std": 2.9},
            1,
            True,
        ),
        # A few outliers are out of reach.
        (
            {"loss": "mean_squared_error", "target_max": 9.0, "target_std": 0.3},
            1,
            False,
        ),
        (
            {
                "loss": "mean_squared_error",
                "activation": "relu",
                "target_min": -3.0,
                "target_max": 3.0,
                "target_std": 1.0,
            },
            1,
            True,
        ),
        (
            {
                "loss": "mean_squared_error",
                "activation": "relu",
                "target_min": -1.0,
                "target_max": 30.0,
                "target_std": 5.0,
            },
            1,
            False,
        ),
        ({"loss": "mean_squared_error", "target_max": 1.000001}, 0, False),
        ({"loss": "mean_squared_error", "target_max": "nan"}, 0, False),
    ],
)
def test_contradictions_of_output_and_loss(changes, found, stops):
    indicator = EXTENDED["OUTPUT_LOSS_MISMATCH"]
    first = trace(LEARNING, outputs=with_output(**changes)).prefix(1)
    if changes.get("units") == 1:
        first = with_scalars(first, **{"output/initial_spread": [0.0]})
    assert indicator.measure(first) == found
    finding = indicator(first)
    assert (finding is not None) == bool(found)
    assert finding is None or finding.warning != stops


def test_a_softmax_over_one_unit_that_varies_runs_along_another_axis():
    indicator = EXTENDED["OUTPUT_LOSS_MISMATCH"]
    assert indicator(trace(LEARNING, outputs=with_output(units=1)).prefix(1)) is None


def test_one_wrong_output_of_several_is_a_warning():
    outputs = (*with_output(units=1), *with_output())
    sick = trace(LEARNING, outputs=outputs, first_record={"output/initial_spread": 0.0})
    assert EXTENDED["OUTPUT_LOSS_MISMATCH"](sick.prefix(1)).warning


@pytest.mark.parametrize(
    ("changes", "value", "limit"),
    [
        ({"abs_max": 255.0}, 255.0, 100.0),
        ({"abs_max": 99.0}, None, None),
        ({"abs_max": 255.0, "integers": True}, 255.0, 2.0),
        ({"abs_max": 50.0, "integers": True, "image": False}, None, None),
        ({"abs_max": 255.0, "std_ratio": 1e6}, 1e6, 1e3),
        ({"std_ratio": "nan"}, None, None),
        ({"finite": False}, math.inf, 100.0),
    ],
)
def test_the_scale_of_inputs(changes, value, limit):
    finding = EXTENDED["INPUT_SCALE"](
        trace(LEARNING, inputs=INPUTS | changes).prefix(1)
    )
    assert (finding and finding.value) == value
    assert (finding and finding.threshold) == limit
    assert finding is None or finding.warning, "a model may know how to read them"


def test_inputs_that_are_not_finite_stop_what_has_no_finite_loss():
    sick = trace([math.nan] * 3, inputs={"finite": False})
    assert not EXTENDED["INPUT_SCALE"](sick.prefix(1)).warning


def test_alike_units_are_no_sign_where_the_next_layer_parts_them():
    poor = EXTENDED["POOR_INIT"]
    cases = {
        (1.0, 0.0, 0.0, 0.0): None,
        (0.0, 0.0, 0.0, 1.0): None,
        (1.0, 0.0, 1.0, 0.0): None,
        (0.0, 1.0, 1.0, 0.0): "dense_1",
        (1.0, 1.0, 1.0, 1.0): "dense_0",
    }
    for symmetric, layer in cases.items():
        sick = trace(
            LEARNING,
            dropout_rates=(),
            first_record={"weight/initial_symmetric": kernels_and_biases(*symmetric)},
        )
        finding = poor(sick.prefix(1))
        assert (finding and finding.layer) == layer
        assert finding is None or not finding.warning


@pytest.mark.parametrize("doubt", ["dropout", "one unit"])
def test_alike_units_that_may_part_are_a_warning_until_the_training_stalls(doubt):
    last = math.nan if doubt == "one unit" else 1.0
    facts = {
        "dropout_rates": (0.5,) if doubt == "dropout" else (),
        "first_record": {
            "weight/initial_symmetric": kernels_and_biases(0.0, 0.0, 1.0, last)
        },
    }
    poor = EXTENDED["POOR_INIT"]
    assert fired(poor, trace(LEARNING, **facts)) == [1]
    assert stopped(poor, trace(LEARNING, **facts)) == []
    assert stopped(poor, trace(STUCK, first=2.303, **facts))[0] == 3


@pytest.mark.parametrize(
    ("facts", "sign"),
    [
        ({"activation/initial_std": [1.0, 0.1, 1e-5]}, "uneven activations"),
        ({"output/initial_spread": 1e-6}, "flat output"),
        (
            {"gradient/initial_norm": [1e-5, 0.1, 1e-2, 0.1, 0.1, 0.1, 1.0, 0.1]},
            "first layers cut off",
        ),
        ({"gradient/initial_norm": 1e-9}, "first layers cut off"),
        ({"weight/initial_finite": [1.0, 0.0] * 4}, "weights not finite"),
    ],
)
def test_signs_of_a_poor_start(facts, sign):
    finding = EXTENDED["POOR_INIT"](trace(LEARNING, first_record=facts).prefix(1))
    assert (finding.value, finding.quantity) == (1, f"signs of a poor start ({sign})")
    assert finding.warning == (sign != "weights not finite")


def test_one_idle_input_of_several_is_not_cut_off():
    norms = kernels_and_biases(0.0, 0.1, 0.1, 0.1)
    fan_in = ((0, 2), (1, 2), (2, 3))
    idle = trace(LEARNING, edges=fan_in, first_record={"gradient/initial_norm": norms})
    assert EXTENDED["POOR_INIT"](idle.prefix(1)) is None


@pytest.mark.parametrize(
    ("rate", "adaptive", "limit"),
    [(0.5, False, None), (0.5, True, 0.1), (2.0, False, 1.0), (1e-9, True, 1e-7)],
)
def test_learning_rates_out_of_range_are_warnings(rate, adaptive, limit):
    sick = trace(STUCK, adaptive_optimizer=adaptive, scalars={"learning_rate": rate})
    indicator = EXTENDED["LR_RANGE"]
    finding = indicator(sick.prefix(1))
    assert (finding and finding.threshold) == limit
    assert finding is None or finding.warning
    assert (indicator.severity(sick.prefix(1)) > 0) == (limit is not None)


def test_a_learning_rate_of_zero_stops_from_the_second_epoch_on():
    indicator = EXTENDED["LR_RANGE"]
    assert stopped(indicator, trace(STUCK, scalars={"learning_rate": 0.0}))[0] == 2
    begins = trace(STUCK, scalars={"learning_rate": [0.0, *[0.1] * 18]})
    assert stopped(indicator, begins) == []


def test_a_learning_rate_that_is_scheduled_to_rise_may_be_small():
    rising = tuple(1e-8 * 10 ** min(n, 6) for n in range(21))
    rates = {"learning_rate": list(rising[1:20])}
    sick = trace(STUCK, planned_learning_rates=rising, scalars=rates)
    assert fired(EXTENDED["LR_RANGE"], sick) == []
    unforeseen = trace(STUCK, scalars=rates)
    assert fired(EXTENDED["LR_RANGE"], unforeseen) == []


def test_update_ratios_have_two_sides():
    indicator = EXTENDED["UPDATE_RATIO"]
    small = SICK["UPDATE_RATIO"]
    large = trace(
        STUCK, first=2.303, columns={"update/ratio": kernels_and_biases(*[0.5] * 4)}
    )
    assert "too small" in str(indicator(small))
    assert "too large" in str(indicator(large))
    assert (fired(indicator, small)[0], fired(indicator, large)[0]) == (3, 4)
    # All steps of the plan together must be able to move the weights by 5 %.
    assert indicator(small).threshold == pytest.approx(0.05 / (20 * 40))
    assert indicator.severity(small) == pytest.approx(math.log10(62.5))
    assert indicator.severity(large) == pytest.approx(math.log10(5))
    assert indicator.severity(HEALTHY["ordinary"]) < 0


def test_small_updates_stop_nothing_that_has_learned():
    small = {"update/ratio": kernels_and_biases(*[1e-6] * 4)}
    flat_at_the_end = trace([*LEARNING[:9], *[0.5] * 10], columns=small)
    indicator = EXTENDED["UPDATE_RATIO"]
    assert fired(indicator, flat_at_the_end)
    assert stopped(indicator, flat_at_the_end) == []


def test_small_updates_of_a_lowered_rate_are_meant():
    assert fired(EXTENDED["UPDATE_RATIO"], HEALTHY["a rate that decays"]) == []
    assert fired(EXTENDED["UNCHANGED_WEIGHTS"], HEALTHY["a rate that decays"]) == []


def test_weights_must_stay_for_twenty_steps():
    for steps, first in ((40.0, 2), (20.0, 2), (10.0, 3), (3.0, 8)):
        sick = trace(
            STUCK,
            first=2.303,
            scalars={"steps": steps},
            columns={"update/moved": kernels_and_biases(*[0.0] * 4)},
        )
        assert fired(EXTENDED["UNCHANGED_WEIGHTS"], sick)[0] == first, steps


def test_one_layer_that_stays_is_a_warning_and_is_named():
    moved = kernels_and_biases(9e3, 9e3, 0.0, 9e3)
    sick = trace(STUCK, first=2.303, columns={"update/moved": moved})
    indicator = EXTENDED["UNCHANGED_WEIGHTS"]
    assert stopped(indicator, sick) == []
    assert indicator(sick).layer == "dense_2"
    assert dataclasses.replace(indicator, exclude=("dense_2",))(sick) is None


def test_weights_stay_where_the_learning_rate_is_zero():
    sick = SICK["UNCHANGED_WEIGHTS"]
    idle = with_scalars(sick, learning_rate=[0.0] * len(sick))
    assert fired(EXTENDED["UNCHANGED_WEIGHTS"], idle) == []


def test_a_dead_layer_stops_only_where_nothing_passes():
    dead = {"activation/dead_ratio": [0.2, 1.0, 0.4]}
    around = trace(STUCK, first=2.303, columns=dead)
    indicator = EXTENDED["DEAD_UNITS"]
    assert fired(indicator, around)
    assert stopped(indicator, around) == []
    assert stopped(indicator, SICK["DEAD_UNITS"])[0] == 3
    assert indicator(around).layer == "dense_1"


def test_many_dead_units_everywhere_are_a_warning():
    sick = trace(STUCK, columns={"activation/dead_ratio": 0.8})
    finding = EXTENDED["DEAD_UNITS"](sick)
    assert (finding.value, finding.threshold, finding.warning) == (
        pytest.approx(0.8),
        0.7,
        True,
    )
    assert finding.quantity == "mean share of dead units"


def test_dead_units_take_two_probes_not_epochs():
    sick = SICK["DEAD_UNITS"]
    records = [
        dataclasses.replace(
            record, columns={} if record.epoch in (2, 3) else record.columns
        )
        for record in sick.records
    ]
    assert fired(EXTENDED["DEAD_UNITS"], Trace(sick.header, records))[0] == 4


def test_saturation_is_no_finding_while_the_loss_falls():
    saturated = {"activation/saturated_ratio": 1.0}
    indicator = EXTENDED["SATURATION"]
    assert fired(indicator, trace(LEARNING[:12], columns=saturated)) == []
    creeping = trace(
        [2.2 - 0.011 * n for n in range(19)], first=2.22, columns=saturated
    )
    assert fired(indicator, creeping)
    assert stopped(indicator, creeping) == [], "neither ERG nor PLC agree"


def test_an_output_must_have_been_probed_to_be_a_ground_for_stopping():
    sick = SICK["COLLAPSED_OUTPUT"]
    spread = [1e-6 if n in (0, 1, 9) else math.nan for n in range(len(sick))]
    rarely = with_scalars(sick, **{"output/spread": spread})
    indicator = EXTENDED["COLLAPSED_OUTPUT"]
    assert fired(indicator, rarely) == list(range(2, 20))
    assert stopped(indicator, rarely) == [10]


def test_one_answer_for_all_is_found_late():
    facts = {"output/top_share": 1.0, "output/label_top_share": 0.4}
    one_answer = trace(STUCK, first=2.303, scalars=facts)
    indicator = EXTENDED["COLLAPSED_OUTPUT"]
    assert stopped(indicator, one_answer)[0] == 11
    assert "another answer" in str(indicator(one_answer))
    rightly = trace(STUCK, scalars=facts | {"output/label_top_share": 0.95})
    assert fired(indicator, rightly) == []


@pytest.mark.parametrize(
    ("losses", "facts", "epoch"),
    [
        (STUCK, {}, 5),
        # What still falls is given time.
        ([2.9, 2.75, 2.6, 2.5, 2.42, 2.36, 2.33, 2.31, 2.305, 2.304], {}, 10),
        # 1 % better than a constant.
        ([2.303 * 0.985] * 19, {}, None),
        # An estimate with an error, and outputs that vary: a low signal?
        ([0.97] * 19, {"label/trivial_loss": 0.95, "label/trivial_error": 0.03}, None),
        # The same with a constant output, or a loss beyond the doubt.
        (
            [0.97] * 19,
            {
                "label/trivial_loss": 0.95,
                "label/trivial_error": 0.03,
                "output/spread": 0.01,
            },
            5,
        ),
        ([1.2] * 19, {"label/trivial_loss": 0.95, "label/trivial_error": 0.03}, 5),
        # The loss of a constant is unknown: it must have fallen.
        (STUCK, {"label/trivial_loss": math.nan}, 5),
        ([2.2] * 19, {"label/trivial_loss": math.nan}, None),
        ([-5.0 - 0.01 * n for n in range(19)], {"label/trivial_loss": math.nan}, None),
        # All labels are the same.
        ([0.0] * 19, {"label/trivial_loss": 0.0}, None),
    ],
)
def test_no_progress(losses, facts, epoch):
    first = losses[0] + 0.001 if losses[0] < 2.25 and len(losses) == 19 else None
    first = 2.3 if losses == [2.2] * 19 else first
    first = -4.0 if losses[0] < 0 else first
    sick = trace(losses, first=first, scalars=facts)
    assert next(iter(stopped(EXTENDED["NO_PROGRESS"], sick)), None) == epoch


@pytest.mark.parametrize(
    ("planned", "epoch"), [(4, 3), (12, 3), (20, 5), (40, 10), (None, None)]
)
def test_no_progress_waits_for_a_quarter_of_the_plan(planned, epoch):
    sick = trace(STUCK, first=2.303, max_epochs=planned)
    sick = sick.prefix(min(len(sick), planned or 19))
    assert next(iter(fired(EXTENDED["NO_PROGRESS"], sick)), None) == epoch


def test_no_progress_spares_what_will_get_below_the_loss_of_a_constant():
    # Of dropout and a small rate: 1.4 % an epoch is no improvement, but enough.
    indicator, falls = EXTENDED["NO_PROGRESS"], [2.9 * 0.986**n for n in range(29)]
    assert fired(indicator, trace(falls, first=2.95, max_epochs=30)) == []
    too_late = [2.9 * 0.997**n for n in range(29)]
    assert fired(indicator, trace(too_late, first=2.95, max_epochs=30))[0] == 8


def test_a_low_first_batch_is_not_what_the_first_loss_is_compared_with():
    unknown = {"label/trivial_loss": math.nan}
    lucky = trace([0.7 - 0.001 * n for n in range(19)], first=0.66, scalars=unknown)
    assert fired(EXTENDED["NO_PROGRESS"], lucky)[:1] == [5]
    assert fired(EXTENDED["NO_PROGRESS"], lucky)[-1] < 10


def test_validation_that_rises_with_the_training_loss_is_not_overfit():
    rising = with_scalars(
        trace([1.0 + 0.05 * abs(n - 6) for n in range(1, 20)]),
        val_loss=[1.0 + 0.05 * abs(n - 6) for n in range(1, 20)],
    )
    assert fired(EXTENDED["OVERFIT"], rising) == []


def test_oscillation_allows_for_cycles_of_the_learning_rate():
    sick = SICK["OSCILLATION"]
    cycles = with_scalars(sick, learning_rate=[0.1, 0.2] * 9 + [0.1])
    assert fired(EXTENDED["OSCILLATION"], cycles) == []


# Presets, rules, files


def test_presets_are_what_they_are_said_to_be():
    conservative, balanced = Diagnosis("conservative"), Diagnosis("balanced")
    assert EXTENDED.indicators[:7] == conservative.indicators
    assert [type(i) for i in EXTENDED.indicators[7:]] == list(FURTHER)
    assert EXTENDED.rule == balanced.rule == ProtectTop(AnyFinding())
    changed = {"PLC", "LAR", "COLLAPSED_OUTPUT", "NO_PROGRESS"}
    for indicator in balanced.indicators:
        if indicator.id not in changed:
            assert indicator == conservative[indicator.id]
    assert balanced["LAR"].threshold == 0.25
    assert (balanced["PLC"].gap, balanced["PLC"].threshold) == ("median", 0.01)
    assert {i.id for i in balanced.indicators} - {
        i.id for i in conservative.indicators
    } == {
        "COLLAPSED_OUTPUT",
        "NO_PROGRESS",
    }


def test_known_indicators_are_in_the_order_of_reporting():
    known = list(known_indicators().values())
    assert known[: len(SEVEN) + len(FURTHER)] == [*SEVEN, *FURTHER]
    assert "PROBE_INDICATOR" not in known_indicators()


def test_extended_survives_json_and_so_do_its_verdicts():
    assert Diagnosis.from_json(EXTENDED.to_json()) == EXTENDED
    json.loads(EXTENDED.to_json(), parse_constant=lambda name: pytest.fail(name))
    for name, sick in SICK.items():
        for prefix in sick.prefixes():
            verdict = EXTENDED(prefix)
            if verdict is not None:
                assert Verdict.from_json(verdict.to_json()) == verdict, name


def test_a_verdict_of_an_older_version_can_be_read():
    verdict = EXTENDED(SICK["POOR_INIT"].prefix(1))
    content = json.loads(verdict.to_json())
    for finding in content["findings"]:
        del finding["warning"]
    assert not any(f.warning for f in Verdict.from_json(json.dumps(content)).findings)


def test_header_facts_survive_the_file(tmp_path):
    sick = trace(
        STUCK,
        outputs=with_output(target_min=math.nan, target_max=math.inf),
        inputs=INPUTS | {"std_ratio": math.nan},
        linear_pairs=(("dense_0", "dense_1"),),
    )
    writer = TraceWriter(tmp_path / "trace-0.jsonl", sick.header)
    for record in sick.records:
        writer.append(record)
    back = read_trace(tmp_path / "trace-0.jsonl")
    for one, other in zip(sick.prefixes(), back.prefixes(), strict=True):
        assert EXTENDED.findings(one) == EXTENDED.findings(other)


def test_warnings_are_shown_but_no_rule_sees_them():
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Spy(AnyFinding):
        def __call__(self, findings, trace, peers=()):
            seen.extend(f for found in findings for f in found)
            return super().__call__(findings, trace, peers)

    sick = SICK["INPUT_SCALE"].prefix(1)
    verdict = Diagnosis(EXTENDED.indicators, Spy())(sick)
    assert not seen
    assert (verdict.stop, verdict.cause) == (False, None)
    assert [f.indicator for f in verdict.findings] == ["INPUT_SCALE"]
    assert str(verdict).endswith("(warning)")


def test_grounds_come_before_warnings():
    sick = trace(
        STUCK, first=2.303, inputs=INPUTS | {"abs_max": 1e6}, outputs=with_output(units=1),
        first_record={"output/initial_spread": 0.0}, dropout_rates=(0.9,),
    )  # fmt: skip
    verdict = EXTENDED(sick.prefix(1))
    assert (verdict.stop, verdict.cause) == (True, "OUTPUT_LOSS_MISMATCH")
    assert [f.warning for f in verdict.findings] == sorted(
        f.warning for f in verdict.findings
    )


def test_what_is_benign_comes_last_beside_harm():
    lost = trace([1.0, *[9.0 * 2.0**n for n in range(18)]], scalars={
        "learning_rate": [0.1 * 2.0**n for n in range(19)],
        "val_loss": [1.0, *[9.0 * 2.0**n for n in range(18)]],
    })  # fmt: skip
    verdict = EXTENDED(lost.prefix(12))
    assert (verdict.stop, verdict.benign) == (True, False)
    found = [f.indicator for f in verdict.findings]
    assert found == ["WORSE_THAN_CONSTANT", "LR_RANGE", "NMG"]
    alone = Diagnosis(["LR_RANGE", "NMG"])(lost.prefix(12))
    assert (alone.benign, alone.cause) == (True, "NMG")
    assert [f.indicator for f in alone.findings] == ["NMG", "LR_RANGE"]


def test_a_finding_says_that_it_is_a_warning():
    finding = Finding("PLC", 2, 1e-5, 1e-3, warning=True)
    assert str(finding) == "PLC at epoch 2: value 1e-05 < 0.001 (warning)"


# The median gap of PLC


def median_plc():
    return Diagnosis("balanced")["PLC"]


def test_an_explosion_no_longer_hides_a_flat_curve():
    exploded = trace([717.0, *[2.303] * 9], first=2.35)
    assert fired(Diagnosis()["PLC"], exploded) == []
    assert fired(median_plc(), exploded)[0] == 6
    assert "median change of the loss" in str(median_plc()(exploded))


@pytest.mark.parametrize(
    "losses",
    [
        [0.1, 0.09, 0.088, 0.087, 0.086, 0.085],  # fell at once
        [717.0, 1.5, 1.2, 1.1, 1.09, 1.08, 1.07],  # exploded, and learned
        [2.2, 2.1, 2.0, 1.9, 1.8],
    ],
)
def test_the_median_gap_spares_what_has_learned(losses):
    assert fired(median_plc(), trace(losses, first=2.3)) == []


def test_the_median_gap_spares_what_crawls_along_below_the_loss_of_a_constant():
    crawling = [2.25 - 0.002 * n for n in range(10)]
    assert fired(median_plc(), trace(crawling, first=2.3)) == []
    unsure = {"label/trivial_error": 0.05}
    assert fired(median_plc(), trace(crawling, first=2.3, scalars=unsure))
    unknown = {"label/trivial_loss": math.nan}
    assert fired(median_plc(), trace(crawling, first=2.3, scalars=unknown))
    labels = {"label/trivial_loss", "label/trivial_error"}
    assert median_plc().needs - PassiveLossChanges().needs == labels


def test_the_median_gap_is_taken_over_a_share_of_the_plan():
    # 0.5 % an epoch is flat in 20 epochs, but not in 100.
    slow = [2.3 * 0.995**n for n in range(1, 10)]
    facts = {"first": 2.3, "scalars": {"label/trivial_loss": math.nan}}
    assert fired(median_plc(), trace(slow, **facts))
    assert fired(median_plc(), trace(slow, **facts, max_epochs=100)) == []


def test_the_median_gap_measures_what_plain_python_measures():
    plc = PassiveLossChanges(gap="median")
    for planned, stride in ((20, 1), (60, 3)):
        of = trace(LEARNING, first=2.3, max_epochs=planned)
        values = [2.3, *LEARNING]
        steps = values[::-1][::stride]
        gaps = sorted(abs(a - b) for a, b in itertools.pairwise(steps))
        middle = (gaps[(len(gaps) - 1) // 2] + gaps[len(gaps) // 2]) / 2
        assert same_number(plc.measure(of), middle / 2.3)


def test_an_unknown_gap_is_refused():
    with pytest.raises(
        ValueError, match="`gap` must be 'mean' or 'median', got 'mode'"
    ):
        PassiveLossChanges(gap="mode")


def test_specimens_cover_every_rule():
    assert set(specimens_extended.SICK) == {cls.id for cls in FURTHER}
    assert set(reference.FURTHER) == {cls.id for cls in FURTHER}
