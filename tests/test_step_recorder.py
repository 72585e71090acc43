from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from tapping import Watch, check_one_step, compiled, dense_model, vectors

from kt_bttackler.step_recorder import StepRecorder
from kt_bttackler.taps import TrainingTap

layers = keras.layers


def count_traces(model):
    """Count how often the training step is run in Python from now on."""
    traces = []
    original = type(model).train_step

    class Counting(type(model)):
        def train_step(self, data):
            traces.append(1)
            return original(self, data)

    model.__class__ = Counting
    return traces


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_the_tap_costs_no_second_trace(steps_per_execution):
    model = dense_model(steps_per_execution=steps_per_execution)
    traces = count_traces(model)
    watch = Watch()
    model.fit(*vectors(20), batch_size=5, epochs=2, verbose=0, callbacks=[watch])
    assert watch.observed is None
    assert len(traces) == 1


def test_second_fit_needs_no_new_trace_and_starts_blank():
    model = dense_model()
    traces = count_traces(model)
    x, y = vectors()
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[Watch()])
    first = len(traces)
    blank = TrainingTap()
    blank.install(model)
    assert blank.gradients() == [None] * 4
    assert blank.batch_size() is None
    check_one_step(model, x, y)
    assert len(traces) == first


def test_second_fit_after_one_without_a_tap():
    model = dense_model()
    model.fit(*vectors(), batch_size=8, verbose=0)
    check_one_step(model, *vectors())


def test_second_compile():
    model = dense_model()
    check_one_step(model, *vectors())
    model.layers[0].trainable = False
    watch = check_one_step(compiled(model, "adam"), *vectors())
    assert len(watch.steps[0]) == 2


def test_new_shapes_after_the_tap_are_still_observed_by_the_next_tap():
    model = keras.Sequential([keras.Input((None, 4)), layers.Dense(1)])
    compiled(model)
    x, y = np.ones((4, 2, 4), "float32"), np.ones((4, 2, 1), "float32")
    model.fit(x, y, verbose=0, callbacks=[Watch()])
    longer = np.ones((4, 3, 4), "float32"), np.ones((4, 3, 1), "float32")
    model.fit(*longer, verbose=0)
    check_one_step(model, *longer)


def test_rebuilt_training_function_is_followed_by_a_second_install():
    model = dense_model()

    class Rebuild(Watch):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.make_train_function(force=True)
            self.tap.install(self.model)

    watch = Rebuild()
    model.fit(*vectors(), batch_size=8, epochs=3, verbose=0, callbacks=[watch])
    assert len({step[0].tobytes() for step in watch.steps}) == 3


def test_two_taps_on_one_training():
    one, other = Watch(), Watch()
    dense_model().fit(*vectors(), verbose=0, callbacks=[one, other])
    for a, b in zip(one.steps[0], other.steps[0], strict=True):
        np.testing.assert_array_equal(a, b)


class Noise(layers.Layer):
    """Draws by TensorFlow's stateful operations, seeded by position in the graph."""

    def call(self, x, training=False):
        return x + 0.1 * tf.random.normal(tf.shape(x)) if training else x


class DrawsAfterUpdate(keras.Model):
    """Draws once more behind the first update of a step, as a GAN does."""

    def __init__(self):
        super().__init__()
        self.out = keras.Sequential([layers.Dense(4, activation="relu"), Noise()])
        self.head = layers.Dense(1)

    def call(self, x, training=False):
        return self.head(self.out(x, training=training))

    def train_step(self, data):
        for _ in range(2):
            logs = super().train_step(data)
        return logs


def dropout_model():
    return keras.Sequential(
        [
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            Noise(),
            layers.Dense(1),
        ]
    )


def lstm_model():
    return keras.Sequential(
        [layers.Reshape((4, 1)), layers.LSTM(3, dropout=0.2), layers.Dense(1)]
    )


@pytest.mark.parametrize("build", [dropout_model, lstm_model, DrawsAfterUpdate])
@pytest.mark.parametrize("mode", [{}, {"run_eagerly": True}])
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_training_is_the_same_bit_by_bit(build, mode, optimizer):
    def weights(callbacks):
        keras.utils.set_random_seed(1)
        data = tf.data.Dataset.from_tensor_slices(vectors(30)).shuffle(30, seed=2)
        chosen = keras.optimizers.SGD(0.05, 0.9) if optimizer == "momentum" else "adam"
        model = compiled(build(), chosen, jit_compile=False, **mode)
        history = model.fit(data.batch(7), epochs=3, verbose=0, callbacks=callbacks)
        variables = model.variables + model.optimizer.variables
        return [each.numpy() for each in variables], history.history["loss"]

    plain, loss = weights([])
    tapped, same_loss = weights([Watch()])
    assert loss == same_loss
    for one, other in zip(plain, tapped, strict=True):
        np.testing.assert_array_equal(one, other)


