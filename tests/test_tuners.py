"""Tests of `kt_bttackler.tuners` and of KerasTuner's own with a diagnosed oracle."""

from __future__ import annotations

import gc
import inspect
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
from searches import statuses, stopped, verdict

import kt_bttackler as ktb
from kt_bttackler import channel, context

PAIRS = [
    (ktb.RandomSearch, keras_tuner.RandomSearch),
    (ktb.GridSearch, keras_tuner.GridSearch),
    (ktb.BayesianOptimization, keras_tuner.BayesianOptimization),
    (ktb.Hyperband, keras_tuner.Hyperband),
]
X = np.linspace(-1, 1, 32, dtype="float32").reshape(16, 2)
Y = X.sum(axis=1, keepdims=True)


class Doctor(keras.callbacks.Callback):
    """Stops trials with `bad` above 0.5 after the second epoch.

    It does what `DiagnosisCallback` does, as far as tuner and oracle see it.
    """

    def __init__(self, cause: str = "ERG") -> None:
        super().__init__()
        self.cause = cause

    def __deepcopy__(self, memo: Any) -> Doctor:
        fresh = type(self)(self.cause)
        fresh.trial = context.running_trial()
        fresh.execution = fresh.trial.next_execution(self)
        COPIES.append(fresh)
        return fresh

    def on_train_begin(self, logs: Any = None) -> None:
        self.logs: list[dict[str, float]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.logs.append(dict(logs))
        if self.trial.hyperparameters["bad"] > 0.5 and len(self.logs) == 2:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        ill = self.trial.hyperparameters["bad"] > 0.5
        entries = channel.encode(
            verdict(self.cause, epoch=2) if ill else None, self.logs[-1]
        )
        self.trial.channels[self.execution] = entries
        if self.execution == 0:
            history = self.model.history.history
            history.update({k: [v] * len(self.logs) for k, v in entries.items()})


COPIES: list[Doctor] = []


@pytest.fixture(autouse=True, scope="module")
def _little_garbage() -> Iterator[None]:
    # KerasTuner collects garbage before every model. What was imported before need
    # not be looked through each time: that took half of the time of these tests.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _no_copies() -> None:
    COPIES.clear()


def build_model(hp: Any) -> keras.Model:
    hp.Float("bad", 0.0, 1.0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    # Such steps make every epoch worse, so that the first is the best.
    # Eagerly: tracing a graph takes longer than all of such a training.
    rate = hp.Float("rate", 1.5, 2.0)
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
    return model


def tuner_of(cls: Any = ktb.RandomSearch, folder: Any = None, **kwargs: Any) -> Any:
    defaults: dict[str, Any] = {"objective": "val_loss", "seed": 3}
    if cls.__name__ != "Hyperband":
        defaults["max_trials"] = 4
    return cls(build_model, directory=folder, project_name="p", **(defaults | kwargs))


def searched(tuner: Any, **kwargs: Any) -> list[Any]:
    """Searches; returns the trials in the order of their start."""
    defaults = {"epochs": 3, "validation_data": (X, Y), "callbacks": [Doctor()]}
    tuner.search(X, Y, verbose=0, **(defaults | kwargs))
    return [tuner.oracle.trials[trial_id] for trial_id in tuner.oracle.start_order]


def is_bad(trial: Any) -> bool:
    return bool(trial.hyperparameters.get("bad") > 0.5)


def expected(trials: list[Any]) -> list[str]:
    return ["STOPPED" if is_bad(trial) else "COMPLETED" for trial in trials]


# --- the classes -----------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_the_arguments_are_those_of_kerastuner(
    ours: Any, theirs: Any, tmp_path: Any
) -> None:
    stock_arguments = list(inspect.signature(theirs).parameters.values())
    arguments = list(inspect.signature(ours).parameters.values())
    added = {
        argument.name: argument.default
        for argument in arguments
        if argument not in stock_arguments
    }
    assert [a for a in arguments if a.name not in added] == stock_arguments
    assert added == {
        "stopped_value": "last",
        "avoid_diagnosed": False,
        "keep_checkpoints": 10,
        "lost_after": 120.0,
        "max_seconds": None,
        "keep_stopped": 0,
    }
    tuner = ours(build_model, "val_loss", 10, directory=tmp_path, project_name="p")
    stock = theirs(build_model, "val_loss", 10, directory=tmp_path, project_name="q")
    assert isinstance(tuner, theirs)
    assert isinstance(tuner, keras_tuner.Tuner)
    assert isinstance(tuner.oracle, type(stock.oracle))
    own_class = ours.oracle_class or ktb.diagnosed(type(stock.oracle))
    assert type(tuner.oracle) is own_class
    own, others = tuner.oracle.get_state(), stock.oracle.get_state()
    assert own.pop("stopped_value") == "last"
    assert (own.pop("schema"), own.pop("version")) == (1, ktb.__version__)
    for random in ("seed", "seed_state"):
        del own[random], others[random]
    assert own == others


@pytest.mark.parametrize("cls", [ours for ours, _ in PAIRS])
def test_the_policy_reaches_the_oracle(cls: Any, tmp_path: Any) -> None:
    tuner = tuner_of(cls, tmp_path, stopped_value="censored")
    assert tuner.oracle.stopped_value == "censored"
    with pytest.raises(ValueError, match="`stopped_value` must be one of"):
        tuner_of(cls, tmp_path, stopped_value="median")


@pytest.mark.parametrize("cls", [ours for ours, _ in PAIRS])
def test_the_seed_that_was_given_is_kept(cls: Any, tmp_path: Any) -> None:
    assert tuner_of(cls, tmp_path, seed=0).seed == 0
    assert tuner_of(cls, tmp_path, seed=None).seed is None
    if cls is ktb.Hyperband:
        assert cls(build_model, "val_loss", 4, 2, 1, 7, directory=tmp_path).seed == 7


def test_nothing_to_build_models_with_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="`hypermodel` must be given"):
        ktb.RandomSearch(objective="val_loss", directory=tmp_path)

    class Mine(ktb.RandomSearch):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
            return stopped(2.0) if trial.hyperparameters.Float("a", 0, 1) > 2 else 1.0

    tuner = Mine(objective="val_loss", max_trials=2, directory=tmp_path)
    tuner.search(verbose=0)
    assert statuses(list(tuner.oracle.trials.values())) == ["COMPLETED"] * 2


