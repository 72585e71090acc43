"""A real search with rules that look at peers, and the replay of its folder."""

import keras
import keras_tuner
import numpy as np
import pytest

import kt_bttackler as ktb
from kt_bttackler import replay
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.rules import AnyFinding, AnyOf, ProtectTop

X = np.linspace(-1, 1, 32, dtype="float32")[:, None]
DIAGNOSIS = ktb.Diagnosis(
    rule=AnyOf(
        (
            ProtectTop(AnyFinding(), fraction=0.3, min_peers=3),
            ktb.MedianStoppingRule(start_epoch=3, min_completed=3),
        )
    ),
    amnesty=0.3,
)


def build(hp):
    """A line to be found: from where it starts, and whether the net moves at all."""
    start = hp.Float("start", -2.0, 2.0)
    rate = hp.Choice("rate", [0.0, 0.003, 0.03, 0.3])
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(
                1, kernel_initializer=keras.initializers.Constant(start)
            ),
        ]
    )
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    tuner = ktb.RandomSearch(
        build,
        objective="val_loss",
        max_trials=24,
        seed=5,
        directory=folder,
        project_name="p",
    )
    tuner.search(
        X,
        X,
        epochs=6,
        validation_data=(X, X),
        verbose=0,
        callbacks=[ktb.DiagnosisCallback(DIAGNOSIS)],
    )
    return tuner


def live_verdicts(tuner):
    """What the callback wrote of each trial."""
    found = {}
    for trial_id in tuner.oracle.trials:
        folder = tuner.project_dir + f"/trial_{trial_id}"
        try:
            with open(folder + "/verdict-0.json", encoding="utf-8") as file:
                found[trial_id] = Verdict.from_json(file.read())
        except FileNotFoundError:
            found[trial_id] = None
    return found


def test_live_equals_replay_with_peers(project):
    live = live_verdicts(project)
    [run] = replay.simulate(ktb.TraceStore(project.project_dir), DIAGNOSIS)
    assert {trial.trial_id: trial.verdict for trial in run.trials} == live
    assert len(run.trials) == 24
    for trial in run.trials:
        status = project.oracle.trials[trial.trial_id].status
        stopped = status == keras_tuner.engine.trial.TrialStatus.STOPPED
        assert stopped == (trial.outcome == "stopped")
        assert project.oracle.trials[trial.trial_id].score == pytest.approx(trial.score)


def test_every_way_of_deciding_has_happened_in_that_search(project):
    live = [verdict for verdict in live_verdicts(project).values() if verdict]
    causes = {verdict.cause for verdict in live if verdict.stop}
    assert {"PLC", "MSR"} <= causes
    assert any(verdict.amnesty for verdict in live)
    # The same store without protection: somebody was protected.
    store = ktb.TraceStore(project.project_dir)
    [bare] = replay.simulate(store, ktb.Diagnosis(rule=AnyFinding()))
    [kept] = replay.simulate(store, ktb.Diagnosis(rule=DIAGNOSIS.rule.rules[0]))
    assert bare.count("stopped") > kept.count("stopped")
