"""The probe: a small fixed batch, and what the activations make of it.

BTTackler (KDD'24), section 4.2, asks for the share of neurons that are never active.
Once per epoch one batch goes through the model, eagerly and with `training=False`, and
the outputs of its non-linear activations are collected on the way.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kt_bttackler.graph import named_layers, sublayers
from kt_bttackler.step_recorder import KEPT_ROWS, StepRecorder, as_array, replaced
from kt_bttackler.taps import as_tensors, untouched_state

# Activations whose saturated units differ from a constant by next to nothing.
_BOUNDED = {"sigmoid", "tanh", "hard_sigmoid", "hard_tanh", "softsign"}
_NOT_OBSERVED = {"linear", "softmax", "log_softmax", "sparsemax"}
_ACTIVATION_LAYERS = {
    keras.layers.ReLU: "relu",
    keras.layers.LeakyReLU: "leaky_relu",
    keras.layers.PReLU: "prelu",
    keras.layers.ELU: "elu",
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


class BatchKeeper:
    """Keeps a training batch as it passes through `model.train_step`.

    No second iterator touches the data: even a peek would move the order of a seeded
    shuffle. Read it in the first `on_train_batch_end` to get the first batch.
    """

    def __init__(self) -> None:
        self._recorder: StepRecorder | None = None
        self._steps = 0
        self._batch: tuple[Any, Any, Any] | None = None

    def install(self, model: keras.Model) -> None:
        """Watch a model whose training begins; call it in `on_train_begin`."""
        self._recorder = StepRecorder.of(model)
        self._recorder.record(model, "batch")
        self._steps = self._recorder.steps()

    def batch(self) -> tuple[Any, Any, Any] | None:
        """The batch that had just been trained on when this was first called.

        Returns:
            Inputs, targets and sample weights (None where there are none), as arrays
            of at most 128 rows. None if no step was run yet or the data cannot be kept:
            ragged and sparse tensors, shapes unknown to XLA.
        """
        if self._batch is None and self._recorder is not None:
            if self._recorder.steps() > self._steps:
                batch = self._recorder.batch()
                if batch is not None:
                    first = keras.tree.map_structure(_first_rows, batch)
                    self._batch = keras.utils.unpack_x_y_sample_weight(first)
        return self._batch

    def restore(self) -> None:
        """Let go of the model; a batch that was read stays."""
        self._recorder = None


class ActivationProbe:
    """Outputs of a model's non-linear activations for one fixed batch.

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

    @property
    def layers(self) -> tuple[ActivationInfo, ...]:
        """The observed layers in the order of their first call."""
        if self._observed is None:
            self.run()
        return tuple(info for info, _ in self._observed or ())

    def run(self) -> list[np.ndarray]:
        """One eager forward pass with `training=False`.

        Returns:
            Per observed layer its output, of shape [rows, ..., units].

        Raises:
            Exception: Whatever the model raises on these inputs.
        """
        if self._observed is None:
            # The first pass also finds out which layers make the outputs.
            candidates = _operations(self._model)
            calls, outputs = self._forward([operation for _, operation in candidates])
            self._observed = _select(candidates, calls, outputs)
        else:
            calls, _ = self._forward([operation for _, operation in self._observed])
        results = []
        for _, operation in self._observed:
            found = [call for call in calls if call.operation is operation]
            results.append(_joined([_units_last(call) for call in found]))
        return results

    def _forward(
        self, operations: list[keras.Operation]
    ) -> tuple[list[_Call], list[Any]]:
        """Run the model, noting the calls of some operations."""
        calls: list[_Call] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(untouched_state(self._model))
            for operation in operations:
                noting = _noting(operation, calls)
                stack.enter_context(replaced(operation, "call", noting))
            outputs = self._model(self._x, training=False)
        return calls, keras.tree.flatten(outputs)


@dataclass(frozen=True)
class _Call:
    """One call of an operation in a forward pass, with its tensors."""

    operation: keras.Operation
    inputs: list[Any]
    outputs: list[Any]


def slice_rows(x: Any, rows: int = KEPT_ROWS) -> Any:
    """Evenly spaced rows of data in memory.

    Args:
        x: Array, tensor, or list, tuple or dict of them, with equal numbers of rows.
        rows: How many rows to take at most.

    Returns:
        Arrays in the structure of `x`; None if `x` is no data in memory.
    """
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    if not leaves or not all(_in_memory(leaf) for leaf in leaves):
        return None
    lengths = {len(leaf) for leaf in leaves}
    if len(lengths) != 1 or 0 in lengths:
        return None
    length = lengths.pop()
    chosen = np.linspace(0, length - 1, min(rows, length)).round().astype(np.int64)

    def take(leaf: Any) -> Any:
        if leaf is None or isinstance(leaf, np.ndarray):
            return None if leaf is None else leaf[chosen]
        return keras.ops.convert_to_numpy(keras.ops.take(leaf, chosen, axis=0))

    return keras.tree.map_structure(take, x)


def _in_memory(leaf: Any) -> bool:
    return (isinstance(leaf, np.ndarray) or keras.ops.is_tensor(leaf)) and (
        len(leaf.shape) > 0
    )


def _first_rows(leaf: np.ndarray | None) -> np.ndarray | None:
    return None if leaf is None else leaf[:KEPT_ROWS].copy()


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


def _noting(operation: keras.Operation, calls: list[_Call]) -> Callable[..., Any]:
    """The `call` of an operation, adding each call to a list."""
    original = operation.call

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
