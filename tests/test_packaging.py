"""What is built and published: metadata, wheel, versions."""

from __future__ import annotations

import configparser
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
import yaml

import kt_bttackler

ROOT = pathlib.Path(__file__).parent.parent


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> list[str]:
    return [
        line for line in text.strip().splitlines() if line and not line.startswith("#")
    ]


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == kt_bttackler.__version__
    assert citation["license"] == setup()["metadata"]["license"]
    assert citation["references"][0]["doi"] == "10.1145/3637528.3671933"


def test_the_extra_all_holds_what_features_need() -> None:
    extras = setup()["options.extras_require"]
    own = ("all", "dev", "docs", "test")
    features = {
        r for name in extras if name not in own for r in requirements(extras[name])
    }
    assert set(requirements(extras["all"])) == features


def test_the_oldest_versions_are_those_that_are_required() -> None:
    lines = (ROOT / "tests" / "minimum_versions.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    options, extras = setup()["options"], setup()["options.extras_require"]
    required = requirements(options["install_requires"]) + requirements(extras["all"])
    floors = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in required)
    assert floors.pop("ray")  # its newest version goes with all of these
    assert floors.keys() == pinned.keys()
    for name, floor in floors.items():
        assert pinned[name].startswith(floor), name
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    (oldest,) = (line for line in page.splitlines() if line.startswith("| oldest"))
    names = "tensorflow keras keras-tuner numpy scipy scikit-learn tensorboard"
    cells = [cell.strip() for cell in oldest.strip("|").split("|")]
    assert cells[2:] == [pinned[name] for name in names.split()]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_wheel_holds_the_package_and_installs(tmp_path: pathlib.Path) -> None:
    # From the source archive, as those who package it do.
    run(sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT))
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "kt_bttackler").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith("LICENSE") for name in names)
    for field in ("Summary", "License", "Keywords", "Requires-Python", "Project-URL"):
        assert re.search(rf"^{field}[\w-]*: .", text, re.MULTILINE), field
    assert "Description-Content-Type: text/markdown" in text
    with tarfile.open(source) as archive:
        assert any(name.endswith("setup.cfg") for name in archive.getnames())

    target = tmp_path / "installed"
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--target", str(target))
    run(sys.executable, *pip, str(wheel))
    program = (
        "import kt_bttackler; print(kt_bttackler.__file__, kt_bttackler.__version__)"
    )
    where = run(sys.executable, "-c", program, cwd=target)
    assert where.split() == [
        str(target / "kt_bttackler" / "__init__.py"), kt_bttackler.__version__
    ]  # fmt: skip
    assert "usage: kt-bttackler" in run(
        sys.executable, "-m", "kt_bttackler", "--help", cwd=target
    )


def run(*command: str, cwd: pathlib.Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
