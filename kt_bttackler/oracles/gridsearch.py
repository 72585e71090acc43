"""Grid search that can be resumed."""

from __future__ import annotations

import functools
import logging
from typing import Any

from kt_bttackler.oracles.mixin import DiagnosedOracleMixin

_logger = logging.getLogger(__name__)


class DiagnosedGridSearchMixin(DiagnosedOracleMixin):
    """Finds its place in the grid again when a project is resumed.

    KerasTuner's grid search does not save how far it has come: after a restart its
    next suggestion raises a `KeyError`. All it needs is in the trials.
    """

    # Private: the trials by place in the grid, and those whose successor is due.
    _ordered_ids: Any
    _populate_next: list[str]

    def begin_diagnosing(
        self, stopped_value: str = "last", avoid_diagnosed: bool = False
    ) -> None:
        """As for every oracle, but a grid is visited as it is."""
        if avoid_diagnosed:
            raise ValueError(
                "`avoid_diagnosed` must be False in a grid search, which visits every "
                f"point, got {avoid_diagnosed}."
            )
        super().begin_diagnosing(stopped_value)

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state, and the order of the trials in the grid from them."""
        super().set_state(state)
        try:
            self._find_place()
        except Exception as error:
            _logger.warning("The grid search cannot be resumed: %r", error)

    def _find_place(self) -> None:
        def compare(one: str, other: str) -> int:
            values = (self.trials[key].hyperparameters.values for key in (one, other))
            return int(self._compare(*values))

        ordered = type(self._ordered_ids)()
        ids = sorted(self.trials, key=functools.cmp_to_key(compare))
        for trial_id in ids:
            ordered.insert(trial_id)
        self._ordered_ids, self._populate_next = ordered, ids
