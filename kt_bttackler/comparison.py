"""What diagnoses would have saved on a recorded search, and what they would have cost.

```python
table = comparison.compare(Recording(store, "cifar"), {"paper": Diagnosis("paper")})
print(comparison.as_text(table))
```
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kt_bttackler import measures, replay
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.measures import KillRegret
from kt_bttackler.recording import Recording, Scoring
from kt_bttackler.replay import ReplayedTrial, Simulation
from kt_bttackler.rules import NeverStop
from kt_bttackler.simulated import (
    Searches,
    Spread,
    median_of,
    saving_of,
    searches_beside,
    share_of,
)


@dataclasses.dataclass(frozen=True)
class IndicatorClaims:
    """What one indicator claims.

    Attributes:
        indicator: its id.
        alone: trials stopped when only it is asked, under the same rule.
        together: trials of which it is the cause when all are asked.
        epochs: first, median and last stop epoch alone; empty when there is none.
    """

    indicator: str
    alone: int
    together: int
    epochs: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One diagnosis on one recorded search.

    Shares and regrets are of the trials that were recorded to their end.

    Attributes:
        diagnosis: its name.
        claimed: trials stopped as harmful.
        benign: trials ended because nothing more was gained.
        unknown: trials cut short by an earlier stop, of which it is not known what
            they would have been.
        stop_epochs: first, median and last stop epoch; empty when there is none.
        epochs_saved: share of the epochs.
        seconds_saved: share of the seconds, the set-up of trainings included.
        of_ceiling: seconds saved per seconds that the ceiling saves.
        top_10: kill-regret of the best 10 %.
        top_20: kill-regret of the best 20 %.
        benign_loss: mean and largest loss of score by benign stops, or empty.
        indicators: what each of its indicators claims.
        searches: simulated searches; `None` when none were asked for.
    """

    diagnosis: str
    claimed: int
    benign: int
    unknown: int
    stop_epochs: tuple[float, ...]
    epochs_saved: float
    seconds_saved: float
    of_ceiling: float
    top_10: KillRegret
    top_20: KillRegret
    benign_loss: tuple[float, ...]
    indicators: tuple[IndicatorClaims, ...]
    searches: Searches | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Diagnoses side by side on one recorded search.

    Attributes:
        task: its name.
        objective: what it optimised.
        direction: "min" or "max".
        trials: how many were recorded.
        complete: how many of them to their end.
        left_out: traces of further executions, and empty ones.
        seconds: of all trainings together.
        score: how trials are scored, "live" or "last".
        trivial: score of the trivial predictor, `nan` when unknown.
        bad: complete trials whose last score is not better than that.
        ceiling: share of the seconds that stopping exactly the bad trials after their
            first epoch saves; `nan` when the trivial score is unknown.
        workers: of the simulated searches.
        budget: of the simulated searches, in seconds.
        orders: how many searches were simulated per diagnosis.
        null_saving: TSBA of two searches without any diagnosis in independent orders
            (A/A): what the measure shows of no difference at all.
        null_reached: share of those pairs in which the other's best was reached.
        seconds_to_best: until a search without diagnosis had its best score.
        rows: one per diagnosis.
    """

    task: str
    objective: str
    direction: str
    trials: int
    complete: int
    left_out: int
    seconds: float
    score: Scoring
    trivial: float
    bad: int
    ceiling: float
    workers: int
    budget: float
    orders: int
    null_saving: Spread
    null_reached: float
    seconds_to_best: Spread
    rows: tuple[Row, ...]


def compare(
    recording: Recording,
    diagnoses: Mapping[str, Diagnosis],
    *,
    workers: int = 1,
    budget: float | None = None,
    orders: int = 100,
    seed: int = 0,
    score: Scoring = "live",
    trivial: float | None = None,
) -> Comparison:
    """Replays a recorded search under several diagnoses.

    Claims, savings and regrets are those of the recorded order, one trial after the
    other. The simulated searches draw from the complete trials with replacement, the
    same orders for every diagnosis; their intervals are a bootstrap over trials and
    say nothing about other tasks.

    Args:
        recording: the recorded search.
        diagnoses: by name.
        workers: of the simulated searches.
        budget: their seconds. Default: what the recorded trainings took in all,
            per worker.
        orders: how many searches are simulated per diagnosis; 0 for none.
        seed: of the orders.
        score: see `replay.simulate`.
        trivial: score of the trivial predictor, for the ceiling.

    Raises:
        ValueError: an argument is out of its range, or nothing was recorded.
    """
    if not len(recording):
        raise ValueError("`recording` must hold at least one trace with an epoch.")
    if orders < 0:
        raise ValueError(f"`orders` must be at least 0, got {orders}.")
    pool = recording.completed()
    if not len(pool) or not pool.seconds > 0:
        orders = 0  # there is nothing to draw from
    limit = budget if budget is not None else max(pool.seconds, 1e-9) / workers
    ceiling, bad = _ceiling(recording, math.nan if trivial is None else trivial)

    def searches(diagnosis: Diagnosis, first_seed: int) -> list[Simulation]:
        return replay.simulate(
            pool,
            diagnosis,
            workers=workers,
            budget=limit,
            order="resampled",
            seed=first_seed,
            repeats=orders,
            score=score,
        )

    plain: list[Simulation] = []
    others: list[Simulation] = []
    if orders:
        watching = Diagnosis((), NeverStop())
        plain, others = searches(watching, seed), searches(watching, seed + 1)
    null = [
        saving_of(one, other, limit, recording.direction)
        for one, other in zip(plain, others, strict=True)
    ]
    return Comparison(
        task=recording.name,
        objective=recording.objective,
        direction=recording.direction,
        trials=len(recording),
        complete=int(recording.complete.sum()),
        left_out=recording.left_out,
        seconds=recording.seconds,
        score=score,
        trivial=math.nan if trivial is None else trivial,
        bad=bad,
        ceiling=ceiling,
        workers=workers,
        budget=limit,
        orders=orders,
        null_saving=median_of([saving.ratio for saving in null]),
        null_reached=share_of([saving.reached for saving in null]),
        seconds_to_best=median_of([saving.baseline_seconds for saving in null]),
        rows=tuple(
            _row(
                name,
                diagnosis,
                recording,
                score,
                ceiling,
                searches_beside(
                    searches(diagnosis, seed), plain, others, limit, recording.direction
                )
                if orders
                else None,
            )
            for name, diagnosis in diagnoses.items()
        ),
    )


def pooled_regret(
    comparisons: Sequence[Comparison], diagnosis: str
) -> tuple[KillRegret, KillRegret]:
    """Kill-regret of the best 10 % and 20 % of several tasks together.

    Args:
        comparisons: one per task; the best are the best of each.
        diagnosis: name of the diagnosis.
    """
    rows = [row for c in comparisons for row in c.rows if row.diagnosis == diagnosis]
    top_10, top_20 = rows[0].top_10, rows[0].top_20
    for row in rows[1:]:
        top_10, top_20 = top_10 + row.top_10, top_20 + row.top_20
    return top_10, top_20


def _row(
    name: str,
    diagnosis: Diagnosis,
    recording: Recording,
    score: Scoring,
    ceiling: float,
    searches: Searches | None,
) -> Row:
    [run] = replay.simulate(recording, diagnosis, score=score)
    full = recording.full_scores(score)
    known = recording.complete
    harmful = np.array([trial.outcome == "stopped" for trial in run.trials])
    benign = np.array([trial.outcome == "benign" for trial in run.trials])
    # In the recorded order the trials are those of the recording.
    regrets = [
        measures.kill_regret(
            full[known],
            harmful[known],
            direction=recording.direction,
            fraction=fraction,
        )
        for fraction in (0.1, 0.2)
    ]
    lost = measures.benign_loss(
        full, run.scores, benign & known, direction=recording.direction
    )
    whole = [
        trace for trace, ended in zip(recording.traces, known, strict=True) if ended
    ]
    seconds = sum(float(trace.seconds[-1]) for trace in whole)
    saved = sum(trial.seconds_saved for trial in run.trials)
    saved_share = saved / seconds if seconds else math.nan
    epochs = sum(map(len, whole))
    return Row(
        diagnosis=name,
        claimed=int(harmful.sum()),
        benign=int(benign.sum()),
        unknown=run.count("unknown"),
        stop_epochs=_stop_epochs(run.trials),
        epochs_saved=sum(t.epochs_saved for t in run.trials) / epochs
        if epochs
        else math.nan,
        seconds_saved=saved_share,
        of_ceiling=saved_share / ceiling if ceiling else math.nan,
        top_10=regrets[0],
        top_20=regrets[1],
        benign_loss=(float(lost.mean()), float(lost.max())) if len(lost) else (),
        indicators=_claims(diagnosis, recording, run),
        searches=searches,
    )


def _claims(
    diagnosis: Diagnosis, recording: Recording, together: Simulation
) -> tuple[IndicatorClaims, ...]:
    causes = [
        trial.verdict.cause
        for trial in together.trials
        if trial.verdict is not None and trial.outcome in ("stopped", "benign")
    ]
    claims = []
    for indicator in diagnosis.indicators:
        [run] = replay.simulate(
            recording.traces, Diagnosis([indicator], diagnosis.rule)
        )
        own = [
            trial
            for trial in run.trials
            if trial.outcome in ("stopped", "benign")
            and trial.verdict is not None
            and trial.verdict.cause == indicator.id
        ]
        claims.append(
            IndicatorClaims(
                indicator.id, len(own), causes.count(indicator.id), _stop_epochs(own)
            )
        )
    known = {indicator.id for indicator in diagnosis.indicators}
    # Rules that compare have findings of their own.
    for cause in dict.fromkeys(causes):
        if cause is not None and cause not in known:
            claims.append(IndicatorClaims(cause, 0, causes.count(cause), ()))
    return tuple(claims)


def _stop_epochs(trials: Sequence[ReplayedTrial]) -> tuple[float, ...]:
    epochs = [t.epochs for t in trials if t.outcome in ("stopped", "benign")]
    if not epochs:
        return ()
    return float(min(epochs)), float(np.median(epochs)), float(max(epochs))


def _ceiling(recording: Recording, trivial: float) -> tuple[float, int]:
    """Share of the seconds that knowing the bad trials would save, and their number."""
    if math.isnan(trivial):
        return math.nan, 0
    last = measures.costs(recording.full_scores("last"), recording.direction)
    limit = float(measures.costs([trivial], recording.direction)[0])
    bad = recording.complete & ~(last < limit)
    total = sum(
        float(t.seconds[-1])
        for t, whole in zip(recording.traces, recording.complete, strict=True)
        if whole
    )
    saved = sum(
        float(t.seconds[-1] - t.seconds[0])
        for t, hopeless in zip(recording.traces, bad, strict=True)
        if hopeless
    )
    return (saved / total if total else math.nan), int(bad.sum())
