"""Measuring all prefixes together gives what measuring one by one gives."""

import dataclasses
import math
import random

import numpy as np
import pytest
import recordings
import specimens

from kt_bttackler.catalog import SEVEN
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.loss_indicators import NoMoreGain, PassiveLossChanges
from kt_bttackler.testing import same_number
from kt_bttackler.trace import Header, Record, Trace

INDICATORS = [
    *(cls() for cls in SEVEN),
    PassiveLossChanges(gap="median"),
    NoMoreGain(require_objective=False),
    *(
        dataclasses.replace(indicator, exclude=("dense_3",))
        for indicator in Diagnosis().indicators
    ),
]


def damaged(seed):
    """A trace in which anything may be missing, zero or not finite."""
    dice = random.Random(seed)
    head = specimens.header(
        layers=dice.choice([0, 1, 2, 5]),
        planned=dice.choice([None, 5, 12, 20, 60]),
        direction=dice.choice(["min", "max"]),
        initial_epoch=dice.choice([0, 0, 3]),
        gradients_clipped=dice.random() < 0.2,
        loss_scaled=dice.random() < 0.2,
        warmup_epochs=dice.choice([0, 0, 2]),
        unobserved={"activation": "no"} if dice.random() < 0.3 else {},
        planned_learning_rates=dice.choice([(), (0.0, 0.1, 0.2, 0.2), (0.1,) * 30]),
    )
    numbers = [0.0, 0.0, 1e-9, 0.1, 0.5, 1.0, 2.3]
    odd = [math.nan, math.inf, -math.inf, -1.0]
    share = dice.choice([0.0, 0.02, 0.3])

    def number():
        return dice.choice(odd if dice.random() < share else numbers)

    records = []
    for n in range(1, dice.randint(2, 26)):
        scalars = {
            name: number() for name in ("loss", "objective") if dice.random() > share
        }
        if dice.random() < 0.5:
            scalars["val_loss"] = number()
        scalars["learning_rate"] = dice.choice([0.1, 0.1, 0.1, 0.2])
        if n == 1 and dice.random() < 0.7:
            scalars |= {"first_batch_loss": number(), "first_regularization": 0.1}
        if dice.random() < 0.3:
            scalars["regularization"] = 0.1
        columns = {
            name: tuple(abs(number()) for _ in head.variables)
            for name in (
                "step_gradient/abs_mean",
                "step_gradient/abs_mean_median",
                "step_gradient/zero_ratio",
                "step_gradient/finite",
            )
            if dice.random() > share
        }
        if dice.random() > share:
            columns["activation/constant_ratio"] = tuple(
                number() for _ in head.activations
            )
        records.append(Record(head.initial_epoch + n, float(n), scalars, columns))
    return Trace(head, records)


TRACES = [
    *specimens.SICK.values(),
    *specimens.HEALTHY.values(),
    *recordings.search(12, seed=3),
    *map(damaged, range(150)),
    Trace(Header()),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("indicator", INDICATORS, ids=repr)
def test_together_equals_one_by_one(indicator):
    for trace in TRACES:
        together = indicator.measure_all(Trace(trace.header, trace.records))
        one_by_one = [indicator.measure(prefix) for prefix in trace.prefixes()]
        assert len(together) == len(one_by_one)
        for n, (one, other) in enumerate(zip(together, one_by_one, strict=True), 1):
            assert same_number(float(one), other), (n, trace.header, trace.records)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("indicator", INDICATORS, ids=repr)
def test_an_indicator_is_positive_only_where_it_is_suspected(indicator):
    fired = 0
    for trace in TRACES:
        suspects = indicator.suspects(trace)
        assert suspects.dtype == bool
        positive = np.array([indicator(p) is not None for p in trace.prefixes()], bool)
        assert not np.any(positive & ~suspects)
        fired += positive.sum()
    assert fired > 0
