"""Buffers in which a training step leaves values behind, above all its gradients."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kt_bttackler.twins import Twins


@dataclass(frozen=True)
class _Slot:
    """Where the newest gradient of one variable is, and the loss scale it contains."""

    variable: Any  # kept alive: slots are found by its id
    buffer: tf.Variable
    part: slice | None  # of a buffer that several vectors share, None for all of it
    scale: tf.Variable | None


@dataclass(frozen=True)
class _Recorded:
    """Gradients that are assigned to one buffer."""

    variables: list[Any]  # several where they are vectors
    values: Any
    shape: Any  # of the buffer, None if it changes

    @property
    def key(self) -> tuple[int, ...]:
        return tuple(map(id, self.variables))


@dataclass(frozen=True)
class Update:
    """One call of `optimizer.apply`."""

    optimizer: keras.Optimizer
    gradients: list[Any]
    variables: list[Any]
    scale: Any  # number or tensor, None for 1


class GradientBuffers:
    """The newest gradients of one model.

    Args:
        strategy: The distribution strategy of the model.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self._slots: dict[int, _Slot] = {}
        self._buffers: dict[tuple[int, ...], tf.Variable] = {}
        self._scales: weakref.WeakKeyDictionary[keras.Optimizer, tf.Variable] = (
            weakref.WeakKeyDictionary()
        )

    def record(self, update: Update, fixed_shapes: bool) -> None:
        """Assign the gradients of an update to their buffers.

        Args:
            update: The update to record.
            fixed_shapes: Whether XLA may compile this, which wants fixed shapes: the
                rows of a sparse gradient have none.
        """
        twins = Twins()
        scale = self._record_scale(update)
        single: list[_Recorded] = []
        vectors: dict[tf.DType, list[_Recorded]] = {}
        for gradient, variable in zip(update.gradients, update.variables, strict=False):
            is_sparse = isinstance(gradient, tf.IndexedSlices)
            if gradient is None or (is_sparse and fixed_shapes):
                continue
            values = gradient.values if is_sparse else gradient
            if not fixed_shapes:  # XLA fuses as it likes
                values = twins.of(values)
            # Of the variable: a gradient's own shape may be unknown in the graph.
            shape = None if is_sparse else variable.shape
            each = _Recorded([variable], values, shape)
            if shape is not None and len(shape) == 1 and values.shape == shape:
                vectors.setdefault(values.dtype, []).append(each)
            else:
                single.append(each)
        recorded = [*single, *map(_together, vectors.values())]
        absent = [each for each in recorded if each.key not in self._buffers]
        made = make_buffers(
            self._strategy, ((each.values.dtype, each.shape) for each in absent)
        )
        self._buffers |= zip((each.key for each in absent), made, strict=True)
        for each in recorded:
            buffer = self._buffers[each.key]
            start = 0
            for variable in each.variables:
                part = None
                if len(each.variables) > 1:
                    part = slice(start, start + variable.shape[0])
                    start = part.stop
                # Anew each time: a model compiled again has another optimizer.
                self._slots[id(variable)] = _Slot(variable, buffer, part, scale)
            assign(buffer, each.values)

    def _record_scale(self, update: Update) -> tf.Variable | None:
        """The variable with the loss scale of an update, None if it has no scale."""
        if update.scale is None:
            return None
        value = tf.cast(update.scale, tf.float32)
        if update.optimizer not in self._scales:
            (scale,) = make_buffers(self._strategy, [(tf.float32, ())], summed=False)
            self._scales[update.optimizer] = scale
        assign(self._scales[update.optimizer], value)
        return self._scales[update.optimizer]

    def read(self, variables: Iterable[keras.Variable]) -> list[np.ndarray | None]:
        """Newest gradients of variables as arrays, unscaled; None if never had any."""
        read: dict[int, np.ndarray] = {}  # buffers and scales that several share
        newest: list[np.ndarray | None] = []
        for variable in variables:
            # Training steps may update the TensorFlow variable inside that of Keras.
            slot = self._slots.get(id(variable)) or self._slots.get(id(variable.value))
            if slot is None:
                newest.append(None)
                continue
            key = id(slot.buffer)
            if key not in read:
                read[key] = self._read(slot)
            array = read[key]
            newest.append(array if slot.part is None else array[slot.part])
        return newest

    def _read(self, slot: _Slot) -> np.ndarray:
        scale = None if slot.scale is None else float(slot.scale.numpy())
        if slot.buffer.shape.rank is None:
            return as_array(rows_of_replicas(self._strategy, slot.buffer), scale)
        return as_array(newest_value(slot.buffer), scale)


def _together(vectors: list[_Recorded]) -> _Recorded:
    """Vectors of one type as one, which costs less than to record each of them."""
    if len(vectors) == 1:
        return vectors[0]
    values = tf.concat([each.values for each in vectors], axis=0)
    variables = [variable for each in vectors for variable in each.variables]
    return _Recorded(variables, values, values.shape)


def assign(buffer: tf.Variable, values: Any) -> None:
    """`buffer.assign`, in a third of the time."""
    tf.raw_ops.AssignVariableOp(resource=buffer.handle, value=values)


def make_buffers(
    strategy: tf.distribute.Strategy,
    kinds: Iterable[tuple[tf.DType, Any]],
    summed: bool = True,
) -> list[tf.Variable]:
    """Variables for values of a training step that may be traced right now.

    They are made out of sight of the trace: TensorFlow traces a function twice if
    variables are made on the way.

    Args:
        strategy: The distribution strategy of the model.
        kinds: Type and shape of the values of each, the shape None if it changes.
        summed: Whether the values of replicas add up, as gradients do.
    """
    addition = tf.VariableAggregation.SUM
    first = tf.VariableAggregation.ONLY_FIRST_REPLICA

    def make() -> list[tf.Variable]:
        with strategy.scope():
            return [
                tf.Variable(
                    np.zeros([0] if shape is None else shape, dtype.as_numpy_dtype),
                    dtype=dtype,
                    trainable=False,
                    shape=tf.TensorShape(shape),
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=addition if summed else first,
                    experimental_enable_variable_lifting=False,
                )
                for dtype, shape in kinds
            ]

    if not tf.distribute.has_strategy():
        with tf.init_scope():
            return make()
    # One replica cannot make the variable of all: a thread beside them can.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def rows_of_replicas(
    strategy: tf.distribute.Strategy, buffer: tf.Variable
) -> np.ndarray:
    """What all replicas left in a buffer, one behind the other."""
    parts = strategy.experimental_local_results(buffer)
    arrays = [np.asarray(part.read_value()) for part in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def newest_value(variable: tf.Variable) -> tf.Tensor:
    """Value of a variable: `read_value()`, in a third of the time where possible."""
    if isinstance(variable, tf.distribute.DistributedValues):
        return variable.read_value()
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


def as_array(values: Any, scale: float | None = None) -> np.ndarray:
    """Values as a read-only array of at least single precision.

    Args:
        values: Tensor or array of floating-point numbers.
        scale: What they are divided by, None for nothing.
    """
    array = np.asarray(values)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    if scale is not None:
        array = array / np.asarray(scale, array.dtype)
    array.flags.writeable = False
    return array
