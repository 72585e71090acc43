"""The most memory that this process held for a while."""

from __future__ import annotations

import contextlib
import os
import threading
from types import TracebackType

_STATM = "/proc/self/statm"
_SECONDS = 0.005  # between two looks


class PeakMemory:
    """Looks again and again at the resident memory of the process, as Linux tells it.

    Example:
        >>> with PeakMemory() as memory:
        ...     _ = bytes(10_000)
        >>> memory.peak is None or memory.peak > 10_000
        True
    """

    def __init__(self) -> None:
        self.peak: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._look()
        if self.peak is not None:  # not on other systems
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS):
            self._look()

    def _look(self) -> None:
        with contextlib.suppress(OSError, ValueError), open(_STATM, "rb") as file:
            pages = int(file.read().split()[1])
            self.peak = max(self.peak or 0, pages * os.sysconf("SC_PAGE_SIZE"))
