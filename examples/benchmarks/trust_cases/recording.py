"""Trains every run to its end, under the eyes of a diagnosis that never stops one."""

import dataclasses
import json
import pathlib
import shutil
import time
from typing import ClassVar

import keras

from kt_bttackler import (
    Diagnosis,
    DiagnosisCallback,
    NeverStop,
    QualityIndicator,
    files,
)
from kt_bttackler.probe_data import slice_rows
from kt_bttackler.trace import read_trace
from trust_cases import data, models
from trust_cases.runs import trivial_loss

# A validation is no part of what is diagnosed: as fast as it can be.
VALIDATION_ROWS = 512
FACTS = "run.json"


def recorder(presets):
    """A diagnosis that finds nothing and reads what all presets read.

    Args:
        presets: dict of name to `Diagnosis`.

    Returns:
        A `Diagnosis`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Everything(QualityIndicator):
        """Is never positive."""

        needs: ClassVar = frozenset().union(*(d.needs for d in presets.values()))
        threshold: float = 0.0

        def measure(self, trace):
            """Nothing."""
            return float("nan")

    return Diagnosis([Everything()], rule=NeverStop())


def facts_of(run, store):
    """What is known of a run that was recorded, `None` if it was not or has changed.

    Args:
        run: a `Run`.
        store: folder of all runs.

    Returns:
        A dict: `val_loss`, `trivial`, `seconds`, `epochs`, `needs`, ...
    """
    path = pathlib.Path(store) / run.id / FACTS
    if not path.exists():
        return None
    facts = json.loads(path.read_text())
    if facts["data_digest"] != data.digest(run.configuration.data):
        return None
    if facts["configuration"] != _plain(run.configuration):
        return None
    return facts | {"val_loss": float(facts["val_loss"])}


def trace_of(run, store):
    """The trace of a run that was recorded."""
    return read_trace(pathlib.Path(store) / run.id / "trace-0.jsonl")


def record(run, store, diagnosis, versions):
    """Trains a run to its end, unless it was already.

    Args:
        run: a `Run`.
        store: folder of all runs; each has one of its own, with its trace.
        diagnosis: what to record, see `recorder`.
        versions: kept with the run.

    Returns:
        The facts of the run, and whether it was trained now.
    """
    known = facts_of(run, store)
    if known is not None and diagnosis.needs <= set(known["needs"]):
        return known, False
    folder = pathlib.Path(store) / run.id
    shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time(), time.perf_counter()
    losses = train(run, folder, diagnosis)
    facts = {
        "run": run.id,
        "seed": run.seed,
        "val_loss": losses[-1],
        "trivial": trivial_loss(run.configuration),
        "epochs": run.configuration.epochs,
        "cpu_seconds": round(time.process_time() - started[0], 2),
        "seconds": round(time.perf_counter() - started[1], 2),
        "needs": sorted(diagnosis.needs),
        "versions": versions,
        "data_digest": data.digest(run.configuration.data),
        "configuration": _plain(run.configuration),
        "val_losses": losses,
    }
    # Written last: what lies beside it is complete.
    files.write_atomically(folder / FACTS, files.dumps(facts) + "\n")
    return facts, True


def train(run, folder, diagnosis):
    """Trains a run.

    Args:
        run: a `Run`.
        folder: for its trace.
        diagnosis: what to record.

    Returns:
        The validation loss after each epoch.
    """
    configuration = run.configuration
    rows = data.load(configuration.data)
    keras.utils.set_random_seed(run.seed)
    model = models.build(configuration)
    watch = DiagnosisCallback(
        diagnosis, trace_dir=folder, probe_data=slice_rows((rows.x, rows.y))
    )
    callbacks = [watch]
    if rates := configuration.epoch_rates:
        last = len(rates) - 1
        callbacks.insert(
            0, keras.callbacks.LearningRateScheduler(lambda n: rates[min(n, last)])
        )
    history = model.fit(
        rows.x,
        rows.y,
        batch_size=configuration.batch,
        epochs=configuration.epochs,
        validation_data=(rows.x_val, rows.y_val),
        validation_batch_size=VALIDATION_ROWS,
        callbacks=callbacks,
        verbose=0,
        **configuration.fit,
    )
    keras.backend.clear_session()
    return [float(loss) for loss in history.history["val_loss"]]


def _plain(configuration):
    """A configuration as JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(configuration)))
