"""The report as one HTML page that needs no network.

Tables are plain HTML. Pictures are descriptions for plotly, whose script is in the page
once; a picture is drawn when it comes into view. A content security policy in the page
forbids it to load anything.
"""

from __future__ import annotations

import datetime
import importlib.resources
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.offline  # type: ignore[import-untyped, unused-ignore]

from kt_bttackler import report, report_figures, trial_figures
from kt_bttackler.readings import Reading, indicators_of, readings
from kt_bttackler.regions import Region, regions
from kt_bttackler.report_html import (
    Html,
    causes,
    chip,
    code,
    element,
    findings,
    joined,
    status,
    style,
    table,
    tiles,
    trials,
)
from kt_bttackler.study import Study, TrialFacts
from kt_bttackler.trace import Trace

_BEST = 10
# Of a space with more hyperparameters, those with a region and the first ones.
_MOST_HYPERPARAMETERS = 24
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:"
)


def as_html(study: Study, now: datetime.datetime | None = None) -> str:
    """The whole page.

    Args:
        study: what `results.study` read.
        now: what to say of when it was written; by default the present time.

    Example:
        >>> trial = TrialFacts("0", "COMPLETED", 0.9, (), "", 10, 10, 4.2, {"lr": 0.1})
        >>> page = as_html(Study("val_accuracy", "max", (trial,), name="digits"))
        >>> page.splitlines()[0], "<h1>Search digits</h1>" in page
        ('<!doctype html>', True)
    """
    now = now or datetime.datetime.now().astimezone()
    places = {trial.id: f"trial-{k}" for k, trial in enumerate(study.trials)}
    read = {
        trial.id: readings(trace, indicators_of(study, trial.id))
        for trial in study.trials
        if (trace := study.traces.get(trial.id, {}).get(0)) is not None
    }
    sections = [
        ("causes", "What was found", _overview(study)),
        ("time", "The search over time", _timeline(study)),
        ("curves", "Learning curves", _curves(study)),
        ("indicators", "Trials and indicators", _severities(study, read)),
        ("hyperparameters", "Hyperparameters and causes", _hyperparameters(study)),
        ("savings", "What stops saved, and what they cost", _saved(study)),
        ("best", "Best trials", _best(study, places)),
        ("trials", "All trials", trials(study.trials, places)),
        ("each", "Trial by trial", _trials(study, places, read)),
    ]
    sections = [each for each in sections if each[2]]
    links = (
        element("li", element("a", name, href=f"#{name}", title=title))
        for name, title, _ in sections
    )
    body = [
        element(
            "header",
            element("h1", f"Search {study.name}"),
            element("p", _subtitle(study, now), class_="note"),
            tiles(study),
            class_="top",
        ),
        element("nav", element("ul", *links)),
        element(
            "main",
            element("noscript", "The pictures need JavaScript, the tables do not."),
            *(
                element("section", element("h2", title, id=name), content)
                for name, title, content in sections
            ),
        ),
        _footer(study),
        Html(f"<script>{plotly.offline.get_plotlyjs()}</script>"),
        Html(f"<script>{_own_script()}</script>"),
    ]
    head = joined(
        [
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
            Html(
                '<meta name="viewport" content="width=device-width, initial-scale=1">'
            ),
            Html('<meta name="color-scheme" content="light dark">'),
            element("title", f"{study.name}: report of a search"),
            Html(f"<style>{style()}</style>"),
        ]
    )
    page = element("body", *body, class_="ktb")
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n{page}</html>\n'


def _own_script() -> str:
    package = importlib.resources.files("kt_bttackler")
    return package.joinpath("report_page.js").read_text(encoding="utf-8")


def _subtitle(study: Study, now: datetime.datetime) -> str:
    parts = []
    if study.objective:
        kind = {"max": ", to be maximised", "min": ", to be minimised"}
        parts.append(
            f"objective {study.objective}{kind.get(study.direction or '', '')}"
        )
    running = study.by_status.get("RUNNING", 0)
    if running:
        parts.append(f"{running} running when this was written")
    parts.append(f"written {now:%Y-%m-%d %H:%M}")
    return " · ".join(parts)


