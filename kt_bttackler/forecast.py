"""What a preflight found: which configurations train, what they cost, what to change.

Plain facts: nothing here needs TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kt_bttackler.narrowing import Narrower
from kt_bttackler.report import duration

TRAINS = "trains"
CANNOT_BUILD = "cannot be built"
CANNOT_TRAIN = "cannot be trained"
NOT_FINITE = "not finite"
EXPLODES = "explodes"
CONTRADICTORY = "cannot learn"
# In the order in which they are told.
BROKEN = (NOT_FINITE, EXPLODES, CONTRADICTORY)
FAILED = (CANNOT_BUILD, CANNOT_TRAIN)
OUTCOMES = (*FAILED, *BROKEN)
_WIDTH = 99
_EXAMPLES = 3  # kinds of a failure that are told


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one trial takes, measured on a few steps.

    Attributes:
        start_seconds: building the model, and the first step of training and of
            validation, which trace the graph.
        step_seconds: median of the later steps.
        epoch_seconds: of a whole epoch with its validation; `None` when the number
            of steps is unknown.
        steps: of an epoch; `None` when unknown.
        parameters: of the model.
        state_bytes: weights, gradients and the variables of the optimizer.
        peak_bytes: most memory the process held while this configuration ran;
            `None` where the system does not tell. Memory of a GPU is not in it.
        validated: the validation is part of `epoch_seconds`.
    """

    start_seconds: float
    step_seconds: float
    epoch_seconds: float | None
    steps: int | None
    parameters: int
    state_bytes: int
    peak_bytes: int | None
    validated: bool

    def trial_seconds(self, epochs: int) -> float | None:
        """Of a training of so many epochs; `None` when unknown."""
        if self.epoch_seconds is None:
            return None
        return self.start_seconds + epochs * self.epoch_seconds


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One configuration that was tried.

    Attributes:
        kind: "default", "corner" or "random".
        values: its hyperparameters.
        outcome: "trains", "cannot be built", "cannot be trained", "not finite",
            "explodes" or "cannot learn".
        reason: the error or the finding, in one line; empty when it trains.
        warnings: findings that are warnings, each in one line.
        cost: `None` unless it took two steps.
    """

    kind: str
    values: Mapping[str, Any]
    outcome: str
    reason: str = ""
    warnings: tuple[str, ...] = ()
    cost: Cost | None = None


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a preflight found; its `str` is a report for people.

    Attributes:
        configurations: those that were tried, in their order.
        ranges: hyperparameters whose ranges would better be narrower.
        epochs: planned epochs of a trial.
        max_trials: planned trials; `None` when unknown.
        executions: trainings of each trial.
        seconds: that the preflight took.
    """

    configurations: tuple[Configuration, ...]
    ranges: tuple[Narrower, ...]
    epochs: int
    max_trials: int | None
    executions: int
    seconds: float

    def __str__(self) -> str:
        parts = [
            self._tried(),
            *(self._failures(outcome) for outcome in OUTCOMES),
            self._warnings(),
            self._cost(),
            self._search(),
            self._narrower(),
        ]
        return "\n\n".join(part for part in parts if part)

    @property
    def representative(self) -> tuple[Configuration, ...]:
        """The random configurations; without any, all of them.

        Corners are no fair sample of a search.
        """
        drawn = tuple(c for c in self.configurations if c.kind == "random")
        return drawn or self.configurations

    @property
    def trial_seconds(self) -> tuple[float, ...]:
        """Predicted seconds of each representative trial that trains to its end."""
        costs = [c.cost for c in self.representative if c.outcome == TRAINS]
        times = [cost.trial_seconds(self.epochs) for cost in costs if cost is not None]
        return tuple(
            seconds * self.executions for seconds in times if seconds is not None
        )

    @property
    def running_share(self) -> float:
        """Share of representative configurations that can be built and trained."""
        runs = [c.outcome not in FAILED for c in self.representative]
        return sum(runs) / len(runs) if runs else 0.0

    @property
    def broken_share(self) -> float:
        """Share of the representative configurations that run but cannot learn."""
        runs = [c for c in self.representative if c.outcome not in FAILED]
        broken = sum(c.outcome in BROKEN for c in runs)
        return broken / len(runs) if runs else 0.0

    @property
    def search_hours(self) -> tuple[float, float, float] | None:
        """Hours of the search without stops: expected, and twice its standard error.

        The second and third number are the expectation less and plus two standard
        errors of the mean. `None` when trials or their seconds are unknown.
        """
        times = self.trial_seconds
        if not times or self.max_trials is None:
            return None
        mean = statistics.fmean(times)
        spread = statistics.stdev(times) if len(times) > 1 else 0.0
        error = 2 * spread / math.sqrt(len(times))
        hours = self.max_trials * self.running_share / 3600
        return mean * hours, max(0.0, mean - error) * hours, (mean + error) * hours

    @property
    def saved_hours(self) -> float | None:
        """Hours that stops after the first epoch save of what is broken from the start.

        A lower bound: what breaks later is not seen in a few steps.
        """
        hours = self.search_hours
        if hours is None:
            return None
        return hours[0] * self.broken_share * (self.epochs - 1) / self.epochs

    def to_dict(self) -> dict[str, Any]:
        """The facts for a program, of what JSON knows."""
        hours = self.search_hours
        return {
            "epochs": self.epochs,
            "max_trials": self.max_trials,
            "executions": self.executions,
            "seconds": self.seconds,
            "outcomes": self._counts(),
            "trial_seconds": list(self.trial_seconds),
            "search_hours": hours[0] if hours else None,
            "search_hours_interval": list(hours[1:]) if hours else None,
            "saved_hours": self.saved_hours,
            "ranges": [dataclasses.asdict(each) for each in self.ranges],
            "configurations": [dataclasses.asdict(c) for c in self.configurations],
        }

    def _counts(self) -> dict[str, int]:
        outcomes = [c.outcome for c in self.configurations]
        return {
            outcome: outcomes.count(outcome)
            for outcome in (TRAINS, *OUTCOMES)
            if outcome == TRAINS or outcome in outcomes
        }

    def _tried(self) -> str:
        kinds = [c.kind for c in self.configurations]
        counted = ", ".join(
            f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)
        )
        outcomes = ", ".join(
            f"{number} {'train' if outcome == TRAINS and number != 1 else outcome}"
            for outcome, number in self._counts().items()
        )
        return (
            f"Preflight: {_configurations(len(kinds))} ({counted}) in "
            f"{duration(self.seconds)}: {outcomes}."
        )

    def _failures(self, outcome: str) -> str:
        failed = [c for c in self.configurations if c.outcome == outcome]
        return _listed(outcome.capitalize(), failed, lambda c: (c.reason,))

    def _warnings(self) -> str:
        warned = [c for c in self.configurations if c.warnings]
        return _listed("Warnings", warned, lambda c: c.warnings)

    def _cost(self) -> str:
        costs = [
            c.cost
            for c in self.representative
            if c.cost is not None and c.outcome == TRAINS
        ]
        if not costs:
            return ""
        lines = []
        if self.trial_seconds:
            lines.append(f"time        {_range(self.trial_seconds, duration)}")
        lines.append(f"step        {_range([c.step_seconds for c in costs], _short)}")
        lines.append(f"parameters  {_range([c.parameters for c in costs], _grouped)}")
        lines.append(f"weights     {_range([c.state_bytes for c in costs], _bytes)}")
        lines[-1] += ", with gradients and the variables of the optimizer"
        peaks = [c.peak_bytes for c in costs if c.peak_bytes is not None]
        if peaks:
            lines.append(f"process     {_range(peaks, _bytes)} at the peak")
        kind = "random" if self.representative[0].kind == "random" else "tried"
        title = (
            f"A trial of {self.epochs} epochs: least, mean and most of "
            f"{_configurations(len(costs), kind)} that train"
        )
        return "\n".join([title, *_indented(lines)])

    def _search(self) -> str:
        hours, saved = self.search_hours, self.saved_hours
        if hours is None or saved is None:
            if not self.trial_seconds:
                return ""
            return (
                "The whole search: unknown, as the number of trials is (`max_trials`)."
            )
        times = [duration(3600 * h) for h in hours]
        lines = [
            f"without stops   about {times[0]} (between {times[1]} and {times[2]})",
            f"stops save      at least {duration(3600 * saved)}: "
            f"{self.broken_share:.0%} of what runs is broken from its first steps on"
            if saved
            else "stops save      nothing that is seen in a few steps",
        ]
        return "\n".join(
            [
                f"The whole search of {self.max_trials} trials",
                *_indented(lines),
                _wrapped(self._basis(), "  "),
            ]
        )

    def _basis(self) -> str:
        costs = [c.cost for c in self.representative if c.cost is not None]
        validated = any(cost.validated for cost in costs)
        drawn = "random" if self.representative[0].kind == "random" else "tried"
        measured = "training and of validation" if validated else "training"
        return (
            f"This rests on {_configurations(len(self.trial_seconds), drawn)}, the "
            f"median of their first steps of {measured} after tracing, {self.epochs} "
            f"epochs, and this machine being as busy as now. Not in it: "
            f"{'' if validated else 'validation, '}checkpoints, callbacks of your own, "
            "and what breaks after the first steps."
        )

    def _narrower(self) -> str:
        if not self.ranges:
            return ""
        width = max(len(each.line) for each in self.ranges)
        pasted = [f"{each.line:<{width}}  # {each.because}" for each in self.ranges]
        return "\n".join(["Narrower ranges to paste", *_indented(pasted)])


