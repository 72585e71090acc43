"""The paper's forecast of exchange rates, at a size that a processor core can do.

The paper names a Transformer; its published numbers were probably made with an
Autoformer. This is the Transformer: encoder and decoder with full attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kt_bttackler import as_torch, paper_data
from kt_bttackler.recorded_task import Task, TaskData

EPOCHS = 20
NARROWING = 16  # the network has this fraction of the widths of the space
INPUT_DAYS, LABEL_DAYS, OUTPUT_DAYS = 24, 12, 12
STRIDE, VALIDATION_STRIDE = 8, 4  # days from one window to the next
CHANGES = (
    "a Transformer, not an Autoformer",
    f"d_model and d_ff are divided by {NARROWING}; the hyperparameters keep their "
    "ranges",
    "windows of 24 days in and 12 out (12 known to the decoder), not 96, 96 and 48",
    f"every {STRIDE}th training and every {VALIDATION_STRIDE}th validation window, at "
    "the batch sizes of the paper",
)
_TRAIN, _VALIDATION = 5311, 760  # days; the remaining ones are for tests
_FIRST_DAY = np.datetime64("1990-01-01")
_VALIDATION_BATCH = 256


def declare(hp: Any) -> None:
    """The space: 8 hyperparameters."""
    hp.Int("e_layers", 1, 3)
    hp.Int("d_layers", 1, 3)
    hp.Choice("d_model", [256, 512, 1024])
    hp.Int("n_heads", 5, 14)
    hp.Int("d_ff", 1024, 2047)
    hp.Float("learning_rate", 1e-5, 1e-3, sampling="log")
    hp.Choice("batch_size", [16, 32, 64])
    hp.Choice("dropout", [0.05, 0.1, 0.15, 0.2])


class DayEmbedding(keras.layers.Layer):
    """What is known of each day, in `width` numbers: rates, date and position.

    Inputs are rates and date in one array, [rows, days, rates + parts of the date].

    Args:
        width: d_model.
        dropout: share of the numbers that is dropped.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        rates = paper_data.CURRENCIES
        # Kaiming for leaky units with the default slope of PyTorch, 0.01.
        kaiming = keras.initializers.VarianceScaling(
            2 / (1 + 0.01**2), "fan_in", "truncated_normal"
        )
        self.rates = keras.layers.Conv1D(
            width, 3, use_bias=False, kernel_initializer=kaiming
        )
        parts = _date_parts(1).shape[-1]
        self.date = as_torch.linear(width, parts, use_bias=False)
        self.dropout = keras.layers.Dropout(dropout)
        self._width = width
        self._rates = rates

    def call(self, days: Any, training: bool = False) -> Any:
        """Embeds the days, [rows, days, width]."""
        rates, date = days[..., : self._rates], days[..., self._rates :]
        # The convolution goes round in a circle.
        around = keras.ops.concatenate([rates[:, -1:], rates, rates[:, :1]], axis=1)
        position = _positions(days.shape[1], self._width)
        embedded = self.rates(around) + self.date(date) + position
        return self.dropout(embedded, training=training)


def build(values: Mapping[str, Any]) -> Any:
    """The Transformer; out come the rates of the days that were asked for."""
    width = values["d_model"] // NARROWING
    features = paper_data.CURRENCIES + _date_parts(1).shape[-1]
    block = _Blocks(width, values)
    past = keras.Input((INPUT_DAYS, features))
    asked = keras.Input((LABEL_DAYS + OUTPUT_DAYS, features))
    memory = DayEmbedding(width, values["dropout"])(past)
    for _ in range(values["e_layers"]):
        memory = block.feed_forward(block.attention(memory, memory))
    memory = keras.layers.LayerNormalization(epsilon=1e-5)(memory)
    state = DayEmbedding(width, values["dropout"])(asked)
    for _ in range(values["d_layers"]):
        state = block.attention(state, state, causal=True)
        state = block.feed_forward(block.attention(state, memory))
    state = keras.layers.LayerNormalization(epsilon=1e-5)(state)
    state = keras.layers.Cropping1D((LABEL_DAYS, 0))(state)
    return keras.Model(
        [past, asked], as_torch.linear(paper_data.CURRENCIES, width)(state)
    )


