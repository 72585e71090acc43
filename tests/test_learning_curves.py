import math
import time
import warnings

import numpy as np
import pytest
import reference_curves
import scipy.optimize
from curves import KINDS, finished, first_stop, noisy, rising, trace

from kt_bttackler import Diagnosis, LearningCurveExtrapolation, Patience, fuses
from kt_bttackler.curve_families import FAMILIES, _family_weights, domhan_forecast
from kt_bttackler.extrapolation import fast_forecast
from kt_bttackler.learning_curves import MODES
from kt_bttackler.testing import check_rule

pytestmark = pytest.mark.filterwarnings("ignore:.*there are none to be seen here")
NAN, INF = math.nan, math.inf
FORECASTS = {"fast": fast_forecast, "domhan": domhan_forecast}
RULES = {mode: LearningCurveExtrapolation(mode=mode) for mode in MODES}
X = np.arange(1.0, 20.0)
# Ends at 0.6 and 0.92; the best of the others at 0.9.
POOR, GOOD = 0.6 * (1 - 0.7**X), 0.92 * (1 - 0.7**X)
PEERS = [finished([0.5, 0.9]), finished([0.9, 0.7])]
both_modes = pytest.mark.parametrize("mode", MODES)


@both_modes
def test_keeps_the_contract(mode):
    check_rule(RULES[mode])
    check_rule(Patience(RULES[mode]))


@both_modes
def test_stops_what_will_not_reach_the_best_and_lets_the_rest_go_on(mode):
    epoch = first_stop(RULES[mode], POOR, PEERS)
    assert epoch == {"fast": 8, "domhan": 8}[mode]
    assert first_stop(RULES[mode], GOOD, PEERS) is None
    assert first_stop(RULES[mode], POOR, [finished([0.55])]) is None


@both_modes
def test_the_verdict_says_how_unlikely_it_is(mode):
    diagnosis = Diagnosis((), RULES[mode])
    verdict = diagnosis(trace(POOR[:12], 1e4), PEERS)
    assert (verdict.cause, verdict.stop, verdict.benign) == ("LCE", True, False)
    (finding,) = verdict.findings
    assert 0 <= finding.value < finding.threshold == 0.05
    assert str(finding).startswith(
        "LCE at epoch 12: probability of an end better than the best so far "
    )
    assert diagnosis(trace(POOR[:12], 1e4), iter(PEERS)) == verdict


@both_modes
@pytest.mark.parametrize("curve", [POOR, GOOD], ids=["poor", "good"])
def test_unit_offset_and_direction_change_nothing(mode, curve):
    draw = np.random.default_rng(2)
    curve = curve + draw.normal(scale=0.01, size=len(curve))
    ends = [[0.85], [0.9]]
    answers = []
    for scale, shift in ((1, 0), (1, -50), (300, 0), (1e-5, 0), (-1, 0), (-20, 3)):
        header = {"direction": "max" if scale > 0 else "min"}
        peers = [finished(scale * np.array(end) + shift, **header) for end in ends]
        mine = trace(scale * curve + shift, 1e4, **header)
        lengths = range(6, 19, 4)
        found = [RULES[mode]([()], mine.prefix(n), peers) for n in lengths]
        answers.append([grounds[0].value if grounds else NAN for grounds in found])
    for answer in answers[1:]:
        assert answer == pytest.approx(answers[0], nan_ok=True, abs=1e-6)


@both_modes
@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_a_curve_that_is_not_finite_is_not_judged(mode, broken):
    for place in (0, 5, 11):
        curve = POOR[:12].copy()
        curve[place] = broken
        assert RULES[mode]([()], trace(curve, 1e4), PEERS) == ()
    assert RULES[mode]([()], trace([NAN] * 12, 1e4), PEERS) == ()


@both_modes
def test_without_a_plan_or_a_completed_trial_it_abstains(mode):
    rule = RULES[mode]
    assert first_stop(rule, POOR, PEERS, planned=None) is None
    running = [trace([0.9] * 3), trace([0.9] * 3, end="stopped"), finished([NAN])]
    assert first_stop(rule, POOR, [*running, finished([None])]) is None
    assert first_stop(rule, POOR, [*running, *PEERS]) == 8
    later = [finished([0.9] * 3, started=1e4 + 12.5)]
    assert first_stop(rule, POOR, later) == 17, "both checks must know of the other"


