"""`diagnose`: tuners that exist, of KerasTuner, of others, of one's own."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import kt_bttackler as ktb
from kt_bttackler.oracles import DiagnosedOracleMixin

X = np.linspace(-1, 1, 64, dtype="float32").reshape(32, 2)
Y = X.sum(axis=1, keepdims=True)


def build_model(hp: Any) -> keras.Model:
    """A model whose loss is NaN from the first step on in half of the trials."""
    broken = hp.Boolean("broken")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    rate = math.inf if broken else hp.Choice("rate", [0.1, 0.05, 0.02])
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
    return model


def searched(tuner: Any, **kwargs: Any) -> list[Any]:
    defaults = {"epochs": 4, "validation_data": (X, Y), "verbose": 0}
    callbacks = [ktb.DiagnosisCallback()]
    tuner.search(X, Y, callbacks=callbacks, **(defaults | kwargs))
    return [tuner.oracle.trials[trial_id] for trial_id in tuner.oracle.start_order]


def in_(folder: Any) -> dict[str, Any]:
    return {"directory": folder, "project_name": "p"}


def expected(trials: list[Any]) -> list[str]:
    broken = [trial.hyperparameters.get("broken") for trial in trials]
    assert len(set(broken)) == 2, "both kinds of trials must be there"
    return ["STOPPED" if each else "COMPLETED" for each in broken]


@pytest.mark.parametrize("kind", ["RandomSearch", "GridSearch", "BayesianOptimization"])
def test_a_tuner_of_kerastuner_stops_and_marks_trials(kind: str, tmp_path: Any) -> None:
    tuner = getattr(keras_tuner, kind)(
        build_model, "val_loss", max_trials=4, seed=4, **in_(tmp_path)
    )
    assert ktb.diagnose(tuner) is tuner
    assert isinstance(tuner, getattr(keras_tuner, kind))
    trials = searched(tuner)
    assert [trial.status for trial in trials] == expected(trials)
    stopped = next(trial for trial in trials if trial.status == "STOPPED")
    assert ktb.diagnosis_of(stopped).cause == "AGV"


def test_hyperband_knows_its_full_budget(tmp_path: Any) -> None:
    tuner = keras_tuner.Hyperband(
        build_model, "val_loss", max_epochs=4, factor=2, seed=4, **in_(tmp_path)
    )
    with pytest.warns(
        RuntimeWarning, match=r"`kt_bttackler\.Hyperband` goes on exactly"
    ):
        ktb.diagnose(tuner)
    searched(tuner)
    store = ktb.TraceStore(tmp_path)
    assert {trace.header.max_epochs for trace in store} == {4}


def test_diagnosing_twice_and_tuners_of_ours_changes_nothing(tmp_path: Any) -> None:
    tuner = ktb.RandomSearch(build_model, "val_loss", **in_(tmp_path))
    before = type(tuner), type(tuner.oracle)
    assert ktb.diagnose(ktb.diagnose(tuner)) is tuner
    assert (type(tuner), type(tuner.oracle)) == before


class OwnTraining(keras_tuner.RandomSearch):
    """Builds and fits by itself, and returns a number."""

    def run_trial(
        self, trial: Any, x: Any, y: Any, callbacks: Any, **kwargs: Any
    ) -> Any:
        model = self.hypermodel.build(trial.hyperparameters)
        history = model.fit(x, y, callbacks=callbacks, **kwargs)
        return history.history["val_loss"][-1]


def test_a_run_trial_of_ones_own_that_returns_a_number_is_understood(
    tmp_path: Any,
) -> None:
    tuner = OwnTraining(build_model, "val_loss", max_trials=4, seed=4, **in_(tmp_path))
    with pytest.warns(
        RuntimeWarning, match="OwnTraining runs its trials in its own way"
    ):
        ktb.diagnose(tuner)
    trials = searched(tuner)
    assert [trial.status for trial in trials] == expected(trials)
    assert [trace.header.trial_id for trace in ktb.TraceStore(tmp_path)] == [
        trial.trial_id for trial in trials
    ]


class Extended(keras_tuner.RandomSearch):
    """Adds to what KerasTuner does, as AutoKeras's tuners do."""

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), trial.trial_id]
        return super().run_trial(trial, *args, **kwargs)


def test_a_run_trial_that_calls_that_of_kerastuner_is_reached_wholly(
    tmp_path: Any,
) -> None:
    tuner = Extended(
        build_model,
        "val_loss",
        max_trials=4,
        seed=4,
        executions_per_trial=2,
        **in_(tmp_path),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ktb.diagnose(tuner)
    trials = searched(tuner)
    assert tuner.seen == [trial.trial_id for trial in trials]
    assert [trial.status for trial in trials] == expected(trials)
    executions = sum(2 if trial.status == "COMPLETED" else 1 for trial in trials)
    assert len(list(ktb.TraceStore(tmp_path))) == executions


def test_a_tuner_that_trains_no_keras_models_gets_the_oracle(tmp_path: Any) -> None:
    oracle = keras_tuner.oracles.RandomSearchOracle(
        keras_tuner.Objective("score", "max"), max_trials=3, seed=1
    )
    tuner = keras_tuner.SklearnTuner(
        oracle,
        lambda hp: Ridge(hp.Float("alpha", 0.1, 1.0)),
        **in_(tmp_path),
    )
    with pytest.warns(RuntimeWarning, match="SklearnTuner is not a keras_tuner.Tuner"):
        ktb.diagnose(tuner)
    tuner.search(X, Y[:, 0])
    assert [trial.status for trial in oracle.trials.values()] == ["COMPLETED"] * 3
    assert isinstance(oracle, DiagnosedOracleMixin)


def test_a_project_that_was_begun_is_gone_on_with(tmp_path: Any) -> None:
    def tuner(trials: int, **kwargs: Any) -> Any:
        place = in_(tmp_path)
        return keras_tuner.RandomSearch(
            build_model, "val_loss", max_trials=trials, seed=4, **place, **kwargs
        )

    searched(ktb.diagnose(tuner(2), stopped_value="worst"))
    resumed = ktb.diagnose(tuner(4, overwrite=False), stopped_value="worst")
    trials = searched(resumed)
    assert len(resumed.oracle.trials) == 4
    assert [trial.status for trial in trials] == expected(trials)
    assert resumed.oracle.stopped_value == "worst"


def test_what_is_no_tuner_is_refused() -> None:
    with pytest.raises(TypeError, match="`tuner` must be a tuner of KerasTuner"):
        ktb.diagnose("tuner")


def test_an_unknown_policy_changes_nothing(tmp_path: Any) -> None:
    tuner = keras_tuner.RandomSearch(build_model, "val_loss", **in_(tmp_path))
    with pytest.raises(ValueError, match="`stopped_value` must be one of"):
        ktb.diagnose(tuner, stopped_value="most")
    assert type(tuner) is keras_tuner.RandomSearch


def test_avoiding_is_passed_on_and_refused_for_a_grid(tmp_path: Any) -> None:
    tuner = keras_tuner.RandomSearch(build_model, "val_loss", **in_(tmp_path))
    assert ktb.diagnose(tuner, avoid_diagnosed=True).oracle.avoid_diagnosed
    grid = keras_tuner.GridSearch(build_model, "val_loss", **in_(tmp_path / "grid"))
    with pytest.raises(ValueError, match="`avoid_diagnosed` must be False in a grid"):
        ktb.diagnose(grid, avoid_diagnosed=True)
    assert type(grid.oracle) is keras_tuner.oracles.GridSearchOracle
