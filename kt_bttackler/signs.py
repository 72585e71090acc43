"""Signs of life that a worker of a distributed search gives to its chief."""

from __future__ import annotations

import logging
import threading
from typing import Any

_logger = logging.getLogger(__name__)
# Seconds between two signs.
PERIOD = 5.0


class SignsOfLife:
    """Asks the chief for a trial every few seconds, which tells it that this one lives.

    It says that the process is alive, not that the training gets on: a training that
    takes long must never be taken for a lost one.

    Example:
        >>> class Client:
        ...     def __init__(self):
        ...         self.heard = threading.Event()
        ...     def get_trial(self, trial_id):
        ...         self.heard.set()
        >>> client, signs = Client(), SignsOfLife()
        >>> signs.begin(client, "07")
        >>> client.heard.wait(5)
        True
        >>> signs.end()
    """

    def __init__(self) -> None:
        self._ended: threading.Event | None = None

    def begin(self, client: Any, trial_id: str, period: float | None = None) -> None:
        """Starts to give signs of a trial, and ends those of another.

        Args:
            client: the oracle as the worker has it.
            trial_id: of the trial that runs here now.
            period: seconds between two signs; by default `PERIOD`.
        """
        self.end()
        self._ended = threading.Event()
        threading.Thread(
            target=_give,
            args=(client, trial_id, PERIOD if period is None else period, self._ended),
            name=f"signs of life of trial {trial_id}",
            daemon=True,
        ).start()

    def end(self) -> None:
        """Gives no more signs; the thread is not waited for."""
        if self._ended is not None:
            self._ended.set()
            self._ended = None


def _give(client: Any, trial_id: str, period: float, ended: threading.Event) -> None:
    while True:
        try:
            client.get_trial(trial_id)
        except Exception as error:  # the chief is away, or is no chief of ours
            _logger.debug("No sign of life was given: %r", error)
        if ended.wait(period):
            return
