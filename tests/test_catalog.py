"""Indicators by id: of the package, of the user, of installed packages."""

import subprocess
import sys
import textwrap

import pytest

import kt_bttackler as ktb
from kt_bttackler.catalog import FURTHER, SEVEN, known_indicators

INDICATOR = """
import dataclasses
import kt_bttackler as ktb

@dataclasses.dataclass(frozen=True, kw_only=True)
class Elsewhere(ktb.QualityIndicator):
    id = "ELSEWHERE"
    needs = frozenset({"loss"})
    quantity = "training loss"
    advice = "try again"
    threshold: float = 3.0

    def measure(self, trace):
        return trace.scalar("loss")[-1]
"""
ENTRIES = """
[kt_bttackler.indicators]
ELSEWHERE = offered_indicators:Elsewhere
MISSING = offered_indicators:Missing
BROKEN = broken_indicators:Whatever
NUMBER = offered_indicators:dataclasses
"""
METADATA = "Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n"


@pytest.fixture
def package(tmp_path):
    """A folder with an installed package that offers indicators, good and bad."""
    (tmp_path / "offered_indicators.py").write_text(INDICATOR)
    (tmp_path / "broken_indicators.py").write_text("raise RuntimeError('no luck')")
    info = tmp_path / "offered-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRIES)
    return tmp_path


def run(package, code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": str(package), "PATH": ""},
        cwd=package,
        capture_output=True,
        text=True,
    )


def test_indicators_of_installed_packages_are_used_by_name(package):
    done = run(
        package,
        """
        import kt_bttackler as ktb
        from kt_bttackler.trace import Header, Record, Trace
        diagnosis = ktb.Diagnosis(["AGV", "ELSEWHERE"])
        print(diagnosis(Trace(Header(), [Record(1, 1.0, {"loss": 4.0})])))
        print(ktb.Diagnosis.from_json(diagnosis.to_json()) == diagnosis)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "ELSEWHERE at epoch 1: training loss 4 > 3" in done.stdout
    assert done.stdout.endswith("True\n")


def test_one_that_cannot_be_had_costs_a_warning_that_names_it(package):
    done = run(package, "import kt_bttackler as ktb; ktb.Diagnosis(['AGV'])")
    assert done.returncode == 0, done.stderr
    for name, reason in (
        ("MISSING", "AttributeError"),
        ("BROKEN", "RuntimeError: no luck"),
        ("NUMBER", "TypeError"),
    ):
        (line,) = [x for x in done.stderr.splitlines() if f"indicator {name} of" in x]
        assert reason in line
    assert "ELSEWHERE" not in done.stderr


def test_an_id_is_the_indicator_with_its_default_thresholds():
    by_id = ktb.Diagnosis([cls.id for cls in (*SEVEN, *FURTHER)])
    assert by_id.indicators == tuple(cls() for cls in (*SEVEN, *FURTHER))


@pytest.mark.parametrize("unknown", ["XYZ", "MSR", ""])
def test_an_unknown_id_is_refused(unknown):
    with pytest.raises(ValueError, match=r"`indicators` must be among \['AGV', 'EAG'"):
        ktb.Diagnosis(["AGV", unknown])


def test_every_indicator_is_public():
    for cls in known_indicators().values():
        if cls.__module__.startswith("kt_bttackler.") and "upstream" not in (
            cls.__module__
        ):
            assert getattr(ktb, cls.__name__) is cls
