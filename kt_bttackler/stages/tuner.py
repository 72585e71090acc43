"""A tuner that trains what trials have in common once."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial

from kt_bttackler.diagnosed_tuner import DiagnosedTuner
from kt_bttackler.stages.executions import TrainsInStages
from kt_bttackler.stages.staged_training import Usage
from kt_bttackler.stages.store import StageStore, byte_count


class StageTuner(DiagnosedTuner, TrainsInStages):
    """Trains every beginning that trials share once.

    What changes during a training is declared with `stages.schedule` in `build`. Every
    trial goes on from the deepest state on its path that an earlier trial has left,
    here, in another process or in another study with the same `stage_dir`. Its weights,
    its optimizer and its history are those, bit for bit, of a training from its first
    epoch with the same seed on the same machine.

    All trials with the same architecture begin with the same weights and see the rows
    in the same order, which is drawn anew for every epoch (`stages.epoch_order`). This
    makes them comparable; they are no independent samples.

    Random numbers must come from Keras's layers or from a `SeedGenerator` that belongs
    to the model. `fit` must not depend on `hp`.

    Args:
        hypermodel: a function that builds a model, or a `keras_tuner.HyperModel`.
        oracle: of the search. With grid search and random search staged trials are the
            trials; adaptive oracles see the same results in the same order, too.
        epochs: of every trial; Hyperband and successive halving have their own.
        seed: of all trainings.
        stage_dir: folder of the states; by default `stages` in the project.
        disk_budget: most bytes of states, such as 2_000_000_000 or "2GB"; by default
            there is no limit. What has to go is trained again when it is needed.
        code_version: a name for whatever else a training depends on that is in the
            source of neither `build`, `fit`, layers nor losses: helper functions.
        data_version: a name for data that is not in arrays. A `tf.data.Dataset` must
            give the same batches in the same order in every epoch.
        stateless: classes of callbacks that neither change the training nor keep a
            state from epoch to epoch.
        warm_models: compiled models that are kept for trials to come.
        second_opinion: with a `DiagnosisCallback`, a verdict that would end at least so
            many other trials must be given with another seed, too, before it does.
        control_share: share of the trials that a verdict of another trial would end
            which are trained to their end nevertheless; see `usage.controls`.
        workers: processes that share `stage_dir` and run the same search. With more
            than one, each trains the stages of all trials that are known beforehand,
            the longest remaining path first, before it runs the trials: all of grid
            search and random search with a seed, a round of Hyperband and successive
            halving. Among workers of a chief: of grid search. With a
            `DiagnosisCallback` trials are run one by one.
        **kwargs: arguments of `DiagnosedTuner`.

    Raises:
        ValueError: an argument is out of its range.

    Attributes:
        usage: epochs of the trials so far, epochs trained for them, and the seconds in
            which states were written, read and waited for, in this process.
    """

    def __init__(
        self,
        hypermodel: Any = None,
        oracle: keras_tuner.Oracle | None = None,
        *,
        epochs: int | None = None,
        seed: int = 0,
        stage_dir: str | os.PathLike[str] | None = None,
        disk_budget: int | str | None = None,
        code_version: str = "",
        data_version: str | None = None,
        stateless: Sequence[type[keras.callbacks.Callback]] = (),
        warm_models: int = 4,
        second_opinion: int = 4,
        control_share: float = 0.0,
        workers: int = 1,
        **kwargs: Any,
    ) -> None:
        if oracle is None:
            raise ValueError("`oracle` must be given, got None.")
        if epochs is not None and epochs < 1:
            raise ValueError(f"`epochs` must be at least 1, got {epochs}.")
        if warm_models < 0:
            raise ValueError(f"`warm_models` must be at least 0, got {warm_models}.")
        if not 0 <= control_share <= 1:
            raise ValueError(f"`control_share` must be in [0, 1], got {control_share}.")
        if workers < 1:
            raise ValueError(f"`workers` must be at least 1, got {workers}.")
        if kwargs.get("distribution_strategy") is not None:
            raise ValueError(
                "`distribution_strategy` must be None for staged trials, got "
                f"{kwargs['distribution_strategy']!r}."
            )
        budget = byte_count(disk_budget)
        self.seed = seed
        self.epochs = epochs
        self.usage = Usage()
        self._code_version = code_version
        self._data_version = data_version
        self._stateless = tuple(stateless)
        self._warm = collections.OrderedDict()
        self._warm_models = warm_models
        self._second_opinion = second_opinion
        self._control_share = control_share
        self._workers = workers
        self._given = (), {}
        self._given_oracle = oracle  # `oracle` of a worker only asks the chief
        self._known_trials = 0
        self._data = {}
        super().__init__(oracle, hypermodel, **kwargs)
        folder = pathlib.Path(stage_dir or pathlib.Path(self.project_dir) / "stages")
        self.stage_store = StageStore(folder, budget)
        self._max_epochs = self._max_epochs or epochs

    def search(self, *fit_args: Any, **fit_kwargs: Any) -> None:
        """Searches; takes the arguments of `fit`, as KerasTuner's tuners do.

        `epochs` may be given here instead of in the constructor.
        """
        self._data = {}
        self._given = fit_args, fit_kwargs | {"verbose": 0}
        self._known_trials = 0
        try:
            super().search(*fit_args, **fit_kwargs)
        finally:
            self._data = {}
            self._given = (), {}

    def _origin(self, trial: Trial) -> str:
        """All trials begin with the same seed."""
        return "stages"
