from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
from tapping import KERAS

from kt_bttackler import graph
from kt_bttackler.graph import inspect_model, named_layers

layers = keras.layers


def named_edges(model):
    found = inspect_model(model)
    return {(found.layers[u], found.layers[v]) for u, v in found.edges}


def kernels(model):
    return [v.path for v in inspect_model(model).variables if v.kernel]


def test_sequential_layers_are_consecutive():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(3, 3, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.SeparableConv2D(3, 2, name="separable"),
            layers.DepthwiseConv2D(2, name="depthwise"),
            layers.Flatten(),
            layers.Dense(2, name="out"),
        ]
    )
    found = inspect_model(model)
    assert found.layers == ("conv", "separable", "depthwise", "out")
    assert found.edges == ((0, 1), (1, 2), (2, 3))


def test_variables_are_described_in_the_order_of_the_model():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="a"),
            layers.LayerNormalization(name="norm"),
            layers.Dense(2, name="b"),
        ],
        name="net",
    )
    found = inspect_model(model).variables
    assert [(v.path, v.layer, v.size, v.kernel) for v in found] == [
        ("net/a/kernel", "a", 12, True),
        ("net/a/bias", "a", 4, False),
        ("net/norm/gamma", "norm", 4, False),
        ("net/norm/beta", "norm", 4, False),
        ("net/b/kernel", "b", 8, True),
        ("net/b/bias", "b", 2, False),
    ]


def test_residual_connections_give_several_edges():
    x = keras.Input((4,))
    h = layers.Dense(4, name="a")(x)
    h = layers.Add()([h, layers.ReLU()(layers.Dense(4, name="b")(h))])
    model = keras.Model(x, layers.Dense(1, name="c")(h))
    assert named_edges(model) == {("a", "b"), ("a", "c"), ("b", "c")}


def test_branches_merge_and_outputs_part():
    one, two = keras.Input((4,)), keras.Input((4,))
    a, b = layers.Dense(4, name="a")(one), layers.Dense(4, name="b")(two)
    h = layers.Concatenate()([a, keras.ops.relu(b)])
    model = keras.Model(
        [one, two],
        {"x": layers.Dense(1, name="x")(h), "y": layers.Dense(1, name="y")(b)},
    )
    assert named_edges(model) == {("a", "x"), ("b", "x"), ("b", "y")}


def test_data_flow_counts_not_the_order_of_definition():
    last, first = layers.Dense(3, name="last"), layers.Dense(3, name="first")
    x = keras.Input((3,))
    found = inspect_model(keras.Model(x, last(first(x))))
    assert found.layers == ("first", "last")


def test_nested_models_are_flattened_tensor_by_tensor():
    one, two = keras.Input((4,)), keras.Input((4,))
    inner = keras.Model(
        [one, two],
        [layers.Dense(4, name="left")(one), layers.Dense(4, name="right")(two)],
        name="inner",
    )
    x = keras.Input((4,))
    a, b = layers.Dense(4, name="a")(x), layers.Dense(4, name="b")(x)
    left, right = inner([a, b])
    model = keras.Model(
        x, [layers.Dense(1, name="c")(left), layers.Dense(1, name="d")(right)]
    )
    assert named_edges(model) == {
        ("a", "inner/left"),
        ("b", "inner/right"),
        ("inner/left", "c"),
        ("inner/right", "d"),
    }


def test_sequential_inside_functional_inside_sequential():
    x = keras.Input((4,))
    core = keras.Sequential([layers.Dense(4, name="c")], name="core")
    middle = keras.Model(x, layers.Add()([core(x), x]), name="middle")
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, name="a"),
            middle,
            layers.Dense(1, name="z"),
        ]
    )
    assert named_edges(model) == {
        ("a", "middle/core/c"),
        ("a", "z"),
        ("middle/core/c", "z"),
    }


def test_shared_layer_is_one_node_without_an_edge_to_itself():
    shared = layers.Dense(4, name="shared")
    x, y = keras.Input((4,)), keras.Input((4,))
    h = shared(shared(layers.Dense(4, name="a")(x)))
    model = keras.Model([x, y], layers.Dense(1, name="b")(h + shared(y)))
    found = inspect_model(model)
    assert found.layers.count("shared") == 1
    assert named_edges(model) == {("a", "shared"), ("shared", "b")}


def test_attention_projections_are_siblings():
    x, memory = keras.Input((5, 4)), keras.Input((7, 4))
    query = layers.Dense(4, name="from")(x)
    value = layers.Dense(4, name="to")(memory)
    h = layers.MultiHeadAttention(2, 3, name="mha")(query, value)
    model = keras.Model([x, memory], layers.Dense(1, name="out")(h))
    assert named_edges(model) == {
        ("from", "mha/query"),
        ("to", "mha/key"),
        ("to", "mha/value"),
        ("mha/query", "mha/attention_output"),
        ("mha/key", "mha/attention_output"),
        ("mha/value", "mha/attention_output"),
        ("mha/attention_output", "out"),
    }
    assert "mha/query/bias" not in kernels(model)


def test_grouped_query_attention_is_attention():
    x = keras.Input((5, 4))
    h = layers.GroupQueryAttention(2, 2, 1, name="gqa")(x, x)
    found = inspect_model(keras.Model(x, h))
    assert len(found.layers) == 4
    assert {v for _, v in found.edges} == {3}


