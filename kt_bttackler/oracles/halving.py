"""Successive halving: many trials are trained a little, the best of them go on.

A bracket has several rounds. Its first round is filled with new trials; when a round
tells who is among the best, these are promoted: they go on in the next round, each as
a trial of its own, for more epochs.
"""

from __future__ import annotations

import abc
import itertools
import logging
import pathlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from kt_bttackler import project, training_state
from kt_bttackler.oracles import view
from kt_bttackler.oracles.mixin import DiagnosedOracleMixin
from kt_bttackler.oracles.safely import synchronized
from kt_bttackler.oracles.space import Axis, axes

_logger = logging.getLogger(__name__)
_ENDED = (TrialStatus.COMPLETED, TrialStatus.STOPPED, TrialStatus.FAILED)
# Of a space in which random values are nearly always old ones, this many are looked at.
_MOST_COMBINATIONS = 10_000


class HalvingOracle(keras_tuner.Oracle, abc.ABC):
    """The algorithm that Hyperband and successive halving share.

    A trial is promoted as soon as no trial of its round that still runs could keep it
    from the best; workers need not wait for each other longer than that. The outcome
    is that of rounds which wait for all.

    A trial that was stopped, that failed, or whose score is not finite keeps its place
    in the round but is never promoted. As many of the others are promoted as the next
    round has places; when they are fewer, it is smaller. If a space has fewer values
    than the first round has places, the bracket has fewer trials in every round, in
    the same proportion, and at least one.
    """

    # As KerasTuner's Hyperband keeps and saves them: `bracket_num`, and `rounds`, a
    # list of places each: `id` of a trial and `past_id` of the one it goes on with.
    # `size`, if present, is that of a first round that found no more new values.
    _brackets: list[dict[str, Any]]

    @abc.abstractmethod
    def _plan(self, bracket_num: int) -> Sequence[tuple[int, int]]:
        """For each round of a bracket how many trials it has, and their epochs."""

    @abc.abstractmethod
    def _next_bracket(self) -> dict[str, Any] | None:
        """A bracket with empty rounds, or None when there are to be no more."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Values of a new trial, or of one that is promoted."""
        self._brackets = [b for b in self._brackets if not self._is_over(b)]
        for bracket in self._brackets:
            values = self._values_in(bracket, trial_id)
            if values is not None:
                return {"status": TrialStatus.RUNNING, "values": values}
        if not any(map(self._has_room, self._brackets)):
            following = self._next_bracket()
            if following is not None:
                self._brackets.append(following)
                values = self._values_in(following, trial_id)
                if values is not None:
                    return {"status": TrialStatus.RUNNING, "values": values}
        status = TrialStatus.IDLE if self.ongoing_trials else TrialStatus.STOPPED
        return {"status": status, "values": None}

    @synchronized
    def end_trial(self, trial: Trial) -> None:
        """As every oracle does; deletes states of trainings that nobody needs now."""
        super().end_trial(trial)
        try:
            self._forget_states(trial.trial_id)
        except Exception as error:
            _logger.warning("States of trainings are left behind: %r", error)

    def _values_in(
        self, bracket: dict[str, Any], trial_id: str
    ) -> dict[str, Any] | None:
        """Takes a place of the bracket, if there is one for a trial now."""
        if self._has_room(bracket):
            values = self._new_values()
            if values is not None:
                return values | self._take_place(bracket, 0, trial_id, None)
            if self.ongoing_trials:
                return None  # their `build` may yet find more hyperparameters
            bracket["size"] = len(bracket["rounds"][0])
        for number in range(1, len(bracket["rounds"])):
            best = self._promoted(bracket, number)
            if best is not None:
                taken = self._take_place(bracket, number, trial_id, best.trial_id)
                return {**best.hyperparameters.values, **taken}
        return None

    def _take_place(
        self,
        bracket: Mapping[str, Any],
        number: int,
        trial_id: str,
        past_id: str | None,
    ) -> dict[str, Any]:
        """Puts a trial in a round; returns what tells it so."""
        bracket["rounds"][number].append({"past_id": past_id, "id": trial_id})
        plan = self._plan(bracket["bracket_num"])
        values = {
            "tuner/epochs": plan[number][1],
            "tuner/initial_epoch": plan[number - 1][1] if number else 0,
            "tuner/bracket": bracket["bracket_num"],
            "tuner/round": number,
        }
        return values if past_id is None else {"tuner/trial_id": past_id, **values}

    def _promoted(self, bracket: Mapping[str, Any], number: int) -> Trial | None:
        """The best trial that may rise to a round, if it is certain which that is."""
        places = bracket["rounds"][number]
        before = bracket["rounds"][number - 1]
        pending = self._size(bracket, number - 1) - sum(map(self._has_ended, before))
        if len(places) + pending >= self._size(bracket, number):
            return None
        risen = {place["past_id"] for place in places}
        left = [
            self.trials[place["id"]]
            for place in before
            if place["id"] not in risen and self._can_go_on(place)
        ]
        best = min if self.objective.direction == "min" else max
        return best(left, key=lambda trial: trial.score, default=None)

    def _has_room(self, bracket: Mapping[str, Any]) -> bool:
        return len(bracket["rounds"][0]) < self._size(bracket, 0)

    def _size(self, bracket: Mapping[str, Any], number: int) -> int:
        """How many trials a round will have; at most, as long as others still run."""
        plan = self._plan(bracket["bracket_num"])
        first: int = bracket.get("size", plan[0][0])
        size = -(-first * plan[number][0] // plan[0][0])  # rounded up
        if number == 0 or not self._is_over(bracket, number - 1):
            return size
        return min(size, sum(map(self._can_go_on, bracket["rounds"][number - 1])))

    def _is_over(self, bracket: Mapping[str, Any], number: int = -1) -> bool:
        """Whether a round, by default the last one, has had all its trials."""
        number %= len(bracket["rounds"])
        places = bracket["rounds"][number]
        return len(places) >= self._size(bracket, number) and all(
            map(self._has_ended, places)
        )

    def _has_ended(self, place: Mapping[str, str]) -> bool:
        trial = self.trials.get(place["id"])
        return trial is None or trial.status in _ENDED  # None: its files are lost

    def _can_go_on(self, place: Mapping[str, str]) -> bool:
        """Whether a trial has ended with a training that is worth going on with."""
        trial = self.trials.get(place["id"])
        return (
            trial is not None
            and trial.status == TrialStatus.COMPLETED
            and view.is_finite(trial.score)
        )

    def _new_values(self) -> dict[str, Any] | None:
        """Values that no trial has had; None if there are no more.

        KerasTuner gives up when values that are drawn at random are old ones again
        and again, which they are, too, when few are left.
        """
        values: dict[str, Any] | None = self._random_values()
        if values is not None:
            return values
        dice = random.Random(self._seed_state)
        every = _combinations(axes(self.hyperparameters.space), {}, dice)
        some = itertools.islice(every, _MOST_COMBINATIONS)
        new = [values for values in some if not self._duplicate(values)]
        return dice.choice(new) if new else None

    def _compute_values_hash(self, values: Mapping[str, Any]) -> Any:
        # Private, but Hyperband of KerasTuner overrides it in the same way. A promoted
        # trial has the values of the one it goes on with.
        own = {k: v for k, v in values.items() if not k.startswith("tuner/")}
        return super()._compute_values_hash(own)

    def _forget_states(self, trial_id: str) -> None:
        """Deletes states in the bracket of a trial that no promotion can need."""
        for bracket in self._brackets:
            rounds = bracket["rounds"]
            places = [place for places in rounds for place in places]
            if trial_id not in {place["id"] for place in places}:
                continue
            needed = {p["past_id"] for p in places if not self._has_ended(p)}
            for number, (before, after) in enumerate(itertools.pairwise(rounds), 1):
                if len(after) < self._size(bracket, number):
                    risen = {place["past_id"] for place in after}
                    needed |= {p["id"] for p in before if self._can_go_on(p)} - risen
            for place in places:
                if place["id"] not in needed and self._has_ended(place):
                    # Private: the oracle has no public way to its folder.
                    folder = pathlib.Path(self._project_dir)
                    training_state.forget(folder / f"trial_{place['id']}")


class DiagnosedHalvingMixin(DiagnosedOracleMixin, HalvingOracle):
    """Successive halving among diagnosed trials.

    `stopped_value` has no influence: who is stopped ranks last.
    """

    def rebuilt_state(self) -> dict[str, Any]:
        """The state made anew of the trials; they tell where they were in a bracket."""
        state = super().rebuilt_state()
        self._brackets = [
            {**bracket, "rounds": [[] for _ in bracket["rounds"]]}
            for bracket in self._brackets
        ]
        for trial_id, trial in self.trials.items():
            try:
                self._put_in_place(trial_id, trial.hyperparameters.values)
            except (KeyError, IndexError, TypeError):
                continue  # a trial whose values are lost
        own = self.get_state()
        return {**own, **{key: state[key] for key in project.ORACLE_KEYS}}

    def _put_in_place(self, trial_id: str, values: Mapping[str, Any]) -> None:
        past_id, number = values.get("tuner/trial_id"), values["tuner/round"]
        if past_id is not None:
            for bracket in self._brackets:
                before = bracket["rounds"][number - 1 : number]
                if before and past_id in {place["id"] for place in before[0]}:
                    place = {"past_id": past_id, "id": trial_id}
                    bracket["rounds"][number].append(place)
            return
        while not self._has_room(self._brackets[-1]):
            following = self._next_bracket()
            if following is None:
                return
            self._brackets.append(following)
        self._brackets[-1]["rounds"][0].append({"past_id": None, "id": trial_id})

    def _shown(self) -> dict[str, Any]:
        return {}  # the algorithm looks at what the trials are


def _combinations(
    space: Sequence[Axis], values: Mapping[str, Any], dice: random.Random
) -> Iterator[dict[str, Any]]:
    """Every choice of values for the hyperparameters whose scopes are open.

    Of a range without steps one number is drawn.
    """
    if not space:
        yield dict(values)
        return
    axis, *others = space
    if axis.name in values or not axis.is_active(values):
        yield from _combinations(others, values, dice)
        return
    if axis.kind == "float":
        coordinates: Iterator[float] = iter([dice.uniform(axis.low, axis.high)])
    else:
        coordinates = iter(range(int(axis.low), int(axis.high) + 1))
    for coordinate in coordinates:
        value = axis.decode(coordinate)
        yield from _combinations(others, {**values, axis.name: value}, dice)
