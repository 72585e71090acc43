"""Gradient taps: the gradients of real training steps, or of a probe batch.

Keras hands no gradients to callbacks. `TrainingTap` therefore lets the training step
itself leave them behind: while `model.train_step` is traced (or run eagerly), calls of
`optimizer.apply` are noted, and at the end of the step every gradient is assigned to
a buffer of its own. Nothing is computed in the graph, which costs some ten
microseconds per variable and step. `ProbeTap` differentiates the loss of one fixed
batch instead, for models whose training step cannot be tapped.

Measuring leaves training alone: all operations are appended behind those of the step,
so that random draws, which TensorFlow seeds by position in the graph, stay the same.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from kt_bttackler.graph import named_layers

Gradients = list[np.ndarray | None]

KEPT_ROWS = 128  # of a training batch, for the probe


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
        self._steps = 0
        self._updates = 0

    def install(self, model: keras.Model) -> None:
        """Tap the training function; call it in `on_train_begin`.

        Calling it again in `on_epoch_begin` follows a training function that was
        rebuilt in between.
        """
        recorder = StepRecorder.of(model)
        recorder.record(model, "gradients")
        if self._model is not model:
            self._model, self._recorder = model, recorder
            self._steps, self._updates = recorder.steps(), recorder.updates()

    def gradients(self) -> Gradients:
        """See `GradientTap.gradients`."""
        if self._model is None or self._recorder is None:
            return []
        variables = self._model.trainable_variables
        if self._recorder.updates() == self._updates:
            return [None] * len(variables)
        return [self._recorder.gradient(variable) for variable in variables]

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
        scale = _loss_scale(model.optimizer)
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
                is_variable = isinstance(each, keras.Variable | tf.Variable)
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


@dataclass(frozen=True)
class _Slot:
    """The newest gradient of one variable, and the loss scale it contains."""

    variable: Any  # kept alive: slots are found by its id
    buffer: tf.Variable
    scale: tf.Variable | None


@dataclass(frozen=True)
class _Update:
    """One call of `optimizer.apply`."""

    optimizer: keras.Optimizer
    gradients: list[Any]
    variables: list[Any]
    scale: Any


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

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.failure: str | None = None
        self._strategy = strategy
        self._wanted: set[str] = set()
        self._function: Callable[[], Any] = lambda: None
        self._slots: dict[int, _Slot] = {}
        self._scales: weakref.WeakKeyDictionary[keras.Optimizer, tf.Variable] = (
            weakref.WeakKeyDictionary()
        )
        self._batch: Any = None  # one variable or None per leaf of the training data
        self._steps = self._buffer(tf.int64, ())
        self._updates = self._buffer(tf.int64, ())
        self._rows = self._buffer(tf.int64, ())
        # Replicas run `train_step` in threads of their own, at the same time.
        self._open_steps: dict[int, _Step] = {}
        self._patches = contextlib.ExitStack()

    @classmethod
    def of(cls, model: keras.Model) -> StepRecorder:
        """The recorder of a model, made when it is first asked for."""
        if model not in _RECORDERS:
            _RECORDERS[model] = cls(model.distribute_strategy)
        return _RECORDERS[model]

    def record(self, model: keras.Model, wanted: str) -> None:
        """Let the training function of a model record something from now on.

        Args:
            model: The model of this recorder, its training function made or not.
            wanted: "gradients" or "batch". Batch sizes are always recorded.
        """
        function = self._function()
        known = function is not None and function is model.train_function
        if known and wanted in self._wanted:
            return
        self._wanted = {*self._wanted, wanted} if known else {wanted}
        # Only while the function is made, and past Keras's tracking of attributes.
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

    def gradient(self, variable: keras.Variable) -> np.ndarray | None:
        """Newest gradient of a variable, unscaled; None if it never had any."""
        slot = self._slots.get(id(variable)) or self._slots.get(id(variable.value))
        if slot is None:
            return None
        scale = None if slot.scale is None else float(slot.scale.numpy())
        if slot.buffer.shape.rank is not None:
            return as_array(slot.buffer.read_value(), scale)
        return as_array(self._rows_of_replicas(slot.buffer), scale)

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
            step = _Step(tf.compat.v1.get_default_graph())
            with self._noting_updates(model, step):
                logs = original(data)
            for update in step.updates:
                self._safely(self._record_update, update, not model.jit_compile)
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
            gradients = list(grads)
            variables = trainable_variables
            if variables is None:  # Private: what the optimizer was built with.
                variables = getattr(optimizer, "_trainable_variables", ())
            else:
                variables = trainable_variables = list(variables)
            # The scale of this step: `apply` may change it.
            scale = self._safely(_loss_scale, optimizer)
            update = _Update(optimizer, gradients, list(variables), scale)
            result = original(gradients, trainable_variables, **others)
            step = self._open_steps.get(threading.get_ident())
            if step is not None and tf.compat.v1.get_default_graph() is step.graph:
                step.updates.append(update)
            elif step is not None:  # Inside tf.cond or a loop: now or never.
                self._safely(self._record_update, update, False)
            return result

        return apply

    def _record_update(self, update: _Update, sparse: bool) -> None:
        apart = _Apart()
        scale = None
        if update.scale is not None:
            value = tf.cast(update.scale, tf.float32)
            if update.optimizer not in self._scales:
                self._scales[update.optimizer] = self._buffer(
                    tf.float32, (), summed=False
                )
            scale = self._scales[update.optimizer]
            scale.assign(value, read_value=False)
        for gradient, variable in zip(update.gradients, update.variables, strict=False):
            # XLA wants fixed shapes, which the rows of a sparse gradient do not have.
            is_sparse = isinstance(gradient, tf.IndexedSlices)
            if gradient is None or (is_sparse and not sparse):
                continue
            values = gradient.values if is_sparse else gradient
            if sparse:  # XLA fuses as it likes
                values = apart.of(values)
            slot = self._slots.get(id(variable))
            if slot is None:
                # Of the variable: a gradient's own shape may be unknown in the graph.
                shape = None if is_sparse else variable.shape
                slot = _Slot(variable, self._buffer(values.dtype, shape), scale)
                self._slots[id(variable)] = slot
            slot.buffer.assign(values, read_value=False)
        self._updates.assign_add(1, read_value=False)

    def _record_rows(self, data: Any) -> None:
        self._rows.assign(row_count(data), read_value=False)
        self._steps.assign_add(1, read_value=False)

    def _record_batch(self, data: Any, fixed_shapes: bool) -> None:
        if fixed_shapes:
            if self._strategy.num_replicas_in_sync > 1:
                return  # rows and padding of several replicas would mix
            data = keras.tree.map_structure(_padded, data)
        buffers = self._batch
        if buffers is None:
            buffers = keras.tree.map_structure(
                lambda leaf: (
                    None
                    if leaf is None
                    else self._buffer(leaf.dtype, leaf.shape if fixed_shapes else None)
                ),
                data,
            )
        flat = zip(keras.tree.flatten(buffers), keras.tree.flatten(data), strict=True)
        for buffer, leaf in flat:
            if leaf is not None:
                buffer.assign(leaf, read_value=False)
        self._batch = buffers

    def _buffer(self, dtype: tf.DType, shape: Any, summed: bool = True) -> tf.Variable:
        """A variable for values of a training step that may be traced right now.

        It is made in a thread of its own, out of sight of the trace: TensorFlow traces
        a function twice if variables are made on the way, even outside the graph.

        Args:
            dtype: Type of its values.
            shape: Shape of its values, None if it changes.
            summed: Whether the values of replicas add up, as gradients do.
        """
        addition = tf.VariableAggregation.SUM
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA

        def make() -> tf.Variable:
            with self._strategy.scope():
                return tf.Variable(
                    tf.zeros([0] if shape is None else shape, dtype),
                    trainable=False,
                    shape=tf.TensorShape(shape),
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=addition if summed else first,
                )

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(make).result()

    def _safely(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Do something; a failure must not reach the training and gives None."""
        try:
            return action(*arguments)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
            return None


