"""The probe: a small fixed batch, and what a model makes of it.

BTTackler (KDD'24), section 4.2, asks for the share of neurons that are never active.
Once per epoch one batch goes through the model, eagerly (but for RNNs) and with
`training=False`, and the outputs of its non-linear activations are collected on the
way, and its own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state

from kt_bttackler.gradient_buffers import as_array
from kt_bttackler.graph import named_layers, sublayers
from kt_bttackler.step_recorder import replaced
from kt_bttackler.taps import as_tensors, untouched_state

# Activations whose saturated units differ from a constant by next to nothing.
_BOUNDED = {"sigmoid", "tanh", "hard_sigmoid", "hard_tanh", "softsign"}
_NOT_OBSERVED = {"linear", "softmax", "log_softmax", "sparsemax"}
_ACTIVATION_LAYERS = {
    keras.layers.ReLU: "relu",
    keras.layers.LeakyReLU: "leaky_relu",
    keras.layers.PReLU: "prelu",
    keras.layers.ELU: "elu",
    keras.layers.Softmax: "softmax",
}
# Operations of functional models (`keras.ops.relu(x)`) by the name of their class.
_ACTIVATION_OPERATIONS = {
    **{name: name for name in ("relu", "relu6", "elu", "selu", "celu", "gelu", "silu")},
    **{name: name for name in ("glu", "tanh", "sigmoid", "softplus", "softsign")},
    "leakyrelu": "leaky_relu",
    "hardsigmoid": "hard_sigmoid",
    "hardsilu": "hard_silu",
    "hardtanh": "hard_tanh",
    "logsigmoid": "log_sigmoid",
    "softmax": "softmax",
    "logsoftmax": "log_softmax",
}


@dataclass(frozen=True)
class ActivationInfo:
    """One observed layer.

    Attributes:
        name: Unique name of the layer, as in `graph.named_layers`.
        activation: Name of the function ("relu", "sigmoid", ...).
        bounded: Whether it saturates at both ends, as sigmoid and tanh do.
    """

    name: str
    activation: str
    bounded: bool


@dataclass(frozen=True)
class Head:
    """What makes one output of a model.

    Attributes:
        activation: Name of the last function ("linear" where there is none), None
            when unknown.
        units: Extent of the last axis, None for a scalar.
    """

    activation: str | None
    units: int | None


@dataclass(frozen=True)
class Reading:
    """What a model made of the batch.

    Attributes:
        activations: Per observed layer its output, of shape [rows, ..., units].
        outputs: The outputs of the model, of shape [rows, ..., units].
    """

    activations: list[np.ndarray]
    outputs: list[np.ndarray]


class ActivationProbe:
    """Outputs of a model and of its non-linear activations for one fixed batch.

    Observed are layers with a non-linear activation of their own, activation layers
    and operations, and the outputs of RNNs; not the layers that make the model's
    outputs, nor softmax. A shared layer is one entry: the rows of all its calls.
    Activations that a subclassed model computes without a layer stay unseen.
    """

    def __init__(self, model: keras.Model, x: Any) -> None:
        """Keep model and batch; nothing runs yet.

        Args:
            model: A built model.
            x: Inputs as the model takes them: array, list or dict of arrays.
        """
        self._model = model
        self._x = as_tensors(x)
        self._observed: list[tuple[ActivationInfo, keras.Operation]] | None = None
        self._recurrent: dict[keras.Operation, Callable[..., Any]] = {}
        self._heads: tuple[Head, ...] = ()
        self._first_inputs: list[np.ndarray] = []

    @property
    def layers(self) -> tuple[ActivationInfo, ...]:
        """The observed layers in the order of their first call."""
        self._met()
        return tuple(info for info, _ in self._observed or ())

    @property
    def heads(self) -> tuple[Head, ...]:
        """What makes each output of the model."""
        self._met()
        return self._heads

    @property
    def first_inputs(self) -> list[np.ndarray]:
        """What the first layer with a kernel was given when the probe first ran.

        That is the data as the weights see it, after rescaling or normalising layers.
        """
        self._met()
        return self._first_inputs

    def _met(self) -> None:
        if self._observed is None:
            self.run()

    def run(self) -> Reading:
        """One eager forward pass with `training=False`; RNNs run as graphs.

        Raises:
            Exception: Whatever the model raises on these inputs.
        """
        if self._observed is None:
            # The first pass also finds out which layers make the outputs.
            candidates = _operations(self._model)
            self._recurrent = _as_graphs(self._model, candidates)
            calls, outputs = self._forward([operation for _, operation in candidates])
            self._observed = _select(candidates, calls, outputs)
            self._heads = tuple(_head(calls, output) for output in outputs)
            self._first_inputs = _first_inputs(calls)
        else:
            observed = {operation for _, operation in self._observed}
            calls, outputs = self._forward(observed | self._recurrent.keys())
        activations = []
        for _, operation in self._observed:
            found = [call for call in calls if call.operation is operation]
            activations.append(_joined([_units_last(call) for call in found]))
        return Reading(activations, [as_array(output) for output in outputs])

    def _forward(
        self, operations: Iterable[keras.Operation]
    ) -> tuple[list[_Call], list[Any]]:
        """Run the model, noting the calls of some operations."""
        calls: list[_Call] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(untouched_state(self._model))
            stack.enter_context(_untouched_draws())
            for operation in operations:
                original = self._recurrent.get(operation, operation.call)
                noting = _noting(operation, original, calls)
                stack.enter_context(replaced(operation, "call", noting))
            outputs = self._model(self._x, training=False)
        return calls, keras.tree.flatten(outputs)


@contextlib.contextmanager
def _untouched_draws() -> Iterator[None]:
    """Keeps layers that draw without a seed from moving the draws of the training."""
    # Private: the generator that Keras makes, from Python's, when it is first needed.
    name = "global_seed_generator"
    generator, states = global_state.get_global_attribute(name), random.getstate()
    value = None if generator is None else generator.state.numpy()
    try:
        yield
    finally:
        random.setstate(states)
        global_state.set_global_attribute(name, generator)
        if generator is not None and np.any(generator.state.numpy() != value):
            generator.state.assign(value)


@dataclass(frozen=True)
class _Call:
    """One call of an operation in a forward pass, with its tensors."""

    operation: keras.Operation
    inputs: list[Any]
    outputs: list[Any]


def _operations(model: keras.Model) -> list[tuple[str, keras.Operation]]:
    """Everything innermost in a model: layers without sublayers, RNNs, operations."""
    found: list[tuple[str, keras.Operation]] = []
    for name, layer in named_layers(model):
        prefix = "" if layer is model else f"{name}/"
        for operation in getattr(layer, "operations", ()):
            if not isinstance(operation, keras.Layer):
                found.append((prefix + operation.name, operation))
        if isinstance(layer, keras.layers.RNN) or not sublayers(layer):
            if not isinstance(layer, keras.layers.InputLayer):
                found.append((name, layer))
    return found


def _activation(operation: keras.Operation) -> str | None:
    """Name of the activation that makes the output of an operation, if any."""
    for kind, name in _ACTIVATION_LAYERS.items():
        if isinstance(operation, kind):
            return name
    if not isinstance(operation, keras.Layer):
        return _ACTIVATION_OPERATIONS.get(type(operation).__name__.lower())
    function = getattr(operation, "activation", None)
    if isinstance(operation, keras.layers.RNN) and function is None:
        last_cell = getattr(operation.cell, "cells", [operation.cell])[-1]
        function = getattr(last_cell, "activation", None)
    if not callable(function) or isinstance(function, keras.Operation):
        return None
    return getattr(function, "__name__", type(function).__name__)


def _as_graphs(
    model: keras.Model, operations: list[tuple[str, keras.Operation]]
) -> dict[keras.Operation, Callable[..., Any]]:
    """The `call` of each RNN, traced when it first runs.

    Eagerly every time step passes through the whole of Keras, a millisecond each.
    """
    if model.run_eagerly:  # what it does may be no graph
        return {}
    return {
        operation: _as_graph(operation.call)
        for _, operation in operations
        if isinstance(operation, keras.layers.RNN)
    }


def _as_graph(call: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs as a graph, without a warning of many traces."""
    function, signature = tf.function(call), inspect.signature(call)

    def traced(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()  # a traced function has none
        # Called itself it would warn: every trial has layers of its own to trace.
        concrete = function.get_concrete_function(*given.args, **given.kwargs)
        return concrete(*given.args, **given.kwargs)

    return traced


def _noting(
    operation: keras.Operation, original: Callable[..., Any], calls: list[_Call]
) -> Callable[..., Any]:
    """The `call` of an operation, adding each call to a list."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        outputs = original(*args, **kwargs)
        inputs = keras.tree.flatten((args, kwargs))
        calls.append(_Call(operation, inputs, keras.tree.flatten(outputs)))
        return outputs

    return call


def _select(
    candidates: list[tuple[str, keras.Operation]],
    calls: list[_Call],
    outputs: list[Any],
) -> list[tuple[ActivationInfo, keras.Operation]]:
    """The operations to observe, in the order of their first call."""
    names = {id(operation): name for name, operation in candidates}
    excluded = _makers(calls, outputs)
    selected: dict[int, tuple[ActivationInfo, keras.Operation]] = {}
    for call in calls:
        key = id(call.operation)
        activation = _activation(call.operation)
        if activation is None or activation in _NOT_OBSERVED or key in excluded:
            continue
        info = ActivationInfo(names[key], activation, activation in _BOUNDED)
        selected.setdefault(key, (info, call.operation))
    return list(selected.values())


def _makers(calls: list[_Call], outputs: list[Any]) -> set[int]:
    """Ids of the operations that make the outputs of a model.

    From each output back through whatever has no weights, up to and including the
    first layer that has some.
    """
    made: dict[int, int] = {}
    sources = []
    for number, call in enumerate(calls):
        sources.append({made[id(each)] for each in call.inputs if id(each) in made})
        # Later calls win: a layer may hand on the very tensor that it was given.
        made.update((id(each), number) for each in call.outputs)
    pending = [made.get(id(each), len(calls) - 1) for each in outputs]
    found = set()
    while pending:
        number = pending.pop()
        if number < 0 or number in found:
            continue
        found.add(number)
        if not getattr(calls[number].operation, "weights", ()):
            # A cast in between hides the source: then it is the call before.
            pending += sources[number] or {number - 1}
    return {id(calls[number].operation) for number in found}


def _head(calls: list[_Call], output: Any) -> Head:
    """The function that makes an output, behind whatever only reshapes it."""
    units = int(output.shape[-1]) if len(output.shape) > 1 else None
    tensor = output
    for call in reversed(calls):
        if not any(each is tensor for each in call.outputs):
            continue
        operation = call.operation
        activation = _activation(operation)
        if activation not in (None, "linear"):
            return Head(activation, units)
        if getattr(operation, "weights", ()):
            # A layer without an activation to ask for may apply one all the same.
            return Head(activation, units)
        tensors = [each for each in call.inputs if keras.ops.is_tensor(each)]
        if len(tensors) != 1:
            return Head(None, units)
        tensor = tensors[0]
    return Head(None, units)


def _first_inputs(calls: list[_Call]) -> list[np.ndarray]:
    """Floating-point inputs of the first layer that has a kernel.

    Layers that are fed by an embedding do not count: that is no data. Behind a batch
    normalisation these are not what the layer is given in training.
    """
    embedded: set[int] = set()
    for call in calls:
        tensors = [each for each in call.inputs if keras.ops.is_tensor(each)]
        embeds = isinstance(call.operation, keras.layers.Embedding)
        if embeds or any(id(each) in embedded for each in tensors):
            embedded.update(id(each) for each in call.outputs)
            continue
        if isinstance(call.operation, keras.layers.BatchNormalization):
            return []
        if isinstance(call.operation, keras.layers.Normalization):
            continue
        if any(len(w.shape) > 1 for w in getattr(call.operation, "weights", ())):
            return [
                as_array(each)
                for each in tensors[:1]
                if keras.backend.is_float_dtype(each.dtype)
            ]
    return []


def _units_last(call: _Call) -> np.ndarray:
    """The main output of a call as an array whose last axis are the units."""
    array = as_array(call.outputs[0])
    if getattr(call.operation, "data_format", None) == "channels_first":
        array = np.moveaxis(array, 1, -1)
    return array


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Rows of all calls together; positions become rows where shapes differ."""
    if len({part.shape[1:] for part in parts}) > 1:
        parts = [part.reshape(-1, part.shape[-1]) for part in parts]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
