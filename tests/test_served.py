"""Tests of a chief's oracle, whose workers are threads of control in this process.

The same with real processes, over the network, is in `test_faults_distributed`.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from searches import ScriptedTuner, end, hyperband_oracle, random_oracle, statuses

from kt_bttackler import project
from kt_bttackler.signs import SignsOfLife

FINE = {"val_loss": 0.5}


def fine(trial: Any) -> Any:
    return FINE


def failed(trial: Any) -> Any:
    return None


@pytest.fixture(autouse=True)
def _chief(monkeypatch: Any) -> None:
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "1")


def chief(folder: Any, oracle: Any = None, lost_after: float = 120.0) -> Any:
    oracle = oracle or random_oracle(6)
    oracle.lost_after = lost_after
    ScriptedTuner(oracle, fine, directory=folder, project_name="p").save()
    oracle.verbose = 0
    return oracle


def wait_until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def finish(oracle: Any, tuner_id: str = "w9") -> list[str]:
    """Runs what is left, as one worker; returns the ids of the trials it had."""
    had = []
    while (trial := oracle.create_trial(tuner_id)).status != "STOPPED":
        if trial.status == "RUNNING":
            had.append(trial.trial_id)
            end(oracle, trial, fine)
    return had


@pytest.mark.filterwarnings("ignore:worker w0 gave no sign")
def test_the_trial_of_a_silent_worker_is_taken_up(tmp_path: Any) -> None:
    oracle = chief(tmp_path, lost_after=0.3)
    lost = oracle.create_trial("w0")
    oracle.get_trial(lost.trial_id)  # a sign of life, the last one
    other = oracle.create_trial("w1")
    wait_until(lambda: "w0" not in oracle.ongoing_trials)
    assert oracle.tuner_ids == {"w1"}
    path = tmp_path / "p" / "oracle.json"
    wait_until(lambda: project.read_oracle(path)["retry_queue"] == [lost.trial_id])
    end(oracle, other, fine)
    assert finish(oracle, "w1")[0] == lost.trial_id
    assert sorted(oracle.end_order) == sorted(oracle.trials)
    assert len(oracle.end_order) == 6
    assert statuses(list(oracle.trials.values())) == ["COMPLETED"] * 6
    assert (oracle.ongoing_trials, oracle.tuner_ids) == ({}, set())


def test_a_worker_that_gives_signs_is_never_lost(tmp_path: Any) -> None:
    oracle = chief(tmp_path, lost_after=0.4)
    trial = oracle.create_trial("w0")
    signs = SignsOfLife()
    signs.begin(oracle, trial.trial_id, period=0.05)
    time.sleep(1.5)
    assert oracle.ongoing_trials == {"w0": trial}
    signs.end()


def test_a_worker_that_never_gave_a_sign_is_waited_for(tmp_path: Any) -> None:
    oracle = chief(tmp_path, lost_after=0.2)
    trial = oracle.create_trial("w0")  # of KerasTuner's own tuner
    time.sleep(1)
    assert oracle.ongoing_trials == {"w0": trial}


def test_a_chief_that_was_busy_blames_nobody(tmp_path: Any) -> None:
    oracle = chief(tmp_path, lost_after=1.5)
    trial = oracle.create_trial("w0")
    oracle.get_trial(trial.trial_id)
    populate = oracle.populate_space

    def slowly(trial_id: str) -> Any:  # meanwhile the chief's one thread hears nobody
        time.sleep(3)
        return populate(trial_id)

    oracle.populate_space = slowly
    oracle.create_trial("w1")
    time.sleep(0.3)
    assert "w0" in oracle.ongoing_trials


@pytest.mark.filterwarnings("ignore:worker w. gave no sign")
def test_a_worker_that_comes_back_is_counted_once(tmp_path: Any) -> None:
    oracle = chief(tmp_path, lost_after=0.2)
    lost = oracle.create_trial("w0")
    oracle.get_trial(lost.trial_id)
    wait_until(lambda: not oracle.ongoing_trials)
    oracle.update_trial(lost.trial_id, FINE)  # it had only been away
    lost.status = "COMPLETED"
    oracle.end_trial(lost)
    assert lost.trial_id not in finish(oracle)
    assert len(oracle.end_order) == len(set(oracle.end_order)) == 6


@pytest.mark.filterwarnings("ignore:worker w. gave no sign")
def test_of_two_that_run_a_trial_the_first_one_counts(tmp_path: Any) -> None:
    oracle = chief(tmp_path, lost_after=0.2)
    lost = oracle.create_trial("w0")
    oracle.get_trial(lost.trial_id)
    wait_until(lambda: not oracle.ongoing_trials)
    again = oracle.create_trial("w1")
    assert again.trial_id == lost.trial_id
    end(oracle, again, lambda trial: {"val_loss": 0.25})
    state = again.get_state()
    late = type(lost)(lost.hyperparameters, lost.trial_id)  # as it comes by gRPC
    oracle.update_trial(late.trial_id, {"val_loss": 9.0})
    late.status = "INVALID"
    oracle.end_trial(late)
    assert oracle.trials[lost.trial_id].get_state() == state
    assert oracle.end_order == [lost.trial_id]


def test_reports_of_unknown_trials_are_no_harm(tmp_path: Any) -> None:
    oracle = chief(tmp_path)
    strange = oracle.create_trial("w0")
    strange = type(strange)(strange.hyperparameters, "99", "COMPLETED")
    oracle.update_trial("99", FINE)
    oracle.end_trial(strange)
    assert set(oracle.trials) == {"0"}


def test_a_chief_answers_on_after_nonsense(tmp_path: Any) -> None:
    oracle = chief(tmp_path)
    trial = oracle.create_trial("w0")
    with pytest.raises(ValueError, match="Objective value missing"):
        oracle.update_trial(trial.trial_id, {"nonsense": 1.0})
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(oracle.create_trial("w1")))
    thread.start()
    thread.join(10)
    assert answers[0].status == "RUNNING"


@pytest.mark.filterwarnings("ignore:worker bad gets no more trials")
def test_a_bad_worker_does_not_stop_the_others(tmp_path: Any) -> None:
    oracle = chief(tmp_path, lost_after=0.5)
    for _ in range(3):
        end(oracle, oracle.create_trial("bad"), failed)
    good = oracle.create_trial("good")
    assert good.status == "RUNNING"
    assert oracle.create_trial("bad").status == "IDLE"
    end(oracle, good, fine)
    finish(oracle, "good")
    assert len(oracle.trials) == 6
    assert statuses(list(oracle.trials.values())).count("COMPLETED") == 3
    wait_until(lambda: oracle.create_trial("bad").status == "STOPPED")
    assert oracle.tuner_ids == set()


@pytest.mark.filterwarnings("ignore:worker w. gets no more trials")
def test_a_chief_with_bad_workers_only_ends(tmp_path: Any) -> None:
    oracle = chief(tmp_path, random_oracle(20), lost_after=0.3)
    names = ["w0", "w1"]
    while names:
        for name in list(names):
            trial = oracle.create_trial(name)
            if trial.status == "RUNNING":
                end(oracle, trial, failed)
            elif trial.status == "STOPPED":
                names.remove(name)
    assert len(oracle.trials) == 6  # three of each
    assert (oracle.ongoing_trials, oracle.tuner_ids) == ({}, set())


@pytest.mark.parametrize("make", [lambda: random_oracle(6), hyperband_oracle])
def test_a_chief_that_is_started_again_counts_nothing_twice(
    make: Any, tmp_path: Any
) -> None:
    first = chief(tmp_path, make())
    end(first, first.create_trial("w0"), fine)
    running = [first.create_trial(name) for name in ("w0", "w1")]
    end(first, running[1], fine)
    second = chief(tmp_path, make())
    assert list(second.ongoing_trials) == ["w0"]
    assert second.tuner_ids == {"w0"}
    assert second.create_trial("w1").trial_id not in {t.trial_id for t in running}
    # The worker did not notice anything.
    second.update_trial(running[0].trial_id, FINE)
    running[0].status = "COMPLETED"
    second.end_trial(running[0])
    assert second.create_trial("w0").trial_id != running[0].trial_id
    for trial in list(second.ongoing_trials.values()):
        end(second, trial, fine)
    for tuner_id in list(second.tuner_ids):
        finish(second, tuner_id)
    assert sorted(second.end_order) == sorted(second.trials)
    assert len(second.trials) == (6 if make is not hyperband_oracle else 23)


@pytest.mark.filterwarnings("ignore:worker w. gave no sign")
@pytest.mark.filterwarnings("ignore:no worker is left")
def test_a_chief_started_again_without_its_workers_runs_their_trials(
    tmp_path: Any,
) -> None:
    first = chief(tmp_path)
    lost = first.create_trial("w0")
    second = chief(tmp_path, random_oracle(6), lost_after=0.3)
    wait_until(lambda: not second.ongoing_trials)
    assert finish(second)[0] == lost.trial_id
    assert len(second.end_order) == 6


def test_a_worker_started_again_under_its_name_gets_its_trial_again(
    tmp_path: Any,
) -> None:
    oracle = chief(tmp_path)
    trial = oracle.create_trial("w0")
    assert oracle.create_trial("w0") is trial


@pytest.mark.filterwarnings("ignore:worker w. ")
@pytest.mark.filterwarnings("ignore:no worker is left")
def test_nobody_is_sent_away_while_a_trial_may_be_lost(
    tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("kt_bttackler.oracles.served.PERIOD", 0.05)
    oracle = chief(tmp_path, random_oracle(1), lost_after=1.0)
    lost = oracle.create_trial("w0")
    oracle.get_trial(lost.trial_id)
    time.sleep(0.3)
    assert oracle.create_trial("w1").status == "IDLE"
    assert finish(oracle, "w1") == [lost.trial_id]
    assert (oracle.ongoing_trials, oracle.tuner_ids) == ({}, set())


@pytest.mark.filterwarnings("ignore:worker w0 is lost; it had no trial")
def test_a_worker_that_died_between_two_trials_holds_nobody_up(tmp_path: Any) -> None:
    oracle = chief(tmp_path, lost_after=0.3)
    end(oracle, oracle.create_trial("w0"), fine)
    wait_until(lambda: not oracle.tuner_ids)
