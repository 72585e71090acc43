"""The parts of a launched search without Ray, and the arguments of `launch`."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import keras_tuner
import pytest

# Private: what a worker of KerasTuner asks its chief with. Used to play a worker in the
# process of the chief.
from keras_tuner.src.distribute.oracle_client import OracleClient
from searches import ScriptedTuner, end, random_oracle, space, stopped

import kt_bttackler as ktb
from kt_bttackler import cli, durable_tuner, fleet, launched, launcher, roles
from kt_bttackler.launch_command import run_script


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"search_fn": 3}, r"`search_fn` must be a function, got 3\."),
        ({"workers": 0}, r"`workers` must be a whole number of at least 1, got 0\."),
        ({"workers": 1.5}, r"`workers` must be a whole number of at least 1, got 1\.5"),
        ({"max_restarts": -1}, "`max_restarts` must be a whole number of at least 0"),
        (
            {"resources_per_worker": {"GPU": -1}},
            r"`resources_per_worker\['GPU'\]` must be a number of at least 0, got -1\.",
        ),
        ({"resources_per_worker": {"CPU": "two"}}, "at least 0, got 'two'"),
    ],
)
def test_arguments_are_checked_before_anything_starts(
    changes: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        ktb.launch(**({"search_fn": nothing, "workers": 2} | changes))


def test_without_ray_one_line_says_how_to_install_it(
    monkeypatch: Any, tmp_path: Any, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    told = "`launch` needs ray: pip install 'kt-bttackler[ray]'"
    with pytest.raises(ImportError) as missing:
        ktb.launch(nothing)
    assert str(missing.value) == told
    script = tmp_path / "script.py"
    script.touch()
    assert cli.main(["launch", str(script), "--workers", "2"]) == 2
    assert capsys.readouterr().err == f"kt-bttackler launch: {told}\n"


def test_a_client_of_a_cluster_is_no_node_of_it() -> None:
    with pytest.raises(ValueError, match="got 'ray://head:10001': launch it from a"):
        ktb.launch(nothing, address="ray://head:10001")


def test_the_function_is_not_hidden_by_its_module() -> None:
    assert launcher.launch is ktb.launch


@pytest.mark.parametrize(
    "command",
    [
        ["launch"],
        ["launch", "missing.py", "--workers", "2"],
        ["launch", __file__],
        ["launch", __file__, "--workers", "two"],
        ["launch", __file__, "--workers", "0"],
        ["launch", __file__, "--workers", "2", "--resources", "CPU"],
        ["launch", __file__, "--workers", "2", "--resources", "CPU=one"],
        ["launch", __file__, "--workers", "2", "--max-restarts", "-1"],
    ],
)
def test_mistakes_in_the_command_are_one_line(command: Any, capsys: Any) -> None:
    try:
        code = cli.main(command)
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr()
    assert (code, told.out, told.err.count("\n")) == (2, "", 1)


def test_a_script_runs_as_by_python(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_script.py").write_text("NUMBER = 7")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, beside_the_script\n"
        "if __name__ == '__main__':\n"
        "    open('seen', 'w').write(f'{beside_the_script.NUMBER} {sys.argv[1:]}')"
    )
    monkeypatch.chdir(tmp_path)
    run_script(script, ("--epochs", "3"))
    assert (tmp_path / "seen").read_text() == "7 ['--epochs', '3']"


def test_every_process_knows_what_it_is(monkeypatch: Any) -> None:
    monkeypatch.delenv("KERASTUNER_ORACLE_IP", raising=False)
    roles_of = {}
    for name in ("chief", "worker0"):
        for variable, value in launched.environment(name, "10.0.0.2", 80).items():
            monkeypatch.setenv(variable, value)
        roles_of[name] = (roles.is_chief(), roles.is_worker())
    assert roles_of == {"chief": (True, False), "worker0": (False, True)}
    assert launched.environment("chief", "10.0.0.2", 80)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in launched.environment("worker0", "::", 80, True)


def test_the_end_of_a_process_is_the_end_of_its_function(
    tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(os.getcwd())
    launched.run(lambda: sys.exit(0), str(tmp_path))
    assert os.getcwd() == str(tmp_path)
    with pytest.raises(RuntimeError, match="it ended with exit code 3"):
        launched.run(lambda: sys.exit(3), "/no/such/folder")
    assert os.getcwd() == str(tmp_path)


def test_only_the_first_chief_overwrites(tmp_path: Any, monkeypatch: Any) -> None:
    kwargs = {"overwrite": True, "directory": tmp_path, "project_name": "p"}
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    assert durable_tuner._may_overwrite(kwargs)
    monkeypatch.setenv(roles.RESTARTED, "1")
    assert not durable_tuner._may_overwrite(kwargs)


def served(tmp_path: Any, oracle: Any) -> Any:
    ScriptedTuner(oracle, nothing, directory=tmp_path, project_name="p")
    oracle.verbose = 0
    return oracle


def test_the_bulletin_tells_what_has_become_of_trials(tmp_path: Any) -> None:
    oracle = served(tmp_path, random_oracle(5))
    end(oracle, oracle.create_trial("worker0"), lambda trial: {"val_loss": 1.0})
    bulletin = launched.Bulletin()
    assert bulletin.lines(oracle) == []  # it has ended before
    first, second = (oracle.create_trial(f"worker{n}") for n in (0, 1))
    assert bulletin.lines(oracle) == [
        "worker0: trial 1 begins",
        "worker1: trial 2 begins",
    ]
    assert bulletin.lines(oracle) == []
    end(oracle, second, lambda trial: stopped(2.0))
    end(oracle, first, lambda trial: None)
    third = oracle.create_trial("worker1")
    third.status, third.message = "FAILED", "Traceback\n  line\nOSError: no disk"
    oracle.end_trial(third)
    lines = bulletin.lines(oracle)
    assert lines[0].startswith("worker1: trial 2 STOPPED, val_loss 2: ERG at epoch 3")
    assert lines[0].endswith("[2 of 5]")
    assert lines[1] == "worker0: trial 1 FAILED [3 of 5]"
    # It began and ended between two looks.
    assert lines[2] == "trial 3 FAILED: OSError: no disk [4 of 5]"


@pytest.mark.filterwarnings("ignore:no worker is left")
def test_a_lost_worker_frees_its_trial_at_once(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "1")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    oracle = served(tmp_path, random_oracle(5))
    lost = oracle.create_trial("worker1")
    oracle.create_trial("worker0")
    launched.lose_worker(oracle, "worker1")
    assert oracle.tuner_ids == {"worker0"}
    assert oracle.create_trial("worker2").trial_id == lost.trial_id
    for name in ("worker0", "worker2"):
        launched.lose_worker(oracle, name)
    # The chief waits for somebody who takes them up.
    assert oracle.ongoing_trials == {}
    assert oracle.tuner_ids == {"worker2"}
    taken = {oracle.create_trial("worker3").trial_id for _ in range(1)}
    assert taken <= {"0", "1"}


def test_of_another_oracle_the_trial_of_a_lost_worker_ends(tmp_path: Any) -> None:
    oracle = keras_tuner.oracles.RandomSearchOracle(
        "val_loss", 5, hyperparameters=space("lr")
    )
    served(tmp_path, oracle)
    lost = oracle.create_trial("worker1")
    launched.lose_worker(oracle, "worker1")
    assert oracle.trials[lost.trial_id].status == "FAILED"
    assert (oracle.ongoing_trials, oracle.tuner_ids) == ({}, set())
    launched.lose_worker(oracle, "never seen")


def begun(load: Any, folder: str = "/no/such/folder") -> launched.Chief:
    chief = launched.Chief()
    assert chief.news() == launched.News()
    chief.begin(load, folder)
    return chief


def ends(chief: launched.Chief) -> launched.News:
    deadline = time.monotonic() + 30
    lines: tuple[str, ...] = ()
    while time.monotonic() < deadline:
        news = chief.news()
        lines += news.lines
        if news.ended:
            return launched.News(**(vars(news) | {"lines": lines}))
        time.sleep(0.05)
    raise TimeoutError("the chief never ended")


def test_a_chief_tells_what_its_function_raises() -> None:
    def raises() -> None:
        raise KeyError("no such column")

    def not_loaded() -> Any:
        raise ModuleNotFoundError("No module named 'yours'")

    assert "KeyError: 'no such column'" in ends(begun(lambda: raises)).error
    assert "No module named 'yours'" in ends(begun(not_loaded)).error
    told = ends(begun(lambda: nothing)).error
    assert told.startswith("`search_fn` must build a tuner and call its `search`")


def test_a_chief_serves_a_search_and_tells_of_it(
    tmp_path: Any, monkeypatch: Any
) -> None:
    port = fleet._free_port("127.0.0.1")
    for variable, value in launched.environment("chief", "127.0.0.1", port).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def search() -> None:
        oracle = random_oracle(3)
        tuner = ScriptedTuner(oracle, nothing, directory=tmp_path, project_name="p")
        tuner.search(verbose=0)

    chief = begun(lambda: search, str(tmp_path))
    chief.hear("worker0", launched.LOADING, "process 7 on host")
    client = OracleClient(random_oracle(3))
    lines: list[str] = []
    while (trial := client.create_trial("worker0")).status == "RUNNING":
        news = chief.news()  # asked for all the time
        assert news.waiting == 1
        lines += news.lines
        client.update_trial(trial.trial_id, {"val_loss": 1.0})
        trial.status = "COMPLETED"
        client.end_trial(trial)
    chief.hear("worker0", launched.SEARCHED)
    news = ends(chief)
    assert (news.error, news.searching, news.trials) == ("", True, {"COMPLETED": 3})
    assert news.project_dir == str(tmp_path / "p")
    assert news.stages == {"worker0": launched.SEARCHED}
    lines += news.lines
    assert lines[0] == "worker0: process 7 on host"
    assert sum("COMPLETED, val_loss 1" in line for line in lines) >= 2, lines
    assert threading.active_count() < 50


def test_a_worker_tells_when_its_folder_is_not_that_of_the_chief(
    tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(launched, "_SEEN_WITHIN", 0.2)
    assert not launched._is_shared(str(tmp_path))
    (tmp_path / "oracle.json").touch()
    assert launched._is_shared(str(tmp_path))
    assert launched._is_shared("gs://bucket/p")