def _listed(
    title: str,
    configurations: Sequence[Configuration],
    reasons: Callable[[Configuration], Sequence[str]],
) -> str:
    """Each reason with how often it was seen, and an example of it."""
    seen: dict[str, list[Configuration]] = {}
    for configuration in configurations:
        for reason in reasons(configuration):
            # Numbers differ from one configuration to the next.
            seen.setdefault(_kind(reason), []).append(configuration)
    lines = []
    for kind, alike in sorted(seen.items(), key=lambda item: -len(item[1])):
        reason = next(r for r in reasons(alike[0]) if _kind(r) == kind)
        lines.append(_wrapped(reason, f"  {len(alike):>3} x  "))
        lines.append(_wrapped(_values(alike[0].values), "         at "))
    if len(lines) > 2 * _EXAMPLES:
        more = len(lines) // 2 - _EXAMPLES
        lines[2 * _EXAMPLES :] = [f"         and {more} other kinds"]
    return "\n".join([title, *lines]) if lines else ""


def _kind(reason: str) -> str:
    return "".join("#" if c.isdigit() else c for c in reason.split(":")[0])[:_WIDTH]


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def _configurations(number: int, kind: str = "") -> str:
    one = "configuration" if number == 1 else "configurations"
    return " ".join(filter(None, (str(number), kind, one)))


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _range(numbers: Sequence[float], say: Callable[[float], str]) -> str:
    parts = (min(numbers), statistics.fmean(numbers), max(numbers))
    said = [say(number) for number in parts]
    return said[0] if len(set(said)) == 1 else ", ".join(said)


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)


def _grouped(number: float) -> str:
    return f"{number:,.0f}"


def _bytes(number: float) -> str:
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def _wrapped(text: str, label: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=label, subsequent_indent=" " * len(label)
    )
