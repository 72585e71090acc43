from __future__ import annotations

import argparse
import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import kt_bttackler
from kt_bttackler import cli, demo, demo_data, files
from kt_bttackler.cli import UsageError

TINY = ["--trials", "3", "--epochs", "2", "--rows", "100"]
IMAGES = {
    "x_train": np.arange(40 * 8 * 8 * 3, dtype="uint8").reshape(40, 8, 8, 3),
    "y_train": np.arange(40) % 4,
    "x_test": np.zeros((8, 8, 8, 3), "uint8"),
    "y_test": np.arange(8) % 4,
}


def in_fresh_process(folder, *commands):
    """Exit codes and output of several `kt-bttackler` commands, in one process."""
    program = (
        "import json, sys\n"
        "from kt_bttackler.cli import main\n"
        "codes = []\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        codes.append(main(arguments))\n"
        "    except SystemExit as stop:\n"
        "        codes.append(stop.code)\n"
        "print(json.dumps([codes, 'tensorflow' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
    )
    *printed, result = done.stdout.splitlines()
    codes, loaded = json.loads(result)
    return codes, loaded, printed, done.stderr.splitlines()


def npz(path, **changes):
    arrays = {k: v for k, v in (IMAGES | changes).items() if v is not None}
    np.savez(path, **arrays)
    return path


def test_mistakes_are_one_line_and_exit_code_2_without_tensorflow(tmp_path):
    (tmp_path / "file").write_text("not an array")
    np.save(tmp_path / "one.npy", np.zeros(3))
    npz(tmp_path / "short.npz", y_test=None)
    mistakes = [
        [],
        ["tune"],
        ["demo", "--tuner", "psychic"],
        ["demo", "--trials", "0"],
        ["demo", "--epochs", "ten"],
        ["demo", "--rows", "-1"],
        ["demo", "--seed", "-1"],
        ["demo", "--unknown"],
        ["demo", "--data", "missing.npz"],
        ["demo", "--data", "file"],
        ["demo", "--data", "one.npy"],
        ["demo", "--data", "short.npz"],
        ["demo", "--data", "."],
        ["demo", "--directory", "file"],
        ["demo", "--directory", "file/below"],
        ["demo", "--json", "missing/facts.json"],
        ["demo", "--json", "."],
    ]
    codes, loaded, printed, errors = in_fresh_process(tmp_path, *mistakes)
    assert codes == [2] * len(mistakes)
    assert not loaded
    assert printed == []
    assert len(errors) == len(mistakes)
    assert all(line.startswith("kt-bttackler") for line in errors)
    assert "must be a whole number of at least 1, got 0" in errors[3]
    assert errors[8].endswith("missing.npz cannot be read: No such file or directory.")


def test_a_tuner_that_is_not_installed_is_told_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for tuner, library in (("tpe", "optuna"), ("smac", "smac")):
        assert cli.main(["demo", "--tuner", tuner]) == 2
        complaint = capsys.readouterr().err
        assert f"--tuner {tuner} needs {library}: pip install" in complaint
        assert complaint.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_version_and_help_say_so(capsys):
    for option, expected in (("--version", kt_bttackler.__version__), ("-h", "demo")):
        with pytest.raises(SystemExit) as stop:
            cli.main([option])
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, _, _ in cli.COMMANDS])
def test_the_help_of_every_command_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"\n  kt-bttackler {name}" in capsys.readouterr().out


def test_help_is_fast_and_tells_the_exit_codes(tmp_path):
    codes, loaded, printed, errors = in_fresh_process(tmp_path, ["--help"])
    assert (codes, loaded, errors) == ([0], False, [])
    for name, _, about in cli.COMMANDS:
        assert any(line.strip().startswith(name) for line in printed), about
    assert any(line.startswith("  130 ") for line in printed)


def test_notes_while_loading_are_hidden_unless_loading_fails():
    program = (
        "import os\n"
        "from kt_bttackler.cli import quiet_loading\n"
        "with quiet_loading():\n"
        "    os.write(2, b'first ')\n"
        "os.write(2, b'second ')\n"
        "try:\n"
        "    with quiet_loading():\n"
        "        os.write(2, b'third ')\n"
        "        raise ImportError\n"
        "except ImportError:\n"
        "    os.write(2, b'fourth')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == "second third fourth"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"x_train": np.zeros((40, 8))}, r"rows of x_train are \[8\], those of x_test"),
        ({"x_train": np.zeros(40)}, r"x_train must be numbers.*got float64 \[40\]"),
        ({"x_train": np.full((40, 8, 8, 3), "a")}, "x_train must be numbers"),
        ({"x_train": np.full((40, 8, 8, 3), np.nan)}, "x_train contains values"),
        ({"x_test": np.zeros((0, 8, 8, 3))}, "x_test must be numbers"),
        ({"y_train": np.arange(39)}, "y_train must be 40 integer labels"),
        ({"y_test": np.zeros(8)}, "y_test must be 8 integer labels, got float64"),
        ({"y_test": np.array([None] * 8)}, "is not an .npz file of plain arrays"),
        ({"y_train": None, "x_test": None}, "no array named y_train, x_test"),
    ],
)
def test_data_of_the_wrong_kind_is_refused_by_name(tmp_path, changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        demo_data.load(npz(tmp_path / "data.npz", **changes))


@pytest.mark.parametrize(
    ("shape", "becomes"), [((5,), (5,)), ((6, 6), (6, 6, 1)), ((6, 6, 3), (6, 6, 3))]
)
def test_features_and_images_of_any_kind_become_standardised_inputs(
    tmp_path, shape, becomes
):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (40, *shape), dtype="uint8")
    path = npz(tmp_path / "data.npz", x_train=x, x_test=x[:8])
    data = demo_data.load(path)
    assert data.x_train.shape == (40, *becomes)
    assert data.x_train.dtype == np.float32
    assert abs(data.x_train.mean()) < 1e-3
    assert abs(data.x_train.std() - 1) < 1e-3
    assert data.classes == 4


