"""Tests of `kt_bttackler.training_state`: a training that goes on in another model."""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np
import pytest
from rungs import same, values_of

from kt_bttackler import training_state
from kt_bttackler.training_state import TrainingState

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
layers = keras.layers


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(4, activation="relu")
        self.noise = layers.Dropout(0.5)
        self.out = layers.Dense(1)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.out(self.noise(self.hidden(x), training=training))


def functional() -> keras.Model:
    given = keras.Input((3,))
    hidden = layers.Dense(4, activation="relu")(given)
    hidden = layers.GaussianNoise(0.1)(layers.BatchNormalization()(hidden))
    return keras.Model(given, layers.Dense(1, dtype="float32")(hidden))


def without_input() -> keras.Model:
    return keras.Sequential([layers.Dense(4), layers.Dropout(0.5), layers.Dense(1)])


def partly_frozen() -> keras.Model:
    model = functional()
    model.layers[1].trainable = False
    return model


KINDS = {
    "functional": (functional, lambda: "adam"),
    "without input": (without_input, lambda: "rmsprop"),
    "subclassed": (Subclassed, lambda: "adam"),
    "partly frozen": (partly_frozen, lambda: keras.optimizers.SGD(0.1, momentum=0.9)),
    "accumulating": (
        functional,
        lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    ),
}


class KeepState(keras.callbacks.Callback):
    def __init__(self, path: Any) -> None:
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            TrainingState.of(self.model, 2, "7").save(self.path)


def trained(
    kind: str, epochs: Any, state: Any = None, callbacks: Any = ()
) -> keras.Model:
    make, optimizer = KINDS[kind]
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    model = make()
    model.compile(optimizer(), "mse")
    if state is not None:
        state.restore(model)
    first, last = epochs
    model.fit(
        X, Y, batch_size=4, initial_epoch=first, epochs=last, verbose=0,
        callbacks=list(callbacks),
    )  # fmt: skip
    return model


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        *((kind, "float32") for kind in KINDS),
        ("functional", "mixed_float16"),
        ("subclassed", "bfloat16"),
    ],
)
def test_a_restored_training_goes_on_exactly(
    kind: str, policy: str, tmp_path: Any
) -> None:
    path = tmp_path / "state-0.npz"
    keras.mixed_precision.set_global_policy(policy)
    try:
        whole = trained(kind, (0, 4), callbacks=[KeepState(path)])
        state = TrainingState.load(path)
        assert (state.epoch, state.origin) == (2, "7")
        gone_on = trained(kind, (2, 4), state)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert same(values_of(gone_on), values_of(whole))
    kept = [*state.variables["model"], *state.variables["optimizer"]]
    assert not same(kept, values_of(whole))


def test_keras_own_weights_are_not_enough(tmp_path: Any) -> None:
    # Why there are states: seeds of layers are not among the weights that Keras saves.
    half = trained("functional", (0, 1))
    half.save_weights(tmp_path / "w.weights.h5")
    model = trained("functional", (0, 0))
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "w.weights.h5")
    assert same(model.get_weights(), half.get_weights())
    assert not same(values_of(model), values_of(half))


def test_random_numbers_go_on(tmp_path: Any) -> None:
    model = trained("functional", (0, 1))
    TrainingState.of(model, 1, "0").save(tmp_path / "state-0.npz")
    expected = random.random(), random.gauss(0, 1), np.random.normal(size=3).tolist()
    random.seed(0)
    np.random.seed(0)
    TrainingState.load(tmp_path / "state-0.npz").restore_random_numbers()
    again = random.random(), random.gauss(0, 1), np.random.normal(size=3).tolist()
    assert again == expected


def test_an_optimizer_that_never_stepped_is_left_alone(tmp_path: Any) -> None:
    # As after a training loop of the user's own, with an optimizer of its own.
    def model() -> keras.Model:
        made = functional()
        made.compile("adam", "mse")
        return made

    state, other = TrainingState.of(model(), 1, "0"), model()
    state.restore(other)
    assert same(state.variables["model"], [v.numpy() for v in other.variables])


def test_a_model_that_was_never_compiled_has_weights_at_least() -> None:
    state, other = TrainingState.of(functional(), 1, "0"), functional()
    state.restore(other)
    assert same(state.variables["model"], [v.numpy() for v in other.variables])


def test_another_model_is_refused_before_anything_is_changed() -> None:
    state = TrainingState.of(trained("functional", (0, 1)), 1, "0")
    other = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(2)])
    other.compile("adam", "mse")
    before = [v.numpy() for v in other.variables]
    with pytest.raises(ValueError, match="`model` must have the model variables"):
        state.restore(other)
    assert same([v.numpy() for v in other.variables], before)


def test_what_is_no_state_is_refused(tmp_path: Any) -> None:
    with pytest.raises(OSError, match="state-0"):
        TrainingState.load(tmp_path / "state-0.npz")
    (tmp_path / "state-0.npz").write_bytes(b"half")
    with pytest.raises(ValueError, match="pickle"):
        TrainingState.load(tmp_path / "state-0.npz")


def test_states_are_forgotten(tmp_path: Any) -> None:
    training_state.forget(tmp_path / "nowhere")
    state = TrainingState.of(functional(), 1, "0")
    for execution in (0, 1):
        state.save(training_state.path_of(tmp_path, execution))
    (tmp_path / "trial.json").touch()
    training_state.forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trial.json"]
