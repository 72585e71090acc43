"""The paper's two tasks on CIFAR-10, at a size that a processor core can do.

Source: the authors' public code. The spaces are theirs; what was changed so that a
training takes seconds is in `CHANGES`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kt_bttackler import as_torch, paper_data
from kt_bttackler.recorded_task import Task, TaskData

EPOCHS = 20
NARROWING = 4  # the networks have this fraction of the widths of the space
ACTIVATIONS = ["relu", "tanh", "sigmoid", "elu", "leaky_relu"]
OPTIMIZERS = ["SGD", "Adam", "RMSprop", "Adagrad", "Adadelta"]
CLASSES = 10
FEATURES = 32  # pixels of one step of the recurrent network
CHANGES = (
    f"all widths are divided by {NARROWING}; the hyperparameters keep their ranges",
    "images are averaged from 32x32 to 16x16, and shifted by up to 2 pixels, not 4",
    "10,000 training images, not 40,000, at the batch sizes of the paper",
    "validation on 2,000 test images, not on 10,000 held out of the training images",
)
_MEAN = np.array([0.4914, 0.4822, 0.4465], "float32")
_STD = np.array([0.2023, 0.1994, 0.2010], "float32")
_SHIFT = 2
_VALIDATION_BATCH = 500


def declare_common(hp: Any) -> None:
    """The hyperparameters that both networks have."""
    hp.Int("mlp_f_num", 10, 999)
    hp.Float("lr", 1e-4, 0.4, sampling="log")
    hp.Float("weight_decay", 1e-5, 1e-3, sampling="log")
    hp.Float("drop_rate", 0.0, 0.9)
    hp.Choice("act", ACTIVATIONS)
    hp.Choice("opt", OPTIMIZERS)
    hp.Choice("batch_size", [45, 90, 180, 360, 720])


def declare_cnn(hp: Any) -> None:
    """The space of the convolutional network: 13 hyperparameters."""
    hp.Int("conv1_k_num", 8, 31)
    hp.Int("conv2_k_num", 32, 63)
    hp.Int("conv3_k_num", 64, 127)
    hp.Int("conv4_k_num", 64, 127)
    hp.Choice("conv_k_size", [2, 3])
    hp.Choice("batch_norm", [0, 1])
    declare_common(hp)


def declare_lstm(hp: Any) -> None:
    """The space of the recurrent network: 8 hyperparameters."""
    hp.Choice("hidden_size", [16, 32, 64, 128])
    declare_common(hp)


def narrowed(width: int) -> int:
    """The width of a layer, from that of the space."""
    return max(1, round(width / NARROWING))


def build_cnn(values: Mapping[str, Any], shape: Sequence[int]) -> Any:
    """Four convolutions and three dense layers; logits come out."""
    decay, size = values["weight_decay"], values["conv_k_size"]
    height, _, channels = shape
    model = keras.Sequential([keras.Input(shape)])
    for number in (1, 2, 3, 4):
        filters = narrowed(values[f"conv{number}_k_num"])
        model.add(as_torch.convolution(filters, size, channels, decay))
        model.add(as_torch.activation(values["act"]))
        channels, height = filters, height - size + 1
        if number in (2, 4):
            model.add(keras.layers.MaxPooling2D())
            height //= 2
        if values["batch_norm"]:
            model.add(as_torch.batch_normalization(decay))
    model.add(keras.layers.Flatten())
    width = narrowed(values["mlp_f_num"])
    for fan_in in (channels * height * height, width):
        model.add(as_torch.linear(width, fan_in, decay))
        model.add(as_torch.activation(values["act"]))
    model.add(keras.layers.Dropout(values["drop_rate"]))
    model.add(as_torch.linear(CLASSES, width, decay))
    return model


def build_lstm(values: Mapping[str, Any], shape: Sequence[int]) -> Any:
    """Two recurrent layers and two dense ones; two rows of one colour are a step.

    The second recurrent layer starts from the last state of the first.
    """
    decay, units = values["weight_decay"], narrowed(values["hidden_size"])
    images = keras.Input(shape)
    steps = keras.layers.Permute((3, 1, 2))(images)
    steps = keras.layers.Reshape((-1, FEATURES))(steps)
    first = as_torch.lstm(units, decay, return_sequences=True, return_state=True)
    outputs, *states = first(steps)
    hidden = as_torch.lstm(units, decay)(outputs, initial_state=states)
    mlp = narrowed(values["mlp_f_num"])
    hidden = as_torch.linear(mlp, units, decay)(hidden)
    hidden = as_torch.activation(values["act"])(hidden)
    hidden = keras.layers.Dropout(values["drop_rate"])(hidden)
    return keras.Model(images, as_torch.linear(CLASSES, mlp, decay)(hidden))


class ShiftedImages(keras.utils.PyDataset):
    """Batches of images, each epoch in another order, shifted and mirrored anew.

    Args:
        images: as `padded` returns them, [2, rows, height, width, channels].
        labels: class of each row.
        batch_size: rows of a batch.
        seed: of order, shifts and mirroring.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self._padded = images
        self._labels = labels
        self._batch_size = batch_size
        self._random = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self._labels) // self._batch_size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(index * self._batch_size, (index + 1) * self._batch_size)
        return self._images[rows], self._ordered_labels[rows]

    def on_epoch_end(self) -> None:
        """Prepares the next epoch as a whole, which is faster than by batches."""
        _, rows, height, width, channels = self._padded.shape
        height, width = height - 2 * _SHIFT, width - 2 * _SHIFT
        order = self._random.permutation(rows)
        moves = self._random.integers(
            [2, 2 * _SHIFT + 1, 2 * _SHIFT + 1], size=(rows, 3)
        )
        self._images = np.empty((rows, height, width, channels), "float32")
        self._ordered_labels = self._labels[order]
        for move in np.unique(moves, axis=0):
            chosen = np.flatnonzero((moves == move).all(axis=1))
            mirrored, down, right = move
            cut = self._padded[mirrored][:, down : down + height, right : right + width]
            self._images[chosen] = cut[order[chosen]]


