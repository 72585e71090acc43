"""What was recorded of one training: the facts, apart from every judgement.

A `Trace` is a `Header` (known before the first epoch) and one `Record` per epoch.
On disk it is one JSON-lines file that is only ever appended to; `TraceStore` is a
folder of them. Nothing here needs TensorFlow.

```python
store = TraceStore("runs/cifar")
for trace in store:
    print(trace.header.trial_id, trace.epoch, trace.scalar("loss")[-1])
```
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from kt_bttackler import files, shards
from kt_bttackler.records import Header, Record
from kt_bttackler.trace_lines import fields_of, header_from, header_line, record_from

__all__ = [
    "Header",
    "Record",
    "Trace",
    "TraceStore",
    "TraceWriter",
    "read_shard",
    "read_trace",
]

# One epoch of a 1,000-layer model is below 2 MB; a longer line is not ours, nor is a
# file of more than 500 such epochs.
_MAX_LINE_BYTES, _MAX_BYTES = 16 * 2**20, 2**30
# Where the seconds are kept among the scalars; no log has such a name.
_SECONDS = "/seconds"


class Trace:
    """The records of one training, read by column.

    A prefix shares its arrays with the whole, so looking at every prefix of a
    training costs little.

    Example:
        >>> records = [Record(1, 2.0, {"loss": 0.9}), Record(2, 4.0, {"loss": 0.5})]
        >>> trace = Trace(Header(max_epochs=10), records)
        >>> trace.epoch, trace.scalar("loss").tolist()
        (2, [0.9, 0.5])
        >>> trace.prefix(1).epoch
        1

    Args:
        header: what was known before the first epoch.
        records: one per epoch, in order.
        end: why the training ended: "finished" or "stopped"; `None` while it runs,
            or when it was killed or failed.
    """

    def __init__(
        self, header: Header, records: Sequence[Record] = (), end: str | None = None
    ) -> None:
        self.header = header
        self.end = end
        self._records = list(records)
        self._length = len(self._records)
        self._scalars: dict[str, np.ndarray] = {}
        self._tables: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return (
            f"Trace(trial_id={self.header.trial_id!r}, "
            f"execution={self.header.execution}, epoch={self.epoch}, end={self.end!r})"
        )

    @property
    def records(self) -> tuple[Record, ...]:
        """The records, one per epoch."""
        return tuple(self._records[: self._length])

    @property
    def last(self) -> Record | None:
        """The record of the last epoch."""
        return self._records[self._length - 1] if self._length else None

    def at(self, epoch: int) -> Record | None:
        """The record of an absolute epoch, or `None`."""
        # Epochs follow one another, unless something was lost.
        position = epoch - self.header.initial_epoch - 1
        if 0 <= position < self._length and self._records[position].epoch == epoch:
            return self._records[position]
        return next((record for record in self.records if record.epoch == epoch), None)

    @property
    def epoch(self) -> int:
        """n, the last recorded epoch (absolute, from 1); 0 when there is none."""
        return self.last.epoch if self.last else 0

    @property
    def max_epochs(self) -> int | None:
        """E, the planned epochs, or `None` when unknown."""
        return self.header.max_epochs

    @property
    def partial(self) -> bool:
        """Whether the last epoch was broken off by a non-finite value."""
        return self.last is not None and self.last.partial

    @property
    def seconds(self) -> np.ndarray:
        """Seconds since the training began at the end of each epoch, [T]."""
        if _SECONDS not in self._scalars:
            self._scalars[_SECONDS] = np.array([r.seconds for r in self._records])
        return self._scalars[_SECONDS][: self._length]

    @property
    def moment(self) -> float:
        """Unix time at the end of the last recorded epoch."""
        return self.header.started + (self.last.seconds if self.last else 0.0)

    def scalar(self, name: str) -> np.ndarray:
        """One number per epoch, [T]; `nan` where it was not recorded."""
        if name not in self._scalars:
            self._scalars[name] = np.array(
                [record.scalars.get(name, np.nan) for record in self._records]
            )
        return self._scalars[name][: self._length]

    def table(self, name: str) -> np.ndarray:
        """One row per epoch, [T, V] or [T, A]; `nan` where it was not recorded.

        Statistics of gradients and weights have a column per variable of the
        header, those of activations one per activation layer.
        """
        if name not in self._tables:
            group = name.partition("/")[0]
            header = self.header
            width = len(
                header.activations if group == "activation" else header.variables
            )
            table = np.full((len(self._records), width), np.nan)
            for row, record in zip(table, self._records, strict=True):
                values = record.columns.get(name)
                if values is not None and len(values) == width:
                    row[:] = values
            self._tables[name] = table
        return self._tables[name][: self._length]

    def prefix(self, length: int) -> Trace:
        """The first `length` records, as if the training had got no further."""
        if not 0 <= length <= self._length:
            raise ValueError(
                f"`length` must be between 0 and {self._length}, got {length}."
            )
        view = Trace(self.header)
        view._records = self._records
        view._length = length
        view._scalars = self._scalars
        view._tables = self._tables
        return view

    def with_header(self, header: Header) -> Trace:
        """The same records, shared, under another header of the same model.

        Args:
            header: such as one with another `started`; variables and activation
                layers must be those of this trace.
        """
        view = self.prefix(self._length)
        view.header = header
        view.end = self.end
        return view

    def prefixes(self) -> Iterator[Trace]:
        """Every prefix with at least one record, shortest first."""
        return (self.prefix(length) for length in range(1, self._length + 1))

    def with_record(self, record: Record) -> Trace:
        """A new trace with one record more."""
        return Trace(self.header, [*self.records, record])


class TraceWriter:
    """Appends one training to a file, a whole line at a time.

    An older file at `path` (a trial that is run again) is replaced. The file is not
    kept open, so there is nothing to lose when the process dies.

    Args:
        path: file to write; its folder is made when missing.
        header: written as the first line.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header) -> None:
        self.path = pathlib.Path(path)
        first = header_line(header)
        files.write_atomically(self.path, files.dumps(first) + "\n")

    def append(self, record: Record) -> None:
        """Writes one epoch."""
        self._append(fields_of(record))

    def close(self, end: str) -> None:
        """Writes why the training ended."""
        self._append({"end": end})

    def _append(self, line: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(files.dumps(line) + "\n")


def extend_trace(
    path: str | os.PathLike[str], records: Iterable[Record], end: str | None
) -> None:
    """Adds what followed to the file of a training that has been gone on with.

    All that is in the file stays in it; a reader sees it without the addition or
    with the whole.

    Args:
        path: a file of `TraceWriter`.
        records: the epochs that followed.
        end: why the training ended now.

    Raises:
        OSError: the file cannot be read or written.
    """
    lines = [fields_of(record) for record in records]
    added = [files.dumps(line) + "\n" for line in (*lines, {"end": end})]
    before = pathlib.Path(path).read_text(encoding="utf-8")
    files.write_atomically(path, before + "".join(added))


def read_trace(path: str | os.PathLike[str], *, columns: bool = True) -> Trace:
    """Reads one trace file.

    A last line without its end, left by a process that was killed, is ignored.

    Args:
        path: the file.
        columns: keep the statistics per layer; without them a trace is small.

    Raises:
        ValueError: the file is no trace, or of a newer schema.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            raise ValueError(f"{path}: the file is larger than {_MAX_BYTES} bytes.")
        traces = list(_traces_in(_whole_lines(file, path), path, columns))
    # One that was run on comes again, longer.
    headers = {id(trace.header) for trace in traces}
    if len(headers) != 1:
        raise ValueError(f"{path} must hold one trace header, got {len(headers)}.")
    return traces[-1]


def read_shard(
    path: str | os.PathLike[str], *, columns: bool = True
) -> Iterator[Trace]:
    """Reads the traces of a shard one after the other, see `shards`.

    Args:
        path: the file.
        columns: keep the statistics per layer; without them a trace is small.

    Raises:
        ValueError: the file is no shard of traces; those before the fault were given.
    """
    return _traces_in(shards.shard_lines(path, _MAX_LINE_BYTES), path, columns)


def _whole_lines(file: IO[bytes], path: str | os.PathLike[str]) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE_BYTES + 1):
        if not line.endswith(b"\n"):
            if len(line) > _MAX_LINE_BYTES:
                raise ValueError(
                    f"{path}: a line is longer than {_MAX_LINE_BYTES} bytes."
                )
            return
        yield line


def _traces_in(
    lines: Iterable[bytes], path: str | os.PathLike[str], columns: bool
) -> Iterator[Trace]:
    """The traces in the lines of a file: header, records, end, and so on.

    A training that was run on after its end is given twice, with the same header.
    """
    header: Header | None = None
    records: list[Record] = []
    end: str | None = None
    given = True
    for number, line in enumerate(lines, start=1):
        try:
            content = files.loads(line.decode("utf-8"))
            if header is None or "header" in content:
                if header is not None and not given:
                    yield Trace(header, records, end)
                header, records, end = header_from(content), [], None
                given = False
            elif "end" in content:
                end, given = str(content["end"]), True
                yield Trace(header, records, end)
            else:  # also behind an end: the training was run on
                records.append(record_from(content, columns))
                given = False
        except (
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            OverflowError,
        ) as error:
            raise ValueError(
                f"{path}: line {number} is not part of a trace: {error}"
            ) from error
    if header is not None and not given:
        yield Trace(header, records, end)


class TraceStore:
    """The traces below one folder, usually a project directory of KerasTuner.

    A trace that has ended is read once; the store can be asked again and again
    while a search runs.

    Args:
        folder: traces are the files `trace-<execution>.jsonl` in it and below, and
            those in shards, `shard-<number>.jsonl.xz`.
        columns: keep the statistics per layer; without them a trace is small.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = TraceWriter(f"{folder}/trial_0/trace-0.jsonl", Header("0"))
        ...     writer.append(Record(1, 2.0, {"loss": 0.9}))
        ...     [(trace.header.trial_id, trace.epoch) for trace in TraceStore(folder)]
        [('0', 1)]
    """

    def __init__(self, folder: str | os.PathLike[str], *, columns: bool = True) -> None:
        self.folder = pathlib.Path(folder)
        self._columns = columns
        self._ended: dict[pathlib.Path, tuple[Trace, ...]] = {}

    def paths(self) -> list[pathlib.Path]:
        """Files of the store, by name."""
        found = (*self.folder.glob("**/trace-*.jsonl"), *self._shards())
        return sorted(found)

    def __iter__(self) -> Iterator[Trace]:
        """Reads every readable trace; a file that is no trace is left out."""
        for path in self.paths():
            known = self._ended.get(path)
            if known is not None:
                yield from known
                continue
            read: list[Trace] = []
            try:
                for trace in self._read(path):
                    read.append(trace)
                    yield trace
            except (OSError, ValueError):
                continue
            if all(trace.end is not None for trace in read):
                self._ended[path] = tuple(read)

    def _shards(self) -> Iterator[pathlib.Path]:
        return self.folder.glob(f"**/shard-*{shards.SUFFIX}")

    def _read(self, path: pathlib.Path) -> Iterator[Trace]:
        if path.name.endswith(shards.SUFFIX):
            yield from read_shard(path, columns=self._columns)
        else:
            yield read_trace(path, columns=self._columns)

    def trial(self, trial_id: str, execution: int = 0) -> Trace:
        """The trace of one execution.

        Raises:
            KeyError: there is none.
        """
        for trace in self:
            if (trace.header.trial_id, trace.header.execution) == (trial_id, execution):
                return trace
        raise KeyError(f"no trace of trial {trial_id!r}, execution {execution}")
