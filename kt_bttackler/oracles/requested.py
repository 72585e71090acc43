"""Which hyperparameters a trial used, in spaces without conditional scopes.

```python
for i in range(hp.Int("layers", 1, 5)):
    hp.Int(f"units_{i}", 8, 64)
```

With two layers `units_4` has a value, too, for KerasTuner knows of no condition. But
nobody asks for it, and a value that nobody asks for says nothing about the score.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from kt_bttackler.channel import PREFIX
from kt_bttackler.oracles.safely import synchronized

_logger = logging.getLogger(__name__)
_SUFFIX = "/unrequested"
_MISSING = object()


class _Watched(dict[str, Any]):
    """Values that remember which of them were read one by one.

    `hp.Int` and its like and `hp.get` read so; copying and saving do not.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def watch(hyperparameters: keras_tuner.HyperParameters) -> None:
    """Remembers from now on which values are asked for."""
    hyperparameters.values = _Watched(hyperparameters.values)


def entries(hyperparameters: keras_tuner.HyperParameters) -> dict[str, float]:
    """Metrics that name the values that nobody asked for since `watch`.

    Returns:
        Nothing when no value was asked for by name: then all may have been used.
    """
    values = hyperparameters.values
    if not isinstance(values, _Watched) or not values.read:
        return {}
    of_space = {hyperparameter.name for hyperparameter in hyperparameters.space}
    unread = of_space.intersection(values) - values.read
    return {f"{PREFIX}{name}{_SUFFIX}": 1.0 for name in sorted(unread)}


def unrequested(trial: Trial) -> set[str]:
    """Names of the values that the training of an ended trial did not ask for."""
    return {
        name.removeprefix(PREFIX).removesuffix(_SUFFIX)
        for name in trial.metrics.metrics
        if name.startswith(PREFIX) and name.endswith(_SUFFIX)
    }


class RequestsMixin(keras_tuner.Oracle):
    """Notes with each trial which hyperparameters it did not ask for.

    So trials that differ in nothing else count as the same. This works where oracle
    and training share a process; `DiagnosedTuner` sends the same from the workers of a
    distributed search.
    """

    @synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """As the oracle does; the values of the trial are watched."""
        trial = super().create_trial(tuner_id)
        watch(trial.hyperparameters)
        return trial

    def _asked_values(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """For each trial the values that its training asked for.

        What no training ever asked for by name may have been read in another way, and
        counts as used by all.
        """
        unasked = [unrequested(trial) for trial in trials]
        values = [dict(trial.hyperparameters.values) for trial in trials]
        once_asked: set[str] = set()
        for trial, mine, names in zip(trials, values, unasked, strict=True):
            if trial.status in (TrialStatus.COMPLETED, TrialStatus.STOPPED):
                once_asked |= mine.keys() - names
        return [
            {k: v for k, v in mine.items() if k not in names & once_asked}
            for mine, names in zip(values, unasked, strict=True)
        ]

    def _duplicate(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial would be the repetition of another one.

        Private in KerasTuner, which compares all values. With the values that an
        earlier training asked for, `build` asks for the same again and for no other.
        """
        if super()._duplicate(values):
            return True
        return any(
            all(values.get(name, _MISSING) == value for name, value in asked.items())
            for asked in self._asked_values(list(self.trials.values()))
        )

    @synchronized
    def end_trial(self, trial: Trial) -> None:
        """As the oracle does, after a note of what was not asked for."""
        try:
            own = self.trials[trial.trial_id]  # `trial` may have come from a worker
            for name, value in entries(trial.hyperparameters).items():
                if not own.metrics.exists(name):
                    own.metrics.register(name, "min")
                    own.metrics.update(name, value)
        except Exception as error:
            _logger.warning(
                "Trial %s counts as using all its values: %r", trial.trial_id, error
            )
        super().end_trial(trial)
