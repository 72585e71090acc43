"""Which hyperparameter values go with which diagnosis.

For each cause the one hyperparameter is named whose values tell best where it occurs:
`learning_rate > 0.03: AGV in 14 of 15 trials, elsewhere in 1 of 20`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import scipy.stats

from kt_bttackler.study import TrialFacts

# A region is named where chance alone would hardly make one as telling, whichever of
# the hyperparameters and their values one looks at.
SIGNIFICANCE = 0.05
# A cause seen less often is no pattern.
FEWEST_TRIALS = 3


@dataclasses.dataclass(frozen=True)
class Region:
    """Where in the search space a diagnosis occurs.

    Attributes:
        cause: id of the indicator or rule.
        hyperparameter: its name.
        relation: "<=", ">" or "=".
        value: the bound, or the value.
        hits: trials with the cause in the region.
        trials: trials in the region.
        elsewhere: trials with the cause outside.
        others: trials outside.

    Example:
        >>> print(Region("AGV", "learning_rate", ">", 0.03, 14, 15, 1, 20))
        learning_rate > 0.03: AGV in 14 of 15 trials, elsewhere in 1 of 20
    """

    cause: str
    hyperparameter: str
    relation: str
    value: Any
    hits: int
    trials: int
    elsewhere: int
    others: int

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if isinstance(self.value, float) else self.value
        return (
            f"{self.hyperparameter} {self.relation} {value}: {self.cause} in "
            f"{self.hits} of {self.trials} trials, elsewhere in {self.elsewhere} of "
            f"{self.others}"
        )


def regions(trials: Iterable[TrialFacts]) -> tuple[Region, ...]:
    """The region of each cause that has one, the commonest cause first.

    A trial counts for the first of its causes. Tested is every split of every
    hyperparameter, by Fisher's exact test corrected for their number (Bonferroni).
    """
    ended = [t for t in trials if t.status in ("COMPLETED", "STOPPED")]
    causes = [t.causes[0] if t.causes else None for t in ended]
    counts = {cause: causes.count(cause) for cause in causes if cause is not None}
    splits = list(_splits(ended))
    found = []
    for cause in sorted(counts, key=lambda cause: -counts[cause]):
        if counts[cause] < FEWEST_TRIALS:
            continue
        hits = [each == cause for each in causes]
        best = min(
            (_tested(cause, hits, *split) for split in splits),
            key=lambda tested: tested[0],
            default=(1.0, None),
        )
        if best[0] * len(splits) < SIGNIFICANCE and best[1] is not None:
            found.append(best[1])
    return tuple(found)


def _splits(
    trials: Sequence[TrialFacts],
) -> Iterable[tuple[str, str, Any, list[bool | None]]]:
    """Name, relation, value, and for each trial whether it is in; None where unset."""
    names = dict.fromkeys(
        name
        for trial in trials
        for name in trial.hyperparameters
        if not name.startswith("tuner/")
    )
    for name in names:
        values = [trial.hyperparameters.get(name) for trial in trials]
        known = [value for value in values if value is not None]
        if all(_is_number(value) for value in known):
            for bound in _between(known):
                yield name, ">", bound, [v if v is None else v > bound for v in values]
        else:
            for value in dict.fromkeys(known):
                yield name, "=", value, [v if v is None else v == value for v in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _between(values: Sequence[float]) -> list[float]:
    """Bounds between neighbouring values, in the middle of their ratio or distance."""
    ordered = sorted(set(values))
    return [
        math.sqrt(low * high) if low > 0 else (low + high) / 2
        for low, high in itertools.pairwise(ordered)
    ]


def _tested(
    cause: str,
    hits: Sequence[bool],
    name: str,
    relation: str,
    value: Any,
    inside: Sequence[bool | None],
) -> tuple[float, Region]:
    """How likely chance makes a split as telling, and the side with more hits."""
    pairs = [(i, h) for i, h in zip(inside, hits, strict=True) if i is not None]
    trials = sum(i for i, _ in pairs)
    found = sum(i and h for i, h in pairs)
    others, elsewhere = len(pairs) - trials, sum(h for _, h in pairs) - found
    if relation == ">" and found * others < elsewhere * trials:
        relation = "<="
        trials, found, others, elsewhere = others, elsewhere, trials, found
    table = [[found, trials - found], [elsewhere, others - elsewhere]]
    chance = float(scipy.stats.fisher_exact(table, alternative="greater").pvalue)
    return chance, Region(
        cause, name, relation, value, found, trials, elsewhere, others
    )
