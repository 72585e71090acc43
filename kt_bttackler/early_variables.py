"""Variables that are made while a function is traced, but not as part of it.

TensorFlow traces a function once more if variables were made on the way. Keras makes
those of an optimizer (the momenta of Adam) in the first training step, and so traces
every training twice: half of the time until the first step is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf


@contextlib.contextmanager
def early_variables() -> Iterator[None]:
    """Make variables outside the graph that is being traced.

    They have the same values, from the same initializers, and belong to the same
    owner. A variable whose initial value needs the graph is made as it would have been,
    and so are those of distributed training.
    """
    if tf.executing_eagerly() or tf.distribute.has_strategy():
        yield
    else:
        with tf.variable_creator_scope(_make_early):
            yield


def _make_early(next_creator: Callable[..., Any], **arguments: Any) -> Any:
    if callable(arguments.get("initial_value")):
        outside = {**arguments, "experimental_enable_variable_lifting": False}
        with contextlib.suppress(Exception), tf.init_scope():
            return next_creator(**outside)
    return next_creator(**arguments)
