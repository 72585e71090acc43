"""Diagnosis: indicators and a rule, the one callable of live runs and replay.

```python
diagnosis = Diagnosis("conservative").without("LAR").replace("ERG", threshold=1e-4)
verdict = diagnosis(trace)          # Verdict or None
```
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kt_bttackler import catalog, files
from kt_bttackler.fuses import warn
from kt_bttackler.gradient_indicators import AbnormalGradientValues
from kt_bttackler.indicators import Finding, QualityIndicator
from kt_bttackler.presets import preset
from kt_bttackler.rules import AnyFinding, Rule
from kt_bttackler.trace import Trace

# Between what a trial's message says and what it advises.
_ADVICE = "\nTry: "


def without_advice(message: str) -> str:
    """A trial's message but for what it advises."""
    return message.partition(_ADVICE)[0]


def reason(message: str) -> str:
    r"""What a trial's message says, in one line and without the advice.

    Example:
        >>> reason("ERG at epoch 3: gradient flow 0 < 0.001\nTry: ReLU.")
        'ERG at epoch 3: gradient flow 0 < 0.001'
    """
    # The last line of a traceback says what went wrong.
    return without_advice(message).strip().rpartition("\n")[2]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a diagnosis says of a training at one epoch.

    Attributes:
        stop: the training should end.
        benign: it should end because nothing more is gained; its best score counts.
        epoch: n, from 1.
        cause: id of the first finding to stop on, or `None` when there is none.
        findings: all findings of the epoch, the grounds for stopping first, but what is
            benign last where something is harmful.
        rule: name of the rule that decided.
        amnesty: it would have been stopped, but is one of the trials that are left
            running to learn what stopping costs; `stop` is false.

    Example:
        >>> from kt_bttackler.trace import Header, Record, Trace
        >>> broken = Trace(Header(), [Record(1, 2.0, {"loss": float("nan")})])
        >>> verdict = Diagnosis()(broken)
        >>> verdict.stop, verdict.cause, verdict == Verdict.from_json(verdict.to_json())
        (True, 'AGV', True)
    """

    stop: bool
    benign: bool
    epoch: int
    cause: str | None
    findings: tuple[Finding, ...]
    rule: str
    amnesty: bool = False

    @property
    def decided(self) -> bool:
        """Whether the diagnosis said stop, heeded or not."""
        return self.stop or self.amnesty

    def __str__(self) -> str:
        if not self.findings:
            return f"epoch {self.epoch}: no finding"
        more = len(self.findings) - 1
        return f"{self.findings[0]}" + (f" (and {more} more)" if more else "")

    @property
    def message(self) -> str:
        """The sentence, and in a second line what to try against the first finding."""
        advice = self.findings[0].advice if self.findings else ""
        return f"{self}{_ADVICE}{advice}." if advice else str(self)

    def to_json(self) -> str:
        """Strict JSON; `from_json` gives an equal verdict."""
        return files.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: the text is no verdict.
        """
        try:
            content = files.loads(text)
            findings = tuple(
                Finding(
                    **item
                    | {name: float(item[name]) for name in ("value", "threshold")}
                )
                for item in content["findings"]
            )
            verdict = cls(**content | {"findings": findings})
            if not (_is_well_typed(verdict) and all(map(_is_well_typed, findings))):
                raise ValueError("a field is of the wrong type")
            return verdict
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a verdict: {error}") from error


# By the annotation of a field, what a file may hold there.
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "str | None": (str, type(None)),
}


def _is_well_typed(part: Verdict | Finding) -> bool:
    kinds = ((f.name, _KINDS.get(str(f.type))) for f in dataclasses.fields(part))
    return all(
        isinstance(getattr(part, name), kind)
        for name, kind in kinds
        if kind is not None
    )


