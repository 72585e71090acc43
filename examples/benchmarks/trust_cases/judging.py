"""Replays diagnoses over recorded runs, and counts how often they were right."""

import dataclasses
import statistics

import scipy.stats

from kt_bttackler import AnyFinding, Diagnosis

PRESETS = ("conservative", "balanced", "extended", "paper", "upstream")
# The causes that should be seen within 15 % of the budget; the others within 30 %.
EARLY = {
    *("AGV", "EAG", "ERG", "PLC", "LAR"),
    *("OUTPUT_LOSS_MISMATCH", "INPUT_SCALE", "POOR_INIT"),
    *("LR_RANGE", "HIGH_DROPOUT", "LINEAR_STACK"),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run and how it ended.

    Attributes:
        run: id of the run.
        bad: whether it ended badly.
        epochs: its budget.
        expected: ids of findings that would be right, the best first.
    """

    run: str
    bad: bool
    epochs: int
    expected: tuple = ()


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a diagnosis said of a run.

    Attributes:
        epoch: at which it would have been stopped as harmful, or `None`.
        causes: ids of the findings of that verdict, the grounds first.
        warnings: ids of the warnings until then.
        benign: epoch of the first stop because nothing more was gained, or `None`.
    """

    epoch: int | None = None
    causes: tuple = ()
    warnings: tuple = ()
    benign: int | None = None


def presets():
    """The presets that exist, by name."""
    found = {}
    for name in PRESETS:
        try:
            found[name] = Diagnosis(name)
        except ValueError:
            continue
    return found


def single_rules(diagnoses):
    """Every indicator of some diagnoses as a diagnosis of its own.

    Args:
        diagnoses: dict of name to `Diagnosis`.

    Returns:
        A dict of `Diagnosis`. An indicator that a preset has with other thresholds is
        named "ID (preset)".
    """
    found = {}
    for preset, diagnosis in diagnoses.items():
        for indicator in diagnosis.indicators:
            alone = Diagnosis([indicator], rule=AnyFinding())
            if alone not in found.values():
                known = indicator.id in found
                found[f"{indicator.id} ({preset})" if known else indicator.id] = alone
    return found


def replay(trace, diagnoses):
    """What each diagnosis would have said, epoch by epoch.

    Args:
        trace: of a run that nothing has stopped.
        diagnoses: dict of name to `Diagnosis`.

    Returns:
        A dict of name to `Judgement`.
    """
    judgements = {name: Judgement() for name in diagnoses}
    histories = {name: [] for name in diagnoses}
    disabled = set()
    for prefix in trace.prefixes():
        known = {}

        def ask(indicator, prefix, known=known):
            # Presets share most of their indicators: each is asked once.
            if indicator not in known:
                known[indicator] = indicator(prefix)
            return known[indicator]

        for name, history in histories.items():
            said = judgements[name]
            if said.epoch is not None:
                continue
            diagnosis = diagnoses[name]
            history.append(diagnosis.findings(prefix, disabled, ask))
            last = history[-diagnosis.rule.lookback :]
            verdict = diagnosis.judge(last, prefix)
            if verdict is not None:
                judgements[name] = _added(said, verdict)
    if disabled:
        raise RuntimeError(f"indicators that raised: {sorted(disabled)}")
    return judgements


def _added(said, verdict):
    warned = [f.indicator for f in verdict.findings if f.warning]
    said = dataclasses.replace(
        said, warnings=tuple(dict.fromkeys((*said.warnings, *warned)))
    )
    if not verdict.stop:
        return said
    if verdict.benign:
        benign = verdict.epoch if said.benign is None else said.benign
        return dataclasses.replace(said, benign=benign)
    causes = tuple(f.indicator for f in verdict.findings)
    return dataclasses.replace(said, epoch=verdict.epoch, causes=causes)


def share(count, total):
    """A share with its 95 % Clopper-Pearson interval; `None` of nothing.

    Example:
        >>> share(0, 200)["high"] < 0.02
        True
    """
    if not total:
        return {"count": 0, "total": 0, "share": None, "low": None, "high": None}
    interval = scipy.stats.binomtest(count, total).proportion_ci(method="exact")
    return {
        "count": count,
        "total": total,
        "share": count / total,
        "low": float(interval.low),
        "high": float(interval.high),
    }


def summarise(outcomes, judgements, rule=None):
    """How often a diagnosis was right.

    Args:
        outcomes: list of `Outcome`.
        judgements: dict of run id to the `Judgement` of one diagnosis.
        rule: id of the one indicator of the diagnosis: a run that does not expect it
            is then no miss.

    Returns:
        A dict: `recall`, `false_stops`, `false_warnings`, `right_cause`, medians of
        the share of the budget at the verdict, and the runs behind them.
    """
    bad = [o for o in outcomes if o.bad]
    good = [o for o in outcomes if not o.bad]
    caught = [
        o
        for o in bad
        if judgements[o.run].epoch is not None and judgements[o.run].epoch < o.epochs
    ]
    stopped = [o for o in good if judgements[o.run].epoch is not None]
    warned = [o for o in good if judgements[o.run].warnings]
    named = [o for o in caught if o.expected]
    right = [o for o in named if set(judgements[o.run].causes[:2]) & set(o.expected)]
    early = [o for o in named if o.expected[0] in EARLY]
    late = [o for o in named if o.expected[0] not in EARLY]
    due = [o for o in bad if rule is None or rule in o.expected]

    def time_to_verdict(group):
        shares = [judgements[o.run].epoch / o.epochs for o in group]
        return statistics.median(shares) if shares else None

    def said(group):
        return {
            o.run: {
                "epoch": judgements[o.run].epoch,
                "epochs": o.epochs,
                "causes": list(judgements[o.run].causes),
                "expected": list(o.expected),
            }
            for o in group
        }

    return {
        "recall": share(len(caught), len(bad)),
        "recall_where_expected": share(len([o for o in due if o in caught]), len(due)),
        "false_stops": share(len(stopped), len(good)),
        "false_warnings": share(len(warned), len(good)),
        "right_cause": share(len(right), len(named)),
        "time_to_verdict": time_to_verdict(caught),
        "time_to_verdict_early_causes": time_to_verdict(early),
        "time_to_verdict_other_causes": time_to_verdict(late),
        "good_runs_ended_benignly": sum(
            judgements[o.run].benign is not None for o in good
        ),
        "missed": {o.run: list(o.expected) for o in due if o not in caught},
        "stopped_wrongly": said(stopped),
        "warned_wrongly": {o.run: list(judgements[o.run].warnings) for o in warned},
        "wrong_cause": said([o for o in named if o not in right]),
    }
