"""The pictures of one training in the report, as plotly figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from kt_bttackler.figures import epoch_axis, figure_of, finite, severity_map, value_axis
from kt_bttackler.readings import Reading, gradients_by_layer
from kt_bttackler.trace import Trace


def course(trace: Trace, metrics: Sequence[tuple[str, str]]) -> Any | None:
    """The metrics of one training over its epochs.

    Args:
        trace: what was recorded of it.
        metrics: names of scalars, and what to call them.
    """
    epochs = [record.epoch for record in trace.records]
    drawn = [(title, trace.scalar(name)) for name, title in metrics]
    drawn = [(title, values) for title, values in drawn if np.isfinite(values).any()]
    if not drawn:
        return None
    losses = [values for title, values in drawn if "loss" in title]
    figure = figure_of(
        height=280,
        xaxis=epoch_axis(epochs),
        yaxis=value_axis(losses, "loss"),
        # What is no loss, such as an accuracy, has a scale of its own.
        yaxis2={
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
            "tickmode": "auto",
            "nticks": 5,
            "rangemode": "tozero",
        },
        margin={"l": 56, "r": 44, "t": 36, "b": 44},
    )
    for number, (title, values) in enumerate(drawn):
        figure.add_scatter(
            mode="lines+markers",
            x=epochs,
            y=[finite(value) for value in values],
            name=escape(title),
            yaxis="y" if "loss" in title else "y2",
            line={
                "color": ("#2b7fd6", "#d4700b", "#0d8f8a", "#9a5fe0")[number % 4],
                "dash": ("solid", "dash", "dot", "dashdot")[number % 4],
            },
            marker={"size": 4},
        )
    return figure


def gradients(trace: Trace) -> Any | None:
    """Mean |gradient| of each layer over the epochs, on a logarithmic scale."""
    layers, table = gradients_by_layer(trace)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.log10(table)
    known = z[np.isfinite(z)]
    if not known.size:
        return None
    low, high = float(known.min()), float(known.max())
    ticks = {float(tick): f"1e{tick}" for tick in _decades(low, high)}
    # No gradient and one that is not finite stand out beyond the others.
    if np.isneginf(z).any():
        ticks[low - 1] = "none"
    if np.isposinf(z).any():
        ticks[high + 1] = "inf"
    z = np.where(np.isneginf(z), low - 1, np.where(np.isposinf(z), high + 1, z))
    epochs = [record.epoch for record in trace.records]
    names = [escape(layer) for layer in layers]
    figure = figure_of(
        height=min(900, 110 + 20 * len(layers)),
        margin={"l": 110, "r": 12, "t": 12, "b": 44},
        xaxis={**epoch_axis(epochs), "showgrid": False},
        yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
    )
    figure.add_heatmap(
        z=[[finite(value, 2) for value in row] for row in z],
        x=epochs,
        y=names,
        colorscale="Viridis",
        colorbar={
            "title": {"text": "mean |g|"},
            "tickvals": list(ticks),
            "ticktext": list(ticks.values()),
            "thickness": 10,
        },
        hovertemplate="%{y}, epoch %{x}: mean |g| about 10^%{z:.1f}<extra></extra>",
        xgap=1,
        ygap=1,
    )
    return figure


def severity_course(trace: Trace, readings: Sequence[Reading]) -> Any | None:
    """The severity of each indicator over the epochs of one training."""
    judged = [reading for reading in readings if reading.peak is not None]
    if not judged:
        return None
    epochs = [record.epoch for record in trace.records]
    rows = [reading.indicator.id for reading in judged]
    figure = figure_of(
        height=110 + 22 * len(rows),
        margin={"l": 110, "r": 12, "t": 12, "b": 44},
        xaxis={**epoch_axis(epochs), "showgrid": False},
        yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
    )
    z = [[finite(s, 2) for s in reading.severities] for reading in judged]
    figure.add_heatmap(
        **severity_map(z, epochs, rows),
        hovertemplate="%{y} at epoch %{x}: severity %{z:.2f}<extra></extra>",
    )
    return figure


def _decades(low: float, high: float) -> list[int]:
    """A few powers of ten between two logarithms; the nearest when there is none."""
    first, last = math.ceil(low), math.floor(high)
    if first > last:
        return [round((low + high) / 2)]
    return sorted({first, (first + last) // 2, last})
