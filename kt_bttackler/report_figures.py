"""The pictures of a search in the report, as plotly figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from kt_bttackler import colours
from kt_bttackler.figures import (
    epoch_axis,
    figure_of,
    finite,
    scale,
    severity_map,
    value_axis,
)
from kt_bttackler.readings import Reading
from kt_bttackler.regions import Region
from kt_bttackler.report import configuration, duration, sentence, shown
from kt_bttackler.study import Study, TrialFacts


def timeline(study: Study) -> Any | None:
    """A bar for each trial from its begin to its end, the stopped ones marked."""
    timed = [
        (trial, trial.started, trial.ended)
        for trial in study.trials
        if trial.started is not None
        and trial.ended is not None
        and trial.ended >= trial.started
    ]
    if not timed:
        return None
    first = min(started for _, started, _ in timed)
    span = max(ended for *_, ended in timed) - first
    unit, seconds = _unit(span)
    figure = figure_of(
        height=min(760, max(200, 13 * len(timed) + 90)),
        xaxis={"title": f"{unit} since the search began", "rangemode": "tozero"},
        yaxis={
            "title": "trial",
            "type": "category",
            "autorange": "reversed",
            "categoryarray": [escape(trial.id) for trial, *_ in timed],
            "showgrid": False,
        },
        barmode="overlay",
        bargap=0.25,
    )
    for cause, members in _by_cause(timed, lambda each: each[0]).items():
        figure.add_bar(
            orientation="h",
            y=[escape(trial.id) for trial, *_ in members],
            base=[(started - first) / seconds for _, started, _ in members],
            x=[
                max(ended - started, span / 500) / seconds
                for _, started, ended in members
            ],
            name=_named(cause),
            legendgroup=str(cause),
            marker={"color": colours.colour(cause), "opacity": 0.85},
            hovertext=[_about(study, trial) for trial, *_ in members],
            hoverinfo="text",
        )
        ends = [each for each in members if each[0].causes]
        if ends:
            figure.add_scatter(
                mode="markers",
                y=[escape(trial.id) for trial, *_ in ends],
                x=[(ended - first) / seconds for *_, ended in ends],
                legendgroup=str(cause),
                showlegend=False,
                marker={**_marker(cause), "size": 9},
                hovertext=[_about(study, trial) for trial, *_ in ends],
                hoverinfo="text",
            )
    return figure


def curves(study: Study, metric: str, title: str) -> Any | None:
    """A metric of every trial over the epochs, coloured by cause.

    Args:
        study: the trials, with their traces.
        metric: name of a scalar of the traces.
        title: of the axis.
    """
    drawn = []
    for trial in study.trials:
        trace = study.traces.get(trial.id, {}).get(0)
        values = trace.scalar(metric) if trace is not None else np.array([])
        if trace is not None and np.isfinite(values).any():
            drawn.append((trial, [r.epoch for r in trace.records], values))
    if not drawn:
        return None
    figure = figure_of(
        height=380,
        xaxis=epoch_axis([epoch for _, epochs, _ in drawn for epoch in epochs]),
        yaxis=value_axis([values for *_, values in drawn], title),
    )
    for cause, members in _by_cause(drawn, lambda each: each[0]).items():
        x: list[float | None] = []
        y: list[float | None] = []
        about: list[str] = []
        for trial, epochs, values in members:
            x += [*epochs, None]  # a gap between one trial and the next
            y += [*map(finite, values), None]
            about += [escape(trial.id)] * len(epochs) + [""]
        figure.add_scatter(
            mode="lines+markers",
            x=x,
            y=y,
            name=_named(cause),
            legendgroup=str(cause),
            line={
                "color": colours.colour(cause),
                "width": 1.4 if cause is None else 2,
                "dash": colours.dash(cause),
            },
            marker={"size": 3},
            opacity=0.6 if cause is None else 0.95,
            text=about,
            hovertemplate="trial %{text}, epoch %{x}: %{y:.4g}<extra></extra>",
        )
        ends = [_last_finite(*each) for each in members if each[0].causes]
        if ends:
            figure.add_scatter(
                mode="markers",
                x=[epoch for epoch, _, _ in ends],
                y=[value for _, value, _ in ends],
                legendgroup=str(cause),
                showlegend=False,
                marker={**_marker(cause), "size": 10},
                hovertext=[_about(study, trial) for *_, trial in ends],
                hoverinfo="text",
            )
    return figure


def severities(study: Study, peaks: dict[str, list[Reading]]) -> Any | None:
    """Trials against indicators: how far the worst epoch was over the threshold.

    Args:
        study: the trials.
        peaks: readings of each trial by its id.
    """
    ids = dict.fromkeys(r.indicator.id for found in peaks.values() for r in found)
    trials = [trial for trial in study.trials if trial.id in peaks]
    if not ids or not trials:
        return None
    rows = list(ids)
    z: list[list[float | None]] = [[None] * len(trials) for _ in rows]
    about = [[""] * len(trials) for _ in rows]
    for column, trial in enumerate(trials):
        for reading in peaks[trial.id]:
            row = rows.index(reading.indicator.id)
            peak = reading.peak
            about[row][column] = f"trial {escape(trial.id)}, {rows[row]}: " + (
                "did not judge" if peak is None else _at(reading, peak)
            )
            if peak is not None:
                z[row][column] = round(reading.severities[peak], 3)
    figure = figure_of(
        height=110 + 26 * len(rows),
        xaxis={
            "title": "trial",
            "type": "category",
            "showgrid": False,
            "nticks": 40,
            "tickangle": -90 if len(trials) > 20 else 0,
        },
        yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
    )
    names = [escape(trial.id) for trial in trials]
    figure.add_heatmap(
        **severity_map(z, names, rows), hovertext=about, hoverinfo="text"
    )
    found = [
        (escape(trial.id), row, cause)
        for trial in trials
        for cause in trial.causes
        for row in rows
        if row == cause
    ]
    if found:
        figure.add_scatter(
            mode="markers",
            x=[x for x, *_ in found],
            y=[y for _, y, _ in found],
            marker={
                "symbol": "circle",
                "size": 6,
                "color": "#ffffff",
                "line": {"color": "#111111", "width": 1},
            },
            hoverinfo="skip",
            showlegend=False,
        )
    return figure


def hyperparameter(
    study: Study, name: str, shaded: Sequence[Region], by_score: bool
) -> Any:
    """The values of one hyperparameter against cause or score.

    Args:
        study: the trials.
        name: of the hyperparameter.
        shaded: regions of its values.
        by_score: draw the score upwards, and not the causes.
    """
    trials = [t for t in study.trials if t.hyperparameters.get(name) is not None]
    values = [trial.hyperparameters[name] for trial in trials]
    numeric = all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    )
    x: list[Any] = values if numeric else [escape(str(value)) for value in values]
    axis: dict[str, Any] = {"title": escape(name), "zeroline": False}
    axis["type"] = "category" if not numeric else scale(values)
    if axis["type"] == "log":
        axis["exponentformat"] = "power"
    causes = list(_by_cause(trials, lambda each: each))
    if by_score:
        upward = value_axis(
            [[t.score for t in trials if t.score is not None]], str(study.objective)
        )
        y = [finite(trial.score) for trial in trials]
    else:
        rows = {cause: -number for number, cause in enumerate(causes)}
        upward = {
            "tickvals": list(rows.values()),
            "ticktext": [_named(cause) for cause in rows],
            "range": [-len(rows) + 0.4, 0.6],
            "zeroline": False,
        }
        # Points of one row lie beside each other, the same way every time.
        y = [
            rows[_cause(trial)] + 0.5 * ((number * 0.618) % 1 - 0.5)
            for number, trial in enumerate(trials)
        ]
    figure = figure_of(
        height=230,
        xaxis=axis,
        yaxis=upward,
        showlegend=False,
        margin={"l": 60, "r": 12, "t": 12, "b": 44},
    )
    for cause in causes:
        members = [k for k, trial in enumerate(trials) if _cause(trial) == cause]
        figure.add_scatter(
            mode="markers",
            x=[x[k] for k in members],
            y=[y[k] for k in members],
            name=_named(cause),
            marker={**_marker(cause), "size": 8},
            opacity=0.85,
            hovertext=[_about(study, trials[k]) for k in members],
            hoverinfo="text",
        )
    for region in shaded if numeric else ():
        _shade(figure, region, values)
    return figure


def saved(study: Study) -> Any | None:
    """Seconds that each cause saved."""
    by_cause: dict[str, float] = {}
    for trial in study.trials:
        if trial.causes and trial.seconds_saved > 0:
            cause = trial.causes[0]
            by_cause[cause] = by_cause.get(cause, 0.0) + trial.seconds_saved
    if not by_cause:
        return None
    unit, seconds = _unit(max(by_cause.values()))
    ordered = sorted(by_cause, key=lambda cause: by_cause[cause])
    figure = figure_of(
        height=90 + 30 * len(ordered),
        xaxis={"title": f"{unit} saved (estimate)", "rangemode": "tozero"},
        yaxis={"type": "category", "showgrid": False},
        showlegend=False,
    )
    figure.add_bar(
        orientation="h",
        y=[escape(cause) for cause in ordered],
        x=[by_cause[cause] / seconds for cause in ordered],
        marker={"color": [colours.colour(cause) for cause in ordered]},
        hovertext=[f"{escape(c)}: {duration(by_cause[c])}" for c in ordered],
        hoverinfo="text",
    )
    return figure


def _at(reading: Reading, k: int) -> str:
    indicator = reading.indicator
    sign = "positive above" if indicator.fires == "above" else "positive below"
    return (
        f"{escape(indicator.quantity)} {reading.values[k]:.3g}, {sign} "
        f"{reading.limits[k]:.3g} (record {k + 1})"
    )


def _by_cause(members: Iterable[Any], trial_of: Any) -> dict[str | None, list[Any]]:
    """Members by the cause of their trial: the sound first, then the commonest."""
    groups: dict[str | None, list[Any]] = {}
    for member in members:
        groups.setdefault(_cause(trial_of(member)), []).append(member)
    order = sorted(groups, key=lambda cause: (cause is not None, -len(groups[cause])))
    return {cause: groups[cause] for cause in order}


def _cause(trial: TrialFacts) -> str | None:
    return trial.causes[0] if trial.causes else None


def _named(cause: str | None) -> str:
    return "not stopped" if cause is None else escape(cause)


def _marker(cause: str | None) -> dict[str, Any]:
    return {"color": colours.colour(cause), "symbol": colours.mark(cause)}


def _about(study: Study, trial: TrialFacts) -> str:
    lines = [f"trial {trial.id}, {trial.status.lower()}"]
    if trial.score is not None:
        lines[0] += f", {study.objective or 'score'} {shown(trial.score)}"
    if trial.message.strip():
        lines.append(sentence(trial))
    lines.append(configuration(trial.hyperparameters))
    return "<br>".join(escape(part) for line in lines for part in _folded(line))


def _folded(line: str, width: int = 90) -> list[str]:
    return [line[k : k + width] for k in range(0, min(len(line), 6 * width), width)]


def _last_finite(
    trial: TrialFacts, epochs: Sequence[int], values: np.ndarray
) -> tuple[int, float, TrialFacts]:
    k = int(np.flatnonzero(np.isfinite(values))[-1])
    return epochs[k], float(values[k]), trial


def _unit(seconds: float) -> tuple[str, float]:
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def _shade(figure: Any, region: Region, values: Sequence[float]) -> None:
    log = figure.layout.xaxis.type == "log"
    low, high = min(values), max(values)
    inside = (region.value, high) if region.relation == ">" else (low, region.value)
    if region.relation not in (">", "<="):
        return
    pad = 1.15 if log else 0.03 * (high - low)
    ends = [inside[0], inside[1]]
    if region.relation == ">":
        ends[1] = ends[1] * pad if log else ends[1] + pad
    else:
        ends[0] = ends[0] / pad if log else ends[0] - pad
    figure.add_vrect(
        x0=ends[0],
        x1=ends[1],
        fillcolor=colours.colour(region.cause),
        opacity=0.14,
        line_width=0,
        layer="below",
    )
