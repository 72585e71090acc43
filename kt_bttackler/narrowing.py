"""Narrower ranges of hyperparameters, as lines to paste into `build_model`.

A range is cut where everything that was tried beyond the cut failed, and where that is
hardly chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

# How likely chance may make a cut, for each one that is looked at.
SIGNIFICANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Narrower:
    """A hyperparameter whose range would better be narrower.

    Attributes:
        name: of the hyperparameter.
        line: the declaration to paste, such as `hp.Float("lr", 1e-5, 0.1)`.
        because: what was seen beyond, such as "above 0.1: 4 diverge, none trains".
    """

    name: str
    line: str
    because: str


@dataclasses.dataclass(frozen=True)
class _Cut:
    """What is cut off a range.

    Attributes:
        chance: how likely chance makes a cut that is as clean.
        name: of the hyperparameter.
        side: "above", "below" or "at".
        bound: the last value that is kept, or the value that is dropped.
        failure: how all beyond it failed.
        members: positions of the configurations that are cut off.
    """

    chance: float
    name: str
    side: str
    bound: Any
    failure: str | None
    members: frozenset[int]


def narrower(
    space: Sequence[Mapping[str, Any]],
    values: Sequence[Mapping[str, Any]],
    outcomes: Sequence[str | None],
) -> tuple[Narrower, ...]:
    """The ranges to cut, the clearest first.

    Each way to fail is held against what trains, for different ones have different
    causes. After the clearest cut the configurations beyond it are set aside, so that
    one cause is not told twice.

    Args:
        space: of each hyperparameter its "class_name" and "config", as
            `HyperParameters.get_config` of KerasTuner gives them.
        values: of each configuration that was tried.
        outcomes: of each configuration how it failed, or `None`.

    Example:
        >>> space = [{"class_name": "Float", "config": {
        ...     "name": "lr", "min_value": 1e-4, "max_value": 10.0, "step": None,
        ...     "sampling": "log", "default": 1e-4, "conditions": []}}]
        >>> rates = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 3.0, 5.0, 10.0]
        >>> outcomes = [None] * 4 + ["not finite"] * 4
        >>> print(narrower(space, [{"lr": rate} for rate in rates], outcomes)[0].line)
        hp.Float("lr", 0.0001, 0.316, sampling="log")
    """
    hyperparameters = {
        each["config"]["name"]: each for each in space if each["class_name"] != "Fixed"
    }
    left = set(range(len(values)))
    cuts: dict[str, list[_Cut]] = {}
    while True:
        best = min(
            (
                cut
                for each in hyperparameters.values()
                for failure in {outcomes[i] for i in left} - {None}
                for cut in _cuts(each, values, outcomes, failure, left)
            ),
            key=lambda cut: (cut.chance, cut.name, cut.side, str(cut.bound)),
            default=None,
        )
        if best is None or best.chance > SIGNIFICANCE:
            break
        cuts.setdefault(best.name, []).append(best)
        left -= best.members
    return tuple(_told(hyperparameters[name], found) for name, found in cuts.items())


def _cuts(
    hyperparameter: Mapping[str, Any],
    values: Sequence[Mapping[str, Any]],
    outcomes: Sequence[str | None],
    failure: str | None,
    left: Iterable[int],
) -> Iterator[_Cut]:
    """What may be cut off one hyperparameter with no configuration that trains."""
    config = hyperparameter["config"]
    name = config["name"]
    known = [i for i in left if name in values[i] and outcomes[i] in (None, failure)]
    failed = [i for i in known if outcomes[i] is not None]
    good = {values[i][name] for i in known if outcomes[i] is None}
    if not good or not failed:
        return
    if hyperparameter["class_name"] in ("Float", "Int"):
        sides = {
            ("above", max(good)): [i for i in failed if values[i][name] > max(good)],
            ("below", min(good)): [i for i in failed if values[i][name] < min(good)],
        }
    else:
        sides = {
            ("at", value): [i for i in failed if values[i][name] == value]
            for value in {values[i][name] for i in failed} - good
        }
    for (side, bound), members in sides.items():
        if len(members) > 1:
            # As likely as drawing so many failures in a row without replacement.
            chance = math.comb(len(failed), len(members)) / math.comb(
                len(known), len(members)
            )
            beyond = [values[i][name] for i in members]
            if side != "at":
                nearest = min(beyond) if side == "above" else max(beyond)
                bound = _between(hyperparameter, bound, nearest, side)
            yield _Cut(chance, name, side, bound, failure, frozenset(members))


def _between(
    hyperparameter: Mapping[str, Any], good: float, bad: float, side: str
) -> float:
    """The middle of the last value that trains and the first that does not."""
    in_ratio = hyperparameter["config"].get("sampling") == "log"
    middle = math.sqrt(good * bad) if in_ratio else (good + bad) / 2
    if hyperparameter["class_name"] == "Int":
        return math.floor(middle) if side == "above" else math.ceil(middle)
    return middle


def _told(hyperparameter: Mapping[str, Any], cuts: Sequence[_Cut]) -> Narrower:
    config = dict(hyperparameter["config"])
    reasons = []
    for cut in cuts:
        if cut.side == "above":
            config["max_value"] = min(config["max_value"], cut.bound)
        elif cut.side == "below":
            config["min_value"] = max(config["min_value"], cut.bound)
        else:
            values = config.get("values", (False, True))
            config["values"] = [value for value in values if value != cut.bound]
        bound = f"{cut.bound:.3g}" if isinstance(cut.bound, float) else repr(cut.bound)
        count = len(cut.members)
        reasons.append(f"{cut.side} {bound}: {count} {cut.failure}, none trains")
    line = _line(hyperparameter["class_name"], config)
    return Narrower(config["name"], line, "; ".join(reasons))


def _line(kind: str, config: Mapping[str, Any]) -> str:
    """The call that declares a hyperparameter."""
    name = _quoted(config["name"])
    if kind in ("Float", "Int"):
        low, high = config["min_value"], config["max_value"]
        parts = [name, _number(low), _number(high)]
        if config.get("step") not in (None, 1):
            parts.append(f"step={_number(config['step'])}")
        if config.get("sampling") not in (None, "linear"):
            parts.append(f"sampling={_quoted(config['sampling'])}")
        if low < config["default"] <= high:
            parts.append(f"default={_number(config['default'])}")
        return f"hp.{kind}({', '.join(parts)})"
    values = config.get("values", [False, True])
    if len(values) == 1:
        return f"hp.Fixed({name}, {_quoted(values[0])})"
    listed = ", ".join(map(_quoted, values))
    default = config.get("default")
    more = f", default={_quoted(default)}" if default in values[1:] else ""
    return f"hp.Choice({name}, [{listed}]{more})"


def _number(value: float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
