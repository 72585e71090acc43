"""What a search has come to: read from its folder, counted, and shown.

```python
ktb.summary("runs/cifar")                 # or a tuner
ktb.diagnosis_of("runs/cifar/trial_07")   # or a keras_tuner Trial
ktb.trials_dataframe("runs/cifar")        # one row for each trial
```

Reading a folder needs neither TensorFlow nor KerasTuner.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from kt_bttackler import project, project_files, report_table
from kt_bttackler.diagnosis import Verdict, without_advice
from kt_bttackler.extras import required
from kt_bttackler.study import Study, TrialFacts
from kt_bttackler.summaries import Summary, in_notebook
from kt_bttackler.trace import Trace


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
        message = project_files.message(trial_or_directory.get_state())
        return message.verdict if message else None
    folder = pathlib.Path(trial_or_directory)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of a trial.")
    return project_files.verdict(folder, project_files.trial_state(folder))


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
        folders = project.trial_folders(folder)
        if not folders:
            raise ValueError(
                f"{folder} is no project folder: no `trial_<id>` folder is in it"
                f"{_projects_in(folder)}."
            )
    else:
        tuner = tuner_or_directory
        folder = pathlib.Path(tuner.project_dir)
        folders = project.trial_folders(folder)
        objective = (tuner.oracle.objective.name, tuner.oracle.objective.direction)
        executions = getattr(tuner, "executions_per_trial", 1)
    traces = {trial: project_files.traces(trial) for trial in folders}
    executions = max([executions, *map(len, traces.values())])
    first = next((t for found in traces.values() for t in found.values()), None)
    states = {trial: project_files.trial_state(trial) for trial in folders}
    if objective[0] is None and first is not None:
        objective = (first.header.objective, first.header.direction)
    if objective[0] is None:  # a search without a diagnosis
        objective = project_files.objective(states.values())
    starts = project_files.starts(folder)
    facts = {
        trial: _facts(trial, states[trial], traces, executions, starts)
        for trial in folders
    }
    verdicts = {facts[t].id: project_files.written_verdict(t) for t in folders}
    diagnoses = {facts[t].id: project_files.diagnosis(t) for t in folders}
    return Study(
        *objective,
        trials=tuple(facts.values()),
        log_dir=project_files.log_dir(folder),
        name=folder.resolve().name,
        traces={facts[trial].id: found for trial, found in traces.items() if found},
        verdicts={key: verdict for key, verdict in verdicts.items() if verdict},
        diagnoses={key: judge for key, judge in diagnoses.items() if judge},
    )


def summary(tuner_or_directory: Any) -> Summary:
    """Shows the trials of a search, what was stopped and why, and what it saved.

    In a terminal it is printed. In a notebook the value that is returned shows
    itself, as a table, where it is the last of a cell.

    Args:
        tuner_or_directory: a tuner, or the path of a project folder.

    Raises:
        ValueError: the folder is no project of KerasTuner.
    """
    shown = Summary(study(tuner_or_directory))
    if not in_notebook():
        print(shown)
    return shown


def trials_dataframe(tuner_or_directory: Any) -> Any:
    """The trials of a search as a `pandas.DataFrame`, one row each.

    Columns are those of `kt_bttackler.report_table.HEADINGS`, and `hp/<name>` for
    each hyperparameter.

    Args:
        tuner_or_directory: a tuner, or the path of a project folder.

    Raises:
        ValueError: the folder is no project of KerasTuner.
        ImportError: pandas is not installed.

    Example:
        >>> project = getfixture("tmp_path")
        >>> (project / "trial_0").mkdir()
        >>> state = '{"status": "COMPLETED", "score": 0.9, "trial_id": "0"}'
        >>> _ = (project / "trial_0" / "trial.json").write_text(state)
        >>> trials_dataframe(project)[["trial", "score"]].values.tolist()
        [['0', 0.9]]
    """
    pandas = required("pandas", "`trials_dataframe`", extra="report")
    headings, rows = report_table.table(study(tuner_or_directory))
    return pandas.DataFrame(rows, columns=headings)


_Traces = Mapping[pathlib.Path, Mapping[int, Trace]]


def _projects_in(folder: pathlib.Path) -> str:
    """What to say of projects in a folder that is none, as `directory=` is."""
    found = sorted({path.parent for path in folder.glob("*/trial_*")})
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f", but in {found[0]}{more}" if found else ""


def _facts(
    folder: pathlib.Path,
    state: Mapping[str, Any],
    all_traces: _Traces,
    executions: int,
    starts: Mapping[str, float],
) -> TrialFacts:
    traces = all_traces[folder]
    verdict = project_files.verdict(folder, state)
    values = state.get("hyperparameters", {}).get("values", {})
    planned = {number: _planned(trace, values) for number, trace in traces.items()}
    known = [epochs for epochs in planned.values() if epochs is not None]
    ended = {number for number, trace in traces.items() if trace.end == "stopped"}
    saved = sum(max(0, (planned[n] or 0) - len(traces[n])) for n in ended)
    # A trial whose first execution is stopped is not executed again.
    skipped = (executions - len(traces)) * (planned[0] or 0) if 0 in ended else 0
    trial_id = state.get("trial_id") or folder.name.removeprefix("trial_")
    status = state.get("status") or "UNKNOWN"
    # What to try is told once for all trials of a cause.
    message = without_advice(state.get("message") or str(verdict or ""))
    begun, done = _times(traces.values())
    return TrialFacts(
        id=trial_id,
        status=status,
        score=state.get("score"),
        causes=_causes(verdict),
        message=message if state else "trial.json cannot be read",
        epochs_run=sum(map(len, traces.values())) if traces else None,
        epochs_planned=sum(known) + skipped if known else None,
        seconds=sum(map(_seconds, traces.values())) if traces else None,
        hyperparameters=values,
        benign=verdict is not None and verdict.benign and 0 in ended,
        epochs_saved=saved + skipped,
        seconds_saved=(saved + skipped)
        * _seconds_per_epoch(traces.values(), all_traces),
        spared=status == "COMPLETED" and _spared(folder, traces),
        started=starts.get(trial_id) if begun is None else begun,
        # KerasTuner notes no end, but writes the file then.
        ended=project_files.written_at(folder)
        if done is None and status != "RUNNING"
        else done,
    )


def _spared(folder: pathlib.Path, traces: Mapping[int, Trace]) -> bool:
    """Whether the first execution was to be stopped and ran to its end."""
    verdict = project_files.written_verdict(folder)
    # Heeded or not: a diagnosis may spare trials to learn what stopping costs.
    if verdict is None or not getattr(verdict, "decided", verdict.stop):
        return False
    if verdict.benign:
        return False
    return 0 in traces and traces[0].end == "finished"


def _times(traces: Iterable[Trace]) -> tuple[float | None, float | None]:
    """Unix times of the begin and of the last epoch of a trial."""
    begins = [(trace.header.started, trace.moment) for trace in traces]
    begins = [(begin, end) for begin, end in begins if begin > 0]
    if not begins:
        return None, None
    return min(begin for begin, _ in begins), max(end for _, end in begins)


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
