"""A study as Markdown: for issues, pull requests and wikis."""

from __future__ import annotations

from kt_bttackler import report
from kt_bttackler.markup import escaped, table
from kt_bttackler.regions import regions
from kt_bttackler.study import Study, TrialFacts

_BEST = 5


def as_markdown(study: Study) -> str:
    """Renders a study; names from the search space are escaped.

    Args:
        study: what `results.study` read.

    Example:
        >>> trial = TrialFacts("0", "COMPLETED", 0.9, (), "", 10, 10, 4.2, {"lr": 0.1})
        >>> text = as_markdown(Study("val_accuracy", "max", (trial,), name="digits"))
        >>> text.splitlines()[0]
        '# Search digits'
    """
    parts = [
        f"# Search {escaped(study.name)}".rstrip(),
        totals(study),
        _section("Stopped, and why", _reasons(study)),
        _section("Where it happens", _regions(study)),
        _section("What to try", _advice(study)),
        _section("Best trials", _best(study)),
        _section("All trials", _trials(study)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def totals(study: Study) -> str:
    """What the trials add up to, as a list."""
    sums = study.totals()
    lines = [f"{sums['trials']} trials: {report.statuses(sums)}"]
    if sums["epochs_planned"]:
        lines.append(
            f"epochs: {sums['epochs_run']} run of {sums['epochs_planned']} planned, "
            f"{sums['epochs_saved']} saved"
        )
        lines.append(
            f"training time: {report.duration(sums['seconds'])} spent, about "
            f"{report.duration(sums['seconds_saved'])} saved (an estimate)"
        )
    regret = study.kill_regret()
    if regret is not None:
        lines.append(f"what stops cost: {regret}")
    best = study.best
    if best is not None:
        lines.append(
            f"best: trial {best.id}, {study.objective} {report.shown(best.score)}"
        )
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _reasons(study: Study) -> str:
    told = [
        (trial.id, trial.causes[0] if trial.causes else "", report.sentence(trial))
        for trial in study.trials
        if trial.message.strip()
    ]
    return table(("trial", "cause", "why"), told) if told else ""


def _regions(study: Study) -> str:
    return "\n".join(f"- {escaped(str(each))}" for each in regions(study.trials))


def _advice(study: Study) -> str:
    known = report.advice(study.trials)
    return "\n".join(
        f"- **{escaped(cause)}**: {escaped(text)}" for cause, text in known
    )


def _best(study: Study) -> str:
    best = study.ranked()[:_BEST]
    rows = [
        (t.id, report.shown(t.score), report.configuration(t.hyperparameters))
        for t in best
    ]
    headings = ("trial", str(study.objective), "configuration")
    return table(headings, rows) if rows else ""


def _trials(study: Study) -> str:
    return table(
        ("trial", "status", "score", "cause", "epochs", "seconds", "configuration"),
        [_row(trial) for trial in study.trials],
    )


def _row(trial: TrialFacts) -> tuple[str, ...]:
    return (
        trial.id,
        trial.status.lower(),
        report.shown(trial.score),
        ", ".join(trial.causes),
        report.epochs(trial),
        report.shown(trial.seconds),
        report.configuration(trial.hyperparameters),
    )
