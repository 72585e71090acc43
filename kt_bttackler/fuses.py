"""Keeps a fault of the diagnosis from becoming a fault of the training."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any


class Fuses:
    """Runs parts of the diagnosis; a part that fails once is switched off.

    Example:
        >>> fuses = Fuses()
        >>> with warnings.catch_warnings(record=True) as seen:
        ...     warnings.simplefilter("always")
        ...     results = [fuses("division", lambda: 1 / 0) for _ in range(3)]
        >>> results, str(seen[0].message), len(seen)
        ([None, None, None], 'division is off: ZeroDivisionError: division by zero', 1)
    """

    def __init__(self) -> None:
        self._blown: set[str] = set()

    def __call__(
        self,
        part: str,
        action: Callable[..., Any],
        *arguments: Any,
        otherwise: Any = None,
    ) -> Any:
        """What `action` returns, or `otherwise` when the part is off.

        Args:
            part: names the part in the one warning it may cause.
            action: called with `arguments`.
            *arguments: for `action`.
            otherwise: returned in place of a result.
        """
        if part in self._blown:
            return otherwise
        try:
            return action(*arguments)
        except Exception as error:
            self._blown.add(part)
            warn(f"{part} is off: {type(error).__name__}: {error}".splitlines()[0])
            return otherwise


def warn(message: str) -> None:
    """Warns, and does no harm where warnings are errors."""
    with contextlib.suppress(RuntimeWarning):
        warnings.warn(message, RuntimeWarning, stacklevel=3)


@functools.cache
def warn_once(message: str) -> None:
    """Warns of the same thing once in the life of the process."""
    warn(message)
