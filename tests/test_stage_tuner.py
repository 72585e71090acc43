"""Staged trials are, bit for bit, the trials that were never interrupted."""

from __future__ import annotations

import copy
import json
import pathlib
import tempfile
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
import reference_stages as reference
import staging
from hypothesis import given, settings
from hypothesis import strategies as st
from staging import EPOCHS, FIT, ROWS, STEPS, dense, network, searched, tuner

import kt_bttackler as ktb
from kt_bttackler import stages
from kt_bttackler.stages import schedules
from kt_bttackler.stages.order import OrderedRows
from kt_bttackler.stages.staged_training import StagedTraining, Usage
from kt_bttackler.stages.store import StageStore
from kt_bttackler.stages.warm import WarmModel
from kt_bttackler.training_state import TrainingState


def values(build: Any, trial: Any, epochs: int = EPOCHS) -> list[dict[str, float]]:
    """What is set before every epoch of a trial."""
    with schedules.collecting() as declared:
        build(trial.hyperparameters)
    return [{n: s.at(epoch) for n, s in declared.items()} for epoch in range(epochs)]


def assert_exact(
    made: Any, ends: Any, histories: Any, build: Any, fit: Any, **arguments: Any
) -> None:
    """Every trial ends as a full training does: weights, optimizer, history."""
    data = (fit["x"], fit["y"], fit["validation_data"])
    assert made.oracle.trials
    for trial_id, trial in made.oracle.trials.items():
        model, history = reference.full_training(
            lambda trial=trial: build(trial.hyperparameters),
            values(build, trial),
            *data,
            batch_size=fit["batch_size"],
            **arguments,
        )
        assert trial.status == "COMPLETED", trial.message
        assert histories[trial_id] == history
        # A trial whose values another one has had is not trained: no state to compare.
        if trial_id in ends.digests:
            assert ends.digests[trial_id] == reference.digest(model)


def build_adam(hp: Any) -> keras.Model:
    rate = stages.schedule(hp, "learning_rate", "step", **STEPS)
    return network(keras.optimizers.Adam(rate), eager=False)


def build_adam_twice(hp: Any) -> keras.Model:
    """As before, but there are two trials only."""
    options = staging.STEPS | {"factor": 0.1}
    rate = stages.schedule(hp, "learning_rate", "step", **options)
    return network(keras.optimizers.Adam(rate), eager=False)


def build_momentum(hp: Any) -> keras.Model:
    """Everything at once: rate, batch size, and a momentum that rises from zero."""
    rate = stages.schedule(
        hp, "learning_rate", "piecewise", values=(0.01, [0.01, 0.002]), boundaries=2
    )
    stages.schedule(hp, "batch_size", "piecewise", values=(20, 7), boundaries=[1, 3])
    momentum = stages.schedule(
        hp, "momentum", "piecewise", values=(0, 0.9), boundaries=2
    )
    optimizer = keras.optimizers.SGD(rate, momentum=momentum, use_ema=True)
    # Built with a momentum, the optimizer has the variables for it.
    optimizer.momentum = 0.9
    return network(optimizer)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("build", "trained"),
    # What two trials begin with is trained once.
    [
        (build_adam_twice, 8),
        pytest.param(build_adam, 13, marks=pytest.mark.slow),
    ],
    ids=["two trials", "four trials"],
)
def test_staged_trials_are_full_trainings(
    build: Any, trained: int, tmp_path: Any
) -> None:
    """With Adam, augmentation, batch normalisation, dropout; the graph is traced."""
    made = tuner(build, tmp_path)
    histories = staging.histories(made)
    ends = searched(made)
    assert_exact(made, ends, histories, build, FIT)
    assert ends.trained == made.usage.trained == trained
    plan = stages.plan(tuner(build, tmp_path / "plan"))
    assert plan.unique_epochs == trained
    assert (made.usage.trials, made.usage.epochs) == (plan.trials, plan.total_epochs)
    assert len(ends.models) == 1  # one compiled model for all of them
    _assert_best_models(made)


