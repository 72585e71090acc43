"""What indicators and layers read over a training: the numbers behind the pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from kt_bttackler import catalog
from kt_bttackler.diagnosis import Diagnosis, Verdict
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.study import Study
from kt_bttackler.trace import Trace


@dataclasses.dataclass(frozen=True)
class Reading:
    """One indicator over one training, an element for each epoch of its trace.

    Attributes:
        indicator: what was asked.
        severities: see `QualityIndicator.severity`; `nan` where it does not judge.
        values: what it measured; `nan` there, too.
        limits: the thresholds in force; `nan` there, too.
    """

    indicator: QualityIndicator
    severities: tuple[float, ...]
    values: tuple[float, ...]
    limits: tuple[float, ...]

    @property
    def peak(self) -> int | None:
        """Position of the worst epoch; `None` where it never judged."""
        if all(map(math.isnan, self.severities)):
            return None
        return int(np.nanargmax(self.severities))


def readings(trace: Trace, indicators: Iterable[QualityIndicator]) -> list[Reading]:
    """Asks indicators at every epoch of a training.

    An indicator that raises does not judge.

    Args:
        trace: what was recorded of it.
        indicators: whom to ask.

    Example:
        >>> from kt_bttackler.loss_indicators import PassiveLossChanges
        >>> from kt_bttackler.trace import Header, Record
        >>> losses = enumerate([1.0, 1.0, 1.0], start=1)
        >>> flat = Trace(Header(max_epochs=10), [
        ...     Record(n, n, {"loss": loss}) for n, loss in losses])
        >>> readings(flat, [PassiveLossChanges()])[0].severities
        (nan, nan, 3.0)
    """
    prefixes = list(trace.prefixes())
    found = []
    for indicator in indicators:
        rows = [_reading(indicator, prefix) for prefix in prefixes]
        severities, values, limits = zip(*rows, strict=True) if rows else ((), (), ())
        found.append(Reading(indicator, severities, values, limits))
    return found


def _reading(indicator: QualityIndicator, trace: Trace) -> tuple[float, float, float]:
    try:
        if indicator.applies(trace):
            return (
                float(indicator.severity(trace)),
                float(indicator.measure(trace)),
                float(indicator.limit(trace)),
            )
    except Exception:  # an indicator of somebody else's, or a trace cut short
        pass
    return math.nan, math.nan, math.nan


def indicators_of(study: Study, trial_id: str) -> tuple[QualityIndicator, ...]:
    """What judged a trial; by default the default preset and whatever it found."""
    judge = study.diagnoses.get(trial_id) or next(iter(study.diagnoses.values()), None)
    chosen = list((judge or Diagnosis()).indicators)
    verdict = study.verdicts.get(trial_id)
    known = catalog.known_indicators()
    for found in verdict.findings if verdict else ():
        cls = known.get(found.indicator)
        ids = [indicator.id for indicator in chosen]
        if cls and issubclass(cls, QualityIndicator) and cls.id not in ids:
            chosen.append(cls())
    return tuple(chosen)


def gradients_by_layer(trace: Trace) -> tuple[tuple[str, ...], np.ndarray]:
    """Mean |gradient| of the kernels of each layer, layers first, [L, T].

    Layers are in the order of the data flow; `nan` where nothing was recorded.

    Args:
        trace: what was recorded of a training.
    """
    header = trace.header
    if not header.layers or not header.variables:
        return (), np.zeros((0, len(trace)))
    with np.errstate(invalid="ignore"):  # inf times the zero share of other layers
        table = trace.table("step_gradient/abs_mean")
        shares = header.kernel_shares
        by_layer = np.stack(
            [
                table[:, shares[:, k] > 0] @ shares[shares[:, k] > 0, k]
                for k in range(len(header.layers))
            ]
        )
    return header.layers, by_layer


def worst_layers(trace: Trace, verdict: Verdict | None, most: int = 4) -> list[int]:
    """Positions, in `header.variables`, of the kernels worth a closer look.

    Those of the layers that findings name, then the kernels with the smallest and
    the largest mean |gradient| of the last epoch, in turn.

    Args:
        trace: what was recorded of a training.
        verdict: on it, or `None`.
        most: how many at most.
    """
    header = trace.header
    if not len(trace) or not header.variables:
        return []
    kernels = [v for v, kernel in enumerate(header.kernels) if kernel]
    named = {f.layer for f in verdict.findings if f.layer} if verdict else set()
    chosen = [v for v in kernels if header.variable_layers[v] in named]
    last = trace.table("step_gradient/abs_mean")[-1]
    by_size = sorted(
        (v for v in kernels if not math.isnan(last[v])), key=lambda v: last[v]
    )
    return list(dict.fromkeys([*chosen, *_ends_in_turn(by_size)]))[:most]


def _ends_in_turn(ordered: Sequence[int]) -> list[int]:
    """First, last, second, last but one, and so on."""
    middle = (len(ordered) + 1) // 2
    pairs = zip(ordered[:middle], reversed(ordered[-middle:]), strict=True)
    return [each for pair in pairs for each in pair]
