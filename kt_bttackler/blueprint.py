"""What can be told of a model before it trains: losses, dropout, linear stacks.

Nothing here runs the model. What is unknown (losses of the user's own, subclassed
models) is left out, so that nobody judges by a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import keras

from kt_bttackler.graph import ModelGraph, named_layers
from kt_bttackler.labels import Loss

_ADAPTIVE = (
    keras.optimizers.Adadelta,
    keras.optimizers.Adafactor,
    keras.optimizers.Adagrad,
    keras.optimizers.Adam,
    keras.optimizers.Adamax,
    keras.optimizers.Ftrl,
    keras.optimizers.Lamb,
    keras.optimizers.Lion,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
)
# Reductions of a loss that divide by the number of rows and positions.
_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
_DROPOUTS = (
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


def only_loss(model: keras.Model) -> Loss:
    """The loss of a model with one; its name is None where it is not that simple.

    Several losses, loss weights, class names unknown to Keras and training steps of
    the user's own leave it unknown.
    """
    compiled = getattr(model, "loss", None)
    if isinstance(compiled, list | tuple | Mapping):
        # Not by `keras.tree`: for Keras 3.5 TensorFlow's wrapper of a dict is a leaf.
        parts = [*compiled.values()] if isinstance(compiled, Mapping) else [*compiled]
        compiled = parts[0] if len(parts) == 1 else None
    own_step = type(model).train_step is not keras.Model.train_step
    own_loss = type(model).compute_loss is not keras.Model.compute_loss
    if own_step or own_loss or compiled is None or _is_weighted(model):
        return Loss(None)
    try:
        loss = keras.losses.get(compiled)
    except ValueError:
        return Loss(None)
    if not isinstance(loss, keras.losses.Loss):
        name = getattr(loss, "__name__", "")
        known = getattr(keras.losses, name, None) is loss
        return Loss(name if known else None)
    kind = type(loss)
    if getattr(keras.losses, kind.__name__, None) is not kind:
        return Loss(None)
    config = loss.get_config()
    mean = config.get("reduction") in _MEANS and config.get("axis", -1) == -1
    return Loss(
        name=_snake_case(kind.__name__),
        from_logits=bool(config.get("from_logits", False)),
        label_smoothing=float(config.get("label_smoothing", 0.0)),
        # Keras does not tell it of an object.
        delta=math.nan if kind is keras.losses.Huber else 1.0,
        mean=mean and config.get("ignore_class") is None,
    )


def is_built(model: keras.Model) -> bool:
    """Whether all variables are there: then a call makes none, nor draws their values.

    A layer that the model never calls makes it look unbuilt.
    """
    return all(layer.built for _, layer in named_layers(model))


def adds_losses(model: keras.Model) -> bool:
    """Whether the training loss has parts besides the compiled loss and penalties.

    These are activity regularisers and `add_loss`, seen once the model was called.
    """
    variables = model.trainable_variables
    penalties = sum(getattr(v, "regularizer", None) is not None for v in variables)
    return len(model.losses) > penalties


def masks(model: keras.Model) -> bool:
    """Whether some layer masks positions, which then do not count in the loss."""
    return any(
        isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False)
        for _, layer in named_layers(model)
    )


def structure(model: keras.Model, graph: ModelGraph) -> dict[str, Any]:
    """Header fields that describe layers and optimizer."""
    layers = dict(named_layers(model))
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return {
        "dropout_rates": tuple(
            float(layer.rate)
            for layer in layers.values()
            if isinstance(layer, _DROPOUTS)
        ),
        "linear_pairs": tuple(
            (graph.layers[u], graph.layers[v])
            for u, v in graph.edges
            if _feeds_directly(layers.get(graph.layers[u]), layers.get(graph.layers[v]))
        ),
        "adaptive_optimizer": isinstance(optimizer, _ADAPTIVE),
        "half_precision": any(
            getattr(layer, "compute_dtype", None) == "float16"
            for layer in layers.values()
        ),
        "averaging_steps": max(map(_averaging_steps, layers.values()), default=0.0),
    }


def _feeds_directly(first: Any, second: Any) -> bool:
    """Whether two dense layers without activation meet with nothing in between."""
    if not (_is_linear(first) and _is_linear(second)):
        return False
    try:
        return second.input is first.output
    except (AttributeError, ValueError):  # shared, or never called symbolically
        return False


def _averaging_steps(layer: Any) -> float:
    """Steps over which a layer averages what it normalises a validation by."""
    if not isinstance(layer, keras.layers.BatchNormalization):
        return 0.0
    return 1 / max(1e-9, 1 - float(layer.momentum))


def _is_linear(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Dense) and (
        layer.activation is keras.activations.linear
    )


def _is_weighted(model: keras.Model) -> bool:
    """Whether the loss is multiplied by a weight, or that is unknown."""
    # Private: the public `get_compile_config` serialises metrics and optimizer, too,
    # which warns of lambdas and fails for schedules without a `get_config`.
    config = getattr(model, "_compile_config", None)
    arguments = getattr(config, "config", {"loss_weights": "unknown"})
    return arguments.get("loss_weights") is not None


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
