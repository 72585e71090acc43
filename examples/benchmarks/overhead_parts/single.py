"""What is measured apart: set-up, a trial of one epoch, other ways, worker, memory."""

import dataclasses
import gc
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
import warnings

import keras
import numpy as np
import scipy.stats

import kt_bttackler as ktb
from kt_bttackler import recorder, taps, training
from overhead_parts import cost_model, models
from overhead_parts.models import compiled, rows_for
from overhead_parts.turns import TimedDiagnosis


def fit_cpu(make, batch, steps, *, watched, built=False):
    """CPU seconds of training a fresh model for one epoch, without building it."""
    model, classes = compiled(make, built=built)
    x, y = rows_for(model, classes, batch * steps)
    watching = [ktb.DiagnosisCallback(stop=False)] if watched else []
    gc.collect()
    start = time.process_time()
    model.fit(x, y, batch_size=batch, verbose=0, callbacks=watching)
    seconds = time.process_time() - start
    keras.backend.clear_session()
    return seconds


def pairs_of(make, batch, steps, seconds, **options):
    """Interleaved pairs (watched, plain) of `fit_cpu`, for so many CPU seconds."""
    pairs = []
    while len(pairs) < 2 or (sum(map(sum, pairs)) < seconds and len(pairs) < 9):
        pairs.append(
            tuple(
                fit_cpu(make, batch, steps, watched=watched, **options)
                for watched in (True, False)
            )
        )
    return pairs


def set_up(make, batch, seconds):
    """CPU seconds that the callback adds to a fit of one step.

    Twice: as it is, and with the optimizer built beforehand in both arms. As it is,
    the callback also spares the second of two traces (`kt_bttackler.optimizer_building`
    says why), which is more than it costs; built beforehand, there is nothing to spare.
    """
    facts = {}
    for name, built in (("", False), ("_built", True)):
        pairs = pairs_of(make, batch, 1, seconds, built=built)
        facts |= {
            f"setup_seconds{name}": statistics.median(a - b for a, b in pairs),
            f"first_step_seconds{name}": statistics.median(b for _, b in pairs),
            f"setup_pairs{name}": len(pairs),
        }
    return facts


def one_epoch(make, batch, steps, seconds):
    """CPU time of a trial of one epoch, with per without."""
    pairs = pairs_of(make, batch, steps, seconds)
    return {"one_epoch_ratio": statistics.median(a / b for a, b in pairs)}


def published_statistics(tensor):
    """The ten statistics of one tensor, one call each."""
    flat = tensor.ravel()
    np.mean(flat), np.var(flat), np.median(flat), np.min(flat), np.max(flat)
    np.percentile(flat, 75), np.percentile(flat, 25)
    scipy.stats.skew(flat), scipy.stats.kurtosis(flat), np.mean(flat == 0)


def baselines(make, batch, repeats=3):
    """CPU seconds per step of the published way, and of one probe with a tape."""
    model, classes = compiled(make, built=True)
    x, y = rows_for(model, classes, batch)
    tap = taps.TrainingTap()
    tap.install(model)
    model.fit(x, y, batch_size=batch, verbose=0)
    start = time.process_time()
    for _ in range(repeats):
        for gradient, variable in zip(
            tap.gradients(), model.trainable_variables, strict=True
        ):
            weight = variable.numpy()
            for tensor in (weight, np.abs(weight), gradient, np.abs(gradient)):
                published_statistics(tensor)
    published = (time.process_time() - start) / repeats
    probe = taps.ProbeTap(x[:32], y[:32])
    probe.install(model)
    probe.gradients()
    start = time.process_time()
    for _ in range(repeats):
        probe.gradients()
    seconds = (time.process_time() - start) / repeats
    keras.backend.clear_session()
    return {"published_seconds_per_step": published, "probe_tape_seconds": seconds}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sleeps(ktb.QualityIndicator):
    """Takes three seconds every time."""

    needs = frozenset({"loss"})
    threshold: float = 1.0

    def measure(self, trace):
        """Sleeps."""
        time.sleep(3.0)
        return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raises(ktb.QualityIndicator):
    """Fails every time."""

    needs = frozenset({"loss"})
    threshold: float = 1.0

    def measure(self, trace):
        """Raises."""
        raise RuntimeError("on purpose")