def _footer(study: Study) -> Html:
    told = "Seconds saved are an estimate from the epochs that ran. "
    if study.log_dir is not None:
        told += f"TensorBoard: tensorboard --logdir {study.log_dir}"
    return element("footer", told)


def _picture(figure: Any | None) -> Html:
    """A place for a picture, with its description; empty without one."""
    if figure is None:
        return Html("")
    # "<" would end the script element, whatever text it stands in.
    content = str(figure.to_json(remove_uids=True)).replace("<", "\\u003c")
    return Html(
        f'<div class="figure" style="--height:{int(figure.layout.height)}px">'
        f'<script type="application/json">{content}</script></div>'
    )


def _note(text: str) -> Html:
    return element("p", code(text), class_="note")


def _overview(study: Study) -> Html:
    missing = sum(trial.epochs_run is None for trial in study.trials)
    notes = []
    if missing:
        notes.append(
            _note(
                f"{missing} of {len(study.trials)} trials were searched without "
                "`DiagnosisCallback`, or their trace cannot be read: of them only is "
                "known what KerasTuner keeps, the score and the configuration."
            )
        )
    return joined([causes(study), *notes])


def _timeline(study: Study) -> Html:
    figure = report_figures.timeline(study)
    if figure is None:
        return Html("")
    told = _note(
        "One bar per trial, from its first to its last epoch; the mark at its end says "
        "that the diagnosis ended it. Click on a cause to hide it."
    )
    return joined([told, _picture(figure)])


def _curves(study: Study) -> Html:
    choices = [
        ("objective", study.objective or "objective"),
        ("loss", "loss"),
        ("val_loss", "val_loss"),
    ]
    drawn = [
        (title, report_figures.curves(study, metric, title))
        for metric, title in choices
        if metric == "objective" or title != study.objective
    ]
    return _tabs("curve", [(t, _picture(f)) for t, f in drawn if f is not None])


def _severities(study: Study, read: dict[str, list[Reading]]) -> Html:
    figure = report_figures.severities(study, read)
    if figure is None:
        return Html("")
    told = _note(
        "The worst epoch of each trial: how far an indicator was from its threshold, "
        "as a factor. Where it is past the threshold the colour turns warm. It need "
        "not stop a trial then: some ask for two epochs in a row, or spare a training "
        "that learns. A white dot: it was a ground for stopping. Empty: not judged."
    )
    return joined([told, _picture(figure)])


def _hyperparameters(study: Study) -> Html:
    found = regions(study.trials)
    by_name: dict[str, list[Region]] = {}
    for region in found:
        by_name.setdefault(region.hyperparameter, []).append(region)
    seen: dict[str, set[str]] = {}
    for trial in study.trials:
        for name, value in trial.hyperparameters.items():
            if not name.startswith("tuner/") and value is not None:
                seen.setdefault(name, set()).add(repr(value))
    varied = [name for name, values in seen.items() if len(values) > 1]
    chosen = sorted(varied, key=lambda name: name not in by_name)
    chosen = chosen[:_MOST_HYPERPARAMETERS]
    if not chosen:
        return Html("")
    sentences = element(
        "ul",
        *(element("li", chip(r.cause), str(r)) for r in found),
        class_="regions",
    )
    told = sentences if found else _note("No region of the space stands out so far.")
    tabs = []
    if any(trial.causes for trial in study.trials):
        tabs.append(("by cause", _grid(study, chosen, by_name, False)))
    if any(trial.score is not None for trial in study.trials):
        title = f"by {study.objective or 'score'}"
        tabs.append((title, _grid(study, chosen, by_name, True)))
    return joined([told, _tabs("hyperparameter", tabs)])


def _grid(
    study: Study, names: Sequence[str], found: dict[str, list[Region]], by_score: bool
) -> Html:
    drawn = (
        report_figures.hyperparameter(study, name, found.get(name, ()), by_score)
        for name in names
    )
    return element("div", *(_picture(figure) for figure in drawn), class_="grid")


