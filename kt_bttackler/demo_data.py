"""Data of the demo: scikit-learn's digits, or a file of the user's."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from kt_bttackler.cli import UsageError

_KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclasses.dataclass(frozen=True)
class Data:
    """Data of a classification.

    Attributes:
        name: what it is, for people.
        x_train: [N, F] features or [N, H, W, C] images, standardised.
        y_train: classes from 0, [N].
        x_test: features or images for the validation.
        y_test: their classes.
        classes: number of classes.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int


def load(path: pathlib.Path) -> Data:
    """Reads the data of `--data`.

    Args:
        path: an .npz file with `x_train`, `y_train`, `x_test`, `y_test`.

    Raises:
        UsageError: the file is missing or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _KEYS if key in archive}
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}."
        ) from error
    except Exception as error:  # zip files and numpy have many ways to be malformed
        raise UsageError(f"{path} is not an .npz file of plain arrays.") from error
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise UsageError(f"{path}: no array named {', '.join(missing)}.")
    x_train, y_train, x_test, y_test = (arrays[key] for key in _KEYS)
    x_train, x_test = (
        _inputs(path, key, x) for key, x in (("x_train", x_train), ("x_test", x_test))
    )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UsageError(
            f"{path}: rows of x_train are {list(x_train.shape[1:])}, "
            f"those of x_test {list(x_test.shape[1:])}."
        )
    y_train = _labels(path, "y_train", y_train, len(x_train))
    y_test = _labels(path, "y_test", y_test, len(x_test))
    return _standardised(path.name, x_train, y_train, x_test, y_test)


def _inputs(path: pathlib.Path, key: str, x: np.ndarray) -> np.ndarray:
    if x.ndim == 3:  # images without a channel
        x = x[..., np.newaxis]
    if x.ndim not in (2, 4) or 0 in x.shape or x.dtype.kind not in "biuf":
        raise UsageError(
            f"{path}: {key} must be numbers, [N, features] or [N, height, width, "
            f"channels], got {x.dtype} {list(x.shape)}."
        )
    x = x.astype("float32")
    if not np.isfinite(x).all():
        raise UsageError(f"{path}: {key} contains values that are not finite.")
    return x


def _labels(path: pathlib.Path, key: str, y: np.ndarray, rows: int) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (rows,) or y.dtype.kind not in "iu":
        raise UsageError(
            f"{path}: {key} must be {rows} integer labels, "
            f"got {y.dtype} {list(y.shape)}."
        )
    return y


def _standardised(
    name: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
) -> Data:
    """Inputs of mean 0 and spread 1 (features each, images as a whole)."""
    axis = 0 if x_train.ndim == 2 else None
    mean, spread = x_train.mean(axis), x_train.std(axis)
    spread = np.where(spread > 0, spread, 1)
    names, classes = np.unique(np.concatenate([y_train, y_test]), return_inverse=True)
    return Data(
        name,
        ((x_train - mean) / spread).astype("float32"),
        classes[: len(y_train)],
        ((x_test - mean) / spread).astype("float32"),
        classes[len(y_train) :],
        len(names),
    )


def digits() -> Data:
    """The handwritten digits of scikit-learn, a fifth of them to validate on."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = np.split(order, [len(x) * 4 // 5])
    # All pixels have one unit; some are always blank.
    x = ((x - x[train].mean()) / x[train].std()).astype("float32")
    return Data("handwritten digits", x[train], y[train], x[test], y[test], 10)


def fewer_rows(data: Data, rows: int | None, seed: int) -> Data:
    """The same data with `rows` training rows, drawn at random."""
    if rows is None or rows >= len(data.x_train):
        return data
    chosen = np.random.default_rng(seed).permutation(len(data.x_train))[:rows]
    return dataclasses.replace(
        data, x_train=data.x_train[chosen], y_train=data.y_train[chosen]
    )
