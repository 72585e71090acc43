import pytest
import specimens
from specimens import STUCK, learning, trace

from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.indicators import Finding
from kt_bttackler.rules import (
    AllOf,
    AnyFinding,
    AnyOf,
    NeverStop,
    Patience,
    ProtectTop,
    Rule,
)
from kt_bttackler.testing import check_rule
from kt_bttackler.trace import Header, Record, Trace

EVERY_RULE = [
    AnyFinding(),
    NeverStop(),
    Patience(),
    Patience(ProtectTop(), epochs=3),
    ProtectTop(),
    AnyOf((NeverStop(), AnyFinding())),
    AllOf((Patience(), AnyFinding())),
]
PLC = Finding("PLC", epoch=2, value=1e-5, threshold=1e-3)
AGV = Finding("AGV", epoch=2, value=float("inf"), threshold=1e4)


def test_every_rule_of_the_package_is_tested_here():
    def below(cls):
        return {cls, *(x for sub in cls.__subclasses__() for x in below(sub))}

    own = {c for c in below(Rule) if c.__module__.startswith("kt_bttackler.rules")}
    own = {c for c in own if c is not Rule and not c.__name__.startswith("_")}
    assert {type(rule) for rule in EVERY_RULE} >= own


@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_keeps_the_contract(rule):
    check_rule(rule)


def peers(losses, started=0.0, seconds=1.0):
    header = Header(started=started)
    return [Trace(header, [Record(1, seconds, {"loss": loss})]) for loss in losses]


def judged(loss, others, findings=(PLC,), started=100.0):
    mine = Trace(Header(started=started), [Record(1, 1.0, {"loss": loss})])
    return ProtectTop()([findings], mine, others)


TEN = [float(k) for k in range(1, 11)]


def test_the_best_tenth_is_protected():
    assert judged(1.0, peers(TEN)) == ()
    assert judged(5.0, peers(TEN)) == (PLC,)


def test_agv_is_never_protected():
    assert judged(1.0, peers(TEN), (AGV, PLC)) == (AGV,)


def test_fewer_than_ten_peers_protect_nothing():
    assert judged(0.0, peers(TEN[:9])) == (PLC,)


def test_losses_that_are_not_finite_do_not_count_nor_spoil():
    broken = peers([float("nan"), float("inf")])
    assert judged(1.0, peers(TEN) + broken) == ()
    assert judged(0.0, peers(TEN[:9]) + broken) == (PLC,)


def test_what_peers_record_later_is_not_seen():
    assert judged(0.0, peers(TEN, started=100.0, seconds=1.5)) == (PLC,)
    assert judged(0.0, peers(TEN, started=100.0, seconds=0.5)) == ()


def test_protection_is_permanent():
    once_good = Trace(
        Header(started=100.0),
        [Record(1, 1.0, {"loss": 0.5}), Record(2, 2.0, {"loss": 99.0})],
    )
    assert ProtectTop()([(PLC,)], once_good, peers(TEN)) == ()


def test_peers_are_not_read_when_nothing_is_at_stake():
    def unread():
        raise AssertionError("peers were read")
        yield

    assert ProtectTop()([()], peers([1.0])[0], unread()) == ()
    assert ProtectTop()([(AGV,)], peers([1.0])[0], unread()) == (AGV,)


def test_patience_asks_the_wrapped_rule_epoch_by_epoch():
    sick = specimens.SICK["PLC"]
    patient = Diagnosis(Diagnosis().indicators, Patience(AnyFinding(), epochs=3))
    stops = [bool((v := patient(p)) and v.stop) for p in sick.prefixes()]
    assert stops.index(True) == 3
    assert patient.rule.lookback == 3


def test_any_of_and_all_of_gather_grounds():
    findings = [(PLC, AGV)]
    mine = Trace(Header(), [Record(1, 1.0, {"loss": 1.0})])
    assert set(AnyOf((AnyFinding(), ProtectTop()))(findings, mine)) == {PLC, AGV}
    assert AllOf((AnyFinding(), NeverStop()))(findings, mine) == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Patience(epochs=0), "`epochs` must be at least 1, got 0"),
        (lambda: ProtectTop(fraction=1.5), r"`fraction` must be in \(0, 1\), got 1.5"),
        (lambda: ProtectTop(min_peers=0), "`min_peers` must be at least 1, got 0"),
        (lambda: AnyOf(()), "`rules` must hold at least one rule"),
        (lambda: AllOf(()), "`rules` must hold at least one rule"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_conservative_preset_protects_and_the_paper_does_not():
    others = [trace([2.31] * 10, max_epochs=20) for _ in range(10)]
    sick = trace(STUCK)
    assert Diagnosis("paper")(sick, others).stop
    kept = Diagnosis("conservative")(sick, others)
    assert not kept.stop
    assert [finding.indicator for finding in kept.findings] == ["PLC"]
    assert Diagnosis()(trace(learning())) is None
