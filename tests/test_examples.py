"""Every example runs, as a user runs it."""

import json
import pathlib
import subprocess
import sys

import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parents[1] / "examples").glob("[0-9]*.py"))
PRINTED = {
    "01_diagnose_one_fit": [
        "zeros: 2 of 10 epochs",
        "ERG at epoch 2",
        "nothing was found",
    ],
    "02_search_with_diagnosis": ["STOPPED", "Best: trial"],
    "03_write_an_indicator": ["VLB at epoch "],
    "04_learn_an_indicator": ["area under the ROC curve", "LEARNED at epoch 3"],
    "05_record_and_replay": [
        "of the best 10 % stopped",
        "(A/A)",
        "1 top trials stand behind the bound",
    ],
    "06_record_a_study": ["digits trial 2: val_accuracy", "trials ended"],
    "07_search_on_ray": ["'worker1': 'finished'", "Best: trial"],
    "08_stage_tree": ["merge rate", "108 epochs were trained, 108 were planned"],
}
# Ray and three processes that load TensorFlow.
SLOW = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_every_example_is_expected_to_print_something():
    assert [path.stem for path in EXAMPLES] == list(PRINTED)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=SLOW if "ray" in path.stem else (), id=path.stem)
        for path in EXAMPLES
    ],
)
def test_example_runs(path, tmp_path):
    done = subprocess.run(
        [sys.executable, str(path), "--smoke"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for text in PRINTED[path.stem]:
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "command",
    [
        "arms.py --trials 2 --epochs 2 --rows 100",
        "overhead.py --smoke --models tabular",
        "oracles.py --smoke",
        "replay.py --smoke",
        "studies.py --smoke",
        "tabular.py --smoke",
        "stages.py --smoke",
        "scale.py --smoke",
    ],
)
def test_benchmark_runs(command, tmp_path):
    script, *options = command.split()
    path = EXAMPLES[0].parent / "benchmarks" / script
    done = subprocess.run(
        [sys.executable, str(path), "--json", "results.json", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {"settings", "versions"} <= set(
        json.loads((tmp_path / "results.json").read_text())
    )
