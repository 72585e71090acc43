"""The kinds of schedules: how a value goes with the epochs.

Each is a function of a chooser and the options of that kind. It returns the function
that gives the value in an epoch, counted from 0.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from typing import Any

from kt_bttackler.stages.choices import Chooser, Number, sequence

Value = Callable[[int], Number]


def constant(choose: Chooser, *, value: Any) -> Value:
    """The same value in all epochs.

    Args:
        choose: makes the choices, as in all kinds.
        value: that value.
    """
    chosen = choose("value", value)
    return lambda epoch: chosen


def step(choose: Chooser, *, start: Any, milestones: Any, factor: Any) -> Value:
    """A value that is multiplied by a factor at every milestone.

    Args:
        choose: makes the choices.
        start: the value in the first epoch.
        milestones: the epochs, counted from 0, that begin with another value.
        factor: by which it is multiplied; a tuple for one factor per milestone.
    """
    first = choose("start", start)
    epochs = _boundaries(choose, "milestone", milestones)
    factors = sequence(factor)
    if len(factors) not in (1, len(epochs)):
        raise ValueError(
            "`factor` must be one factor or as many as there are milestones "
            f"({len(epochs)}), got {len(factors)}."
        )
    chosen = [
        choose(_numbered("factor", number, len(factors)), each)
        for number, each in enumerate(factors)
    ]
    values = [first]
    for number in range(len(epochs)):
        values.append(values[-1] * chosen[number % len(chosen)])
    return lambda epoch: values[bisect.bisect_right(epochs, epoch)]


def piecewise(choose: Chooser, *, values: Any, boundaries: Any) -> Value:
    """Constant values one after another.

    Args:
        choose: makes the choices.
        values: a tuple of options, one more than there are boundaries.
        boundaries: the epochs, counted from 0, that begin with the next value.
    """
    options = sequence(values)
    chosen = [
        choose(_numbered("value", number, len(options)), each)
        for number, each in enumerate(options)
    ]
    epochs = _boundaries(choose, "boundary", boundaries)
    if len(chosen) != len(epochs) + 1:
        raise ValueError(
            "`values` must be one more than there are boundaries "
            f"({len(epochs)}), got {len(chosen)}."
        )
    return lambda epoch: chosen[bisect.bisect_right(epochs, epoch)]


def exponential(choose: Chooser, *, start: Any, rate: Any, every: Any = 1) -> Value:
    """A value that is multiplied by a rate again and again.

    Args:
        choose: makes the choices.
        start: the value in the first epoch.
        rate: by which it is multiplied.
        every: epochs from one multiplication to the next.
    """
    first, factor = choose("start", start), choose("rate", rate)
    epochs = _at_least(1, "every", choose("every", every))
    return lambda epoch: float(first * factor ** (epoch // epochs))


def warmup(choose: Chooser, *, epochs: Any, then: Mapping[str, Any]) -> Value:
    """A value that rises in equal steps to the first value of another schedule.

    Args:
        choose: makes the choices.
        epochs: length of the rise. The other schedule begins after it, with its own
            epoch 0.
        then: the other schedule: its `kind` and its options.
    """
    length = _at_least(0, "epochs", choose("warmup", epochs))
    following = of_kind(choose, then)

    def value(epoch: int) -> Number:
        if epoch >= length:
            return following(epoch - length)
        return following(0) * (epoch + 1) / (length + 1)

    return value


def cosine(choose: Chooser, *, start: Any, epochs: Any, end: Any = 0.0) -> Value:
    """A value that falls along half a cosine, to a horizon.

    Trials share nothing beyond their first epoch unless their horizons are the same.

    Args:
        choose: makes the choices.
        start: the value in the first epoch.
        epochs: the horizon, from which on the value is `end`.
        end: the value there.
    """
    first, last = choose("start", start), choose("end", end)
    length = _at_least(1, "epochs", choose("epochs", epochs))
    return lambda epoch: _fall(first, last, epoch / length, _SHAPES["cosine"])


def cosine_restarts(
    choose: Chooser, *, start: Any, restarts: Any, epochs: Any, end: Any = 0.0
) -> Value:
    """Cosines one after another, each from `start`.

    Args:
        choose: makes the choices.
        start: the value in the first epoch and at every restart.
        restarts: the epochs, counted from 0, in which it begins anew.
        epochs: the horizon of the last cosine.
        end: the value that each falls towards.
    """
    first, last = choose("start", start), choose("end", end)
    begins = [0, *_boundaries(choose, "restart", restarts)]
    horizon = _at_least(begins[-1] + 1, "epochs", choose("epochs", epochs))
    ends = [*begins[1:], horizon]

    def value(epoch: int) -> Number:
        number = bisect.bisect_right(begins, epoch) - 1
        share = (epoch - begins[number]) / (ends[number] - begins[number])
        return _fall(first, last, share, _SHAPES["cosine"])

    return value


def wsd(
    choose: Chooser,
    *,
    peak: Any,
    decay_start: Any,
    decay_epochs: Any,
    warmup: Any = 0,
    shape: Any = "linear",
    end: Any = 0.0,
) -> Value:
    """Warm-up, a stable value, and a decay: the trials share the stable part.

    Args:
        choose: makes the choices.
        peak: the stable value.
        decay_start: the epoch, counted from 0, in which the decay begins.
        decay_epochs: its length.
        warmup: epochs of the rise to `peak`.
        shape: "linear", "cosine" or "sqrt", or a list of them.
        end: the value that the decay falls towards.
    """
    stable = choose("peak", peak)
    rise = _at_least(0, "warmup", choose("warmup", warmup))
    begin = _at_least(rise, "decay_start", choose("decay_start", decay_start))
    length = _at_least(1, "decay_epochs", choose("decay_epochs", decay_epochs))
    last = choose("end", end)
    name: str = choose("shape", shape) if isinstance(shape, list) else shape
    if name not in _SHAPES:
        raise ValueError(f"`shape` must be one of {list(_SHAPES)}, got {name!r}.")

    def value(epoch: int) -> Number:
        if epoch < rise:
            return float(stable * (epoch + 1) / (rise + 1))
        share = (epoch - begin + 1) / (length + 1)
        return _fall(stable, last, max(0.0, share), _SHAPES[name])

    return value


def custom(
    choose: Chooser, *, function: Callable[..., Number], **options: Any
) -> Value:
    """A function of your own.

    Args:
        choose: makes the choices.
        function: called with the epoch, counted from 0, and with what was chosen of
            each of the options, by name. It must depend on nothing else.
        **options: those options.
    """
    chosen = {key: choose(key, option) for key, option in options.items()}
    return lambda epoch: function(epoch, **chosen)


def of_kind(choose: Chooser, definition: Mapping[str, Any]) -> Value:
    """The schedule of a kind.

    Args:
        choose: makes the choices.
        definition: `kind` and the options of that kind. The kind may be a choice: a
            mapping from kinds to their options.

    Raises:
        ValueError: there is no such kind, or an option is out of its range.
        TypeError: the kind has other options.
    """
    options = {key: value for key, value in definition.items() if key != "kind"}
    kind = definition.get("kind", "constant")
    if isinstance(kind, Mapping):
        return _one_of(choose, kind)
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {list(KINDS)}, got {kind!r}.")
    return KINDS[kind](choose, **options)


def _one_of(choose: Chooser, kinds: Mapping[str, Mapping[str, Any]]) -> Value:
    name = choose("kind", list(kinds))
    found: dict[str, Value] = {}
    # All of them are declared, as KerasTuner wants it; one of them counts.
    for kind, options in kinds.items():
        with choose.scope("kind", kind):
            within = _Prefixed(choose, kind)
            found[kind] = of_kind(within, {"kind": kind, **options})
    return found[name]


class _Prefixed(Chooser):
    """Another chooser, whose keys begin with the kind that they belong to."""

    def __init__(self, choose: Chooser, kind: str) -> None:
        self._choose = choose
        self._kind = kind

    def __call__(self, key: str, option: Any) -> Any:
        return self._choose(f"{self._kind}/{key}", option)

    def scope(self, key: str, choice: Any) -> Any:
        return self._choose.scope(f"{self._kind}/{key}", choice)


def _boundaries(choose: Chooser, key: str, options: Any) -> list[int]:
    each = sequence(options)
    chosen = [
        _at_least(1, key, choose(_numbered(key, number, len(each)), option))
        for number, option in enumerate(each)
    ]
    return sorted(chosen)


def _numbered(key: str, number: int, count: int) -> str:
    return key if count == 1 else f"{key}_{number + 1}"


def _at_least(least: int, key: str, value: Any) -> int:
    if value != int(value) or value < least:
        raise ValueError(
            f"`{key}` must be a whole number of at least {least}, got {value}."
        )
    return int(value)


def _fall(first: Number, last: Number, share: float, shape: Value) -> Number:
    return last + (first - last) * shape(min(share, 1.0))  # type: ignore[arg-type]


# What is left of the height after a share of the way.
_SHAPES: dict[str, Callable[[Any], float]] = {
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "sqrt": lambda share: 1 - math.sqrt(share),
}

KINDS: dict[str, Callable[..., Value]] = {
    "constant": constant,
    "step": step,
    "piecewise": piecewise,
    "exponential": exponential,
    "warmup": warmup,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "wsd": wsd,
    "custom": custom,
}
