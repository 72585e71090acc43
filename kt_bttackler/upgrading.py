"""`diagnose`: makes a tuner that exists understand diagnosed trials, in place."""

from __future__ import annotations

from typing import Any

import keras_tuner

from kt_bttackler import context
from kt_bttackler.diagnosed_tuner import DiagnosedTuner, with_channel
from kt_bttackler.fuses import warn
from kt_bttackler.oracles import diagnosed


class _OwnRunTrial:
    """Stands before a class whose `run_trial` may train whatever and however it likes.

    The oracle has told the callbacks which trial runs; what is left is to carry a
    verdict on with the results.
    """

    oracle: Any

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs the trial, and adds the verdict to results that lack it."""
        result = super().run_trial(trial, *args, **kwargs)  # type: ignore[misc]
        running = context.running_trial()
        entries = running.channels.get(0) if running is not None else None
        if result is None or not entries:
            return result
        return with_channel(result, entries, self.oracle.objective)


_MADE: dict[type, type] = {}


def diagnose(
    tuner: Any, *, stopped_value: str = "last", avoid_diagnosed: bool = False
) -> Any:
    """Makes a tuner that exists understand diagnosed trials, in place.

    For tuners that one does not construct oneself, of KerasTuner, of a library, or of
    a class of one's own. What cannot be reached is said in one warning each. The
    callback is passed to `search`, as always.

    Args:
        tuner: any tuner object of KerasTuner, before its search.
        stopped_value: what a stopped trial counts for the search algorithm; see
            `kt_bttackler.oracles.DiagnosedOracleMixin`.
        avoid_diagnosed: turn proposals away that would very likely be stopped; see
            there.

    Returns:
        The same object. Its class is a subclass of the one it had.

    Raises:
        TypeError: `tuner` is no tuner of KerasTuner.
        ValueError: there is no such `stopped_value`, or a grid search is to avoid
            something.

    Example:
        >>> import keras_tuner
        >>> tuner = keras_tuner.RandomSearch(
        ...     lambda hp: None, "val_loss", directory=getfixture("tmp_path")
        ... )
        >>> diagnose(tuner) is tuner, type(tuner.oracle).__name__
        (True, 'DiagnosedRandomSearchOracle')
    """
    if not isinstance(tuner, keras_tuner.engine.base_tuner.BaseTuner):
        raise TypeError(f"`tuner` must be a tuner of KerasTuner, got {tuner!r}.")
    _upgrade_oracle(tuner.oracle, stopped_value, avoid_diagnosed)
    if not isinstance(tuner, DiagnosedTuner):
        _upgrade_class(tuner)
    return tuner


def _upgrade_oracle(oracle: Any, stopped_value: str, avoid_diagnosed: bool) -> None:
    if not isinstance(oracle, keras_tuner.Oracle):
        warn(
            "this is a worker, whose oracle lives in the chief: `diagnose` the tuner "
            "there, too, or verdicts are not understood."
        )
        return
    own = type(oracle)
    oracle.__class__ = diagnosed(own)
    try:
        oracle.begin_diagnosing(stopped_value, avoid_diagnosed)
    except ValueError:
        oracle.__class__ = own
        raise
    if oracle.trials:  # of a project that was resumed: what the new class makes of it
        oracle.set_state(oracle.get_state())


def _upgrade_class(tuner: Any) -> None:
    own = type(tuner)
    trains_models = isinstance(tuner, keras_tuner.Tuner)
    if not trains_models:
        warn(
            f"{own.__name__} is not a keras_tuner.Tuner: its trials are judged only "
            "where it passes callbacks to a Keras `fit`; executions after a stopped "
            "one are not skipped, and no rows of x are given to the probe."
        )
    elif _overrides(own, "run_trial") or _overrides(own, "_build_and_fit_model"):
        warn(
            f"{own.__name__} runs its trials in its own way: where it does not call "
            "`super().run_trial`, executions after a stopped one are not skipped, "
            "and no rows of x are given to the probe."
        )
    if isinstance(tuner, keras_tuner.Hyperband):
        warn(
            "promoted trials go on as in KerasTuner, with the weights of their best "
            "epoch and a new optimizer; `kt_bttackler.Hyperband` goes on exactly."
        )
    if own not in _MADE:
        bases = (_OwnRunTrial, own, *((DiagnosedTuner,) if trains_models else ()))
        members = {"__module__": own.__module__, "__doc__": own.__doc__}
        _MADE[own] = type(own.__name__, bases, members)
    tuner.__class__ = _MADE[own]
    if trains_models:
        tuner.begin_diagnosing()


def _overrides(own: type, method: str) -> bool:
    """Whether a class outside KerasTuner defines a method."""
    return any(
        method in vars(cls) and not cls.__module__.startswith("keras_tuner")
        for cls in own.__mro__
    )
