"""Trainings in which every fact is recorded."""

from __future__ import annotations

import dataclasses
import math
import warnings

import keras
import numpy as np

from kt_bttackler import Diagnosis, DiagnosisCallback, NeverStop, QualityIndicator

layers = keras.layers
SCALARS = (
    "output/spread",
    "output/top_share",
    "output/label_top_share",
    "output/neglected_share",
    "label/trivial_loss",
    "label/trivial_error",
)
FIRST = (
    "weight/initial_symmetric",
    "weight/initial_finite",
    "gradient/initial_norm",
    "activation/initial_std",
)
COLUMNS = (
    "activation/constant_ratio",
    "activation/dead_ratio",
    "activation/saturated_ratio",
    "activation/abs_max",
    "update/ratio",
    "update/moved",
)
FIELDS = ("outputs", "inputs", "dropout_rates", "linear_pairs", "adaptive_optimizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everything(QualityIndicator):
    """Needs all facts, and judges nothing."""

    needs = frozenset(
        {
            *SCALARS,
            *FIRST,
            *COLUMNS,
            *(f"model/{name}" for name in FIELDS),
            "output/initial_spread",
            "model/half_precision",
            "steps",
            "learning_rate",
        }
    )
    threshold: float = 1.0

    def measure(self, trace):
        return math.nan


def watcher(**options):
    return DiagnosisCallback(Diagnosis([Everything()], rule=NeverStop()), **options)


def fit(model, x, y=None, witness=None, warned=0, **options):
    """Fits with everything recorded, and counts what is warned of."""
    callback = watcher(
        probe_data=options.pop("probe_data", None),
        trace_dir=options.pop("trace_dir", None),
    )
    callbacks = [callback] if witness is None else [witness, callback]
    options = {"epochs": 2, "verbose": 0, "callbacks": callbacks} | options
    if isinstance(x, np.ndarray | list | dict):
        options = {"batch_size": 16, "shuffle": False} | options
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*shuffle=True|.*ran out of data")
        model.fit(x, y, **options)
    messages = [str(each.message) for each in seen]
    assert len(messages) == warned, messages
    return callback.trace


def sequential(*middle, output=None, inputs=(6,), dtype=None):
    keras.utils.set_random_seed(1)
    output = layers.Dense(3, name="out") if output is None else output
    return keras.Sequential([keras.Input(inputs, dtype=dtype), *middle, output])


def compiled(model, loss, optimizer=None, **options):
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss, **options)
    return model
