"""The presets: named sets of indicators, with the rule that decides."""

from __future__ import annotations

import math

from kt_bttackler import upstream
from kt_bttackler.activation_indicators import LowActivationRatio
from kt_bttackler.catalog import FURTHER, SEVEN
from kt_bttackler.gradient_indicators import (
    AbnormalGradientValues,
    ExponentiallyAmplifiedGradients,
    ExponentiallyReducedGradients,
)
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.loss_indicators import (
    NoMoreGain,
    PassiveLossChanges,
    UnexpectedLossChanges,
)
from kt_bttackler.output_indicators import CollapsedOutput
from kt_bttackler.progress_indicators import NoProgress
from kt_bttackler.rules import AnyFinding, ProtectTop, Rule

PRESETS = ("conservative", "balanced", "extended", "paper", "upstream")


def preset(name: str) -> tuple[tuple[QualityIndicator, ...], Rule]:
    """Indicators and rule of a preset.

    Args:
        name: "conservative", the seven with guards, none of the best tenth stopped;
            "balanced", the same with a bolder PLC and LAR, and two more;
            "extended", "conservative" and all further indicators; "paper", the seven
            without guards; "upstream", the public implementation of the paper.

    Raises:
        ValueError: there is no such preset.
    """
    if name == "conservative":
        return tuple(indicator() for indicator in SEVEN), ProtectTop(AnyFinding())
    if name == "balanced":
        return (
            AbnormalGradientValues(),
            ExponentiallyAmplifiedGradients(),
            ExponentiallyReducedGradients(),
            PassiveLossChanges(gap="median", threshold=0.01),
            LowActivationRatio(threshold=0.25),
            UnexpectedLossChanges(),
            CollapsedOutput(),
            NoProgress(),
            NoMoreGain(),
        ), ProtectTop(AnyFinding())
    if name == "extended":
        everything = (*SEVEN, *FURTHER)
        return tuple(indicator() for indicator in everything), ProtectTop(AnyFinding())
    if name == "paper":
        # The paper has no guards, no patience, and asks no objective.
        guard = math.inf
        return (
            AbnormalGradientValues(),
            ExponentiallyAmplifiedGradients(patience=1, progress_guard=guard),
            ExponentiallyReducedGradients(patience=1, progress_guard=guard),
            PassiveLossChanges(progress_guard=guard),
            LowActivationRatio(patience=1, progress_guard=guard),
            UnexpectedLossChanges(progress_guard=guard),
            NoMoreGain(require_objective=False),
        ), AnyFinding()
    if name == "upstream":
        exempt = ("AGV", "EAG", "ULC")
        return upstream.UPSTREAM, ProtectTop(AnyFinding(), exempt=exempt)
    raise ValueError(f"`indicators` must be one of {PRESETS}, got {name!r}.")
