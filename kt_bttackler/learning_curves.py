"""Early termination by extrapolation of the learning curve."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kt_bttackler.fuses import warn_once
from kt_bttackler.peer_rules import PeerRule, completed, objective_costs
from kt_bttackler.trace import Trace

if TYPE_CHECKING:
    from kt_bttackler.extrapolation import Forecast

MODES = ("fast", "domhan")
# Fewer values determine no curve.
_MIN_POINTS = 6
# Values this many times as far from the goal as the median value do not count.
_OUTLIER = 10.0
# A forecast is unsure, and not acted on, when its 90 % interval is wider than this
# share of the way from the worst value so far to the best of the others.
_COVERAGE, _WIDEST = 0.9, 0.5


@dataclasses.dataclass(frozen=True)
class LearningCurveExtrapolation(PeerRule):
    """LCE: stops a trial that will hardly end better than the best so far.

    Forecasts the objective at the last planned epoch, E, from its curve, and stops when
    the probability that it is better there than the final value of the best completed
    trial is below `threshold` at two checks in a row (Domhan et al., IJCAI'15: at one).
    The answer does not depend on direction, sign, unit or offset of the objective.

    Goes on without E, without a completed trial, with fewer than six values, with a
    value that is not finite, with a forecast that is too unsure, and when anything
    fails. A trial that has been better than the best completed one is never stopped.

    Do not use with learning rates that drop late: no curve foretells what follows.

    Args:
        start_epoch: the first epoch that is judged.
        mode: "fast", a small ensemble of curves, or "domhan", the eleven families of
            Domhan et al., combined as in NNI; see `kt_bttackler.extrapolation` and
            `kt_bttackler.curve_families`.
        threshold: probability, in (0, 1).
        time_limit: seconds after which a decision is given up, above 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from kt_bttackler.trace import Header, Record
        >>> def curve(end, started, limit, epochs):
        ...     header = Header(max_epochs=20, direction="max", started=started)
        ...     return Trace(header, [
        ...         Record(n, n, {"objective": limit * (1 - 0.7**n)})
        ...         for n in range(1, epochs + 1)
        ...     ], end)
        >>> peers = [curve("finished", 0.0, 0.9, 20)]
        >>> rule = LearningCurveExtrapolation()
        >>> poor, good = curve(None, 100.0, 0.6, 10), curve(None, 100.0, 0.92, 10)
        >>> next(p.epoch for p in poor.prefixes() if rule([()], p, peers))
        8
        >>> rule([()], good, peers)
        ()
    """

    start_epoch: int = 6
    mode: str = "fast"
    threshold: float = 0.05
    time_limit: float = 1.0

    id: ClassVar[str] = "LCE"
    quantity: ClassVar[str] = "probability of an end better than the best so far"
    advice: ClassVar[str] = (
        "nothing is known to be wrong with it, another is better; narrow the search "
        "around that"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"`mode` must be one of {MODES}, got {self.mode!r}.")
        if not 0 < self.threshold < 1:
            raise ValueError(f"`threshold` must be in (0, 1), got {self.threshold}.")
        if not self.time_limit > 0:
            raise ValueError(f"`time_limit` must be above 0, got {self.time_limit}.")

    def compare(
        self, trace: Trace, peers: Sequence[Trace]
    ) -> tuple[float, float] | None:
        """The probability and its bound, if it was below at the last two checks."""
        previous = self._previous_check(trace)
        if trace.max_epochs is None or previous is None:
            return None
        try:
            # Imported here: scipy takes longer to load than most decisions.
            from kt_bttackler import curve_families, extrapolation

            forecast = (
                extrapolation.fast_forecast
                if self.mode == "fast"
                else curve_families.domhan_forecast
            )
            deadline = time.monotonic() + self.time_limit
            chance = math.nan
            for moment in (previous, trace):
                chance = _chance(forecast, moment, peers, deadline)
                if not chance < self.threshold:
                    return None
        except Exception as error:
            warn_once(f"LCE goes on where it fails: {type(error).__name__}: {error}")
            return None
        return chance, self.threshold

    def _previous_check(self, trace: Trace) -> Trace | None:
        for length in range(len(trace) - 1, 0, -1):
            earlier = trace.prefix(length)
            if self.judges(earlier):
                return earlier
        return None


def _chance(
    forecast: Callable[..., Forecast | None],
    trace: Trace,
    peers: Sequence[Trace],
    deadline: float,
) -> float:
    """Probability of an end better than the best of the others; `nan` when unsure."""
    epochs, costs = objective_costs(trace)
    others = (objective_costs(peer)[1] for peer in completed(trace, peers))
    goal = min((float(other[-1]) for other in others if len(other)), default=math.inf)
    if not np.all(np.isfinite([goal, *costs])):
        return math.nan
    ahead = costs - goal
    if np.min(ahead) <= 0:
        return 1.0
    # A first loss in the thousands would make all that follows look alike.
    usual = ahead <= _OUTLIER * np.median(ahead)
    epochs, ahead = epochs[usual], ahead[usual]
    if len(ahead) < _MIN_POINTS:
        return math.nan
    # Rounded, so that the unit of the objective changes nothing, not even a last digit.
    values = np.round(1 - ahead / np.max(ahead), 9)
    with np.errstate(all="ignore"):  # a family may overflow on its way to a fit
        found = forecast(epochs, values, trace.max_epochs, deadline)
    if found is None:
        return math.nan
    low, high = found.interval(_COVERAGE)
    return found.chance_above(1.0) if high - low <= _WIDEST else math.nan
