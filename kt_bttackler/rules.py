"""Rules: which findings are reason enough to stop.

A rule maps the findings of every epoch so far, the trace and the traces of other
trials to the findings on which to stop; none means go on. Rules wrap rules, so
there are no flags:

```python
ProtectTop(Patience(AnyFinding(), epochs=2), fraction=0.1)
```
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from kt_bttackler.indicators import Finding
from kt_bttackler.trace import Trace

Findings = tuple[Finding, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Base class of rules: a frozen dataclass with `__call__`."""

    @property
    def lookback(self) -> int:
        """How many of the last epochs' findings the rule reads."""
        return 1

    @property
    def needs_findings(self) -> bool:
        """Whether it stops at no epoch at which no indicator is positive.

        A replay need not ask such a rule at these.
        """
        return False

    def __call__(
        self, findings: Sequence[Findings], trace: Trace, peers: Iterable[Trace] = ()
    ) -> Findings:
        """The findings on which to stop; empty to go on.

        Args:
            findings: of each of the last epochs, at least `lookback` of them where
                the trace is that long, the newest last.
            trace: all that is known of the training.
            peers: traces of other trials. A rule looks only at what they had
                recorded by `trace.moment`, so that a replay sees what the live run
                saw. They may be read from disk while iterating.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class AnyFinding(Rule):
    """Stops on every finding.

    Example:
        >>> from kt_bttackler.trace import Header
        >>> finding = Finding("PLC", epoch=2, value=1e-5, threshold=1e-3)
        >>> [f.indicator for f in AnyFinding()([(finding,)], Trace(Header()))]
        ['PLC']
    """

    @property
    def needs_findings(self) -> bool:
        """Always."""
        return True

    def __call__(
        self, findings: Sequence[Findings], trace: Trace, peers: Iterable[Trace] = ()
    ) -> Findings:
        """The findings of the last epoch."""
        return findings[-1] if findings else ()


@dataclasses.dataclass(frozen=True)
class NeverStop(Rule):
    """Stops on nothing: records, and shows what would have been found.

    Example:
        >>> from kt_bttackler.trace import Header
        >>> finding = Finding("PLC", epoch=2, value=1e-5, threshold=1e-3)
        >>> NeverStop()([(finding,)], Trace(Header()))
        ()
    """

    @property
    def needs_findings(self) -> bool:
        """Always."""
        return True

    def __call__(
        self, findings: Sequence[Findings], trace: Trace, peers: Iterable[Trace] = ()
    ) -> Findings:
        """Nothing."""
        return ()


@dataclasses.dataclass(frozen=True)
class Patience(Rule):
    """Stops when the wrapped rule would have stopped at each of the last epochs.

    Args:
        rule: the wrapped rule.
        epochs: how many epochs in a row, at least 1.

    Raises:
        ValueError: `epochs` is below 1.

    Example:
        >>> from kt_bttackler.trace import Header, Record
        >>> finding = Finding("PLC", epoch=2, value=1e-5, threshold=1e-3)
        >>> trace = Trace(Header(), [Record(n, 1.0 * n, {}) for n in (1, 2)])
        >>> rule = Patience(AnyFinding(), epochs=2)
        >>> [len(rule(f, trace)) for f in ([(), (finding,)], [(finding,)] * 2)]
        [0, 1]
    """

    rule: Rule = dataclasses.field(default_factory=AnyFinding)
    epochs: int = 2

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"`epochs` must be at least 1, got {self.epochs}.")

    @property
    def lookback(self) -> int:
        """That of the wrapped rule, and the epochs of patience before it."""
        return self.rule.lookback + self.epochs - 1

    @property
    def needs_findings(self) -> bool:
        """Whether the wrapped rule does."""
        return self.rule.needs_findings

    def __call__(
        self, findings: Sequence[Findings], trace: Trace, peers: Iterable[Trace] = ()
    ) -> Findings:
        """The grounds of the wrapped rule if it had some for `epochs` epochs."""
        if min(len(findings), len(trace)) < self.epochs:
            return ()
        grounds: Findings = ()
        for back in range(self.epochs):
            seen = findings[: len(findings) - back]
            held = self.rule(seen, trace.prefix(len(trace) - back), peers)
            if not held:
                return ()
            grounds = grounds or held
        return grounds


@dataclasses.dataclass(frozen=True)
class ProtectTop(Rule):
    """Never stops a trial whose training loss was once among the best.

    A trial is protected for good once its training loss at some epoch is not worse
    than the best `fraction` of what other trials had recorded at the same epoch by
    then. Only finite losses count, and at least `min_peers` of them; with fewer
    the wrapped rule decides alone. Switch it off (use the wrapped rule alone) when
    the loss itself is a hyperparameter. Source: the authors' public code.

    Args:
        rule: the wrapped rule.
        fraction: share of the trials that is protected, in (0, 1).
        min_peers: losses at the same epoch without which nothing is protected.
        exempt: ids of indicators that stop a protected trial all the same.

    Raises:
        ValueError: `fraction` is not in (0, 1), or `min_peers` below 1.

    Example:
        >>> from kt_bttackler.trace import Header, Record
        >>> def curve(loss):
        ...     return Trace(Header(), [Record(1, 1.0, {"loss": loss})])
        >>> peers = [curve(0.1 * k) for k in range(1, 11)]
        >>> findings = [(Finding("PLC", epoch=1, value=1e-5, threshold=1e-3),)]
        >>> rule = ProtectTop(AnyFinding())
        >>> [len(rule(findings, curve(loss), peers)) for loss in (0.05, 0.95)]
        [0, 1]
    """

    rule: Rule = dataclasses.field(default_factory=AnyFinding)
    fraction: float = 0.1
    min_peers: int = 10
    exempt: tuple[str, ...] = ("AGV",)

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"`fraction` must be in (0, 1), got {self.fraction}.")
        if self.min_peers < 1:
            raise ValueError(f"`min_peers` must be at least 1, got {self.min_peers}.")
        object.__setattr__(self, "exempt", tuple(self.exempt))

    @property
    def lookback(self) -> int:
        """That of the wrapped rule."""
        return self.rule.lookback

    @property
    def needs_findings(self) -> bool:
        """Whether the wrapped rule does."""
        return self.rule.needs_findings

    def __call__(
        self, findings: Sequence[Findings], trace: Trace, peers: Iterable[Trace] = ()
    ) -> Findings:
        """The grounds of the wrapped rule, or those exempt from protection."""
        grounds = self.rule(findings, trace, peers)
        # Peers may have to be read from disk: only when something is at stake.
        if all(f.indicator in self.exempt for f in grounds):
            return grounds
        if self._protected(trace, list(peers)):
            return tuple(f for f in grounds if f.indicator in self.exempt)
        return grounds

    def _protected(self, trace: Trace, peers: Sequence[Trace]) -> bool:
        losses, moments = _beside(trace, peers)
        own, ends = trace.scalar("loss"), trace.header.started + trace.seconds
        for k in range(len(trace)):
            seen = (moments[:, k] <= ends[k]) & np.isfinite(losses[:, k])
            known = losses[seen, k]
            if not math.isfinite(own[k]) or len(known) < self.min_peers:
                continue
            # Cheaper than a percentile: too many are better for it to be reached.
            last = math.ceil(self.fraction * (len(known) - 1))
            if np.sum(known < own[k]) > last:
                continue
            if own[k] <= np.percentile(known, 100 * self.fraction):
                return True
        return False


@dataclasses.dataclass(frozen=True)
class _Several(Rule):
    """What the rules that combine others share."""

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        if not self.rules:
            raise ValueError("`rules` must hold at least one rule, got none.")

    @property
    def lookback(self) -> int:
        """The longest of the wrapped rules."""
        return max(rule.lookback for rule in self.rules)

    def _held(
        self, findings: Sequence[Findings], trace: Trace, peers: Iterable[Trace]
    ) -> list[Findings]:
        return [rule(findings, trace, peers) for rule in self.rules]


@dataclasses.dataclass(frozen=True)
class AnyOf(_Several):
    """Stops when any of the wrapped rules does, on the grounds of all that do.

    Args:
        rules: the wrapped rules, at least one.

    Raises:
        ValueError: `rules` is empty.

    Example:
        >>> from kt_bttackler.trace import Header
        >>> finding = Finding("PLC", epoch=2, value=1e-5, threshold=1e-3)
        >>> rule = AnyOf((NeverStop(), AnyFinding()))
        >>> len(rule([(finding,)], Trace(Header())))
        1
    """

    @property
    def needs_findings(self) -> bool:
        """Whether all of the wrapped rules do."""
        return all(rule.needs_findings for rule in self.rules)

    def __call__(
        self, findings: Sequence[Findings], trace: Trace, peers: Iterable[Trace] = ()
    ) -> Findings:
        """The grounds of all wrapped rules, each once."""
        return _each_once(self._held(findings, trace, peers))


@dataclasses.dataclass(frozen=True)
class AllOf(_Several):
    """Stops when every wrapped rule does.

    Args:
        rules: the wrapped rules, at least one.

    Raises:
        ValueError: `rules` is empty.

    Example:
        >>> from kt_bttackler.trace import Header
        >>> finding = Finding("PLC", epoch=2, value=1e-5, threshold=1e-3)
        >>> rule = AllOf((NeverStop(), AnyFinding()))
        >>> len(rule([(finding,)], Trace(Header())))
        0
    """

    @property
    def needs_findings(self) -> bool:
        """Whether one of the wrapped rules does."""
        return any(rule.needs_findings for rule in self.rules)

    def __call__(
        self, findings: Sequence[Findings], trace: Trace, peers: Iterable[Trace] = ()
    ) -> Findings:
        """The grounds of all wrapped rules, each once, if all have some."""
        held = self._held(findings, trace, peers)
        return _each_once(held) if all(held) else ()


def _each_once(held: Iterable[Findings]) -> Findings:
    return tuple(dict.fromkeys(finding for grounds in held for finding in grounds))


def _beside(trace: Trace, peers: Sequence[Trace]) -> tuple[np.ndarray, np.ndarray]:
    """Training losses of peers at the epochs of a trace, and when they were known.

    Returns:
        Losses and Unix times, [P, T] each; `nan` where a peer has no such epoch.
    """
    losses = np.full((len(peers), len(trace)), np.nan)
    moments = np.full((len(peers), len(trace)), np.nan)
    epochs = [record.epoch for record in trace.records]
    for row, peer in enumerate(peers):
        first = peer.header.initial_epoch + 1
        if epochs[:1] == [first] and peer.epoch == peer.header.initial_epoch + len(
            peer
        ):
            # The usual case: epochs follow one another, from the same one on.
            length = min(len(peer), len(trace))
            if epochs[length - 1 : length] == [first + length - 1]:
                losses[row, :length] = peer.scalar("loss")[:length]
                moments[row, :length] = peer.header.started + peer.seconds[:length]
                continue
        for column, epoch in enumerate(epochs):
            record = peer.at(epoch)
            if record is not None:
                losses[row, column] = record.scalars.get("loss", math.nan)
                moments[row, column] = peer.header.started + record.seconds
    return losses, moments
