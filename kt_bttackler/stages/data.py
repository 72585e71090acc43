"""The data of a search: what they are, and the arguments of `fit` that give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kt_bttackler.stages import identity
from kt_bttackler.stages.order import OrderedRows

# Arguments of `fit` that do not tell one training from another.
NEUTRAL = ("callbacks", "verbose", "epochs", "initial_epoch")
DATA = ("x", "y", "sample_weight", "validation_data")


class SearchData:
    """The data of a search, as one of its seeds orders them.

    Args:
        arguments: those of `fit`.
        seed: of the training.
        version: the user's name for data that is not in arrays.

    Attributes:
        rows: the training data; `None` if they are not in arrays.
        fingerprint: of all data.
    """

    def __init__(
        self, arguments: Mapping[str, Any], seed: int, version: str | None
    ) -> None:
        self._of = [arguments.get(name) for name in DATA]
        x, y, weights, validation = self._of
        split = arguments.get("validation_split") or 0.0
        self.rows: OrderedRows | None = None
        if all(hasattr(leaf, "__array__") for leaf in keras.tree.flatten(x)):
            train = [_as_arrays(each) for each in (x, y, weights)]
            if split and validation is None:
                count = len(keras.tree.flatten(train[0])[0])
                first = int(count * (1 - split))
                validation = tuple(_slice(each, first, None) for each in train)
                train = [_slice(each, None, first) for each in train]
            while train[-1] is None:
                train.pop()
            shuffle = bool(arguments.get("shuffle", True))
            self.rows = OrderedRows(tuple(train), seed, shuffle)
        self._validation = validation
        self.fingerprint = {
            "version": version,
            **{
                name: identity.of_data(value, version)
                for name, value in zip(DATA, self._of, strict=True)
            },
        }

    def is_of(self, arguments: Mapping[str, Any]) -> bool:
        """Whether these are the data of such a training."""
        same = zip(self._of, map(arguments.get, DATA), strict=True)
        return all(one is other for one, other in same)

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `fit` without those that a staged training sets itself."""
        left = {name: value for name, value in given.items() if name not in NEUTRAL}
        left["verbose"] = given.get("verbose", "auto")
        if self.rows is not None:
            for name in ("x", "y", "sample_weight", "shuffle", "validation_split"):
                left.pop(name, None)
            left["validation_data"] = self._validation
            left["shuffle"] = False  # else Keras warns that it does not shuffle
        return left


def _as_arrays(data: Any) -> Any:
    """Data as Keras would train it: as arrays, without double precision."""

    def convert(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array.astype(keras.config.floatx()) if array.dtype == "f8" else array

    return None if data is None else keras.tree.map_structure(convert, data)


def _slice(data: Any, first: int | None, last: int | None) -> Any:
    if data is None:
        return None
    return keras.tree.map_structure(lambda leaf: leaf[first:last], data)
