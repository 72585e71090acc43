"""The in-band channel: how a verdict travels from a worker to the oracle.

KerasTuner ships the History of a training to the oracle, over gRPC too, as a map
of names to numbers taken at the best epoch. A verdict travels in it as entries
that are the same at every epoch:

    diagnosis/stopped                1.0 or 0.0
    diagnosis/benign                 1.0 or 0.0
    diagnosis/epoch                  n
    diagnosis/<ID>/value             what was measured
    diagnosis/<ID>/threshold         what it was compared with
    diagnosis/<ID>/layer/<name>      1.0
    diagnosis/last/<metric>          the metric at the last whole epoch

Names carry what must not be averaged over executions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from kt_bttackler.catalog import known_indicators
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.indicators import Finding

PREFIX = "diagnosis/"
STOPPED, _BENIGN, _EPOCH = (PREFIX + name for name in ("stopped", "benign", "epoch"))
_LAST = PREFIX + "last/"


@dataclasses.dataclass(frozen=True)
class Message:
    """What the channel carried.

    Attributes:
        verdict: why the training was stopped, or `None` when it was not.
        last: metrics of the last whole epoch of a stopped training.
    """

    verdict: Verdict | None
    last: Mapping[str, float]


def encode(verdict: Verdict | None, last: Mapping[str, float]) -> dict[str, float]:
    """The entries for one training.

    Args:
        verdict: the verdict that stopped the training, or `None`.
        last: metrics of its last whole epoch; empty when there was none.
    """
    if verdict is None or not verdict.stop:
        return {STOPPED: 0.0}
    entries = {
        STOPPED: 1.0,
        _BENIGN: float(verdict.benign),
        _EPOCH: float(verdict.epoch),
    }
    # Without order on the way, a warning would pass for the cause.
    for finding in (each for each in verdict.findings if not each.warning):
        key = PREFIX + finding.indicator
        entries[f"{key}/value"] = float(finding.value)
        entries[f"{key}/threshold"] = float(finding.threshold)
        if finding.layer is not None:
            entries[f"{key}/layer/{finding.layer}"] = 1.0
    return entries | {_LAST + name: float(value) for name, value in last.items()}


def decode(metrics: Mapping[str, float]) -> Message | None:
    """Reads the entries back from the metrics of a trial.

    Averages over several executions whose order is unknown are read with care: the
    trial counts as stopped only when every one of them was.

    Returns:
        `None` when the metrics carry no message: no diagnosing callback ran, or
        its entries were lost on the way.
    """
    if STOPPED not in metrics:
        return None
    if metrics[STOPPED] < 1.0:
        return Message(None, {})
    epoch = round(metrics.get(_EPOCH, 0.0))
    findings = tuple(
        _finding(indicator_id, epoch, metrics) for indicator_id in _ids(metrics)
    )
    verdict = Verdict(
        stop=True,
        benign=metrics.get(_BENIGN, 0.0) >= 1.0,
        epoch=epoch,
        cause=findings[0].indicator if findings else None,
        findings=findings,
        rule="",
    )
    last = {
        name.removeprefix(_LAST): float(value)
        for name, value in metrics.items()
        if name.startswith(_LAST)
    }
    return Message(verdict, last)


def with_last(
    entries: Mapping[str, float], last: Mapping[str, float]
) -> dict[str, float]:
    """The entries of a stopped training with other metrics as its last ones.

    Args:
        entries: what `encode` returned; unchanged unless they tell of a stop.
        last: metrics that take the place of those of the same name.
    """
    if entries.get(STOPPED, 0.0) < 1.0:
        return dict(entries)
    return {**entries, **{_LAST + name: float(value) for name, value in last.items()}}


def without_channel(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are the user's own."""
    return {k: v for k, v in metrics.items() if not k.startswith(PREFIX)}


def _ids(metrics: Mapping[str, float]) -> list[str]:
    """Ids of the findings: bad before benign, then in the order of reporting."""
    known = list(known_indicators().values())
    rank = {cls.id: (cls.benign, position) for position, cls in enumerate(known)}
    ids = {
        name.removeprefix(PREFIX).removesuffix("/value")
        for name in metrics
        if name.startswith(PREFIX) and name.endswith("/value")
    }
    return sorted(ids, key=lambda i: (*rank.get(i, (False, len(known))), i))


def _finding(indicator_id: str, epoch: int, metrics: Mapping[str, float]) -> Finding:
    key = PREFIX + indicator_id
    layers = [
        name.removeprefix(f"{key}/layer/")
        for name in metrics
        if name.startswith(f"{key}/layer/")
    ]
    value = float(metrics[f"{key}/value"])
    known = known_indicators().get(indicator_id)
    return Finding(
        indicator=indicator_id,
        epoch=epoch,
        value=value,
        threshold=float(metrics.get(f"{key}/threshold", float("nan"))),
        layer=layers[0] if layers else None,
        advice=known.advice if known else "",
        quantity=known.describe(value) if known else "value",
    )
