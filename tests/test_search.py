"""Whole searches: KerasTuner, the real callback, and what the oracle makes of it."""

import json
import math
import os
import subprocess
import sys
import textwrap

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kt_bttackler as ktb
from kt_bttackler import Diagnosis, DiagnosisCallback, TraceStore

RANDOM = np.random.default_rng(1)
X = RANDOM.normal(size=(48, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("float32")[:, None]
FIT = {"x": X, "y": Y, "validation_data": (X, Y), "batch_size": 16, "verbose": 0}


def build(hp):
    """A network that learns, or one that cannot, as `kind` says."""
    kind = hp.Choice("kind", ["fine", "dead", "broken"])
    rate = hp.Float("rate", 0.05, 0.1)
    initializer = "zeros" if kind == "dead" else "he_normal"
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="relu", kernel_initializer=initializer),
            layers.Dense(6, activation="relu", kernel_initializer=initializer),
            layers.Dense(1, activation="sigmoid", kernel_initializer=initializer),
        ]
    )
    if kind == "broken":
        model.compile(
            "sgd", lambda y, p: keras.losses.binary_crossentropy(y, p) * math.nan
        )
    else:
        model.compile(
            keras.optimizers.SGD(rate), "binary_crossentropy", metrics=["accuracy"]
        )
    return model


def space(kind):
    hp = keras_tuner.HyperParameters()
    hp.Fixed("kind", kind)
    return hp


def grid_of(*kinds):
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", list(kinds))
    hp.Fixed("rate", 0.07)
    return hp


def stock(oracle_class, folder, **arguments):
    """The stock Tuner with a diagnosed oracle."""
    oracle = ktb.diagnosed(oracle_class)(objective="val_loss", **arguments)
    return keras_tuner.Tuner(
        oracle=oracle, hypermodel=build, directory=folder, project_name="p"
    )


def ours(tuner_class, folder, **arguments):
    return tuner_class(
        build, objective="val_loss", directory=folder, project_name="p", **arguments
    )


def outcome(tuner):
    return [(t.status, t.score) for _, t in sorted(tuner.oracle.trials.items())]