def _assert_best_models(made: Any) -> None:
    """The weights kept are those of the best epoch, even of an earlier stage."""
    best = made.oracle.get_best_trials(1)[0]
    (model,) = made.get_best_models(1)
    x, y = FIT["validation_data"]
    loss, _ = model.evaluate(x, y, batch_size=FIT["batch_size"], verbose=0)
    assert loss == pytest.approx(best.score, abs=1e-6)


def test_schedules_of_batch_size_and_momentum_are_exact(tmp_path: Any) -> None:
    made = tuner(build_momentum, tmp_path)
    histories = staging.histories(made)
    ends = searched(made)
    plan = stages.plan(tuner(build_momentum, tmp_path / "plan"))
    assert ends.trained == plan.unique_epochs < plan.total_epochs == 20
    for trial_id, trial in made.oracle.trials.items():
        _, history = reference.full_training(
            lambda trial=trial: build_momentum(trial.hyperparameters),
            values(build_momentum, trial),
            FIT["x"],
            FIT["y"],
            FIT["validation_data"],
            ema=True,
        )
        assert histories[trial_id] == history


def test_a_second_study_trains_nothing_anew(tmp_path: Any) -> None:
    first = tuner(staging.build_dense, tmp_path, stage_dir=tmp_path / "stages")
    before = staging.histories(first)
    searched(first, fit=ROWS)
    second = tuner(
        staging.build_dense,
        tmp_path,
        ktb.oracles.RandomSearchOracle("val_loss", max_trials=3, seed=0),
        stage_dir=tmp_path / "stages",
        project_name="second",
    )
    after = staging.histories(second)
    ends = searched(second, fit=ROWS)
    assert ends.trained == 0
    assert all(history in before.values() for history in after.values())
    assert np.isfinite(second.get_best_models(1)[0].get_weights()[0]).all()


def study_of_one(folder: Any, name: str, fit: Any = None, **changes: Any) -> int:
    """Epochs trained for one trial of one epoch."""
    optimizer, compiled = changes.pop("optimizer", {}), changes.pop("compiled", {})

    def build(hp: Any) -> keras.Model:
        rate = stages.schedule(hp, "learning_rate", "constant", value=[0.01])
        return dense(keras.optimizers.Adam(rate, **optimizer), **compiled)

    stage_dir = folder / "stages"
    made = tuner(
        build, folder, epochs=1, stage_dir=stage_dir, project_name=name, **changes
    )
    return searched(made, fit=ROWS | (fit or {})).trained


@pytest.fixture(scope="module")
def studied(tmp_path_factory: Any) -> Any:
    """A folder in which that trial was trained."""
    folder = tmp_path_factory.mktemp("studied")
    assert study_of_one(folder, "first") == 1
    assert study_of_one(folder, "same") == 0
    return folder


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seed", {"seed": 1}),
        pytest.param("version", {"code_version": "2"}, marks=pytest.mark.slow),
        pytest.param("shuffle", {"fit": {"shuffle": False}}, marks=pytest.mark.slow),
        pytest.param(
            "weights",
            {"fit": {"class_weight": {0: 1.0, 1: 2.0}}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "batches", {"fit": {"validation_batch_size": 5}}, marks=pytest.mark.slow
        ),
        ("x", {"fit": {"x": ROWS["x"] + 1}}),
        pytest.param(
            "validation",
            {"fit": {"validation_data": (ROWS["x"], ROWS["y"])}},
            marks=pytest.mark.slow,
        ),
        ("optimizer", {"optimizer": {"beta_1": 0.8}}),
        pytest.param(
            "metrics", {"compiled": {"metrics": ["mae"]}}, marks=pytest.mark.slow
        ),
        ("loss", {"compiled": {"loss": "mae"}}),
    ],
)
def test_nothing_stale_is_reused(name: str, change: Any, studied: Any) -> None:
    assert study_of_one(studied, name, **change) == 1