def padded(pixels: np.ndarray) -> np.ndarray:
    """Normalized images with a black margin, and the same mirrored."""
    margin = (_SHIFT, _SHIFT)
    images = normalized(np.pad(pixels, ((0, 0), margin, margin, (0, 0))))
    return np.stack([images, images[:, :, ::-1]])


def normalized(pixels: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 255 with mean 0 and standard deviation 1 of each colour."""
    return np.asarray((pixels.astype("float32") / 255 - _MEAN) / _STD)


def _train(
    build: Callable[[Mapping[str, Any], Sequence[int]], Any],
    values: Mapping[str, Any],
    data: TaskData,
    seed: int,
    epochs: int,
    callbacks: Sequence[Any],
) -> None:
    images, labels = data.train
    batches = ShiftedImages(images, labels, values["batch_size"], seed)
    model = build(values, data.probe.shape[1:])
    # The rate of epoch n is lr * 0.7^(n - 1).
    rate = keras.optimizers.schedules.ExponentialDecay(
        values["lr"], len(batches), 0.7, staircase=True
    )
    model.compile(
        as_torch.optimizer(values["opt"], rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        batches,
        epochs=epochs,
        shuffle=False,  # the batches are drawn anew for every epoch
        validation_data=data.validation,
        validation_batch_size=_VALIDATION_BATCH,
        callbacks=list(callbacks),
        verbose=0,
    )


def _load(path: Any) -> TaskData:
    images = paper_data.load_images(path)
    labels = images.validation[1]
    trivial = float(np.bincount(labels).max() / len(labels))
    return TaskData(
        train=(padded(images.train[0]), images.train[1]),
        validation=(normalized(images.validation[0]), labels),
        probe=normalized(images.train[0]),
        trivial_score=trivial,
        trivial_predictor="always the most frequent class of the validation images",
        # A guesser's accuracy is above this in one of a hundred trainings.
        trivial_margin=2.326 * math.sqrt(trivial * (1 - trivial) / len(labels)),
    )


CIFAR10_CNN = Task(
    name="cifar10-cnn",
    objective="val_accuracy",
    direction="max",
    epochs=EPOCHS,
    declare=declare_cnn,
    load=_load,
    train=functools.partial(_train, build_cnn),
    changes=CHANGES,
)
CIFAR10_LSTM = Task(
    name="cifar10-lstm",
    objective="val_accuracy",
    direction="max",
    epochs=EPOCHS,
    declare=declare_lstm,
    load=_load,
    train=functools.partial(_train, build_lstm),
    changes=(
        *CHANGES,
        "24 steps of two rows of 16 pixels of one colour, not 96 of a row of 32",
    ),
)
