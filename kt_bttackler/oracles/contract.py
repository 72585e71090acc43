"""What every oracle promises; see `kt_bttackler.testing.check_oracle`."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

import keras_tuner
from keras_tuner.engine import hyperparameters as kinds
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial, TrialStatus

from kt_bttackler import channel
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.indicators import Finding

MakeOracle = Callable[..., keras_tuner.Oracle]
Outcome = Callable[[int, dict[str, Any]], dict[str, float]]

_TRIALS = 8
_OBJECTIVE = "val_loss"


def check_values(make_oracle: MakeOracle) -> list[dict[str, Any]]:
    """Asserts that values are inside the space, and the same for the same seed.

    Returns:
        The values of each trial, in which every trial went well.
    """
    found, again = (_Search(make_oracle).run(_loss) for _ in range(2))
    assert len(found.values) >= _TRIALS, (
        f"the search ended after {len(found.values)} trials; {_TRIALS} are needed here"
    )
    for values in found.values:
        _check_inside(values)
    assert found.values == again.values, "the same seed gives another sequence"
    return found.values


def check_resuming(make_oracle: MakeOracle, expected: list[dict[str, Any]]) -> None:
    """Asserts that a search that is killed in every trial ends up the same."""
    search = _Search(make_oracle).run(_loss, killed_in_every_trial=True)
    for number, (values, others) in enumerate(
        zip(expected, search.values, strict=False)
    ):
        assert values == others, f"after a reload, trial {number} has other values"
    assert len(search.values) == len(expected), "reloading ended the search"


def check_diagnosed(make_oracle: MakeOracle) -> None:
    """Asserts that diagnosed trials never end a search and are never the best."""
    for last in (math.nan, math.inf, 0.0):
        search = _Search(make_oracle).run(_always(_stopped(last)))
        assert search.statuses == [TrialStatus.STOPPED] * len(search.statuses)
        assert len(search.statuses) >= _TRIALS, (
            f"diagnosed trials ended the search after {len(search.statuses)}"
        )

    def mixed(number: int, values: dict[str, Any]) -> dict[str, float]:
        # The stopped ones look better than any other.
        return _loss(number, values) if number % 3 == 2 else _stopped(-1.0)

    search = _Search(make_oracle).run(mixed)
    assert search.best, "no best trials after a search"
    first, second = search.best[:2]
    assert first.status == second.status == TrialStatus.COMPLETED, (
        "a stopped trial is reported before a completed one"
    )
    assert first.score <= second.score, "best trials are not in order"


def check_files(make_oracle: MakeOracle) -> None:
    """Asserts that the state is strict JSON.

    A metric that is not finite is written by KerasTuner itself, in the file of its
    trial.
    """
    for last in (2.0, None, math.nan):
        with tempfile.TemporaryDirectory() as folder:
            _Search(make_oracle, folder).run(_always(_stopped(last)), trials=5)
            paths = list(pathlib.Path(folder).rglob("*.json"))
            assert len(paths) >= 7, f"files are missing: {paths}"
            for path in paths:
                lenient = path.name == "trial.json" and last is math.nan
                tokens = float if lenient else _refused
                json.loads(path.read_text(), parse_constant=tokens)


class _Search:
    """A search without trainings."""

    def __init__(self, make_oracle: MakeOracle, folder: str | None = None) -> None:
        self._make = make_oracle
        self._folder = folder
        self.values: list[dict[str, Any]] = []
        self.statuses: list[str] = []
        self.best: list[Trial] = []

    def run(
        self,
        outcome: Outcome,
        trials: int = _TRIALS,
        killed_in_every_trial: bool = False,
    ) -> _Search:
        if self._folder is None:
            with tempfile.TemporaryDirectory() as self._folder:
                return self.run(outcome, trials, killed_in_every_trial)
        tuner = self._tuner()
        while len(self.values) < trials:
            trial = tuner.oracle.create_trial("tuner0")
            if trial.status == TrialStatus.STOPPED:
                break
            values = dict(trial.hyperparameters.values)
            if killed_in_every_trial:
                tuner.save()
                tuner = self._tuner()
                trial = tuner.oracle.create_trial("tuner0")
                again = dict(trial.hyperparameters.values)
                assert again == values, "an interrupted trial has other values"
            metrics = outcome(len(self.values), values)
            tuner.oracle.update_trial(trial.trial_id, metrics)
            trial.status = TrialStatus.COMPLETED
            tuner.oracle.end_trial(trial)
            tuner.save()
            self.values.append(values)
            self.statuses.append(tuner.oracle.get_trial(trial.trial_id).status)
        self.best = tuner.oracle.get_best_trials(len(self.values))
        return self

    def _tuner(self) -> BaseTuner:
        """A tuner with an oracle of its own, in the project that there is."""
        oracle = self._make(objective=_OBJECTIVE, hyperparameters=_space(), seed=7)
        oracle.verbose = 0
        with contextlib.redirect_stdout(io.StringIO()):  # KerasTuner says it reloads
            return BaseTuner(oracle, directory=self._folder, project_name="p")


def _space() -> keras_tuner.HyperParameters:
    """A little of everything."""
    hp = keras_tuner.HyperParameters()
    hp.Float("rate", 1e-4, 1e-1, sampling="log")
    hp.Float("dropout", 0.0, 0.5, step=0.1)
    hp.Float("momentum", 0.1, 0.99, sampling="reverse_log")
    hp.Int("units", 8, 60, step=8)
    hp.Int("batch", 16, 256, step=2, sampling="log")
    hp.Choice("decay", [0.1, 0.01, 0.0])
    hp.Fixed("classes", 10)
    hp.Choice("kind", ["dense", "conv"])
    with hp.conditional_scope("kind", ["conv"]):
        hp.Int("size", 3, 7, step=2)
        hp.Boolean("pool")
        with hp.conditional_scope("pool", [True]):
            hp.Choice("pooling", ["max", "mean"])
    return hp


def _check_inside(values: dict[str, Any]) -> None:
    expected = set()
    for hp in _space().space:
        if not all(condition.is_active(values) for condition in hp.conditions):
            continue
        expected.add(hp.name)
        assert hp.name in values, f"{hp.name} is active and has no value"
        value = values[hp.name]
        said = f"{hp.name} is {value!r}, outside of {hp}"
        assert type(value) in (bool, int, float, str), f"{said}: {type(value)}"
        if isinstance(hp, kinds.Float) and hp.step is None:
            assert hp.min_value <= value <= hp.max_value, said
        elif isinstance(hp, kinds.Float):
            assert any(math.isclose(value, one, abs_tol=1e-9) for one in hp.values), (
                said
            )
        else:
            assert value in tuple(hp.values), said
    # What Hyperband adds begins with its own name.
    own = {name for name in values if not name.startswith("tuner/")}
    assert own == expected, f"{own - expected} are not active and have a value"


def _loss(number: int, values: dict[str, Any]) -> dict[str, float]:
    shift = 0.0 if values["kind"] == "conv" else 0.5
    return {_OBJECTIVE: 1.0 + shift + abs(math.log10(values["rate"]) + 2.0)}


def _always(metrics: dict[str, float]) -> Outcome:
    return lambda number, values: metrics


def _stopped(last: float | None) -> dict[str, float]:
    """What a training reports that was stopped in its second epoch."""
    metrics = {} if last is None else {_OBJECTIVE: last}
    finding = Finding("AGV", epoch=2, value=1e9, threshold=1e4)
    verdict = Verdict(True, False, 2, "AGV", (finding,), "AnyFinding")
    return {_OBJECTIVE: 0.1} | channel.encode(verdict, metrics)


def _refused(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not strict JSON")