def test_the_private_hook_of_executions_is_still_there() -> None:
    # Canary: KerasTuner keeps it "for AutoKeras to override".
    names = list(inspect.signature(keras_tuner.Tuner._build_and_fit_model).parameters)
    assert names == ["self", "trial", "args", "kwargs"]
    assert "_build_and_fit_model" in inspect.getsource(keras_tuner.Tuner.run_trial)


# --- searches ----------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ktb.RandomSearch, ktb.BayesianOptimization])
def test_stopped_trials_have_their_last_value(cls: Any, tmp_path: Any) -> None:
    tuner = tuner_of(cls, tmp_path)
    trials = searched(tuner)
    assert statuses(trials) == expected(trials)
    assert {"STOPPED", "COMPLETED"} == set(statuses(trials))
    for trial, doctor in zip(trials, COPIES, strict=True):
        values = [logs["val_loss"] for logs in doctor.logs]
        assert values == sorted(values)  # the best epoch is the first
        assert trial.score == (values[1] if is_bad(trial) else values[0])
    assert context.running_trial() is None


def test_every_execution_has_a_copy_that_knows_its_trial(tmp_path: Any) -> None:
    user_callback = Doctor()
    tuner = tuner_of(folder=tmp_path, max_trials=2, executions_per_trial=2)
    trials = searched(tuner, callbacks=[user_callback])
    seen = [(copy.trial.trial_id, copy.execution) for copy in COPIES]
    assert seen == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    assert not hasattr(user_callback, "trial")
    for copy in COPIES:
        number = int(copy.trial.trial_id)
        assert copy.trial.hyperparameters == trials[number].hyperparameters.values
        assert copy.trial.project_dir == pathlib.Path(tmp_path) / "p"
        for rows, whole in zip(copy.trial.probe_data, (X, Y), strict=True):
            assert np.array_equal(rows, whole)


def test_x_that_is_not_in_memory_gives_no_probe_rows(tmp_path: Any) -> None:
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    tuner = tuner_of(folder=tmp_path, max_trials=1)
    tuner.search(x=dataset, validation_data=dataset, callbacks=[Doctor()], verbose=0)
    assert COPIES[0].trial.probe_data is None


