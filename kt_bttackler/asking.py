"""Questions of a worker to its chief, asked again when the chief dies over them."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import grpc

_logger = logging.getLogger(__name__)
# How often a question is asked, and seconds between two of them.
_ATTEMPTS = 10
_PAUSE = 1.0


class PatientStub:
    """A gRPC stub that asks again when the connection breaks.

    KerasTuner waits for a chief that is away before it asks. A chief that goes away
    while it is being asked would end the worker with an error. To ask again does no
    harm: a worker that asks for a trial is handed the one that it has, and a second
    report of one trial is ignored.

    Args:
        stub: the stub.

    Example:
        >>> class Stub:
        ...     def GetTrial(self, trial_id):
        ...         return f"trial {trial_id}"
        >>> PatientStub(Stub()).GetTrial("07")
        'trial 07'
    """

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def __getattr__(self, name: str) -> Any:
        ask = getattr(self._stub, name)

        @functools.wraps(ask)
        def asked(*args: Any, **kwargs: Any) -> Any:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    return ask(*args, **kwargs)
                except grpc.RpcError as error:
                    is_broken = error.code() is grpc.StatusCode.UNAVAILABLE
                    if not is_broken or attempt == _ATTEMPTS:
                        raise
                    _logger.warning("The chief was away; it is asked again: %s", name)
                    time.sleep(_PAUSE)

        return asked
