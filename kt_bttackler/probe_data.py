"""Where the rows come from that a model is probed with.

Rows of data in memory, or the first training batch, kept as it passes through the
model: no second iterator touches the data, as even a peek would move the order of a
seeded shuffle.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kt_bttackler.step_recorder import KEPT_ROWS, StepRecorder


class BatchKeeper:
    """Keeps a training batch as it passes through `model.train_step`.

    Read it in the first `on_train_batch_end` to get the first batch.
    """

    def __init__(self) -> None:
        self._recorder: StepRecorder | None = None
        self._steps = 0
        self._batch: tuple[Any, Any, Any] | None = None

    def install(self, model: keras.Model) -> None:
        """Watch a model whose training begins; call it in `on_train_begin`."""
        self._recorder = StepRecorder.of(model)
        self._recorder.record(model, "batch")
        self._steps = self._recorder.steps()

    def batch(self) -> tuple[Any, Any, Any] | None:
        """The batch that had just been trained on when this was first called.

        Returns:
            Inputs, targets and sample weights (None where there are none), as arrays
            of at most 128 rows. None if no step was run yet or the data cannot be kept:
            ragged and sparse tensors, shapes unknown to XLA.
        """
        if self._batch is None:
            newest = self.newest()
            if newest is not None:
                x, y, weights = (
                    keras.tree.map_structure(_copy, each) for each in newest
                )
                self._batch = x, y, weights
        return self._batch

    def newest(self) -> tuple[Any, Any, Any] | None:
        """The batch that has just been trained on, like `batch`.

        Nothing is copied: the arrays may change with the next step.
        """
        if self._recorder is None or self._recorder.steps() == self._steps:
            return None
        batch = self._recorder.batch()
        if batch is None:
            return None
        first = keras.tree.map_structure(_first_rows, batch)
        kept: tuple[Any, Any, Any] = keras.utils.unpack_x_y_sample_weight(first)
        return kept

    def restore(self) -> None:
        """Let go of the model; a batch that was read stays."""
        self._recorder = None


def slice_rows(x: Any, rows: int = KEPT_ROWS) -> Any:
    """Evenly spaced rows of data in memory.

    Args:
        x: Array, tensor, or list, tuple or dict of them, with equal numbers of rows.
        rows: How many rows to take at most.

    Returns:
        Arrays in the structure of `x`; None if `x` is no data in memory.
    """
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    if not leaves or not all(_in_memory(leaf) for leaf in leaves):
        return None
    lengths = {len(leaf) for leaf in leaves}
    if len(lengths) != 1 or 0 in lengths:
        return None
    length = lengths.pop()
    chosen = np.linspace(0, length - 1, min(rows, length)).round().astype(np.int64)

    def take(leaf: Any) -> Any:
        if leaf is None or isinstance(leaf, np.ndarray):
            return None if leaf is None else leaf[chosen]
        return keras.ops.convert_to_numpy(keras.ops.take(leaf, chosen, axis=0))

    return keras.tree.map_structure(take, x)


def _in_memory(leaf: Any) -> bool:
    # Ragged and sparse tensors have no length.
    is_tensor = keras.ops.is_tensor(leaf) and hasattr(leaf, "__len__")
    return (isinstance(leaf, np.ndarray) or is_tensor) and len(leaf.shape) > 0


def _first_rows(leaf: np.ndarray | None) -> np.ndarray | None:
    return None if leaf is None else leaf[:KEPT_ROWS]


def _copy(leaf: np.ndarray | None) -> np.ndarray | None:
    return None if leaf is None else leaf.copy()
