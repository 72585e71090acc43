"""Every oracle of `kt_bttackler.oracles` keeps the contract of `testing`."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import keras_tuner
import pytest

from kt_bttackler import oracles, testing

ORACLES = [
    member
    for name in oracles.__all__
    if isinstance(member := getattr(oracles, name), type)
    and issubclass(member, keras_tuner.Oracle)
    and member is not oracles.DiagnosedOracleMixin
]


def maker(oracle_class: Any) -> Any:
    """Makes short searches that soon leave the initial points behind."""
    for cls in oracle_class.__mro__:
        taken = inspect.signature(cls).parameters
        if "__init__" in vars(cls) and "kwargs" not in taken:
            break
    options = {"max_trials": 10, "num_initial_points": 4}
    chosen = {name: value for name, value in options.items() if name in taken}
    return functools.partial(oracle_class, **chosen)


@pytest.mark.parametrize("oracle_class", ORACLES)
def test_every_oracle_keeps_the_contract(oracle_class: Any) -> None:
    testing.check_oracle(maker(oracle_class))