MAKERS = {
    "stock tuner": lambda folder, **a: stock(
        keras_tuner.oracles.GridSearchOracle, folder, **a
    ),
    "our tuner": lambda folder, **a: ours(ktb.GridSearch, folder, **a),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_bad_trials_are_stopped_marked_and_explained(tmp_path, maker):
    tuner = MAKERS[maker](tmp_path, hyperparameters=grid_of("fine", "dead", "broken"))
    tuner.search(**FIT, epochs=10, callbacks=[DiagnosisCallback()])
    fine, dead, broken = tuner.oracle.trials.values()
    assert fine.status == "COMPLETED"
    assert fine.message is None
    assert ktb.diagnosis_of(fine) is None

    history = TraceStore(tmp_path / "p").trial(dead.trial_id)
    assert (dead.status, dead.message[:18]) == ("STOPPED", "ERG at epoch 2: gr")
    assert dead.score == pytest.approx(history.scalar("val_loss")[-1])
    assert dead.best_step == 1
    assert ktb.diagnosis_of(dead).cause == "ERG"

    assert (broken.status, broken.score) == ("STOPPED", None)
    assert ktb.diagnosis_of(tmp_path / "p" / f"trial_{broken.trial_id}").cause == "AGV"
    assert tuner.get_best_hyperparameters()[0].get("kind") == "fine"

    for trial in (fine, dead, broken):
        folder = tmp_path / "p" / f"trial_{trial.trial_id}"
        trace = TraceStore(folder).trial(trial.trial_id)
        assert trace.header.hyperparameters == trial.hyperparameters.values
        assert trace.header.objective == "val_loss"
        assert (folder / "verdict-0.json").exists() == (trial is not fine)
        replayed = [Diagnosis()(p) for p in trace.prefixes()]
        live = ktb.diagnosis_of(folder)
        assert [v for v in replayed if v and v.stop][:1] == ([live] if live else [])


def test_the_same_seed_gives_the_same_search_with_and_without_diagnosis(tmp_path):
    def run(name, callbacks):
        tuner = ktb.RandomSearch(
            build,
            objective="val_loss",
            max_trials=4,
            seed=7,
            directory=tmp_path,
            project_name=name,
        )
        tuner.search(**FIT, epochs=4, callbacks=callbacks)
        return {
            t.trial_id: (t.hyperparameters.values, t.score, t.status)
            for t in tuner.oracle.trials.values()
        }

    watched, plain = run("watched", [DiagnosisCallback()]), run("plain", [])
    statuses = {status for _, _, status in watched.values()}
    assert statuses == {"COMPLETED", "STOPPED"}
    for trial_id, (values, score, status) in watched.items():
        assert values == plain[trial_id][0]
        if status == "COMPLETED":
            assert score == plain[trial_id][1]


def test_bayesian_search_survives_a_first_trial_that_is_stopped(tmp_path):
    tuner = ours(
        ktb.BayesianOptimization, tmp_path, max_trials=5, num_initial_points=2, seed=1,
        hyperparameters=space("dead"),
    )  # fmt: skip
    tuner.search(**FIT, epochs=8, callbacks=[DiagnosisCallback()])
    assert [status for status, _ in outcome(tuner)] == ["STOPPED"] * 5


def test_ten_broken_trials_in_a_row_do_not_end_a_search(tmp_path):
    tuner = ours(
        ktb.RandomSearch,
        tmp_path,
        max_trials=10,
        seed=1,
        hyperparameters=space("broken"),
    )
    tuner.search(**FIT, epochs=3, callbacks=[DiagnosisCallback()])
    assert outcome(tuner) == [("STOPPED", None)] * 10


@pytest.mark.parametrize("maker", MAKERS)
def test_the_first_execution_decides(tmp_path, maker):
    if maker == "our tuner":
        tuner = ours(
            ktb.GridSearch,
            tmp_path,
            hyperparameters=grid_of("fine", "dead"),
            executions_per_trial=2,
        )
    else:
        oracle = ktb.oracles.GridSearchOracle(
            "val_loss", hyperparameters=grid_of("fine", "dead")
        )
        tuner = keras_tuner.Tuner(
            oracle=oracle,
            hypermodel=build,
            executions_per_trial=2,
            directory=tmp_path,
            project_name="p",
        )
    tuner.search(**FIT, epochs=8, callbacks=[DiagnosisCallback()])
    assert [status for status, _ in outcome(tuner)] == ["COMPLETED", "STOPPED"]
    runs = {
        t: len(list((tmp_path / "p").glob(f"trial_{t}/trace-*")))
        for t in tuner.oracle.trials
    }
    assert list(runs.values()) == [2, 1 if maker == "our tuner" else 2]


def test_hyperband_ends_with_one_epoch_rungs_of_broken_trials(tmp_path):
    tuner = ours(ktb.Hyperband, tmp_path, max_epochs=4, factor=2, seed=3)
    tuner.search(**FIT, callbacks=[DiagnosisCallback()])
    stopped = {
        t.trial_id for t in tuner.oracle.trials.values() if t.status == "STOPPED"
    }
    promoted = {
        t.hyperparameters.values.get("tuner/trial_id")
        for t in tuner.oracle.trials.values()
    }
    assert stopped
    assert not stopped & promoted
    for trace in TraceStore(tmp_path / "p"):
        assert trace.max_epochs == 4, "E is the full budget in every rung"


class Returns(keras_tuner.HyperModel):
    """A hypermodel whose `fit` returns no History."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def build(self, hp):
        return build(hp)

    def fit(self, hp, model, *args, **kwargs):
        loss = model.fit(*args, **kwargs).history["val_loss"][-1]
        return loss if self.result is float else {"val_loss": loss, "extra": 1.0}


@pytest.mark.parametrize("result", [float, dict])
def test_the_verdict_reaches_the_oracle_without_a_history(tmp_path, result):
    tuner = ktb.GridSearch(
        Returns(result), objective="val_loss", hyperparameters=grid_of("fine", "dead", "broken"),
        directory=tmp_path, project_name="p",
    )  # fmt: skip
    tuner.search(**FIT, epochs=8, callbacks=[DiagnosisCallback()])
    fine, dead, broken = outcome(tuner)
    assert (fine[0], dead[0], broken) == ("COMPLETED", "STOPPED", ("STOPPED", None))
    assert dead[1] == pytest.approx(math.log(2), abs=0.01)


def test_a_search_that_is_started_again_goes_on(tmp_path):
    def run(trials):
        tuner = ktb.RandomSearch(
            build, objective="val_loss", max_trials=trials, seed=7, stopped_value="worst",
            directory=tmp_path, project_name="p",
        )  # fmt: skip
        tuner.search(**FIT, epochs=4, callbacks=[DiagnosisCallback()])
        return outcome(tuner), [
            t.message for _, t in sorted(tuner.oracle.trials.items())
        ]

    (first, messages), (second, later) = run(4), run(6)
    assert second[:4] == first
    assert later[:4] == messages
    assert len(second) == 6


def test_stop_false_watches_a_search(tmp_path):
    tuner = ours(ktb.GridSearch, tmp_path, hyperparameters=grid_of("fine", "dead"))
    tuner.search(**FIT, epochs=4, callbacks=[DiagnosisCallback(stop=False)])
    assert [status for status, _ in outcome(tuner)] == ["COMPLETED", "COMPLETED"]
    assert all(t.epoch == 4 for t in TraceStore(tmp_path / "p"))
    for trial in tuner.oracle.trials.values():
        assert ktb.diagnosis_of(trial) is None
        assert ktb.diagnosis_of(tmp_path / "p" / f"trial_{trial.trial_id}") is None


@pytest.mark.parametrize("maker", MAKERS)
def test_tensorboard_stands_beside_that_of_keras(tmp_path, maker):
    tuner = MAKERS[maker](tmp_path, hyperparameters=grid_of("fine", "dead"))
    board = keras.callbacks.TensorBoard(tmp_path / "logs")
    tuner.search(**FIT, epochs=8, callbacks=[DiagnosisCallback(), board])
    for trial_id in tuner.oracle.trials:
        run = tmp_path / "logs" / trial_id / "execution0"
        events = EventAccumulator(str(run / "diagnosis"), size_guidance={"tensors": 0})
        events.Reload()
        assert "diagnosis/severity/ERG" in events.Tags()["tensors"]
        assert (run / "train").is_dir()


def test_log_dir_alone_gives_every_trial_its_folder(tmp_path):
    tuner = ours(ktb.GridSearch, tmp_path, hyperparameters=grid_of("fine", "dead"))
    tuner.search(
        **FIT, epochs=3, callbacks=[DiagnosisCallback(log_dir=tmp_path / "logs")]
    )
    runs = sorted(
        p.relative_to(tmp_path / "logs").as_posix()
        for p in (tmp_path / "logs").glob("*/*/*")
        if p.is_dir()
    )
    assert runs == [f"{t}/execution0/diagnosis" for t in tuner.oracle.trials]


def functional(hp):
    """Embedding, nested and shared layers, several outputs, in half precision."""
    layers = keras.layers
    ids = keras.Input((3,), dtype="int32", name="ids")
    other = keras.Input((4,), name="other")
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="relu")])
    shared = layers.Dense(4, activation="relu")
    table = layers.Embedding(5, 4)(ids)
    joined = layers.Add()(
        [shared(layers.Flatten()(table)[:, :4]), shared(inner(other))]
    )
    model = keras.Model(
        {"ids": ids, "other": other},
        {
            "a": layers.Dense(1, dtype="float32", name="a")(joined),
            "b": layers.Dense(1, dtype="float32", name="b")(joined),
        },
    )
    model.compile("adam", {"a": "mse", "b": "mse"})
    return model


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(4, activation="relu")
        self.out = keras.layers.Dense(1)

    def call(self, inputs):
        return self.out(self.hidden(inputs["other"]))


def subclassed(hp):
    model = Subclassed()
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("make", [functional, subclassed])
@pytest.mark.filterwarnings("error:.* is off")
def test_models_of_every_kind_are_diagnosed_in_a_search(tmp_path, make, policy):
    x = {"ids": np.tile([0, 1, 2], (48, 1)), "other": X}
    y = {"a": Y, "b": Y} if make is functional else Y

    def build_model(hp):  # KerasTuner clears the policy before every build
        keras.mixed_precision.set_global_policy(policy)
        return make(hp)

    oracle = ktb.oracles.RandomSearchOracle("val_loss", max_trials=1)
    try:
        tuner = keras_tuner.Tuner(
            oracle=oracle, hypermodel=build_model, directory=tmp_path, project_name="p"
        )
        tuner.search(
            x,
            y,
            validation_data=(x, y),
            epochs=3,
            verbose=0,
            callbacks=[DiagnosisCallback()],
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert [status for status, _ in outcome(tuner)] == ["COMPLETED"]
    (trace,) = TraceStore(tmp_path / "p")
    assert trace.header.unobserved == {}
    assert trace.header.loss_scaled == (policy == "mixed_float16")
    gradients = trace.table("step_gradient/abs_mean")
    assert not np.isnan(gradients).any()
    assert gradients.max() < 100, "gradients are without the scale of the loss"
    assert not np.isnan(trace.table("activation/constant_ratio")).any()


WORKER = """
import os, sys, warnings
import keras, keras_tuner, numpy as np
import kt_bttackler as ktb
sys.path.insert(0, sys.argv[3])
from test_search import FIT, build, grid_of
folder, kind = sys.argv[1:3]
if os.environ["KERASTUNER_TUNER_ID"] == "chief" or kind == "ours":
    tuner = ktb.GridSearch(build, objective="val_loss", directory=folder, project_name="p",
                           hyperparameters=grid_of("fine", "dead", "broken"))
else:
    oracle = ktb.oracles.GridSearchOracle("val_loss", hyperparameters=grid_of("fine", "dead", "broken"))
    tuner = keras_tuner.Tuner(oracle=oracle, hypermodel=build, directory=folder, project_name="p")
callback = ktb.DiagnosisCallback(trace_dir=None if kind == "ours" else os.path.join(folder, "traces"))
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    tuner.search(**FIT, epochs=6, callbacks=[callback])
print(sum("running trial is unknown" in str(w.message) for w in seen))
"""


@pytest.mark.slow  # real processes, and KerasTuner's chief waits 20 s to end
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_a_worker_process_tells_the_chief(tmp_path, kind):
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    port = str(20000 + os.getpid() % 20000 + (kind == "stock"))
    here = os.path.dirname(__file__)
    processes = {}
    for tuner_id in ("chief", "tuner0"):
        environment = os.environ | {
            "KERASTUNER_TUNER_ID": tuner_id,
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": port,
        }
        processes[tuner_id] = subprocess.Popen(
            [sys.executable, str(tmp_path / "worker.py"), str(tmp_path), kind, here],
            env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    try:
        printed = {name: p.communicate(timeout=280)[0] for name, p in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    found = {}
    for path in (tmp_path / "p").glob("trial_*/trial.json"):
        state = json.loads(path.read_text())
        found[state["hyperparameters"]["values"]["kind"]] = state
    assert {kind: s["status"] for kind, s in found.items()} == {
        "fine": "COMPLETED", "dead": "STOPPED", "broken": "STOPPED",
    }  # fmt: skip
    assert found["dead"]["message"].startswith("ERG at epoch ")
    assert found["dead"]["score"] == pytest.approx(math.log(2), abs=0.01)
    traces = list(TraceStore(tmp_path))
    assert len(traces) == 3
    knows = kind == "ours"
    assert {t.header.trial_id is not None for t in traces} == {knows}
    assert (printed["tuner0"].split()[-1] == "0") == knows


def test_seeded_datasets_keep_their_order_in_a_search(tmp_path):
    def run(name, callbacks):
        keras.utils.set_random_seed(0)
        data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(48, seed=3).batch(16)
        tuner = ktb.RandomSearch(
            build, objective="loss", max_trials=2, seed=11, directory=tmp_path, project_name=name,
            hyperparameters=space("fine"),
        )  # fmt: skip
        tuner.search(data, epochs=3, verbose=0, callbacks=callbacks)
        return outcome(tuner)

    assert run("watched", [DiagnosisCallback()]) == run("plain", [])


class OwnRun(keras_tuner.Tuner):
    """Passes its callbacks on without copying them."""

    def run_trial(self, trial, *args, **kwargs):
        model = self.hypermodel.build(trial.hyperparameters)
        return model.fit(*args, **kwargs)


def test_a_tuner_that_copies_no_callbacks_is_diagnosed_too(tmp_path):
    oracle = ktb.oracles.GridSearchOracle(
        "val_loss", hyperparameters=grid_of("fine", "dead")
    )
    tuner = OwnRun(
        oracle=oracle, hypermodel=build, directory=tmp_path, project_name="p"
    )
    tuner.search(**FIT, epochs=8, callbacks=[DiagnosisCallback()])
    assert [status for status, _ in outcome(tuner)] == ["COMPLETED", "STOPPED"]
    assert len(list(TraceStore(tmp_path / "p"))) == 2


def test_two_callbacks_in_one_list_keep_apart(tmp_path):
    tuner = ours(ktb.GridSearch, tmp_path, hyperparameters=grid_of("fine", "dead"))
    quiet = DiagnosisCallback(Diagnosis(rule=ktb.NeverStop()))
    tuner.search(**FIT, epochs=8, callbacks=[DiagnosisCallback(), quiet])
    assert [status for status, _ in outcome(tuner)] == ["COMPLETED", "STOPPED"]
    names = sorted(
        path.name for path in (tmp_path / "p" / "trial_0000").glob("trace-*")
    )
    assert names == ["trace-0-1.jsonl", "trace-0.jsonl"]


class Folds(keras_tuner.HyperModel):
    """Three fits in one execution, of which the one named is dead."""

    def __init__(self, dead_fold):
        super().__init__()
        self.dead_fold = dead_fold

    def build(self, hp):
        return build(hp)

    def fit(self, hp, model, *args, **kwargs):
        losses = []
        for fold in range(3):
            choice = hp.copy()
            choice.values["kind"] = "dead" if fold == self.dead_fold else "fine"
            losses.append(build(choice).fit(*args, **kwargs).history["val_loss"][-1])
        return float(np.mean(losses))


@pytest.mark.parametrize("dead_fold", [0, 2])
def test_a_fold_that_is_stopped_is_not_forgotten(tmp_path, dead_fold):
    tuner = ktb.RandomSearch(
        Folds(dead_fold), objective="val_loss", max_trials=1, hyperparameters=space("fine"),
        directory=tmp_path, project_name="p",
    )  # fmt: skip
    tuner.search(**FIT, epochs=8, callbacks=[DiagnosisCallback()])
    assert [status for status, _ in outcome(tuner)] == ["STOPPED"]
    assert len(list(TraceStore(tmp_path / "p"))) == 3


def test_an_interrupted_search_leaves_its_trial_to_nobody(tmp_path):
    def interrupt(epoch, logs):
        raise KeyboardInterrupt

    first = stock(keras_tuner.oracles.RandomSearchOracle, tmp_path / "a", max_trials=1)
    with pytest.raises(KeyboardInterrupt):
        first.search(**FIT, epochs=3, callbacks=[
            DiagnosisCallback(), keras.callbacks.LambdaCallback(on_epoch_end=interrupt)
        ])  # fmt: skip
    traces = (tmp_path / "a" / "p" / "trial_0" / "trace-0.jsonl").read_text()
    second = keras_tuner.RandomSearch(
        build, "val_loss", max_trials=1, directory=tmp_path / "b", project_name="p"
    )
    with pytest.warns(RuntimeWarning, match="the oracle does not understand verdicts"):
        second.search(**FIT, epochs=3, callbacks=[DiagnosisCallback()])
    assert (tmp_path / "a" / "p" / "trial_0" / "trace-0.jsonl").read_text() == traces


def test_peers_are_found_where_traces_are_written(tmp_path):
    tuner = ktb.RandomSearch(
        build, "val_loss", max_trials=2, seed=1, hyperparameters=space("dead"),
        directory=tmp_path, project_name="p",
    )  # fmt: skip
    rule = ktb.ProtectTop(min_peers=1, fraction=0.999)
    diagnosis = Diagnosis(Diagnosis().indicators, rule)
    tuner.search(
        **FIT,
        epochs=6,
        callbacks=[DiagnosisCallback(diagnosis, trace_dir=tmp_path / "traces")],
    )
    assert len(list(TraceStore(tmp_path / "traces"))) == 2
    assert outcome(tuner)[0][0] == "STOPPED"
