"""How much of the time of a training a measurement may take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Budget:
    """Allows a measurement at first, and later only while it costs little.

    Args:
        share: of the time of the training, for all measurements together.
        free: measurements that are made whatever they cost.

    Example:
        >>> budget = Budget(share=0.01, free=2)
        >>> allowed = []
        >>> for epoch in range(1, 7):
        ...     allowed.append(budget.allows(seconds=100.0 * epoch))
        ...     if allowed[-1]:
        ...         budget.spend(1.5)
        >>> allowed
        [True, True, False, False, True, True]
    """

    def __init__(self, share: float, free: int) -> None:
        self._share = share
        self._free = free
        self._seconds = 0.0
        self._last = 0.0

    def allows(self, seconds: float) -> bool:
        """Whether a measurement as dear as the last one fits in.

        Args:
            seconds: since the training began.
        """
        return self._free > 0 or self._seconds + self._last <= self._share * seconds

    def spend(self, seconds: float) -> None:
        """Counts a measurement."""
        self._free -= 1
        self._last = seconds
        self._seconds += seconds

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Counts what is done within as a measurement, unless it fails."""
        started = time.perf_counter()
        yield
        self.spend(time.perf_counter() - started)
