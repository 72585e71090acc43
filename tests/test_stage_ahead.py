"""Stages of trials that are known beforehand, trained by the longest path."""

from __future__ import annotations

import pathlib
import random
import sys
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
import reference_stages as reference
import staging
from staging import ROWS, searched, tuner

import kt_bttackler as ktb
from kt_bttackler import stages
from kt_bttackler.stages.pieces import KnownTrial, pieces_of, ready
from kt_bttackler.stages.planning import upcoming
from kt_bttackler.stages.tree import stages_of
from kt_bttackler.training_state import TrainingState

BENCHMARKS = pathlib.Path(__file__).parent.parent / "examples" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import stage_spaces  # noqa: E402


def forest(seed: int) -> list[KnownTrial]:
    """Trials of random lengths whose values change at random epochs."""
    dice = random.Random(seed)
    longest = dice.randint(5, 40)
    trials = []
    for _ in range(dice.randint(1, 30)):
        changes = dice.sample(range(1, longest), dice.randint(0, min(3, longest - 1)))
        length = longest if dice.random() < 0.6 else dice.randint(1, longest)
        rate, sequence = dice.randint(0, 1), []
        for epoch in range(length):
            rate = dice.randint(0, 2) if epoch in changes else rate
            sequence.append((("rate", rate),))
        trials.append(KnownTrial(str(dice.randrange(3)), sequence))
    return trials


def tree_of(trials: list[KnownTrial]) -> stages.StageTree:
    tree = stages.StageTree()
    for trial in trials:
        tree.add(stages_of(trial.sequence), trial.root)
    return tree


def test_two_workers_are_near_the_lower_bound() -> None:
    """No schedule is shorter than the bound; one epoch is the finest that it can be."""
    checked = 0
    for seed in range(300):
        trials = forest(seed)
        tree, pieces = tree_of(trials), pieces_of(trials, workers=2)
        bound = tree.shortest_makespan(2)
        taken = reference.makespan(pieces, 2)
        assert bound <= taken <= bound + 4
        if bound >= 20:
            checked += 1
            assert taken <= 1.15 * bound
    assert checked > 100


def test_pieces_are_the_epochs_of_the_tree() -> None:
    for seed in range(50):
        trials = forest(seed)
        pieces = pieces_of(trials, workers=2)
        assert sum(p.end - p.start for p in pieces) == tree_of(trials).unique_epochs
        names = {piece.name: piece for piece in pieces}
        assert len(names) == len(pieces)
        for piece in pieces:
            assert piece.start < piece.end
            if piece.parent is None:
                assert piece.start == 0
            else:
                assert names[piece.parent].end == piece.start
                assert names[piece.parent].remaining > piece.remaining


def test_a_stage_that_others_may_leave_is_cut_there() -> None:
    sequence = [(("rate", 1),)] * 30
    others = [KnownTrial(str(number), sequence) for number in range(9)]
    pieces = pieces_of([KnownTrial("", sequence, branches={4, 30}), *others], 1)
    ends = sorted(p.end for p in pieces if p.trial == 0)
    assert ends == [4, 30]


def test_a_worker_goes_on_where_it_was() -> None:
    trials = [KnownTrial(root, [(("rate", 1),)] * 40) for root in "ab"]
    pieces = pieces_of(trials, workers=2)
    first = ready(pieces, ())[:2]
    done = {piece.name for piece in first}
    for last in done:
        assert ready(pieces, done, last)[0].parent == last


@pytest.mark.parametrize("space", "ABCDEFG")
def test_the_spaces_of_the_benchmark(space: str, tmp_path: Any) -> None:
    """With two workers: at most 1.15 of the longest path and of half the work."""
    hp = keras_tuner.HyperParameters()
    oracle = ktb.oracles.GridSearchOracle("val_loss", hyperparameters=hp)
    stage_spaces.declare(hp, space)
    trials = []
    for trial in upcoming(oracle, hp):
        own = trial.hyperparameters
        with stages.schedules.collecting() as declared:
            stage_spaces.declare(own, space)
        static = str(
            {k: v for k, v in own.values.items() if k in ("rate", "weight_decay")}
        )
        known = stages.tree.values_of(declared.values(), stage_spaces.EPOCHS)
        trials.append(KnownTrial(static, known))
    tree = tree_of(trials)
    bound = max(tree.critical_path, tree.unique_epochs / 2)
    assert reference.makespan(pieces_of(trials, 2), 2) <= 1.15 * bound


