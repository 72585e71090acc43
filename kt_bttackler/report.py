"""A study as text: a table of the trials, why some were stopped, and the totals."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kt_bttackler.catalog import known_indicators
from kt_bttackler.diagnosis import reason
from kt_bttackler.regions import regions
from kt_bttackler.study import Study, TrialFacts

WIDTH = 99
NOTHING_RECORDED = (
    "No training was recorded: that takes a tuner of kt_bttackler, a "
    "`DiagnosisCallback` among the callbacks, and trials that train with `model.fit`."
)
_HEADINGS = ("trial", "status", "score", "cause", "epochs", "seconds")
_LEFT = ("trial", "status", "cause")  # the other columns hold numbers
_CAUSE_WIDTH = 16


def as_text(study: Study) -> str:
    """Renders a study, at most 99 columns wide.

    Args:
        study: what `results.study` read.
    """
    parts = [
        _table([_cells(trial) for trial in study.trials]),
        _reasons(study.trials),
        _regions(study.trials),
        _advice(study.trials),
        _totals(study),
    ]
    return "\n\n".join(part for part in parts if part)


def shown(number: float | None) -> str:
    """A number for people: four digits; "-" where there is none.

    Example:
        >>> shown(0.123456), shown(None)
        ('0.1235', '-')
    """
    return "-" if number is None else f"{number:.4g}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(7.26), duration(42.4), duration(102.0), duration(7320.0)
        ('7.3 s', '42 s', '1 min 42 s', '2 h 2 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def epochs(trial: TrialFacts) -> str:
    """The epochs that were run of those that were planned.

    Example:
        >>> epochs(TrialFacts("0", "STOPPED", None, (), "", 3, None, None, {}))
        '3 of ?'
    """
    known = (trial.epochs_run, trial.epochs_planned)
    return " of ".join("?" if number is None else str(number) for number in known)


def _cells(trial: TrialFacts) -> tuple[str, ...]:
    return (
        trial.id,
        trial.status,
        shown(trial.score),
        textwrap.shorten(", ".join(trial.causes), _CAUSE_WIDTH, placeholder=" ..."),
        epochs(trial),
        "-" if trial.seconds is None else f"{trial.seconds:.1f}",
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if heading in _LEFT else cell.rjust(width)
            for heading, cell, width in zip(_HEADINGS, cells, widths, strict=True)
        )
        return "  ".join(aligned).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(_HEADINGS), rule, *map(line, rows)])


def _reasons(trials: Sequence[TrialFacts]) -> str:
    """One sentence for each trial that has something to say."""
    told = [trial for trial in trials if trial.message.strip()]
    width = max((len(trial.id) for trial in told), default=0)
    return "\n".join(
        _wrapped(sentence(trial), f"{trial.id:<{width}}  ") for trial in told
    )


def sentence(trial: TrialFacts) -> str:
    """What a trial has to say, in one line; empty when that is nothing."""
    told = reason(trial.message)
    if told and trial.benign:
        told += "; benign, its best score counts"
    return told


def _regions(trials: Sequence[TrialFacts]) -> str:
    lines = [_wrapped(str(region), "") for region in regions(trials)]
    return "\n".join(["Where it happens", *lines]) if lines else ""


def _advice(trials: Sequence[TrialFacts]) -> str:
    lines = [_wrapped(f"{text}.", f"{cause}: ") for cause, text in advice(trials)]
    return "\n".join(["What to try", *lines]) if lines else ""


def advice(trials: Iterable[TrialFacts]) -> list[tuple[str, str]]:
    """Each cause that occurs, with what to try."""
    causes = dict.fromkeys(trial.causes[0] for trial in trials if trial.causes)
    known = known_indicators()
    return [
        (cause, known[cause].advice)
        for cause in causes
        if cause in known and known[cause].advice
    ]


def _totals(study: Study) -> str:
    totals = study.totals()
    lines = [f"{totals['trials']} trials: {statuses(totals)}."]
    unknown = sum(trial.epochs_run is None for trial in study.trials)
    if unknown == len(study.trials):
        if "COMPLETED" in study.by_status:
            lines.append(_wrapped(NOTHING_RECORDED, ""))
    else:
        lines += [
            f"Epochs: {totals['epochs_run']} run of {totals['epochs_planned']} "
            f"planned, {totals['epochs_saved']} saved{_share(totals)}.",
            f"Training time: {duration(totals['seconds'])} spent"
            f"{_seconds_saved(totals)}.",
        ]
    regret = study.kill_regret()
    if regret is not None:
        lines.append(f"What stops cost: {regret}.")
    if 0 < unknown < len(study.trials):
        lines.append(f"Trials without a trace, in none of these sums: {unknown}.")
    best = study.best
    if best is not None and best.score is not None:
        lines.append(
            _wrapped(
                f"trial {best.id}, {study.objective} {best.score:.4g}: "
                f"{configuration(best.hyperparameters)}",
                "Best: ",
            )
        )
    if study.log_dir is not None:
        command = f"tensorboard --logdir {shlex.quote(str(study.log_dir))}"
        lines.append(f"TensorBoard: {command}")
    return "\n".join(lines)


def configuration(hyperparameters: Mapping[str, Any]) -> str:
    """Hyperparameters and their values in one line.

    Example:
        >>> configuration({"lr": 0.123456, "tuner/epochs": 2, "units": 32})
        'lr 0.1235, units 32'
    """
    # KerasTuner keeps its own notes among them.
    own = {k: v for k, v in hyperparameters.items() if not k.startswith("tuner/")}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in own.items()
    )


def statuses(totals: Mapping[str, Any]) -> str:
    """How many trials have which status, in words.

    Args:
        totals: of `Study.totals`.
    """
    counted = [
        f"{number} {status.lower()}"
        for status, number in sorted(totals["by_status"].items())
    ]
    if totals["stopped_benign"]:
        counted.append(
            f"{totals['stopped_benign']} of the completed ended early with nothing "
            "more to gain"
        )
    return ", ".join(counted) or "none yet"


def _share(totals: dict[str, Any]) -> str:
    if not totals["epochs_saved"]:
        return ""
    share = f" ({math.floor(100 * totals['epochs_saved'] / totals['epochs_planned'])} %"
    if totals["epochs_saved_benign"]:
        share += f"; {totals['epochs_saved_benign']} of them by benign stops"
    return share + ")"


def _seconds_saved(totals: dict[str, Any]) -> str:
    if not totals["epochs_saved"]:
        return ""
    saved = duration(totals["seconds_saved"])
    return f", about {saved} saved (an estimate from the epochs that ran)"


def _wrapped(text: str, label: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label)
    )
