"""A comparison as text: diagnoses side by side, one measure a line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from kt_bttackler.comparison import Comparison, Row, pooled_regret
from kt_bttackler.measures import KillRegret
from kt_bttackler.report import duration
from kt_bttackler.simulated import Searches, Spread

_SCORING = {
    "live": "best epoch; last epoch of a trial stopped as harmful",
    "last": "last epoch",
}


def as_text(comparison: Comparison) -> str:
    """Renders a comparison.

    Args:
        comparison: what `comparison.compare` found.
    """
    parts = [_heading(comparison), _measures(comparison), _claims(comparison.rows)]
    if comparison.orders:
        parts.append(_null(comparison))
    return "\n\n".join(part for part in parts if part)


def pooled_text(comparisons: Sequence[Comparison]) -> str:
    """Renders the kill-regret of several tasks together.

    Args:
        comparisons: of the same diagnoses, one per task.
    """
    names = [row.diagnosis for row in comparisons[0].rows]
    regrets = [pooled_regret(comparisons, name) for name in names]
    lines = [
        ["of the best 10 % stopped", *(_regret(first) for first, _ in regrets)],
        ["of the best 20 % stopped", *(_regret(second) for _, second in regrets)],
    ]
    title = f"All {len(comparisons)} tasks together"
    return f"{title}\n\n{_table(['kill-regret (95 % upper bound)', *names], lines)}"


def _heading(comparison: Comparison) -> str:
    c = comparison
    lines = [
        f"{c.task or 'Recorded search'}: {c.trials} trials, {c.complete} complete, "
        f"{duration(c.seconds)} of training, {c.objective} ({c.direction})",
        f"Score of a trial: {_SCORING[c.score]}.",
    ]
    if c.left_out:
        lines.append(f"Left out: {c.left_out} empty traces or further executions.")
    if math.isnan(c.trivial):
        lines.append("Ceiling unknown: the trivial predictor's score was not given.")
    else:
        lines.append(
            f"Ceiling: {c.bad} trials end no better than {c.trivial:.4g}; stopping "
            f"exactly these after one epoch saves {_percent(c.ceiling)} of the time."
        )
    return "\n".join(lines)


def _measures(comparison: Comparison) -> str:
    rows = comparison.rows
    lines: list[list[str]] = []

    def add(label: str, cell: Callable[[Row], str]) -> None:
        lines.append([label, *map(cell, rows)])

    add("stopped as harmful", lambda row: str(row.claimed))
    add("ended, nothing more to gain", lambda row: str(row.benign))
    if any(row.unknown for row in rows):
        add("unknown, cut short earlier", lambda row: str(row.unknown))
    add("stop epochs (median)", lambda row: _epochs(row.stop_epochs))
    add("epochs saved", lambda row: _percent(row.epochs_saved))
    add("seconds saved", lambda row: _percent(row.seconds_saved))
    if not math.isnan(comparison.ceiling):
        add("  of the ceiling", lambda row: _percent(row.of_ceiling))
    add("of the best 10 % stopped", lambda row: _regret(row.top_10))
    add("of the best 20 % stopped", lambda row: _regret(row.top_20))
    add("benign loss, mean (max)", lambda row: _loss(row.benign_loss))

    def simulated(label: str, cell: Callable[[Searches], str]) -> None:
        add(label, lambda row: cell(row.searches) if row.searches else "-")

    if comparison.orders:
        simulated("trials finished per trial", lambda s: _range(s.trials_ratio))
        simulated("Top10HR", lambda s: _range(s.hit_ratio, percent=True))
        simulated("  bound r / (1 + r)", lambda s: _percent(s.hit_ratio_bound))
        simulated("TSBA, paired, median", lambda s: _range(s.time_saving, percent=True))
        simulated("  best score reached", lambda s: _percent(s.reached))
        simulated("  time to that score", lambda s: duration(s.seconds_to_best.value))
    return _table(["", *(row.diagnosis for row in rows)], lines)


def _claims(rows: Sequence[Row]) -> str:
    """Per indicator: trials claimed alone, and as the cause among all."""
    by_row = [{claim.indicator: claim for claim in row.indicators} for row in rows]
    ids = dict.fromkeys(indicator for claims in by_row for indicator in claims)
    lines = []
    for indicator in ids:
        cells = []
        for claims in by_row:
            claim = claims.get(indicator)
            if claim is None:
                cells.append("-")
                continue
            when = f" @{_epochs(claim.epochs)}" if claim.epochs else ""
            cells.append(f"{claim.alone} / {claim.together}{when}")
        if any(cell not in ("-", "0 / 0") for cell in cells):
            lines.append([indicator, *cells])
    if not lines:
        return ""
    return _table(["claimed alone / as cause @epochs", *_names(rows)], lines)


def _names(rows: Sequence[Row]) -> list[str]:
    return [row.diagnosis for row in rows]


def _null(comparison: Comparison) -> str:
    c = comparison
    return "\n".join(
        [
            f"{c.orders} simulated searches of {duration(c.budget)} with {c.workers} "
            "worker(s), trials drawn with replacement; [middle 95 %] of them.",
            f"Without diagnosis the best score came after "
            f"{duration(c.seconds_to_best.value)} (median).",
            "TSBA of two searches without any diagnosis in independent orders (A/A): "
            f"{_range(c.null_saving, percent=True)}, reached in "
            f"{_percent(c.null_reached)}.",
        ]
    )


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        aligned = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
        return "  ".join([first.ljust(widths[0]), *aligned]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(headings), rule, *map(line, lines)])


def _regret(regret: KillRegret) -> str:
    if not regret.top:
        return "none known"
    return f"{regret.killed:.3g} of {regret.top} (<{_percent(regret.upper)})"


def _epochs(epochs: Sequence[float]) -> str:
    if not epochs:
        return "-"
    first, middle, last = epochs
    return f"{first:g}-{last:g} ({middle:g})" if last > first else f"{first:g}"


def _loss(loss: Sequence[float]) -> str:
    return f"{loss[0]:.2g} ({loss[1]:.2g})" if loss else "-"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}%"


def _range(spread: Spread, percent: bool = False) -> str:
    if math.isnan(spread.value):
        return "-"
    if percent:
        low, high = 100 * spread.low, 100 * spread.high
        return f"{100 * spread.value:.0f}% [{low:.0f}, {high:.0f}]"
    return f"{spread.value:.2f} [{spread.low:.2f}, {spread.high:.2f}]"