_RECORDERS: weakref.WeakKeyDictionary[keras.Model, StepRecorder] = (
    weakref.WeakKeyDictionary()
)


def _padded(leaf: tf.Tensor | None) -> tf.Tensor | None:
    """The first rows of a tensor, with zeros behind them up to a fixed number."""
    if leaf is None:
        return None
    leaf = leaf[:KEPT_ROWS]
    missing = KEPT_ROWS - tf.shape(leaf)[0]
    padded = tf.pad(leaf, [[0, missing]] + [[0, 0]] * (leaf.shape.rank - 1))
    return tf.ensure_shape(padded, [KEPT_ROWS, *leaf.shape[1:]])


def row_count(data: Any) -> Any:
    """Rows of a batch (int64 scalar): the first extent of its first tensor."""
    first = next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)
    if isinstance(first, tf.RaggedTensor):
        return first.nrows(tf.int64)
    if isinstance(first, tf.SparseTensor):
        return first.dense_shape[0]
    return tf.reduce_prod(tf.shape(first, tf.int64)[:1])


class _Apart:
    """Gives a recording its own last operations behind a gradient.

    TensorFlow merges chains of additions and multiplications where nobody else looks
    at what is in between, such as a gradient and its product with the learning rate,
    and the merged chain rounds differently. So a gradient that is a sum or product is
    not looked at: it is added or multiplied once more. The twin hangs on an operation
    with a side effect, which keeps TensorFlow from merging the two again.
    """

    _TWINS: ClassVar[dict[str, Callable[[list[Any]], Any]]] = {
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
        """The same numbers, from operations of their own where that matters."""
        if not tf.is_symbolic_tensor(tensor) or tensor.graph is not self._graph:
            return tensor
        operation = tensor.op
        if operation.type == "Identity":
            return self.of(operation.inputs[0])
        if operation.type not in self._TWINS:
            return tensor
        if operation not in self._made:
            inputs = [self.of(each) for each in operation.inputs]
            if self._anchor is None:
                self._anchor = tf.timestamp()
            with tf.control_dependencies([self._anchor]):
                self._made[operation] = self._TWINS[operation.type](inputs)
        return self._made[operation]


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


def _loss_scale(optimizer: keras.Optimizer | None) -> Any:
    """Factor on the loss in this step (number or tensor), None if there is none."""
    scale = 1.0 if optimizer is None else optimizer.scale_loss(1.0)
    return None if isinstance(scale, float | int) and scale == 1 else scale


def as_tensors(data: Any) -> Any:
    """Arrays in a nested structure as tensors, everything else as it is."""
    return keras.tree.map_structure(
        lambda leaf: (
            tf.convert_to_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf
        ),
        data,
    )


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