def test_fewer_than_six_values_are_no_curve():
    rule = LearningCurveExtrapolation(start_epoch=1)
    assert first_stop(rule, [0.1] * 19, PEERS) == 7
    seldom = [value if n % 2 else None for n, value in enumerate([0.1] * 19)]
    assert first_stop(rule, seldom, PEERS) == 14, "epochs without one do not count"


def test_a_trial_that_has_been_the_best_goes_on():
    assert first_stop(RULES["fast"], [0.1] * 5 + [0.95] + [0.1] * 12, PEERS) is None


def test_asks_twice():
    assert first_stop(RULES["fast"], [0.1] * 18, PEERS) == 7
    late = LearningCurveExtrapolation(start_epoch=9)
    assert first_stop(late, [0.1] * 18, PEERS) == 10


def test_an_uncertain_forecast_stops_nothing():
    draw = np.random.default_rng(0)
    wild = draw.uniform(0.0, 0.85, size=18)
    assert first_stop(RULES["fast"], wild, PEERS) is None


@both_modes
def test_a_huge_first_loss_hides_nothing(mode):
    losses = 1 - POOR
    losses[0] = 1e6
    peers = [finished([1 - 0.9], direction="min")]
    assert first_stop(RULES[mode], losses, peers, direction="min") == 9
    losses[2:] = 1 - GOOD[2:]
    assert first_stop(RULES[mode], losses, peers, direction="min") is None


def share_stopped(mode, number, ahead, seed, loss=False):
    """Share of trials stopped that end better than the best of the others.

    Args:
        mode: of the rule.
        number: of trials.
        ahead: by how much they are better, in shares of their own rise.
        seed: of curves and noise.
        loss: turn them into losses.
    """
    draw = np.random.default_rng(seed)
    stopped = 0
    header = {"direction": "min" if loss else "max"}
    for k in range(number):
        clean = rising(draw, KINDS[k % len(KINDS)])
        clean = -np.log(np.maximum(clean, 0.01)) if loss else clean
        curve = noisy(draw, clean)
        goal = curve[-1] - ahead * (clean[-1] - clean[0])
        epoch = first_stop(
            RULES[mode], curve[:-1], [finished([goal], **header)], **header
        )
        stopped += epoch is not None
    return stopped / number


@pytest.mark.parametrize(("mode", "number"), [("fast", 100), ("domhan", 10)])
@pytest.mark.parametrize("loss", [False, True])
def test_at_most_one_in_twenty_of_the_better_ones_is_stopped(mode, number, loss):
    # Over a whole training, though the threshold is that of one check.
    assert share_stopped(mode, number, ahead=0.05, seed=1, loss=loss) <= 0.05


def test_even_those_that_are_better_by_nothing_are_seldom_stopped():
    assert share_stopped("fast", 100, ahead=0.0, seed=6) <= 0.08


@pytest.mark.parametrize(("mode", "number"), [("fast", 100), ("domhan", 10)])
def test_intervals_hold_what_they_promise(mode, number):
    draw = np.random.default_rng(3)
    inside = asked = 0
    for k in range(number):
        curve = noisy(draw, rising(draw, KINDS[k % len(KINDS)]))
        for length in (7, 12):
            with np.errstate(all="ignore"):
                forecast = FORECASTS[mode](X[:length], curve[:length], 20)
            if forecast is not None:
                low, high = forecast.interval(0.9)
                inside += low <= curve[-1] <= high
                asked += 1
    assert asked > number
    assert inside / asked >= 0.87