@dataclasses.dataclass(frozen=True, init=False)
class Diagnosis:
    """Indicators and the rule that decides on their findings.

    Args:
        indicators: the name of a preset ("conservative", the default, "balanced",
            "extended", "paper", "upstream") or indicators or their ids, in the order
            in which causes are reported.
        rule: decides when to stop; by default that of the preset, `AnyFinding` for
            indicators of your own.
        amnesty: share of the trials of a search, in [0, 1), that are left running
            although the diagnosis says stop. Which ones follows from their ids. The
            verdicts are recorded, the trials end as if there were none, and
            `calibration` learns from them what stopping costs. What AGV found stops
            a trial all the same: a loss that is not finite stays so.

    Raises:
        ValueError: an unknown preset or id, two indicators with one id, or a share
            out of its range.
        TypeError: something that is no indicator or no rule.

    Example:
        >>> diagnosis = Diagnosis().without("LAR").replace("ERG", threshold=1e-4)
        >>> [indicator.id for indicator in diagnosis.indicators]
        ['AGV', 'EAG', 'ERG', 'PLC', 'ULC', 'NMG']
        >>> diagnosis == Diagnosis.from_json(diagnosis.to_json())
        True
    """

    indicators: tuple[QualityIndicator, ...]
    rule: Rule
    amnesty: float = 0.0

    def __init__(
        self,
        indicators: str | Iterable[QualityIndicator | str] = "conservative",
        rule: Rule | None = None,
        *,
        amnesty: float = 0.0,
    ) -> None:
        if isinstance(indicators, str):
            chosen, preset_rule = preset(indicators)
        else:
            chosen, preset_rule = _instances(indicators), AnyFinding()
        ids = [indicator.id for indicator in chosen]
        if len(set(ids)) < len(ids):
            raise ValueError(f"`indicators` must have different ids, got {ids}.")
        rule = preset_rule if rule is None else rule
        if not isinstance(rule, Rule):
            raise TypeError(f"`rule` must be a Rule instance, got {rule!r}.")
        object.__setattr__(self, "indicators", chosen)
        if not 0 <= amnesty < 1:
            raise ValueError(f"`amnesty` must be in [0, 1), got {amnesty}.")
        object.__setattr__(self, "rule", rule)
        object.__setattr__(self, "amnesty", float(amnesty))

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that some indicator reads."""
        return frozenset().union(*(indicator.needs for indicator in self.indicators))

    def __getitem__(self, indicator_id: str) -> QualityIndicator:
        for indicator in self.indicators:
            if indicator.id == indicator_id:
                return indicator
        known = [indicator.id for indicator in self.indicators]
        raise KeyError(f"no indicator {indicator_id!r} among {known}")

    def without(self, *indicator_ids: str) -> Diagnosis:
        """The same diagnosis without some indicators.

        Raises:
            KeyError: there is no indicator of that id.
        """
        dropped = {self[indicator_id].id for indicator_id in indicator_ids}
        kept = (i for i in self.indicators if i.id not in dropped)
        return Diagnosis(kept, self.rule, amnesty=self.amnesty)

    def replace(self, indicator_id: str, **changes: Any) -> Diagnosis:
        """The same diagnosis with other fields of one indicator.

        Raises:
            KeyError: there is no indicator of that id.
            TypeError: the indicator has no such field.
        """
        changed = dataclasses.replace(self[indicator_id], **changes)
        return Diagnosis(
            (changed if i.id == indicator_id else i for i in self.indicators),
            self.rule,
            amnesty=self.amnesty,
        )

    def spares(self, trial_id: str | None) -> bool:
        """Whether a trial is one of those that are left running (`amnesty`).

        Args:
            trial_id: KerasTuner's id; `None`, outside a search, is never spared.
        """
        if trial_id is None or not self.amnesty:
            return False
        digest = hashlib.sha256(f"amnesty/{trial_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.amnesty * 2**64

    def findings(
        self,
        trace: Trace,
        disabled: set[str] | None = None,
        ask: Callable[[QualityIndicator, Trace], Finding | None] | None = None,
    ) -> tuple[Finding, ...]:
        """What is positive at the last epoch of `trace`.

        After AGV nothing else is asked: statistics of a broken training mean
        nothing. An indicator that raises is not positive.

        Args:
            trace: all that is known of the training.
            disabled: ids of indicators that are not asked. One that raises is
                added, after one warning.
            ask: asks one indicator, where calling it is not enough; may raise.
        """
        disabled = set() if disabled is None else disabled
        found: list[Finding] = []
        for indicator in self.indicators:
            if indicator.id in disabled:
                continue
            try:
                finding = ask(indicator, trace) if ask else indicator(trace)
            except Exception as error:
                disabled.add(indicator.id)
                kind = type(error).__name__
                warn(f"indicator {indicator.id} is off: {kind}: {error}")
                continue
            if finding is not None:
                found.append(finding)
                if finding.indicator == AbnormalGradientValues.id:
                    break
        return tuple(found)

    def __call__(self, trace: Trace, peers: Iterable[Trace] = ()) -> Verdict | None:
        """Judges the last epoch of a trace.

        Args:
            trace: all that is known of the training.
            peers: traces of other trials, for rules that compare.

        Returns:
            `None` when nothing is found and no rule wants to stop.
        """
        if not len(trace):
            return None
        first = max(1, len(trace) - self.rule.lookback + 1)
        disabled: set[str] = set()
        history = [
            self.findings(trace.prefix(n), disabled)
            for n in range(first, len(trace) + 1)
        ]
        return self.judge(history, trace, peers)

    def judge(
        self,
        findings: list[tuple[Finding, ...]],
        trace: Trace,
        peers: Iterable[Trace] = (),
    ) -> Verdict | None:
        """Judges the last epoch of a trace whose findings are known.

        Args:
            findings: of each of the last epochs, the newest last.
            trace: all that is known of the training.
            peers: traces of other trials.
        """
        # Warnings are shown, but are nothing to decide on.
        serious = [tuple(f for f in found if not f.warning) for found in findings]
        if iter(peers) is peers:  # can be read only once, and rules may ask again
            peers = list(peers)
        grounds = self.rule(serious, trace, peers)
        if not grounds and not findings[-1]:
            return None
        order = {indicator.id: k for k, indicator in enumerate(self.indicators)}
        benign_ids = {i.id for i in self.indicators if i.benign}
        # Bad beats benign; then the order of the indicators; then rules that compare,
        # which know less of a cause.
        grounds = tuple(
            sorted(
                grounds,
                key=lambda f: (
                    f.indicator in benign_ids,
                    order.get(f.indicator, len(order)),
                ),
            )
        )
        benign = tuple(f for f in grounds if f.indicator in benign_ids)
        harmful = grounds[: len(grounds) - len(benign)]
        warnings = tuple(f for f in findings[-1] if f not in grounds)
        # Beside harm, that nothing more is gained explains less than any warning.
        said = (*harmful, *warnings, *benign) if harmful else (*benign, *warnings)
        hopeless = any(f.indicator == AbnormalGradientValues.id for f in grounds)
        spared = bool(grounds) and not hopeless
        spared = spared and self.spares(trace.header.trial_id)
        return Verdict(
            stop=bool(grounds) and not spared,
            benign=bool(benign) and not harmful,
            epoch=trace.epoch,
            cause=grounds[0].indicator if grounds else None,
            findings=said,
            rule=type(self.rule).__name__,
            amnesty=spared,
        )

    def to_json(self) -> str:
        """Strict JSON of types and fields; `from_json` gives an equal diagnosis."""
        return files.dumps(
            {
                "indicators": [catalog.to_config(i) for i in self.indicators],
                "rule": catalog.to_config(self.rule),
                "amnesty": self.amnesty,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Diagnosis:
        """Reads what `to_json` wrote.

        Indicators and rules of the package are looked up by name; others are named
        "module:Class" and must have been imported before: nothing is imported on
        the word of a file.

        Raises:
            ValueError: the text is no diagnosis, or names an unknown type.
        """
        try:
            content = files.loads(text)
            indicators = [catalog.from_config(item) for item in content["indicators"]]
            rule = catalog.from_config(content["rule"])
            return cls(indicators, rule, amnesty=content.get("amnesty", 0.0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not a diagnosis: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Diagnosis:
        """Reads a diagnosis from a JSON file.

        Raises:
            ValueError: the file cannot be read or is no diagnosis.
        """
        try:
            return cls.from_json(pathlib.Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error


def standing(kept: Verdict | None, newer: Verdict | None) -> Verdict | None:
    """Which of two verdicts on one training stands: the first that decided.

    Before there is one, the newest finding stands; and the end of a trial that had
    been spared.

    Args:
        kept: what stood so far.
        newer: of a later epoch.
    """
    if newer is None or (kept is not None and kept.stop):
        return kept
    if kept is not None and kept.amnesty and not newer.stop:
        return kept
    return newer


def _instances(
    indicators: Iterable[QualityIndicator | str],
) -> tuple[QualityIndicator, ...]:
    chosen = []
    for each in indicators:
        made = catalog.indicator(each) if isinstance(each, str) else each
        if not isinstance(made, QualityIndicator):
            raise TypeError(
                f"`indicators` must be QualityIndicator instances or ids, got {each!r}."
            )
        chosen.append(made)
    return tuple(chosen)
