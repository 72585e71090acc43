"""`DiagnosisCallback` in `model.fit`."""

import copy
import dataclasses
import json
import math
import pickle
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kt_bttackler import (
    Diagnosis,
    DiagnosisCallback,
    NeverStop,
    QualityIndicator,
    TraceStore,
    files,
)
from kt_bttackler.gradient_meter import SampledSteps
from kt_bttackler.presets import PRESETS
from kt_bttackler.rules import Rule
from kt_bttackler.unit_stats import constant_ratio

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(70, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("float32")[:, None]
LOSS_ONLY = Diagnosis().without("AGV", "EAG", "ERG", "LAR")


def network(
    learning_rate=0.05, loss="binary_crossentropy", initializer="he_normal", **compile
):
    keras.utils.set_random_seed(3)
    layers = keras.layers
    how = {"kernel_initializer": initializer}
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu", name="first", **how),
            layers.Dropout(0.2),
            layers.BatchNormalization(name="norm"),
            layers.Dense(8, activation="tanh", name="second", **how),
            layers.Dense(1, activation="sigmoid", name="last", **how),
        ],
        name="network",
    )
    model.compile(keras.optimizers.SGD(learning_rate, 0.9), loss, **compile)
    return model


def dead(**compile):
    return network(initializer="zeros", **compile)


def fit(model, *callbacks, epochs=3, data=None, **arguments):
    data = (X, Y) if data is None else data
    arguments = {"batch_size": 16, "verbose": 0} | arguments
    if isinstance(data, tuple):
        return model.fit(*data, epochs=epochs, callbacks=list(callbacks), **arguments)
    return model.fit(data, epochs=epochs, callbacks=list(callbacks), verbose=0)


