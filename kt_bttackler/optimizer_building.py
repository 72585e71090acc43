"""Building an optimizer before the training step is traced, and not on the way.

Keras makes the variables of an optimizer (the momenta of Adam) in the first training
step, and TensorFlow traces a function a second time if it made variables. The first
trace is thrown away: that is half of the time until the first step is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

_BUILDING_APPLIES = (
    keras.Optimizer.apply,
    keras.optimizers.LossScaleOptimizer.apply,
)


def build_optimizer(model: keras.Model) -> None:
    """Build the optimizer of a model as the step that is being traced would.

    Only where it is known which variables that would be: in models that are a graph of
    layers, with the training step and the optimizers of Keras, on one device. Elsewhere
    nothing happens, and TensorFlow traces twice as ever.

    Args:
        model: A model whose `train_step` is called next.
    """
    if not _is_known(model) or model.optimizer.built:
        return
    with tf.init_scope(), tf.variable_creator_scope(_beside_the_trace):
        model.optimizer.build(model.trainable_variables)


def _is_known(model: keras.Model) -> bool:
    """Whether the step builds its optimizer for exactly the trainable variables."""
    if tf.distribute.has_strategy() or not isinstance(model.optimizer, keras.Optimizer):
        return False
    kind = type(model.optimizer)
    replaced = {*vars(model), *vars(model.optimizer)}
    return (
        # Only a graph of layers has inputs: all its variables are there.
        bool(getattr(model, "inputs", None))
        and type(model).train_step is keras.Model.train_step
        and kind.apply in _BUILDING_APPLIES
        and kind.apply_gradients is keras.Optimizer.apply_gradients
        and replaced.isdisjoint({"train_step", "apply", "apply_gradients"})
    )


def _beside_the_trace(next_creator: Callable[..., Any], **arguments: Any) -> Any:
    return next_creator(**arguments | {"experimental_enable_variable_lifting": False})
