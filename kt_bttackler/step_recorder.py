"""What the training steps of a model leave behind for the host.

Keras shows callbacks neither gradients nor batches. So the training step itself leaves
them behind: while `model.train_step` is traced (or run eagerly), calls of
`optimizer.apply` are noted, and at the end of the step every gradient is assigned to
a buffer, vectors (biases, scales) to a common one. Nothing is computed in the graph,
which costs some five to fifteen microseconds per buffer and step.

Recording leaves training alone: all operations are appended behind those of the step,
so that random draws, which TensorFlow seeds by position in the graph, stay the same.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import tensorflow as tf

from kt_bttackler.gradient_buffers import (
    GradientBuffers,
    Update,
    assign,
    make_buffers,
    rows_of_replicas,
)
from kt_bttackler.optimizer_building import build_optimizer

KEPT_ROWS = 128  # of a training batch, for the probe
# Keras before 3.7 looks `train_step` up whenever a training function is traced.
_LOOKED_UP_LATE = tuple(map(int, keras.version().split(".")[:2])) < (3, 7)


@dataclass(frozen=True)
class _Step:
    """One run of `train_step` in Python: a trace, or an eager step."""

    graph: Any
    updates: list[Update] = field(default_factory=list)


class StepRecorder:
    """What the training steps of one model leave behind for the host.

    One recorder per model, found with `of` and alive as long as the model: the traced
    training function writes to its variables in every later `fit`, too.

    Attributes:
        failure: Why something could not be recorded, None if all went well.
    """

    _OF_MODELS: ClassVar[weakref.WeakKeyDictionary[keras.Model, StepRecorder]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.failure: str | None = None
        self._strategy = strategy
        self._wanted: set[str] = set()
        self._function: Callable[[], Any] = lambda: None
        self._gradients = GradientBuffers(strategy)
        self._batch: Any = None  # one variable or None per leaf of the training data
        counters = make_buffers(strategy, [(tf.int64, ())] * 3)
        self._steps, self._updates, self._rows = counters
        # Replicas run `train_step` in threads of their own, at the same time.
        self._open_steps: dict[int, _Step] = {}
        self._patches = contextlib.ExitStack()

    @classmethod
    def of(cls, model: keras.Model) -> StepRecorder:
        """The recorder of a model, made when it is first asked for."""
        if model not in cls._OF_MODELS:
            cls._OF_MODELS[model] = cls(model.distribute_strategy)
        return cls._OF_MODELS[model]

    def record(self, model: keras.Model, wanted: Literal["gradients", "batch"]) -> None:
        """Let the training function of a model record something from now on.

        Numbers of steps and rows are always recorded.

        Args:
            model: The model of this recorder, its training function made or not.
            wanted: What to record besides.
        """
        function = self._function()
        known = function is not None and function is model.train_function
        if known and wanted in self._wanted:
            return
        self._wanted = {*self._wanted, wanted} if known else {wanted}
        # Only while the function is made, which looks `train_step` up and keeps it.
        step = self._recording(model)
        with replaced(model, "train_step", step):
            model.train_function = None
            # Costs nothing before the first step: functions are traced when called.
            model.make_train_function()
        if _LOOKED_UP_LATE:
            model.train_function = _with_step(model, step, model.train_function)
        self._function = weakref.ref(model.train_function)

    def steps(self) -> int:
        """Training steps run so far, those of all replicas added up."""
        return int(self._steps.numpy())

    def updates(self) -> int:
        """Calls of `optimizer.apply` that left gradients so far."""
        return int(self._updates.numpy())

    def rows(self) -> int | None:
        """Rows of the newest batch, those of all replicas added up."""
        return int(self._rows.numpy()) or None

    def gradients(self, variables: Iterable[keras.Variable]) -> list[Any]:
        """Newest gradients of variables as arrays, unscaled; None if never had any."""
        return self._gradients.read(variables)

    def batch(self) -> Any:
        """Newest batch as arrays in the structure of the training data, or None."""
        if self._batch is None:
            return None
        rows = self.rows()

        def newest(leaf: tf.Variable | None) -> np.ndarray | None:
            if leaf is None:
                return None
            return rows_of_replicas(self._strategy, leaf)[:rows]

        return keras.tree.map_structure(newest, self._batch)

    def _recording(self, model: keras.Model) -> Callable[..., Any]:
        """A `train_step` that runs the model's own one and records behind it."""
        original = model.train_step

        @functools.wraps(original)
        def train_step(data: Any) -> Any:
            if not tf.executing_eagerly():
                self._safely(build_optimizer, model)
            step = _Step(tf.compat.v1.get_default_graph())
            with self._noting_updates(model, step):
                logs = original(data)
            for update in step.updates:
                self._safely(self._record_gradients, update, model.jit_compile)
            self._safely(self._record_rows, data)
            if "batch" in self._wanted:
                self._safely(self._record_batch, data, model.jit_compile)
            return logs

        return train_step

    @contextlib.contextmanager
    def _noting_updates(self, model: keras.Model, step: _Step) -> Iterator[None]:
        if "gradients" not in self._wanted:
            yield
            return
        thread = threading.get_ident()
        if not self._open_steps:
            for optimizer in self._safely(_optimizers, model) or ():
                apply = self._noting_apply(optimizer)
                self._patches.enter_context(replaced(optimizer, "apply", apply))
        self._open_steps[thread] = step
        try:
            yield
        finally:
            del self._open_steps[thread]
            if not self._open_steps:
                self._patches.close()

    def _noting_apply(self, optimizer: keras.Optimizer) -> Callable[..., Any]:
        original = optimizer.apply

        @functools.wraps(original)
        def apply(grads: Any, trainable_variables: Any = None, **others: Any) -> Any:
            gradients = list(grads)  # both may be iterators, to be read once
            if trainable_variables is None:
                # Private: what the optimizer was built with.
                variables = list(getattr(optimizer, "_trainable_variables", ()))
            else:
                variables = trainable_variables = list(trainable_variables)
            # The scale of this step: `apply` may change it.
            scale = self._safely(loss_scale, optimizer)
            update = Update(optimizer, gradients, variables, scale)
            result = original(gradients, trainable_variables, **others)
            step = self._open_steps.get(threading.get_ident())
            if step is not None and tf.compat.v1.get_default_graph() is step.graph:
                step.updates.append(update)
            elif step is not None:  # Inside tf.cond or a loop: now or never.
                self._safely(self._record_gradients, update, True)
            return result

        return apply

    def _record_gradients(self, update: Update, fixed_shapes: bool) -> None:
        self._gradients.record(update, fixed_shapes)
        self._updates.assign_add(1, read_value=False)

    def _record_rows(self, data: Any) -> None:
        assign(self._rows, row_count(data))
        self._steps.assign_add(1, read_value=False)

    def _record_batch(self, data: Any, fixed_shapes: bool) -> None:
        if fixed_shapes:
            if self._strategy.num_replicas_in_sync > 1:
                return  # rows and padding of several replicas would mix
            data = keras.tree.map_structure(_padded, data)

        leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
        buffers = self._batch
        if buffers is None:
            made = make_buffers(
                self._strategy,
                ((leaf.dtype, leaf.shape if fixed_shapes else None) for leaf in leaves),
            )
            rest = iter(made)
            buffers = keras.tree.map_structure(
                lambda leaf: None if leaf is None else next(rest), data
            )
        flat = zip(keras.tree.flatten(buffers), keras.tree.flatten(data), strict=True)
        for buffer, leaf in flat:
            if leaf is not None:
                assign(buffer, leaf)
        # Last: ragged and sparse tensors fail above, and leave no batch of zeros.
        self._batch = buffers

    def _safely(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Do something; a failure must not reach the training and gives None."""
        try:
            return action(*arguments)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
            return None


def _with_step(
    model: keras.Model, step: Callable[..., Any], function: Callable[..., Any]
) -> Callable[..., Any]:
    """A training function that finds `step` where the model's `train_step` is."""

    @functools.wraps(function)
    def train_function(iterator: Any) -> Any:
        with replaced(model, "train_step", step):
            return function(iterator)

    return train_function


def _optimizers(model: keras.Model) -> list[keras.Optimizer]:
    """All optimizers that are attributes of a model, alone or in lists and dicts."""
    values = [model.optimizer]
    for value in vars(model).values():
        if isinstance(value, dict):
            values += value.values()
        else:
            values += value if isinstance(value, list | tuple) else [value]
    found = {id(each): each for each in values if isinstance(each, keras.Optimizer)}
    for optimizer in list(found.values()):
        # Wrapped by the outer one, whose gradients still carry the loss scale.
        found.pop(id(getattr(optimizer, "inner_optimizer", None)), None)
    return list(found.values())


def _padded(leaf: tf.Tensor | None) -> tf.Tensor | None:
    """The first rows of a tensor, with zeros behind them up to a fixed number."""
    if leaf is None:
        return None
    leaf = leaf[:KEPT_ROWS]
    missing = KEPT_ROWS - tf.shape(leaf)[0]
    padded = tf.pad(leaf, [[0, missing]] + [[0, 0]] * (leaf.shape.rank - 1))
    return tf.ensure_shape(padded, [KEPT_ROWS, *leaf.shape[1:]])


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace a method on one instance for a while.

    The attribute is set past Keras's tracking, and deleted or put back afterwards.

    Args:
        owner: Model, layer or optimizer.
        name: Name of the method.
        value: What to call in its place.
    """
    previous = vars(owner).get(name)
    object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        if previous is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, previous)


def row_count(data: Any) -> Any:
    """Rows of a batch (int64 scalar): the first extent of its first tensor."""
    first = next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)
    if isinstance(first, tf.RaggedTensor):
        return first.nrows(tf.int64)
    if isinstance(first, tf.SparseTensor):
        return first.dense_shape[0]
    return tf.reduce_prod(tf.shape(first, tf.int64)[:1])  # 1 for a scalar


def loss_scale(optimizer: keras.Optimizer | None) -> Any:
    """Factor on the loss in this step (number or tensor), None if there is none."""
    scale = 1.0 if optimizer is None else optimizer.scale_loss(1.0)
    return None if isinstance(scale, float | int) and scale == 1 else scale
