"""A study as rows: one for each trial, for CSV files and for pandas."""

from __future__ import annotations

import csv
import io
from typing import Any

from kt_bttackler.study import Study, TrialFacts

# Columns of facts; then come the hyperparameters, as `hp/<name>`.
HEADINGS = (
    "trial",
    "status",
    "score",
    "cause",
    "causes",
    "benign",
    "spared",
    "message",
    "epochs_run",
    "epochs_planned",
    "epochs_saved",
    "seconds",
    "seconds_saved",
    "started",
    "ended",
)


def table(study: Study) -> tuple[list[str], list[list[Any]]]:
    """Headings and rows; what is unknown is `None`.

    Args:
        study: what `results.study` read.

    Example:
        >>> trial = TrialFacts("0", "COMPLETED", 0.9, (), "", 10, 10, 4.2, {"lr": 0.1})
        >>> headings, (row,) = table(Study("val_accuracy", "max", (trial,)))
        >>> headings[-1], row[-1], row[headings.index("score")]
        ('hp/lr', 0.1, 0.9)
    """
    names = list(
        dict.fromkeys(name for t in study.trials for name in t.hyperparameters)
    )
    headings = [*HEADINGS, *(f"hp/{name}" for name in names)]
    return headings, [
        [*_facts(trial), *(trial.hyperparameters.get(name) for name in names)]
        for trial in study.trials
    ]


def as_csv(study: Study) -> str:
    """The rows as comma-separated values; what is unknown is empty."""
    headings, rows = table(study)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headings, *rows])
    return text.getvalue()


def _facts(trial: TrialFacts) -> list[Any]:
    own = {
        "trial": trial.id,
        "cause": trial.causes[0] if trial.causes else None,
        "causes": " ".join(trial.causes),
        "message": trial.message or None,
    }
    return [
        own[heading] if heading in own else getattr(trial, heading)
        for heading in HEADINGS
    ]
