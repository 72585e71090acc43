"""What a Keras model is made of: its variables, its layers, the data flow between.

The gradient indicators compare *adjacent* layers (BTTackler, KDD'24, section 4.2),
so they need to know which layer feeds which. Here a model becomes a small
description: every trainable variable with its owning layer, and an edge from one
tracked layer to another wherever data can flow without meeting a third.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_

import keras

# Variables of rank 2 and more that are no kernels: biases of `EinsumDense`, scales of
# normalisations over several axes, slopes of `PReLU`, tables, positions, class tokens.
_NOT_A_KERNEL = re.compile(
    r"bias|gamma|beta|alpha|scale|embed|position|token|cls", re.IGNORECASE
)

_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


@dataclass(frozen=True)
class VariableInfo:
    """One trainable variable.

    Attributes:
        path: Unique name, the Keras path ("dense/kernel") where that is unique.
        layer: Unique name of the owning (sub)layer ("dense", "block/dense_1").
        size: Number of elements.
        kernel: Whether its gradient takes part in ratios between layers: rank 2 or
            more, and no embedding, bias or scale.
    """

    path: str
    layer: str
    size: int
    kernel: bool


@dataclass(frozen=True)
class ModelGraph:
    """Trainable variables, tracked layers and the edges between these layers.

    Attributes:
        variables: In the order of `model.trainable_variables`.
        layers: Names of the layers that own a kernel, in data-flow order.
        edges: Pairs (u, v) of indices into `layers`, u before v in the data flow,
            with no other tracked layer on the way.
    """

    variables: tuple[VariableInfo, ...]
    layers: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]


def inspect_model(model: keras.Model) -> ModelGraph:
    """Describe the trainable part of a model.

    Functional and sequential models, nested ones included, give their true data flow.
    Inside subclassed models and layers the flow is invisible: their sublayers count
    as consecutive, in the order of their definition. A shared layer is one node, an
    RNN with its cells is one node, the two directions of `Bidirectional` and the
    query, key and value projections of attention are siblings.

    Args:
        model: Any Keras model. One that is not built yet has no variables.

    Returns:
        The description; empty for a model without trainable variables.
    """
    named = named_layers(model)
    owners: dict[int, keras.Layer] = {}
    # Innermost layers come last in `named` and claim their variables first.
    for _, layer in reversed(named):
        for variable in layer.trainable_variables:
            owners.setdefault(id(variable), layer)
    names = {id(layer): name for name, layer in named}
    variables = []
    tracked = set()
    paths = _UniqueNames()
    for variable in model.trainable_variables:
        owner = owners[id(variable)]
        kernel = _is_kernel(variable, owner)
        if kernel:
            tracked.add(id(owner))
        variables.append(
            VariableInfo(
                path=paths.add(variable.path),
                layer=names[id(owner)],
                size=math.prod(variable.shape),
                kernel=kernel,
            )
        )
    flow = _Flow(tracked)
    try:
        flow.through(model, [0])
    except Exception:  # An odd model must not end the training it is only watched in.
        flow = _Flow(tracked)
        incoming = 0
        for _, layer in named:
            if id(layer) in tracked:
                incoming = flow.node(layer, incoming)
    # Layers with kernels that the data flow does not meet are nodes without edges.
    for _, layer in named:
        if id(layer) in tracked:
            flow.node(layer)
    return ModelGraph(
        variables=tuple(variables),
        layers=tuple(names[key] for key in flow.nodes),
        edges=tuple(flow.edges()),
    )


def named_layers(model: keras.Layer) -> list[tuple[str, keras.Layer]]:
    """All layers of a model with unique names, outer before inner.

    Args:
        model: Any Keras model or layer.

    Returns:
        Pairs of name and layer in definition order, the model itself first. Nested
        layers are named "outer/inner". RNNs are not entered: they count as a whole.
    """
    names = _UniqueNames()
    found = [(names.add(model.name), model)]
    seen = {id(model)}
    stack = [("", layer) for layer in reversed(sublayers(model))]
    while stack:
        prefix, layer = stack.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        name = names.add(prefix + layer.name)
        found.append((name, layer))
        if not isinstance(layer, keras.layers.RNN):
            inner = reversed(sublayers(layer))
            stack.extend((f"{name}/", sublayer) for sublayer in inner)
    return found


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers directly inside a layer, in definition order."""
    # `Model.layers` is public, but plain layers offer no public way to their sublayers.
    return list(layer._flatten_layers(include_self=False, recursive=False))


