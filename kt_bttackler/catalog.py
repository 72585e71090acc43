"""All indicators by id: those of this package, of the user, of installed packages.

A package offers indicators by entry points of the group `kt_bttackler.indicators`, one
for each class:

```ini
[options.entry_points]
kt_bttackler.indicators =
    VLB = my_package.indicators:ValidationLeftBehind
```
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Mapping
from typing import Any

from kt_bttackler.activation_indicators import LowActivationRatio
from kt_bttackler.fuses import warn
from kt_bttackler.gradient_indicators import (
    AbnormalGradientValues,
    ExponentiallyAmplifiedGradients,
    ExponentiallyReducedGradients,
)
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.init_indicators import PoorInit
from kt_bttackler.learning_curves import LearningCurveExtrapolation
from kt_bttackler.loss_indicators import (
    NoMoreGain,
    PassiveLossChanges,
    UnexpectedLossChanges,
)
from kt_bttackler.median_stopping import MedianStoppingRule
from kt_bttackler.outlook_indicators import WorseThanConstant
from kt_bttackler.output_indicators import ClassNeglect, CollapsedOutput
from kt_bttackler.peer_rules import PeerRule
from kt_bttackler.progress_indicators import (
    LossNotDecreasing,
    NoProgress,
    Oscillation,
    Overfit,
    RegulariserDominates,
)
from kt_bttackler.rules import Rule
from kt_bttackler.static_indicators import (
    HighDropout,
    InputScale,
    LearningRateRange,
    LinearStack,
    OutputLossMismatch,
)
from kt_bttackler.unit_indicators import DeadUnits, NumericEdge, Saturation
from kt_bttackler.weight_indicators import UnchangedWeights, UpdateRatio

_GROUP = "kt_bttackler.indicators"

# In the order in which a cause is reported when several are positive.
SEVEN: tuple[type[QualityIndicator], ...] = (
    AbnormalGradientValues,
    ExponentiallyAmplifiedGradients,
    ExponentiallyReducedGradients,
    PassiveLossChanges,
    LowActivationRatio,
    UnexpectedLossChanges,
    NoMoreGain,
)
# The further rules of the preset "extended", causes before their symptoms.
FURTHER: tuple[type[QualityIndicator], ...] = (
    OutputLossMismatch,
    InputScale,
    PoorInit,
    LearningRateRange,
    HighDropout,
    LinearStack,
    UpdateRatio,
    DeadUnits,
    Saturation,
    UnchangedWeights,
    CollapsedOutput,
    NoProgress,
    LossNotDecreasing,
    RegulariserDominates,
    NumericEdge,
    Oscillation,
    ClassNeglect,
    Overfit,
    WorseThanConstant,
)

# Rules with findings of their own, reported after the indicators.
COMPARING: tuple[type[PeerRule], ...] = (MedianStoppingRule, LearningCurveExtrapolation)


def known_indicators() -> dict[str, type[QualityIndicator] | type[PeerRule]]:
    """What has findings, by id: that of this package in the order of reporting first.

    Includes the rules that compare trials, indicators that installed packages offer,
    and those that were defined so far.
    """
    _load_installed()
    own: tuple[type[QualityIndicator] | type[PeerRule], ...]
    own = (*SEVEN, *FURTHER, *COMPARING)
    known = {cls.id: cls for cls in own}
    for cls in _subclasses(QualityIndicator):
        # Base classes define no measure.
        if cls.measure is not QualityIndicator.measure:
            known.setdefault(cls.id, cls)
    return known


@functools.cache
def _load_installed() -> None:
    """Imports what installed packages offer; one that fails costs a warning."""
    for entry in importlib.metadata.entry_points(group=_GROUP):
        try:
            offered = entry.load()
            if not issubclass(offered, QualityIndicator):
                raise TypeError("it is no QualityIndicator class")
        except Exception as error:
            kind = type(error).__name__
            warn(
                f"indicator {entry.name} of {entry.value} is left out: {kind}: {error}"
            )


def indicator(indicator_id: str) -> QualityIndicator:
    """An indicator with its default thresholds.

    Raises:
        ValueError: no indicator has that id.
    """
    found = known_indicators().get(indicator_id)
    if found is None or not issubclass(found, QualityIndicator):
        known = [k for k, c in known_indicators().items() if c not in COMPARING]
        raise ValueError(f"`indicators` must be among {known}, got {indicator_id!r}.")
    return found()


def _subclasses(base: type[Any]) -> list[type[Any]]:
    found: list[type[Any]] = []
    for cls in base.__subclasses__():
        found += [cls, *_subclasses(cls)]
    return found


def _type_name(cls: type) -> str:
    if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return cls.__name__
    return f"{cls.__module__}:{cls.__qualname__}"


def to_config(item: Any) -> Any:
    """Indicators and rules as types and fields, for JSON."""
    if isinstance(item, QualityIndicator | Rule):
        fields = {
            field.name: to_config(getattr(item, field.name))
            for field in dataclasses.fields(item)
        }
        return {"type": _type_name(type(item)), **fields}
    if isinstance(item, tuple):
        return [to_config(part) for part in item]
    return item


def from_config(item: Any) -> Any:
    """What `to_config` made, from types that are known; imports nothing.

    Raises:
        ValueError: a type is unknown.
        TypeError: it has no such field.
    """
    if isinstance(item, Mapping):
        types = {
            _type_name(cls): cls
            for cls in (*_subclasses(QualityIndicator), *_subclasses(Rule))
        }
        name = item["type"]
        if name not in types:
            raise ValueError(f"unknown type {name!r}.")
        fields = {
            key: float(value) if value in ("nan", "inf", "-inf") else from_config(value)
            for key, value in item.items()
            if key != "type"
        }
        return types[name](**fields)
    if isinstance(item, list):
        return tuple(from_config(part) for part in item)
    return item