def worker(repeats, batch=64, steps=40, epochs=3):
    """A large model, whose statistics are computed beside the training or in it.

    And what an indicator costs that takes three seconds or fails, with the limit of
    two seconds and without it.

    Returns:
        Seconds per epoch (`wall`, `cpu`) of a plain training, and with the statistics
        on the worker or on the training thread; seconds for which bad indicators hold
        up a training of so many epochs.
    """
    limits = {"plain": None, "worker": recorder.LARGE_MODEL, "thread": float("inf")}
    fits = {arm: _Fits(batch, steps, epochs) for arm in limits}
    times = {arm: [] for arm in limits}
    watching = {}
    for _ in range(repeats + 1):  # the first traces
        for arm, limit in limits.items():
            if limit is not None:
                recorder.LARGE_MODEL = limit
                watching[arm] = TimedDiagnosis()
            times[arm].append(fits[arm].seconds([watching[arm]] if limit else []))
    recorder.LARGE_MODEL = limits["worker"]
    medians = {
        arm: np.median(np.array(measured[1:]) / epochs, axis=0).tolist()
        for arm, measured in times.items()
    }
    model = fits["plain"].model
    return {
        "parameters": int(model.count_params()),
        "variables": len(model.trainable_variables),
        "batch": batch,
        "steps": steps,
        "epochs": epochs,
        "seconds_per_epoch": {
            arm: {"wall": wall, "cpu": cpu} for arm, (wall, cpu) in medians.items()
        },
        "hooks": cost_model.hooks(watching["thread"], model),
        **_bad_indicators(fits["plain"]),
    }


def _bad_indicators(fits):
    """Wall seconds for which indicators hold up a training."""
    limit = training.INDICATOR_SECONDS
    added = {}
    for name, indicator, allowed in (
        ("sleeping", Sleeps(), limit),
        ("sleeping_unlimited", Sleeps(), 3600.0),
        ("raising", Raises(), limit),
    ):
        training.INDICATOR_SECONDS = allowed
        watching = TimedDiagnosis(ktb.Diagnosis([indicator]), time.perf_counter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits.seconds([watching])
        added[f"{name}_indicator_seconds"] = sum(watching.epoch_hooks)
    training.INDICATOR_SECONDS = limit
    return added


class _Fits:
    """Trains one large model again and again."""

    def __init__(self, batch, steps, epochs):
        self.model, classes = compiled(models.wide, built=True)
        self._x, self._y = rows_for(self.model, classes, batch * steps)
        self._options = {"batch_size": batch, "epochs": epochs, "verbose": 0}

    def seconds(self, callbacks):
        """Wall and CPU seconds of a fit."""
        start = time.perf_counter(), time.process_time()
        self.model.fit(self._x, self._y, callbacks=callbacks, **self._options)
        return time.perf_counter() - start[0], time.process_time() - start[1]


def memory(repeats):
    """Peak memory of trainings of the large model, each in a process of its own."""
    peaks = {
        arm: [_peak_in_process(arm) for _ in range(repeats)]
        for arm in ("plain", "watched")
    }
    model, _ = compiled(models.wide)
    gradients = 4 * int(model.count_params())
    added = statistics.median(peaks["watched"]) - statistics.median(peaks["plain"])
    return {
        "gradient_set_bytes": gradients,
        "peak_bytes": peaks,
        "added_gradient_sets": added / gradients,
    }


def _peak_in_process(arm):
    folder = str(pathlib.Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {folder!r})\n"
    code += f"from overhead_parts.single import peak; print(peak({arm!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def peak(arm):
    """Peak resident bytes of this process after a training of the large model."""
    fits = _Fits(batch=64, steps=20, epochs=3)
    fits.seconds([ktb.DiagnosisCallback(stop=False)] if arm == "watched" else [])
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # what `getrusage` says includes the process that started this
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
