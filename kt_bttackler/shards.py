"""Many small files of lines in one compressed file.

A shard is the concatenation of whole files, compressed with xz. It is written once and
never changed. Reading it takes no more memory than its longest line: neither a file
that unpacks to terabytes nor one that wants a huge dictionary gets far.
"""

from __future__ import annotations

import lzma
import os
import pathlib
from collections.abc import Iterable, Iterator

from kt_bttackler import files

SUFFIX = ".jsonl.xz"
# A shard of twenty trainings takes some megabytes.
MOST_BYTES = 2**30
_MOST_MEMORY = 2**27
_CHUNK = 2**16


def write_shard(path: str | os.PathLike[str], parts: Iterable[pathlib.Path]) -> None:
    r"""Compresses files into one, which appears as a whole.

    Args:
        path: the shard.
        parts: files whose last lines are complete, in the order to keep.

    Raises:
        OSError: something cannot be read or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = pathlib.Path(name)
        ...     _ = (folder / "a").write_bytes(b"1\n2\n")
        ...     _ = (folder / "b").write_bytes(b"3\n")
        ...     write_shard(folder / "c.xz", [folder / "a", folder / "b"])
        ...     list(shard_lines(folder / "c.xz", longest=80))
        [b'1\n', b'2\n', b'3\n']
    """
    # Fixed, so that the same trainings give the same bytes.
    compressor = lzma.LZMACompressor(check=lzma.CHECK_CRC64, preset=9)
    with files.replacing(path) as file:
        for part in parts:
            file.write(compressor.compress(part.read_bytes()))
        file.write(compressor.flush())


def shard_lines(path: str | os.PathLike[str], longest: int) -> Iterator[bytes]:
    """The lines of a shard, each with its end.

    Args:
        path: the shard.
        longest: bytes of the longest line there can be.

    Raises:
        ValueError: it is no shard, damaged or cut off, or too large.
        OSError: it cannot be read.
    """
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_MEMORY)
    pending, total = b"", 0
    try:
        with open(path, "rb") as file:
            while not decompressor.eof:
                packed = file.read(_CHUNK) if decompressor.needs_input else b""
                if not packed and decompressor.needs_input:
                    raise ValueError(f"{path} is cut off.")
                unpacked = decompressor.decompress(packed, _CHUNK)
                total += len(unpacked)
                *lines, pending = (pending + unpacked).split(b"\n")
                if total > MOST_BYTES or len(pending) > longest:
                    raise ValueError(f"{path} unpacks to more than a shard can hold.")
                for line in lines:
                    yield line + b"\n"
    except lzma.LZMAError as error:
        raise ValueError(f"{path} is no shard: {error}") from error
    if pending:
        raise ValueError(f"{path} ends within a line.")
