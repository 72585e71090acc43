"""`diagnosed`: makes any Oracle class understand diagnosed trials."""

from __future__ import annotations

import keras_tuner

from kt_bttackler.oracles.gridsearch import DiagnosedGridSearchMixin
from kt_bttackler.oracles.hyperband import DiagnosedHyperbandMixin
from kt_bttackler.oracles.mixin import DiagnosedOracleMixin

# Algorithms that need more than every oracle does.
_SPECIAL: dict[type[keras_tuner.Oracle], type[DiagnosedOracleMixin]] = {
    keras_tuner.oracles.GridSearchOracle: DiagnosedGridSearchMixin,
    keras_tuner.oracles.HyperbandOracle: DiagnosedHyperbandMixin,
}

_MADE: dict[type[keras_tuner.Oracle], type[DiagnosedOracleMixin]] = {}


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
    if oracle_class not in _MADE:
        _MADE[oracle_class] = _make(oracle_class)
    return _MADE[oracle_class]


def _make(oracle_class: type[keras_tuner.Oracle]) -> type[DiagnosedOracleMixin]:
    mixin = DiagnosedOracleMixin
    for algorithm, special in _SPECIAL.items():
        # Not before a subclass with an algorithm of its own.
        own = oracle_class.populate_space is not algorithm.populate_space
        if issubclass(oracle_class, algorithm) and not own:
            mixin = special
    name = f"Diagnosed{oracle_class.__name__}"
    doc = (
        f"{oracle_class.__name__} that understands diagnosed trials.\n\n"
        "It takes one argument more, `stopped_value`: see `DiagnosedOracleMixin`.\n\n"
        f"{oracle_class.__name__}: {oracle_class.__doc__ or ''}"
    )
    members = {"__doc__": doc, "__module__": __name__, "__qualname__": name}
    return type(name, (mixin, oracle_class), members)
