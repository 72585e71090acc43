"""Stages, and the tree that the stages of several trials make."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kt_bttackler import files
from kt_bttackler.stages.choices import Number

# The values of one epoch, sorted by name.
Values = tuple[tuple[str, Number], ...]
# Of the names of states: as many as no two will share by accident.
_DIGITS = 32


@dataclasses.dataclass(frozen=True)
class Stage:
    """Epochs in which no hyperparameter changes.

    Attributes:
        values: of the hyperparameters that change elsewhere, by name.
        start: its first epoch, counted from 0.
        length: how many epochs it has.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> Stage({"learning_rate": 0.1}, start=0, length=10).end
        10
    """

    values: Mapping[str, Number]
    start: int
    length: int

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"`start` must be at least 0, got {self.start}.")
        if self.length < 1:
            raise ValueError(f"`length` must be at least 1, got {self.length}.")

    @property
    def end(self) -> int:
        """The first epoch after it."""
        return self.start + self.length


def split(schedules: Iterable[Any], epochs: int) -> list[Stage]:
    """Splits a training into stages.

    Args:
        schedules: its schedules (`Schedule`).
        epochs: its length.

    Example:
        >>> from kt_bttackler.stages import schedule
        >>> options = {"start": 0.1, "milestones": 2, "factor": 0.1}
        >>> for stage in split([schedule(None, "rate", "step", **options)], 3):
        ...     print(stage)
        Stage(values={'rate': 0.1}, start=0, length=2)
        Stage(values={'rate': 0.01}, start=2, length=1)
    """
    return stages_of(values_of(schedules, epochs))


def values_of(schedules: Iterable[Any], epochs: int) -> list[Values]:
    """For each epoch the values of the schedules."""
    ordered = sorted(schedules, key=lambda schedule: str(schedule.name))
    return [
        tuple((schedule.name, schedule.at(epoch)) for schedule in ordered)
        for epoch in range(epochs)
    ]


def state_ids(root: str, sequence: Sequence[Values]) -> list[str]:
    """Names of the states after 0, 1, 2, ... epochs.

    They depend on the values alone, not on how the epochs were cut into stages.

    Args:
        root: name of the root.
        sequence: the values of every epoch.
    """
    digest = hashlib.sha256(root.encode())
    names = [digest.hexdigest()[:_DIGITS]]
    for values in sequence:
        digest.update(files.dumps([[name, value] for name, value in values]).encode())
        names.append(digest.hexdigest()[:_DIGITS])
    return names


def stages_of(sequence: Sequence[Values], start: int = 0) -> list[Stage]:
    """Joins epochs with the same values.

    Args:
        sequence: the values of consecutive epochs.
        start: number of the first of them.
    """
    found: list[Stage] = []
    for epoch, values in enumerate(sequence, start):
        if found and dict(values) == found[-1].values:
            last = found.pop()
            found.append(dataclasses.replace(last, length=last.length + 1))
        else:
            found.append(Stage(dict(values), epoch, 1))
    return found


class Node:
    """Epochs that the same trials go through, and no others.

    Attributes:
        start: the first of them, counted from 0.
        sequence: their values.
        trials: how many trials go through.
        children: what follows.
    """

    def __init__(self, start: int, sequence: Sequence[Values], trials: int) -> None:
        self.start = start
        self.sequence = tuple(sequence)
        self.trials = trials
        self.children: list[Node] = []

    @property
    def end(self) -> int:
        """The first epoch after it."""
        return self.start + len(self.sequence)

    @property
    def stages(self) -> list[Stage]:
        """The stages that it consists of."""
        return stages_of(self.sequence, self.start)


class StageTree:
    """The stages of several trials, where each common beginning is there once.

    Trials begin together if they have the same root: what does not change in a
    training, such as the architecture.

    Example:
        >>> tree = StageTree()
        >>> for milestone in (2, 3):
        ...     stages = [Stage({"rate": 0.1}, 0, milestone)]
        ...     stages.append(Stage({"rate": 0.01}, milestone, 4 - milestone))
        ...     tree.add(stages)
        >>> tree.total_epochs, tree.unique_epochs, round(tree.merge_rate, 2)
        (8, 6, 1.33)
    """

    def __init__(self) -> None:
        self.roots: dict[str, Node] = {}
        self.trials = 0
        self.total_epochs = 0

    def add(self, stages: Sequence[Stage], root: str = "") -> None:
        """Adds a trial.

        Args:
            stages: those of the trial, without gaps.
            root: what is the same in all its epochs.

        Raises:
            ValueError: the stages do not follow one another from epoch 0.
        """
        sequence: list[Values] = []
        for stage in stages:
            if stage.start != len(sequence):
                raise ValueError(
                    f"`stages` must go on at epoch {len(sequence)}, got one that "
                    f"starts at {stage.start}."
                )
            values = tuple(sorted(stage.values.items()))
            sequence.extend([values] * stage.length)
        self.trials += 1
        self.total_epochs += len(sequence)
        node = self.roots.setdefault(root, Node(0, (), 0))
        node.trials += 1
        while sequence:
            node, sequence = _descend(node, sequence)

    def nodes(self) -> Iterator[Node]:
        """All nodes with epochs, each before those that follow it."""
        waiting = list(self.roots.values())
        while waiting:
            node = waiting.pop()
            waiting.extend(node.children)
            if node.sequence:
                yield node

    @property
    def unique_epochs(self) -> int:
        """Epochs to train when every common beginning is trained once."""
        return sum(len(node.sequence) for node in self.nodes())

    @property
    def merge_rate(self) -> float:
        """Epochs of all trials by the epochs to train; 1 when nothing is shared."""
        return self.total_epochs / self.unique_epochs if self.trials else 1.0

    @property
    def critical_path(self) -> int:
        """Epochs of the longest trial: no number of workers is faster."""
        return max((node.end for node in self.nodes()), default=0)

    def shortest_makespan(self, workers: int) -> float:
        """Lower bound of the epochs that pass with so many workers.

        What comes after epoch n can be trained when n epochs have passed, and not
        earlier, by all workers together (Hu, Operations Research 9(6), 1961). So it is
        no less than the longest path, and than the work of one worker.

        Args:
            workers: how many train at the same time.
        """
        at = collections.Counter(
            epoch for node in self.nodes() for epoch in range(node.start, node.end)
        )
        after, bound = 0, 0.0
        for epoch in range(self.critical_path - 1, -1, -1):
            after += at[epoch]
            bound = max(bound, epoch + max(1.0, after / workers))
        return bound


def _descend(node: Node, sequence: list[Values]) -> tuple[Node, list[Values]]:
    """Takes a new trial one node further; returns it, and what is left of the trial."""
    for child in node.children:
        common = _common(child.sequence, sequence)
        if not common:
            continue
        if common < len(child.sequence):
            _cut(child, common)
        child.trials += 1
        return child, sequence[common:]
    leaf = Node(node.end, sequence, 1)
    node.children.append(leaf)
    return leaf, []


def _cut(node: Node, length: int) -> None:
    """Leaves so many epochs in a node, and makes the rest a node that follows."""
    rest = Node(node.start + length, node.sequence[length:], node.trials)
    rest.children, node.children = node.children, [rest]
    node.sequence = node.sequence[:length]


def _common(ones: Sequence[Values], others: Sequence[Values]) -> int:
    length = 0
    for one, other in zip(ones, others, strict=False):
        if one != other:
            break
        length += 1
    return length
