"""Tests of the plan of a search by stages, and of the command that prints it."""

from __future__ import annotations

import textwrap
from typing import Any

import keras
import pytest
import reference_stages as reference
import staging
from staging import dense

import kt_bttackler as ktb
from kt_bttackler import cli, stages
from kt_bttackler.stages import schedules
from kt_bttackler.stages.tree import values_of

EPOCHS = 30


def space(hp: Any, name: str) -> None:
    """The spaces on which the literature and this project count."""
    lower = [10, 15, 20]
    if name == "A":
        stages.schedule(
            hp, "learning_rate", "step", start=[0.1, 0.05, 0.01], milestones=lower, factor=[0.1, 0.2, 0.5]
        )  # fmt: skip
    elif name == "B":
        stages.schedule(
            hp,
            "learning_rate",
            "step",
            start=[0.1, 0.05],
            milestones=(lower, [22, 25, 28]),
            factor=[0.1, 0.5],
        )
    elif name == "D":
        hp.Choice("learning_rate", [0.1, 0.05, 0.01, 0.001])
        hp.Choice("batch_size", [16, 32, 64])
    elif name == "E":
        stages.schedule(
            hp,
            "learning_rate",
            "cosine",
            start=[0.1, 0.05, 0.01],
            epochs=[15, 20, 25, 30],
        )
    elif name == "F":
        then = {
            "kind": "step",
            "start": [0.1, 0.05],
            "milestones": [5, 10, 15],
            "factor": [0.1, 0.2, 0.5],
        }
        stages.schedule(hp, "learning_rate", "warmup", epochs=5, then=then)


def planned(build: Any, folder: Any, oracle: Any = None, **arguments: Any) -> Any:
    made = staging.tuner(build, folder, oracle, epochs=EPOCHS)
    return stages.plan(made, **arguments)


def build(name: str) -> Any:
    def of(hp: Any) -> keras.Model:
        space(hp, name)
        return dense("sgd")

    return of


@pytest.mark.parametrize(
    ("name", "trials", "unique"),
    # F: two starts, of each 20 epochs that all share and 3 x (20 + 15 + 10) others.
    [("A", 27, 465), ("D", 12, 360), ("E", 12, 351), ("F", 18, 310)],
)
def test_known_spaces(name: str, trials: int, unique: int, tmp_path: Any) -> None:
    plan = planned(build(name), tmp_path)
    assert (plan.trials, plan.total_epochs) == (trials, trials * EPOCHS)
    assert plan.unique_epochs == unique
    assert plan.merge_rate == pytest.approx(trials * EPOCHS / unique)
    assert plan.tree.critical_path == EPOCHS


def test_the_plan_counts_every_prefix_once(tmp_path: Any) -> None:
    oracle = ktb.oracles.RandomSearchOracle("val_loss", max_trials=12, seed=3)
    made = staging.tuner(build("B"), tmp_path, oracle, epochs=EPOCHS)
    plan = stages.plan(made)
    assert not made.oracle.trials  # the search itself has not begun
    seen = []
    made.run_trial = lambda trial, **_: seen.append(trial) or {"val_loss": 0.5}
    made.search(verbose=0)
    sequences = []
    for trial in seen:
        with schedules.collecting() as declared:
            space(trial.hyperparameters, "B")
        sequences.append(("", values_of(declared.values(), EPOCHS)))
    assert plan.trials == len(seen) == 12
    assert plan.unique_epochs == reference.unique_epochs(sequences)


def test_rungs_are_planned(tmp_path: Any) -> None:
    oracle = ktb.oracles.SuccessiveHalvingOracle(
        "val_loss", max_epochs=9, num_initial_trials=9
    )
    plan = planned(build("B"), tmp_path, oracle)
    # The first rungs are before any milestone: two starts.
    assert (plan.trials, plan.total_epochs) == (13, 9 * 1 + 3 * 3 + 9)
    assert plan.unique_epochs <= 9 + 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("D", "no value is declared with `stages.schedule`"),
        (
            "E",
            "tells from the first epochs on: learning_rate/start, learning_rate/epochs",
        ),
    ],
)
def test_little_sharing_is_explained(name: str, reason: str, tmp_path: Any) -> None:
    plan = planned(build(name), tmp_path)
    assert plan.warnings[0].startswith("little is shared: the merge rate is 1.0")
    assert any(warning.startswith(reason) for warning in plan.warnings)
    assert f"! {reason}" in str(plan)


def test_values_that_never_change_are_named(tmp_path: Any) -> None:
    def of(hp: Any) -> keras.Model:
        hp.Float("rate", 0.0, 1.0)
        stages.schedule(
            hp, "learning_rate", "step", start=0.1, milestones=[3, 6], factor=0.1
        )
        return dense("sgd")

    oracle = ktb.oracles.RandomSearchOracle("val_loss", max_trials=4, seed=0)
    (_, why) = planned(of, tmp_path, oracle).warnings
    assert why == "no two trials have the same values of what never changes: rate"


def test_the_figures_of_a_plan(tmp_path: Any) -> None:
    plan = planned(build("A"), tmp_path, seconds_per_epoch=2.0)
    assert plan.warnings == ()
    assert plan.seconds == 930.0
    assert "0:15:30" in str(plan)
    # 27 ends, and what is left behind before epochs 10, 15 and 20 of three starts.
    assert plan.states == 27 + 3 * 3
    weights = 36 + 1 + 2  # and the two numbers of the state of the dropout
    assert plan.disk_peak == plan.states * plan.state_bytes > plan.states * 4 * weights


def test_a_plan_can_be_cut_short(tmp_path: Any) -> None:
    assert planned(build("A"), tmp_path, trials=5).trials == 5


def test_the_epochs_must_be_known(tmp_path: Any) -> None:
    made = staging.tuner(build("A"), tmp_path, epochs=None)
    with pytest.raises(ValueError, match="`epochs` must be given"):
        stages.plan(made)
    assert stages.plan(made, epochs=EPOCHS).unique_epochs == 465


SCRIPT = """
import sys
import keras
import kt_bttackler as ktb
from kt_bttackler import stages

def build(hp):
    rate = stages.schedule(
        hp, "learning_rate", "step", start=0.1, milestones=[2, 3], factor=0.1
    )
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model

oracle = ktb.oracles.GridSearchOracle("val_loss")
tuner = stages.StageTuner(build, oracle=oracle, directory=sys.argv[1])
tuner.search([], [], epochs=4)
print("never printed")
"""


def test_the_command_plans_a_script(tmp_path: Any, capsys: Any) -> None:
    script = tmp_path / "search.py"
    script.write_text(textwrap.dedent(SCRIPT))
    arguments = [
        "stages",
        "plan",
        "--seconds-per-epoch",
        "60",
        str(script),
        str(tmp_path),
    ]
    assert cli.main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "epochs to train 6" in printed
    assert "expected time 0:06:00" in printed
    assert "never printed" not in printed


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "SCRIPT must be a file, got"),
        ("print(1)", "ended without the search of a StageTuner"),
        (
            SCRIPT.replace(", epochs=4", ""),
            "`epochs` must be given where the tuner does not know them",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(
    script: str | None, message: str, tmp_path: Any, capsys: Any
) -> None:
    path = tmp_path / "search.py"
    if script is not None:
        path.write_text(script)
    assert cli.main(["stages", "plan", str(path), str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1
