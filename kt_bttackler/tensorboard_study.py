"""The view of a whole search in TensorBoard: `<log_dir>/_study`.

Every training says in one line of `_study/trials.jsonl` when it begins and when it
ends; whoever writes, in whatever process, makes the rest anew of what that file says:

- the record of the experiment: the columns of the HParams page, and none but these;
- the layout of the page of custom scalars: the severity of each indicator;
- the text `study/summary`, at the number of trials that have ended.

KerasTuner tells the HParams page which values a trial has when it begins, and has no
room for what it comes to. A record of the same session that also has status and cause
stands in a file of its own beside KerasTuner's, named so that it is read first: of two
such records TensorBoard keeps the first. A TensorBoard that was started before the
trial ended shows status and cause after a restart, the numbers at once.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from kt_bttackler import files, report
from kt_bttackler.markup import escaped, table

STUDY = "_study"
# Names that sort before all others in their folder.
_EXPERIMENT = "events.out.tfevents.0000000000.experiment"
_SESSION = "events.out.tfevents.0000000000.session"
_NO_CAUSE = "none"
_STATUSES = ("running", "completed", "stopped")
_MOST_ROWS = 50


@dataclasses.dataclass(frozen=True)
class Entry:
    """One training of a search, when it begins and again when it ends.

    Attributes:
        trial: id of the trial.
        hyperparameters: its values.
        objective: name of the objective.
        direction: "min" or "max".
        indicators: ids of those that judge it.
        started: Unix time.
        status: "running", "completed" or "stopped".
        cause: id of what it was ended for, or "".
        why: the sentence on it, or "".
        score: the best value of the objective, of a stopped trial the last; or `None`.
        epochs_run: so many.
        epochs_saved: planned ones that it was not given.
        seconds_per_epoch: without the first, which contains the set-up; `None` when
            there was no other.
    """

    trial: str
    hyperparameters: Mapping[str, Any]
    objective: str
    direction: str
    indicators: Sequence[str] = ()
    started: float = 0.0
    status: str = "running"
    cause: str = ""
    why: str = ""
    score: float | None = None
    epochs_run: int = 0
    epochs_saved: int = 0
    seconds_per_epoch: float | None = None


class StudyBoard:
    """Writes the view of a search; several processes may do so at once.

    Args:
        log_dir: TensorBoard's folder, with those of the trials in it.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self._log_dir = pathlib.Path(log_dir)
        self._folder = self._log_dir / STUDY

    def begin(self, entry: Entry) -> None:
        """A training begins."""
        self._note(entry)
        self._write_experiment(self.entries())

    def end(self, entry: Entry, execution: int = 0) -> None:
        """A training has ended."""
        self._note(entry)
        entries = self.entries()
        self._write_experiment(entries)
        session = self._log_dir / entry.trial / f"execution{execution}" / _SESSION
        _write(session, [(session_record(entry), 0)], entry.started)
        ended = [each for each in entries if each.status != "running"]
        # Not one file for all of it: TensorBoard does not read what was replaced.
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{uuid.uuid4().hex[:12]}"
        text = text_pb("study/summary", study_card(entries))
        _write(self._folder / name, [(text, len(ended))], now)

    def entries(self) -> list[Entry]:
        """The last entry of each trial, in the order of their begins."""
        found: dict[str, Entry] = {}
        try:
            lines = (self._folder / "trials.jsonl").read_text(encoding="utf-8")
        except OSError:
            return []
        for line in lines.splitlines():
            try:
                entry = Entry(**files.loads(line))
            except (ValueError, TypeError):  # half a line, or of another version
                continue
            found[entry.trial] = entry
        return list(found.values())

    def _note(self, entry: Entry) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        line = files.dumps(dataclasses.asdict(entry)) + "\n"
        # One write, at the end: lines of several processes do not mix.
        with open(self._folder / "trials.jsonl", "ab", buffering=0) as file:
            file.write(line.encode("utf-8"))

    def _write_experiment(self, entries: Sequence[Entry]) -> None:
        summaries = [experiment_record(entries), layout(entries)]
        started = min((entry.started for entry in entries), default=0.0)
        _write(self._folder / _EXPERIMENT, [(s, 0) for s in summaries], started)


def experiment_record(entries: Sequence[Entry]) -> Summary:
    """The columns of the HParams page.

    Args:
        entries: of the trials so far.
    """
    values: dict[str, list[Any]] = {}
    for entry in entries:
        for name, value in _own(entry.hyperparameters).items():
            values.setdefault(name, []).append(value)
    causes = [*sorted({entry.cause for entry in entries} - {""}), _NO_CAUSE]
    columns = {
        "status": hparams.Discrete(_STATUSES, dtype=str),
        "cause": hparams.Discrete(causes, dtype=str),
        **{name: _domain(seen) for name, seen in values.items()},
    }
    infos = []
    for name, domain in columns.items():
        # What "differs" stands first, and the page shows only the first few.
        info = api_pb2.HParamInfo(name=name, differs=name in ("status", "cause"))
        domain.update_hparam_info(info)
        infos.append(info)
    objective = entries[-1].objective if entries else "objective"
    metrics = [
        hparams.Metric(f"diagnosis/{tag}", group="diagnosis", display_name=name)
        for tag, name in (
            ("score", objective),
            ("stopped_at", "stopped at"),
            ("epochs_saved", "epochs saved"),
        )
    ]
    experiment = api_pb2.Experiment(
        hparam_infos=infos, metric_infos=[metric.as_proto() for metric in metrics]
    )
    content = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    summary = Summary()
    summary.value.add(
        tag=metadata.EXPERIMENT_TAG,
        metadata=metadata.create_summary_metadata(content),
        tensor=metadata.NULL_TENSOR,
    )
    return summary


