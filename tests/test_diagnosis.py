import dataclasses
import json

import pytest
import specimens

from kt_bttackler import channel
from kt_bttackler.diagnosis import Diagnosis, Verdict
from kt_bttackler.indicators import Finding, QualityIndicator
from kt_bttackler.presets import PRESETS
from kt_bttackler.rules import AnyFinding, NeverStop
from kt_bttackler.trace import Header, Record, Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clumsy(QualityIndicator):
    needs = frozenset({"loss"})
    threshold: float = 1.0

    def measure(self, trace):
        raise RuntimeError("stumbled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryEpoch(QualityIndicator):
    needs = frozenset({"loss"})
    threshold: float = 0.0

    def measure(self, trace):
        return 1.0


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_hold_the_seven_and_survive_json(preset):
    diagnosis = Diagnosis(preset)
    ids = [indicator.id for indicator in diagnosis.indicators]
    assert {"AGV", "EAG", "ERG", "PLC", "LAR", "ULC", "NMG"} <= set(ids)
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis
    json.loads(diagnosis.to_json(), parse_constant=lambda name: pytest.fail(name))


def test_the_default_is_conservative():
    assert Diagnosis() == Diagnosis("conservative")


def test_indicators_of_ones_own_survive_json():
    diagnosis = Diagnosis([EveryEpoch(threshold=0.5)], NeverStop())
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis


def test_nothing_is_imported_on_the_word_of_a_file():
    text = '{"indicators": [{"type": "os:system", "command": "x"}], "rule": {"type": "AnyFinding"}}'
    with pytest.raises(ValueError, match="unknown type 'os:system'"):
        Diagnosis.from_json(text)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"indicators": 1, "rule": 2}', "NaN"]
)
def test_what_is_no_diagnosis_is_refused(text):
    with pytest.raises(ValueError, match="not a diagnosis"):
        Diagnosis.from_json(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        Diagnosis.load(tmp_path / "none.json")


def test_without_and_replace_leave_the_original_alone():
    diagnosis = Diagnosis()
    assert diagnosis.replace("ERG", threshold=1e-4)["ERG"].threshold == 1e-4
    assert diagnosis["ERG"].threshold == 1e-3
    assert len(diagnosis.without("LAR", "NMG").indicators) == 5
    assert diagnosis.rule == diagnosis.without("LAR").rule


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Diagnosis("careless"), ValueError, "`indicators` must be one of"),
        (
            lambda: Diagnosis([3]),
            TypeError,
            "must be QualityIndicator instances or ids, got 3",
        ),
        (
            lambda: Diagnosis([], rule=3),
            TypeError,
            "`rule` must be a Rule instance, got 3",
        ),
        (lambda: Diagnosis([EveryEpoch()] * 2), ValueError, "different ids"),
        (lambda: Diagnosis().without("ABC"), KeyError, "no indicator 'ABC' among"),
        (lambda: Diagnosis().replace("ERG", speed=1), TypeError, "speed"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_needs_are_the_union():
    assert Diagnosis([EveryEpoch()]).needs == {"loss"}
    assert Diagnosis([]).needs == frozenset()
    assert "activation/constant_ratio" in Diagnosis().needs
    assert not any("/" in need for need in Diagnosis(Diagnosis().indicators[5:]).needs)


def test_an_indicator_that_raises_is_switched_off_with_one_warning():
    diagnosis = Diagnosis([Clumsy(), EveryEpoch()])
    disabled = set()
    sick = specimens.SICK["PLC"]
    with pytest.warns(
        RuntimeWarning, match="indicator CLUMSY is off: RuntimeError: stumbled"
    ) as seen:
        found = [diagnosis.findings(prefix, disabled) for prefix in sick.prefixes()]
    assert len(seen) == 1
    assert all(findings[0].indicator == "EVERY_EPOCH" for findings in found)


def test_after_agv_nothing_else_is_asked():
    sick = specimens.SICK["AGV"]
    diagnosis = Diagnosis([*Diagnosis().indicators, Clumsy()])
    assert [f.indicator for f in diagnosis.findings(sick)] == ["AGV"]


def test_a_verdict_names_its_grounds_first():
    sick = specimens.trace(specimens.STUCK, gradients=[0.0] * 4, inactive=0.9)
    verdict = Diagnosis()(sick.prefix(3))
    assert [f.indicator for f in verdict.findings] == ["ERG", "PLC", "LAR"]
    assert (verdict.cause, verdict.stop, verdict.benign) == ("ERG", True, False)
    assert str(verdict) == (
        "ERG at epoch 3: gradient flow 0 < 0.001, layer dense_0 (and 2 more)"
    )


def test_the_message_says_what_to_try():
    verdict = Diagnosis()(specimens.SICK["PLC"].prefix(3))
    sentence, advice = verdict.message.splitlines()
    assert sentence == str(verdict)
    assert advice == f"Try: {verdict.findings[0].advice}."
    custom = Diagnosis([EveryEpoch()])(specimens.SICK["PLC"])
    assert custom.message == str(custom)
    assert Verdict(False, False, 3, None, (), "NeverStop").message == (
        "epoch 3: no finding"
    )


def test_never_stop_still_reports():
    verdict = Diagnosis(rule=NeverStop())(specimens.SICK["PLC"])
    assert (verdict.stop, verdict.cause, verdict.rule) == (False, None, "NeverStop")
    assert [f.indicator for f in verdict.findings] == ["PLC"]
    assert Diagnosis(rule=NeverStop())(specimens.HEALTHY["noisy"]) is None


def test_an_empty_trace_has_no_verdict():
    assert Diagnosis()(Trace(Header())) is None


def test_verdicts_survive_json():
    for name, sick in specimens.SICK.items():
        verdict = Diagnosis(rule=AnyFinding())(sick)
        assert Verdict.from_json(verdict.to_json()) == verdict, name
        json.loads(verdict.to_json(), parse_constant=lambda name: pytest.fail(name))
    with pytest.raises(ValueError, match="not a verdict"):
        Verdict.from_json('{"stop": true}')


def test_the_channel_carries_a_verdict():
    sick = specimens.trace(specimens.STUCK, gradients=[0.0] * 4, inactive=0.9)
    verdict = Diagnosis()(sick.prefix(3))
    entries = channel.encode(verdict, {"loss": 2.3, "val_loss": float("nan")})
    assert entries["diagnosis/stopped"] == 1.0
    assert entries["diagnosis/ERG/layer/dense_0"] == 1.0
    # gRPC keeps neither the order nor all digits.
    message = channel.decode(dict(sorted(entries.items(), reverse=True)))
    assert dataclasses.replace(message.verdict, rule=verdict.rule) == verdict
    assert set(message.last) == {"loss", "val_loss"}
    assert channel.without_channel({"loss": 1.0, **entries}) == {"loss": 1.0}


def test_the_channel_says_when_nothing_was_wrong_and_when_nobody_looked():
    assert channel.decode(channel.encode(None, {"loss": 1.0})).verdict is None
    watched = Diagnosis(rule=NeverStop())(specimens.SICK["PLC"])
    assert channel.decode(channel.encode(watched, {})).verdict is None
    assert channel.decode({"val_loss": 1.0}) is None


def test_executions_of_unknown_order_count_only_together():
    stopped = channel.encode(
        Verdict(True, False, 1, "AGV", (Finding("AGV", 1, 1.0, 0.5),), "AnyFinding"), {}
    )
    assert channel.decode(stopped | {"diagnosis/stopped": 0.5}).verdict is None
    assert channel.decode(stopped).verdict.cause == "AGV"


def test_findings_of_unknown_indicators_keep_what_is_known():
    message = channel.decode(
        {
            "diagnosis/stopped": 1.0,
            "diagnosis/epoch": 2.0,
            "diagnosis/FOREIGN/value": 3.0,
            "diagnosis/FOREIGN/threshold": 2.0,
        }
    )
    assert str(message.verdict) == "FOREIGN at epoch 2: value 3 > 2"


def test_a_custom_indicator_decides_like_the_built_in_ones():
    verdict = Diagnosis([EveryEpoch()])(
        Trace(Header(), [Record(1, 1.0, {"loss": 1.0})])
    )
    assert str(verdict) == "EVERY_EPOCH at epoch 1: value 1 > 0"
