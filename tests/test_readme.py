from __future__ import annotations

import pathlib
import re

import pytest

import kt_bttackler as ktb

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASH = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_two_commands_set_up_everything_and_run_demo_and_tests():
    assert [block.count("\n") for block in BASH[:2]] == [1, 1]
    assert all(block.startswith("python3 -m venv .venv && ") for block in BASH[:2])
    assert BASH[0].strip().endswith(".venv/bin/kt-bttackler demo")
    assert BASH[1].strip().endswith(".venv/bin/pytest")


def test_every_name_that_the_readme_uses_exists():
    names = set(re.findall(r"\bktb\.(\w+)", README))
    assert "DiagnosisCallback" in names
    for name in names:
        assert getattr(ktb, name)


def test_every_python_block_is_python():
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!https?:)[^)]+)\)", README))
def test_every_linked_file_exists(path):
    assert (ROOT / path).is_file()
