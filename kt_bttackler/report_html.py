"""Pieces of HTML about a study, which need neither scripts nor a network.

Notebooks show them as they are, the page of the report adds its pictures. Whatever
comes from the search is escaped, in `element` and in nothing else.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
from collections.abc import Iterable, Sequence
from html import escape

from kt_bttackler import colours, report
from kt_bttackler.catalog import known_indicators
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.indicators import Finding
from kt_bttackler.regions import regions
from kt_bttackler.study import Study, TrialFacts

_NUMBERS = (
    "score",
    "trials",
    "epoch",
    "epochs",
    "seconds",
    "epochs saved",
    "time saved",
    "value",
    "threshold",
)


class Html(str):
    """Text that is HTML already."""


def element(tag: str, *children: str, **attributes: str | None) -> Html:
    """An element with its content; text that is not `Html` is escaped.

    Args:
        tag: its name.
        *children: texts and elements.
        **attributes: underscores at the end and within stand for none and for "-".

    Example:
        >>> print(element("p", "1 < 2 ", element("b", "yes"), class_="note"))
        <p class="note">1 &lt; 2 <b>yes</b></p>
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    content = "".join(
        child if isinstance(child, Html) else escape(child) for child in children
    )
    return Html(f"<{tag}{named}>{content}</{tag}>")


def joined(parts: Iterable[str]) -> Html:
    """Elements one after the other; text that is not `Html` is escaped."""
    return Html(
        "".join(part if isinstance(part, Html) else escape(part) for part in parts)
    )


@functools.cache
def style() -> str:
    """The style sheet of fragment and page."""
    package = importlib.resources.files("kt_bttackler")
    return package.joinpath("report_page.css").read_text(encoding="utf-8")


def as_fragment(study: Study) -> str:
    """The study for a notebook: totals, causes, regions and trials.

    Args:
        study: what `results.study` read.
    """
    return element(
        "div",
        Html(f"<style>{style()}</style>"),
        tiles(study),
        causes(study),
        element("details", element("summary", "All trials"), trials(study.trials)),
        class_="ktb",
    )


def tiles(study: Study) -> Html:
    """The totals, as a row of tiles."""
    totals = study.totals()
    shown = [("trials", str(totals["trials"]), report.statuses(totals))]
    best = study.best
    if best is not None:
        told = f"{study.objective} of trial {best.id}"
        shown.append(("best", report.shown(best.score), told))
    if totals["epochs_planned"]:
        told = f"{totals['epochs_run']} run of {totals['epochs_planned']} planned"
        share = totals["epochs_saved"] / totals["epochs_planned"]
        shown.append(("epochs saved", f"{math.floor(100 * share)} %", told))
        told = f"estimate; {report.duration(totals['seconds'])} were spent"
        saved = report.duration(totals["seconds_saved"])
        shown.append(("time saved", saved, told))
    regret = study.kill_regret()
    if regret is not None:
        value = f"{regret.among_best} of {regret.spared}"
        told = (
            "trials that were run on in spite of a verdict ended among the best tenth"
        )
        shown.append(("kill-regret", value, told))
    return element(
        "div",
        *(
            element(
                "div",
                element("span", name, class_="name"),
                element("span", value, class_="value"),
                element("span", told, class_="told"),
                class_="tile",
            )
            for name, value, told in shown
        ),
        class_="tiles",
    )


def causes(study: Study) -> Html:
    """What was found, how often, what it saved, where it happens, what to try."""
    groups: dict[str, list[TrialFacts]] = {}
    for trial in study.trials:
        if trial.causes:
            groups.setdefault(trial.causes[0], []).append(trial)
    if not groups:
        return element("p", "No trial was stopped by a diagnosis.", class_="note")
    where = {region.cause: str(region) for region in regions(study.trials)}
    what_to_try = dict(report.advice(study.trials))
    known = known_indicators()
    rows = [
        (
            joined(
                [
                    chip(cause),
                    Html("<br>"),
                    element("small", known[cause].quantity if cause in known else ""),
                ]
            ),
            str(len(members)),
            str(sum(trial.epochs_saved for trial in members)),
            report.duration(sum(trial.seconds_saved for trial in members)),
            where.get(cause, "no region stands out"),
            code(what_to_try.get(cause, "")),
        )
        for cause, members in sorted(groups.items(), key=lambda g: -len(g[1]))
    ]
    headings = (
        "cause",
        "trials",
        "epochs saved",
        "time saved",
        "where it happens",
        "what to try",
    )
    return table(headings, rows)


def trials(shown: Sequence[TrialFacts], places: dict[str, str] | None = None) -> Html:
    """Trials as a table.

    Args:
        shown: the trials.
        places: ids of elements to link to, by trial id; `None` links nothing.
    """
    rows = [
        (
            element("a", t.id, href=f"#{places[t.id]}") if places else t.id,
            status(t),
            report.shown(t.score),
            joined(chip(cause) for cause in t.causes),
            report.epochs(t),
            report.shown(t.seconds),
            report.sentence(t),
            element("small", report.configuration(t.hyperparameters)),
        )
        for t in shown
    ]
    headings = (
        "trial",
        "status",
        "score",
        "cause",
        "epochs",
        "seconds",
        "why",
        "configuration",
    )
    return table(headings, rows)


def status(trial: TrialFacts) -> str:
    """The status of a trial in words."""
    words = trial.status.lower()
    if trial.benign:
        words += ", nothing more to gain"
    return words + (", run on in spite of a verdict" if trial.spared else "")


def findings(verdict: Verdict | None) -> Html:
    """What was found in one trial: what, where, value per threshold, what to try."""
    if verdict is None or not verdict.findings:
        return Html("")
    rows = [
        (
            chip(found.indicator),
            found.quantity + (" (warning)" if found.warning else ""),
            str(found.epoch),
            f"{found.value:.3g}",
            _bound(found),
            found.layer or "",
            code(found.advice),
        )
        for found in verdict.findings
    ]
    headings = (
        "indicator",
        "what",
        "epoch",
        "value",
        "threshold",
        "layer",
        "what to try",
    )
    return table(headings, rows)


def code(text: str) -> Html:
    """Text in which what stands between backquotes is code.

    Example:
        >>> print(code("set `clipnorm=1.0`"))
        set <code>clipnorm=1.0</code>
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return joined([text])
    return joined(
        element("code", part) if number % 2 else part
        for number, part in enumerate(parts)
    )


def chip(cause: str) -> Html:
    """The id of a cause in its colour."""
    known = known_indicators().get(cause)
    return element(
        "span",
        cause,
        class_="chip",
        style=f"--cause:{colours.colour(cause)}",
        title=known.quantity if known else None,
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table that scrolls in a box of its own where it is too wide."""
    head = element("tr", *(_cell("th", name, name) for name in headings))
    body = [
        element("tr", *(_cell("td", *c) for c in zip(headings, cells, strict=True)))
        for cells in rows
    ]
    content = element("table", element("thead", head), element("tbody", *body))
    return element("div", content, class_="wide")


def _cell(tag: str, heading: str, content: str) -> Html:
    return element(tag, content, class_="number" if heading in _NUMBERS else None)


def _bound(found: Finding) -> str:
    return f"{'<' if found.value < found.threshold else '>'} {found.threshold:.3g}"