def state(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def shuffled():
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(70, seed=5).batch(16)


@pytest.mark.parametrize("data", ["arrays", "seeded dataset", "generator"])
@pytest.mark.parametrize("tap", ["training", "probe"])
def test_watching_leaves_the_training_alone_bit_for_bit(data, tap):
    def run(*callbacks):
        sources = {"arrays": lambda: (X, Y), "seeded dataset": shuffled}
        model = network()
        if data == "generator":
            batches = (
                (X[k : k + 16], Y[k : k + 16])
                for _ in range(9)
                for k in range(0, 64, 16)
            )
            history = model.fit(
                batches, steps_per_epoch=4, epochs=3, verbose=0, callbacks=callbacks
            )
        else:
            history = fit(model, *callbacks, data=sources[data]())
        return state(model), history.history

    watcher = DiagnosisCallback(Diagnosis(rule=NeverStop()), tap=tap)
    with_callback, watched = run(watcher)
    without, plain = run()
    assert all(
        np.array_equal(a, b) for a, b in zip(with_callback, without, strict=True)
    )
    assert watched == plain, "the History of a plain fit is the user's"
    assert len(watcher.trace) == 3
    assert not np.isnan(watcher.trace.table("step_gradient/abs_mean")).any()
    assert not np.isnan(watcher.trace.table("activation/constant_ratio")).any()


def test_a_healthy_training_has_a_trace_and_no_verdict():
    callback = DiagnosisCallback()
    fit(network(), callback, epochs=4, validation_split=0.2)
    assert callback.verdict is None
    trace = callback.trace
    assert (trace.epoch, trace.max_epochs, trace.end) == (4, 4, "finished")
    assert (trace.header.objective, trace.header.direction) == ("val_loss", "min")
    assert trace.scalar("objective").tolist() == trace.scalar("val_loss").tolist()
    assert math.isfinite(trace.scalar("first_batch_loss")[0])
    assert np.isclose(trace.scalar("learning_rate"), 0.05).all()
    assert np.all(np.diff(trace.seconds) > 0)
    ten = ("mean", "variance", "median", "minimum", "maximum", "lower_quartile",
           "upper_quartile", "skewness", "kurtosis", "zero_ratio")  # fmt: skip
    for name in ten:
        for group in ("gradient", "weight"):
            assert trace.table(f"{group}/{name}").shape == (4, 8)
            assert name == "kurtosis" or not np.isnan(
                trace.table(f"{group}/{name}")[2][0]  # later ones would cost too much
            )


def test_weights_of_the_trace_are_those_of_the_model():
    callback = DiagnosisCallback()
    model = network()
    fit(model, callback, epochs=3)
    kernel = model.trainable_variables[0].numpy().astype("float64")
    assert callback.trace.table("weight/mean")[-1][0] == pytest.approx(
        kernel.mean(), rel=1e-6
    )
    assert callback.trace.table("weight/variance")[-1][0] == pytest.approx(
        kernel.var(), rel=1e-6
    )


def test_gradients_of_the_trace_are_those_of_the_last_whole_batch():
    model = network()
    tape_says = []

    class Tape(keras.callbacks.Callback):
        """Computes the gradient of every batch before it is trained on."""

        def on_train_batch_begin(self, batch, logs=None):
            rows = slice(16 * batch, 16 * batch + 16)
            with tf.GradientTape() as tape:
                loss = keras.losses.MeanSquaredError()(Y[rows], self.model(X[rows]))
            kernel = self.model.trainable_variables[0]
            tape_says.append(tape.gradient(loss, kernel.value).numpy())

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = DiagnosisCallback()
    fit(model, Tape(), callback, epochs=2, shuffle=False)  # 70 rows: four whole batches
    trace = callback.trace
    for epoch in (0, 1):
        whole = tape_says[5 * epoch : 5 * epoch + 4]
        assert trace.table("gradient/mean")[epoch][0] == pytest.approx(
            whole[-1].mean(), rel=1e-4
        )
        means = [np.abs(g).mean() for g in whole]
        assert trace.table("step_gradient/abs_mean")[epoch][0] == pytest.approx(
            np.mean(means), rel=1e-5
        )
        assert trace.table("step_gradient/abs_mean_median")[epoch][0] == pytest.approx(
            np.median(means), rel=1e-5
        )


def test_a_dead_network_is_stopped_and_told_why():
    callback = DiagnosisCallback()
    history = fit(dead(), callback, epochs=10)
    assert len(history.history["loss"]) == 2
    assert (callback.verdict.cause, callback.verdict.epoch) == ("ERG", 2)
    assert callback.trace.end == "stopped"
    assert str(callback.verdict).startswith(
        "ERG at epoch 2: gradient flow 0 < 0.001, layer "
    )


def test_stop_false_watches_and_keeps_the_first_verdict():
    callback = DiagnosisCallback(stop=False)
    history = fit(dead(), callback, epochs=10)
    assert len(history.history["loss"]) == 10
    assert callback.verdict.stop
    assert callback.verdict.epoch == 2
    assert callback.trace.end == "finished"


@pytest.mark.parametrize(
    "make", [network, dead, lambda: network(1e4), lambda: network(0.0)]
)
@pytest.mark.parametrize("preset", PRESETS)
def test_live_equals_replay(tmp_path, preset, make):
    callback = DiagnosisCallback(preset, trace_dir=tmp_path, stop=False)
    fit(make(), callback, epochs=8)
    (trace,) = TraceStore(tmp_path)
    diagnosis = Diagnosis(preset)
    replayed = [diagnosis(prefix) for prefix in trace.prefixes()]
    stops = [verdict for verdict in replayed if verdict and verdict.stop]
    found = [verdict for verdict in replayed if verdict]
    assert callback.verdict == (stops or found[-1:] or [None])[0]


def test_the_file_is_what_the_callback_remembers(tmp_path):
    callback = DiagnosisCallback(trace_dir=tmp_path)
    fit(dead(), callback, epochs=10)
    (trace,) = TraceStore(tmp_path)
    for remembered, read in zip(callback.trace.records, trace.records, strict=True):
        assert files.dumps(vars(remembered)) == files.dumps(vars(read))
    assert trace.header == callback.trace.header
    verdict = json.loads((tmp_path / "verdict-0.json").read_text())
    assert verdict["cause"] == "ERG"
    fit(dead(), callback, epochs=10)
    assert len(list(TraceStore(tmp_path))) == 2


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_loss_that_breaks_ends_the_epoch_at_once(epochs):
    steps = []
    counter = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    evaluated = []
    tests = keras.callbacks.LambdaCallback()
    tests.on_test_batch_end = lambda batch, logs=None: evaluated.append(batch)
    callback = DiagnosisCallback()
    broken = Y.copy()
    broken[40:48] = np.nan
    fit(network(), callback, counter, tests, data=(X, broken), epochs=epochs, shuffle=False,
        batch_size=8, validation_data=(X, Y), validation_batch_size=8)  # fmt: skip
    assert steps == [0, 1, 2, 3, 4, 5]
    assert len(evaluated) == 1, "only the one validation batch that Keras insists on"
    assert callback.verdict.cause == "AGV"
    assert callback.trace.partial
    assert "val_loss" not in callback.trace.last.scalars


def test_a_broken_loss_trains_on_when_nothing_may_stop_it():
    callback = DiagnosisCallback(Diagnosis(rule=NeverStop()))
    history = fit(network(), callback, data=(X, np.full_like(Y, np.nan)), epochs=3)
    assert len(history.history["loss"]) == 3
    assert not callback.trace.partial
    assert [f.indicator for f in callback.verdict.findings] == ["AGV"]


def test_a_validation_loss_that_breaks_counts_too():
    callback = DiagnosisCallback()
    fit(network(), callback, validation_data=(X, np.full_like(Y, np.nan)), epochs=3)
    assert (callback.verdict.cause, callback.verdict.epoch) == ("AGV", 1)


def test_agv_at_the_last_epoch_is_marked_although_nothing_is_left_to_stop():
    callback = DiagnosisCallback()
    fit(network(), callback, data=(X, np.full_like(Y, np.nan)), epochs=1)
    assert callback.verdict.stop


def test_a_loss_only_diagnosis_taps_nothing():
    model = network()
    callback = DiagnosisCallback(LOSS_ONLY)
    fit(model, callback)
    assert callback.trace.last.columns == {}
    assert callback.trace.header.variables == ()


class Untapped(keras.Model):
    """Trains without an optimizer."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(3, activation="relu")
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(self.hidden(x))

    def train_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return {"loss": tf.reduce_mean(self(x))}


def test_without_taps_the_probe_batch_gives_the_gradients():
    model = Untapped()
    model.compile("sgd", "mse")
    callback = DiagnosisCallback()
    fit(model, callback)
    gradients = callback.trace.table("step_gradient/abs_mean")
    assert np.isnan(gradients[0]).all()
    assert not np.isnan(gradients[1:]).any()


def test_where_nothing_can_be_observed_the_trace_says_why():
    model = Untapped()
    model.compile("sgd", "mse")
    callback = DiagnosisCallback()
    fit(model, callback, data=(X,))
    assert "no gradients observed" in callback.trace.header.unobserved["gradient"]
    assert callback.verdict is None


def test_two_executions_of_one_callback_object_are_two_trainings():
    callback = DiagnosisCallback()
    fit(dead(), callback, epochs=10)
    assert callback.verdict is not None
    fit(network(), callback, epochs=2)
    assert callback.verdict is None
    assert len(callback.trace) == 2


def test_a_loop_of_ones_own_that_begins_no_training_is_told_so():
    # As in Keras's guide on custom training loops in KerasTuner.
    callback = DiagnosisCallback()
    callback.set_model(network())
    with pytest.warns(RuntimeWarning, match="without `on_train_begin`"):
        callback.on_epoch_end(0, logs={"loss": 0.5})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        callback.on_epoch_end(1, logs={"loss": 0.4})
    assert seen == [], "once is enough"
    assert callback.verdict is None


def test_a_deep_copy_shares_nothing_that_trains_and_the_original_points_on():
    callback = DiagnosisCallback()
    fit(network(), callback)
    copied = copy.deepcopy(callback)
    assert copied.trace is None
    fresh = DiagnosisCallback()
    copy.deepcopy([fresh])
    with pytest.raises(AttributeError, match="diagnosis_of"):
        _ = fresh.verdict
    with pytest.raises(AttributeError, match="diagnosis_of"):
        _ = fresh.trace


def test_model_and_optimizer_are_as_before(tmp_path):
    model = network()
    fit(model, DiagnosisCallback())
    assert "apply" not in vars(model.optimizer)
    assert "train_step" not in vars(model)
    model.save(tmp_path / "model.keras")
    pickle.dumps(model)
    copy.deepcopy(model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stumbles(QualityIndicator):
    needs = frozenset({"loss"})
    threshold: float = 1.0

    def measure(self, trace):
        raise RuntimeError("stumbled")


@dataclasses.dataclass(frozen=True)
class StumblingRule(Rule):
    def __call__(self, findings, trace, peers=()):
        raise RuntimeError("stumbled")


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            lambda p: DiagnosisCallback(Diagnosis([Stumbles()])),
            "indicator STUMBLES is off",
        ),
        (lambda p: DiagnosisCallback(Diagnosis(rule=StumblingRule())), "rule is off"),
        (lambda p: DiagnosisCallback(trace_dir=p / "file"), "trace file is off"),
        (lambda p: DiagnosisCallback(log_dir=p / "file"), "TensorBoard is off"),
        (
            lambda p: DiagnosisCallback(probe_data=np.zeros((4, 3))),
            "probe is off",
        ),
    ],
)
def test_a_fault_costs_one_warning_and_not_the_training(tmp_path, callback, message):
    (tmp_path / "file").write_text("in the way")
    model = network()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        history = fit(model, callback(tmp_path), epochs=4)
    assert len(history.history["loss"]) == 4
    ours = [str(w.message) for w in seen if " is off" in str(w.message)]
    assert len(ours) == 1
    assert message in ours[0]
    plain = network()
    fit(plain, epochs=4)
    assert all(
        np.array_equal(a, b) for a, b in zip(state(model), state(plain), strict=True)
    )


@pytest.mark.filterwarnings("error:.* is off:RuntimeWarning")
def test_warnings_that_are_errors_do_not_reach_the_training():
    history = fit(network(), DiagnosisCallback(Diagnosis([Stumbles()])), epochs=2)
    assert len(history.history["loss"]) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"tap": "none"},
            ValueError,
            "`tap` must be 'training' or 'probe', got 'none'",
        ),
        ({"epochs": 0}, ValueError, "`epochs` must be an integer of at least 1, got 0"),
        (
            {"warmup_epochs": -1},
            ValueError,
            "`warmup_epochs` must be an integer of at least 0",
        ),
        ({"diagnosis": "careless"}, ValueError, "must be one of"),
        ({"diagnosis": 3}, TypeError, "`diagnosis` must be a Diagnosis"),
        ({"objective": 3}, TypeError, "`objective` must be the name of a metric"),
        ({"objective": "gain"}, ValueError, "gain"),
        ({"diagnosis": "none.json"}, ValueError, "cannot be read"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        DiagnosisCallback(**arguments)


def test_a_diagnosis_is_loaded_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(LOSS_ONLY.to_json())
    assert DiagnosisCallback(path).diagnosis == LOSS_ONLY
    assert DiagnosisCallback(str(path)).diagnosis == LOSS_ONLY


def test_the_objective_may_be_any_metric():
    callback = DiagnosisCallback(objective="accuracy")
    fit(network(metrics=["accuracy"]), callback)
    assert (callback.trace.header.objective, callback.trace.header.direction) == (
        "accuracy",
        "max",
    )
    assert (
        callback.trace.scalar("objective").tolist()
        == callback.trace.scalar("accuracy").tolist()
    )


def test_more_epochs_may_be_planned_than_this_fit_is_told():
    callback = DiagnosisCallback(epochs=20)
    fit(dead(), callback, epochs=3)
    assert callback.trace.max_epochs == 20
    assert callback.verdict.epoch == 2


def test_a_schedule_foretells_the_learning_rate():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5, staircase=True)
    callback = DiagnosisCallback()
    fit(network(schedule), callback)
    assert callback.trace.header.planned_learning_rates == pytest.approx(
        (0.1, 0.05, 0.025, 0.0125)
    )


def test_weight_penalties_and_clipping_are_seen():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.5)),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01, clipnorm=1.0), "mse")
    callback = DiagnosisCallback()
    fit(model, callback)
    kernel = model.trainable_variables[0].numpy()
    assert callback.trace.scalar("regularization")[-1] == pytest.approx(
        0.5 * (kernel**2).sum(), rel=1e-5
    )
    assert callback.trace.header.gradients_clipped
    assert callback.trace.scalar("first_regularization")[0] > 0


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: {
            e.step: tf.make_ndarray(e.tensor_proto).item() for e in events.Tensors(tag)
        }
        for tag in events.Tags()["tensors"]
        if not tag.startswith("diagnosis/gradient/")  # histograms
    }


def test_tensorboard_is_written_by_itself(tmp_path):
    callback = DiagnosisCallback(log_dir=tmp_path)
    fit(dead(), callback, epochs=10)
    tags = scalars(tmp_path / "diagnosis")
    assert tags["diagnosis/value/ERG"] == {0: 0.0, 1: 0.0}
    assert tags["diagnosis/severity/ERG"] == {0: 3.0, 1: 3.0}
    assert tags["diagnosis/value/PLC"][1] == pytest.approx(
        callback.diagnosis["PLC"].measure(callback.trace)
    )
    assert set(tags["diagnosis/verdict"]) == {1}
    assert b"Stopped at epoch 2: ERG" in tags["diagnosis/verdict"][1]


def test_tensorboard_is_written_beside_keras_callback_wherever_it_stands(tmp_path):
    for order in (1, -1):
        place = tmp_path / str(order)
        board = keras.callbacks.TensorBoard(place)
        fit(network(), *[board, DiagnosisCallback()][::order], epochs=1)
        assert "diagnosis/value/AGV" in scalars(place / "diagnosis")
        assert (place / "train").is_dir()


def test_without_a_place_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(dead(), DiagnosisCallback(), epochs=3)
    assert list(tmp_path.iterdir()) == []


def test_ten_steps_of_an_epoch_are_sampled_with_first_and_last():
    for steps in (1, 2, 3, 9, 10, 11, 100, 1001):
        schedule = SampledSteps(steps)
        due = [step for step in range(steps) if schedule.due(step)]
        assert due[0] == 0
        assert due[-1] == steps - 1
        assert len(due) == min(steps, 10)
        assert steps < 2 or steps - 2 in due


def test_steps_per_execution_and_epochs_that_end_early_are_legal():
    callback = DiagnosisCallback()
    fit(network(steps_per_execution=3), callback)
    assert not np.isnan(callback.trace.table("step_gradient/abs_mean")).any()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hangs(QualityIndicator):
    needs = frozenset({"loss"})
    threshold: float = 1.0

    def measure(self, trace):
        time.sleep(30)
        return 0.0


def test_an_indicator_that_hangs_is_switched_off(monkeypatch):
    monkeypatch.setattr("kt_bttackler.training.INDICATOR_SECONDS", 0.2)
    callback = DiagnosisCallback(Diagnosis([Hangs(), *Diagnosis().indicators]))
    with pytest.warns(
        RuntimeWarning, match="HANGS is off: TimeoutError: took longer than 0.2 s"
    ):
        history = fit(dead(), callback, epochs=10)
    assert len(history.history["loss"]) == 2
    assert callback.verdict.cause == "ERG"


def test_a_large_model_is_judged_one_epoch_later_and_the_trace_says_so(monkeypatch):
    small = DiagnosisCallback()
    fit(dead(), small, epochs=10)
    monkeypatch.setattr("kt_bttackler.recorder.LARGE_MODEL", 10)
    large = DiagnosisCallback()
    history = fit(dead(), large, epochs=10)
    assert (small.trace.header.stop_delay, large.trace.header.stop_delay) == (0, 1)
    assert large.verdict == small.verdict
    assert len(history.history["loss"]) == 3
    for one, other in zip(small.trace.records, large.trace.records, strict=False):
        assert files.dumps(one.columns) == files.dumps(other.columns)
    fine = DiagnosisCallback()
    fit(network(), fine, epochs=3)
    assert len(fine.trace) == 3


def test_constant_units():
    rows = np.array([[0.0, 1.0, 0.5], [0.0, 2.0, 0.5004]])
    assert constant_ratio(rows, bounded=False) == pytest.approx(1 / 3)
    assert constant_ratio(rows, bounded=True) == pytest.approx(2 / 3)
    assert constant_ratio(rows.reshape(1, 2, 3), bounded=False) == pytest.approx(1 / 3)
    assert math.isnan(constant_ratio(rows[:1], bounded=False))


class Vector(keras.metrics.Metric):
    """A metric whose result is no number."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        pass

    def result(self):
        return keras.ops.ones(3)


@pytest.mark.filterwarnings("error:.* is off")
def test_metrics_that_are_vectors_are_left_out():
    callback = DiagnosisCallback()
    fit(network(metrics=[Vector(name="vector")]), callback)
    assert len(callback.trace) == 3
    assert "vector" not in callback.trace.last.scalars


def test_a_cut_validation_misleads_nobody_and_later_evaluations_are_whole():
    seen = []
    watcher = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda e, logs: seen.append(logs["val_loss"])
    )
    callback = DiagnosisCallback()
    broken = np.full_like(Y, np.nan)
    model = network()
    fit(model, callback, watcher, data=(X, broken), validation_data=(X, Y))
    assert math.isnan(seen[0])
    tested = []
    counter = keras.callbacks.LambdaCallback()
    counter.on_test_batch_end = lambda batch, logs=None: tested.append(batch)
    model.evaluate(X, Y, batch_size=16, verbose=0, callbacks=[callback, counter])
    assert len(tested) == 5