def session_record(entry: Entry) -> Summary:
    """What the HParams page shows of one training, with status and cause."""
    values = {
        **_own(entry.hyperparameters),
        "status": entry.status,
        "cause": entry.cause or _NO_CAUSE,
    }
    return hparams.hparams_pb(values, entry.trial, entry.started)


def layout(entries: Sequence[Entry]) -> Summary:
    """The page of custom scalars: a chart of the severity of each indicator."""
    ids = dict.fromkeys(name for entry in entries for name in entry.indicators)
    charts = [
        layout_pb2.Chart(
            title=name,
            multiline=layout_pb2.MultilineChartContent(
                tag=[f"^diagnosis/severity/{name}$"]
            ),
        )
        for name in ids
    ]
    content = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title="Severity: at 0 an indicator fires, at 1 it is 10 times past",
                chart=charts,
            )
        ]
    )
    summary = Summary()
    summary.value.add(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        metadata=custom_scalars.create_summary_metadata(),
        tensor=tensor_util.make_tensor_proto(content.SerializeToString()),
    )
    return summary


def study_card(entries: Sequence[Entry]) -> str:
    """The search in Markdown: what was stopped and why, what it saved, the best.

    Args:
        entries: of the trials so far.

    Example:
        >>> done = Entry("0", {"lr": 0.1}, "val_loss", "min", status="completed",
        ...              score=0.25, epochs_run=10)
        >>> print(study_card([done]).splitlines()[0])
        **1 trials: 1 completed.** 10 epochs run, 0 saved.
    """
    counts = Counter(entry.status for entry in entries)
    statuses = ", ".join(f"{counts[s]} {s}" for s in _STATUSES if counts[s])
    run = sum(entry.epochs_run for entry in entries)
    saved = sum(entry.epochs_saved for entry in entries)
    head = f"**{len(entries)} trials: {statuses}.** {run} epochs run, {saved} saved"
    seconds = _seconds_saved(entries) if saved else None
    head += "." if seconds is None else f", about {report.duration(seconds)}."
    parts = [head]
    best = _best(entries)
    if best is not None:
        told = f"{best.objective} {report.shown(best.score)}: "
        told += report.configuration(best.hyperparameters)
        parts.append(f"**Best:** trial {escaped(best.trial)}, {escaped(told)}")
    ended = [entry for entry in entries if entry.cause]
    if ended:
        causes = Counter(entry.cause for entry in ended)
        named = ", ".join(f"{cause} {count}" for cause, count in causes.most_common())
        parts.append(f"**Causes:** {escaped(named)}")
        rows = [
            # One column for both: TensorBoard breaks the words of narrow ones.
            (f"trial {e.trial}: {e.why}", report.configuration(e.hyperparameters))
            for e in ended[-_MOST_ROWS:]
        ]
        parts.append(table(("why", "configuration"), rows))
    return "\n\n".join(parts)


def _best(entries: Sequence[Entry]) -> Entry | None:
    scored = [
        (entry.score if entry.direction == "min" else -entry.score, position)
        for position, entry in enumerate(entries)
        if entry.status == "completed" and isinstance(entry.score, int | float)
    ]
    return entries[min(scored)[1]] if scored else None


def _seconds_saved(entries: Sequence[Entry]) -> float | None:
    """An estimate, as in `results.study`; `None` while there is nothing to go by."""
    known = [e.seconds_per_epoch for e in entries if e.seconds_per_epoch is not None]
    if not known:
        return None
    typical = statistics.median(known)
    return sum(
        e.epochs_saved
        * (typical if e.seconds_per_epoch is None else e.seconds_per_epoch)
        for e in entries
    )


def _own(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as the HParams page takes them, without KerasTuner's notes."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in hyperparameters.items()
        if not name.startswith("tuner/") and name not in ("status", "cause")
    }


def _domain(values: Sequence[Any]) -> Any:
    if all(isinstance(value, bool) for value in values):
        return hparams.Discrete([False, True], dtype=bool)
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return hparams.RealInterval(float(min(values)), float(max(values)))
    return hparams.Discrete(sorted(set(map(str, values))), dtype=str)


def _write(
    path: pathlib.Path, summaries: Iterable[tuple[Summary, int]], moment: float
) -> None:
    """Writes a whole event file, atomically; the same content is left alone."""
    content = io.BytesIO()
    records = RecordWriter(content)
    first = Event(wall_time=moment, file_version="brain.Event:2")
    records.write(first.SerializeToString())
    for summary, step in summaries:
        event = Event(wall_time=moment, step=step, summary=summary)
        records.write(event.SerializeToString())
    if path.exists() and path.read_bytes() == content.getvalue():
        return
    with files.replacing(path) as file:
        file.write(content.getvalue())