class _Blocks:
    """Makes the parts of a layer, each with its residual and normalization."""

    def __init__(self, width: int, values: Mapping[str, Any]) -> None:
        self._width = width
        self._heads = values["n_heads"]
        self._hidden = round(values["d_ff"] / NARROWING)
        self._dropout = values["dropout"]

    def attention(self, state: Any, memory: Any, causal: bool = False) -> Any:
        """Attention of `state` to `memory`."""
        attend = keras.layers.MultiHeadAttention(
            self._heads,
            max(1, self._width // self._heads),
            dropout=self._dropout,
            **as_torch.uniform_arguments(self._width),
        )
        return self._added(state, attend(state, memory, use_causal_mask=causal))

    def feed_forward(self, state: Any) -> Any:
        """Two dense layers at each day."""
        hidden = as_torch.linear(self._hidden, self._width, activation="gelu")(state)
        hidden = keras.layers.Dropout(self._dropout)(hidden)
        return self._added(state, as_torch.linear(self._width, self._hidden)(hidden))

    def _added(self, state: Any, change: Any) -> Any:
        change = keras.layers.Dropout(self._dropout)(change)
        return keras.layers.LayerNormalization(epsilon=1e-5)(state + change)


def _positions(days: int, width: int) -> np.ndarray:
    """Sines and cosines of different wavelengths, [1, days, width]."""
    rates = np.exp(np.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = np.arange(days)[:, None] * rates
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return waves.reshape(1, days, -1)[..., :width].astype("float32")


def _date_parts(days: int) -> np.ndarray:
    """Hour, weekday, day of month and of year of each day, in [-0.5, 0.5].

    The data have no dates; the days are numbered from the first of 1990, as in the
    file that the paper used.
    """
    dates = _FIRST_DAY + np.arange(days)
    in_month = (dates - dates.astype("datetime64[M]")).astype(int)
    in_year = (dates - dates.astype("datetime64[Y]")).astype(int)
    weekday = (dates.astype(int) + 3) % 7  # day 0 was a Thursday
    parts = [np.zeros(days), weekday / 6, in_month / 30, in_year / 365]
    return (np.stack(parts, axis=-1) - 0.5).astype("float32")


def _windows(
    days: np.ndarray, stride: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Inputs of encoder and decoder, and the rates to foretell, of every window.

    Args:
        days: standardised rates and parts of the date, [days, features].
        stride: days from one window to the next.
    """
    last = len(days) - INPUT_DAYS - OUTPUT_DAYS
    starts = np.arange(0, last + 1, stride)[:, None]
    past = days[starts + np.arange(INPUT_DAYS)]
    asked = days[starts + np.arange(INPUT_DAYS - LABEL_DAYS, INPUT_DAYS + OUTPUT_DAYS)]
    targets = asked[:, LABEL_DAYS:, : paper_data.CURRENCIES].copy()
    asked[:, LABEL_DAYS:, : paper_data.CURRENCIES] = 0.0
    return (past, asked), targets


def _load(path: Any) -> TaskData:
    rates = paper_data.load_rates(path)
    if len(rates) < _TRAIN + _VALIDATION:
        raise ValueError(
            f"{path} must hold at least {_TRAIN + _VALIDATION} days, got {len(rates)}."
        )
    known = rates[:_TRAIN]
    scaled = ((rates - known.mean(axis=0)) / known.std(axis=0)).astype("float32")
    days = np.concatenate([scaled, _date_parts(len(rates))], axis=1)
    train = _windows(days[:_TRAIN], STRIDE)
    validation = _windows(
        days[_TRAIN - INPUT_DAYS : _TRAIN + _VALIDATION], VALIDATION_STRIDE
    )
    return TaskData(
        train=train,
        validation=validation,
        probe=list(train[0]),
        trivial_score=float(np.mean(validation[1] ** 2)),
        trivial_predictor="always the mean of the training days",
    )


def _train(
    values: Mapping[str, Any],
    data: TaskData,
    seed: int,
    epochs: int,
    callbacks: Sequence[Any],
) -> None:
    model = build(values)
    inputs, targets = data.train
    whole = len(targets) // values["batch_size"]  # steps; the rest is left out
    rows = whole * values["batch_size"]
    # Epochs 1 and 2 have the whole rate, each later one half of that before.
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(
        [n * whole - 1 for n in range(2, EPOCHS)],
        [values["learning_rate"] * 0.5**n for n in range(EPOCHS - 1)],
    )
    model.compile(as_torch.optimizer("Adam", rate), "mse")
    model.fit(
        [each[:rows] for each in inputs],
        targets[:rows],
        batch_size=values["batch_size"],
        epochs=epochs,
        validation_data=(list(data.validation[0]), data.validation[1]),
        validation_batch_size=_VALIDATION_BATCH,
        callbacks=list(callbacks),
        verbose=0,
    )


EXCHANGE_TRANSFORMER = Task(
    name="exchange-transformer",
    objective="val_loss",
    direction="min",
    epochs=EPOCHS,
    declare=declare,
    load=_load,
    train=_train,
    changes=CHANGES,
)
