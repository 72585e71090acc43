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

from kt_bttackler import blueprint, graph, stats, taps, weight_meter
from kt_bttackler.budget import Budget
from kt_bttackler.fuses import Fuses
from kt_bttackler.gradient_meter import Columns, GradientMeter, summary_columns
from kt_bttackler.probe_meter import ProbeMeter
from kt_bttackler.trace import Record
from kt_bttackler.weight_meter import WeightMeter
from kt_bttackler.worker import Worker

# Above this number of parameters statistics are computed beside the training.
LARGE_MODEL = 1_000_000
# The ten statistics, unless an indicator needs them: of the first epochs, and then
# while they take no more than this share of the time.
SUMMARIZED_EPOCHS = 3
SUMMARY_SHARE = 0.001
_SUMMARIES = {
    f"{group}/{name}" for group in ("gradient", "weight") for name in stats.SUMMARY
}


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
        self._needs = frozenset(needs)
        groups = {name.partition("/")[0] for name in self._needs if "/" in name}
        self._model = model
        self._fuses = fuses
        self._worker = worker
        self._wants_gradients = bool(groups & {"step_gradient", "gradient", "weight"})
        # Facts for people and later questions; where no indicator asks for them they
        # must be cheap.
        self._summaries = Budget(SUMMARY_SHARE, free=SUMMARIZED_EPOCHS)
        self._needs_summaries = bool(self._needs & _SUMMARIES)
        self._wants_updates = "update" in groups or bool(
            self._needs & {"weight/initial_symmetric", "weight/initial_finite"}
        )
        self._wants_structure = "model" in groups
        self._tap_name = tap
        self._probe = ProbeMeter(
            model,
            self._needs,
            probe_data,
            wants_batch=self._wants_gradients and tap == "probe",
        )
        self._meter: GradientMeter | None = None
        self._weights: WeightMeter | None = None
        self._initial: Columns = {}
        self._graph = graph.ModelGraph((), (), ())
        self._steps = 0  # of the running epoch, so far
        self._steps_behind = 0  # of an execution, when Keras numbers it by its first
        self._steps_per_epoch: int | None = None
        self._first: dict[str, float] | None = {}  # None once it is recorded
        self._started = time.perf_counter()
        self.large = False
        self.unobserved: dict[str, str] = {}

    def begin(self, steps_per_epoch: int | None) -> None:
        """Installs the taps; called in `on_train_begin`."""
        self._steps_per_epoch = steps_per_epoch
        self._started = time.perf_counter()
        self._fuses("probe", self._probe.begin)
        if self._wants_updates and blueprint.is_built(self._model):
            self._fuses("weights", self._watch_weights)
        if self._wants_gradients and self._tap_name == "training":
            self._use(taps.TrainingTap())
        self._first = {"first_regularization": self._regularization()}

    def begin_epoch(self) -> None:
        """Forgets the samples of the epoch before."""
        self._steps = 0
        if self._meter is not None:
            self._meter.begin_epoch(self._steps_per_epoch)
        if self._weights is not None:
            self._fuses("weights", self._weights.begin_epoch, self._steps_per_epoch)
        self._fuses("labels", self._probe.begin_epoch, self._steps_per_epoch)

    def end_step(self, step: int, logs: Mapping[str, float]) -> bool:
        """Samples the gradients where it is their turn.

        Args:
            step: number of the step within the epoch, from 0.
            logs: what Keras reports; the loss is the running mean.

        Returns:
            False when a gradient of this step is known not to be finite.
        """
        if step == 0:
            # Newer Keras numbers an execution of several steps by the last of them.
            self._steps_behind = getattr(self._model, "steps_per_execution", 1) - 1
        step += self._steps_behind
        self._steps = step + 1
        if self._first is not None and "first_batch_loss" not in self._first:
            # With several steps per execution this is no longer the first batch's.
            loss = logs.get("loss", math.nan) if step == 0 else math.nan
            self._first["first_batch_loss"] = loss
            self._meet_model()
        self._fuses("labels", self._probe.end_step, step)
        if self._weights is not None:
            self._fuses("weights", self._weights.end_step, step)
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
        sampled: Future[Columns] | None = None
        if self._meter is not None:
            sampled = self._fuses("gradient tap", self._meter.end_epoch, self._steps)
        columns, scalars = dict(self._initial), dict(logs)
        self._initial = {}
        if self._needs_summaries or self._summaries.allows(self.seconds):
            columns |= self._fuses("statistics", self._summarize) or {}
        if not partial:
            if self._weights is not None:
                columns |= self._fuses("weights", self._weights.end_epoch) or {}
            scalars |= self._fuses("labels", self._probe.end_labels) or {}
            probed = self._fuses("probe", self._probe.end_epoch, self.seconds)
            columns |= probed[0] if probed else {}
            scalars |= probed[1] if probed else {}
        # Keras numbers the last execution as if all of its steps had been run.
        most = self._steps_per_epoch or self._steps
        scalars["steps"] = float(min(self._steps, most))
        scalars["learning_rate"] = self._learning_rate()
        scalars["regularization"] = self._regularization()
        scalars |= self._first or {}
        is_first, self._first = self._first is not None, None
        if self._steps_per_epoch is None:
            self._steps_per_epoch = self._steps
        seconds = self.seconds

        def record() -> Record:
            if sampled is not None:
                columns.update(self._fuses("gradient tap", sampled.result) or {})
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
        for part in (self._meter.tap if self._meter else None, self._probe):
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
            **self._fuses("probe", self._probe.header_fields, otherwise={}),
            **self._structure(),
            "gradients_clipped": _clips(self._model.optimizer),
            "loss_scaled": _scales_loss(self._model),
            "planned_learning_rates": self._planned_rates(planned_epochs),
            "stop_delay": int(self.large),
            "unobserved": self.unobserved | self._probe.unobserved,
        }

    def _meet_model(self) -> None:
        """What can be asked after the first step only.

        A subclassed model may have had no variables before.
        """
        if self._wants_gradients or self._wants_structure:
            self._graph = self._fuses(
                "model graph", graph.inspect_model, self._model, otherwise=self._graph
            )
            self.large = sum(v.size for v in self._graph.variables) > LARGE_MODEL
        if self._wants_updates and self._weights is None:
            self._fuses("weights", self._watch_weights)
        self._fuses("probe", self._probe.end_first_step)
        if self._wants_gradients and self._tap_name == "probe":
            self._use_probe_tap("no probe data with labels")
        if self._meter is not None and "gradient/initial_norm" in self._needs:
            gradients = self._fuses("gradient tap", self._meter.tap.gradients) or []
            norms = weight_meter.gradient_norms(gradients)
            self._initial["gradient/initial_norm"] = norms

    def _watch_weights(self) -> None:
        """Looks at the weights before they move, or after their first step."""
        variables = graph.inspect_model(self._model).variables
        kernels = tuple(variable.kernel for variable in variables)
        self._initial |= weight_meter.initial_columns(self._model, kernels)
        self._weights = WeightMeter(self._model, kernels)

    def _structure(self) -> dict[str, Any]:
        if not self._wants_structure:
            return {}
        fields: dict[str, Any] = self._fuses(
            "model graph", blueprint.structure, self._model, self._graph, otherwise={}
        )
        return fields

    def _use(self, tap: taps.GradientTap) -> None:
        per_epoch = isinstance(tap, taps.ProbeTap)
        self._meter = GradientMeter(tap, self._submit, per_epoch=per_epoch)
        self._fuses("gradient tap", tap.install, self._model)

    def _use_probe_tap(self, otherwise: str) -> None:
        batch = self._probe.batch
        if batch is None or batch[1] is None:
            self._meter = None
            self.unobserved["gradient"] = otherwise
        else:
            self._use(taps.ProbeTap(*batch))

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

    def _summarize(self) -> Columns:
        """The ten statistics of gradients and weights.

        Here and now also for a large model: while a worker looks at them, the next
        steps would need memory for another set of gradients and one of weights.
        """
        if not self._wants_gradients:
            return {}
        with self._summaries.spending():
            gradients = self._meter.take_typical() if self._meter else []
            columns = summary_columns("gradient", gradients)
            del gradients
            weights: list[Any] = [
                weight_meter.current_value(variable)
                for variable in self._model.trainable_variables
            ]
            return columns | summary_columns("weight", weights)

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
