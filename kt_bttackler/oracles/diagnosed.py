"""`diagnosed`: makes any Oracle class understand diagnosed trials."""

from __future__ import annotations

import functools
from typing import Any

import keras_tuner

from kt_bttackler.oracles.hyperband import DiagnosedHyperbandMixin
from kt_bttackler.oracles.mixin import DiagnosedOracleMixin


def diagnosed(oracle_class: type[keras_tuner.Oracle]) -> type[DiagnosedOracleMixin]:
    """Makes an Oracle class understand diagnosed trials.

    Args:
        oracle_class: any subclass of `keras_tuner.Oracle`.

    Returns:
        A subclass that takes the same arguments and `stopped_value`; the same one
        every time, and `oracle_class` itself when it understands them already.

    Raises:
        TypeError: `oracle_class` is no Oracle class.

    Example:
        >>> import keras_tuner
        >>> oracle_class = diagnosed(keras_tuner.oracles.RandomSearchOracle)
        >>> oracle = oracle_class("val_loss", max_trials=50, stopped_value="worst")
        >>> oracle_class.__name__, diagnosed(oracle_class) is oracle_class
        ('DiagnosedRandomSearchOracle', True)
    """
    if not isinstance(oracle_class, type) or not issubclass(
        oracle_class, keras_tuner.Oracle
    ):
        raise TypeError(
            f"`oracle_class` must be a keras_tuner.Oracle class, got {oracle_class!r}."
        )
    if issubclass(oracle_class, DiagnosedOracleMixin):
        return oracle_class
    return _diagnosed(oracle_class)


@functools.cache
def _diagnosed(oracle_class: Any) -> type[DiagnosedOracleMixin]:
    is_hyperband = issubclass(oracle_class, keras_tuner.oracles.HyperbandOracle)
    mixin = DiagnosedHyperbandMixin if is_hyperband else DiagnosedOracleMixin
    name = f"Diagnosed{oracle_class.__name__}"
    doc = (
        f"{oracle_class.__name__} that understands diagnosed trials.\n\n"
        "It takes one argument more, `stopped_value`: see `DiagnosedOracleMixin`.\n\n"
        f"{oracle_class.__name__}: {oracle_class.__doc__ or ''}"
    )
    members = {"__doc__": doc, "__module__": __name__, "__qualname__": name}
    return type(name, (mixin, oracle_class), members)