@pytest.mark.parametrize("callbacks", [None, []])
def test_a_search_without_callbacks_is_kerastuners(
    callbacks: Any, tmp_path: Any
) -> None:
    tuner = tuner_of(folder=tmp_path, max_trials=1)
    assert statuses(searched(tuner, callbacks=callbacks)) == ["COMPLETED"]


@pytest.mark.parametrize("failure", [RuntimeError, keras_tuner.errors.FatalError])
def test_nothing_runs_any_more_after_an_exception(failure: Any, tmp_path: Any) -> None:
    class Failing(keras_tuner.HyperModel):
        def build(self, hp: Any) -> keras.Model:
            return build_model(hp)

        def fit(self, *args: Any, **kwargs: Any) -> Any:
            assert context.running_trial() is not None
            raise failure("broken")

    tuner = ktb.RandomSearch(Failing(), "val_loss", 1, directory=tmp_path)
    if failure is RuntimeError:
        assert statuses(searched(tuner)) == ["FAILED"]
    else:
        with pytest.raises(failure):
            searched(tuner)
    assert context.running_trial() is None


def test_hyperband_trains_on_and_knows_the_whole_budget(tmp_path: Any) -> None:
    tuner = tuner_of(ktb.Hyperband, tmp_path, max_epochs=4, factor=2)
    trials = searched(tuner)
    assert {copy.trial.max_epochs for copy in COPIES} == {4}
    assert set(statuses(trials)) == {"STOPPED", "COMPLETED"}
    stopped_ids = {t.trial_id for t in trials if t.status == "STOPPED"}
    parents = {t.hyperparameters.values.get("tuner/trial_id") for t in trials} - {None}
    assert parents
    assert not stopped_ids & parents
    for trial, copy in zip(trials, COPIES, strict=True):
        values = trial.hyperparameters.values
        planned = values["tuner/epochs"] - values["tuner/initial_epoch"]
        assert len(copy.logs) == (min(planned, 2) if is_bad(trial) else planned)


# --- results that are no History ---------------------------------------------------


