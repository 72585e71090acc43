"""What a search has come to: read from its folder, counted, and shown.

```python
ktb.summary("runs/cifar")                 # or a tuner
ktb.diagnosis_of("runs/cifar/trial_07")   # or a keras_tuner Trial
```

Reading a folder needs neither TensorFlow nor KerasTuner.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pathlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from kt_bttackler import channel, report
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.study import Study, TrialFacts
from kt_bttackler.trace import Trace, read_trace


def diagnosis_of(trial_or_directory: Any) -> Verdict | None:
    """The verdict that stopped a trial.

    Args:
        trial_or_directory: a `keras_tuner` Trial, or the path of a trial folder.

    Returns:
        `None` when the trial was not stopped, or not diagnosed.

    Raises:
        ValueError: the folder does not exist.
    """
    if not isinstance(trial_or_directory, str | os.PathLike):
        message = _message(trial_or_directory.get_state())
        return message.verdict if message else None
    folder = pathlib.Path(trial_or_directory)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of a trial.")
    return _verdict(folder, _trial_state(folder))


def study(tuner_or_directory: Any) -> Study:
    """Reads all trials of a search.

    The seconds saved are an estimate: the epochs that a stop spared, times the mean
    seconds of the trial's own epochs without the first, which contains the set-up. A
    trial without a second whole epoch takes the median of the other trials.

    Args:
        tuner_or_directory: a tuner, or the path of a project folder.

    Raises:
        ValueError: the folder is no project of KerasTuner.
    """
    objective: tuple[str | None, str | None] = (None, None)
    executions = 1
    if isinstance(tuner_or_directory, str | os.PathLike):
        folder = pathlib.Path(tuner_or_directory)
        folders = _trial_folders(folder)
        if not folders:
            raise ValueError(
                f"{folder} is no project folder: no `trial_<id>` folder is in it."
            )
    else:
        tuner = tuner_or_directory
        folder = pathlib.Path(tuner.project_dir)
        folders = _trial_folders(folder)
        objective = (tuner.oracle.objective.name, tuner.oracle.objective.direction)
        executions = getattr(tuner, "executions_per_trial", 1)
    traces = {trial: _traces(trial) for trial in folders}
    executions = max([executions, *map(len, traces.values())])
    first = next((t for found in traces.values() for t in found.values()), None)
    if objective[0] is None and first is not None:
        objective = (first.header.objective, first.header.direction)
    return Study(
        *objective,
        trials=tuple(_facts(trial, traces, executions) for trial in folders),
        log_dir=_log_dir(folder),
    )


def summary(tuner_or_directory: Any) -> None:
    """Prints the trials of a search, what was stopped and why, and what it saved.

    Args:
        tuner_or_directory: a tuner, or the path of a project folder.

    Raises:
        ValueError: the folder is no project of KerasTuner.
    """
    print(report.as_text(study(tuner_or_directory)))


_Traces = Mapping[pathlib.Path, Mapping[int, Trace]]


def _facts(folder: pathlib.Path, all_traces: _Traces, executions: int) -> TrialFacts:
    state = _trial_state(folder)
    traces = all_traces[folder]
    verdict = _verdict(folder, state)
    values = state.get("hyperparameters", {}).get("values", {})
    planned = {number: _planned(trace, values) for number, trace in traces.items()}
    known = [epochs for epochs in planned.values() if epochs is not None]
    ended = {number for number, trace in traces.items() if trace.end == "stopped"}
    saved = sum(max(0, (planned[n] or 0) - len(traces[n])) for n in ended)
    # A trial whose first execution is stopped is not executed again.
    skipped = (executions - len(traces)) * (planned[0] or 0) if 0 in ended else 0
    return TrialFacts(
        id=state.get("trial_id") or folder.name.removeprefix("trial_"),
        status=state.get("status") or "UNKNOWN",
        score=state.get("score"),
        causes=_causes(verdict),
        message=state.get("message") or (str(verdict) if verdict else ""),
        epochs_run=sum(map(len, traces.values())) if traces else None,
        epochs_planned=sum(known) + skipped if known else None,
        seconds=sum(map(_seconds, traces.values())) if traces else None,
        hyperparameters=values,
        benign=verdict is not None and verdict.benign and 0 in ended,
        epochs_saved=saved + skipped,
        seconds_saved=(saved + skipped)
        * _seconds_per_epoch(traces.values(), all_traces),
    )


def _planned(trace: Trace, values: Mapping[str, Any]) -> int | None:
    """Epochs that this training was to run."""
    last = values.get("tuner/epochs", trace.max_epochs)  # Hyperband has rungs
    return None if last is None else int(last) - trace.header.initial_epoch


def _seconds(trace: Trace) -> float:
    return trace.last.seconds if trace.last else 0.0


def _seconds_per_epoch(traces: Iterable[Trace], all_traces: _Traces) -> float:
    own = _mean_later_epoch(traces)
    if own is not None:
        return own
    others = [_mean_later_epoch(found.values()) for found in all_traces.values()]
    known = [seconds for seconds in others if seconds is not None]
    return statistics.median(known) if known else sum(map(_seconds, traces))


def _mean_later_epoch(traces: Iterable[Trace]) -> float | None:
    """Mean seconds of the whole epochs after the first, or `None`."""
    later = []
    for trace in traces:
        records = trace.records
        for before, record in itertools.pairwise(records):
            if not record.partial:
                later.append(record.seconds - before.seconds)
    return statistics.fmean(later) if later else None


def _causes(verdict: Verdict | None) -> tuple[str, ...]:
    if verdict is None:
        return ()
    grounds = [each.indicator for each in verdict.findings if not each.warning]
    found = [verdict.cause, *grounds]
    return tuple(dict.fromkeys(cause for cause in found if cause is not None))


def _verdict(folder: pathlib.Path, state: Mapping[str, Any]) -> Verdict | None:
    """The verdict that stopped a trial: the first execution decides.

    What the oracle was told counts, but the file says it in full.
    """
    message = _message(state)
    if message is not None and message.verdict is None:
        return None
    try:
        text = (folder / "verdict-0.json").read_text(encoding="utf-8")
        verdict = Verdict.from_json(text)
    except (OSError, ValueError):
        return message.verdict if message else None
    if message is None and _ended(folder) != "stopped":
        return None  # it was only watched
    return verdict if verdict.stop else None


def _ended(folder: pathlib.Path) -> str | None:
    try:
        return read_trace(folder / "trace-0.jsonl", columns=False).end
    except (OSError, ValueError):
        return None


def _message(state: Mapping[str, Any]) -> channel.Message | None:
    """What the metrics of a trial's state carry."""
    metrics = {}
    for name, history in state.get("metrics", {}).get("metrics", {}).items():
        if history["observations"]:
            metrics[name] = statistics.fmean(history["observations"][-1]["value"])
    return channel.decode(metrics)


def _trial_state(folder: pathlib.Path) -> dict[str, Any]:
    """Content of `trial.json`; empty while KerasTuner is in the midst of writing it.

    Not strict JSON: KerasTuner writes NaN and Infinity.
    """
    try:
        state = json.loads((folder / "trial.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _traces(folder: pathlib.Path) -> dict[int, Trace]:
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


def _trial_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders of trials in the order of their ids; "9" comes before "10"."""

    def order(path: pathlib.Path) -> tuple[float, str]:
        trial_id = path.name.removeprefix("trial_")
        return (int(trial_id) if trial_id.isdecimal() else math.inf, trial_id)

    return sorted((p for p in folder.glob("trial_*") if p.is_dir()), key=order)


def _log_dir(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder with event files in `<trial>/execution<k>`, if there is one."""
    for execution in folder.glob("*/*/execution*"):
        if next(execution.glob("**/*.tfevents.*"), None) is not None:
            return execution.parent.parent
    return None
