"""Hyperband among diagnosed trials: brackets keep their size, nobody doomed rises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kt_bttackler.oracles.halving import DiagnosedHalvingMixin


class DiagnosedHyperbandMixin(DiagnosedHalvingMixin):
    """Keeps stopped trials in the arithmetic of a bracket and out of its next round.

    Sizes, epochs and order of the brackets are KerasTuner's, and so is what is saved.
    In KerasTuner's own, a trial that was stopped or failed takes a place from the next
    round, and a space with fewer values than the first round has places ends the
    search. Here neither happens: see `kt_bttackler.oracles.halving.HalvingOracle`.
    """

    def get_state(self) -> dict[str, Any]:
        """State of the oracle; strict JSON has no infinity."""
        state = super().get_state()
        if math.isinf(state["hyperband_iterations"] or math.inf):
            state["hyperband_iterations"] = None
        return state

    # All that follows is private in KerasTuner's class, which has no public names.

    def _plan(self, bracket_num: int) -> Sequence[tuple[int, int]]:
        return [
            (
                self._get_size(bracket_num, number),
                self._get_epochs(bracket_num, number),
            )
            for number in range(self._get_num_rounds(bracket_num))
        ]

    def _next_bracket(self) -> dict[str, Any] | None:
        iterations = self.hyperband_iterations or math.inf
        if self._current_bracket == 0 and self._current_iteration + 1 >= iterations:
            return None
        self._increment_bracket_num()
        self._start_new_bracket()
        bracket: dict[str, Any] = self._brackets.pop()
        return bracket
