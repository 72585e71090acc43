"""Where the states of stages are kept, under a budget of disk space.

A state has a name that says all that led to it: the root and the values of every epoch
so far. So trials, studies and processes share a folder without telling each other.

    <root>/root.json           what the root is made of
    <root>/<id>.npz            state of the training
    <root>/<id>.best.npz       weights of the best epoch, if it was an earlier one
    <root>/<id>.json           epoch, history, sizes, checksums; written last
    <root>/<id>.<judge>.trace      what a diagnosis has recorded up to there
    <root>/<id>.<judge>.verdict    what it said of the stage that ends there

What is damaged counts as missing: the training goes on from an earlier state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from kt_bttackler import files
from kt_bttackler.fuses import warn
from kt_bttackler.stages.turns import Turn
from kt_bttackler.stages.verdicts import StageVerdict
from kt_bttackler.trace import Trace, TraceWriter, read_trace
from kt_bttackler.training_state import TrainingState

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

Logs = dict[str, float]
_Note = TypeVar("_Note")


@dataclasses.dataclass(frozen=True)
class Best:
    """The best epoch of a training so far.

    Attributes:
        epoch: counted from 0.
        weights: values of the variables of the model at its end.
    """

    epoch: int
    weights: Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class StageState:
    """What a stage leaves to those that follow it.

    Attributes:
        training: weights, optimizer, seeds, random numbers.
        history: the logs of every epoch so far.
        best: the best epoch so far; `None` while the objective was never seen.
    """

    training: TrainingState
    history: Sequence[Logs]
    best: Best | None


def byte_count(budget: int | str | None) -> int | None:
    """A budget in bytes.

    Args:
        budget: bytes, or a text such as "2GB"; `None` for no limit.

    Raises:
        ValueError: the text says nothing.

    Example:
        >>> byte_count("1.5GB")
        1500000000
    """
    if budget is None:
        return None
    if isinstance(budget, str):
        parts = re.fullmatch(r"([0-9.]+) *([KMGT]?)B?", budget.strip(), re.IGNORECASE)
        if parts is None:
            raise ValueError(
                "`disk_budget` must be a number of bytes or a text such as '2GB', got "
                f"{budget!r}."
            )
        return int(float(parts[1]) * _UNITS[parts[2].upper()])
    if budget < 0:
        raise ValueError(f"`disk_budget` must be at least 0, got {budget}.")
    return budget


class StageStore:
    """States of stages in a folder.

    Args:
        folder: made when something is kept.
        disk_budget: most bytes that the states may take; `None` for no limit.
    """

    def __init__(
        self, folder: str | os.PathLike[str], disk_budget: int | None = None
    ) -> None:
        self.folder = pathlib.Path(folder)
        self.disk_budget = disk_budget

    def describe(self, root: str, facts: Mapping[str, Any]) -> None:
        """Says beside the states of a root what it is made of."""
        path = self.folder / root / "root.json"
        try:
            if not path.exists():
                files.write_atomically(path, files.dumps(facts))
        except OSError as error:
            warn(f"a root is not described: {error}")

    def history(self, root: str, name: str) -> list[Logs] | None:
        """The logs of every epoch up to a state; `None` if it is not there."""
        about = self._about(self.folder / root / f"{name}.json")
        return None if about is None else about["history"]

    def load(self, root: str, name: str) -> StageState | None:
        """Reads a state; one that is damaged is removed.

        Args:
            root: name of the root.
            name: that of the state.

        Returns:
            `None` if it is not there.
        """
        path = self.folder / root / f"{name}.json"
        about = self._about(path)
        if about is None:
            return None
        try:
            contents = {
                suffix: _checked(path.with_suffix(suffix), digest)
                for suffix, digest in about["sha256"].items()
            }
            training = TrainingState.load(io.BytesIO(contents[".npz"]))
            best = None
            if about["best"] is not None:
                weights: Sequence[np.ndarray] = training.variables["model"]
                if ".best.npz" in contents:
                    weights = _arrays(contents[".best.npz"])
                best = Best(about["best"], weights)
        except Exception as error:
            self._discard(path)
            # Another process may have made room in this moment.
            if not isinstance(error, FileNotFoundError):
                warn(f"state {name} is damaged and was removed: {error}")
            return None
        os.utime(path)  # it was used: one of the last to make room
        return StageState(training, about["history"], best)

    def save(
        self, root: str, name: str, state: StageState, *, branch: bool, cost: int
    ) -> bool:
        """Keeps a state, if it is not there and there is room or can be made.

        Args:
            root: name of the root.
            name: that of the state.
            state: what to keep.
            branch: whether other trials may go on from it.
            cost: epochs to train again if it were lost.

        Returns:
            Whether it is there now.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.folder / root / f"{name}.json"
        if path.exists():
            return True
        room = _estimated_size(state)
        if not self._make_room(room):
            return False
        state.training.save(path.with_suffix(".npz"))
        suffixes = [".npz"]
        best = state.best
        if best is not None and best.epoch + 1 != state.training.epoch:
            with files.replacing(path.with_suffix(".best.npz")) as file:
                np.savez(file, *best.weights)
            suffixes.append(".best.npz")
        about = {
            "epoch": state.training.epoch,
            "branch": branch,
            "cost": cost,
            "best": None if best is None else best.epoch,
            "bytes": sum(path.with_suffix(s).stat().st_size for s in suffixes),
            "sha256": {s: _sha256(path.with_suffix(s).read_bytes()) for s in suffixes},
            "history": list(state.history),
        }
        files.write_atomically(path, _sealed(about))
        return True

    def note_trace(self, root: str, name: str, judge: str, trace: Trace) -> None:
        """Keeps what was recorded up to a state, if there is room.

        Args:
            root: name of the root.
            name: that of the state.
            judge: names the diagnosis.
            trace: of all epochs up to the state.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.folder / root / f"{name}.{judge}.trace"
        writer = TraceWriter(path, trace.header)
        for record in trace.records:
            writer.append(record)
        if self.disk_budget is not None and self.disk_usage() > self.disk_budget:
            path.unlink(missing_ok=True)

    def trace(self, root: str, name: str, judge: str) -> Trace | None:
        """What was recorded up to a state; `None` if nothing was."""
        return _noted(self.folder / root / f"{name}.{judge}.trace", read_trace)

    def note_verdict(
        self, root: str, name: str, judge: str, verdict: StageVerdict
    ) -> None:
        """Keeps a verdict on a stage; a fault costs a warning.

        Args:
            root: name of the root.
            name: that of the state at the end of the stage.
            judge: names the diagnosis.
            verdict: what it said.
        """
        names = [name, "root"] if verdict.scope == "static" else [name]
        for each in names:
            path = self.folder / root / f"{each}.{judge}.verdict"
            try:
                files.write_atomically(path, _sealed(dataclasses.asdict(verdict)))
            except OSError as error:
                warn(f"a verdict is not kept: {error}")

    def verdict(self, root: str, name: str, judge: str) -> StageVerdict | None:
        """The verdict on a stage, or on all of a root, whose name is "root"."""
        return _noted(self.folder / root / f"{name}.{judge}.verdict", _read_verdict)

    def turn(self, root: str, name: str) -> Turn:
        """The right to train up to a state, which one process has at a time."""
        return Turn(self.folder / root / f"{name}.lock")

    def disk_usage(self) -> int:
        """Bytes of all files of the store."""
        return sum(_size(path) for path in self.folder.glob("*/*"))

    def _make_room(self, needed: int) -> bool:
        """Removes states until so many bytes fit; those first that are missed least."""
        if self.disk_budget is None:
            return True
        if needed > self.disk_budget:
            return False
        free = self.disk_budget - self.disk_usage()
        if free >= needed:
            return True
        for path in sorted(self.folder.glob("*/*.json"), key=self._worth):
            if path.name != "root.json":
                free += self._discard(path)
            if free >= needed:
                return True
        return False

    def _worth(self, path: pathlib.Path) -> tuple[bool, float]:
        """How much a state would be missed.

        An end of a trial only serves a trial with the same values. Among the others,
        what costs many epochs per byte and was used of late is kept.
        """
        about = self._about(path)
        try:
            age = max(time.time() - path.stat().st_mtime, 1e-3)
        except OSError:
            return False, 0.0
        if about is None:
            return False, 0.0
        return about["branch"], about["cost"] / max(about["bytes"], 1) / age

    def _about(self, path: pathlib.Path) -> dict[str, Any] | None:
        try:
            about = _unsealed(path)
            about["history"] = [_numbers(logs) for logs in about["history"]]
        except OSError:
            return None
        except Exception as error:
            if path.name != "root.json":
                warn(f"{path} is damaged and was removed: {error}")
                self._discard(path)
            return None
        return about

    def _discard(self, path: pathlib.Path) -> int:
        """Removes a state; returns how many bytes that gave."""
        freed = 0
        # What vouches for the others goes first.
        for each in _files_of(path):
            freed += _size(each)
            each.unlink(missing_ok=True)
        return freed


def _noted(path: pathlib.Path, read: Callable[[pathlib.Path], _Note]) -> _Note | None:
    """What was noted in a file; `None` if there is none, or it is damaged."""
    try:
        return read(path)
    except OSError:
        return None
    except Exception as error:
        warn(f"{path} is damaged and was removed: {error}")
        path.unlink(missing_ok=True)
        return None


def _read_verdict(path: pathlib.Path) -> StageVerdict:
    fields = _unsealed(path)
    return StageVerdict(
        cause=str(fields["cause"]),
        entries=_numbers(fields["entries"]),
        history=[_numbers(logs) for logs in fields["history"]],
        trial=str(fields["trial"]),
    )


def _numbers(logs: Mapping[str, Any]) -> Logs:
    return {name: float(value) for name, value in logs.items()}


def _files_of(path: pathlib.Path) -> Iterator[pathlib.Path]:
    yield path
    yield path.with_suffix(".npz")
    yield path.with_suffix(".best.npz")
    yield from path.parent.glob(f"{path.stem}.*.trace")


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process removed it
        return 0


def _sealed(content: Mapping[str, Any]) -> str:
    """JSON with a checksum of itself."""
    return files.dumps({**content, "seal": _sha256(files.dumps(content).encode())})


def _unsealed(path: pathlib.Path) -> dict[str, Any]:
    content: dict[str, Any] = files.loads(path.read_text(encoding="utf-8"))
    seal = content.pop("seal")
    if _sha256(files.dumps(content).encode()) != seal:
        raise ValueError(f"{path.name} has another checksum than when it was written")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _checked(path: pathlib.Path, digest: str) -> bytes:
    content = path.read_bytes()
    if _sha256(content) != digest:
        raise ValueError(f"{path.name} has another checksum than when it was written")
    return content


def _arrays(content: bytes) -> list[np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return [archive[f"arr_{number}"] for number in range(len(archive.files))]


def _estimated_size(state: StageState) -> int:
    """Bytes that the files of a state will take, rather too many."""
    arrays = [a for values in state.training.variables.values() for a in values]
    if state.best is not None and state.best.epoch + 1 != state.training.epoch:
        arrays += state.best.weights
    history = sum(40 * len(logs) for logs in state.history)
    # Headers of an archive; the random numbers of Python and numpy.
    return sum(array.nbytes + 512 for array in arrays) + history + 20_000
