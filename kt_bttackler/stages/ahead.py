"""Training the stages of trials to come, beside other processes that do so, too.

Every process knows the same trials and so the same stages; locks and stored states tell
it what the others have done. The trials themselves are run afterwards, one by one and
in the order of the oracle; they find what they need.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kt_bttackler import files
from kt_bttackler.stages.data import SearchData
from kt_bttackler.stages.pieces import KnownTrial, Piece, pieces_of, ready
from kt_bttackler.stages.planning import static_values
from kt_bttackler.stages.schedules import Schedule
from kt_bttackler.stages.store import StageStore
from kt_bttackler.stages.tree import values_of
from kt_bttackler.stages.warm import WarmModel
from kt_bttackler.training_state import TrainingState

# Seconds between two looks at what the others have done.
_PAUSE = 0.1


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a trial begins with.

    Attributes:
        root: its name.
        schedules: those of the trial.
        data: those of the search.
        warm: the model to train.
        initial: the state to begin with; `None` if the model is in it.
    """

    root: str
    schedules: Mapping[str, Schedule]
    data: SearchData
    warm: WarmModel
    initial: TrainingState | None


@dataclasses.dataclass(frozen=True)
class Upcoming:
    """An execution of a trial to come.

    Attributes:
        trial: KerasTuner's.
        seed: of the training.
        epochs: of the training.
    """

    trial: Any
    seed: int
    epochs: int


# Trains a trial up to an epoch; False if another process does.
Train = Callable[[Beginning, Upcoming, Mapping[str, Schedule], int], bool]


class Ahead:
    """Trains stages of several trials by the longest remaining path.

    Args:
        workers: how many processes do so.
        store: where the states are.
        begin: builds a model for a trial.
        train: trains a trial up to an epoch; see `Train`.
        keep: models that are kept.
    """

    def __init__(
        self,
        workers: int,
        store: StageStore,
        begin: Callable[[Upcoming], Beginning],
        train: Train,
        keep: int,
    ) -> None:
        self._workers = workers
        self._store = store
        self._begin = begin
        self._train = train
        self._keep = max(1, keep)
        self._beginnings: collections.OrderedDict[str, Beginning] = (
            collections.OrderedDict()
        )
        # By static values and seed: models are built once per root.
        self._roots: dict[str, tuple[str, Mapping[str, Schedule]]] = {}

    def run(self, trials: Sequence[Upcoming], is_over: Callable[[], bool]) -> None:
        """Returns when all stages are trained, here or by others.

        Args:
            trials: those to come.
            is_over: whether there is no time left.
        """
        known = [self._known(each) for each in trials]
        pieces = pieces_of(known, self._workers)
        done: set[str] = set()
        last = None
        while not is_over():
            possible = ready(pieces, done, last)
            if not possible:
                return
            for piece in possible:
                root, each = known[piece.trial].root, trials[piece.trial]
                if self._store.history(root, piece.name) is not None:
                    done.add(piece.name)
                    break
                if self._is_free(root, piece) and self._advance(each, piece.end):
                    done.add(piece.name)  # even if there was no room for its state
                    last = piece.name
                    break
            else:
                time.sleep(_PAUSE)

    def _is_free(self, root: str, piece: Piece) -> bool:
        """Whether no other process trains it; not yet a promise."""
        turn = self._store.turn(root, piece.name)
        free = turn.take(wait=False)
        turn.release()
        return free

    def _advance(self, each: Upcoming, end: int) -> bool:
        key, schedules = self._schedules(each)
        begins = self._beginnings.pop(key, None) or self._built(each)
        if begins.initial is not None:  # else the model can be used but once
            self._beginnings[key] = begins
            while len(self._beginnings) > self._keep:
                self._beginnings.popitem(last=False)
        return self._train(begins, each, schedules, end)

    def _known(self, each: Upcoming) -> KnownTrial:
        key, schedules = self._schedules(each)
        root, _ = self._roots[key]
        return KnownTrial(
            root,
            values_of(schedules.values(), each.epochs),
            set().union(*(s.branches(each.epochs) for s in schedules.values())),
        )

    def _schedules(self, each: Upcoming) -> tuple[str, dict[str, Schedule]]:
        """The schedules of a trial, and a name for what never changes in it."""
        hp = each.trial.hyperparameters
        for key, (_, schedules) in self._roots.items():
            if key == _static_key(each, schedules):
                break
        else:
            begins = self._built(each)
            schedules = begins.schedules
            key = _static_key(each, schedules)
            self._roots[key] = begins.root, schedules
        return key, {n: s.chosen_as(hp.values) for n, s in schedules.items()}

    def _built(self, each: Upcoming) -> Beginning:
        begins = self._begin(each)
        model = begins.warm.model
        if begins.initial is None and model.built:
            state = TrainingState.of(model, 0, begins.root)
            begins = dataclasses.replace(begins, initial=state)
        return begins


def _static_key(each: Upcoming, schedules: Mapping[str, Schedule]) -> str:
    static = static_values(each.trial.hyperparameters, schedules)
    return files.dumps([each.seed, dict(sorted(static.items()))])