class Returning(keras_tuner.HyperModel):
    """Its `fit` returns what `convert` makes of the History."""

    def __init__(self, convert: Any) -> None:
        super().__init__()
        self.convert = convert

    def build(self, hp: Any) -> keras.Model:
        return build_model(hp)

    def fit(self, hp: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        return self.convert(model.fit(*args, **kwargs))


CONVERSIONS = {
    "float": lambda history: 7.0,
    "numpy": lambda history: np.float32(7.0),
    "dict": lambda history: {"val_loss": 7.0, "other": 1.0},
    "list": lambda history: [7.0, {"val_loss": 7.0}],
}


@pytest.mark.parametrize("executions", [1, 2])
@pytest.mark.parametrize("kind", CONVERSIONS)
def test_a_verdict_survives_results_that_are_no_history(
    kind: str, executions: int, tmp_path: Any
) -> None:
    tuner = ktb.RandomSearch(
        Returning(CONVERSIONS[kind]),
        "val_loss",
        max_trials=3,
        seed=3,
        directory=tmp_path,
        executions_per_trial=executions,
    )
    trials = searched(tuner, epochs=2)
    assert statuses(trials) == expected(trials)
    assert set(statuses(trials)) == {"STOPPED", "COMPLETED"}
    assert [trial.score for trial in trials] == [7.0] * 3


def test_a_float_is_the_default_objective(tmp_path: Any) -> None:
    hypermodel = Returning(CONVERSIONS["float"])
    tuner = ktb.RandomSearch(hypermodel, max_trials=3, seed=3, directory=tmp_path)
    trials = searched(tuner, epochs=2)
    assert statuses(trials) == expected(trials)
    assert [trial.score for trial in trials] == [7.0] * 3


def test_without_a_diagnosis_results_are_untouched(tmp_path: Any) -> None:
    hypermodel = Returning(CONVERSIONS["float"])
    tuner = ktb.RandomSearch(hypermodel, "val_loss", 1, directory=tmp_path)
    trial = searched(tuner, callbacks=[])[0]
    assert list(trial.metrics.metrics) == ["val_loss"]


# --- several executions ------------------------------------------------------------


def test_a_diagnosed_trial_is_not_executed_again(tmp_path: Any) -> None:
    tuner = tuner_of(folder=tmp_path, executions_per_trial=3)
    trials = searched(tuner)
    trained = [copy.trial.trial_id for copy in COPIES if hasattr(copy, "logs")]
    for trial in trials:
        assert trained.count(trial.trial_id) == (1 if is_bad(trial) else 3)
    assert statuses(trials) == expected(trials)
    first = {c.trial.trial_id: c for c in COPIES if c.execution == 0}
    for trial in filter(is_bad, trials):
        assert trial.score == first[trial.trial_id].logs[-1]["val_loss"]
        best = first[trial.trial_id].logs[0]["val_loss"]
        assert trial.metrics.get_best_value("val_loss") == pytest.approx(best)


def test_a_benign_verdict_does_not_skip_executions(tmp_path: Any) -> None:
    tuner = tuner_of(folder=tmp_path, executions_per_trial=2)
    trials = searched(tuner, callbacks=[Doctor("NMG")])
    assert statuses(trials) == ["COMPLETED"] * 4
    assert sum(hasattr(copy, "logs") for copy in COPIES) == 8


# --- seeds -------------------------------------------------------------------------


class Weights(keras.callbacks.Callback):
    """Keeps the weights at the end of each training, and the last loss."""

    seen: list[Any] = []  # noqa: RUF012

    def on_train_end(self, logs: Any = None) -> None:
        self.seen.append(np.concatenate([w.ravel() for w in self.model.get_weights()]))


def weights(folder: Any, callbacks: list[Any], **kwargs: Any) -> list[Any]:
    Weights.seen = []
    searched(tuner_of(folder=folder, **kwargs), callbacks=[*callbacks, Weights()])
    return Weights.seen


def test_a_stopped_trial_does_not_shift_the_trainings_after_it(tmp_path: Any) -> None:
    alone = weights(tmp_path / "a", [])
    diagnosed = weights(tmp_path / "b", [Doctor()])
    bad = [is_bad_copy.trial.hyperparameters["bad"] > 0.5 for is_bad_copy in COPIES]
    assert any(bad)
    assert not all(bad[bad.index(True) :])
    same = [np.array_equal(a, b) for a, b in zip(alone, diagnosed, strict=True)]
    assert same == [not stopped for stopped in bad]


def test_executions_have_seeds_of_their_own(tmp_path: Any) -> None:
    trained = weights(tmp_path / "a", [], max_trials=2, executions_per_trial=2)
    again = weights(tmp_path / "b", [], max_trials=2, executions_per_trial=2)
    assert np.array_equal(trained, again)
    assert len({values.tobytes() for values in trained}) == 4


def test_without_a_seed_global_state_is_left_alone(tmp_path: Any) -> None:
    keras.utils.set_random_seed(5)
    before = np.random.get_state()[1].copy()
    tuner = ktb.RandomSearch(
        Returning(lambda history: 1.0), "val_loss", 1, directory=tmp_path
    )
    searched(tuner, epochs=1, shuffle=False)
    assert np.array_equal(np.random.get_state()[1], before)


# --- KerasTuner's own tuners -------------------------------------------------------


def test_the_stock_tuner_with_a_diagnosed_oracle(tmp_path: Any) -> None:
    oracle_class = ktb.diagnosed(keras_tuner.oracles.RandomSearchOracle)
    for executions in (1, 2):
        COPIES.clear()
        oracle = oracle_class(objective="val_loss", max_trials=4, seed=3)
        tuner = keras_tuner.Tuner(
            oracle=oracle,
            hypermodel=build_model,
            executions_per_trial=executions,
            directory=tmp_path,
            project_name=f"p{executions}",
        )
        trials = searched(tuner)
        assert statuses(trials) == expected(trials)
        assert [c.execution for c in COPIES] == list(range(executions)) * 4
        first = [copy for copy in COPIES if copy.execution == 0]
        for trial, copy in zip(trials, first, strict=True):
            assert copy.trial.hyperparameters == trial.hyperparameters.values
            if is_bad(trial):
                assert trial.score == copy.logs[-1]["val_loss"]
        assert context.running_trial() is None


def test_the_stock_hyperband_with_its_oracle_upgraded_in_place(tmp_path: Any) -> None:
    tuner = tuner_of(keras_tuner.Hyperband, tmp_path, max_epochs=4, factor=2)
    tuner.oracle.__class__ = ktb.diagnosed(type(tuner.oracle))
    assert tuner.oracle.stopped_value == "last"
    trials = searched(tuner)
    assert {copy.trial.max_epochs for copy in COPIES} == {4}
    assert "STOPPED" in statuses(trials)
    assert set(statuses(trials)) == {"STOPPED", "COMPLETED"}


# --- resuming ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls", [ktb.RandomSearch, ktb.BayesianOptimization, ktb.TPE, ktb.SMAC]
)
def test_a_search_is_resumed(cls: Any, tmp_path: Any) -> None:
    class Killer(Doctor):
        def on_train_begin(self, logs: Any = None) -> None:
            super().on_train_begin(logs)
            if self.trial.trial_id == "2":
                raise KeyboardInterrupt

    first = tuner_of(cls, tmp_path, stopped_value="worst")
    with pytest.raises(KeyboardInterrupt):
        searched(first, callbacks=[Killer()])
    second = tuner_of(cls, tmp_path, stopped_value="worst")
    for trial_id in ("0", "1"):
        before, after = (t.oracle.trials[trial_id] for t in (first, second))
        assert (before.status, before.score) == (after.status, after.score)
        assert before.message == after.message
    trials = searched(second)
    assert statuses(trials) == expected(trials)
    assert len(trials) == 4
    assert second.oracle.stopped_value == "worst"


