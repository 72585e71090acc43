import math
import random

import numpy as np
import pytest
import reference_measures as reference

from kt_bttackler import measures

NAN = math.nan


def scores_of(dice, most=15):
    """Few different values, so that many tie, and some that are no scores."""
    values = [0.1, 0.2, 0.3, 0.4, 0.5, NAN, math.inf, -math.inf]
    weights = [4, 4, 4, 4, 4, 1, 0.5, 0.5]
    return dice.choices(values, weights, k=dice.randint(0, most))


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("seed", range(60))
def test_hit_ratio_equals_its_twin(seed, direction):
    dice = random.Random(seed)
    runs = [scores_of(dice) for _ in range(dice.randint(1, 3))]
    others = [scores_of(dice) for _ in range(dice.randint(1, 3))]
    expected = reference.top10_hit_ratio(runs, others, direction)
    ratio = measures.top10_hit_ratio(runs, others, direction=direction)
    assert ratio == pytest.approx(expected, nan_ok=True)


def test_hit_ratio_of_all_pairings_can_be_a_ninetieth():
    runs = [[1.0] * k + [0.0] * (10 - k) for k in (10, 9, 9)]
    others = [[0.5] * 10] * 3
    assert measures.top10_hit_ratio(runs, others) == pytest.approx(28 / 30)


@pytest.mark.parametrize(
    ("own", "other", "direction", "expected"),
    [
        ([0.9], [0.1], "max", 0.5),  # two trials in all
        ([0.9], [], "max", 1.0),
        ([], [0.9], "max", 0.0),
        ([NAN], [0.9, NAN], "max", 0.0),
        ([0.5] * 30, [0.5] * 10, "max", 0.75),  # all tie: shares of the trials
        ([0.9] * 5 + [0.5], [0.5] * 9, "max", (5 + 5 / 10) / 10),
        ([0.1] * 10, [0.2] * 10, "min", 1.0),
        ([math.inf] * 10, [0.2] * 10, "max", 0.0),
    ],
)
def test_hit_ratio_in_the_corners(own, other, direction, expected):
    ratio = measures.top10_hit_ratio([own], [other], direction=direction)
    assert ratio == pytest.approx(expected)


def test_without_a_scored_trial_there_is_no_hit_ratio():
    assert math.isnan(measures.top10_hit_ratio([[NAN]], [[]]))


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("seed", range(60))
def test_time_saving_equals_its_twin(seed, direction):
    dice = random.Random(seed)
    own, other = scores_of(dice), scores_of(dice)
    ends = [float(dice.randint(0, 30)) for _ in own]
    other_ends = [float(dice.randint(0, 30)) for _ in other]
    saving = measures.time_saving_for_baseline_accuracy(
        ends, own, other_ends, other, budget=25.0, direction=direction
    )
    expected = reference.time_saving(ends, own, other_ends, other, 25.0, direction)
    assert [
        saving.ratio,
        saving.reached,
        saving.seconds,
        saving.baseline_seconds,
        saving.target,
    ] == pytest.approx(list(expected), nan_ok=True)


def test_time_saving_reproduces_the_published_table():
    for baseline, own, published in [
        (4.64, 3.89, 0.1616),
        (4.41, 2.31, 0.4762),
        (4.51, 1.88, 0.5831),
    ]:
        saving = measures.time_saving_for_baseline_accuracy(
            [own], [0.8], [baseline], [0.8], budget=6.0
        )
        assert saving.ratio == pytest.approx(published, abs=1e-4)


def test_a_score_that_is_not_reached_costs_the_budget_and_says_so():
    saving = measures.time_saving_for_baseline_accuracy(
        [10.0], [0.5], [20.0], [0.8], budget=50.0
    )
    assert (saving.reached, saving.seconds, saving.ratio) == (False, 50.0, -1.5)


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("seed", range(60))
def test_kill_regret_equals_its_twin(seed, direction):
    dice = random.Random(seed)
    scores = scores_of(dice, most=40)
    stopped = [dice.random() < 0.3 for _ in scores]
    fraction = dice.choice([0.1, 0.2, 0.33, 1.0])
    regret = measures.kill_regret(
        scores, stopped, direction=direction, fraction=fraction
    )
    killed, top = reference.kill_regret(scores, stopped, direction, fraction)
    assert (regret.killed, regret.top) == (pytest.approx(killed), top)
    assert regret.upper == pytest.approx(
        reference.upper_bound(round(killed, 9), top, 0.95), abs=1e-9
    )


