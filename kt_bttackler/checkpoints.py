"""The weights that KerasTuner keeps of every trial, and what they take."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator


def files_of(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Files of the checkpoint in the folder of a trial, in either format of Keras."""
    for path in pathlib.Path(folder).glob("checkpoint*"):
        if path.is_file():
            yield path


def size(folder: str | os.PathLike[str]) -> int:
    """Bytes that the checkpoint of a trial takes.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "checkpoint.weights.h5").write_bytes(b"weights")
        >>> size(folder), delete(folder), size(folder)
        (7, 7, 0)
    """
    return sum(path.stat().st_size for path in files_of(folder))


def delete(folder: str | os.PathLike[str]) -> int:
    """Deletes the checkpoint of a trial; returns the bytes that it took."""
    taken = size(folder)
    for path in files_of(folder):
        path.unlink(missing_ok=True)
    return taken
