"""Reads the files of a search: KerasTuner's, and those of the diagnosis.

What cannot be read is missing, whatever is in it: a search may be in the midst of
writing it, or have been killed while it did.
"""

from __future__ import annotations

import datetime
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from kt_bttackler import channel, files
from kt_bttackler.diagnosis import Diagnosis, Verdict
from kt_bttackler.project import read_json
from kt_bttackler.trace import Trace, read_trace


def trial_state(folder: pathlib.Path) -> dict[str, Any]:
    """Content of `trial.json`; empty while KerasTuner is in the midst of writing it.

    What is not of the kind that KerasTuner writes is left out.
    """
    state = _json(folder / "trial.json")
    kinds = {"trial_id": str, "status": str, "message": str, "score": float | int}
    known: dict[str, Any] = {
        k: v
        for k, v in state.items()
        if isinstance(v, kinds.get(k, object)) and not _is_huge(v)
    }
    for outer, inner in (("hyperparameters", "values"), ("metrics", "metrics")):
        within = known.get(outer)
        content = within.get(inner) if isinstance(within, dict) else None
        known[outer] = {inner: content if isinstance(content, dict) else {}}
    values = known["hyperparameters"]["values"]
    known["hyperparameters"]["values"] = {
        name: value
        for name, value in values.items()
        if (value is None or isinstance(value, bool | int | float | str))
        and not _is_huge(value)
    }
    return known if state else {}


def written_at(folder: pathlib.Path) -> float | None:
    """Unix time at which `trial.json` was written last."""
    try:
        return (folder / "trial.json").stat().st_mtime
    except OSError:
        return None


def starts(project: pathlib.Path) -> dict[str, float]:
    """Unix time at which KerasTuner began each trial, as far as it keeps it.

    It does so while it shows its own table, in the local time of its machine.
    """
    display = _json(project / "oracle.json").get("display")
    noted = display.get("trial_start") if isinstance(display, dict) else None
    found = {}
    for trial_id, text in noted.items() if isinstance(noted, dict) else ():
        try:
            found[trial_id] = datetime.datetime.fromisoformat(text).timestamp()
        except (TypeError, ValueError, OverflowError):
            continue
    return found


def traces(folder: pathlib.Path) -> dict[int, Trace]:
    """Readable traces of a trial by execution."""
    found: dict[int, Trace] = {}
    for path in sorted(folder.glob("trace-*.jsonl")):
        try:
            trace = read_trace(path)
        except (OSError, ValueError):
            continue
        # A second fit of the same execution comes behind the first.
        found.setdefault(trace.header.execution, trace)
    return found


def message(state: Mapping[str, Any]) -> channel.Message | None:
    """What the metrics of a trial's state carry."""
    metrics = {}
    for name, history in state.get("metrics", {}).get("metrics", {}).items():
        try:
            if history["observations"]:
                metrics[name] = statistics.fmean(history["observations"][-1]["value"])
        except (
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            ValueError,
            OverflowError,
        ):
            continue
    try:
        return channel.decode(metrics)
    except (ValueError, OverflowError):  # numbers that no callback writes
        return None


def objective(
    states: Iterable[Mapping[str, Any]],
) -> tuple[str | None, str | None]:
    """Name and direction of the objective, which KerasTuner does not write down.

    It is the one metric that equals the score of every completed trial; where there
    is none, or are several, nothing is known.

    Args:
        states: of the trials, as `trial_state` reads them.
    """
    found: set[tuple[str, str]] | None = None
    for state in states:
        if state.get("status") != "COMPLETED" or "score" not in state:
            continue
        metrics = state["metrics"]["metrics"].items()
        equal = {
            (name, history["direction"])
            for name, history in metrics
            if _holds(history, state["score"])
        }
        found = equal if found is None else found & equal
    if found is None or len(found) != 1:
        return None, None
    return found.pop()


def _holds(history: Any, score: float) -> bool:
    """Whether this is a metric with a direction, and the score one of its values."""
    try:
        means = [statistics.fmean(each["value"]) for each in history["observations"]]
        known = history["direction"] in ("min", "max")
    except (TypeError, KeyError, ValueError, OverflowError):
        return False
    return known and any(math.isclose(mean, score) for mean in means)


def written_verdict(folder: pathlib.Path) -> Verdict | None:
    """What the diagnosis said of the first execution, be it stopped or not."""
    try:
        return Verdict.from_json(files.read_text(folder / "verdict-0.json"))
    except (OSError, ValueError):
        return None


def verdict(folder: pathlib.Path, state: Mapping[str, Any]) -> Verdict | None:
    """The verdict that stopped a trial: the first execution decides.

    What the oracle was told counts, but the file says it in full.
    """
    told = message(state)
    if told is not None and told.verdict is None:
        return None
    written = written_verdict(folder)
    if written is None:
        return told.verdict if told else None
    if told is None and _ended(folder) != "stopped":
        return None  # it was only watched
    return written if written.stop else None


def diagnosis(folder: pathlib.Path) -> Diagnosis | None:
    """What judged the first execution, if its types are known here."""
    try:
        return Diagnosis.load(folder / "diagnosis-0.json")
    except ValueError:
        return None


def log_dir(project: pathlib.Path) -> pathlib.Path | None:
    """The folder with event files in `<trial>/execution<k>`, if there is one."""
    for execution in project.glob("*/*/execution*"):
        if next(execution.glob("**/*.tfevents.*"), None) is not None:
            return execution.parent.parent
    return None


def _is_huge(value: object) -> bool:
    """Whether this is a whole number that no float can hold."""
    return isinstance(value, int) and abs(value) > 2**1023


def _ended(folder: pathlib.Path) -> str | None:
    try:
        return read_trace(folder / "trace-0.jsonl", columns=False).end
    except (OSError, ValueError):
        return None


def _json(path: pathlib.Path) -> dict[str, Any]:
    """Not strict JSON: KerasTuner writes NaN and Infinity."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
