"""What the pictures of the report have in common: axes, scales, colours.

Names come from search spaces: plotly reads a little HTML in every text, so all of them
are escaped, and none stands where plotly expects a template.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped, unused-ignore]

from kt_bttackler.indicators import SEVERITY_RANGE

# Values that differ by more than this factor are drawn on a logarithmic scale.
WIDE = 30.0
# Far below the threshold, just below, just above, far above. The step is where an
# indicator fires. What is far from it recedes into the paper, be it light or dark.
_SEVERITY_SCALE = [
    [0.0, "rgba(96, 130, 170, 0.14)"],
    [0.5, "rgba(96, 130, 170, 0.62)"],
    [0.5, "#f0a04b"],
    [1.0, "#c2142e"],
]
_SEVERITY_TICKS = {
    "tickvals": [-3, -2, -1, 0, 1, 2, 3],
    "ticktext": ["far from it", "", "", "fires", "10 x", "100 x", "1000 x"],
}


def figure_of(**layout: Any) -> Any:
    """An empty figure; colours of paper, ink and grid come from the page.

    Args:
        **layout: of plotly; the titles of axes may be mere text.
    """
    base = {
        "template": go.layout.Template(),  # the default one is large
        "margin": {"l": 64, "r": 16, "t": 36, "b": 48},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
    }
    for axis in ("xaxis", "yaxis"):
        given = dict(layout.get(axis, {}))
        if isinstance(given.get("title"), str):
            given["title"] = {"text": given["title"], "standoff": 8}
        layout[axis] = {"automargin": True, "zeroline": False, **given}
    return go.Figure(layout={**base, **layout})


def severity_map(
    z: Sequence[Sequence[float | None]],
    x: Sequence[Any],
    y: Sequence[str],
) -> dict[str, Any]:
    """A heatmap of severities, the scale with a step where an indicator fires."""
    return {
        "z": z,
        "x": x,
        "y": y,
        "zmin": -SEVERITY_RANGE,
        "zmax": SEVERITY_RANGE,
        "colorscale": _SEVERITY_SCALE,
        "colorbar": {**_SEVERITY_TICKS, "thickness": 10},
        "xgap": 1 if len(x) <= 100 else 0,  # or the gaps would be all one sees
        "ygap": 1,
    }


def finite(value: Any, digits: int | None = None) -> float | None:
    """A number as JSON takes it; `None`, a gap, where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(value) if digits is None else round(float(value), digits)


def scale(values: Iterable[Any]) -> str:
    """The kind of axis for positive numbers of very different size, or others."""
    known = [abs(float(v)) for v in values if v is not None and math.isfinite(v)]
    signed = [v for v in values if v is not None and v <= 0]
    wide = known and not signed and max(known) / min(known) > WIDE
    return "log" if wide else "linear"


def value_axis(columns: Sequence[Any], title: str) -> dict[str, Any]:
    """An axis for values; that of losses is logarithmic where they have exploded."""
    values = [float(v) for column in columns for v in column if math.isfinite(v)]
    axis: dict[str, Any] = {"title": escape(title)} if title else {}
    if "loss" in title and scale(values) == "log":
        axis |= {"type": "log", "exponentformat": "power"}
    return axis


def epoch_axis(epochs: Sequence[int]) -> dict[str, Any]:
    """Epochs are whole numbers, also where there are few of them."""
    axis: dict[str, Any] = {"title": "epoch"}
    if len(set(epochs)) <= 12:
        axis |= {"tick0": 1, "dtick": 1}
    return axis
