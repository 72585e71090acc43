"""The median stopping rule (Golovin et al., Google Vizier, KDD'17)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from kt_bttackler.peer_rules import PeerRule, completed, objective_costs
from kt_bttackler.trace import Trace


@dataclasses.dataclass(frozen=True)
class MedianStoppingRule(PeerRule):
    """MSR: stops a trial that never was as good as others were on average.

    The best objective of the trial so far is strictly worse than the median, over the
    completed trials, of the running average of their objective up to the same epoch.
    Values that are not finite count as the worst in an average. A trial without any
    finite value is not judged.

    Trials count that had ended by then, that lasted to this epoch and, where trainings
    are resumed (Hyperband), that began at the same epoch.

    Args:
        start_epoch: the first epoch that is judged. Of the first epoch the running
            average is a single value, and half of all trials would be stopped there.
        min_completed: completed trials without which none is stopped.
        include_stopped: trials that were stopped count, too, up to their last epoch.
            Vizier does not count them.

    Raises:
        ValueError: `start_epoch` or `min_completed` is below 1.

    Example:
        >>> from kt_bttackler.trace import Header, Record
        >>> def curve(end, started, *accuracies):
        ...     header = Header(max_epochs=4, direction="max", started=started)
        ...     return Trace(header, [
        ...         Record(n, n, {"objective": value})
        ...         for n, value in enumerate(accuracies, 1)
        ...     ], end)
        >>> peers = [curve("finished", 0.0, 0.4, 0.6, 0.7, 0.7) for _ in range(5)]
        >>> trace = curve(None, 100.0, 0.5, 0.5, 0.55)
        >>> rule = MedianStoppingRule(start_epoch=1)
        >>> [len(rule([()], prefix, peers)) for prefix in trace.prefixes()]
        [0, 0, 1]
        >>> print(rule([()], trace, peers)[0])
        MSR at epoch 3: best objective against the median of others 0.55 < 0.567
    """

    start_epoch: int = 5
    min_completed: int = 5
    include_stopped: bool = False

    id: ClassVar[str] = "MSR"
    quantity: ClassVar[str] = "best objective against the median of others"
    advice: ClassVar[str] = (
        "nothing is known to be wrong with it, others are better; narrow the search "
        "around those"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_completed < 1:
            raise ValueError(
                f"`min_completed` must be at least 1, got {self.min_completed}."
            )

    def compare(
        self, trace: Trace, peers: Sequence[Trace]
    ) -> tuple[float, float] | None:
        """The best objective so far and the median that it does not reach."""
        best = float(np.min(objective_costs(trace)[1]))
        if not np.isfinite(best):
            return None
        averages = [
            float(np.mean(costs))
            for peer in completed(trace, peers, stopped=self.include_stopped)
            if _beside(peer, trace) and len(costs := _until(peer, trace.epoch))
        ]
        if len(averages) < self.min_completed:
            return None
        median = float(np.median(averages))
        if not best > median:
            return None
        sign = -1.0 if trace.header.direction == "max" else 1.0
        return sign * best, sign * median


def _beside(peer: Trace, trace: Trace) -> bool:
    """Whether the epochs of a peer can be laid beside those of the trial."""
    began = peer.header.initial_epoch == trace.header.initial_epoch
    return began and peer.epoch >= trace.epoch


def _until(peer: Trace, epoch: int) -> np.ndarray:
    epochs, costs = objective_costs(peer)
    return np.asarray(costs[epochs <= epoch])