# --- chief and workers -------------------------------------------------------------

SCRIPT = """
import json, sys
import numpy as np
sys.path[:0] = {path!r}
import test_tuners as parts

tuner = parts.tuner_of(folder={folder!r}, max_trials=3)
tuner.search(parts.X, parts.Y, epochs=3, validation_data=(parts.X, parts.Y),
             callbacks=[parts.Doctor()], verbose=0)
if {name!r} == "chief":
    trials = tuner.oracle.trials.values()
    print("RESULT", json.dumps([[t.status, t.score, t.message,
        t.hyperparameters.get("bad")] for t in trials]))
else:
    print("RESULT", json.dumps([[c.trial.trial_id, str(c.trial.project_dir),
        len(c.trial.probe_data[0]), c.logs[-1]["val_loss"]] for c in parts.COPIES]))
"""


@pytest.mark.slow
def test_chief_and_worker(tmp_path: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": port,
        "CUDA_VISIBLE_DEVICES": "",
    }
    paths = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
    running = {}
    for name in ("chief", "worker0"):
        script = SCRIPT.format(path=paths, folder=str(tmp_path), name=name)
        running[name] = subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment | {"KERASTUNER_TUNER_ID": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    results = {}
    try:
        for name, process in running.items():
            output, _ = process.communicate(timeout=100)
            lines = [line for line in output.splitlines() if line.startswith("RESULT")]
            assert lines, output
            results[name] = json.loads(lines[0].removeprefix("RESULT"))
    finally:
        for process in running.values():
            process.kill()
    states = [status for status, *_ in results["chief"]]
    assert states == [
        "STOPPED" if t[3] > 0.5 else "COMPLETED" for t in results["chief"]
    ]
    assert set(states) == {"STOPPED", "COMPLETED"}
    for number, (told, ran) in enumerate(
        zip(results["chief"], results["worker0"], strict=True)
    ):
        status, score, message, _ = told
        # The worker knew its trial, folder and rows, though it has no oracle.
        assert ran[:3] == [str(number), str(tmp_path / "p"), 16]
        if status == "STOPPED":
            assert math.isclose(score, ran[3], rel_tol=1e-6)  # float32 on the wire
            assert message.startswith("ERG at epoch 2: ")
        else:
            assert message is None


@pytest.mark.parametrize(
    "tuner_class",
    [
        ktb.RandomSearch,
        ktb.GridSearch,
        ktb.BayesianOptimization,
        ktb.Hyperband,
        ktb.TPE,
        ktb.SMAC,
    ],
)
def test_zero_is_a_seed(tuner_class: Any, tmp_path: Any) -> None:
    def first_values(name: str) -> Any:
        tuner = tuner_class(
            build_model, "val_loss", seed=0, directory=tmp_path, project_name=name
        )
        return tuner.oracle.create_trial("t").hyperparameters.values

    assert first_values("a") == first_values("b")


def test_zero_is_a_seed_of_an_oracle() -> None:
    oracles = [ktb.oracles.RandomSearchOracle("val_loss", seed=0) for _ in range(2)]
    assert oracles[0].seed == oracles[1].seed
