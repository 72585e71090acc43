"""The facts of a search: its trials, and what they add up to."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class TrialFacts:
    """What is known of one trial.

    Attributes:
        id: KerasTuner's trial id.
        status: its status, such as "COMPLETED" or "STOPPED"; "UNKNOWN" while its
            `trial.json` cannot be read.
        score: its score, or `None` when it has none.
        causes: ids of what was found when the diagnosis said stop, the cause first.
        message: why it was stopped, or the error that it failed with.
        epochs_run: over all executions, one that was broken off included; `None`
            when nothing was recorded.
        epochs_planned: over all executions; `None` when unknown. That of a Hyperband
            rung is its own, not that of the whole training.
        seconds: of training, over all executions; `None` when nothing was recorded.
        hyperparameters: its values.
        benign: it was ended because nothing more was gained.
        epochs_saved: planned epochs that the diagnosis spared.
        seconds_saved: estimate of the seconds they would have taken, see `study`.
    """

    id: str
    status: str
    score: float | None
    causes: tuple[str, ...]
    message: str
    epochs_run: int | None
    epochs_planned: int | None
    seconds: float | None
    hyperparameters: Mapping[str, Any]
    benign: bool = False
    epochs_saved: int = 0
    seconds_saved: float = 0.0


@dataclasses.dataclass(frozen=True)
class Study:
    """The trials of one search.

    Attributes:
        objective: name of the objective, or `None` when nothing tells it.
        direction: "min" or "max", or `None`.
        trials: in the order of their ids.
        log_dir: where TensorBoard finds event files below the project folder.
    """

    objective: str | None
    direction: str | None
    trials: tuple[TrialFacts, ...]
    log_dir: pathlib.Path | None = None

    @property
    def by_status(self) -> dict[str, int]:
        """Number of trials of each status."""
        return dict(Counter(trial.status for trial in self.trials))

    @property
    def best(self) -> TrialFacts | None:
        """The completed trial with the best finite score."""
        scored = [
            (trial.score, trial)
            for trial in self.trials
            if trial.status == "COMPLETED"
            and trial.score is not None
            and math.isfinite(trial.score)
        ]
        if not scored or self.direction is None:
            return None
        choose = max if self.direction == "max" else min
        return choose(scored, key=lambda pair: pair[0])[1]

    def totals(self) -> dict[str, Any]:
        """Sums over the trials, as far as they are known.

        What benign stops saved is part of `epochs_saved` and `seconds_saved`, and
        is also given apart.
        """
        stopped = [t for t in self.trials if t.status == "STOPPED" and t.causes]
        benign = [trial for trial in self.trials if trial.benign]
        best = self.best
        return {
            "trials": len(self.trials),
            "by_status": self.by_status,
            "stopped": len(stopped),
            "stopped_benign": len(benign),
            "epochs_run": sum(trial.epochs_run or 0 for trial in self.trials),
            "epochs_planned": sum(trial.epochs_planned or 0 for trial in self.trials),
            "epochs_saved": sum(trial.epochs_saved for trial in self.trials),
            "epochs_saved_benign": sum(trial.epochs_saved for trial in benign),
            "seconds": sum(trial.seconds or 0.0 for trial in self.trials),
            "seconds_saved": sum(trial.seconds_saved for trial in self.trials),
            "seconds_saved_benign": sum(trial.seconds_saved for trial in benign),
            "best_trial": best.id if best else None,
            "best_score": best.score if best else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """The facts for a program: strict JSON, numbers that are not finite null."""
        facts = {
            "objective": self.objective,
            "direction": self.direction,
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
            "totals": self.totals(),
        }
        content: dict[str, Any] = _without_non_finite(facts)
        return content


def _without_non_finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _without_non_finite(item) for key, item in content.items()}
    if isinstance(content, list | tuple):
        return [_without_non_finite(item) for item in content]
    return content