def test_the_objective_stays_the_same_when_validation_is_rare():
    callback = DiagnosisCallback()
    fit(network(), callback, epochs=4, validation_data=(X, Y), validation_freq=2)
    trace = callback.trace
    assert trace.header.objective == "loss"
    assert trace.scalar("objective").tolist() == trace.scalar("loss").tolist()


def test_a_copy_outside_a_search_is_a_plain_callback():
    callback = copy.deepcopy(DiagnosisCallback())
    history = fit(network(), callback)
    assert set(history.history) == {"loss"}
    assert len(callback.trace) == 3


def test_penalties_that_a_training_step_leaves_out_are_not_taken_off():
    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
            variables = self.trainable_variables
            self.optimizer.apply_gradients(
                zip(tape.gradient(loss, variables), variables, strict=True)
            )
            return {"loss": loss}

    inputs = keras.Input((6,))
    model = Own(
        inputs,
        keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(100.0))(inputs),
    )
    model.compile("sgd", "mse")
    callback = DiagnosisCallback()
    fit(model, callback)
    assert callback.trace.scalar("regularization").tolist() == [0.0, 0.0, 0.0]


def test_files_can_be_read_by_others(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    fit(dead(), DiagnosisCallback(trace_dir=tmp_path), epochs=3)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes == {plain.stat().st_mode}


def test_a_slow_indicator_is_not_asked_again_for_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr("kt_bttackler.training.INDICATOR_SECONDS", 0.2)
    monkeypatch.setattr(
        Hangs, "measure", lambda self, trace: calls.append(1) or time.sleep(2) or 0.0
    )
    calls = []
    with pytest.warns(RuntimeWarning, match="HANGS is off"):
        fit(network(), DiagnosisCallback(Diagnosis([Hangs()]), log_dir=tmp_path))
    assert calls == [1]
