"""Every example runs, as a user runs it."""

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
}


def test_every_example_is_expected_to_print_something():
    assert [path.stem for path in EXAMPLES] == list(PRINTED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
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
