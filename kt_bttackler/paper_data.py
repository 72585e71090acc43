"""Reading the public data of the paper's tasks from files, checked."""

from __future__ import annotations

import dataclasses
import gzip
import os

import numpy as np

_IMAGE_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_IMAGE_SHAPE = (32, 32, 3)
_CLASSES = 10
CURRENCIES = 8
# The rates of 8 countries on 7,588 days take 0.6 MB.
_MOST_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of 16x16 pixels from 0 to 255, float32, and their classes.

    Attributes:
        train: images [rows, 16, 16, 3] and classes [rows].
        validation: the same of other images.
    """

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]


def load_images(path: str | os.PathLike[str]) -> Images:
    """Reads CIFAR-10, or a part of it, and halves height and width.

    Args:
        path: an npz file with `x_train`, `y_train`, `x_test`, `y_test`.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = [archive[name] for name in _IMAGE_ARRAYS]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # zip files and numpy have many ways to be malformed
        raise ValueError(
            f"{path} must be an npz file with the arrays {', '.join(_IMAGE_ARRAYS)}."
        ) from error
    halves = []
    for x, y in (arrays[:2], arrays[2:]):
        y = y.reshape(-1)
        if x.dtype != np.uint8 or x.shape != (len(y), *_IMAGE_SHAPE) or not len(y):
            raise ValueError(
                f"{path}: images must be uint8 [rows, 32, 32, 3] with one label each, "
                f"got {x.dtype} {list(x.shape)} and {len(y)} labels."
            )
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= _CLASSES:
            raise ValueError(f"{path}: labels must be integers from 0 to 9.")
        halves.append((_halved(x), y.astype(np.int32)))
    return Images(*halves)


def load_rates(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the daily exchange rates of 8 countries, [days, 8].

    Args:
        path: lines of 8 numbers separated by commas, gzipped if it ends in ".gz".

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    opener = gzip.open if os.fspath(path).endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        rates = np.array(
            [line.split(b",") for line in text.split(b"\n") if line], "float64"
        )
        if (
            rates.ndim != 2
            or rates.shape[1] != CURRENCIES
            or not np.isfinite(rates).all()
        ):
            raise ValueError("not a finite number for each of them")
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} must hold lines of {CURRENCIES} numbers: {error}"
        ) from error
    return rates


def _halved(images: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels."""
    rows, height, width, channels = images.shape
    blocks = images.reshape(rows, height // 2, 2, width // 2, 2, channels)
    return np.asarray(blocks.mean(axis=(2, 4), dtype="float32"))
