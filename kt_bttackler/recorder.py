"""Turns a running training into records: what to measure, when, and how it is named.

The recorder asks the taps for arrays, reduces them on the host with `stats`, and
writes one `Record` per epoch. It does not judge.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from kt_bttackler import graph, probe, stats, taps
from kt_bttackler.fuses import Fuses
from kt_bttackler.trace import Record

SAMPLED_STEPS = 10
PROBED_EPOCHS = 3
PROBE_SHARE = 0.005
# A unit of a saturating activation is constant within this range, of another one
# within this share of its largest magnitude.
SATURATED_RANGE = 1e-3
CONSTANT_SHARE = 1e-6
# Statistics of columns are written with the digits that float32 tensors have.
_SIGNIFICANT_DIGITS = 7


class Recorder:
    """Measures one training of one model.

    Args:
        model: the model, compiled.
        needs: names of statistics that some indicator reads.
        tap: "training" or "probe".
        probe_data: x or (x, y), or `None` to keep the first training batch.
        fuses: switches off what fails.
    """

    def __init__(
        self,
        model: keras.Model,
        needs: Iterable[str],
        tap: str,
        probe_data: Any,
        fuses: Fuses,
    ) -> None:
        groups = {name.partition("/")[0] for name in needs if "/" in name}
        self._model = model
        self._fuses = fuses
        self._wants_gradients = bool(groups & {"step_gradient", "gradient", "weight"})
        self._wants_activations = "activation" in groups
        self._tap_name = tap
        self._probe_data = probe_data
        self._tap: taps.GradientTap | None = None
        self._keeper: probe.BatchKeeper | None = None
        self._probe: probe.ActivationProbe | None = None
        self._graph = graph.ModelGraph((), (), ())
        self._steps = 0  # training steps of the running epoch so far
        self._steps_per_epoch: int | None = None
        self._schedule = SampledSteps(None)
        self._samples: list[np.ndarray] = []
        self._summary: list[tuple[float, ...]] | None = None
        self._rows: list[int | None] = []
        self._first: dict[str, float] | None = {}  # None once it is recorded
        self._probes = 0
        self._probe_seconds = 0.0
        self._started = time.perf_counter()
        self.unobserved: dict[str, str] = {}

    def begin(self, steps_per_epoch: int | None) -> None:
        """Installs the taps; called in `on_train_begin`."""
        self._steps_per_epoch = steps_per_epoch
        self._started = time.perf_counter()
        if self._needs_batch():
            self._keeper = probe.BatchKeeper()
            self._fuses("probe batch", self._keeper.install, self._model)
        if self._wants_gradients and self._tap_name == "training":
            self._tap = taps.TrainingTap()
            self._fuses("gradient tap", self._tap.install, self._model)
        self._first = {"first_regularization": self._regularization()}

    def begin_epoch(self) -> None:
        """Forgets the samples of the epoch before."""
        self._steps = 0
        self._schedule = SampledSteps(self._steps_per_epoch)
        self._samples, self._rows, self._summary = [], [], None

    def end_step(self, step: int, logs: Mapping[str, float]) -> bool:
        """Samples the gradients where it is their turn.

        Args:
            step: number of the step within the epoch, from 0.
            logs: what Keras reports; the loss is the running mean.

        Returns:
            False when a gradient of this step is not finite.
        """
        self._steps = step + 1
        if self._first is not None and "first_batch_loss" not in self._first:
            self._first["first_batch_loss"] = float(logs.get("loss", math.nan))
            if self._wants_gradients:
                # Only now: a subclassed model may have had no variables before.
                self._graph = self._fuses(
                    "model graph",
                    graph.inspect_model,
                    self._model,
                    otherwise=self._graph,
                )
            if self._keeper is not None:
                self._fuses("probe batch", self._keeper.batch)  # the first one stays
            if self._tap_name == "probe" and self._wants_gradients:
                self._fuses("gradient tap", self._install_probe_tap)
        if not self._schedule.due(step):
            return True
        return bool(self._fuses("gradient tap", self._sample, otherwise=True))

    def end_epoch(
        self, epoch: int, logs: Mapping[str, float], *, partial: bool
    ) -> Record:
        """Measures what is measured at the end of an epoch.

        Args:
            epoch: the absolute epoch, from 1.
            logs: logs of Keras.
            partial: the epoch was broken off.
        """
        columns: dict[str, tuple[float, ...]] = {}
        if self._wants_gradients:
            columns |= self._fuses("gradient tap", self._gradient_columns) or {}
            columns |= self._fuses("weights", self._weight_columns) or {}
        if self._wants_activations and not partial:
            columns |= self._fuses("activation probe", self._activation_columns) or {}
        scalars = {name: float(value) for name, value in logs.items()}
        scalars["learning_rate"] = self._learning_rate()
        scalars["regularization"] = self._regularization()
        scalars |= self._first or {}
        self._first = None
        if self._steps_per_epoch is None:
            self._steps_per_epoch = self._steps
        return Record(epoch, self.seconds, scalars, columns, partial)

    def broken_record(self, epoch: int, logs: Mapping[str, float]) -> Record:
        """What is known in the middle of an epoch that a value broke.

        Args:
            epoch: the absolute epoch, from 1.
            logs: logs of the step.
        """
        columns = {}
        if self._samples:
            finite = np.array(self._samples)[:, :, _FINITE]
            columns["step_gradient/finite"] = _rounded(_over_steps(np.nanmean, finite))
        scalars = {name: float(value) for name, value in logs.items()}
        return Record(epoch, self.seconds, scalars, columns, partial=True)

    def end(self) -> None:
        """Lets go of the model; also after an exception."""
        for part in (self._tap, self._keeper):
            if part is not None:
                self._fuses("gradient tap", part.restore)

    @property
    def seconds(self) -> float:
        """Since `begin`."""
        return time.perf_counter() - self._started

    def header_fields(self, planned_epochs: int | None) -> dict[str, Any]:
        """What the trace header says of the model.

        Asked for at the end of the first epoch: only then the probe is known.
        """
        variables = self._graph.variables
        return {
            "variables": tuple(v.path for v in variables),
            "variable_layers": tuple(v.layer for v in variables),
            "variable_sizes": tuple(v.size for v in variables),
            "kernels": tuple(v.kernel for v in variables),
            "layers": self._graph.layers,
            "edges": self._graph.edges,
            "activations": tuple(
                layer.name for layer in (self._probe.layers if self._probe else ())
            ),
            "gradients_clipped": _clips(self._model.optimizer),
            "loss_scaled": _scales_loss(self._model),
            "planned_learning_rates": self._planned_rates(planned_epochs),
            "unobserved": dict(self.unobserved),
        }

    def _needs_batch(self) -> bool:
        if self._wants_activations and self._probe_data is None:
            return True
        return self._wants_gradients and self._tap_name == "probe" and self._labels()

    def _labels(self) -> bool:
        return not (isinstance(self._probe_data, tuple) and len(self._probe_data) > 1)

    def _install_probe_tap(self) -> None:
        batch = self._probe_data if not self._labels() else None
        if batch is None and self._keeper is not None:
            batch = self._keeper.batch()
        if batch is None:
            self.unobserved["gradient"] = "no probe data with labels"
            return
        self._tap = taps.ProbeTap(*batch)
        self._tap.install(self._model)

    def _sample(self) -> bool:
        if self._tap is None:
            return True
        gradients = self._tap.gradients()
        sample = np.array([_sample(gradient) for gradient in gradients])
        if not len(sample) or np.isnan(sample).all():
            return True
        self._samples.append(sample)
        self._rows.append(self._tap.batch_size())
        # The last batch may be a small one; what it leaves is then too noisy for the
        # statistics of the epoch, and those of the step before it are kept.
        if self._schedule.before_last and self._rows[-1] is not None:
            self._summary = [_summarize(gradient) for gradient in gradients]
        # A scaled loss (mixed precision) overflows now and then; that is handled.
        return _scales_loss(self._model) or not np.any(sample[:, _FINITE] == 0)

    def _gradient_columns(self) -> dict[str, tuple[float, ...]]:
        if self._tap is None:
            return {}
        last_seen = self._schedule.last == self._steps - 1
        if not last_seen and self._tap_name == "training":
            self._sample()
        if not self._samples:
            reason = self._tap.observed()
            if reason is not None:
                self.unobserved["gradient"] = reason
            return {}
        samples = np.array(self._samples)
        whole = _whole_batches(self._rows)
        if whole[-1] or self._summary is None:
            self._summary = [_summarize(g) for g in self._tap.gradients()]
        kept = samples[whole]
        columns = {
            f"step_gradient/{name}": _over_steps(np.nanmean, kept[:, :, k])
            for k, name in enumerate(stats.SAMPLE)
        }
        columns["step_gradient/abs_mean_median"] = _over_steps(
            np.nanmedian, kept[:, :, _ABS_MEAN]
        )
        # A small last batch may break as well as a whole one.
        columns["step_gradient/finite"] = _over_steps(
            np.nanmean, samples[:, :, _FINITE]
        )
        columns |= _by_statistic("gradient", self._summary)
        return {name: _rounded(values) for name, values in columns.items()}

    def _weight_columns(self) -> dict[str, tuple[float, ...]]:
        weights = [
            stats.summarize(variable.numpy())
            for variable in self._model.trainable_variables
        ]
        columns = _by_statistic("weight", weights)
        return {name: _rounded(values) for name, values in columns.items()}

    def _activation_columns(self) -> dict[str, tuple[float, ...]]:
        spent = self._probe_seconds / max(self.seconds, 1e-9)
        if self._probes >= PROBED_EPOCHS and spent >= PROBE_SHARE:
            return {}
        started = time.perf_counter()
        try:
            ratios = self._probe_model()
        except Exception as error:
            self.unobserved["activation"] = f"the probe fails: {error}".splitlines()[0]
            raise
        self._probes += 1
        self._probe_seconds += time.perf_counter() - started
        return {} if ratios is None else {"activation/constant_ratio": ratios}

    def _probe_model(self) -> tuple[float, ...] | None:
        """Share of constant units of each activation layer; `None` without data."""
        model_probe = self._probe
        if model_probe is None:
            x = self._probe_data[0] if not self._labels() else self._probe_data
            if x is None and self._keeper is not None:
                batch = self._keeper.batch()
                x = None if batch is None else batch[0]
            if x is None:
                self.unobserved["activation"] = "no probe data"
                return None
            model_probe = probe.ActivationProbe(self._model, x)
        outputs = model_probe.run()
        self._probe = model_probe
        return _rounded(
            constant_ratio(output, bounded=layer.bounded)
            for layer, output in zip(model_probe.layers, outputs, strict=True)
        )

    def _learning_rate(self) -> float:
        try:
            return float(self._model.optimizer.learning_rate)
        except Exception:  # a custom optimizer need not have one
            return math.nan

    def _regularization(self) -> float:
        """Sum of the weight penalties that the training loss contains."""
        penalties = [
            float(variable.regularizer(variable))
            for variable in self._model.trainable_variables
            if getattr(variable, "regularizer", None) is not None
        ]
        return math.fsum(penalties)

    def _planned_rates(self, planned_epochs: int | None) -> tuple[float, ...]:
        """Learning rates that a schedule foretells, [E + 1], else empty."""
        if planned_epochs is None or self._steps_per_epoch is None:
            return ()
        try:
            config = self._model.optimizer.get_config()["learning_rate"]
            if not isinstance(config, dict):
                return ()
            schedule = keras.optimizers.schedules.deserialize(config)
            steps = [n * self._steps_per_epoch for n in range(planned_epochs + 1)]
            return tuple(float(schedule(step)) for step in steps)
        except Exception:  # a schedule of the user's own, which foretells nothing
            return ()


class SampledSteps:
    """Which steps of an epoch are sampled.

    Up to ten, evenly spread, with the first, the last but one and the last; steps
    1, 2, 4, 8, ... where their number is not known.

    Example:
        >>> schedule = SampledSteps(100)
        >>> [step for step in range(100) if schedule.due(step)]
        [0, 12, 24, 37, 49, 61, 74, 86, 98, 99]
        >>> schedule = SampledSteps(None)
        >>> [step for step in range(20) if schedule.due(step)]
        [0, 1, 3, 7, 15]

    Args:
        steps: steps of the epoch, or `None` when unknown.
    """

    def __init__(self, steps: int | None) -> None:
        self._steps = steps
        self.last = -1
        if steps is not None:
            spread = np.linspace(0, max(steps - 2, 0), SAMPLED_STEPS - 1)
            self._due = sorted({*spread.round().astype(int).tolist(), steps - 1})

    def due(self, step: int) -> bool:
        """Whether `step`, from 0, is sampled; ask in order, each step once.

        With several steps per execution only every k-th step is asked for.
        """
        if self._steps is None:
            is_due = (step + 1).bit_length() > (self.last + 1).bit_length()
        else:
            is_due = bool(self._due) and step >= self._due[0]
            while self._due and step >= self._due[0]:
                self._due.pop(0)
        if is_due:
            self.last = step
        return is_due

    @property
    def before_last(self) -> bool:
        """Whether the newest sampled step comes before the last of the epoch."""
        return self._steps is None or self.last == self._steps - 2


def constant_ratio(output: np.ndarray, *, bounded: bool) -> float:
    """Share of the units whose output is the same for every row and position.

    Args:
        output: outputs of one layer, [rows, ..., units].
        bounded: the activation saturates (sigmoid, tanh): nearly constant counts.

    Example:
        >>> constant_ratio(np.array([[0.0, 1.0], [0.0, 2.0]]), bounded=False)
        0.5
    """
    units = np.asarray(output, np.float32).reshape(-1, output.shape[-1])
    if len(units) < 2:
        return math.nan
    low, high = units.min(axis=0), units.max(axis=0)
    tolerance = (
        SATURATED_RANGE
        if bounded
        else CONSTANT_SHARE * (1 + np.maximum(np.abs(low), np.abs(high)))
    )
    with np.errstate(invalid="ignore"):
        return float(np.mean(high - low <= tolerance))


_ABS_MEAN = stats.SAMPLE.index("abs_mean")
_FINITE = stats.SAMPLE.index("finite")


def _sample(gradient: np.ndarray | None) -> tuple[float, ...]:
    return (math.nan,) * len(stats.SAMPLE) if gradient is None else stats.sample(gradient)


def _summarize(gradient: np.ndarray | None) -> tuple[float, ...]:
    if gradient is None:
        return (math.nan,) * len(stats.SUMMARY)
    return tuple(stats.summarize(gradient))


def _by_statistic(group: str, rows: list[tuple[float, ...]]) -> dict[str, np.ndarray]:
    table = np.array(rows).reshape(len(rows), len(stats.SUMMARY))
    return {f"{group}/{name}": table[:, k] for k, name in enumerate(stats.SUMMARY)}


def _whole_batches(rows: list[int | None]) -> np.ndarray:
    """Which samples come from batches of full size; all where sizes are unknown."""
    sizes = np.array([0 if size is None else size for size in rows])
    return sizes == sizes.max()


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values)


def _over_steps(reduce: Callable[..., np.ndarray], values: np.ndarray) -> np.ndarray:
    """Reduces [steps, V] to [V]; `nan` for variables that had no gradient."""
    result = np.full(values.shape[1], np.nan)
    known = ~np.isnan(values).all(axis=0)
    result[known] = reduce(values[:, known], axis=0)
    return result


def _scales_loss(model: keras.Model) -> bool:
    return isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def _clips(optimizer: Any) -> bool:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return any(
        getattr(inner, name, None) is not None
        for name in ("clipnorm", "clipvalue", "global_clipnorm")
    )
