"""Recorded searches for the tests: traces as a random search leaves them."""

from __future__ import annotations

import dataclasses
import math
import random

import specimens

from kt_bttackler.trace import Record, Trace

KINDS = ("learning", "stuck", "vanished", "inactive", "jumping", "broken", "done")


def losses(kind, dice, epochs):
    """Training losses of one kind of training; "done" gains nothing in its end."""
    rate, noise = dice.uniform(2, 20), dice.uniform(0, 0.02)
    curve = [
        0.3 + 2.0 * math.exp(-n / rate) * (1 + noise * dice.gauss(0, 1))
        for n in range(1, epochs + 1)
    ]
    if kind in ("stuck", "vanished", "inactive"):
        return [2.3026 + 1e-5 * dice.gauss(0, 1) for _ in curve]
    if kind == "jumping":
        return curve[: epochs // 2] + [
            2.0 + dice.uniform(-1, 1) + 0.3 * n for n in range(epochs - epochs // 2)
        ]
    if kind == "broken":
        return curve[:3] + [math.nan] * (epochs - 3)
    if kind == "done":
        return curve[: epochs // 2] + [curve[epochs // 2] + 0.1] * (
            epochs - epochs // 2
        )
    return curve


def training(kind, dice, *, epochs=20, started=0.0, end="finished", **header):
    """A trace of one kind, with an accuracy as objective and uneven seconds."""
    curve = losses(kind, dice, epochs)
    gradients = [1e-13, 1e-9, 1e-5, 1e-1] if kind == "vanished" else None
    fields = {"planned": 20, "direction": "max", "started": started} | header
    trace = specimens.trace(
        curve,
        gradients=gradients,
        inactive=0.9 if kind == "inactive" else 0.05,
        **fields,
    )
    seconds, records = 0.0, []
    for record in trace.records:
        seconds += dice.uniform(1.0, 2.0) + (dice.uniform(1, 3) if not seconds else 0)
        loss = record.scalars["loss"]
        reached = 0.1 if not math.isfinite(loss) else 0.1 + 0.8 * math.exp(-loss)
        objective = reached + (0.0 if kind == "done" else 0.01 * dice.gauss(0, 1))
        scalars = {**record.scalars, "objective": objective}
        records.append(Record(record.epoch, seconds, scalars, record.columns))
    return Trace(trace.header, records, end)


def search(trials=40, seed=0, bad=0.5, **options):
    """Traces of a search; about the share `bad` of them is none that learns."""
    dice = random.Random(seed)
    found, started = [], 1e9
    for number in range(trials):
        kind = dice.choice(KINDS[1:]) if dice.random() < bad else "learning"
        trace = training(
            kind, dice, started=started, trial_id=f"{number:03d}", **options
        )
        found.append(trace)
        started += float(trace.seconds[-1]) + 0.5
    return found


def cut(trace, length, end="stopped"):
    """The trace as if the training had been ended early."""
    return Trace(trace.header, trace.records[:length], end)


def replaced(trace, **fields):
    """The trace with other fields of its header."""
    return trace.with_header(dataclasses.replace(trace.header, **fields))
