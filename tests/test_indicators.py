import dataclasses
import math

import pytest
import reference
import specimens
from specimens import STUCK, learning, trace

from kt_bttackler.catalog import SEVEN
from kt_bttackler.course import window_epochs
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.presets import PRESETS
from kt_bttackler.testing import check_indicator, same_number
from kt_bttackler.trace import Record, Trace

EVERY_TRACE = {
    **specimens.HEALTHY,
    **{f"sick {k}": v for k, v in specimens.SICK.items()},
}


def first_epoch(indicator, of):
    return next((p.epoch for p in of.prefixes() if indicator(p)), None)


@pytest.mark.parametrize("cls", SEVEN, ids=lambda cls: cls.id)
def test_keeps_the_contract(cls):
    check_indicator(
        cls(), sick=[specimens.SICK[cls.id]], healthy=specimens.HEALTHY.values()
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_indicators_of_every_preset_keep_the_contract(preset):
    for indicator in Diagnosis(preset).indicators:
        check_indicator(indicator, sick=[], healthy=[])


@pytest.mark.parametrize("name", EVERY_TRACE)
@pytest.mark.parametrize("cls", SEVEN, ids=lambda cls: cls.id)
def test_measures_what_the_reference_measures(cls, name):
    for prefix in EVERY_TRACE[name].prefixes():
        measured = cls().measure(prefix)
        assert isinstance(measured, float)
        expected = reference.SEVEN[cls.id](prefix)
        assert same_number(measured, expected), (prefix.epoch, measured, expected)


@pytest.mark.parametrize(
    ("indicator_id", "epoch"),
    [("AGV", 3), ("EAG", 2), ("ERG", 2), ("PLC", 2), ("LAR", 3), ("NMG", 16)],
)
def test_fires_at_its_first_epoch(indicator_id, epoch):
    assert first_epoch(Diagnosis()[indicator_id], specimens.SICK[indicator_id]) == epoch


@pytest.mark.parametrize("planned", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("cls", SEVEN[1:], ids=lambda cls: cls.id)
def test_never_fires_at_the_last_planned_epoch(cls, planned):
    sick = trace(STUCK[:planned], gradients=[0.0] * 4, inactive=1.0, max_epochs=planned)
    assert cls()(sick) is None


def test_agv_marks_the_last_epoch_too():
    sick = trace([2.3, math.inf], max_epochs=2)
    assert Diagnosis()(sick).cause == "AGV"


@pytest.mark.parametrize(
    ("planned", "epochs"),
    [
        (1, {}),
        (2, {"EAG": None, "ERG": 1, "PLC": None, "LAR": None}),
        (5, {"ERG": 1, "PLC": 2, "LAR": 2}),
        (7, {"ERG": 1, "PLC": 2, "LAR": 2}),
        (8, {"ERG": 2, "PLC": 2, "LAR": 3}),
        (None, {"ERG": 2, "PLC": 2, "LAR": 3, "ULC": None, "NMG": None}),
    ],
)
def test_short_plans_have_no_patience_and_no_plan_has_five_early_epochs(
    planned, epochs
):
    sick = trace(STUCK, gradients=[0.0] * 4, inactive=1.0, max_epochs=planned)
    sick = sick.prefix(min(len(sick), planned or len(sick)))
    fired = {i.id: first_epoch(i, sick) for i in Diagnosis().indicators}
    assert {k: fired[k] for k in epochs} == epochs


def test_early_indicators_keep_quiet_in_the_late_half():
    sick = trace(learning(10) + [0.5] * 9)
    late = Trace(sick.header, sick.records[10:])
    assert not any(PLC(prefix) for prefix in late.prefixes())


PLC = Diagnosis()["PLC"]


def test_two_edges_with_an_exact_zero_are_judged_on_the_safe_side():
    # Edges: 0/0 is dropped, then infinity and a moderate ratio are left.
    head = {"layers": 4, "edges": ((0, 1), (1, 2), (2, 3))}
    odd = trace(STUCK, gradients=[1.0, 0.0, 0.5, 0.1], **head)
    assert Diagnosis()["EAG"].measure(odd) == 5.0
    assert Diagnosis()["ERG"].measure(odd) == 5.0
    even = trace(STUCK, gradients=[1.0, 0.0, 0.0, 0.1], **head)
    assert Diagnosis()["EAG"].measure(even) == 0.0
    assert math.isinf(Diagnosis()["ERG"]._median_ratio(even, upper=True)), (
        "dead flow aside, ERG takes the upper of zero and infinity"
    )


def test_a_net_that_learns_is_not_stopped_for_its_gradients_or_its_units():
    tiny = trace(learning(), gradients=[1e-13, 1e-9, 1e-5, 1e-1], inactive=0.9)
    assert first_epoch(Diagnosis()["ERG"], tiny) is None
    assert first_epoch(Diagnosis()["LAR"], tiny) is None
    unguarded = Diagnosis("paper")
    assert first_epoch(unguarded["ERG"], tiny) == 1
    assert first_epoch(unguarded["LAR"], tiny) == 2


@pytest.mark.parametrize("rates", ["recorded", "planned", "declared"])
def test_early_indicators_wait_for_the_warm_up_to_end(rates):
    rising = [0.001, 0.002, 0.003, 0.004, 0.004, 0.004, 0.004, 0.004, 0.004, 0.004]
    changes = {}
    if rates == "planned":
        changes["planned_learning_rates"] = (0.0, *rising, *[0.004] * 10)
    if rates == "declared":
        changes["warmup_epochs"] = 4
    sick = trace(STUCK, gradients=[0.0] * 4, **changes)
    if rates == "recorded":
        records = [
            dataclasses.replace(r, scalars=r.scalars | {"learning_rate": rate})
            for r, rate in zip(sick.records, rising, strict=True)
        ]
        sick = Trace(sick.header, records)
    assert first_epoch(PLC, sick) == 6
    assert first_epoch(Diagnosis()["ERG"], sick) == 6


def test_plc_waits_while_a_rise_is_scheduled():
    restart = (0.1,) * 9 + (0.2,) + (0.1,) * 11
    assert first_epoch(PLC, trace(STUCK, planned_learning_rates=restart)) == 9


def test_ulc_keeps_quiet_after_a_restart():
    sick = specimens.SICK["ULC"]
    assert first_epoch(Diagnosis()["ULC"], sick) is not None
    records = [
        dataclasses.replace(r, scalars=r.scalars | {"learning_rate": 0.01 * r.epoch})
        for r in sick.records
    ]
    assert first_epoch(Diagnosis()["ULC"], Trace(sick.header, records)) is None


def test_a_shrinking_penalty_does_not_hide_a_passive_loss():
    losses = [2.3 + 10 * 0.8**n for n in range(10)]
    sick = trace(losses, first=2.3 + 12.5)
    records = []
    for n, record in enumerate(sick.records):
        extra = {
            "val_loss": record.scalars["loss"],
            "regularization": 10 * 0.8**n,
            "first_regularization": 12.5,
        }
        records.append(dataclasses.replace(record, scalars=record.scalars | extra))
    assert first_epoch(PLC, sick) is None
    assert first_epoch(PLC, Trace(sick.header, records)) == 2


def test_plc_needs_three_epochs_without_the_first_batch():
    assert first_epoch(PLC, trace(STUCK, first=math.nan)) == 3


def test_nmg_asks_the_objective_unless_told_not_to():
    sick = specimens.SICK["NMG"]
    improving = Trace(
        sick.header,
        [
            dataclasses.replace(r, scalars=r.scalars | {"objective": 1.0 / r.epoch})
            for r in sick.records
        ],
    )
    assert first_epoch(Diagnosis()["NMG"], improving) is None
    assert first_epoch(Diagnosis("paper")["NMG"], improving) == 16


def test_nmg_is_benign_and_bad_beats_benign():
    sick = specimens.SICK["NMG"]
    assert Diagnosis()(sick.prefix(16)).benign
    dead = trace([r.scalars["loss"] for r in sick.records], inactive=0.9)
    verdict = Diagnosis("paper")(dead.prefix(16))
    assert (verdict.cause, verdict.benign) == ("LAR", False)


def test_lar_reads_gradients_where_no_probe_is_possible():
    head = {"unobserved": {"activation": "no probe data"}}
    sick = trace(STUCK, gradients=[0.1, 0.0, 0.0, 0.0], **head)
    finding = Diagnosis()["LAR"](sick)
    assert (finding.value, finding.threshold) == (1.0, 0.7)


def test_lar_takes_two_successive_probes_not_epochs():
    sick = trace(STUCK, inactive=0.9)
    gap = {3, 4}
    records = [
        dataclasses.replace(r, columns={} if r.epoch in gap else r.columns)
        for r in sick.records
    ]
    assert first_epoch(Diagnosis()["LAR"], Trace(sick.header, records)) == 5


def test_excluded_layers_are_left_out():
    sick = trace(STUCK, gradients=[0.0, 0.01, 0.011, 0.012])
    erg = Diagnosis()["ERG"]
    assert erg(sick).layer == "dense_0"
    assert dataclasses.replace(erg, exclude=("dense_0",))(sick) is None


def test_agv_says_which_layer_broke_and_tolerates_overflows_of_a_scaled_loss():
    def broken(share, **changes):
        base = trace(learning(3), **changes)
        finite = (1.0, 1.0, share) + (1.0,) * 5
        last = dataclasses.replace(
            base.last, columns=base.last.columns | {"step_gradient/finite": finite}
        )
        return Trace(base.header, [*base.records[:-1], last])

    agv = Diagnosis()["AGV"]
    assert agv(broken(0.9)).layer == "dense_1"
    assert agv(broken(0.6, loss_scaled=True)) is None
    assert agv(broken(0.4, loss_scaled=True)).layer == "dense_1"


@pytest.mark.parametrize("unit", [1.0, 1e3])
def test_agv_does_not_depend_on_the_unit_of_the_loss(unit):
    big = [9e3 * unit] * 4
    losses = [3.0 * unit, 2.9 * unit]
    assert Diagnosis()["AGV"](trace(losses, gradients=big)) is None
    assert Diagnosis()["AGV"](trace(losses, gradients=[4 * g for g in big]))


def test_a_broken_epoch_concerns_agv_alone():
    sick = trace(STUCK, gradients=[0.0] * 4)
    partial = dataclasses.replace(sick.records[3], partial=True)
    cut = Trace(sick.header, [*sick.records[:3], partial])
    assert Diagnosis().findings(cut) == ()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cls", SEVEN[1:], ids=lambda cls: cls.id)
def test_non_finite_losses_are_the_business_of_agv(cls, value):
    assert cls()(trace([2.3, value, 2.3, value] * 4)) is None


@pytest.mark.parametrize("cls", SEVEN, ids=lambda cls: cls.id)
def test_models_without_layers_and_records_without_statistics_are_legal(cls):
    bare = Trace(
        specimens.header(layers=0), [Record(n, 1.0 * n, {}) for n in (1, 2, 3)]
    )
    assert cls()(bare) is None
    assert math.isnan(cls().severity(bare))


def test_severity_is_zero_at_the_threshold_and_bounded():
    lar = Diagnosis()["LAR"]
    levels = [lar.severity(trace(STUCK, inactive=share)) for share in (0, 0.05, 0.5, 1)]
    assert levels == pytest.approx([-3, -1, 0, 0.30103], abs=1e-5)
    erg = Diagnosis()["ERG"]
    assert erg.severity(trace(STUCK, gradients=[0.0] * 4)) == 3


@pytest.mark.parametrize("offset", [2, 12])
def test_a_resumed_training_is_not_judged_for_its_early_epochs(offset):
    sick = trace(STUCK, gradients=[0.0] * 4, inactive=1.0)
    moved = [dataclasses.replace(r, epoch=r.epoch + offset) for r in sick.records[:5]]
    resumed = Trace(dataclasses.replace(sick.header, initial_epoch=offset), moved)
    assert not any(Diagnosis().findings(prefix) for prefix in resumed.prefixes())


def test_window_grows_with_the_plan_within_bounds():
    assert [window_epochs(e) for e in (1, 12, 20, 40, 200)] == [4, 4, 6, 12, 20]


def test_an_indicator_without_a_threshold_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Nothing(QualityIndicator):
        pass

    with pytest.raises(ValueError, match="`threshold` must be a number, got nan"):
        Nothing()
    assert Nothing.id == "NOTHING"


def test_exclude_must_not_be_a_string():
    with pytest.raises(ValueError, match="`exclude` must be a tuple"):
        SEVEN[1](exclude="dense")


def test_one_idle_input_of_several_is_no_dead_flow():
    fan_in = ((0, 2), (1, 2), (2, 3))
    idle = trace(STUCK, gradients=[0.0, 0.01, 0.01, 0.01], edges=fan_in)
    assert first_epoch(Diagnosis()["ERG"], idle) is None
    both = trace(
        STUCK,
        gradients=[0.0, 0.0, 0.01, 0.01, 0.01],
        layers=5,
        edges=((0, 2), (1, 2), (2, 3), (3, 4)),
    )
    assert first_epoch(Diagnosis()["ERG"], both) == 2


def test_ulc_does_not_judge_a_resumed_training():
    sick = specimens.SICK["ULC"]
    resumed = Trace(dataclasses.replace(sick.header, initial_epoch=3), sick.records)
    assert not any(Diagnosis()["ULC"](prefix) for prefix in resumed.prefixes())


@pytest.mark.parametrize("indicator_id", ["EAG", "ERG", "LAR"])
def test_unknown_progress_spares(indicator_id):
    sick = specimens.SICK[indicator_id]
    blind = [dataclasses.replace(r, scalars={"d_loss": 1.0}) for r in sick.records]
    assert not any(
        Diagnosis()[indicator_id](p) for p in Trace(sick.header, blind).prefixes()
    )


def test_an_infinite_gradient_that_is_clipped_is_no_finding():
    base = trace(learning(3), gradients_clipped=True)
    finite = {"step_gradient/finite": (0.5,) * 8}
    last = dataclasses.replace(base.last, columns=base.last.columns | finite)
    assert Diagnosis()["AGV"](Trace(base.header, [*base.records[:-1], last])) is None


def test_plc_forgets_what_was_flat_while_the_rate_warmed_up():
    flat_then_falling = [2.3] * 5 + [2.29, 2.27, 2.24, 2.2, 2.1]
    rising = trace(flat_then_falling, first=2.3, warmup_epochs=5)
    assert first_epoch(PLC, rising) is None
    assert first_epoch(PLC, trace(flat_then_falling, first=2.3)) == 2


def test_coming_down_from_an_explosion_is_no_progress():
    exploded = trace([500.0, 2.31, 2.3, 2.3, 2.3], first=2.4, inactive=1.0)
    # Spared while it lasts, no longer.
    assert first_epoch(Diagnosis()["LAR"], exploded) == 5


def test_plc_spares_a_plateau_that_falls_steadily():
    plateau = [0.694 - 0.0005 * n for n in range(59)]
    slow = trace(plateau, first=0.694, planned=60)
    # A steady fall is known from its sixth epoch on.
    assert [n for n in range(3, 31) if PLC(slow.prefix(n))] == [3, 4, 5, 6]
    noisy = [loss + 0.0003 * (-1) ** n for n, loss in enumerate(plateau)]
    assert PLC(trace(noisy, first=0.694, planned=60).prefix(11))


def test_plc_asks_the_validation_which_is_ahead_of_the_training_loss():
    slow = trace([2.3026, 2.3012, 2.3011], first=2.3026)
    assert first_epoch(PLC, with_validation(slow, [2.3029, 2.3029, 2.3029])) == 2
    assert first_epoch(PLC, with_validation(slow, [2.3029, 2.2976, 2.2976])) == 3


def with_validation(trained, checks):
    records = [
        dataclasses.replace(record, scalars={**record.scalars, "val_loss": check})
        for record, check in zip(trained.records, checks, strict=True)
    ]
    return Trace(trained.header, records)


def test_a_penalty_of_unknown_beginning_leaves_the_first_batch_out():
    sick = trace(STUCK, first=9.0)
    records = [
        dataclasses.replace(
            r,
            scalars=r.scalars
            | {"regularization": 1.0, "first_regularization": math.nan},
        )
        for r in sick.records
    ]
    assert first_epoch(PLC, Trace(sick.header, records)) == 3


def test_a_good_training_may_stumble():
    # Real losses of an LSTM that ended among the best.
    losses = [1.09, 0.78, 0.49, 0.33, 0.16, 0.07, 0.015, 0.004, 0.002, 0.002]
    losses += [0.001, 0.001, 0.001, 0.001, 0.001, 0.229, 0.05, 0.005]
    stumbling = specimens.trace(losses, first=1.1)
    assert first_epoch(Diagnosis()["ULC"], stumbling) is None
    assert first_epoch(Diagnosis("paper")["ULC"], stumbling) == 16


def test_dead_units_of_a_net_that_is_on_its_way_are_no_finding():
    # Real losses of a sparse net that learns slowly at first and steadily.
    losses = [2.3011, 2.2789, 2.2303, 2.1681, 2.0933, 2.0072, 1.9128, 1.8145]
    sparse = specimens.trace(losses, first=2.3028, inactive=0.98)
    assert first_epoch(Diagnosis()["LAR"], sparse) is None
    assert first_epoch(Diagnosis("paper")["LAR"], sparse) == 2


def test_long_plans_are_for_slow_starters():
    stuck = specimens.trace(specimens.STUCK, inactive=0.9, max_epochs=160)
    assert first_epoch(Diagnosis()["PLC"], stuck) == 8
    assert first_epoch(Diagnosis()["LAR"], stuck) == 9
    assert first_epoch(Diagnosis("paper")["LAR"], stuck) == 2
