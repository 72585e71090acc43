"""What a trace is made of: a header, and one record per epoch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of a training before its first epoch.

    Attributes:
        trial_id: KerasTuner's trial id, or `None` outside a search.
        execution: number of the execution within the trial, from 0.
        started: Unix time in seconds at which the training began.
        initial_epoch: epochs that had been trained before (0 for a new training).
        max_epochs: E, the planned epochs, or `None` when unknown.
        objective: name of the metric the search optimises.
        direction: "min" or "max".
        hyperparameters: values of the trial.
        variables: path of each trainable variable, V of them.
        variable_layers: for each variable, the name of the layer that owns it.
        variable_sizes: for each variable, its number of elements.
        kernels: for each variable, whether it is a kernel (rank >= 2, no embedding
            table) whose gradient enters the ratios between layers.
        layers: layers that own kernels, in the order of the data flow, L of them.
        edges: pairs `(u, v)` of positions in `layers`: data flows from u to v
            through no other of them.
        activations: observed activation layers, A of them.
        gradients_clipped: the optimizer clips gradients.
        loss_scaled: the optimizer scales the loss (mixed precision).
        warmup_epochs: leading epochs that the user declared as warm-up.
        planned_learning_rates: learning rate at the start and at the end of every
            planned epoch, [E + 1], where a schedule foretells it, else empty.
        stop_delay: epochs between a verdict and the stop. 1 for large models, whose
            statistics are computed beside the training of the next epoch.
        unobserved: group of statistics to the reason why it is missing, such as
            `{"activation": "no probe data"}`.
        outputs: what was known of each output of the model before training, see
            `OutputMeter.facts`; empty when nothing asked for it.
        inputs: what the probe rows look like as the first kernel sees them: "abs_max",
            "std_ratio" of the features, "finite", "integers", "image".
        dropout_rates: rate of each dropout layer.
        linear_pairs: pairs of dense layers, the second fed by the first with nothing
            non-linear between them.
        adaptive_optimizer: the optimizer scales each step by past gradients.
        half_precision: a layer computes in float16.
        averaging_steps: training steps over which normalisation layers average what a
            validation goes by, 1 / (1 - momentum), the longest; 0 where there are none.
    """

    trial_id: str | None = None
    execution: int = 0
    started: float = 0.0
    initial_epoch: int = 0
    max_epochs: int | None = None
    objective: str = "loss"
    direction: str = "min"
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variables: tuple[str, ...] = ()
    variable_layers: tuple[str, ...] = ()
    variable_sizes: tuple[int, ...] = ()
    kernels: tuple[bool, ...] = ()
    layers: tuple[str, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    activations: tuple[str, ...] = ()
    gradients_clipped: bool = False
    loss_scaled: bool = False
    warmup_epochs: int = 0
    planned_learning_rates: tuple[float, ...] = ()
    stop_delay: int = 0
    unobserved: Mapping[str, str] = dataclasses.field(default_factory=dict)
    outputs: tuple[Mapping[str, Any], ...] = ()
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dropout_rates: tuple[float, ...] = ()
    linear_pairs: tuple[tuple[str, str], ...] = ()
    adaptive_optimizer: bool = False
    half_precision: bool = False
    averaging_steps: float = 0.0

    @functools.cached_property
    def kernel_shares(self) -> np.ndarray:
        """Weight of each variable in the mean of its layer, [V, L].

        A layer with several kernels (recurrent layers) counts every element once.
        """
        shares = np.zeros((len(self.variables), len(self.layers)))
        position = {layer: index for index, layer in enumerate(self.layers)}
        for v, layer in enumerate(self.variable_layers):
            if self.kernels[v] and layer in position:
                shares[v, position[layer]] = self.variable_sizes[v]
        shares /= np.maximum(shares.sum(axis=0, keepdims=True), 1)
        return shares


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured in one epoch.

    Attributes:
        epoch: the absolute epoch, from 1.
        seconds: since the training began, at the end of the epoch.
        scalars: one number each: the logs of Keras, `objective`, `first_batch_loss`,
            `learning_rate`, `regularization`.
        columns: one number per variable (`step_gradient/...`, `gradient/...`,
            `weight/...`, [V]) or per activation layer (`activation/...`, [A]).
        partial: the epoch was broken off by a non-finite value.
    """

    epoch: int
    seconds: float
    scalars: Mapping[str, float]
    columns: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    partial: bool = False