def states(folder: Any) -> dict[str, TrainingState]:
    paths = pathlib.Path(folder).glob("*/*.npz")
    return {p.name: TrainingState.load(p) for p in paths if "best" not in p.name}


def test_what_is_trained_ahead_is_the_same(tmp_path: Any) -> None:
    """Bit for bit, and no epoch twice."""

    def study(name: str, **arguments: Any) -> tuple[Any, Any, Any, Any]:
        folder = tmp_path / name
        made = tuner(
            staging.build_dense,
            tmp_path,
            project_name=name,
            stage_dir=folder,
            **arguments,
        )
        histories = staging.histories(made)
        ends = searched(made, fit=ROWS)
        return made, histories, ends, states(folder)

    made, histories, ends, kept = study("ahead", workers=2)
    lazily, expected, _, others = study("lazily")
    assert set(ends.epochs) == {"ahead"}
    assert ends.trained == made.usage.trained == lazily.usage.trained == 13
    assert histories == expected
    assert set(others) <= set(kept)
    for name, state in others.items():
        for owner, values in state.variables.items():
            for one, other in zip(values, kept[name].variables[owner], strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "oracle",
    [
        pytest.param(
            ktb.oracles.RandomSearchOracle("val_loss", max_trials=4, seed=0),
            marks=pytest.mark.slow,
        ),
        ktb.oracles.SuccessiveHalvingOracle(
            "val_loss", max_epochs=4, factor=2, num_initial_trials=4, seed=0
        ),
        pytest.param(
            ktb.oracles.HyperbandOracle(
                "val_loss", max_epochs=4, factor=2, seed=0, hyperband_iterations=1
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["random", "halving", "hyperband"],
)
def test_rounds_are_known_when_they_begin(oracle: Any, tmp_path: Any) -> None:
    made = tuner(staging.build_dense, tmp_path, oracle, workers=2, epochs=4)
    ends = searched(made, fit=ROWS)
    assert set(ends.epochs) == {"ahead"}
    statuses = {trial.status for trial in oracle.trials.values()}
    assert statuses == {"COMPLETED"}


def test_the_oracle_is_left_as_it_is() -> None:
    hp = keras_tuner.HyperParameters()
    hp.Int("a", 1, 9)
    oracle = ktb.oracles.RandomSearchOracle(
        "loss", max_trials=5, hyperparameters=hp, seed=1
    )
    ones = [t.hyperparameters.values for t in upcoming(oracle, hp)]
    assert not oracle.trials
    assert ones == [t.hyperparameters.values for t in upcoming(oracle, hp)]
    assert len(ones) == 5
    learning = ktb.oracles.BayesianOptimizationOracle("loss", hyperparameters=hp)
    assert upcoming(learning, hp) == []


def test_a_fault_ahead_leaves_it_to_the_trials(tmp_path: Any, monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr("kt_bttackler.stages.executions.upcoming", broken)
    made = tuner(staging.build_dense, tmp_path, workers=2)
    with pytest.warns(RuntimeWarning, match="not trained ahead: OSError: no room"):
        assert searched(made, fit=ROWS).trained == 13


def test_diagnosed_trials_are_run_one_by_one(tmp_path: Any) -> None:
    made = tuner(staging.build_dense, tmp_path, workers=2)
    ends = searched(made, ktb.DiagnosisCallback(), fit=ROWS)
    assert "ahead" not in ends.epochs


def test_without_room_nothing_is_waited_for(tmp_path: Any) -> None:
    made = tuner(staging.build_dense, tmp_path, workers=2, disk_budget=0, epochs=3)
    searched(made, fit=ROWS)
    assert {t.status for t in made.oracle.trials.values()} == {"COMPLETED"}


@pytest.mark.slow
def test_a_model_without_an_input(tmp_path: Any) -> None:
    """Its weights come with the first batch."""

    def build(hp: Any) -> keras.Model:
        rate = stages.schedule(hp, "learning_rate", "step", **staging.STEPS)
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(rate), "mse", run_eagerly=True)
        return model

    def study(name: str, workers: int) -> tuple[int, Any]:
        made = tuner(build, tmp_path, workers=workers, project_name=name)
        histories = staging.histories(made)
        return searched(made, fit=ROWS).trained, histories

    assert study("ahead", 2) == study("lazily", 1)
