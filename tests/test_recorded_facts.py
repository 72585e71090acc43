"""`model.fit` with every fact recorded: numbers against slow twins, and no harm."""

from __future__ import annotations

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import reference_recording as slow
import tensorflow as tf
from recording import FIELDS, Everything, compiled, fit, sequential

from kt_bttackler import (
    AbnormalGradientValues,
    Diagnosis,
    DiagnosisCallback,
    NeverStop,
    QualityIndicator,
    TraceStore,
    files,
)
from kt_bttackler.trace import read_trace

layers, losses = keras.layers, keras.losses
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6)).astype("float32")
CLASSES = RANDOM.choice(3, 64, p=[0.6, 0.3, 0.1])
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]
BITS = (RANDOM.random((64, 3)) < [0.2, 0.5, 0.8]).astype("float32")
REAL = RANDOM.gamma(2.0, 2.0, (64, 3)).astype("float32")
TOKENS = RANDOM.integers(0, 9, (64, 5))
TAGS = RANDOM.integers(0, 3, (64, 5))


class Witness(keras.callbacks.Callback):
    """Keeps weights and outputs at the ends of epochs; goes before the watcher."""

    def __init__(self, x):
        super().__init__()
        self.x = x
        self.outputs, self.weights = [], []

    def see(self):
        variables = self.model.trainable_variables
        self.weights.append([np.array(v.numpy()) for v in variables])
        outputs = keras.tree.flatten(self.model(self.x, training=False))
        self.outputs.append([np.asarray(output, np.float64) for output in outputs])

    def on_train_begin(self, logs=None):
        if self.model.built:
            self.see()

    def on_epoch_end(self, epoch, logs=None):
        self.see()


def hidden(activation="relu"):
    return layers.Dense(8, activation=activation)


def softmax():
    return layers.Dense(3, activation="softmax")


def sigmoid(units=3):
    return layers.Dense(units, activation="sigmoid")


CCE, SPARSE = "categorical_crossentropy", "sparse_categorical_crossentropy"
BCE, MSE, MAE = "binary_crossentropy", "mean_squared_error", "mean_absolute_error"
# Head, loss, labels, name of the loss, label smoothing, scale of the output.
CASES = {
    "one-hot": (softmax, CCE, ONE_HOT, CCE, 0.0, 1),
    "sparse": (softmax, SPARSE, CLASSES, SPARSE, 0.0, 1),
    "sparse column": (softmax, [SPARSE], CLASSES[:, None], SPARSE, 0.0, 1),
    "sparse logits": (
        lambda: layers.Dense(3),
        losses.SparseCategoricalCrossentropy(from_logits=True),
        CLASSES.astype("float32"),
        SPARSE,
        0.0,
        "logits",
    ),
    "smoothed": (
        softmax,
        losses.CategoricalCrossentropy(label_smoothing=0.2),
        ONE_HOT,
        CCE,
        0.2,
        1,
    ),
    "binary": (lambda: sigmoid(1), "bce", BITS[:, 0], BCE, 0.0, 1),
    "binary column": (lambda: sigmoid(1), BCE, BITS[:, :1].astype(int), BCE, 0.0, 1),
    "binary booleans": (lambda: sigmoid(1), BCE, BITS[:, 2] > 0, BCE, 0.0, 1),
    "binary logits": (
        lambda: layers.Dense(1),
        losses.BinaryCrossentropy(from_logits=True),
        BITS[:, 0],
        BCE,
        0.0,
        "logit",
    ),
    "multi-label": (sigmoid, losses.BinaryCrossentropy(), BITS, BCE, 0.0, 1),
    "regression": (lambda: layers.Dense(3), "mse", REAL, MSE, 0.0, "labels"),
    "absolute": (lambda: layers.Dense(1), "MAE", REAL[:, 0], MAE, 0.0, "labels"),
    "tanh": (lambda: hidden("tanh"), losses.Huber(), REAL[:, [0] * 8], None, 0.0, 2),
    "summed": (softmax, losses.CategoricalCrossentropy(reduction="sum"), ONE_HOT, None, 0.0, 1),
    "own loss": (
        lambda: layers.Dense(3),
        lambda y, z: keras.ops.mean(keras.ops.abs(y - z)),
        REAL,
        None,
        0.0,
        "labels",
    ),
}  # fmt: skip


PROBES = ("first batch", "x", "x and y")
TURNS = {(case, PROBES[k % 3]) for k, case in enumerate(CASES)}
ALL_PROBES = {(case, probe) for case in ("one-hot", "regression") for probe in PROBES}


