"""Oracles that choose among recorded trainings."""

from __future__ import annotations

import dataclasses
import random

import keras_tuner
import numpy as np
import pytest
import recordings

from kt_bttackler import oracles, replay, tabular
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.rules import NeverStop

PLAIN = Diagnosis((), NeverStop())


def space():
    hp = keras_tuner.HyperParameters()
    hp.Float("lr", 1e-4, 1.0, sampling="log")
    hp.Choice("act", ["relu", "tanh", "elu"])
    hp.Int("units", 1, 8)
    return hp


def with_configurations(traces, seed=0):
    dice = random.Random(seed)
    for trace in traces:
        values = {
            each.name: each.prob_to_value(dice.random()) for each in space().space
        }
        header = dataclasses.replace(trace.header, hyperparameters=values)
        yield trace.with_header(header)


@pytest.fixture(scope="module")
def recording():
    return replay.Recording(with_configurations(recordings.search(30, seed=3)))


def random_oracle(trials=100, seed=1, objective=None):
    return oracles.RandomSearchOracle(
        objective=keras_tuner.Objective(*objective),
        max_trials=trials,
        hyperparameters=space(),
        seed=seed,
    )


def goal(recording):
    return recording.objective, recording.direction


def test_every_configuration_is_taken_once(recording):
    oracle = random_oracle(objective=goal(recording))
    run = tabular.search(oracle, recording, PLAIN)
    assert sorted(trial.index for trial in run.trials) == list(range(30))
    assert run.seconds == pytest.approx(recording.seconds)
    assert [t.status for t in oracle.trials.values()] == ["COMPLETED"] * 30


def test_the_nearest_configuration_is_taken_and_told(recording):
    class Proposing(oracles.RandomSearchOracle):
        def populate_space(self, trial_id):
            return {"status": "RUNNING", "values": dict(self.proposal)}

    values = [trace.header.hyperparameters for trace in recording.traces]
    for wanted in (4, 17):
        oracle = Proposing(
            objective=keras_tuner.Objective(*goal(recording)),
            max_trials=2,
            hyperparameters=space(),
        )
        # A hair beside a recorded configuration: that one, then the next nearest.
        oracle.proposal = values[wanted] | {"lr": values[wanted]["lr"] * 1.0001}
        run = tabular.search(oracle, recording, PLAIN)
        assert [len(run.trials), run.trials[0].index] == [2, wanted]
        assert run.trials[1].index == slow_nearest(values, oracle.proposal, {wanted})
        told = [trial.hyperparameters.values for trial in oracle.trials.values()]
        assert told == [values[trial.index] for trial in run.trials]


def slow_nearest(values, proposal, used):
    """Squares of differences on each scale; another choice is at distance 1."""

    def apart(one, other):
        rate = np.log(one["lr"] / other["lr"]) / np.log(1e4)
        units = (one["units"] - other["units"]) / 7
        return rate**2 + units**2 + (one["act"] != other["act"])

    left = [n for n in range(len(values)) if n not in used]
    return min(left, key=lambda n: apart(values[n], proposal))


def test_an_oracle_is_told_what_a_live_search_would_tell_it(recording):
    oracle = random_oracle(objective=goal(recording))
    diagnosis = Diagnosis("balanced")
    run = tabular.search(oracle, recording, diagnosis)
    assert {t.outcome for t in run.trials} >= {"completed", "stopped", "benign"}
    for replayed, trial_id in zip(run.trials, oracle.start_order, strict=True):
        trial = oracle.trials[trial_id]
        stopped = replayed.outcome == "stopped"
        assert trial.status == ("STOPPED" if stopped else "COMPLETED")
        if np.isfinite(replayed.score):
            assert trial.score == pytest.approx(replayed.score)
        if stopped:
            assert replayed.verdict.cause in trial.message


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_choices_give_what_simulate_gives(recording, workers):
    """The clock, the peers and the verdicts are those of any simulated search."""
    oracle = random_oracle(objective=goal(recording))
    run = tabular.search(
        oracle, recording, Diagnosis("balanced"), workers=workers, budget=200.0
    )
    order = iter([trial.index for trial in run.trials])
    [again] = replay.simulate(
        recording,
        Diagnosis("balanced"),
        workers=workers,
        budget=200.0,
        order=lambda ended: next(order, None),
    )
    assert again == run
    assert max(t.ended for t in run.trials if t.outcome != "cut") <= 200.0


def test_a_choice_knows_the_trials_that_have_ended_and_no_others(recording):
    known = []

    def choose(ended):
        known.append([trial.index for trial in ended])
        return len(known) - 1 if len(known) <= 6 else None

    [run] = replay.simulate(recording, PLAIN, workers=2, order=choose)
    assert known[:2] == [[], []]
    assert [len(each) for each in known] == [0, 0, 1, 2, 3, 4, 5]
    by_index = {trial.index: trial for trial in run.trials}
    for number, ended in enumerate(known[:6]):
        moment = by_index[number].started
        assert all(by_index[index].ended <= moment for index in ended)


@pytest.mark.parametrize(
    "oracle_class", [oracles.BayesianOptimizationOracle, oracles.TPEOracle]
)
def test_bayesian_searches_learn_from_the_table(recording, oracle_class):
    if oracle_class is oracles.TPEOracle:
        pytest.importorskip("optuna")
    how = {"max_trials": 12, "num_initial_points": 4, "hyperparameters": space()}
    objective = keras_tuner.Objective(*goal(recording))
    runs = [
        tabular.search(
            oracle_class(objective=objective, seed=seed, **how),
            recording,
            Diagnosis("balanced"),
        )
        for seed in (1, 1, 2)
    ]
    chosen = [[trial.index for trial in run.trials] for run in runs]
    assert len(chosen[0]) == 12
    assert chosen[0] == chosen[1] != chosen[2]


def test_what_cannot_be_searched_is_refused(recording):
    cut = recordings.search(6, seed=1)
    cut[2].end = "stopped"
    with pytest.raises(ValueError, match="ran to their end only"):
        tabular.search(
            random_oracle(objective=goal(recording)),
            replay.Recording(with_configurations(cut)),
            PLAIN,
        )
    without = replay.Recording(recordings.search(6, seed=1))
    with pytest.raises(ValueError, match=r"hyperparameters \['act', 'lr', 'units'\]"):
        tabular.search(random_oracle(objective=goal(recording)), without, PLAIN)
