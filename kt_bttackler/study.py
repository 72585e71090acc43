"""The facts of a search: its trials, and what they add up to."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kt_bttackler.diagnosis import Diagnosis, Verdict
from kt_bttackler.trace import Trace


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
        spared: the diagnosis said stop, not benignly, and the training was run to
            its end all the same: what it came to shows what such stops cost.
        started: Unix time at which it began; `None` when nothing tells.
        ended: Unix time of the last that is known of it.
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
    spared: bool = False
    started: float | None = None
    ended: float | None = None


@dataclasses.dataclass(frozen=True)
class KillRegret:
    """What stops cost, as far as the trials tell that were spared.

    Attributes:
        spared: trials that a verdict would have stopped and that ran to their end.
        among_best: how many of them ended among the best tenth of all that did.
    """

    spared: int
    among_best: int

    def __str__(self) -> str:
        return (
            f"{self.among_best} of {self.spared} trials that were run on in spite of "
            "a verdict ended among the best tenth"
        )


def _kept_out() -> Any:
    """A field that is no part of comparisons and prints."""
    return dataclasses.field(default_factory=dict, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Study:
    """The trials of one search.

    Attributes:
        objective: name of the objective, or `None` when nothing tells it.
        direction: "min" or "max", or `None`.
        trials: in the order of their ids.
        log_dir: where TensorBoard finds event files below the project folder.
        name: of the project.
        traces: what was recorded, by trial id and execution.
        verdicts: what the diagnosis said of each trial, by trial id, where it found
            something, be the trial stopped for it or not.
        diagnoses: what judged each trial, by trial id, where that is known.
    """

    objective: str | None
    direction: str | None
    trials: tuple[TrialFacts, ...]
    log_dir: pathlib.Path | None = None
    name: str = ""
    traces: Mapping[str, Mapping[int, Trace]] = _kept_out()
    verdicts: Mapping[str, Verdict] = _kept_out()
    diagnoses: Mapping[str, Diagnosis] = _kept_out()

    @property
    def by_status(self) -> dict[str, int]:
        """Number of trials of each status."""
        return dict(Counter(trial.status for trial in self.trials))

    @property
    def best(self) -> TrialFacts | None:
        """The completed trial with the best finite score."""
        return next(iter(self.ranked()), None)

    def ranked(self) -> list[TrialFacts]:
        """The completed trials with a finite score, the best first."""
        if self.direction is None:
            return []
        sign = -1.0 if self.direction == "max" else 1.0
        scored = [
            (sign * trial.score, trial)
            for trial in self.trials
            if trial.status == "COMPLETED"
            and trial.score is not None
            and math.isfinite(trial.score)
        ]
        return [trial for _, trial in sorted(scored, key=lambda pair: pair[0])]

    def kill_regret(self) -> KillRegret | None:
        """How many spared trials were worth it; `None` when none was spared."""
        spared = [trial for trial in self.trials if trial.spared]
        if not spared:
            return None
        ranked = self.ranked()
        best = ranked[: math.ceil(len(ranked) / 10)]
        return KillRegret(len(spared), sum(trial.spared for trial in best))

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
        content: dict[str, Any] = without_non_finite(facts)
        return content


def without_non_finite(content: Any) -> Any:
    """The content for a program: numbers that are not finite are null."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): without_non_finite(item) for key, item in content.items()}
    if isinstance(content, list | tuple):
        return [without_non_finite(item) for item in content]
    return content