def test_model_and_optimizer_are_untouched_outside_a_step(tmp_path):
    model = dense_model()
    names = set(vars(model)), set(vars(model.optimizer))

    class Save(Watch):
        def on_epoch_end(self, epoch, logs=None):
            assert "apply" not in vars(self.model.optimizer)
            assert "train_step" not in vars(self.model)
            self.model.save(tmp_path / "during.keras")
            pickle.dumps(self.model)
            copy.deepcopy(self.model)

    model.fit(*vectors(), verbose=0, callbacks=[Save()])
    assert set(vars(model)) - names[0] <= {"history", "_eval_epoch_iterator"}
    assert not {"apply", "train_step"} & set(vars(model.optimizer))
    model.save(tmp_path / "after.keras")
    for again in (
        keras.saving.load_model(tmp_path / "during.keras"),
        keras.saving.load_model(tmp_path / "after.keras"),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ):
        for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        check_one_step(again, *vectors())


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_nothing_stays_behind_an_exception(run_eagerly):
    class Breaking(keras.Sequential):
        def compute_loss(self, *args, **kwargs):
            raise RuntimeError("broken")

    model = Breaking([keras.Input((4,)), layers.Dense(1)])
    compiled(model, run_eagerly=run_eagerly)
    watch = Watch()
    with pytest.raises(RuntimeError, match="broken"):
        model.fit(*vectors(), verbose=0, callbacks=[watch])
    assert "apply" not in vars(model.optimizer)
    assert "train_step" not in vars(model)
    watch.tap.restore()
    watch.tap.restore()
    assert watch.tap.gradients() == []


def test_other_wrappers_of_apply_stay_in_place():
    model = dense_model()
    seen = []
    original = model.optimizer.apply

    def counted(grads, trainable_variables=None):
        seen.append(len(grads))
        return original(grads, trainable_variables)

    object.__setattr__(model.optimizer, "apply", counted)
    check_one_step(model, *vectors())
    assert set(seen) == {4}
    assert vars(model.optimizer)["apply"] is counted


def test_models_are_garbage_once_they_are_let_go():
    model = dense_model()
    watch = Watch()
    model.fit(*vectors(), verbose=0, callbacks=[watch])
    gone = weakref.ref(model)
    del model, watch
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None


def test_failure_of_the_recorder_does_not_reach_the_training(monkeypatch):
    def fail(*_):
        raise ValueError("no room")

    monkeypatch.setattr(StepRecorder, "_record_gradients", fail)
    watch = Watch()
    dense_model().fit(*vectors(), batch_size=8, verbose=0, callbacks=[watch])
    assert watch.observed == "no gradients observed: ValueError: no room"


REPLICAS = """
import sys
import keras, numpy as np, tensorflow as tf
sys.path.insert(0, {folder!r})
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
from kt_bttackler.probe import ActivationProbe
from kt_bttackler.taps import ProbeTap
from test_probe import Keep
from tapping import KERAS, Watch, as_numpy, tape_gradients, tokens

def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((5,)), keras.layers.Embedding(20, 3), keras.layers.Flatten(),
        keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model

x, y = tokens(12)
for policy, tolerance in (("float32", 1e-5), ("mixed_float16", 2e-2)):
    keras.config.set_dtype_policy(policy)
    single = build()
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = build()
    watch = Watch()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(data, verbose=0, callbacks=[watch])
    assert watch.observed is None, watch.observed
    assert watch.rows == [8, 4], watch.rows
    assert "apply" not in vars(model.optimizer)
    # Before 3.8 Keras adds up the mean losses of the replicas.
    times = 1 if KERAS >= (3, 8) else 2
    expected = [times * as_numpy(each) for each in tape_gradients(single, x[:8], y[:8])]
    for found, wanted in zip(watch.steps[0][1:], expected[1:], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance / 10)
    # Per replica a mean over 4 rows, scaled by 1 / replicas.
    assert watch.steps[0][0].shape == (40, 3), watch.steps[0][0].shape
    np.testing.assert_allclose(
        watch.steps[0][0], expected[0], rtol=tolerance, atol=tolerance / 10)
    second = Watch()
    model.fit(data, verbose=0, callbacks=[second])
    assert second.rows == [8, 4]
    assert second.observed is None
    keep = Keep()
    model.fit(data, verbose=0, callbacks=[keep])
    for found, wanted in zip(keep.keeper.batch(), (x, y)):
        np.testing.assert_array_equal(np.sort(found[:, 0]), np.sort(wanted[:8, 0]))
    probe = ActivationProbe(model, x[:8])
    assert [each.shape for each in probe.run().activations] == [(8, 4)]
    tap = ProbeTap(x[:8], y[:8])
    tap.install(model)
    assert all(each is not None for each in tap.gradients()), tap.observed()
    assert np.isfinite(tap.gradients()[0]).all()
print("replicas agree")
"""


def test_replicas_give_the_gradient_of_the_whole_batch(pytestconfig):
    folder = str(pytestconfig.rootpath / "tests")
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS.format(folder=folder)],
        capture_output=True,
        text=True,
        cwd=pytestconfig.rootpath,
        timeout=120,
        check=False,
    )
    assert "replicas agree" in done.stdout, done.stderr[-3000:]


def test_private_names_that_the_tap_relies_on():
    model = dense_model()
    model.optimizer.build(model.trainable_variables)
    assert model.optimizer._trainable_variables == model.trainable_variables
