"""How the package writes files: strict JSON, whole or not at all.

Non-finite numbers, which JSON lacks, are the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import IO, Any


def dumps(content: Any) -> str:
    """One line of strict JSON.

    Example:
        >>> dumps({"loss": float("inf"), "epoch": 2})
        '{"loss":"inf","epoch":2}'
    """
    try:
        return json.dumps(content, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError):  # a non-finite or a numpy number is in it
        return json.dumps(_encoded(content), separators=(",", ":"), allow_nan=False)


def loads(text: str) -> Any:
    """Reads strict JSON.

    The strings that stand for non-finite numbers stay strings: `float()` reads
    them, and only the reader knows which fields are numbers.

    Raises:
        ValueError: the text is not strict JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def read_text(path: str | os.PathLike[str], most_bytes: int = 2**20) -> str:
    """Reads a text file, unless it is too large to be one of ours.

    Args:
        path: the file.
        most_bytes: that are read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is larger, or not UTF-8.
    """
    with open(path, "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path} is larger than {most_bytes} bytes.")
    return content.decode("utf-8")


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file so that a reader sees the old content or the new, never half.

    Raises:
        OSError: the folder cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, which takes its place as a whole when it is complete.

    Raises:
        OSError: the folder cannot be written.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`, whose files only their owner can read: projects are shared.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _encoded(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    if isinstance(content, dict):
        return {str(key): _encoded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_encoded(value) for value in content]
    if hasattr(content, "item"):  # a numpy scalar
        return _encoded(content.item())
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not strict JSON.")
