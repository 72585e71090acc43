"""What the probe says of one training, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from kt_bttackler import blueprint, unit_stats
from kt_bttackler.budget import Budget
from kt_bttackler.gradient_meter import Columns, rounded
from kt_bttackler.labels import LabelledSteps
from kt_bttackler.output_meter import OutputMeter, Scalars
from kt_bttackler.probe import ActivationInfo, ActivationProbe, Reading
from kt_bttackler.probe_data import BatchKeeper, slice_rows

PROBED_EPOCHS = 3
PROBE_SHARE = 0.002

_OF_UNITS: Mapping[str, Callable[[np.ndarray, ActivationInfo], float]] = {
    "activation/constant_ratio": lambda output, layer: unit_stats.constant_ratio(
        output, bounded=layer.bounded
    ),
    "activation/dead_ratio": lambda output, layer: unit_stats.dead_ratio(
        output, layer.activation
    ),
    "activation/saturated_ratio": lambda output, layer: unit_stats.saturated_ratio(
        output, layer.activation
    ),
    "activation/abs_max": lambda output, _: unit_stats.abs_max(output),
}


class ProbeMeter:
    """Probes one training with one batch.

    Args:
        model: the model, compiled.
        needs: names of statistics that some indicator reads.
        probe_data: x or (x, y), or None to keep the first training batch.
        wants_batch: a batch with labels is wanted for something else, too.
    """

    def __init__(
        self,
        model: keras.Model,
        needs: Iterable[str],
        probe_data: Any,
        *,
        wants_batch: bool,
    ) -> None:
        self._needs = frozenset(needs)
        groups = {name.partition("/")[0] for name in self._needs if "/" in name}
        self._reads_labels = bool(groups & {"output", "label", "model"})
        self._reads_outputs = bool(groups & {"output", "model"})
        self._probes = self._reads_outputs or "activation" in groups
        self._model = model
        sliced = None if probe_data is None else slice_rows(probe_data)
        probe_data = probe_data if sliced is None else sliced
        labelled = isinstance(probe_data, tuple) and len(probe_data) > 1
        self.batch: Any = probe_data if labelled else None  # x, y and maybe weights
        self._x = probe_data[0] if labelled else probe_data
        self._y = probe_data[1] if labelled else None  # of the rows of x
        keeps = (self._probes and self._x is None) or self._reads_labels
        keeps = keeps or (wants_batch and self.batch is None)
        self._keeper = BatchKeeper() if keeps else None
        self._outputs = OutputMeter(model)
        self._labelled_steps = LabelledSteps(None, 0)
        self._labelled_epochs = 0
        self._steps_known = True
        self._trivial: Scalars = {}
        self._probe: ActivationProbe | None = None
        self._probed = False
        self._budget = Budget(PROBE_SHARE, free=PROBED_EPOCHS)
        self._initial_units: tuple[float, ...] = ()
        self._initial_stds: list[float] = []  # of the outputs
        self.unobserved: dict[str, str] = {}

    def begin(self) -> None:
        """Lets batches be kept; probes a model that is built and has data."""
        if self._keeper is not None:
            self._keeper.install(self._model)
        # A call would build what is not built yet, and so move the seeds of training.
        if self._x is not None and blueprint.is_built(self._model):
            self._probe_initially()

    def begin_epoch(self, steps: int | None) -> None:
        """Plans which of the `steps` steps give labels, `None` when unknown."""
        if not self._steps_known:
            # The steps of an epoch of unknown length were early ones: sorted labels
            # would look poorer than they are.
            self._outputs.forget()
            self._labelled_epochs = 0
        self._steps_known = steps is not None
        self._labelled_steps = LabelledSteps(steps, self._labelled_epochs)

    def end_first_step(self) -> None:
        """Takes the batch that was kept; what could not be probed before is now."""
        batch = self._keeper.batch() if self._keeper is not None else None
        if batch is not None:
            self.batch = self.batch or batch
            if self._x is None:
                self._x, self._y = batch[:2]
        if self._probe is None and self._x is not None:
            self._probe_initially()

    def end_step(self, step: int) -> None:
        """Gathers the labels of some steps of the first epochs."""
        is_due = self._reads_labels and self._labelled_steps.due(step)
        batch = self._keeper.newest() if is_due and self._keeper is not None else None
        if batch is not None:
            self._outputs.add(batch[1], batch[2])
            self._trivial = {}

    def end_labels(self) -> Scalars:
        """What the labels say at the end of an epoch."""
        self._labelled_epochs += 1
        if self._reads_labels and not self._trivial:
            self._trivial = self._outputs.trivial()
        return self._trivial

    def end_epoch(self, seconds: float) -> tuple[Columns, Scalars]:
        """What the probe says at the end of an epoch; nothing once it costs too much.

        Args:
            seconds: since the training began.

        Raises:
            Exception: whatever the model raises on the probe.
        """
        if not (self._probes and self._budget.allows(seconds)):
            return {}, {}
        if self._x is None:
            self.unobserved["activation"] = "no probe data"
            return {}, {}
        with self._budget.spending():
            measured = self._measure(self._read())
        self._probed = True
        return measured

    def _measure(self, reading: Reading) -> tuple[Columns, Scalars]:
        columns = {
            name: rounded(
                statistic(output, layer)
                for layer, output in zip(
                    self._layers(), reading.activations, strict=True
                )
            )
            for name, statistic in _OF_UNITS.items()
            if name in self._needs
        }
        scalars: Scalars = {}
        if self._reads_outputs:
            stds = self._outputs.stds(reading.outputs)
            scalars["output/spread"] = self._spread(stds)
            scalars |= self._outputs.classes(reading.outputs, self._y)
            if self._initial_stds and not self._probed:
                scalars["output/initial_spread"] = self._spread(self._initial_stds)
        if self._initial_units and not self._probed:
            columns["activation/initial_std"] = self._initial_units
        return columns, scalars

    def header_fields(self) -> dict[str, Any]:
        """What the trace header says of activations, inputs and outputs."""
        fields: dict[str, Any] = {
            "activations": tuple(layer.name for layer in self._layers())
        }
        if self._probe is not None and "model/outputs" in self._needs:
            fields["outputs"] = self._outputs.facts(self._probe.heads)
        if self._probe is not None and "model/inputs" in self._needs:
            fields["inputs"] = _input_facts(self._probe.first_inputs, self._x)
        return fields

    def restore(self) -> None:
        """Lets go of the model."""
        if self._keeper is not None:
            self._keeper.restore()

    def _layers(self) -> tuple[ActivationInfo, ...]:
        return self._probe.layers if self._probe is not None else ()

    def _probe_initially(self) -> None:
        wants_units = "activation/initial_std" in self._needs
        if not (wants_units or self._reads_outputs):
            return
        reading = self._read()
        if wants_units:
            stds = (unit_stats.mean_std(output) for output in reading.activations)
            self._initial_units = rounded(stds)
        if self._reads_outputs:
            self._initial_stds = self._outputs.stds(reading.outputs)

    def _spread(self, stds: list[float]) -> float:
        heads = self._probe.heads if self._probe is not None else ()
        return self._outputs.spread(stds, heads)

    def _read(self) -> Reading:
        probe = self._probe or ActivationProbe(self._model, self._x)
        try:
            reading = probe.run()
        except Exception as error:
            self.unobserved["activation"] = f"the probe fails: {error}".splitlines()[0]
            raise
        self._probe = probe
        return reading


def _input_facts(first_inputs: list[np.ndarray], x: Any) -> dict[str, Any]:
    """What the probe rows look like, as the first layer with a kernel sees them.

    Args:
        first_inputs: what that layer was given, [rows, ..., features] each.
        x: the rows as the model was given them.

    Returns:
        "abs_max", "std_ratio" (largest per smallest standard deviation of a feature
        that varies), "finite", "integers" (all whole numbers), "image" (rank 4);
        empty where there are no floating-point inputs.
    """
    raw = [np.asarray(leaf) for leaf in keras.tree.flatten(x)]
    raw = [leaf for leaf in raw if leaf.dtype.kind == "f"]
    finite = all(np.isfinite(leaf).all() for leaf in raw)
    if not first_inputs:
        return {} if finite else {"finite": False}
    (values,) = first_inputs
    return {
        "abs_max": unit_stats.abs_max(values),
        "std_ratio": unit_stats.std_ratio(values),
        "finite": finite,
        "integers": bool(np.all(values == np.round(values))),
        "image": values.ndim == 4,
    }
