"""Libraries that are installed on request, by an extra of this package."""

from __future__ import annotations

import importlib
from typing import Any


def required(library: str, user: str, extra: str) -> Any:
    """Imports a library.

    Args:
        library: its name, or that of a module of it.
        user: what needs it, for the message.
        extra: the extra of this package that brings it.

    Raises:
        ImportError: it is not installed; the message is one line.

    Example:
        >>> required("no_such_library", "`--html`", extra="report")
        Traceback (most recent call last):
        ImportError: `--html` needs no_such_library: pip install 'kt-bttackler[report]'
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(
            f"{user} needs {library.partition('.')[0]}: "
            f"pip install 'kt-bttackler[{extra}]'"
        ) from error