@pytest.mark.parametrize(("case", "probe"), sorted(TURNS | ALL_PROBES))
def test_numbers_are_those_of_slow_twins(case, probe, tmp_path):
    head, loss, y, name, smoothing, scale = CASES[case]
    rows = slice(16) if probe == "first batch" else slice(0, 64, 2)
    witness = Witness(X[rows])
    model = compiled(sequential(hidden(), hidden("tanh"), output=head()), loss)
    data = {"first batch": None, "x": X[rows], "x and y": (X[rows], y[rows])}[probe]
    trace = fit(model, X, y, witness, probe_data=data, trace_dir=tmp_path)
    assert trace.scalar("steps").tolist() == [4, 4]
    check_trivial(trace, name, y, smoothing)
    for epoch in (0, 1):
        check_outputs(
            trace, epoch, witness.outputs[epoch + 1][0], y, rows, scale, probe
        )
    if probe != "first batch":  # it is there before the first step
        expected = spread(witness.outputs[0][0], y, scale)
        assert trace.scalar("output/initial_spread")[0] == pytest.approx(expected, 1e-4)
    assert math.isnan(trace.scalar("output/initial_spread")[1])
    check_weights(trace, witness)
    (fact,) = trace.header.outputs
    assert fact["units"] == model.output_shape[-1]
    labels = np.asarray(y, float)
    assert fact["target_min"] == labels.min()
    assert fact["target_max"] == labels.max()
    assert fact["target_integers"] == bool(np.all(labels == labels.round()))
    assert trace.header.inputs["abs_max"] == pytest.approx(slow.abs_max(X[rows]))
    assert trace.header.inputs["std_ratio"] == pytest.approx(
        slow.std_ratio(X[rows]), 1e-5
    )
    (stored,) = TraceStore(tmp_path)
    assert stored.header == trace.header
    for one, other in zip(stored.records, trace.records, strict=True):
        assert files.dumps(vars(one)) == files.dumps(vars(other))


def check_trivial(trace, name, labels, smoothing=0.0):
    for found, error in zip(
        trace.scalar("label/trivial_loss"),
        trace.scalar("label/trivial_error"),
        strict=True,
    ):
        if name is None:
            assert math.isnan(found)
        else:
            minimum = slow.trivial_loss(name, labels, smoothing)
            assert abs(found - minimum) <= error + 1e-6


def spread(output, labels, scale):
    if scale in ("logits", "logit"):
        kind = "binary" if scale == "logit" else None
        return max(slow.stds(slow.probabilities(output, kind)))
    return max(slow.stds(output)) / (
        max(slow.stds(labels)) if scale == "labels" else scale
    )


def check_outputs(trace, epoch, output, labels, rows, scale, probe):
    scalars = trace.records[epoch].scalars
    assert scalars["output/spread"] == pytest.approx(
        spread(output, labels, scale), 1e-4
    )
    loss, single = (
        trace.header.outputs[0]["loss"],
        labels.ndim == 1 or labels.shape[1] == 1,
    )
    if loss in (CCE, SPARSE) or (loss == BCE and single):
        wanted = labels.argmax(axis=-1) if loss == CCE else labels.ravel().astype(int)
        middle = 0 if scale == "logit" else 0.5
        chosen = output.ravel() > middle if loss == BCE else output.argmax(axis=-1)
        known = wanted if probe == "x" else wanted[rows]
        assert scalars["output/top_share"] == slow.top_share(chosen)
        assert scalars["output/label_top_share"] == pytest.approx(slow.top_share(known))
        # Rows without labels of their own are not compared with those of others.
        found = scalars.get("output/neglected_share")
        expected = None if probe == "x" else slow.neglected_share(wanted[rows], chosen)
        assert found == expected
    else:
        assert "output/top_share" not in scalars


def check_weights(trace, witness):
    kernels = trace.header.kernels
    for epoch, (before, after) in enumerate(
        zip(witness.weights, witness.weights[1:], strict=False)
    ):
        for v, kernel in enumerate(kernels):
            moved = trace.table("update/moved")[epoch, v]
            assert math.isnan(moved) != kernel
            if kernel:
                assert moved == pytest.approx(slow.moved(before[v], after[v]), 1e-6)
    found = trace.table("update/ratio")
    assert (np.isnan(found) == [not kernel for kernel in kernels]).all()
    assert (trace.table("weight/initial_finite")[0] == 1).all()
    assert np.isnan(trace.table("weight/initial_finite")[1:]).all()


