"""Learning curves with a known end, and traces of them."""

from __future__ import annotations

import math

import numpy as np

from kt_bttackler.trace import Header, Record, Trace

KINDS = ("exponential", "power", "mmf", "weibull", "logarithm")


def trace(values, started=0.0, end=None, planned=20, direction="max", **header):
    """One epoch a second, with the objective given; `None` where there is none."""
    fields = {"max_epochs": planned, "direction": direction, "started": started}
    return Trace(
        Header(**(fields | header)),
        [
            Record(n, float(n), {"loss": 1.0} | _objective(value))
            for n, value in enumerate(values, 1)
        ],
        end,
    )


def _objective(value):
    return {} if value is None else {"objective": float(value)}


def finished(values, **header):
    return trace(values, end="finished", **header)


def first_stop(rule, values, peers, **header):
    """The first epoch at which the rule stops a trial that starts after its peers."""
    mine = trace(values, started=1e4, **header)
    for prefix in mine.prefixes():
        if rule([()] * len(prefix), prefix, peers):
            return prefix.epoch
    return None


def rising(draw, kind, epochs=20):
    """A curve without noise, from about 0.1 up."""
    x = np.arange(1.0, epochs + 1)
    top = draw.uniform(0.4, 0.95)
    rate = math.exp(draw.uniform(math.log(2 / epochs), 0.0))
    if kind == "exponential":
        return top - (top - 0.1) * np.exp(-rate * x)
    if kind == "power":
        return top - (top - 0.1) * x ** -draw.uniform(0.2, 1.5)
    if kind == "mmf":
        return top - (top - 0.1) / (1 + (rate * x) ** draw.uniform(0.6, 2.5))
    if kind == "weibull":
        return top - (top - 0.1) * np.exp(-((rate * x) ** draw.uniform(0.4, 1.8)))
    return draw.uniform(0.1, 0.4) + draw.uniform(0.02, 0.25) * np.log(x)


def noisy(draw, curve):
    """The curve with noise of a size that differs from curve to curve."""
    spread = math.exp(draw.uniform(math.log(0.001), math.log(0.03)))
    return curve + spread * draw.normal(size=len(curve))
