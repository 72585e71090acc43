"""Indicator of the initial weights: POOR_INIT."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from kt_bttackler.course import (
    PROGRESS_NEEDS,
    has_learned,
    largest_known,
    losses,
    stalled,
)
from kt_bttackler.indicators import QualityIndicator
from kt_bttackler.outlook import OUTLOOK_NEEDS, hopeless
from kt_bttackler.trace import Trace

_Pool = Callable[[np.ndarray], np.floating]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoorInit(QualityIndicator):
    """POOR_INIT: the weights begin where training can hardly start.

    Counts signs, all measured before or at the first step:

    - alike: the units of a layer have the same weights (standard deviation below 1e-8),
      and so have those of the layers it feeds, where these have several units: then
      they get the same gradient, and stay alike;
    - uneven: the standard deviation of the activations differs by more than
      `signal_ratio` between layers;
    - flat: the output varies over the probe by less than `smallest_spread` of its
      range, or of the spread of regression targets;
    - wild: the first loss is more than `wildest` times that of equal probabilities, or
      the output of a regression varies by that many standard deviations of the targets;
    - cut off: the gradient of the first layers is below `gradient_ratio` of that of
      the last, or below `smallest_gradient`;
    - broken: weights that are not finite.

    Judged at the first epoch. A ground for stopping at once are broken weights, and
    units that are alike in two layers in a row with no dropout to part them. The rest
    is a warning: deep sigmoid nets start flat and cut off and can end among the best,
    and a head of zeros is a habit. Judged again, and then a ground for stopping, while
    the training is stalled and has learned nothing, or is hopeless (see `outlook`). Not
    on resumed trainings. Sources: SageMaker Debugger (PoorWeightInitialization),
    TheDeepChecker, NeuraLint.

    Attributes:
        threshold: signs, 0.
        signal_ratio: largest per smallest standard deviation, 1000.
        smallest_spread: share of the range of the output, 1e-4.
        wildest: multiple of the expected first loss, or of the spread of targets, 5.
        gradient_ratio: first per last norm, 0.01.
        smallest_gradient: norm, 1e-7.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> header = Header(
        ...     max_epochs=20, variables=("a", "b"), variable_layers=("a", "b"),
        ...     variable_sizes=(4, 4), kernels=(True, True), layers=("a", "b"),
        ...     edges=((0, 1),),
        ... )
        >>> alike = {"weight/initial_symmetric": (1.0, 1.0)}
        >>> trace = Trace(header, [
        ...     Record(n, 1.0 * n, {"loss": 2.3}, alike if n == 1 else {})
        ...     for n in (1, 2, 3, 4)
        ... ])
        >>> indicator = PoorInit()
        >>> [indicator(prefix) is not None for prefix in trace.prefixes()]
        [True, False, True, True]
        >>> print(indicator(trace.prefix(1)))
        POOR_INIT at epoch 1: signs of a poor start (units alike) 1 > 0, layer a
    """

    id = "POOR_INIT"
    needs = (
        PROGRESS_NEEDS
        | OUTLOOK_NEEDS
        | {
            "weight/initial_symmetric",
            "weight/initial_finite",
            "gradient/initial_norm",
            "activation/initial_std",
            "output/initial_spread",
            "model/dropout_rates",
            "model/outputs",
        }
    )
    quantity = "signs of a poor start"
    advice = (
        "initialise kernels at random and to the activation (He for ReLU, Glorot for "
        "tanh and sigmoid, LeCun for SELU), never with a constant, or add normalisation"
    )
    threshold: float = 0.0
    signal_ratio: float = 1e3
    smallest_spread: float = 1e-4
    wildest: float = 5.0
    gradient_ratio: float = 1e-2
    smallest_gradient: float = 1e-7

    def applies(self, trace: Trace) -> bool:
        """At the first epoch, and while nothing was learned, or will be."""
        if not super().applies(trace) or trace.header.initial_epoch > 0:
            return False
        stuck = stalled(trace) and not has_learned(trace)
        return len(trace) == 1 or stuck or hopeless(trace)

    def measure(self, trace: Trace) -> float:
        """Number of signs; `nan` where nothing was measured before the training."""
        signs = self._signs(trace)
        if all(sign is None for sign in signs.values()):
            return math.nan
        return float(sum(sign is True for sign in signs.values()))

    def explain(self, trace: Trace, value: float) -> str:
        """Names the signs."""
        names = [name for name, sign in self._signs(trace).items() if sign]
        return f"{self.quantity} ({', '.join(names)})"

    def stops(self, trace: Trace) -> bool:
        """Always but at the first epoch, where the start must be beyond repair."""
        if len(trace) > 1:
            return True
        if self._broken(trace):
            return True
        dropout = any(float(rate) > 0 for rate in trace.header.dropout_rates)
        return not dropout and bool(self._alike(trace, certain=True))

    def layer(self, trace: Trace) -> str | None:
        """The first layer whose units are alike, else None."""
        alike = self._alike(trace)
        return alike[0] if alike else None

    def _signs(self, trace: Trace) -> dict[str, bool | None]:
        """Each sign, `None` where it was not measured."""
        alike = self._alike(trace)
        return {
            "units alike": None if alike is None else bool(alike),
            "uneven activations": self._uneven(trace),
            "flat output": self._flat(trace),
            "wild output": self._wild(trace),
            "first layers cut off": self._cut_off(trace),
            "weights not finite": self._broken(trace),
        }

    def _alike(self, trace: Trace, *, certain: bool = False) -> list[str] | None:
        """Layers whose units stay alike, in the order of the data flow.

        Args:
            trace: all that is known of the training.
            certain: leave out what feeds layers of which nothing is known.
        """
        header = trace.header
        symmetric = self._of_layers(trace, "weight/initial_symmetric", np.min)
        if symmetric is None:
            return None
        found = []
        for u, layer in enumerate(header.layers):
            fed = symmetric[[v for start, v in header.edges if start == u]]
            same = (fed == 1) | (np.isnan(fed) & (not certain))
            if symmetric[u] == 1 and len(fed) and same.all():
                found.append(layer)
        return found

    def _uneven(self, trace: Trace) -> bool | None:
        stds = _first_row(trace, "activation/initial_std")
        names = trace.header.activations
        kept = np.array([name not in self.exclude for name in names], bool)
        known = stds[kept & np.isfinite(stds)] if len(stds) else stds
        if len(known) < 2:
            return None
        return bool(np.max(known) > self.signal_ratio * np.min(known))

    def _flat(self, trace: Trace) -> bool | None:
        spread = trace.scalar("output/initial_spread")[:1]
        if not len(spread) or math.isnan(spread[0]):
            return None
        return bool(spread[0] < self.smallest_spread)

    def _wild(self, trace: Trace) -> bool | None:
        outputs = trace.header.outputs
        loss = str(outputs[0].get("loss")) if len(outputs) == 1 else ""
        if not loss.endswith("crossentropy"):
            spread = trace.scalar("output/initial_spread")[:1]
            known = len(spread) and not math.isnan(spread[0])
            return bool(spread[0] > self.wildest) if known else None
        first = float(losses(trace)[0])
        units = outputs[0].get("units") or 2
        classes = 2 if loss.startswith("binary") else max(2, int(units))
        expected = math.log(classes)
        return None if math.isnan(first) else first > self.wildest * expected

    def _cut_off(self, trace: Trace) -> bool | None:
        norms = self._of_layers(trace, "gradient/initial_norm", np.linalg.norm)
        if norms is None:
            return None
        edges, places = trace.header.edges, range(len(trace.header.layers))
        fed, feeding = {v for _, v in edges}, {u for u, _ in edges}
        # The largest of several, so that one idle input is no cut.
        first = largest_known(norms[[k for k in places if k not in fed]])
        last = largest_known(norms[[k for k in places if k not in feeding]])
        if math.isnan(first):
            return None
        return first < self.smallest_gradient or first < self.gradient_ratio * last

    def _broken(self, trace: Trace) -> bool | None:
        finite = _first_row(trace, "weight/initial_finite")
        known = finite[~np.isnan(finite)]
        return bool(np.any(known < 1)) if len(known) else None

    def _of_layers(self, trace: Trace, name: str, pool: _Pool) -> np.ndarray | None:
        """One number per layer, [L], pooled over its kernels; `None` without any."""
        row, header = _first_row(trace, name), trace.header
        values = np.full(len(header.layers), np.nan)
        for place, layer in enumerate(header.layers):
            own = [
                row[v]
                for v, owner in enumerate(header.variable_layers)
                if len(row) and owner == layer and header.kernels[v]
            ]
            if own and layer not in self.exclude:
                values[place] = pool(np.array(own))
        return None if np.all(np.isnan(values)) else values


def _first_row(trace: Trace, name: str) -> np.ndarray:
    table = trace.table(name)
    return table[0] if len(table) else np.zeros(0)
