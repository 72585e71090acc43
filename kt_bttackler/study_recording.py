"""Records a random search of complete trainings, so that diagnoses can be replayed.

Trial k of a study is a function of the study's seed and k: its configuration, its
initial weights and the order of its data. So a recording that was broken off goes on
where it was, and a trial can be repeated.

```python
record(task, "studies/mine", data="mine.npz", trials=200)   # a `Task`
for trace in TraceStore("studies/mine"):
    ...
```

Every training runs to its last epoch, whatever becomes of it. The seconds of the
traces are CPU seconds of this process, which other processes do not disturb, and the
trials stand one behind the other on that clock.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import itertools
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import keras_tuner
import numpy as np

from kt_bttackler import files, shards
from kt_bttackler.callback import DiagnosisCallback
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.presets import PRESETS
from kt_bttackler.probe_data import slice_rows
from kt_bttackler.recorded_task import Task, TaskData
from kt_bttackler.rules import NeverStop
from kt_bttackler.trace import Header, Trace, TraceStore, TraceWriter

SHARD_TRIALS = 20
CARD = "card.json"
_LIBRARIES = ("tensorflow", "keras", "keras-tuner", "numpy")


@dataclasses.dataclass(frozen=True)
class EveryStatistic(QualityIndicator):
    """Needs all that some preset needs, and is never positive."""

    id = "EVERY_STATISTIC"
    needs = frozenset().union(*(Diagnosis(name).needs for name in PRESETS))
    threshold: float = 0.0

    def applies(self, trace: Trace) -> bool:
        """Never."""
        return False


class _Recording(DiagnosisCallback):
    """Records a training, with the CPU seconds that the training takes itself.

    Those of the diagnosis are left out: it records more here than any preset asks for.

    Attributes:
        seconds: since this was made, at the end of each epoch.
        overhead: CPU seconds that recording took.
    """

    def __init__(self, task: Task, data: TaskData) -> None:
        super().__init__(
            Diagnosis((EveryStatistic(),), NeverStop()),
            objective=keras_tuner.Objective(task.objective, task.direction),
            probe_data=slice_rows(data.probe),
            epochs=task.epochs,
        )
        self.seconds: list[float] = []
        self.overhead = 0.0
        self._made = time.process_time()

    def _guarded(self, hook: str, *arguments: Any) -> None:
        started = time.process_time()
        if hook == "end_epoch":
            self.seconds.append(started - self._made - self.overhead)
        super()._guarded(hook, *arguments)
        self.overhead += time.process_time() - started


def configurations(task: Task, seed: int) -> Iterator[dict[str, Any]]:
    """The configurations of a study, drawn at random, none of them twice.

    Args:
        task: its space is drawn from.
        seed: of the study.

    Example:
        >>> from kt_bttackler.paper_tasks import TASKS
        >>> first = next(configurations(TASKS["cifar10-lstm"], seed=0))
        >>> first["hidden_size"], first["opt"], first["batch_size"]
        (64, 'Adagrad', 360)
    """
    space = keras_tuner.HyperParameters()
    task.declare(space)
    random = np.random.default_rng([seed, 0])
    seen: set[tuple[Any, ...]] = set()
    while True:
        values = {
            each.name: each.prob_to_value(random.random()) for each in space.space
        }
        if tuple(values.values()) not in seen:
            seen.add(tuple(values.values()))
            yield values


def train(
    task: Task,
    data: TaskData,
    values: Mapping[str, Any],
    seed: int,
    epochs: int | None = None,
) -> Trace:
    """Trains one configuration to its end and returns what happened.

    Args:
        task: what to train.
        data: its data.
        values: the configuration.
        seed: of weights and data.
        epochs: fewer than those of the task, to try it out.

    Returns:
        The trace, its seconds those of the CPU.

    Raises:
        RuntimeError: the recording failed or is not complete.
    """
    keras.backend.clear_session()
    gc.collect()
    keras.utils.set_random_seed(seed)
    callback = _Recording(task, data)
    task.train(values, data, seed, epochs or task.epochs, (callback,))
    trace = callback.trace
    if trace is None or len(trace) != len(callback.seconds):
        raise RuntimeError("the diagnosis failed: not every epoch was recorded.")
    records = [
        dataclasses.replace(
            record, seconds=round(seconds, 4), columns=_needed(record.columns)
        )
        for record, seconds in zip(trace.records, callback.seconds, strict=True)
    ]
    header = dataclasses.replace(trace.header, hyperparameters=dict(values))
    return Trace(header, records, trace.end)


def _needed(columns: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """The columns that a preset reads; all would take several times the space."""
    return {k: v for k, v in columns.items() if k in EveryStatistic.needs}


def record(
    task: Task,
    folder: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str],
    trials: int,
    first: int = 0,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> None:
    """Records the trials of a study that are not there yet.

    Args:
        task: what to train.
        folder: the study: a trace for each trial, every 20 of them in one shard, and
            `card.json`.
        data: the file with the data.
        trials: how many trials the study is to have.
        first: number of the first trial to record. Several processes may share a
            study if each has its own range of trials; each is then one worker on the
            clock of the traces.
        seed: of the study.
        tell: is given a line for each trial.

    Raises:
        ValueError: the data are not what the task wants, or the folder holds another
            study.
    """
    study = _Folder(pathlib.Path(folder), task, seed)
    study.tidy()
    missing = [n for n in range(first, trials) if n not in study.numbers()]
    if not missing:
        return
    loaded = task.load(pathlib.Path(data))
    study.check(loaded)
    clock = max((t.moment for t in study.traces(first, trials)), default=0.0)
    for number, values in enumerate(configurations(task, seed)):
        if number >= trials:
            break
        if number not in missing:
            continue
        trace = train(task, loaded, values, trial_seed(seed, number))
        study.keep(number, trace, started=clock)
        seconds = trace.seconds[-1]
        clock += seconds
        study.tidy()
        score = trace.scalar("objective")[-1]
        tell(
            f"{task.name} trial {number}: {task.objective} {score:.4g}, "
            f"{seconds:.1f} CPU seconds"
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What recording a study will take.

    Attributes:
        trials: of the study.
        seconds_per_trial: CPU seconds of a training, and of recording it, on average.
        bytes_per_trial: of its part of a shard, on average.
        sample: number of configurations that this was measured on.
    """

    trials: int
    seconds_per_trial: float
    bytes_per_trial: float
    sample: int

    def __str__(self) -> str:
        hours = self.seconds_per_trial * self.trials / 3600
        size = self.bytes_per_trial * self.trials / 1e6
        return (
            f"{self.seconds_per_trial:.1f} CPU seconds per trial; {hours:.1f} hours "
            f"and {size:.1f} MB for {self.trials} trials. Measured on two epochs of "
            f"{self.sample} configurations."
        )


