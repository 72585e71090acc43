"""Which stages to train next, where the trials to come are known.

Of the stages that can be trained now, the one goes first that heads the longest path:
the last worker is to end soon after the others. A stage that is long compared with the
whole is cut into pieces, so that workers can change places.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Sequence

from kt_bttackler.stages.tree import Values, state_ids

# Longest piece, as a share of the time that the workers need at least.
_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class KnownTrial:
    """A trial to come.

    Attributes:
        root: name of its root.
        sequence: the values of every epoch.
        branches: epochs before which other trials may leave it.
    """

    root: str
    sequence: Sequence[Values]
    branches: Collection[int] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """Epochs that a worker trains without a pause.

    Attributes:
        name: of the state at its end.
        parent: name of the state that it begins with; `None` at a root.
        trial: number of one of the trials that go through it.
        start: its first epoch, counted from 0.
        end: the first epoch after it.
        remaining: epochs of the longest path that it heads.
    """

    name: str
    parent: str | None
    trial: int
    start: int
    end: int
    remaining: int


@dataclasses.dataclass(frozen=True)
class _Epoch:
    name: str
    before: str
    trial: int
    number: int


def pieces_of(trials: Iterable[KnownTrial], workers: int) -> list[Piece]:
    """The pieces of all trials; what several begin with is there once.

    Args:
        trials: those to come.
        workers: how many train at the same time.

    Example:
        >>> low, high = (("rate", 0.1),), (("rate", 1.0),)
        >>> trials = [KnownTrial("", [high, low, low]), KnownTrial("", [high, high])]
        >>> for piece in pieces_of(trials, workers=2):
        ...     print(piece.start, piece.end, piece.remaining)
        0 1 3
        1 2 2
        1 2 1
        2 3 1
    """
    epochs: dict[str, _Epoch] = {}
    cuts: set[str] = set()
    for number, trial in enumerate(trials):
        names = state_ids(trial.root, trial.sequence)
        for epoch, name in enumerate(names[1:]):
            epochs.setdefault(name, _Epoch(name, names[epoch], number, epoch))
        cuts.update(names[epoch] for epoch in trial.branches if epoch < len(names))
        cuts.add(names[-1])
    ordered = sorted(epochs.values(), key=lambda each: each.number)
    followers = collections.Counter(each.before for each in ordered)
    paths: dict[str, int] = collections.defaultdict(int)  # after the end of an epoch
    for each in reversed(ordered):
        paths[each.before] = max(paths[each.before], paths[each.name] + 1)
    longest = max((each.number + 1 for each in ordered), default=0)
    most = max(1, int(_SHARE * max(longest, len(ordered) / workers)))
    pieces = []
    starts: dict[str, tuple[int, str | None]] = {}
    for each in ordered:
        start, parent = starts.get(each.before, (0, None))
        end = each.number + 1
        whole = end - start >= most
        if whole or each.name in cuts or followers[each.name] != 1:
            remaining = end - start + paths[each.name]
            pieces.append(Piece(each.name, parent, each.trial, start, end, remaining))
            start, parent = end, each.name
        starts[each.name] = start, parent
    return pieces


def ready(
    pieces: Iterable[Piece], done: Collection[str], last: str | None = None
) -> list[Piece]:
    """The pieces that can be trained now; the one to train first comes first.

    Args:
        pieces: all of them.
        done: names of those that were trained.
        last: name of the one that this worker has trained last; among equals it goes on
            from there, with a model that is in the right state.
    """
    possible = [
        piece
        for piece in pieces
        if piece.name not in done and (piece.parent is None or piece.parent in done)
    ]
    return sorted(
        possible, key=lambda piece: (-piece.remaining, piece.parent != last, piece.name)
    )
