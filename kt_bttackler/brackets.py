"""How many trials a search by Hyperband has."""

from __future__ import annotations

import math


def hyperband_trials(max_epochs: int, factor: int) -> int:
    """Trials of one iteration of KerasTuner's Hyperband, every rung counted.

    Args:
        max_epochs: epochs of the longest trial.
        factor: by which a rung is longer than the one before.

    Example:
        >>> hyperband_trials(10, 3)
        30
    """
    brackets = 0
    while max_epochs / factor**brackets >= 1:
        brackets += 1
    finalists = math.ceil(1 + math.log(max_epochs, factor))
    return sum(
        math.ceil(finalists / (bracket + 1) * factor ** (bracket - rung))
        for bracket in range(brackets)
        for rung in range(bracket + 1)
    )
