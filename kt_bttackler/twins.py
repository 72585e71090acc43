"""Looking at a tensor of a graph without changing how the graph computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow as tf


class Twins:
    """Gives a recording its own last operations behind a gradient.

    One instance per graph and update: twins are made once and shared.

    TensorFlow merges chains of additions and multiplications where nobody else looks
    at what is in between, such as a gradient and its product with the learning rate,
    and the merged chain rounds differently. So a gradient that is a sum or product is
    not looked at: it is added or multiplied once more. The twin hangs on an operation
    with a side effect, which keeps TensorFlow from merging the two again.
    """

    _KINDS: ClassVar[dict[str, Callable[[list[Any]], Any]]] = {
        "Add": lambda inputs: tf.raw_ops.Add(x=inputs[0], y=inputs[1]),
        "AddV2": lambda inputs: tf.raw_ops.AddV2(x=inputs[0], y=inputs[1]),
        "AddN": lambda inputs: tf.raw_ops.AddN(inputs=inputs),
        "Mul": lambda inputs: tf.raw_ops.Mul(x=inputs[0], y=inputs[1]),
        "Sub": lambda inputs: tf.raw_ops.Sub(x=inputs[0], y=inputs[1]),
    }

    def __init__(self) -> None:
        self._graph = tf.compat.v1.get_default_graph()
        self._anchor: Any = None
        self._made: dict[Any, Any] = {}

    def of(self, tensor: Any) -> Any:
        """The same numbers, from operations of their own where that matters.

        Args:
            tensor: A gradient. Tensors of eager steps or of other graphs come back
                as they are.
        """
        if not tf.is_symbolic_tensor(tensor) or tensor.graph is not self._graph:
            return tensor
        operation = tensor.op
        if operation.type == "Identity":
            return self.of(operation.inputs[0])
        if operation.type not in self._KINDS:
            return tensor
        if operation not in self._made:
            inputs = [self.of(each) for each in operation.inputs]
            if self._anchor is None:
                self._anchor = tf.timestamp()
            with tf.control_dependencies([self._anchor]):
                self._made[operation] = self._KINDS[operation.type](inputs)
        return self._made[operation]
