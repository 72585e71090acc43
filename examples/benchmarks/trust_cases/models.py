"""How a training is written down, and how it becomes a Keras model.

A layer is a pair of its Keras name and its arguments. Beside those of Keras there are
`Residual` (`body`: layers whose output is added to their input), `SelfAttention`
(arguments of `MultiHeadAttention`) and `Heads` (`heads`: name of each output to its
layers), the last one of a model.
"""

import dataclasses
import math

import keras

from trust_cases import data

# Expected findings of faults that come in many guises.
RATE_HIGH = (
    "ULC UPDATE_RATIO AGV EAG OSCILLATION LR_RANGE DEAD_UNITS LAR COLLAPSED_OUTPUT"
)
RATE_LOW = "UPDATE_RATIO PLC"
TARGETS_RAW = "AGV ULC EAG DEAD_UNITS LAR UPDATE_RATIO COLLAPSED_OUTPUT NUMERIC_EDGE"


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One training, but for its seed.

    Attributes:
        data: name of the data set.
        layers: the layers in order, each a pair of name and arguments.
        loss: name, `{"class_name": ..., "config": ...}`, a key of `OWN_LOSSES`, or a
            dict of such, one per output.
        rate: learning rate, or a schedule as `{"class_name": ..., "config": ...}`.
        optimizer: name of a Keras class.
        optimizer_arguments: its other arguments.
        batch: rows per step.
        epochs: E.
        epoch_rates: learning rate of each epoch, the last one for all that follow;
            empty: as the optimizer has it.
        fit: further arguments of `fit`.
        policy: of the numbers that layers compute with.
    """

    data: str
    layers: tuple
    loss: object
    rate: object = 1e-3
    optimizer: str = "Adam"
    optimizer_arguments: dict = dataclasses.field(default_factory=dict)
    batch: int = 32
    epochs: int = 20
    epoch_rates: tuple = ()
    fit: dict = dataclasses.field(default_factory=dict)
    policy: str = "float32"

    def but(self, **changes):
        """The same with other fields."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A faulty training and the same without the fault.

    Attributes:
        id: unique name.
        fault: what is wrong, in words.
        faulty: the one.
        healthy: the other.
        expected: ids of findings that name the fault or its mechanism, the one that
            says it best first.
        source: where it was published, else empty.
    """

    id: str
    fault: str
    faulty: Configuration
    healthy: Configuration
    expected: tuple
    source: str = ""


@dataclasses.dataclass(frozen=True)
class HardCase:
    """A healthy training that looks as if something was wrong.

    Attributes:
        id: unique name.
        temptation: what might be mistaken for a fault.
        healthy: the training.
    """

    id: str
    temptation: str
    healthy: Configuration


def pair(id, fault, healthy, expected, **changes):
    """A pair whose faulty training differs from the healthy one by `changes`."""
    return Pair(id, fault, healthy.but(**changes), healthy, tuple(expected.split()))


def dense(units, activation="linear", **more):
    """A dense layer."""
    return ("Dense", {"units": units, "activation": activation, **more})


def stack(widths, activation, **more):
    """Dense layers, one after the other."""
    return tuple(dense(width, activation, **more) for width in widths)


def conv(filters, activation="relu", **more):
    """A 3 x 3 convolution that keeps the size of the image."""
    arguments = {"filters": filters, "kernel_size": 3, "padding": "same"}
    return ("Conv2D", {**arguments, "activation": activation, **more})


def layer(name, **arguments):
    """Any layer."""
    return (name, arguments)


def initializer(name, **arguments):
    """An initialiser, a loss or a schedule with arguments, as Keras writes it."""
    return {"class_name": name, "config": arguments}


scheduled = loss_with = initializer


def pinball(y_true, y_pred):
    """Loss of the 80 % quantile."""
    error = y_true - y_pred
    return keras.ops.mean(keras.ops.maximum(0.8 * error, -0.2 * error), axis=-1)


def likelihood(y_true, y_pred):
    """Negative log-likelihood of errors of deviation 0.15; below 0 for a good fit."""
    errors = (y_true - y_pred) / 0.15
    constant = math.log(0.15 * math.sqrt(2 * math.pi))
    return keras.ops.mean(errors**2 / 2 + constant, axis=-1)


OWN_LOSSES = {"pinball": pinball, "likelihood": likelihood}


def loss_function(loss):
    """The loss that `compile` is given, or a dict of them."""
    if isinstance(loss, dict) and "class_name" not in loss:
        return {name: loss_function(part) for name, part in loss.items()}
    return OWN_LOSSES[loss] if loss in tuple(OWN_LOSSES) else keras.losses.get(loss)


def build(configuration):
    """The compiled model of a configuration, after its policy was set.

    Args:
        configuration: a `Configuration`.

    Returns:
        A `keras.Model`. Its weights depend on the seed set before.
    """
    keras.config.set_dtype_policy(configuration.policy)
    try:
        x = data.load(configuration.data).x
        inputs = keras.Input(x.shape[1:], dtype=x.dtype.name)
        model = keras.Model(inputs, _chain(configuration.layers, inputs))
        model.compile(_optimizer(configuration), loss_function(configuration.loss))
    finally:
        keras.config.set_dtype_policy("float32")
    return model


def _chain(entries, x):
    for name, arguments in entries:
        if name == "Residual":
            x = keras.layers.Add()([x, _chain(arguments["body"], x)])
        elif name == "SelfAttention":
            x = keras.layers.MultiHeadAttention(**arguments)(x, x)
        elif name == "Heads":
            x = {head: _chain(body, x) for head, body in arguments["heads"].items()}
        else:
            x = getattr(keras.layers, name)(**arguments)(x)
    return x


def _optimizer(configuration):
    rate = configuration.rate
    if isinstance(rate, dict):
        rate = keras.optimizers.schedules.deserialize(rate)
    make = getattr(keras.optimizers, configuration.optimizer)
    return make(rate, **configuration.optimizer_arguments)
