"""Traces of healthy trainings, and of sick ones for every indicator."""

import math
import random

from kt_bttackler.trace import Header, Record, Trace


def header(layers=4, planned=20, **changes):
    """A chain of dense layers, each with a kernel and a bias."""
    names = [f"dense_{k}" for k in range(layers)]
    fields = {
        "max_epochs": planned,
        "variables": tuple(f"{n}/{v}" for n in names for v in ("kernel", "bias")),
        "variable_layers": tuple(n for n in names for _ in range(2)),
        "variable_sizes": (64, 8) * layers,
        "kernels": (True, False) * layers,
        "layers": tuple(names),
        "edges": tuple((k, k + 1) for k in range(layers - 1)),
        "activations": tuple(names[:-1]),
    }
    return Header(**fields | changes)


def trace(losses, *, first=None, gradients=None, inactive=0.05, **changes):
    """One record per loss.

    Args:
        losses: training loss of each epoch.
        first: loss of the first batch; by default a little above the first loss.
        gradients: mean |gradient| of each layer, the same at every epoch.
        inactive: share of inactive units of every activation layer.
        changes: fields of the header.
    """
    head = header(**{"planned": 20} | changes)
    size = len(head.layers)
    gradients = (
        [0.01 * (1 + 0.1 * k) for k in range(size)] if gradients is None else gradients
    )
    per_variable = tuple(g for g in gradients for _ in range(2))
    records = []
    for n, loss in enumerate(losses, 1):
        scalars = {
            "loss": loss,
            "val_loss": loss * 1.05,
            "objective": loss * 1.05,
            "learning_rate": 0.01,
            "regularization": 0.0,
        }
        if n == 1:
            scalars["first_batch_loss"] = loss * 1.0001 if first is None else first
            scalars["first_regularization"] = 0.0
        columns = {
            "step_gradient/abs_mean": per_variable,
            "step_gradient/abs_mean_median": per_variable,
            "step_gradient/zero_ratio": tuple(float(g == 0) for g in per_variable),
            "step_gradient/finite": (1.0,) * len(per_variable),
        }
        if head.activations and "activation" not in head.unobserved:
            columns["activation/constant_ratio"] = (inactive,) * len(head.activations)
        records.append(Record(n, float(n), scalars, columns))
    return Trace(head, records)


def learning(epochs=19, noise=0.0, seed=0):
    draw = random.Random(seed)
    return [
        0.2 + 2.1 * math.exp(-n / 5) * (1 + noise * draw.gauss(0, 1))
        for n in range(1, epochs + 1)
    ]


STUCK = [2.3026 + 1e-5 * (-1) ** n for n in range(10)]

HEALTHY = {
    "exponential": trace(learning()),
    "noisy": trace(learning(noise=0.02)),
    "negative loss": trace([-x for x in reversed(learning())], first=-0.2),
    "converged in epoch 1": trace([0.01] * 19, first=2.3, max_epochs=None),
    "near zero": trace([1e-13] * 19, first=1e-13),
    "one layer": trace(learning(), layers=1),
    "mean |gradient| falls gently": trace(
        learning(), gradients=[1e-4, 2e-4, 4e-4, 8e-4]
    ),
    "clipped": trace(learning(), gradients=[1e9] * 4, gradients_clipped=True),
}

SICK = {
    "AGV": trace([2.3, 2.2, math.nan]),
    "EAG": trace(STUCK, gradients=[1e6, 1e2, 1e-2, 1e-6]),
    "ERG": trace(STUCK, gradients=[1e-13, 1e-9, 1e-5, 1e-1]),
    "PLC": trace(STUCK),
    "LAR": trace(STUCK, inactive=0.9),
    "ULC": trace([2.0 / n for n in range(1, 11)] + [1.5, 0.6, 2.2, 1.2, 2.8, 1.6, 3.1]),
    "NMG": trace([2.0 / n for n in range(1, 11)] + [0.21] * 8),
}