@pytest.mark.slow
def test_static_values_part_the_roots(tmp_path: Any) -> None:
    def build(hp: Any) -> keras.Model:
        rate = stages.schedule(hp, "learning_rate", "step", start=0.01, milestones=[1, 2], factor=0.1)  # fmt: skip
        hp.Choice("idle", [1, 2])  # tells nothing, but who knows
        return dense(keras.optimizers.Adam(rate))

    made = tuner(build, tmp_path, epochs=3)
    assert searched(made, fit=ROWS).trained == 2 * (3 + 2)


def test_successive_halving_goes_on_with_stages(tmp_path: Any) -> None:
    oracle = ktb.oracles.SuccessiveHalvingOracle(
        "val_loss", max_epochs=4, factor=2, num_initial_trials=4
    )
    made = tuner(staging.build_dense, tmp_path, oracle, epochs=None)
    histories = staging.histories(made)
    ends = searched(made, fit=ROWS)
    epochs = [t.hyperparameters.values["tuner/epochs"] for t in oracle.trials.values()]
    assert sorted(epochs) == [1, 1, 1, 1, 2, 2, 4]
    # The seven trials have 12 epochs; before the last rung all are the same.
    sequences = {
        tuple(
            tuple(v.items())
            for v in values(staging.build_dense, trial, length)[: n + 1]
        )
        for trial, length in zip(oracle.trials.values(), epochs, strict=True)
        for n in range(length)
    }
    assert ends.trained == len(sequences) == 4
    for trial_id, trial in oracle.trials.items():
        length = trial.hyperparameters.values["tuner/epochs"]
        _, history = reference.full_training(
            lambda trial=trial: staging.build_dense(trial.hyperparameters),
            values(staging.build_dense, trial, length),
            ROWS["x"],
            ROWS["y"],
            ROWS["validation_data"],
            batch_size=20,
        )
        assert histories[trial_id] == history


def _build_one(hp: Any) -> keras.Model:
    rate = stages.schedule(hp, "learning_rate", "exponential", start=[0.01], rate=0.7)
    return dense(keras.optimizers.Adam(rate))


def trained_until(epochs: int, folder: Any, warm: WarmModel | None = None) -> Any:
    """A training that goes on from what is in the folder; its model, and itself."""
    hp = keras_tuner.HyperParameters()
    keras.utils.set_random_seed(reference.seed_of(0))
    with schedules.collecting() as declared:
        model = _build_one(hp)
    fresh = WarmModel(model, declared)
    fresh.build_optimizer(declared)
    training = StagedTraining(
        warm or fresh,
        declared,
        epochs,
        "root",
        StageStore(folder),
        lambda model, **arguments: model.fit(**arguments),
        OrderedRows((ROWS["x"], ROWS["y"]), reference.seed_of(0), shuffle=True),
        {name: ROWS[name] for name in ("validation_data", "batch_size", "verbose")},
        [],
        keras_tuner.Objective("val_loss", "min"),
        Usage(),
        "0",
        None,
    )
    training.run(TrainingState.of(model, 0, "root"))
    return warm or fresh, training


@pytest.fixture(scope="module")
def uncut() -> Any:
    model, history = reference.full_training(
        lambda: dense(keras.optimizers.Adam(0.01)),
        [{"learning_rate": float(f"{0.01 * 0.7**e:.12g}")} for e in range(EPOCHS)],
        ROWS["x"],
        ROWS["y"],
        ROWS["validation_data"],
        batch_size=20,
    )
    return reference.digest(model), history


@settings(max_examples=4, deadline=None)
@given(cuts=st.sets(st.integers(1, EPOCHS - 1)), warm=st.booleans())
def test_wherever_it_is_cut_it_is_the_same(
    cuts: set[int], warm: bool, uncut: Any
) -> None:
    """Trainings that end at random epochs, each of which goes on with the last."""
    model, trained = None, 0
    with tempfile.TemporaryDirectory() as folder:
        for end in [*sorted(cuts), EPOCHS]:
            model, training = trained_until(end, folder, model if warm else None)
            trained += training._usage.trained
    assert trained == EPOCHS
    names = training.history[0]
    history = {name: [logs[name] for logs in training.history] for name in names}
    assert (reference.digest(model.model), history) == uncut