def test_activations_are_those_of_slow_twins():
    model = compiled(
        sequential(
            layers.Dense(6, activation="relu", bias_initializer="ones", name="a"),
            layers.Dense(5, activation="sigmoid", kernel_initializer="zeros", name="b"),
            layers.Dense(9, activation="tanh", name="c",
                         kernel_initializer=keras.initializers.RandomNormal(stddev=9.0)),
            layers.Dense(4, name="linear"),
            layers.LeakyReLU(name="d"),
        ),
        "mse",
    )  # fmt: skip
    dead = model.get_layer("a").bias
    dead.assign([1, 1, 1, 1, -99, -99])
    inner = keras.Model(
        model.inputs[0], [model.get_layer(name).output for name in "abcd"]
    )
    seen = [inner(X, training=False)]
    witness = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(inner(X, training=False))
    )
    trace = fit(model, X, REAL, witness, probe_data=X, epochs=3)
    assert trace.header.activations == tuple("abcd")
    names = ("relu", "sigmoid", "tanh", "leaky_relu")
    initial = [np.mean(slow.stds(output)) for output in seen[0]]
    assert trace.table("activation/initial_std")[0] == pytest.approx(initial, 1e-5)
    for epoch, outputs in enumerate(seen[1:]):
        both = list(zip(names, map(np.asarray, outputs), strict=True))
        expected = {
            "constant_ratio": [
                slow.constant_ratio(each, name in ("sigmoid", "tanh"))
                for name, each in both
            ],
            "dead_ratio": [slow.dead_ratio(each, name) for name, each in both],
            "saturated_ratio": [
                slow.saturated_ratio(each, name) for name, each in both
            ],
            "abs_max": [slow.abs_max(each) for _, each in both],
        }
        for name, values in expected.items():
            found = trace.table(f"activation/{name}")[epoch]
            assert found == pytest.approx(values, 1e-5, nan_ok=True)
    assert trace.table("activation/dead_ratio")[0, 0] > 0.3
    assert trace.table("activation/saturated_ratio")[0, 2] > 0


def test_the_first_gradient_is_that_of_a_tape():
    model = compiled(sequential(hidden("tanh"), output=softmax()), SPARSE)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(y=CLASSES[:16], y_pred=model(X[:16], training=True))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    trace = fit(model, X, CLASSES)
    assert trace.table("gradient/initial_norm")[0] == pytest.approx(
        [slow.norm(each) for each in gradients], 1e-4
    )
    assert np.isnan(trace.table("gradient/initial_norm")[1]).all()


def test_updates_are_those_of_single_steps():
    model = compiled(sequential(hidden()), "mse", keras.optimizers.Adam(0.01))
    steps = []

    def keep(batch, logs):
        steps.append([np.array(v.numpy()) for v in model.trainable_variables])

    keep(0, None)
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=keep)
    trace = fit(model, X, REAL, watch, batch_size=8, epochs=1)
    sampled = [slow.update_ratio(steps[k][0], steps[k + 1][0]) for k in (0, 3, 7)]
    assert trace.table("update/ratio")[0, 0] == pytest.approx(np.mean(sampled), 1e-5)


def test_what_is_not_needed_is_not_recorded():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Symmetry(Everything):
        needs = frozenset({"weight/initial_symmetric"})

    callback = DiagnosisCallback(Diagnosis([Symmetry()], rule=NeverStop()))
    model = compiled(sequential(layers.Dense(4, kernel_initializer="ones")), "mse")
    model.fit(X, REAL, verbose=0, callbacks=[callback])
    table = callback.trace.table("weight/initial_symmetric")
    np.testing.assert_array_equal(table, [[1, math.nan, 0, math.nan]])
    assert "output/spread" not in callback.trace.last.scalars
    assert callback.trace.header.outputs == ()


def test_old_traces_still_load(tmp_path):
    fit(compiled(sequential(hidden()), "mse"), X, REAL, trace_dir=tmp_path)
    (path,) = tmp_path.glob("trace-*.jsonl")
    first, *rest = path.read_text().splitlines()
    content = json.loads(first)
    for name in (*FIELDS, "half_precision"):
        del content["header"][name]
    path.write_text("\n".join([json.dumps(content), *rest, ""]))
    trace = read_trace(path)
    assert trace.header.outputs == trace.header.dropout_rates == ()
    assert trace.header.inputs == {}
    assert not trace.header.half_precision
    assert np.isnan(trace.scalar("output/never_recorded")).all()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summaries(QualityIndicator):
    """Needs statistics that no indicator of the package reads."""

    needs = frozenset({"step_gradient/abs_mean", "weight/median"})
    threshold: float = 1.0

    def measure(self, trace):
        return math.nan


@pytest.mark.parametrize("needed", [True, False])
def test_statistics_nobody_needs_end_when_epochs_are_short(needed):
    model = compiled(sequential(), "mse")
    indicator = Summaries() if needed else AbnormalGradientValues()
    callback = DiagnosisCallback(Diagnosis([indicator], rule=NeverStop()))
    model.fit(
        np.ones((4, 6)), np.ones((4, 3)), epochs=6, verbose=0, callbacks=[callback]
    )
    for name in ("gradient/maximum", "weight/median"):
        known = np.isfinite(callback.trace.table(name)).all(axis=1)
        assert known.tolist() == [True] * 3 + [needed] * 3
    assert np.isfinite(callback.trace.table("step_gradient/abs_mean")).all()
