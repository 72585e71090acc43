"""Gradient taps: the gradients of real training steps, or of a probe batch.

`TrainingTap` reads what the training step leaves behind (see `step_recorder`).
`ProbeTap` differentiates the loss of one fixed batch instead, for models whose training
step cannot be tapped.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kt_bttackler.gradient_buffers import as_array
from kt_bttackler.graph import named_layers
from kt_bttackler.step_recorder import StepRecorder, loss_scale, row_count

Gradients = list[np.ndarray | None]


class GradientTap(ABC):
    """Source of gradients for one training."""

    @abstractmethod
    def install(self, model: keras.Model) -> None:
        """Prepare a model whose training begins. Calling it again does no harm."""

    @abstractmethod
    def gradients(self) -> Gradients:
        """Newest gradients, in the order of `model.trainable_variables`.

        Returns:
            One read-only array per variable: the raw gradient of the loss, before
            clipping, without the loss scale of mixed precision, summed over replicas.
            Sparse gradients (embeddings) are their `values` of shape [rows, units].
            None where no gradient was observed.
        """

    @abstractmethod
    def batch_size(self) -> int | None:
        """Rows of the batch that the gradients belong to, None if unknown."""

    @abstractmethod
    def observed(self) -> str | None:
        """None if gradients arrive, else one sentence that says why not."""

    @abstractmethod
    def restore(self) -> None:
        """Let go of the model. Calling it again does no harm."""


class TrainingTap(GradientTap):
    """Gradients of the last training step that was run.

    With `steps_per_execution` that is the last inner step, with gradient accumulation
    the gradient of the micro-batch.

    The tap lives in the training function of the model, as long as that function: a
    second `fit` finds it there, without a new trace. If the model was trained before
    without a tap, its next step is traced anew.
    """

    def __init__(self) -> None:
        self._model: keras.Model | None = None
        self._recorder: StepRecorder | None = None
        # To ask a model of many layers for its variables takes a millisecond.
        self._variables: list[keras.Variable] = []
        self._steps = 0
        self._updates = 0

    def install(self, model: keras.Model) -> None:
        """Tap the training function; call it in `on_train_begin`.

        Calling it again in `on_epoch_begin` follows a training function that was
        rebuilt in between.
        """
        recorder = StepRecorder.of(model)
        recorder.record(model, "gradients")
        self._variables = []
        if self._model is not model:
            self._model, self._recorder = model, recorder
            self._steps, self._updates = recorder.steps(), recorder.updates()

    def gradients(self) -> Gradients:
        """See `GradientTap.gradients`."""
        if self._model is None or self._recorder is None:
            return []
        if self._recorder.updates() == self._updates:
            return [None] * len(self._model.trainable_variables)
        self._variables = self._variables or self._model.trainable_variables
        return self._recorder.gradients(self._variables)

    def batch_size(self) -> int | None:
        """See `GradientTap.batch_size`."""
        if self._recorder is None or self._recorder.steps() == self._steps:
            return None
        return self._recorder.rows()

    def observed(self) -> str | None:
        """See `GradientTap.observed`."""
        if self._model is None or self._recorder is None:
            return "no gradients observed: the tap is not installed"
        if self._recorder.updates() > self._updates:
            return None
        if self._recorder.failure:
            return f"no gradients observed: {self._recorder.failure}"
        if self._recorder.steps() == self._steps:
            return (
                "no gradients observed: no step has finished that calls "
                "`model.train_step`"
            )
        if not self._model.trainable_variables:
            return "no gradients observed: the model has no trainable variables"
        return (
            "no gradients observed: the model's `train_step` updates its variables "
            "without the `apply` of an optimizer that is an attribute of the model"
        )

    def restore(self) -> None:
        """See `GradientTap.restore`."""
        self._model = self._recorder = None
        self._variables = []


class ProbeTap(GradientTap):
    """Gradients of the model's loss on one fixed batch, with `training=False`.

    The loss is `model.compute_loss`, as in the default `train_step`, computed eagerly
    whenever gradients are asked for. Class weights are not part of it.
    """

    def __init__(self, x: Any, y: Any = None, sample_weight: Any = None) -> None:
        """Keep the probe batch.

        Args:
            x: Inputs as the model takes them, all with the same number of rows.
            y: Targets as `model.fit` takes them.
            sample_weight: Weights as `model.fit` takes them.
        """
        self._x, self._y = as_tensors(x), as_tensors(y)
        self._sample_weight = as_tensors(sample_weight)
        self._model: keras.Model | None = None
        self._failure: str | None = None

    def install(self, model: keras.Model) -> None:
        """See `GradientTap.install`."""
        self._model = model

    def gradients(self) -> Gradients:
        """See `GradientTap.gradients`."""
        if self._model is None:
            return []
        try:
            return self._differentiate(self._model)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}".splitlines()[0]
            return [None] * len(self._model.trainable_variables)

    def _differentiate(self, model: keras.Model) -> Gradients:
        scale = loss_scale(model.optimizer)
        with untouched_state(model), tf.GradientTape() as tape:
            loss = model.compute_loss(
                x=self._x,
                y=self._y,
                y_pred=model(self._x, training=False),
                sample_weight=self._sample_weight,
                training=False,
            )
            # Small gradients would vanish in half precision as unscaled ones.
            scaled = loss if scale is None else loss * scale
        variables = model.trainable_variables
        found = tape.gradient(scaled, [variable.value for variable in variables])
        factor = None if scale is None else float(scale)
        self._failure = None
        return [
            None if each is None else as_array(getattr(each, "values", each), factor)
            for each in found
        ]

    def batch_size(self) -> int | None:
        """See `GradientTap.batch_size`."""
        return int(row_count(self._x))

    def observed(self) -> str | None:
        """See `GradientTap.observed`."""
        if self._model is None:
            return "no gradients observed: the tap is not installed"
        if self._failure:
            return f"no gradients observed: the probe batch fails with {self._failure}"
        return None

    def restore(self) -> None:
        """See `GradientTap.restore`."""
        self._model = None


@contextlib.contextmanager
def untouched_state(model: keras.Model) -> Iterator[None]:
    """Put back whatever a forward pass changes besides its outputs.

    That is moving averages, states of stateful RNNs, seeds and metrics: every
    variable of the model and its layers that is not trained.

    Args:
        model: A built model.
    """
    state = {id(each): each for each in model.non_trainable_variables}
    state.update((id(each), each) for each in model.metrics_variables)
    trained = {id(each) for each in model.trainable_variables}
    # Keras does not count the states of RNNs, nor bare TensorFlow variables.
    for _, layer in named_layers(model):
        for value in vars(layer).values():
            for each in value if isinstance(value, list | tuple) else [value]:
                # No matter of the class: in older Keras it is not `keras.Variable`.
                is_variable = hasattr(each, "assign") and hasattr(each, "shape")
                if is_variable and id(each) not in trained:
                    state[id(each)] = each
    # Reading does not copy: TensorFlow copies a value when it is about to change.
    before = [(each, tf.convert_to_tensor(each)) for each in state.values()]
    try:
        yield
    finally:
        for variable, value in before:
            if not np.array_equal(variable.numpy(), value.numpy()):
                variable.assign(value)


def as_tensors(data: Any) -> Any:
    """Arrays in a nested structure as tensors, everything else as it is."""
    return keras.tree.map_structure(
        lambda leaf: (
            tf.convert_to_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf
        ),
        data,
    )