def test_kill_regret_in_the_corners():
    nothing = measures.kill_regret([], [])
    assert (nothing.killed, nothing.top, nothing.upper) == (0.0, 0, 1.0)
    assert math.isnan(nothing.rate)
    one = measures.kill_regret([0.5], [True])
    assert (one.killed, one.top, one.rate, one.upper) == (1.0, 1, 1.0, 1.0)
    unscored = measures.kill_regret([NAN] * 20, [True] * 20)
    assert unscored.top == 0
    both = measures.kill_regret([0.5] * 30, [True] + 29 * [False])
    assert (both.killed, both.top) == (pytest.approx(0.1), 3)
    assert (nothing + one + both).top == 4


@pytest.mark.parametrize("trials", [0, 1, 7, 13, 59, 149])
@pytest.mark.parametrize("successes", [0, 0.4, 1, 5])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bound_equals_its_twin(successes, trials, confidence):
    if successes <= trials:
        assert measures.upper_bound(successes, trials, confidence) == pytest.approx(
            reference.upper_bound(successes, trials, confidence), abs=1e-9
        )


def test_no_kills_of_59_prove_five_percent_and_of_58_do_not():
    assert measures.upper_bound(0, 59) < 0.05 < measures.upper_bound(0, 58)
    assert measures.upper_bound(0, 149) < 0.02 < measures.upper_bound(0, 148)


@pytest.mark.parametrize("direction", ["max", "min"])
def test_benign_loss_equals_its_twin(direction):
    dice = random.Random(3)
    full, kept = ([dice.choice([0.1, 0.5, NAN]) for _ in range(40)] for _ in range(2))
    benign = [dice.random() < 0.5 for _ in range(40)]
    lost = measures.benign_loss(full, kept, benign, direction=direction)
    expected = reference.benign_loss(full, kept, benign, direction)
    assert lost.tolist() == pytest.approx(expected)


def test_the_count_of_trials_bounds_the_hit_ratio_of_random_search():
    """More trials from the same distribution: Top10HR is r / (1 + r) on average."""
    draw = np.random.default_rng(1)
    ratios = [
        measures.top10_hit_ratio([draw.random(150)], [draw.random(100)])
        for _ in range(400)
    ]
    assert np.mean(ratios) == pytest.approx(measures.hit_ratio_bound(1.5), abs=0.03)
    assert measures.hit_ratio_bound(math.inf) == 1.0


def test_intervals_leave_out_what_is_unknown():
    assert measures.interval([1.0, 2.0, 3.0, NAN], confidence=0.5) == (1.5, 2.5)
    assert all(math.isnan(end) for end in measures.interval([NAN]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measures.top10_hit_ratio([], [[1.0]]), "must hold at least one run"),
        (
            lambda: measures.top10_hit_ratio([[1.0]], [[1.0]], direction="up"),
            "`direction` must be 'min' or 'max', got 'up'",
        ),
        (
            lambda: measures.top10_hit_ratio([1.0], [2.0]),
            "scores must be a list of numbers",
        ),
        (
            lambda: measures.kill_regret([1.0], [True], fraction=0.0),
            r"`fraction` must be in \(0, 1\], got 0.0",
        ),
        (lambda: measures.kill_regret([1.0], []), "got 1 and 0"),
        (
            lambda: measures.time_saving_for_baseline_accuracy(
                [1.0], [], [1.0], [1.0], budget=1.0
            ),
            "must have the same length, got 1 and 0",
        ),
        (
            lambda: measures.time_saving_for_baseline_accuracy(
                [], [], [], [], budget=0.0
            ),
            "`budget` must be positive, got 0.0",
        ),
        (
            lambda: measures.upper_bound(3, 2),
            "`successes` must be between 0 and 2, got 3",
        ),
        (
            lambda: measures.upper_bound(0, 2, confidence=1.0),
            r"`confidence` must be in \(0, 1\), got 1.0",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
