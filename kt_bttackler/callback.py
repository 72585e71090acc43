"""`DiagnosisCallback`: watches a training, judges every epoch, ends hopeless ones.

```python
model.fit(x, y, epochs=20, callbacks=[ktb.DiagnosisCallback()])
```
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import keras

from kt_bttackler import context
from kt_bttackler.callers import searching_oracle
from kt_bttackler.diagnosis import Diagnosis, Verdict
from kt_bttackler.fuses import Fuses, warn_once
from kt_bttackler.trace import Trace
from kt_bttackler.training import Place, Settings, WatchedTraining

_COPIED = (
    "this callback was copied for every trial of a search, and the copies have the "
    "{name}s; ask `kt_bttackler.diagnosis_of(trial)` or read the trial's folder"
)

_NOT_BEGUN = (
    "a training calls `on_epoch_end` of DiagnosisCallback without `on_train_begin`, as "
    "loops of one's own do: it is not diagnosed"
)


class DiagnosisCallback(keras.callbacks.Callback):
    """Diagnoses one training, or every training of a search.

    While it only watches, the training is the same bit for bit. A fault of the
    diagnosis costs one warning and that part of the diagnosis, never the training.

    In a search KerasTuner copies the callback for every execution. With an oracle of
    this package the copies know their trial and write
    `<project>/trial_<id>/trace-<execution>.jsonl` and `verdict-<execution>.json`.

    Args:
        diagnosis: a `Diagnosis`, the name of a preset, or the path of a JSON file.
        stop: end a training when the diagnosis says so. False only watches.
        objective: name of a metric or a `keras_tuner.Objective`. Default: that of
            the search; in `fit` `val_loss` where there is one, else `loss`.
        epochs: E, the planned epochs, when they are more than this `fit` is told.
        tap: where gradients come from: "training", the real steps, or "probe", a
            `GradientTape` on the probe batch.
        probe_data: inputs x, or (x, y), for the probe. Default: in a search with a
            tuner of this package 128 rows of x, else the first training batch.
        log_dir: folder for TensorBoard. Default: beside Keras's own `TensorBoard`
            callback, or nowhere.
        trace_dir: folder for traces. Default: the trial's folder, or nowhere.
        warmup_epochs: leading epochs in which the early indicators keep quiet.
            Default: while the learning rate rises.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: `diagnosis` or `objective` is of another type.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> callback = DiagnosisCallback()
        >>> x = np.zeros((8, 2), "float32")
        >>> _ = model.fit(x, np.full(8, np.nan), verbose=0, callbacks=[callback])
        >>> print(callback.verdict.cause)
        AGV
    """

    def __init__(
        self,
        diagnosis: Diagnosis | str | os.PathLike[str] | None = None,
        *,
        stop: bool = True,
        objective: Any = None,
        epochs: int | None = None,
        tap: Literal["training", "probe"] = "training",
        probe_data: Any = None,
        log_dir: str | os.PathLike[str] | None = None,
        trace_dir: str | os.PathLike[str] | None = None,
        warmup_epochs: int | None = None,
    ) -> None:
        super().__init__()
        if tap not in ("training", "probe"):
            raise ValueError(f"`tap` must be 'training' or 'probe', got {tap!r}.")
        for name, value, least in (
            ("epochs", epochs, 1),
            ("warmup_epochs", warmup_epochs, 0),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(
                    f"`{name}` must be an integer of at least {least}, got {value!r}."
                )
        self._settings = Settings(
            diagnosis=_diagnosis(diagnosis),
            stop=stop,
            objective=_objective(objective),
            epochs=epochs,
            tap=tap,
            probe_data=probe_data,
            log_dir=log_dir,
            trace_dir=trace_dir,
            warmup_epochs=warmup_epochs or 0,
        )
        self._place = Place()
        self._copies = 0
        self._training: WatchedTraining | None = None
        self._begun = False

    def __deepcopy__(self, memo: dict[int, Any]) -> DiagnosisCallback:
        """A fresh callback with the same arguments, for the trial that runs now."""
        fresh = type(self).__new__(type(self))
        memo[id(self)] = fresh
        # Attributes of a subclass come along; what belongs to a training does not.
        fresh.__dict__.update(self.__dict__)
        fresh._place = self._current_place()
        fresh._copies = 0
        fresh._training = None
        fresh._begun = False
        fresh._model = fresh.params = None
        self._copies += 1
        return fresh

    def _current_place(self) -> Place:
        """Where a training stands that begins now, or that a copy is made for now."""
        oracle = searching_oracle()
        if oracle is None:
            return Place()
        trial = context.running_trial()
        if trial is None or trial.oracle is not oracle:
            return Place(in_search=True)
        return Place(True, trial, trial.next_execution(self))

    @property
    def diagnosis(self) -> Diagnosis:
        """What judges the trainings."""
        return self._settings.diagnosis

    @property
    def stops(self) -> bool:
        """Whether a harmful verdict ends the training."""
        return self._settings.stop

    @stops.setter
    def stops(self, stops: bool) -> None:
        self._settings = dataclasses.replace(self._settings, stop=stops)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict that ended the training, or would have; else the last finding."""
        self._own("verdict")
        return self._training.verdict if self._training else None

    @property
    def trace(self) -> Trace | None:
        """What was recorded of the last training; `None` before the first."""
        self._own("trace")
        return self._training.trace if self._training else None

    def _own(self, name: str) -> None:
        if self._training is None and self._copies:
            raise AttributeError(_COPIED.format(name=name))

    def go_on(self, before: Trace) -> None:
        """Takes over what another training has recorded of the epochs before.

        For a training that goes on from a state which the other has left; called when
        it has begun.

        Args:
            before: the trace up to that state.
        """
        self._guarded("go_on", before)

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Installs the taps."""
        fuses = Fuses()
        self._begun = True
        # A tuner of the user's own may pass its callbacks on without copying them.
        place = self._place if self._place.in_search else self._current_place()
        self._training = fuses(
            "diagnosis",
            WatchedTraining,
            self.model,
            self.params or {},
            self._settings,
            place,
            fuses,
        )
        self._guarded("begin")

    def trial_folder(self, folder: pathlib.Path) -> pathlib.Path:
        """Where the traces of a trial are.

        Args:
            folder: of the trial, in the project folder.
        """
        own = self._settings.trace_dir
        return folder if own is None else pathlib.Path(own) / folder.name

    def on_epoch_begin(
        self, epoch: int, logs: Mapping[str, float] | None = None
    ) -> None:
        """Forgets the samples of the epoch before."""
        self._guarded("begin_epoch", epoch + 1)

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, float] | None = None
    ) -> None:
        """Samples gradients; ends an epoch that can only be lost."""
        self._guarded("end_step", batch, logs or {})

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Cuts the validation short that would follow a broken epoch."""
        self._guarded("begin_validation")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Records the epoch, judges, and ends the training if it must be."""
        if not self._begun:
            warn_once(_NOT_BEGUN)
        self._guarded("end_epoch", epoch + 1, {} if logs is None else logs)

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Restores the model and tells the oracle, through the History."""
        if self._training is not None:
            # Has a fuse of its own: the model is let go whatever failed before.
            self._training.fuses("end of the diagnosis", self._training.end)

    def _guarded(self, hook: str, *arguments: Any) -> None:
        if self._training is not None:
            self._training.fuses("diagnosis", getattr(self._training, hook), *arguments)


def _diagnosis(given: Diagnosis | str | os.PathLike[str] | None) -> Diagnosis:
    if given is None:
        return Diagnosis()
    if isinstance(given, Diagnosis):
        return given
    if isinstance(given, os.PathLike) or (
        isinstance(given, str) and given.endswith(".json")
    ):
        return Diagnosis.load(given)
    if isinstance(given, str):
        return Diagnosis(given)
    raise TypeError(
        "`diagnosis` must be a Diagnosis, the name of a preset or the path of a "
        f"JSON file, got {given!r}."
    )


def _objective(given: Any) -> tuple[str, str] | None:
    if given is None:
        return None
    if isinstance(given, str):
        import keras_tuner

        # KerasTuner knows the direction of the usual metrics, and says when not.
        given = keras_tuner.oracles.RandomSearchOracle(objective=given).objective
    try:
        return given.name, given.direction
    except AttributeError:
        raise TypeError(
            "`objective` must be the name of a metric or a keras_tuner.Objective, "
            f"got {given!r}."
        ) from None
