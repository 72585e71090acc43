"""Turning away proposals that would very likely be stopped.

From the trials that ended, a forest of randomised trees learns which hyperparameters
lead to a harmful verdict. A proposal that is very likely harmful is exchanged for the
nearest point of the search space that is not. This is careful in three ways: nothing is
learned from few trials, one proposal in ten goes unexamined, so that a wrong belief is
found out, and the neighbourhood of the best trial is never avoided.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras_tuner.engine.trial import Trial, TrialStatus
from sklearn.ensemble import ExtraTreesClassifier

from kt_bttackler.oracles.encoding import Space
from kt_bttackler.oracles.gaussian import Array
from kt_bttackler.oracles.requested import unrequested

# A proposal with at least this probability of a harmful verdict is turned away.
LIKELY = 0.8
# Share of the proposals that are not examined.
EXPLORED = 0.1
# Fewer harmful, and fewer other trials teach nothing.
FEWEST_HARMFUL = 5
FEWEST_OTHERS = 2
# Points that differ from the best trial by no more than this in every dimension are
# its neighbours, if their choices without order are the same.
NEIGHBOURHOOD = 0.1
_TREES = 100
_DRAWN = 500
_WAYS = 20  # points on the way from the proposal to the best trial


def instead(
    proposed: Mapping[str, Any],
    trial_id: str,
    trials: Mapping[str, Trial],
    hyperparameters: Any,
    direction: str,
    seed: int | None,
) -> dict[str, Any]:
    """What to try instead of a proposal; the proposal where nothing speaks against it.

    Args:
        proposed: values by name.
        trial_id: the trial it is for.
        trials: all trials of the search by id.
        hyperparameters: the search space.
        direction: "min" or "max".
        seed: the seed of the search.
    """
    dice = random.Random(zlib.crc32(f"{seed}/{trial_id}/avoid".encode()))
    ended = [trial for trial in trials.values() if _outcome(trial) is not None]
    harmful = np.array([bool(_outcome(trial)) for trial in ended])
    enough = harmful.sum() >= FEWEST_HARMFUL and (~harmful).sum() >= FEWEST_OTHERS
    if not enough or dice.random() < EXPLORED:
        return dict(proposed)
    best = _best(ended, direction)
    # The last two rows are those of the proposal and of the best trial.
    space = Space(
        hyperparameters.space,
        [*(t.hyperparameters.values for t in ended), proposed, best],
        [*map(unrequested, ended), None, None],
    )
    columns = space.columns(space.places, space.active)
    known, wanted, centre = columns[:-2], space.places[-2], space.places[-1]
    reach = [NEIGHBOURHOOD if each.ordered else 0.0 for each in space.dimensions]
    number = dice.randrange(2**32)
    forest = ExtraTreesClassifier(
        _TREES, min_samples_leaf=2, max_features=None, random_state=number
    )
    forest.fit(known, harmful)

    def chances(places: Array) -> Any:
        columns = space.columns(places, space.activity(places))
        return forest.predict_proba(columns)[:, 1]

    is_near = (np.abs(wanted - centre) <= reach).all()
    if is_near or chances(wanted[None])[0] < LIKELY:
        return dict(proposed)
    draw = np.random.default_rng(number)
    ways = np.linspace(0.0, 1.0, _WAYS)[:, None] * (centre - wanted) + wanted
    places = np.concatenate([space.snap(ways), space.draw(draw, _DRAWN)])
    places = places[chances(places) < 0.5]
    offered = space.columns(places, space.activity(places))
    distances = np.square(offered - columns[-2]).sum(axis=1)
    for row in np.argsort(distances, kind="stable"):
        if not (np.abs(columns - offered[row]) < 1e-9).all(axis=1).any():
            return {**proposed, **space.values(places[row])}
    return dict(proposed)


def _outcome(trial: Trial) -> bool | None:
    """Whether a trial was stopped as harmful; None where that is not known."""
    if trial.status == TrialStatus.STOPPED:
        return True
    return False if trial.status == TrialStatus.COMPLETED else None


def _best(trials: list[Trial], direction: str) -> dict[str, Any]:
    sign = 1.0 if direction == "min" else -1.0
    completed = [trial for trial in trials if trial.status == TrialStatus.COMPLETED]
    best = min(
        completed,
        key=lambda t: sign * t.score if np.isfinite(t.score) else np.inf,
    )
    return dict(best.hyperparameters.values)
