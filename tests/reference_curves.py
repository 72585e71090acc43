"""Rules that compare trials, a second time: plain loops, written from the definitions."""

from __future__ import annotations

import math
import statistics

import numpy as np


def cost(trace, value):
    """The objective so that less is better; what is not finite is worst."""
    if not math.isfinite(value):
        return math.inf
    return -value if trace.header.direction == "max" else value


def median_stopping(rule, trace, peers):
    """Best value and median where the rule stops, else `None`."""
    last = trace.records[-1]
    planned = trace.header.max_epochs
    if last.partial or "objective" not in last.scalars:
        return None
    if last.epoch < rule.start_epoch or (planned is not None and last.epoch >= planned):
        return None
    best = math.inf
    for record in trace.records:
        if "objective" in record.scalars:
            best = min(best, cost(trace, record.scalars["objective"]))
    averages, seen = [], set()
    for peer in peers:
        identity = peer.header.trial_id
        if identity is not None and (
            identity in seen or identity == trace.header.trial_id
        ):
            continue
        if peer.header.objective != trace.header.objective:
            continue
        if peer.header.direction != trace.header.direction:
            continue
        ended = peer.end == "finished" or (
            rule.include_stopped and peer.end == "stopped"
        )
        finish = peer.header.started + peer.records[-1].seconds
        now = trace.header.started + last.seconds
        if not ended or finish > now:
            continue
        seen.add(identity)
        if peer.header.initial_epoch != trace.header.initial_epoch:
            continue
        if peer.records[-1].epoch < last.epoch:
            continue
        total, count = 0.0, 0
        for record in peer.records:
            if record.epoch <= last.epoch and "objective" in record.scalars:
                total += cost(peer, record.scalars["objective"])
                count += 1
        if count:
            averages.append(total / count)
    if len(averages) < rule.min_completed or math.isinf(best):
        return None
    median = statistics.median(averages)
    if best <= median:
        return None
    sign = -1 if trace.header.direction == "max" else 1
    return sign * best, sign * median


FAMILIES = {
    "vapor pressure": lambda x, a, b, c: math.exp(a + b / x + c * math.log(x)),
    "pow3": lambda x, c, a, p: c - a / x ** math.exp(p),
    "log log linear": lambda x, a, b: math.log(a * math.log(x) + math.exp(b)),
    "hill3": lambda x, top, eta, kappa: (
        top
        * x ** math.exp(eta)
        / (math.exp(kappa) ** math.exp(eta) + x ** math.exp(eta))
    ),
    "log power": lambda x, a, b, c: a / (1 + (x / math.exp(b)) ** -math.exp(c)),
    "pow4": lambda x, c, a, b, p: (
        c - 1 / (math.exp(a) * x + math.exp(b)) ** math.exp(p)
    ),
    "mmf": lambda x, a, b, k, d: a - (a - b) / (1 + (math.exp(k) * x) ** math.exp(d)),
    "exp4": lambda x, c, a, b, p: c - math.exp(-math.exp(a) * x ** math.exp(p) + b),
    "janoschek": lambda x, a, b, k, d: (
        a - (a - b) * math.exp(-math.exp(k) * x ** math.exp(d))
    ),
    "weibull": lambda x, a, b, k, d: (
        a - (a - b) * math.exp(-((math.exp(k) * x) ** math.exp(d)))
    ),
    "ilog2": lambda x, c, a: c - a / math.log(x + 1),
}


