"""Layers and optimizers that start and step as those of PyTorch do.

The paper's tasks were trained with PyTorch, whose defaults differ from those of Keras:
weights and biases start uniform in +-1/sqrt(fan-in), weight decay is added to the
gradient of every parameter, and the optimizers have other constants.
"""

from __future__ import annotations

import math
from typing import Any

import keras


def linear(units: int, fan_in: int, decay: float = 0.0, **how: Any) -> Any:
    """A dense layer.

    Args:
        units: number of outputs.
        fan_in: number of inputs.
        decay: weight decay, see `decay_arguments`.
        how: further arguments of `keras.layers.Dense`.
    """
    return keras.layers.Dense(
        units, **uniform_arguments(fan_in), **decay_arguments(decay), **how
    )


def convolution(
    filters: int, size: int, channels: int, decay: float = 0.0, **how: Any
) -> Any:
    """A two-dimensional convolution.

    Args:
        filters: number of outputs.
        size: height and width of the kernel.
        channels: number of inputs.
        decay: weight decay, see `decay_arguments`.
        how: further arguments of `keras.layers.Conv2D`.
    """
    start = uniform_arguments(channels * size * size)
    return keras.layers.Conv2D(filters, size, **start, **decay_arguments(decay), **how)


def lstm(units: int, decay: float = 0.0, **how: Any) -> Any:
    """An LSTM layer; PyTorch has two biases of each gate, Keras their sum.

    Args:
        units: size of the hidden state, which is what PyTorch starts all weights by.
        decay: weight decay, see `decay_arguments`.
        how: further arguments of `keras.layers.LSTM`.
    """
    return keras.layers.LSTM(
        units,
        **uniform_arguments(units),
        recurrent_initializer=_uniform(units),
        unit_forget_bias=False,
        **decay_arguments(decay),
        recurrent_regularizer=_penalty(decay),
        **how,
    )


def batch_normalization(decay: float = 0.0) -> Any:
    """Batch normalization, with the weight decay on its scale and shift, too."""
    return keras.layers.BatchNormalization(
        momentum=0.9,
        epsilon=1e-5,
        beta_regularizer=_penalty(decay),
        gamma_regularizer=_penalty(decay),
    )


def activation(name: str) -> Any:
    """An activation layer with the slopes of PyTorch."""
    if name == "leaky_relu":
        return keras.layers.LeakyReLU(negative_slope=0.01)
    return keras.layers.Activation(name)


def optimizer(name: str, learning_rate: Any) -> Any:
    """An optimizer with the constants of PyTorch.

    Keras adds epsilon under the root of RMSprop and Adagrad, PyTorch outside it: the
    square of PyTorch's limits the step alike where gradients vanish.

    Args:
        name: "SGD", "Adam", "RMSprop", "Adagrad" or "Adadelta".
        learning_rate: a number or a schedule of Keras.
    """
    constants: dict[str, dict[str, float]] = {
        "SGD": {},
        "Adam": {"epsilon": 1e-8},
        "RMSprop": {"rho": 0.99, "epsilon": 1e-8**2},
        "Adagrad": {"initial_accumulator_value": 0.0, "epsilon": 1e-10**2},
        "Adadelta": {"rho": 0.9, "epsilon": 1e-6},
    }
    return getattr(keras.optimizers, name)(learning_rate, **constants[name])


def uniform_arguments(fan_in: int) -> dict[str, Any]:
    """Initializers of kernel and bias: uniform in +-1/sqrt(fan-in)."""
    return {
        "kernel_initializer": _uniform(fan_in),
        "bias_initializer": _uniform(fan_in),
    }


def decay_arguments(decay: float) -> dict[str, Any]:
    """Regularizers of kernel and bias whose gradient is `decay` times the weights.

    The `weight_decay` of Keras's optimizers is another thing: it does not go through
    the gradient, and so not through the scaling of adaptive optimizers.
    """
    return {
        "kernel_regularizer": _penalty(decay),
        "bias_regularizer": _penalty(decay),
    }


def _uniform(fan_in: int) -> Any:
    bound = 1.0 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-bound, bound)


def _penalty(decay: float) -> Any:
    return keras.regularizers.L2(decay / 2) if decay else None