@pytest.mark.parametrize(
    "oracle",
    [
        pytest.param(
            ktb.oracles.RandomSearchOracle("val_loss", max_trials=5, seed=0),
            marks=pytest.mark.slow,
        ),
        ktb.oracles.BayesianOptimizationOracle(
            "val_loss", max_trials=4, num_initial_points=2, seed=0
        ),
        pytest.param(
            ktb.oracles.HyperbandOracle("val_loss", max_epochs=4, factor=2, seed=0),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["random", "Bayesian", "Hyperband"],
)
def test_other_oracles(oracle: Any, tmp_path: Any) -> None:
    """They see what they see without sharing, and no epoch is trained twice."""

    def study(name: str, **arguments: Any) -> Any:
        own = copy.deepcopy(oracle)
        made = tuner(
            staging.build_dense, tmp_path, own, project_name=name, epochs=4, **arguments
        )
        histories = staging.histories(made)
        return own, histories, searched(made, fit=ROWS)

    shared, histories, ends = study("shared")
    alone, expected, without = study("alone", disk_budget=0)
    assert histories == expected
    assert [(t.score, t.hyperparameters.values) for t in shared.trials.values()] == [
        (t.score, t.hyperparameters.values) for t in alone.trials.values()
    ]
    sequences = []
    for trial in shared.trials.values():
        epochs = trial.hyperparameters.values.get("tuner/epochs", 4)
        of_trial = values(staging.build_dense, trial, epochs)
        sequences.append(("", [tuple(each.items()) for each in of_trial]))
    assert ends.trained == reference.unique_epochs(sequences) < without.trained


@pytest.mark.slow
def test_early_stopping_is_each_trial_s_own(tmp_path: Any) -> None:
    def stopping(patience: int) -> Any:
        # Nothing ever improves as much: ends after 1 + `patience` epochs.
        return keras.callbacks.EarlyStopping(
            "val_loss", min_delta=9.0, patience=patience, restore_best_weights=True
        )

    def study(name: str, *callbacks: Any) -> tuple[int, list[int]]:
        made = tuner(
            staging.build_dense, tmp_path, stage_dir=tmp_path / "s", project_name=name
        )
        histories = staging.histories(made)
        trained = searched(made, *callbacks, fit=ROWS).trained
        return trained, [len(h["loss"]) for h in histories.values()]

    assert study("impatient", stopping(1)) == (2, [2] * 4)
    trained, lengths = study("patient", stopping(3))
    assert lengths == [4] * 4
    # From epoch 2, which the others left: 2 + 2 + 2 + 1 and the shared third one.
    assert trained == 2 + 2 + 2 + 1
    assert study("unlimited")[1] == [5] * 4
    # What is deeper in the store than the trial is long.
    assert study("impatient again", stopping(1)) == (0, [2] * 4)


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
        keras.callbacks.ModelCheckpoint("best.keras"),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_that_change_or_remember_are_refused(
    callback: Any, tmp_path: Any
) -> None:
    made = tuner(staging.build_dense, tmp_path)
    with pytest.raises(ValueError, match=f"got {type(callback).__name__}"):
        made.search(**ROWS, callbacks=[callback])


@pytest.mark.slow
def test_the_budget_is_kept(tmp_path: Any) -> None:
    made = tuner(staging.build_dense, tmp_path, disk_budget=60_000)
    histories = staging.histories(made)
    searched(made, fit=ROWS)
    assert made.stage_store.disk_usage() <= 60_000
    free = tuner(staging.build_dense, tmp_path / "free")
    expected = staging.histories(free)
    searched(free, fit=ROWS)
    assert histories == expected
    assert made.usage.trained >= free.usage.trained == 13
    assert free.stage_store.disk_usage() > 60_000


def test_the_root_says_what_it_is_made_of(tmp_path: Any) -> None:
    made = tuner(staging.build_dense, tmp_path, stage_dir=tmp_path / "s", epochs=1)
    searched(made, fit=ROWS)
    (path,) = pathlib.Path(tmp_path / "s").glob("*/root.json")
    facts = json.loads(path.read_text())
    assert {"keras", "tensorflow", "seed", "data", "deterministic", "program"} <= set(
        facts
    )


def test_a_dataset_needs_a_version(tmp_path: Any) -> None:
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((ROWS["x"], ROWS["y"])).batch(20)
    fit = {"x": data, "validation_data": data, "verbose": 0}
    made = tuner(staging.build_dense, tmp_path, epochs=3)
    with pytest.raises(ValueError, match="`data_version` must name the data"):
        made.search(**fit)
    made = tuner(staging.build_dense, tmp_path / "b", epochs=3, data_version="digits")
    assert searched(made, fit=fit).trained == 2 + 1 + 1 + 1


def test_a_scheduled_batch_size_needs_arrays(tmp_path: Any) -> None:
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((FIT["x"], FIT["y"])).batch(20)
    made = tuner(build_momentum, tmp_path, data_version="1")
    with pytest.raises(ValueError, match="`x` must be in arrays"):
        made.search(x=data, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"oracle": None}, "`oracle` must be given"),
        ({"epochs": 0}, "`epochs` must be at least 1"),
        ({"warm_models": -1}, "`warm_models` must be at least 0"),
        ({"control_share": 2}, r"`control_share` must be in \[0, 1\], got 2."),
        ({"disk_budget": "lots"}, "`disk_budget` must be a number of bytes"),
        ({"disk_budget": -1}, "`disk_budget` must be at least 0"),
        ({"distribution_strategy": object()}, "`distribution_strategy` must be None"),
    ],
)
def test_mistakes_are_named(arguments: Any, message: str, tmp_path: Any) -> None:
    defaults = {
        "oracle": ktb.oracles.GridSearchOracle("val_loss"),
        "directory": tmp_path,
    }
    with pytest.raises(ValueError, match=message):
        stages.StageTuner(staging.build_dense, **(defaults | arguments))