def estimate(
    task: Task,
    data: str | os.PathLike[str],
    trials: int = 200,
    *,
    seed: int = 0,
    sample: int = 5,
) -> Estimate:
    """Says what recording a study would take, and records nothing.

    A few configurations are trained for two epochs: the first contains the set-up, the
    second stands for all others. Those of a study differ widely, and so do averages of
    few of them.

    Args:
        task: what would be trained.
        data: the file with the data.
        trials: of the study.
        seed: of the study; the configurations are its first ones.
        sample: how many of them.

    Raises:
        ValueError: the data are not what the task wants.
    """
    loaded = task.load(pathlib.Path(data))
    seconds, traces = [], []
    chosen = itertools.islice(configurations(task, seed), sample)
    for number, values in enumerate(chosen):
        started = time.process_time()
        trace = train(task, loaded, values, trial_seed(seed, number), epochs=2)
        both = time.process_time() - started
        later = float(np.diff(trace.seconds)[0])
        seconds.append(both + later * (task.epochs - 2))
        traces.append(trace)
    one, two = (_packed_bytes(each.prefix(n) for each in traces) for n in (1, 2))
    size = one + (two - one) * (task.epochs - 1)
    return Estimate(trials, float(np.mean(seconds)), size / sample, sample)


def _packed_bytes(traces: Iterable[Trace]) -> int:
    """What traces take in one shard."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for number, trace in enumerate(traces):
            write_trace(folder / f"trace-{number}.jsonl", trace)
        shards.write_shard(folder / "shard", sorted(folder.glob("trace-*")))
        return (folder / "shard").stat().st_size


def trial_seed(seed: int, number: int) -> int:
    """Seed of the weights and data of one trial."""
    return int(np.random.default_rng([seed, 1, number]).integers(2**31))


def write_trace(path: pathlib.Path, trace: Trace) -> None:
    """Writes a training that has ended."""
    writer = TraceWriter(path, trace.header)
    for each in trace.records:
        writer.append(each)
    writer.close(trace.end or "finished")


class _Folder:
    """The files of one study."""

    def __init__(self, folder: pathlib.Path, task: Task, seed: int) -> None:
        self._folder = folder
        self._task = task
        self._seed = seed
        self._store = TraceStore(folder, columns=False)

    def check(self, data: TaskData) -> None:
        """Writes the card, or compares with the one that is there."""
        path = self._folder / CARD
        card = {
            "task": self._task.name,
            "seed": self._seed,
            "epochs": self._task.epochs,
            "objective": self._task.objective,
            "direction": self._task.direction,
            "trivial_score": data.trivial_score,
            "trivial_predictor": data.trivial_predictor,
            "trivial_margin": data.trivial_margin,
            "changes": list(self._task.changes),
            "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }
        if not path.exists():
            files.write_atomically(path, files.dumps(card) + "\n")
            return
        found = files.loads(path.read_text(encoding="utf-8"))
        for name, value in card.items():
            if name != "versions" and found.get(name) != value:
                raise ValueError(
                    f"{path}: `{name}` is {found.get(name)!r}, here it is {value!r}; "
                    "a study is recorded one way only."
                )

    def numbers(self) -> set[int]:
        """Trials that are recorded."""
        found = {_number(path) for path in self._loose()}
        for path in self._folder.glob(f"shard-*{shards.SUFFIX}"):
            start = _number(path) * SHARD_TRIALS
            found |= set(range(start, start + SHARD_TRIALS))
        return found

    def traces(self, first: int, end: int) -> Iterator[Trace]:
        """Traces of the trials from `first` to before `end`."""
        for trace in self._store:
            if trace.header.trial_id and first <= int(trace.header.trial_id) < end:
                yield trace

    def keep(self, number: int, trace: Trace, started: float) -> None:
        """Writes one trial, which appears as a whole."""
        header: Header = dataclasses.replace(
            trace.header, trial_id=f"{number:04d}", started=round(started, 4)
        )
        path = self._folder / f"trace-{number:04d}.jsonl"
        unfinished = path.with_name(f".{path.name}")
        write_trace(unfinished, Trace(header, trace.records, trace.end))
        os.replace(unfinished, path)

    def tidy(self) -> None:
        """Puts every 20 trials that are complete into a shard."""
        loose = {_number(path): path for path in self._loose()}
        for shard in {number // SHARD_TRIALS for number in loose}:
            path = self._folder / f"shard-{shard:03d}{shards.SUFFIX}"
            start = shard * SHARD_TRIALS
            wanted = range(start, start + SHARD_TRIALS)
            if not path.exists():
                if any(number not in loose for number in wanted):
                    continue
                shards.write_shard(path, [loose[number] for number in wanted])
            for number in wanted:  # also those that a killed process left behind
                if number in loose:
                    loose[number].unlink(missing_ok=True)

    def _loose(self) -> Iterator[pathlib.Path]:
        return self._folder.glob("trace-*.jsonl")


def _number(path: pathlib.Path) -> int:
    found = re.search(r"-(\d+)\.", path.name)
    return int(found.group(1)) if found else -1
