"""The order of the rows in an epoch: a function of the seed and the epoch alone.

Keras draws an order when the training begins, so that a training which goes on from a
stored state would see its rows in another order than one that was never interrupted.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order in which the rows are trained.

    Args:
        seed: of the training.
        epoch: counted from 0.
        rows: how many there are.

    Returns:
        A permutation of the numbers of the rows, [rows].

    Example:
        >>> epoch_order(seed=0, epoch=0, rows=5), epoch_order(seed=0, epoch=1, rows=5)
        (array([4, 1, 2, 0, 3]), array([0, 2, 4, 1, 3]))
    """
    bits = np.random.Philox(key=[seed % 2**64, epoch])
    return np.random.Generator(bits).permutation(rows)


class OrderedRows:
    """Arrays as datasets whose batches are in the order of their epoch.

    Args:
        arrays: (x,), (x, y) or (x, y, sample_weight), nested as Keras takes them; None
            for what is not given.
        seed: of the training.
        shuffle: whether to shuffle; otherwise the rows stay as they are.

    Raises:
        ValueError: the arrays have different numbers of rows.
    """

    def __init__(self, arrays: tuple[Any, ...], seed: int, shuffle: bool) -> None:
        import tensorflow as tf

        self._tensors = tf.nest.map_structure(tf.convert_to_tensor, arrays)
        counts = {int(leaf.shape[0]) for leaf in tf.nest.flatten(self._tensors)}
        if len(counts) != 1:
            raise ValueError(
                f"`x` and `y` must have the same number of rows, got {sorted(counts)}."
            )
        (self.rows,) = counts
        self._seed = seed
        self._shuffle = shuffle
        self._order = tf.Variable(np.arange(self.rows), trainable=False)
        self._datasets: dict[int, Any] = {}

    def begin_epoch(self, epoch: int) -> None:
        """Orders the rows for an epoch, counted from 0."""
        if self._shuffle:
            self._order.assign(epoch_order(self._seed, epoch, self.rows))

    def dataset(self, batch_size: int) -> Any:
        """The batches of the epoch that is the current one when it is iterated.

        Args:
            batch_size: rows of a batch; the last one may have fewer.
        """
        import tensorflow as tf

        if batch_size not in self._datasets:

            def batch(number: Any) -> Any:
                first = number * batch_size
                chosen = self._order[first : first + batch_size]
                # As with arrays that Keras cuts itself: TensorFlow may round another
                # way when it does not know the shape.
                if self.rows % batch_size == 0:
                    chosen.set_shape([batch_size])
                return tf.nest.map_structure(
                    lambda leaf: tf.gather(leaf, chosen), self._tensors
                )

            batches = -(-self.rows // batch_size)
            numbers = tf.data.Dataset.range(batches)
            self._datasets[batch_size] = numbers.map(batch).prefetch(2)
        return self._datasets[batch_size]
