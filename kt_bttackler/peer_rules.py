"""What rules have in common that compare a trial's objective with that of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from kt_bttackler.fuses import warn_once
from kt_bttackler.indicators import Finding
from kt_bttackler.rules import Findings, Rule
from kt_bttackler.trace import Trace


@dataclasses.dataclass(frozen=True)
class PeerRule(Rule):
    """Base class of rules that find by comparison, with or without indicators.

    Judges epochs at which the objective was recorded, but not the last planned one,
    where nothing is left to save. It knows of other trials what existed at
    `trace.moment`. With none at all, as in a `fit` without a search, it stops nothing
    and says so once.

    Attributes:
        start_epoch: the first epoch that is judged, at least 1.
        id: names its findings.
        quantity: what the value of a finding is, in words.
        advice: what to try.
        benign: always false: the trial has lost.
    """

    start_epoch: int = 1

    id: ClassVar[str] = ""
    quantity: ClassVar[str] = "value"
    advice: ClassVar[str] = ""
    benign: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.start_epoch < 1:
            raise ValueError(
                f"`start_epoch` must be at least 1, got {self.start_epoch}."
            )

    @classmethod
    def describe(cls, value: float) -> str:
        """What `value` is, in words."""
        return cls.quantity

    def __call__(
        self, findings: Sequence[Findings], trace: Trace, peers: Iterable[Trace] = ()
    ) -> Findings:
        """A finding of its own, or none; those of indicators do not matter."""
        if not self.judges(trace):
            return ()
        beyond = self.compare(trace, _comparable(self.id, trace, peers))
        if beyond is None:
            return ()
        value, threshold = beyond
        return (
            Finding(
                indicator=self.id,
                epoch=trace.epoch,
                value=value,
                threshold=threshold,
                advice=self.advice,
                quantity=self.describe(value),
            ),
        )

    def judges(self, trace: Trace) -> bool:
        """Whether the last epoch of `trace` is one to judge."""
        last, planned = trace.last, trace.max_epochs
        return (
            last is not None
            and not last.partial
            and "objective" in last.scalars
            and last.epoch >= self.start_epoch
            and (planned is None or last.epoch < planned)
        )

    def compare(
        self, trace: Trace, peers: Sequence[Trace]
    ) -> tuple[float, float] | None:
        """What was measured and its bound, or `None` to go on.

        Args:
            trace: all that is known of the training; its last epoch is judged.
            peers: other trials of the same search, whatever their state.
        """
        raise NotImplementedError


def objective_costs(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """The objective as a cost: less is better whatever the direction.

    Returns:
        The epochs at which it was recorded, and its values, infinite where they are
        not finite, [P] each.
    """
    known = [record for record in trace.records if "objective" in record.scalars]
    epochs = np.array([record.epoch for record in known], dtype=float)
    values = np.array([record.scalars["objective"] for record in known], dtype=float)
    costs = -values if trace.header.direction == "max" else values
    return epochs, np.where(np.isfinite(costs), costs, np.inf)


def completed(
    trace: Trace, peers: Iterable[Trace], *, stopped: bool = False
) -> list[Trace]:
    """Other trials that had run to their end at `trace.moment`, one trace of each.

    Args:
        trace: the trial that is judged.
        peers: other trials.
        stopped: also those that were ended early.
    """
    ends = ("finished", "stopped") if stopped else ("finished",)
    found: dict[str | int, Trace] = {}
    for peer in peers:
        if peer.end in ends and peer.moment <= trace.moment:
            trial_id = peer.header.trial_id
            found.setdefault(len(found) if trial_id is None else trial_id, peer)
    return list(found.values())


def _comparable(rule_id: str, trace: Trace, peers: Iterable[Trace]) -> list[Trace]:
    """Traces of other trials with the same objective."""
    others = list(peers)
    # An empty list from a search that knows its trials is that of its first trial.
    if not others and (trace.header.trial_id is None or peers == ()):
        warn_once(
            f"{rule_id} compares a trial with those before it, and there are none to "
            "be seen here: it stops nothing."
        )
    own = trace.header
    return [
        peer
        for peer in others
        if (own.objective, own.direction)
        == (peer.header.objective, peer.header.direction)
        and (own.trial_id is None or own.trial_id != peer.header.trial_id)
    ]
