"""Turns a running training into records: what to measure, when, and how it is named.

The recorder asks taps and probe for arrays, has them reduced on the host, and makes
one `Record` per epoch. It does not judge.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import keras
import numpy as np

from kt_bttackler import graph, probe, taps
from kt_bttackler.fuses import Fuses
from kt_bttackler.gradient_meter import (
    Columns,
    GradientMeter,
    rounded,
    weight_columns,
)
from kt_bttackler.trace import Record
from kt_bttackler.worker import Worker

# Above this number of parameters statistics are computed beside the training.
LARGE_MODEL = 1_000_000
PROBED_EPOCHS = 3
PROBE_SHARE = 0.005
# A unit of a saturating activation is constant within this range, of another one
# within this share of its largest magnitude.
SATURATED_RANGE = 1e-3
CONSTANT_SHARE = 1e-6


class Recorder:
    """Measures one training of one model.

    Args:
        model: the model, compiled.
        needs: names of statistics that some indicator reads.
        tap: "training" or "probe".
        probe_data: x or (x, y), or `None` to keep the first training batch.
        fuses: switches off what fails.
        worker: computes the statistics of a large model.
    """

    def __init__(
        self,
        model: keras.Model,
        needs: Iterable[str],
        tap: str,
        probe_data: Any,
        fuses: Fuses,
        worker: Worker,
    ) -> None:
        groups = {name.partition("/")[0] for name in needs if "/" in name}
        self._model = model
        self._fuses = fuses
        self._worker = worker
        self._wants_gradients = bool(groups & {"step_gradient", "gradient", "weight"})
        self._wants_activations = "activation" in groups
        self._tap_name = tap
        labelled = isinstance(probe_data, tuple) and len(probe_data) > 1
        self._batch: Any = probe_data if labelled else None  # x, y and maybe weights
        self._x = probe_data[0] if labelled else probe_data
        self._keeper: probe.BatchKeeper | None = None
        self._meter: GradientMeter | None = None
        self._probe: probe.ActivationProbe | None = None
        self._probes = 0
        self._probe_seconds = 0.0
        self._graph = graph.ModelGraph((), (), ())
        self._steps = 0  # of the running epoch, so far
        self._steps_per_epoch: int | None = None
        self._first: dict[str, float] | None = {}  # None once it is recorded
        self._started = time.perf_counter()
        self.large = False
        self.unobserved: dict[str, str] = {}

    def begin(self, steps_per_epoch: int | None) -> None:
        """Installs the taps; called in `on_train_begin`."""
        self._steps_per_epoch = steps_per_epoch
        self._started = time.perf_counter()
        if self._needs_batch():
            self._keeper = probe.BatchKeeper()
            self._fuses("probe batch", self._keeper.install, self._model)
        if self._wants_gradients and self._tap_name == "training":
            self._use(taps.TrainingTap())
        self._first = {"first_regularization": self._regularization()}

    def begin_epoch(self) -> None:
        """Forgets the samples of the epoch before."""
        self._steps = 0
        if self._meter is not None:
            self._meter.begin_epoch(self._steps_per_epoch)

    def end_step(self, step: int, logs: Mapping[str, float]) -> bool:
        """Samples the gradients where it is their turn.

        Args:
            step: number of the step within the epoch, from 0.
            logs: what Keras reports; the loss is the running mean.

        Returns:
            False when a gradient of this step is known not to be finite.
        """
        self._steps = step + 1
        if self._first is not None and "first_batch_loss" not in self._first:
            # With several steps per execution this is no longer the first batch's.
            loss = logs.get("loss", math.nan) if step == 0 else math.nan
            self._first["first_batch_loss"] = loss
            self._meet_model()
        if self._meter is None:
            return True
        finite = self._fuses("gradient tap", self._meter.end_step, step)
        # A scaled loss (mixed precision) overflows now and then; that is handled.
        if finite is None or not finite.done() or _scales_loss(self._model):
            return True
        return bool(self._fuses("gradient tap", finite.result, otherwise=True))

    def end_epoch(
        self, epoch: int, logs: Mapping[str, float], *, partial: bool
    ) -> Callable[[], Record]:
        """Measures what is measured at the end of an epoch.

        Args:
            epoch: the absolute epoch, from 1.
            logs: logs of Keras.
            partial: the epoch was broken off.

        Returns:
            Gives the record; waits for the statistics of a large model.
        """
        parts = []
        if self._meter is not None:
            future = self._fuses("gradient tap", self._meter.end_epoch, self._steps)
            parts.append(("gradient tap", future))
        if self._wants_gradients:
            weights = [v.numpy() for v in self._model.trainable_variables]
            parts.append(("weights", self._submit(weight_columns, weights)))
        columns: Columns = {}
        if self._wants_activations and not partial:
            columns |= self._fuses("activation probe", self._activation_columns) or {}
        scalars = dict(logs)
        scalars["learning_rate"] = self._learning_rate()
        scalars["regularization"] = self._regularization()
        scalars |= self._first or {}
        is_first, self._first = self._first is not None, None
        if self._steps_per_epoch is None:
            self._steps_per_epoch = self._steps
        seconds = self.seconds

        def record() -> Record:
            for part, future in parts:
                if future is not None:
                    columns.update(self._fuses(part, future.result) or {})
            if is_first and "step_gradient/abs_mean" not in columns:
                self._fuses("gradient tap", self._miss_gradients)
            return Record(epoch, seconds, scalars, columns, partial)

        return record

    def broken_record(self, epoch: int, logs: Mapping[str, float]) -> Record:
        """What is known in the middle of an epoch that a value broke.

        Args:
            epoch: the absolute epoch, from 1.
            logs: logs of the step.
        """
        columns: Columns = {}
        if self._meter is not None and not self.large:
            columns = self._fuses("gradient tap", self._meter.finite_so_far) or {}
        return Record(epoch, self.seconds, dict(logs), columns, partial=True)

    def end(self) -> None:
        """Lets go of the model; also after an exception."""
        for part in (self._meter.tap if self._meter else None, self._keeper):
            if part is not None:
                self._fuses("restoring the model", part.restore)

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
            "stop_delay": int(self.large),
            "unobserved": dict(self.unobserved),
        }

    def _needs_batch(self) -> bool:
        """Whether the first training batch is kept: for x, or for the labels."""
        needs_x = self._wants_activations and self._x is None
        return needs_x or (self._wants_gradients and self._tap_name == "probe")

    def _meet_model(self) -> None:
        """What can be asked after the first step only.

        A subclassed model may have had no variables before.
        """
        if self._wants_gradients:
            self._graph = self._fuses(
                "model graph", graph.inspect_model, self._model, otherwise=self._graph
            )
            self.large = sum(v.size for v in self._graph.variables) > LARGE_MODEL
        if self._keeper is not None:
            batch = self._fuses("probe batch", self._keeper.batch)
            if batch is not None:
                self._batch = self._batch or batch
                self._x = batch[0] if self._x is None else self._x
        if self._wants_gradients and self._tap_name == "probe":
            self._use_probe_tap("no probe data with labels")

    def _use(self, tap: taps.GradientTap) -> None:
        per_epoch = isinstance(tap, taps.ProbeTap)
        self._meter = GradientMeter(tap, self._submit, per_epoch=per_epoch)
        self._fuses("gradient tap", tap.install, self._model)

    def _use_probe_tap(self, otherwise: str) -> None:
        if self._batch is None or self._batch[1] is None:
            self._meter = None
            self.unobserved["gradient"] = otherwise
        else:
            self._use(taps.ProbeTap(*self._batch))

    def _miss_gradients(self) -> None:
        """After a first epoch without gradients: takes the probe batch, or says why."""
        if self._meter is None:
            return
        reason = self._meter.tap.observed()
        if reason is None:
            return
        if isinstance(self._meter.tap, taps.TrainingTap):
            self._meter.tap.restore()
            self._use_probe_tap(reason)
        else:
            self.unobserved["gradient"] = reason

    def _submit(self, action: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Reduces arrays, now or, for a large model, in the worker."""
        if self.large:
            return self._worker.submit(action, *arguments)
        future: Future[Any] = Future()
        try:
            future.set_result(action(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def _activation_columns(self) -> Columns:
        spent = self._probe_seconds / max(self.seconds, 1e-9)
        if self._probes >= PROBED_EPOCHS and spent >= PROBE_SHARE:
            return {}
        if self._x is None:
            self.unobserved["activation"] = "no probe data"
            return {}
        started = time.perf_counter()
        model_probe = self._probe or probe.ActivationProbe(self._model, self._x)
        try:
            outputs = model_probe.run()
        except Exception as error:
            self.unobserved["activation"] = f"the probe fails: {error}".splitlines()[0]
            raise
        self._probe = model_probe
        ratios = [
            constant_ratio(output, bounded=layer.bounded)
            for layer, output in zip(model_probe.layers, outputs, strict=True)
        ]
        self._probes += 1
        self._probe_seconds += time.perf_counter() - started
        return {"activation/constant_ratio": rounded(ratios)}

    def _learning_rate(self) -> float:
        try:
            return float(self._model.optimizer.learning_rate)
        except Exception:  # a custom optimizer need not have one
            return math.nan

    def _regularization(self) -> float:
        """Sum of the weight penalties that the training loss contains.

        A training step of the user's own need not add them. `nan` before there are
        variables.
        """
        if type(self._model).train_step is not keras.Model.train_step:
            return 0.0
        if not self._model.variables:
            return math.nan
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
            optimizer = _unscaled(self._model.optimizer)
            config = optimizer.get_config()["learning_rate"]
            if not isinstance(config, dict):
                return ()
            schedule = keras.optimizers.schedules.deserialize(config)
            steps = [n * self._steps_per_epoch for n in range(planned_epochs + 1)]
            return tuple(float(schedule(step)) for step in steps)
        except Exception:  # a schedule of the user's own, which foretells nothing
            return ()


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


def _scales_loss(model: keras.Model) -> bool:
    return isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def _unscaled(optimizer: Any) -> Any:
    """The optimizer within that of mixed precision."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _clips(optimizer: Any) -> bool:
    return any(
        getattr(_unscaled(optimizer), name, None) is not None
        for name in ("clipnorm", "clipvalue", "global_clipnorm")
    )