def fast_chance(epochs, values, planned, level=1.0):
    """Probability of the fast ensemble that the curve ends above `level`."""
    n, now = len(epochs), epochs[-1]
    start = max(now / 2, epochs[0])
    doublings = math.log2(planned / now) / math.log2(now / start)
    rows = np.random.default_rng(0).integers(0, n, size=(100, n)).tolist()
    power = [math.log]
    for p in np.geomspace(0.05, 4, 19).tolist():
        power.append(lambda x, p=p: -(x**-p))
    exponential = [
        lambda x, p=p: -math.exp(-p * x / now)
        for p in np.geomspace(0.2, 20, 20).tolist()
    ]
    hyperbola = [
        lambda x, p=p: -1 / (1 + x / (p * now))
        for p in np.geomspace(0.02, 5, 20).tolist()
    ]
    answers = []  # per family, per resample: mean, variance, score
    for family in (power, exponential, hyperbola):
        weights = [1.0] * n
        for _ in range(4):
            level_, slope, g, _ = best_line(family, epochs, weights, values)
            curve = [level_ + slope * g(x) for x in epochs]
            gaps = [v - c for v, c in zip(values, curve, strict=True)]
            scale = 2 * 1.4826 * statistics.median(abs(gap) for gap in gaps)
            scale = max(scale, 1e-9)
            weights = [1 / math.sqrt(1 + (gap / scale) ** 2) for gap in gaps]
        inflation = math.sqrt(n / (n - 3))
        resamples = [list(values)]
        for row in rows:
            resamples.append(
                [c + inflation * gaps[k] for c, k in zip(curve, row, strict=True)]
            )
        lines = [best_line(family, epochs, weights, curve) for curve in resamples]
        _, slope, g, _ = lines[0]
        resolution = (0.02 * slope * (g(now) - g(start))) ** 2 + 1e-18
        answers.append([])
        for level_, slope, g, error in lines:
            doubt = 0.5 * doublings * slope * (g(now) - g(start))
            variance = error * n / (n - 3) + resolution + doubt**2
            score = n * math.log(error + resolution)
            answers[-1].append((level_ + slope * g(planned), variance, score))
    total = 0.0
    for parts in zip(*answers, strict=True):
        least = min(score for _, _, score in parts)
        shares = [math.exp((least - score) / 2) for _, _, score in parts]
        for share, (mean, variance, _) in zip(shares, parts, strict=True):
            z = (level - mean) / math.sqrt(variance)
            total += share / sum(shares) * math.erfc(z / math.sqrt(2)) / 2
    return total / len(answers[0])


def best_line(family, xs, weights, ys):
    """Level, slope, g and weighted mean squared error of the best of a family."""
    whole = sum(weights)
    best = None
    for g in family:
        gs = [g(x) for x in xs]
        mean_g = sum(w * a for w, a in zip(weights, gs, strict=True)) / whole
        mean_y = sum(w * y for w, y in zip(weights, ys, strict=True)) / whole
        cross = square = 0.0
        for w, a, y in zip(weights, gs, ys, strict=True):
            cross += w * (a - mean_g) * (y - mean_y)
            square += w * (a - mean_g) ** 2
        slope = cross / square
        error = 0.0
        for w, a, y in zip(weights, gs, ys, strict=True):
            error += w * (y - mean_y - slope * (a - mean_g)) ** 2 / whole
        if best is None or error < best[-1]:
            best = (mean_y - slope * mean_g, slope, g, error)
    return best


def family_weights(curves, seen):
    """Mean weights over the chains, one chain and one step at a time."""
    draw = np.random.default_rng(0)
    count, n = len(curves), len(seen)

    def log_likelihood(weights):
        squares = 0.0
        for k in range(n):
            mixed = sum(w * curve[k] for w, curve in zip(weights, curves, strict=True))
            squares += (mixed - seen[k]) ** 2
        return -n / 2 * math.log(squares / n + 1e-6)

    chains = [normalised(row) for row in draw.uniform(size=(10, count)).tolist()]
    totals = [0.0] * count
    for step in range(200):
        moves = draw.normal(size=(10, count)).tolist()
        luck = draw.uniform(size=10).tolist()
        for c, chain in enumerate(chains):
            proposed = [
                w + 0.05 * move for w, move in zip(chain, moves[c], strict=True)
            ]
            if min(proposed) > 0:
                proposed = normalised(proposed)
                gain = log_likelihood(proposed) - log_likelihood(chain)
                if math.log(luck[c]) < gain:
                    chains[c] = proposed
            if step >= 100:
                totals = [t + w for t, w in zip(totals, chains[c], strict=True)]
    return normalised(totals)


def normalised(weights):
    return [weight / sum(weights) for weight in weights]
