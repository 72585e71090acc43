import pathlib
import re
import runpy

import pytest

from kt_bttackler.catalog import FURTHER, SEVEN
from kt_bttackler.presets import PRESETS
from kt_bttackler.rules import Rule

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "indicators.md").read_text(encoding="utf-8")
IDS = [cls.id for cls in (*SEVEN, *FURTHER)]


def rows(heading):
    """First cells of the table that follows a line."""
    table = PAGE.split(heading, 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| ([\w`]+)", table, re.MULTILINE)


def subclasses(base):
    return [c for each in base.__subclasses__() for c in (each, *subclasses(each))]


def test_the_script_draws_the_pictures_that_are_there(tmp_path):
    draw = runpy.run_path(str(DOCS / "pictures.py"))["main"]
    draw(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (DOCS / "pictures").iterdir()}
    assert sorted(drawn) == sorted(kept)
    for name, text in drawn.items():
        assert text == kept[name], name


@pytest.mark.parametrize("indicator_id", IDS)
def test_every_indicator_has_a_section_with_a_picture(indicator_id):
    section = PAGE.split(f"\n### {indicator_id}\n", 1)[1].split("\n#", 1)[0]
    for word in ("**Sees**", "**Fires**", "**Try**"):
        assert section.count(word) == 1
    assert f"](pictures/{indicator_id.lower()}.svg)" in section


def test_every_indicator_and_rule_is_held_against_the_criteria():
    assert rows("| indicator | not code") == IDS
    own = [c for c in subclasses(Rule) if c.__module__.startswith("kt_bttackler")]
    abstract = {"_Several", "PeerRule"}
    assert {c.__name__ for c in own} - abstract <= set(rows("| rule | not code"))


def test_every_preset_is_explained():
    named = {cell.strip("`") for cell in rows("| preset | what it holds")}
    assert named == set(PRESETS)


def test_stops_and_warnings_are_what_the_page_says():
    for cls in FURTHER:
        section = PAGE.split(f"\n### {cls.id}\n", 1)[1].split("\n#", 1)[0]
        fires = section.split("**Fires**")[1].split("**Try**")[0]
        never = cls.stopping == "never"
        assert ("top" not in fires) == never, cls.id