class _UniqueNames:
    """Hands out names, numbering those asked for again."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def add(self, name: str) -> str:
        unique, count = name, 0
        while unique in self._given:
            count += 1
            unique = f"{name}_{count}"
        self._given.add(unique)
        return unique


def _is_kernel(variable: keras.Variable, owner: keras.Layer) -> bool:
    return (
        len(variable.shape) >= 2
        and not isinstance(owner, keras.layers.Embedding)
        and not _NOT_A_KERNEL.search(variable.name)
    )


class _Flow:
    """Pushes sets of "nearest tracked layers behind" through a model.

    A set is an int with one bit per node: unions stay cheap in very deep residual
    models, where a layer has hundreds of predecessors.
    """

    def __init__(self, tracked: set[int]) -> None:
        self.nodes: dict[int, int] = {}  # id of the layer -> index
        self._tracked = tracked
        self._into: list[int] = []

    def node(self, layer: keras.Layer, incoming: int = 0) -> int:
        """Enter a tracked layer; return the set that holds it alone."""
        index = self.nodes.setdefault(id(layer), len(self.nodes))
        if index == len(self._into):
            self._into.append(0)
        self._into[index] |= incoming & ~(1 << index)
        return 1 << index

    def edges(self) -> Iterable[tuple[int, int]]:
        for index, incoming in enumerate(self._into):
            bits = bin(incoming)[:1:-1]
            yield from ((u, index) for u, bit in enumerate(bits) if bit == "1")

    def through(self, layer: keras.Operation, incoming: list[int]) -> list[int]:
        """Pass a layer.

        Args:
            layer: Any layer or operation.
            incoming: One set per input tensor.

        Returns:
            One set per output tensor, or a single one that holds for all outputs.
        """
        merged = _union(incoming)
        if isinstance(layer, keras.Sequential):
            return [self.chain(layer.layers, merged)]
        if isinstance(layer, keras.Model) and hasattr(layer, "operations"):
            return self._functional(layer, incoming)
        if isinstance(layer, keras.layers.Bidirectional):
            directions = (layer.forward_layer, layer.backward_layer)
            return [_union(self.chain([each], merged) for each in directions)]
        if isinstance(layer, _ATTENTION):
            return [self._attention(layer, incoming)]
        if id(layer) in self._tracked:
            merged = self.node(layer, merged)
        if isinstance(layer, keras.Layer) and not isinstance(layer, keras.layers.RNN):
            merged = self.chain(sublayers(layer), merged)
        return [merged]

    def chain(self, layers: Iterable[keras.Operation], incoming: int) -> int:
        """Pass layers one after the other."""
        for layer in layers:
            incoming = _union(self.through(layer, [incoming]))
        return incoming

    def _attention(self, layer: keras.Layer, incoming: list[int]) -> int:
        query, value = incoming[0], incoming[min(1, len(incoming) - 1)]
        # A third tensor is the key, or a mask, which no tracked layer has made.
        key = (incoming[2] if len(incoming) > 2 else 0) or value
        sources = {"query": query, "key": key, "gate": query}
        *projections, output = (
            each
            for each in sublayers(layer)
            if isinstance(each, keras.layers.EinsumDense)
        )
        behind = [
            self.chain([each], sources.get(each.name, value)) for each in projections
        ]
        return self.chain([output], _union(behind))

    def _functional(self, model: keras.Model, incoming: list[int]) -> list[int]:
        if len(incoming) != len(model.inputs):
            incoming = [_union(incoming)] * len(model.inputs)
        sets = dict(zip(map(id, model.inputs), incoming, strict=True))
        # Private: the calls of all operations by their distance to the outputs.
        by_depth = model._nodes_by_depth
        for depth in sorted(by_depth, reverse=True):
            for call in by_depth[depth]:
                if call.is_input or all(id(t) in sets for t in call.output_tensors):
                    continue
                sources = [sets.get(id(t), 0) for t in call.input_tensors]
                results = self.through(call.operation, sources)
                if len(results) != len(call.output_tensors):
                    results = [_union(results)] * len(call.output_tensors)
                sets.update(zip(map(id, call.output_tensors), results, strict=True))
        return [sets.get(id(tensor), 0) for tensor in model.outputs]


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)
