"""What a verdict on a stage means for the other trials that go through it.

A stage that was found sick is not trained again, and neither are the trials that
depend on it. How many these are is a question of what the verdict is about.

- "subtree": the state is beyond help. Whatever follows begins with it.
- "until_change": what is wrong may be cured by another value, such as a lower learning
  rate. Only trials that change nothing any more are given up.
- "static": what never changes is wrong, such as the architecture. All trials with the
  same root are given up, whatever their schedules are.
- "trial": it is about the trial, or about how others do. Nobody else is concerned.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from kt_bttackler import channel
from kt_bttackler.stages.tree import Values

SCOPES: Mapping[str, str] = {
    "AGV": "subtree",
    "COLLAPSED_OUTPUT": "subtree",
    "DEAD_UNITS": "subtree",
    "LAR": "subtree",
    "EAG": "until_change",
    "ERG": "until_change",
    "LOSS_NOT_DECREASING": "until_change",
    "LR_RANGE": "until_change",
    "NO_PROGRESS": "until_change",
    "OSCILLATION": "until_change",
    "PLC": "until_change",
    "UPDATE_RATIO": "until_change",
    "ULC": "until_change",
    "HIGH_DROPOUT": "static",
    "INPUT_SCALE": "static",
    "LINEAR_STACK": "static",
    "OUTPUT_LOSS_MISMATCH": "static",
    "POOR_INIT": "static",
    "REGULARISER_DOMINATES": "static",
}


@dataclasses.dataclass(frozen=True)
class StageVerdict:
    """A harmful verdict that ended a trial.

    Attributes:
        cause: id of the indicator or rule.
        entries: what the History of the trial carried to the oracle.
        history: the logs of its epochs.
        trial: id of that trial.
    """

    cause: str
    entries: Mapping[str, float]
    history: Sequence[Mapping[str, float]]
    trial: str

    @classmethod
    def of(
        cls,
        entries: Mapping[str, float],
        history: Sequence[Mapping[str, float]],
        trial: str,
    ) -> StageVerdict | None:
        """The verdict that a History carries; `None` unless it is a harmful one."""
        message = channel.decode(entries)
        verdict = None if message is None else message.verdict
        if verdict is None or verdict.benign:
            return None
        return cls(verdict.cause or "", dict(entries), list(history), trial)

    @property
    def epoch(self) -> int:
        """After how many epochs the trial was ended."""
        return len(self.history)

    @property
    def scope(self) -> str:
        """Whom it concerns, as told above. What is not known concerns nobody else."""
        return SCOPES.get(self.cause, "trial")

    def concerns(self, sequence: Sequence[Values]) -> bool:
        """Whether it ends another trial that goes through the stage, or has its root.

        Args:
            sequence: the values of every epoch of that trial.
        """
        if self.scope == "until_change":
            sick = sequence[self.epoch - 1]
            return all(values == sick for values in sequence[self.epoch :])
        return self.scope in ("subtree", "static")


def judge_name(diagnosis: Any) -> str:
    """Names a diagnosis; verdicts of another one do not count.

    Args:
        diagnosis: a `Diagnosis`.
    """
    text: str = diagnosis.to_json()
    return hashlib.sha256(text.encode()).hexdigest()[:16]