def test_a_schedule_of_what_nobody_knows_is_refused(tmp_path: Any) -> None:
    def build(hp: Any) -> keras.Model:
        stages.schedule(hp, "speed", "constant", value=[1.0, 2.0])
        return dense("sgd")

    made = tuner(build, tmp_path)
    with pytest.raises(ValueError, match="`name` of a schedule must be"):
        made.search(**ROWS)


def test_apply_sets_what_the_optimizer_does_not_have(tmp_path: Any) -> None:
    def set_rate(model: Any, rate: float) -> None:
        model.layers[0].rate = rate

    def build(hp: Any) -> keras.Model:
        stages.schedule(
            hp,
            "dropout",
            "piecewise",
            values=(0.0, [0.5, 0.9]),
            boundaries=2,
            apply=set_rate,
        )
        return dense("sgd")

    made = tuner(build, tmp_path, epochs=4)
    histories = staging.histories(made)
    assert searched(made, fit=ROWS).trained == 2 + 2 + 2
    low, high = histories["0000"]["loss"], histories["0001"]["loss"]
    assert low[:2] == high[:2]
    assert low[2:] != high[2:]


def test_several_executions_have_seeds_of_their_own(tmp_path: Any) -> None:
    made = tuner(_build_one, tmp_path, epochs=2, executions_per_trial=2)
    assert searched(made, fit=ROWS).trained == 4
    assert made.usage.trials == 2


def test_kerastuner_s_own_search_is_left_alone(tmp_path: Any) -> None:
    """A schedule is its first value where nobody knows of stages."""
    made = keras_tuner.GridSearch(
        staging.build_dense, objective="val_loss", directory=tmp_path, max_trials=1
    )
    made.search(**ROWS, epochs=1)
    rate = made.get_best_models(1)[0].optimizer.learning_rate
    assert float(rate) == pytest.approx(0.01)