def _saved(study: Study) -> Html:
    figure = report_figures.saved(study)
    regret = study.kill_regret()
    if figure is None and regret is None:
        return Html("")
    if regret is None:
        told = (
            "What the stops cost is not measured here: no trial was run on in spite of "
            "a verdict, so nobody knows what the stopped ones would have become."
        )
    else:
        told = (
            "What the stops cost, as far as trials tell that ran to their end in spite "
            f"of a verdict: {regret}."
        )
    spared = [trial for trial in study.trials if trial.spared]
    ranks = {trial.id: rank for rank, trial in enumerate(study.ranked(), start=1)}
    parts = [_picture(figure), element("p", told)]
    if spared:
        items = (
            element(
                "li",
                f"trial {trial.id}: rank {ranks.get(trial.id, '?')} of {len(ranks)}, "
                f"{study.objective} {report.shown(trial.score)}; the verdict was: "
                f"{study.verdicts.get(trial.id, '')}",
            )
            for trial in spared
        )
        parts.append(element("ul", *items))
    return joined(parts)


def _best(study: Study, places: dict[str, str]) -> Html:
    rows = [
        (
            element("a", trial.id, href=f"#{places[trial.id]}"),
            report.shown(trial.score),
            report.epochs(trial),
            report.shown(trial.seconds),
            report.configuration(trial.hyperparameters),
        )
        for trial in study.ranked()[:_BEST]
    ]
    headings = ("trial", "score", "epochs", "seconds", "configuration")
    return table(headings, rows) if rows else Html("")


def _trials(
    study: Study, places: dict[str, str], read: dict[str, list[Reading]]
) -> Html:
    return joined(
        _trial(study, trial, places[trial.id], read.get(trial.id, []))
        for trial in study.trials
    )


def _trial(study: Study, trial: TrialFacts, place: str, read: list[Reading]) -> Html:
    told = report.sentence(trial)
    title = element(
        "summary",
        element("span", f"Trial {trial.id}", class_="id"),
        element("span", report.shown(trial.score), class_="score"),
        *(chip(cause) for cause in trial.causes),
        element("small", f"{status(trial)}{': ' if told else ''}{told}"),
    )
    facts = element(
        "dl",
        *(
            joined([element("dt", name), element("dd", str(value))])
            for name, value in _facts(study, trial)
        ),
    )
    trace = study.traces.get(trial.id, {}).get(0)
    inside = [
        findings(study.verdicts.get(trial.id)),
        _pictures_of(study, trace, read) if trace is not None else Html(""),
        element("h3", "Configuration"),
        facts,
    ]
    return element("details", title, element("div", *inside, class_="inside"), id=place)


def _facts(study: Study, trial: TrialFacts) -> list[tuple[str, Any]]:
    own = [
        (name, report.shown(value) if isinstance(value, float) else value)
        for name, value in trial.hyperparameters.items()
        if not name.startswith("tuner/")
    ]
    seconds = trial.seconds
    return [
        *own,
        ("epochs", report.epochs(trial)),
        ("training time", "-" if seconds is None else report.duration(seconds)),
    ]


def _pictures_of(study: Study, trace: Trace, read: list[Reading]) -> Html:
    objective = study.objective or "objective"
    metrics = [("loss", "loss"), ("val_loss", "val_loss")]
    if objective not in ("loss", "val_loss"):
        metrics.append(("objective", objective))
    drawn = [
        ("Learning curves", trial_figures.course(trace, metrics)),
        ("Gradients, layer by layer", trial_figures.gradients(trace)),
        ("Severity of each indicator", trial_figures.severity_course(trace, read)),
    ]
    return element(
        "div",
        *(
            element("div", element("h3", title), _picture(figure))
            for title, figure in drawn
            if figure is not None
        ),
        class_="grid",
    )


def _tabs(name: str, tabs: Sequence[tuple[str, Html]]) -> Html:
    """Contents of which one is seen, chosen by radio buttons: no script is needed."""
    if len(tabs) < 2:
        return joined(content for _, content in tabs)
    parts = []
    for number, (title, content) in enumerate(tabs):
        chosen = " checked" if number == 0 else ""
        key = f"{name}-{number}"
        parts.append(
            Html(
                f'<input type="radio" name="{name}" id="{key}"{chosen}>'
                f'<label for="{key}">{escape(title)}</label>'
                f'<div class="tab">{content}</div>'
            )
        )
    return element("div", *parts, class_="tabs")
