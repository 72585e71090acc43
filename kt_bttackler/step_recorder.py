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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import tensorflow as tf

from kt_bttackler.optimizer_building import build_optimizer
from kt_bttackler.twins import Twins

KEPT_ROWS = 128  # of a training batch, for the probe


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
class _Update:
    """One call of `optimizer.apply`."""

    optimizer: keras.Optimizer
    gradients: list[Any]
    variables: list[Any]
    scale: Any  # number or tensor, None for 1


@dataclass(frozen=True)
class _Step:
    """One run of `train_step` in Python: a trace, or an eager step."""

    graph: Any
    updates: list[_Update] = field(default_factory=list)


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
        self._slots: dict[int, _Slot] = {}
        self._gradients: dict[tuple[int, ...], tf.Variable] = {}
        self._scales: weakref.WeakKeyDictionary[keras.Optimizer, tf.Variable] = (
            weakref.WeakKeyDictionary()
        )
        self._batch: Any = None  # one variable or None per leaf of the training data
        counters = self._buffers([(tf.int64, ())] * 3)
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
        with replaced(model, "train_step", self._recording(model)):
            model.train_function = None
            # Costs nothing before the first step: functions are traced when called.
            model.make_train_function()
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
        read: dict[int, np.ndarray] = {}  # buffers and scales that several share
        newest = []
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
            return as_array(self._rows_of_replicas(slot.buffer), scale)
        return as_array(newest_value(slot.buffer), scale)

    def batch(self) -> Any:
        """Newest batch as arrays in the structure of the training data, or None."""
        if self._batch is None:
            return None
        rows = self.rows()
        return keras.tree.map_structure(
            lambda leaf: None if leaf is None else self._rows_of_replicas(leaf)[:rows],
            self._batch,
        )

    def _rows_of_replicas(self, buffer: tf.Variable) -> np.ndarray:
        parts = self._strategy.experimental_local_results(buffer)
        arrays = [np.asarray(part.read_value()) for part in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

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
                self._safely(self._record_update, update, model.jit_compile)
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
            update = _Update(optimizer, gradients, variables, scale)
            result = original(gradients, trainable_variables, **others)
            step = self._open_steps.get(threading.get_ident())
            if step is not None and tf.compat.v1.get_default_graph() is step.graph:
                step.updates.append(update)
            elif step is not None:  # Inside tf.cond or a loop: now or never.
                self._safely(self._record_update, update, True)
            return result

        return apply

    def _record_update(self, update: _Update, fixed_shapes: bool) -> None:
        """Assign the gradients of an update to their buffers.

        Args:
            update: The update to record.
            fixed_shapes: Whether XLA may compile this, which wants fixed shapes: the
                rows of a sparse gradient have none.
        """
        twins = Twins()
        scale = self._record_scale(update)
        single, vectors = [], {}
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
        absent = [each for each in recorded if each.key not in self._gradients]
        made = self._buffers((each.values.dtype, each.shape) for each in absent)
        self._gradients |= zip((each.key for each in absent), made, strict=True)
        for each in recorded:
            buffer = self._gradients[each.key]
            start = 0
            for variable in each.variables:
                part = None
                if len(each.variables) > 1:
                    part = slice(start, start + variable.shape[0])
                    start = part.stop
                # Anew each time: a model compiled again has another optimizer.
                self._slots[id(variable)] = _Slot(variable, buffer, part, scale)
            _assign(buffer, each.values)
        self._updates.assign_add(1, read_value=False)

    def _record_scale(self, update: _Update) -> tf.Variable | None:
        """The variable with the loss scale of an update, None if it has no scale."""
        if update.scale is None:
            return None
        value = tf.cast(update.scale, tf.float32)
        if update.optimizer not in self._scales:
            (scale,) = self._buffers([(tf.float32, ())], summed=False)
            self._scales[update.optimizer] = scale
        _assign(self._scales[update.optimizer], value)
        return self._scales[update.optimizer]

    def _record_rows(self, data: Any) -> None:
        _assign(self._rows, row_count(data))
        self._steps.assign_add(1, read_value=False)

    def _record_batch(self, data: Any, fixed_shapes: bool) -> None:
        if fixed_shapes:
            if self._strategy.num_replicas_in_sync > 1:
                return  # rows and padding of several replicas would mix
            data = keras.tree.map_structure(_padded, data)

        leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
        buffers = self._batch
        if buffers is None:
            made = self._buffers(
                (leaf.dtype, leaf.shape if fixed_shapes else None) for leaf in leaves
            )
            rest = iter(made)
            buffers = keras.tree.map_structure(
                lambda leaf: None if leaf is None else next(rest), data
            )
        flat = zip(keras.tree.flatten(buffers), keras.tree.flatten(data), strict=True)
        for buffer, leaf in flat:
            if leaf is not None:
                _assign(buffer, leaf)
        # Last: ragged and sparse tensors fail above, and leave no batch of zeros.
        self._batch = buffers

    def _buffers(
        self, kinds: Iterable[tuple[tf.DType, Any]], summed: bool = True
    ) -> list[tf.Variable]:
        """Variables for values of a training step that may be traced right now.

        They are made out of sight of the trace: TensorFlow traces a function twice if
        variables are made on the way.

        Args:
            kinds: Type and shape of the values of each, the shape None if it changes.
            summed: Whether the values of replicas add up, as gradients do.
        """
        addition = tf.VariableAggregation.SUM
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA

        def make() -> list[tf.Variable]:
            with self._strategy.scope():
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

    def _safely(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Do something; a failure must not reach the training and gives None."""
        try:
            return action(*arguments)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
            return None


def _together(vectors: list[_Recorded]) -> _Recorded:
    """Vectors of one type as one, which costs less than to record each of them."""
    if len(vectors) == 1:
        return vectors[0]
    values = tf.concat([each.values for each in vectors], axis=0)
    variables = [variable for each in vectors for variable in each.variables]
    return _Recorded(variables, values, values.shape)


def _assign(buffer: tf.Variable, values: Any) -> None:
    """`buffer.assign`, in a third of the time."""
    tf.raw_ops.AssignVariableOp(resource=buffer.handle, value=values)


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


def newest_value(variable: tf.Variable) -> tf.Tensor:
    """Value of a variable: `read_value()`, in a third of the time where possible."""
    if isinstance(variable, tf.distribute.DistributedValues):
        return variable.read_value()
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


def loss_scale(optimizer: keras.Optimizer | None) -> Any:
    """Factor on the loss in this step (number or tensor), None if there is none."""
    scale = 1.0 if optimizer is None else optimizer.scale_loss(1.0)
    return None if isinstance(scale, float | int) and scale == 1 else scale


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