def test_most_of_the_worse_ones_are_stopped_early():
    draw = np.random.default_rng(5)
    worse = stopped = 0
    for _ in range(60):
        curves = [noisy(draw, rising(draw, draw.choice(KINDS))) for _ in range(4)]
        if curves[0][-1] < max(curve[-1] for curve in curves[1:]):
            others = [finished(curve) for curve in curves[1:]]
            worse += 1
            epoch = first_stop(RULES["fast"], curves[0][:-1], others)
            stopped += epoch is not None and epoch <= 14
    assert worse > 30
    assert stopped / worse > 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_mode_is_what_the_reference_computes(kind):
    draw = np.random.default_rng(KINDS.index(kind))
    curve = noisy(draw, rising(draw, kind))
    for length in (6, 11):
        epochs, values = X[:length], curve[:length]
        level = curve[-1] + 0.01
        expected = reference_curves.fast_chance(
            epochs.tolist(), values.tolist(), 20, level
        )
        measured = fast_forecast(epochs, values, 20).chance_above(level)
        assert measured == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_those_of_the_paper_and_can_be_fitted(name):
    family, slow = FAMILIES[name], reference_curves.FAMILIES[name]
    draw = np.random.default_rng(7)
    for _ in range(5):
        parameters = np.array(family.start) + draw.uniform(0, 0.2, len(family.start))
        curve = family.curve(X, *parameters)
        assert curve == pytest.approx([slow(x, *parameters) for x in X.tolist()])
        found, _ = scipy.optimize.curve_fit(family.curve, X, curve, family.start)
        assert family.curve(X, *found) == pytest.approx(curve, abs=1e-4)


def test_chains_weight_families_as_the_reference_does():
    draw = np.random.default_rng(0)
    seen = 0.1 + 0.8 * (1 - 0.7 ** X[:10])
    curves = seen + draw.normal(size=(5, 1)) * [[0], [0.02], [0.05], [0.1], [0.3]]
    weights = _family_weights(curves, seen, math.inf)
    assert weights.sum() == pytest.approx(1)
    assert weights == pytest.approx(
        reference_curves.family_weights(curves.tolist(), seen.tolist())
    )
    assert weights.argmin() == 4


@both_modes
def test_the_same_trace_has_the_same_answer_whatever_was_asked_before(mode):
    def ask():
        return RULES[mode]([()], trace(POOR[:9], 1e4), PEERS)

    first = ask()
    RULES[mode]([()], trace(GOOD[:15], 1e4), [finished([0.93])])
    np.random.seed(1)
    assert first
    assert ask() == first


@both_modes
@pytest.mark.parametrize("length", [12, 400])
def test_a_decision_takes_less_than_a_second(mode, length):
    draw = np.random.default_rng(length)
    epochs = np.arange(1.0, length + 1)
    curve = 0.6 - 0.5 * epochs**-0.3 + draw.normal(scale=0.02, size=length)
    mine = trace(curve, 1e4, planned=2 * length)
    RULES[mode]([()], mine, PEERS)  # loads scipy
    began = time.perf_counter()
    RULES[mode]([()], mine, PEERS)
    assert time.perf_counter() - began < 1.1


@both_modes
def test_when_the_time_is_over_it_abstains_and_says_so_once(mode):
    fuses.warn_once.cache_clear()
    hurried = LearningCurveExtrapolation(mode=mode, time_limit=1e-9)
    with pytest.warns(
        RuntimeWarning, match="LCE goes on where it fails: Timeout"
    ) as seen:
        assert first_stop(hurried, POOR, PEERS) is None
    assert len(seen) == 1


@both_modes
@pytest.mark.parametrize(
    "curve",
    [
        [0.5] * 12,
        [0.1] * 6 + [0.5] * 6,
        [0.0, 1e300] * 6,
        [-1e308, 1e307] * 6,
        [1e-320] * 12,
        list(np.linspace(0.5, 0.1, 12)),
        [0.0] * 11 + [0.89],
    ],
    ids=["flat", "step", "huge", "overflow", "tiny", "falling", "late rise"],
)
def test_odd_curves_raise_and_warn_of_nothing(mode, curve):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prefix in trace(curve, 1e4).prefixes():
            RULES[mode]([()], prefix, PEERS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LearningCurveExtrapolation(mode="slow"),
            r"`mode` must be one of \('fast', 'domhan'\), got 'slow'",
        ),
        (
            lambda: LearningCurveExtrapolation(threshold=1.0),
            r"`threshold` must be in \(0, 1\), got 1.0",
        ),
        (
            lambda: LearningCurveExtrapolation(time_limit=0),
            "`time_limit` must be above 0, got 0",
        ),
        (
            lambda: LearningCurveExtrapolation(0),
            "`start_epoch` must be at least 1, got 0",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
