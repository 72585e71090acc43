from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from kt_bttackler.gradient_meter import (
    GradientMeter,
    SampledSteps,
    summary_columns,
)


class Recorded:
    """A tap that shows gradients and numbers of rows that were made beforehand."""

    def __init__(self, gradients, rows):
        self.steps = list(zip(gradients, rows, strict=True))
        self.now = -1
        self.reads = 0

    def gradients(self):
        self.reads += 1
        return self.steps[self.now][0]

    def batch_size(self):
        return self.steps[self.now][1]


def at_once(action, *arguments):
    future = Future()
    future.set_result(action(*arguments))
    return future


def epoch_of(meter, tap, planned, steps):
    meter.begin_epoch(planned)
    sampled = []
    for tap.now in range(steps):
        if meter.end_step(tap.now) is not None:
            sampled.append(tap.now)
    columns = meter.end_epoch(steps).result()
    return sampled, columns | summary_columns("gradient", meter.take_typical())


def constants(*values):
    return [[np.full(4, value, np.float32)] for value in values]


@pytest.mark.parametrize("planned", [5, None])
@pytest.mark.parametrize(
    ("rows", "typical"), [([8] * 5, 5.0), ([8, 8, 8, 8, 3], 4.0), ([None] * 5, 5.0)]
)
def test_ten_statistics_are_those_of_the_last_whole_batch(planned, rows, typical):
    tap = Recorded(constants(1, 2, 3, 4, 5), rows)
    meter = GradientMeter(tap, at_once, per_epoch=False)
    for _ in range(2):
        _, columns = epoch_of(meter, tap, planned, 5)
        assert columns["gradient/median"] == (typical,)


def test_small_batches_enter_finiteness_alone():
    tap = Recorded(constants(1, 3, np.inf), [8, 8, 3])
    meter = GradientMeter(tap, at_once, per_epoch=False)
    _, columns = epoch_of(meter, tap, 3, 3)
    assert columns["step_gradient/abs_mean"] == (2.0,)
    assert columns["step_gradient/finite"] == pytest.approx((2 / 3,))


def test_an_epoch_that_ends_early_shows_where_it_ended():
    tap = Recorded(constants(*range(1, 101)), [8] * 100)
    meter = GradientMeter(tap, at_once, per_epoch=False)
    for steps in (25, 30):  # after a sampled step, and in between
        _, columns = epoch_of(meter, tap, 100, steps)
        assert columns["gradient/median"] == (steps,)


@pytest.mark.parametrize(
    ("gradients", "samples"),
    [
        ([np.zeros(10, np.float32)] * 100, 10),
        ([np.zeros(10, np.float32)] * 101, 5),
        ([None, np.zeros(1_000_000, np.float32)], 10),
        ([None, np.zeros(1_000_001, np.float32)], 5),
    ],
)
def test_large_models_are_sampled_less_from_the_first_epoch_on(gradients, samples):
    tap = Recorded([gradients] * 50, [8] * 50)
    meter = GradientMeter(tap, at_once, per_epoch=False)
    for _ in range(2):
        sampled, _ = epoch_of(meter, tap, 50, 50)
        assert len(sampled) == samples
        assert {0, 48, 49} <= set(sampled)


def test_a_sampled_step_reads_the_gradients_once():
    tap = Recorded(constants(*range(50)), [8] * 50)
    epoch_of(GradientMeter(tap, at_once, per_epoch=False), tap, 50, 50)
    assert tap.reads == 10


def test_sparse_samples_are_at_most_one_step_in_ten_but_four():
    for steps in (1, 2, 3, 4, 12, 40, 99, 100, 1001):
        schedule = SampledSteps(steps, sparse=True)
        due = [step for step in range(steps) if schedule.due(step)]
        assert len(due) == min(steps, max(4, min(10, steps // 10)))
        assert {0, max(steps - 2, 0), steps - 1} <= set(due)