def test_labels_may_be_any_integers_in_a_column(tmp_path):
    path = npz(
        tmp_path / "data.npz",
        y_train=np.array([[-7], [30]] * 20),
        y_test=np.array([30, 99] * 4, dtype="uint8"),
    )
    data = demo_data.load(path)
    assert data.classes == 3
    assert data.y_train.tolist() == [0, 1] * 20
    assert data.y_test.tolist() == [1, 2] * 4


def test_every_search_gets_a_folder_of_its_own(tmp_path):
    made = [demo.new_project(tmp_path / "runs", "random") for _ in range(2)]
    assert [project.name for project in made] == ["random-01", "random-02"]
    assert demo.new_project(tmp_path / "runs", "grid").name == "grid-01"


def test_options_have_defaults_that_need_no_thought():
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    options = parser.parse_args([])
    assert (options.tuner, options.epochs, options.seed) == ("random", 10, 0)
    assert options.directory == pathlib.Path("kt_bttackler_demo")


def test_the_demo_gives_the_same_facts_to_people_and_programs(tmp_path):
    commands = [
        ["demo", *TINY, "--json", "a.json"],
        ["demo", *TINY, "--json", "b.json", "--no-diagnosis"],
    ]
    codes, _, printed, errors = in_fresh_process(tmp_path, *commands)
    assert codes == [0, 0]
    assert errors == []
    diagnosed, recorded = (
        files.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json")
    )
    assert [trial["id"] for trial in diagnosed["trials"]] == ["0", "1", "2"]
    for trial in (*diagnosed["trials"], *recorded["trials"]):
        assert trial["status"] in ("COMPLETED", "STOPPED")
        assert 1 <= trial["epochs_run"] <= trial["epochs_planned"] == 2
        assert trial["seconds"] > 0
        row = f"{trial['epochs_run']} of {trial['epochs_planned']}"
        assert any(
            line.split()[:1] == [trial["id"]] and row in line for line in printed
        )
    assert diagnosed["search"] == recorded["search"] | {"diagnosis": True}
    assert recorded["totals"]["stopped"] == recorded["totals"]["epochs_saved"] == 0
    # The arms differ in nothing but the diagnosis.
    for one, other in zip(diagnosed["trials"], recorded["trials"], strict=True):
        assert one["hyperparameters"] == other["hyperparameters"]
        if one["status"] == other["status"]:
            assert one["score"] == other["score"]
    logs = pathlib.Path("kt_bttackler_demo", "random-01", "tensorboard")
    assert f"TensorBoard: tensorboard --logdir {logs}" in printed
    runs = {path.name for path in (tmp_path / logs / "0" / "execution0").iterdir()}
    assert {"train", "validation", "diagnosis"} <= runs


def test_every_tuner_searches_features_and_images(tmp_path):
    npz(tmp_path / "images.npz")
    commands = [
        ["demo", *TINY, "--tuner", tuner, "--json", f"{tuner}.json"]
        for tuner in ("grid", "bayesian", "tpe", "smac", "hyperband")
    ]
    commands[0] += ["--data", "images.npz", "--directory", "other"]
    codes, _, _, errors = in_fresh_process(tmp_path, *commands)
    assert codes == [0] * len(commands)
    assert errors == []
    expected = {"grid": 3, "bayesian": 3, "tpe": 3, "smac": 3}
    # The whole schedule of Hyperband with two epochs is two trials.
    for tuner, trials in (expected | {"hyperband": 2}).items():
        facts = files.loads((tmp_path / f"{tuner}.json").read_text())
        assert facts["search"]["tuner"] == tuner
        assert len(facts["trials"]) == trials
    assert (tmp_path / "other" / "grid-01" / "trial_0").is_dir()


def test_an_interrupted_demo_shows_what_it_has_and_exits_with_130(tmp_path):
    command = [sys.executable, "-m", "kt_bttackler", "demo", "--epochs", "3"]
    running = subprocess.Popen(
        [*command, "--trials", "999", "--json", "facts.json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for line in running.stdout:
            if line.startswith("trial 001 (2 of 999)"):
                running.send_signal(signal.SIGINT)
                break
        printed, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130, errors
    assert "Interrupted; the trials so far:" in printed
    assert "1 completed, 1 running" in printed or "1 running, 1 stopped" in printed
    facts = files.loads((tmp_path / "facts.json").read_text())
    assert facts["totals"]["trials"] == 2
