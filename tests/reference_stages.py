"""Slow twins of the stages: full trainings, and a tree that is a set of prefixes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kt_bttackler.stages.pieces import Piece, ready


def seed_of(seed: int, execution: int = 0) -> int:
    return zlib.crc32(f"{seed}/stages/{execution}".encode())


def order(seed: int, epoch: int, rows: int) -> np.ndarray:
    bits = np.random.Philox(key=[seed, epoch])
    return np.random.Generator(bits).permutation(rows)


def full_training(
    build: Callable[[], keras.Model],
    values: Sequence[dict[str, float]],
    x: np.ndarray,
    y: np.ndarray,
    validation_data: Any,
    seed: int = 0,
    batch_size: int = 32,
    callbacks: Sequence[Any] = (),
    ema: bool = False,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """A training from its first epoch, one `fit` per epoch, in plain Keras.

    Args:
        build: makes a compiled model.
        values: by epoch, what is set before it.
        ema: the optimizer averages weights, which `fit` puts in their place at its end.
    """
    seed = seed_of(seed)
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    model = build()
    model.optimizer.build(model.trainable_variables)
    history: dict[str, list[float]] = {}
    set_before: dict[str, float] = {}
    kept = Kept()
    for epoch, current in enumerate(values):
        rows = order(seed, epoch, len(x))
        traced = {
            k: v for k, v in current.items() if k not in ("learning_rate", "batch_size")
        }
        if "learning_rate" in current:
            model.optimizer.learning_rate = current["learning_rate"]
        for name, value in traced.items():
            setattr(model.optimizer, name, value)
        if traced != set_before:
            model.make_train_function(force=True)
        set_before = traced
        size = current.get("batch_size", batch_size)
        logs = model.fit(
            x[rows],
            y[rows],
            batch_size=size,
            shuffle=False,
            initial_epoch=epoch,
            epochs=epoch + 1,
            validation_data=validation_data,
            callbacks=[*callbacks, kept] if ema else list(callbacks),
            verbose=0,
        ).history
        if ema:
            kept.put_back()
        for name, numbers in logs.items():
            history.setdefault(name, []).extend(numbers)
        if model.stop_training:
            break
    return model, history


class Kept(keras.callbacks.Callback):
    """The weights at the end of an epoch, before `fit` ends."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.values = [variable.numpy() for variable in self.model.variables]

    def put_back(self) -> None:
        for variable, value in zip(self.model.variables, self.values, strict=True):
            variable.assign(value)


def digest(model: keras.Model) -> str:
    """Of weights, moving averages, seeds and all variables of the optimizer."""
    found = hashlib.sha256()
    for variable in [*model.variables, *model.optimizer.variables]:
        found.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return found.hexdigest()


def unique_epochs(trials: Sequence[tuple[str, Sequence[Any]]]) -> int:
    """How many epochs there are to train: one per prefix.

    Args:
        trials: root and the values of every epoch.
    """
    return len(
        {
            (root, tuple(sequence[: epoch + 1]))
            for root, sequence in trials
            for epoch in range(len(sequence))
        }
    )


def makespan(
    pieces: Sequence[Piece], workers: int, lengths: dict[str, float] | None = None
) -> float:
    """The time that passes where each worker takes what is ready, as told.

    Args:
        lengths: by piece how long it takes; by default its epochs.
    """
    done: set[str] = set()
    running: dict[int, tuple[float, Piece]] = {}
    last: dict[int, str] = {}
    now = 0.0
    while len(done) < len(pieces):
        taken = {piece.name for _, piece in running.values()}
        for worker in range(workers):
            if worker in running:
                continue
            free = ready(pieces, done, last.get(worker))
            chosen = next((p for p in free if p.name not in taken), None)
            if chosen is not None:
                taken.add(chosen.name)
                epochs = chosen.end - chosen.start
                length = epochs if lengths is None else lengths[chosen.name]
                running[worker] = now + length, chosen
        now = min(end for end, _ in running.values())
        for worker, (end, piece) in list(running.items()):
            if end == now:
                done.add(piece.name)
                last[worker] = piece.name
                del running[worker]
    return now
