"""Who is calling: for what Keras and KerasTuner do not tell a callback.

Keras tells a callback nothing of its siblings, KerasTuner nothing of the tuner it was
copied for. Both stand among the callers.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any


def callers() -> Iterator[Any]:
    """The objects whose methods are being run in this thread, innermost first."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if "self" in frame.f_locals:
            yield frame.f_locals["self"]
        frame = frame.f_back


def searching_oracle() -> Any:
    """The oracle of the tuner that is searching in this thread, or `None`."""
    for caller in callers():
        attributes = getattr(caller, "__dict__", {})
        if "oracle" in attributes and callable(getattr(type(caller), "search", None)):
            return attributes["oracle"]
    return None
