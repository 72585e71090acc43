"""Whose turn it is to train a stage, where several processes share a folder."""

from __future__ import annotations

import os
import pathlib
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: processes may train the same stage twice
    fcntl = None  # type: ignore[assignment]


class Turn:
    """The right to train up to a state, held by one process at a time.

    It is a lock of the operating system, which frees it when its holder dies. Where the
    file system has no locks, everyone has the right: a stage may be trained twice, with
    the same result.

    Args:
        path: file of the lock; removed when nobody holds it.

    Example:
        >>> import tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> first, second = Turn(folder / "lock"), Turn(folder / "lock")
        >>> first.take(), second.take(wait=False)
        (True, False)
        >>> first.release()
        >>> second.take(wait=False)
        True
        >>> second.release()
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        self._file: int | None = None

    def take(self, wait: bool = True) -> bool:
        """Takes the turn.

        Args:
            wait: until its holder releases it.

        Returns:
            False if another holds it.
        """
        while fcntl is not None and self._file is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:
                return True  # nothing can be kept here, and so nothing be shared
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(file)
                return False
            except OSError:
                os.close(file)
                return True
            # The holder before may have removed the file that was waited for.
            if _is_still(self._path, file):
                self._file = file
            else:
                os.close(file)
        return True

    def release(self) -> None:
        """Lets another take it. Calling it again does no harm."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _is_still(path: pathlib.Path, file: int) -> bool:
    """Whether an open file is the one that the path leads to."""
    try:
        there: Any = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(file))
