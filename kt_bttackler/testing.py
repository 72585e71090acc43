"""Contracts of indicators, rules and oracles, for this package's tests and for yours.

```python
from kt_bttackler.testing import check_indicator

def test_my_indicator():
    check_indicator(LossAboveFirst(), sick=[diverging_trace], healthy=[good_trace])
```
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.indicators import Finding, QualityIndicator
from kt_bttackler.rules import NeverStop, Rule
from kt_bttackler.trace import Header, Record, Trace


def check_indicator(
    indicator: QualityIndicator,
    sick: Iterable[Trace] = (),
    healthy: Iterable[Trace] = (),
) -> None:
    """Asserts what every indicator promises.

    It is a frozen dataclass that survives pickle, copy and JSON; the same trace gives
    the same answer and stays as it was; it judges by the statistics it declares and by
    nothing that comes later; it never fires on an empty trace, nor, unless it judges
    every epoch, at the last planned one; it fires on what is sick and not on what is
    healthy; `measure_all` is `measure` of every prefix.

    Args:
        indicator: an instance.
        sick: traces on which it must be positive at some epoch.
        healthy: traces on which it must never be.

    Raises:
        AssertionError: a promise is broken.
    """
    name = type(indicator).__name__
    assert dataclasses.is_dataclass(indicator), f"{name} is no dataclass"
    assert indicator.id, f"{name} has no id"
    assert all(isinstance(need, str) for need in indicator.needs), name
    for twin in (pickle.loads(pickle.dumps(indicator)), copy.deepcopy(indicator)):
        assert twin == indicator, f"{name} changes when it is copied"
    alone = Diagnosis([indicator])
    assert Diagnosis.from_json(alone.to_json()) == alone, f"{name} is lost in JSON"
    assert indicator(Trace(Header())) is None, f"{name} fires on an empty trace"

    sick, healthy = list(sick), list(healthy)
    for trace in (*sick, *healthy):
        before = trace.records
        fired = _fired(indicator, trace)
        assert fired == _fired(indicator, trace), f"{name} gives two answers"
        assert trace.records == before, f"{name} changes the trace"
        for length in range(1, len(trace)):
            assert fired[:length] == _fired(indicator, _cut(trace, length)), (
                f"{name} looks ahead of epoch {length}"
            )
        together, alone_values = _measured(indicator, trace)
        assert len(together) == len(alone_values), f"{name} measures too little"
        assert all(map(same_number, together, alone_values)), (
            f"{name} measures {together} together and {alone_values} one by one"
        )
        bare = _only(trace, indicator.needs)
        assert fired == _fired(indicator, bare), f"{name} needs more than it declares"
    for trace in sick:
        assert any(_fired(indicator, trace)), f"{name} misses {trace}"
    for trace in healthy:
        findings = [finding for finding in _fired(indicator, trace) if finding]
        assert not findings, f"{name} fires on healthy {trace}: {findings[0]}"


def check_rule(rule: Rule) -> None:
    """Asserts what every rule promises.

    It is a frozen dataclass that survives pickle, copy and JSON; it never stops without
    a finding to name, whatever the peers, nor without those of indicators where it says
    that it needs them; the order of the findings of an epoch does not matter; no peers,
    and peers without records, are legal.

    Args:
        rule: an instance.

    Raises:
        AssertionError: a promise is broken.
    """
    name = type(rule).__name__
    for twin in (pickle.loads(pickle.dumps(rule)), copy.deepcopy(rule)):
        assert twin == rule, f"{name} changes when it is copied"
    diagnosis = Diagnosis([], rule)
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis, f"{name}: JSON"
    trace = Trace(
        Header(max_epochs=10),
        [Record(n, float(n), {"loss": 1.0, "objective": 1.0}) for n in range(1, 7)],
    )
    one = Finding("PLC", epoch=6, value=1e-5, threshold=1e-3)
    other = Finding("LAR", epoch=6, value=0.9, threshold=0.5)
    for peers in ((), [Trace(Header())], [trace]):
        forward = [(one, other)] * len(trace)
        backward = [(other, one)] * len(trace)
        assert set(rule(forward, trace, peers)) == set(rule(backward, trace, peers)), (
            f"{name} depends on the order of findings"
        )
        if rule.needs_findings:
            nothing: list[tuple[Finding, ...]] = [()] * len(trace)
            assert not rule(nothing, trace, peers), f"{name} stops on no finding"
        for finding in rule(forward, trace, peers):
            assert isinstance(finding, Finding), f"{name} gives no findings"
        assert NeverStop()(forward, trace, peers) == ()
    assert rule.lookback >= 1, f"{name} looks at no epoch"


def check_oracle(make_oracle: Callable[..., Any]) -> None:
    """Asserts what every oracle that understands diagnosed trials promises.

    Values are inside the space, conditional scopes included; the same seed gives the
    same sequence; a search that is killed in every trial and resumed goes on with the
    same sequence; diagnosed trials never end a search, whatever their last values are,
    and are never reported before a completed one; the state is strict JSON, but for
    metrics that are not finite.

    Args:
        make_oracle: makes an oracle, with the arguments `objective`,
            `hyperparameters` and `seed`. It must allow at least 8 trials. What the
            oracle does after its initial points is checked if these are fewer.

    Raises:
        AssertionError: a promise is broken.

    Example:
        >>> import kt_bttackler as ktb
        >>> check_oracle(ktb.oracles.RandomSearchOracle)
    """
    # Not above: indicators and rules are checked without KerasTuner.
    from kt_bttackler.oracles import contract

    sequence = contract.check_values(make_oracle)
    contract.check_resuming(make_oracle, sequence)
    contract.check_diagnosed(make_oracle)
    contract.check_files(make_oracle)


def _fired(indicator: QualityIndicator, trace: Trace) -> list[Finding | None]:
    return [indicator(prefix) for prefix in trace.prefixes()]


def _measured(
    indicator: QualityIndicator, trace: Trace
) -> tuple[list[float], list[float]]:
    """Measures of the prefixes, together and one by one, on traces of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where it would not judge
        together = indicator.measure_all(_cut(trace, len(trace)))
        one_by_one = [indicator.measure(prefix) for prefix in trace.prefixes()]
    return [float(value) for value in together], one_by_one


def _cut(trace: Trace, length: int) -> Trace:
    """A trace that really ends, unlike a prefix, which shares its arrays."""
    return Trace(trace.header, trace.records[:length])


def _only(trace: Trace, needs: frozenset[str]) -> Trace:
    """The trace with nothing but the statistics named."""
    records = [
        dataclasses.replace(
            record,
            scalars={k: v for k, v in record.scalars.items() if k in needs},
            columns={k: v for k, v in record.columns.items() if k in needs},
        )
        for record in trace.records
    ]
    return Trace(trace.header, records)


def same_number(one: float, other: float, tolerance: float = 1e-9) -> bool:
    """Whether two measures agree, `nan` with `nan` included."""
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return one == other or math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-12)