def test_recurrent_layers_pool_their_kernels():
    model = keras.Sequential(
        [
            keras.Input((5, 3)),
            layers.Bidirectional(
                layers.LSTM(2, return_sequences=True, name="lstm"), name="both"
            ),
            layers.RNN([layers.GRUCell(2), layers.LSTMCell(2)], name="stacked"),
            layers.Dense(1, name="out"),
        ]
    )
    assert named_edges(model) == {
        ("both/forward_lstm", "stacked"),
        ("both/backward_lstm", "stacked"),
        ("stacked", "out"),
    }
    pooled = [v for v in inspect_model(model).variables if v.layer == "stacked"]
    assert sum(v.kernel for v in pooled) == 4


def test_embeddings_positions_and_slopes_are_no_kernels():
    class Tokens(layers.Layer):
        def build(self, shape):
            self.positions = self.add_weight(shape=shape[1:], name="positions")
            self.token = self.add_weight(shape=(1, 1, shape[-1]), name="cls_token")
            self.mix = self.add_weight(shape=(shape[-1], shape[-1]))

        def call(self, x):
            return (x + self.positions + self.token) @ self.mix

    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Embedding(9, 4),
            Tokens(name="tokens"),
            layers.PReLU(),
            layers.LayerNormalization(axis=[1, 2]),
            layers.TimeDistributed(layers.Dense(1, name="dense"), name="each"),
        ]
    )
    found = inspect_model(model)
    assert found.layers == ("tokens", "each/dense")
    assert [v.layer for v in found.variables if v.kernel] == list(found.layers)


def test_frozen_layers_are_passed_through():
    model = keras.Sequential(
        [keras.Input((2,)), *(layers.Dense(2, name=name) for name in "abc")]
    )
    model.get_layer("b").trainable = False
    assert named_edges(model) == {("a", "c")}


class Block(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.steps = [layers.Dense(4, name="up"), layers.Dense(4, name="down")]

    def call(self, x):
        for step in self.steps:
            x = step(x)
        return x


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [Block(name="first"), Block(name="second")]
        self.out = layers.Dense(1, name="out")

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def test_subclassed_models_count_in_the_order_of_definition():
    model = Subclassed()
    assert inspect_model(model) == graph.ModelGraph((), (), ())
    model(np.zeros((1, 4)))
    found = inspect_model(model)
    names = ("first/up", "first/down", "second/up", "second/down", "out")
    assert found.layers == names
    assert found.edges == ((0, 1), (1, 2), (2, 3), (3, 4))


def test_subclassed_layer_inside_a_functional_model():
    x = keras.Input((4,))
    h = layers.Add()([x, Block(name="block")(layers.Dense(4, name="a")(x))])
    model = keras.Model(x, layers.Dense(1, name="z")(h))
    assert named_edges(model) == {
        ("a", "block/up"),
        ("block/up", "block/down"),
        ("block/down", "z"),
    }


def test_layers_outside_the_data_flow_are_nodes_without_edges():
    class Extended(keras.Model):
        def __init__(self):
            x = keras.Input((4,))
            super().__init__(x, layers.Dense(4, name="b")(layers.Dense(4, name="a")(x)))
            self.extra = layers.Dense(2, name="extra")
            self.extra.build((None, 4))

    model = Extended()
    found = inspect_model(model)
    # Keras before 3.7 does not know of it.
    extra = {"extra"} if KERAS >= (3, 7) else set()
    assert set(found.layers) == {"a", "b"} | extra
    assert len(found.edges) == 1


def test_equal_names_are_numbered():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(1, name="d"), layers.Dense(1, name="d")

        def call(self, x):
            return self.two(self.one(x))

    model = Twins()
    model(np.zeros((1, 2)))
    found = inspect_model(model)
    assert found.layers == ("d", "d_1")
    assert len({v.path for v in found.variables}) == 4


def test_odd_models_fall_back_to_the_order_of_definition(monkeypatch):
    def fail(*_):
        raise RuntimeError("odd")

    x = keras.Input((2,))
    model = keras.Model(x, layers.Dense(1, name="b")(layers.Dense(2, name="a")(x)))
    monkeypatch.setattr(graph._Flow, "_functional", fail)
    found = inspect_model(model)
    assert (found.layers, found.edges) == (("a", "b"), ((0, 1),))


@pytest.mark.parametrize("residual", [False, True])
def test_a_thousand_layers_are_no_recursion(residual):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # Keras itself recurses once per layer
    try:
        x = h = keras.Input((1,))
        for _ in range(500):
            inner = layers.Dense(1)(layers.Dense(1)(h))
            h = h + inner if residual else inner
        model = keras.Model(x, h)
    finally:
        sys.setrecursionlimit(limit)
    found = inspect_model(model)
    assert len(found.layers) == 1000
    assert len(found.edges) == (500 * 501 // 2 if residual else 999)


def test_layers_are_named_outer_before_inner():
    model = Subclassed()
    model(np.zeros((1, 4)))
    assert [name for name, _ in named_layers(model)][1:] == [
        "first",
        "first/up",
        "first/down",
        "second",
        "second/up",
        "second/down",
        "out",
    ]


def test_private_names_that_the_graph_relies_on():
    x = keras.Input((2,))
    h = layers.Dense(2)(x)
    model = keras.Model(x, layers.Dense(2)(h))
    calls = [call for depth in model._nodes_by_depth.values() for call in depth]
    assert len(calls) == 3
    assert {call.operation for call in calls} == set(model.operations)
    assert [call.is_input for call in calls].count(True) == 1
    assert any(call.input_tensors[0] is h for call in calls if not call.is_input)
    assert any(call.output_tensors[0] is h for call in calls)
    inside = model._flatten_layers(include_self=False, recursive=False)
    assert inside == model.layers
