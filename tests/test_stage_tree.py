"""Tests of stages and of the tree that they make."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import reference_stages as reference
from hypothesis import given
from hypothesis import strategies as st

from kt_bttackler.stages import Stage, StageTree, schedule, split
from kt_bttackler.stages.tree import stages_of, values_of

TRIALS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.lists(
            st.tuples(st.tuples(st.just("h"), st.integers(0, 1))),
            min_size=1,
            max_size=6,
        ),
    ),
    min_size=1,
    max_size=12,
)


def tree_of(trials: Any) -> StageTree:
    tree = StageTree()
    for root, sequence in trials:
        tree.add(stages_of(sequence), root)
    return tree


@given(TRIALS)
def test_every_common_beginning_is_there_once(trials: Any) -> None:
    tree = tree_of(trials)
    assert tree.trials == len(trials)
    assert tree.total_epochs == sum(len(sequence) for _, sequence in trials)
    assert tree.unique_epochs == reference.unique_epochs(trials)
    assert tree.critical_path == max(len(sequence) for _, sequence in trials)
    # Every epoch counts once for every trial that goes through it.
    through = sum(node.trials * len(node.sequence) for node in tree.nodes())
    assert through == tree.total_epochs


@given(TRIALS)
def test_the_order_of_the_trials_does_not_matter(trials: Any) -> None:
    def facts(tree: StageTree) -> Any:
        return sorted((node.start, node.sequence, node.trials) for node in tree.nodes())

    assert facts(tree_of(trials)) == facts(tree_of(trials[::-1]))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=20))
def test_stages_are_the_sequence(numbers: Any) -> None:
    sequence = [(("h", number),) for number in numbers]
    found = stages_of(sequence)
    again = [
        tuple(stage.values.items()) for stage in found for _ in range(stage.length)
    ]
    assert again == sequence
    assert [stage.start for stage in found[1:]] == [stage.end for stage in found[:-1]]
    for one, other in itertools.pairwise(found):
        assert one.values != other.values


def test_values_of_several_schedules() -> None:
    rate = schedule(None, "rate", "step", start=1.0, milestones=2, factor=0.5)
    size = schedule(None, "batch_size", "piecewise", values=(8, 16), boundaries=1)
    assert values_of([rate, size], 1) == [(("batch_size", 8), ("rate", 1.0))]
    assert split([rate, size], 3) == [
        Stage({"batch_size": 8, "rate": 1.0}, 0, 1),
        Stage({"batch_size": 16, "rate": 1.0}, 1, 1),
        Stage({"batch_size": 16, "rate": 0.5}, 2, 1),
    ]
    assert rate.segments(3) == [Stage({"rate": 1.0}, 0, 2), Stage({"rate": 0.5}, 2, 1)]


def test_without_schedules_a_trial_is_one_stage() -> None:
    tree = StageTree()
    for root in ("small", "large", "small"):
        tree.add(split([], 4), root)
    assert (tree.total_epochs, tree.unique_epochs, tree.merge_rate) == (12, 8, 1.5)


def test_an_empty_tree() -> None:
    assert (StageTree().merge_rate, StageTree().critical_path) == (1.0, 0)


@pytest.mark.parametrize(("workers", "expected"), [(1, 9), (2, 5), (9, 5)])
def test_shortest_makespan(workers: int, expected: int) -> None:
    tree = tree_of([("a", [(("h", 0),)] * 5), ("b", [(("h", 0),)] * 4)])
    assert tree.shortest_makespan(workers) == expected


@pytest.mark.parametrize(
    ("stage", "message"),
    [((-1, 1), "`start` must be at least 0"), ((0, 0), "`length` must be at least 1")],
)
def test_mistakes_are_named(stage: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage({}, *stage)


def test_stages_have_no_gaps() -> None:
    with pytest.raises(
        ValueError, match="`stages` must go on at epoch 2, got one that"
    ):
        StageTree().add([Stage({}, 0, 2), Stage({}, 3, 1)])
