"""How a search runs and is shown: its progress, and an end by the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial

from kt_bttackler import project_files
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.fuses import Fuses
from kt_bttackler.oracles.mixin import is_late
from kt_bttackler.progress import Ended, Progress
from kt_bttackler.roles import is_chief, is_worker


class TimedSearch(keras_tuner.Tuner):
    """What the tuners of this package add to `search`.

    **Progress.** With `verbose="auto"`, the default, or 1, a few quiet lines for each
    trial take the place of KerasTuner's table and of Keras's bars; 0 is silent; with 2
    KerasTuner and Keras print what they always do. KerasTuner's table is switched off
    by the public `Oracle.verbose`; Keras's bars by `verbose=0` for `fit`, which is only
    passed to a `HyperModel.fit` of one's own when `search` was given `verbose`: that
    `fit` might not take it.

    **Time.** After `max_seconds` of `search` no new trial begins. The one that is
    running is trained to its end: broken off it would have a score that cannot be
    compared with the others. So a search takes at most one trial longer. The same
    search goes on where it ended when it is run again, with as many seconds anew. In a
    distributed search the seconds of the chief count.
    """

    max_seconds: float | None = None
    _shows_progress = False
    _progress: Progress | None = None
    _fuses = Fuses()
    _epochs: int | None = None

    def search(self, *args: Any, **kwargs: Any) -> None:
        """Searches; see `keras_tuner.Tuner.search` for the arguments.

        Args:
            *args: for `fit`, such as x and y.
            **kwargs: for `fit`; `verbose` also says what is shown, see above.

        Raises:
            TypeError: a class, or a `Diagnosis`, is among the callbacks. Every trial
                would fail.
        """
        _check_callbacks(kwargs.get("callbacks"))
        if self.max_seconds is not None:
            self.oracle.deadline = time.monotonic() + self.max_seconds
        if kwargs.get("verbose") == "auto":
            kwargs["verbose"] = 1  # KerasTuner compares it with numbers
        if self._shows_progress and kwargs.get("verbose", 1) == 1:
            self._fuses = Fuses()
            self._fuses("progress", self._show_progress, kwargs)
        super().search(*args, **kwargs)

    def on_trial_begin(self, trial: Trial) -> None:
        """Says which trial begins."""
        super().on_trial_begin(trial)
        if self._progress is not None:
            values = trial.hyperparameters.values
            self._fuses("progress", self._progress.begin, trial.trial_id, values)

    def on_epoch_end(
        self,
        trial: Trial,
        model: Any,
        epoch: int,
        logs: Mapping[str, Any] | None = None,
    ) -> None:
        """Says how far the running trial is."""
        super().on_epoch_end(trial, model, epoch, logs)
        if self._progress is not None:
            self._fuses("progress", self._tell_epoch, trial, epoch + 1, logs or {})

    def on_trial_end(self, trial: Trial) -> None:
        """Says how the trial has ended."""
        super().on_trial_end(trial)
        if self._progress is not None:
            self._fuses("progress", self._tell_end, trial.trial_id)

    def on_search_end(self) -> None:
        """Says so when there was no time left."""
        super().on_search_end()
        if self._progress is not None:
            self._fuses("progress", self._tell_search_end)

    def expected_trials(self) -> int | None:
        """Number of trials of the whole search; `None` when nobody knows."""
        trials: int | None = self.oracle.max_trials
        return trials

    def _show_progress(self, kwargs: dict[str, Any]) -> None:
        """Shows progress in place of what KerasTuner and Keras would print."""
        # A chief runs no trials: KerasTuner's table tells what its workers do.
        if is_chief():
            return
        objective = self.oracle.objective
        self._epochs = kwargs.get("epochs")
        self._progress = Progress(
            self.expected_trials(),
            objective.name,
            objective.direction,
            seconds=self.max_seconds,
        )
        # The oracle of a worker does not know what was before.
        for trial_id in getattr(self.oracle, "end_order", ()):
            self._progress.remember(_ended(self.oracle.get_trial(trial_id)))
        self.oracle.verbose = 0
        own_fit = type(self.hypermodel).fit is not keras_tuner.HyperModel.fit
        if "verbose" in kwargs or not own_fit:
            kwargs["verbose"] = 0

    def _tell_epoch(self, trial: Trial, epoch: int, logs: Mapping[str, Any]) -> None:
        assert self._progress is not None
        planned = trial.hyperparameters.values.get("tuner/epochs", self._epochs)
        objective = self.oracle.objective
        score = objective.get_value(logs) if objective.has_value(logs) else None
        self._progress.epoch(epoch, planned, score)

    def _tell_end(self, trial_id: str) -> None:
        assert self._progress is not None
        self._progress.end(_ended(self.oracle.get_trial(trial_id)))

    def _tell_search_end(self) -> None:
        assert self._progress is not None
        self._progress.finish(self._out_of_time())

    def _out_of_time(self) -> bool:
        if is_worker():  # its chief has the clock, and knows what remains
            return False
        remaining = self.remaining_trials
        return is_late(self.oracle) and (remaining is None or remaining > 0)


def _ended(trial: Trial) -> Ended:
    message = project_files.message(trial.get_state())
    verdict = message.verdict if message else None
    known = trial.score is not None and math.isfinite(trial.score)
    return Ended(
        trial.trial_id,
        trial.status,
        trial.score if known else None,
        verdict,
        trial.message or str(verdict or ""),
    )


def _check_callbacks(callbacks: Any) -> None:
    """Raises for what people put among callbacks by mistake."""
    for each in callbacks if isinstance(callbacks, list | tuple) else ():
        if isinstance(each, Diagnosis):
            wanted = "kt_bttackler.DiagnosisCallback(diagnosis)"
            raise TypeError(f"`callbacks` must hold {wanted}, got the diagnosis alone.")
        if isinstance(each, type):
            name = each.__name__
            raise TypeError(f"`callbacks` must hold {name}(...), got the class {name}.")


def checked_seconds(max_seconds: float | None) -> float | None:
    """`max_seconds` as it was given.

    Raises:
        ValueError: it is no positive number.
    """
    if max_seconds is None:
        return None
    number = isinstance(max_seconds, int | float) and not isinstance(max_seconds, bool)
    if not number or not max_seconds > 0:
        raise ValueError(f"`max_seconds` must be above 0, got {max_seconds!r}.")
    return float(max_seconds)
