"""The report as files: HTML, Markdown, CSV, JSON, and a table for pandas."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import math
import pathlib
import re
import subprocess
import sys

import plotly.offline
import pytest
from projects import ERG, NMG, write_stopped, write_trace, write_trial

import kt_bttackler as ktb
from kt_bttackler import cli, colours, files, report_table, results
from kt_bttackler.diagnosis import Diagnosis, Verdict
from kt_bttackler.indicators import Finding
from kt_bttackler.report_markdown import as_markdown
from kt_bttackler.report_page import as_html

HOSTILE = (
    "<script>alert(1)</script>",
    "a|b",
    "`c`",
    "[x](javascript:alert(1))",
    "</script><img src=x onerror=alert(1)>",
    "%{x} & \"q\" 'r'",
    "line\nbreak",
)


@pytest.fixture
def project(tmp_path):
    """A finished, a stopped and a benign trial, and one that was spared."""
    folder = tmp_path / "digits"
    write_trace(
        write_trial(folder, "0", score=0.9, values={"lr": 0.1, "act": "relu"}),
        10,
        started=1000.0,
    )
    write_stopped(folder, "1", ERG, epochs=3, started=1020.0)
    write_stopped(folder, "2", NMG, epochs=7, started=1030.0)
    spared = write_trial(folder, "3", score=0.3, values={"lr": 5.0, "act": "tanh"})
    write_trace(spared, 10, started=1050.0)
    (spared / "verdict-0.json").write_text(ERG.to_json())
    return folder


PLOTLY = plotly.offline.get_plotlyjs()


class Page(html.parser.HTMLParser):
    """What a browser would see: elements with attributes, and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.scripts = [], [], []
        self._inside = None
        self.plotly = text.count(PLOTLY)
        self.feed(text.replace(PLOTLY, "/* plotly */"))  # for speed

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside is None:
            self.text.append(data)

    def count(self, tag):
        return sum(each == tag for each, _ in self.elements)

    @property
    def pictures(self):
        kinds = [dict(a).get("type") for t, a in self.elements if t == "script"]
        return [
            json.loads(script)
            for kind, script in zip(kinds, self.scripts, strict=True)
            if kind == "application/json"
        ]


def page_of(folder):
    return Page(as_html(results.study(folder)))


def drawn(page):
    """The parts of the page that have a heading."""
    return {a["id"] for tag, a in page.elements if tag == "h2"}


def test_the_page_has_a_part_for_each_question(project):
    page = page_of(project)
    assert drawn(page) == {
        *("causes", "time", "indicators", "hyperparameters"),
        *("savings", "best", "trials", "each"),
        "curves",
    }
    text = "".join(page.text)
    assert "Search digits" in text
    assert str(ERG) in text
    assert "0 of 1 trials that were run on in spite of a verdict" in text
    assert "conv2d_1" in text  # the layer of the finding
    # One section for each trial, and links to them.
    sections = [a["id"] for tag, a in page.elements if tag == "details"]
    assert sections == ["trial-0", "trial-1", "trial-2", "trial-3"]
    links = {a["href"] for tag, a in page.elements if tag == "a"}
    ids = {a["id"] for _, a in page.elements if "id" in a}
    assert {f"#{section}" for section in sections} <= links
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def test_the_page_needs_no_network_and_has_plotly_once(project):
    page = page_of(project)
    for tag, attributes in page.elements:
        assert "src" not in attributes
        assert tag not in ("link", "iframe", "object", "base")
    policy = next(
        a["content"]
        for tag, a in page.elements
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert page.plotly == 1
    assert len(page.pictures) > 5


def test_a_picture_is_what_was_recorded(project):
    pictures = page_of(project).pictures
    bars = next(p for p in pictures if p["layout"].get("barmode") == "overlay")
    by_cause = {t["name"]: t for t in bars["data"] if t["type"] == "bar"}
    assert set(by_cause) == {"not stopped", "ERG", "NMG"}
    assert by_cause["ERG"]["base"] == [20.0]
    assert by_cause["ERG"]["x"] == [8.0]
    assert by_cause["ERG"]["marker"]["color"] == colours.colour("ERG")


@pytest.mark.parametrize("kind", ["names", "values", "trials", "words"])
def test_names_from_the_search_are_only_ever_text(tmp_path, kind):
    finding = Finding("ERG", 3, 4e-5, 1e-3)
    verdict = Verdict(True, False, 3, "ERG", (finding,), "AnyFinding")
    expected = list(HOSTILE)
    for number, hostile in enumerate(HOSTILE):
        values = {"lr": 0.1 * number}
        if kind == "names":
            values = {hostile: number}
        elif kind == "values":
            values = {"act": hostile}
        folder = write_stopped(tmp_path, str(number), verdict, started=1000.0)
        state = json.loads((folder / "trial.json").read_text())
        state["hyperparameters"]["values"] = values
        if kind == "trials":
            state["trial_id"] = hostile
        if kind == "words":
            state["message"] = hostile
            expected = [text.splitlines()[-1] for text in HOSTILE]
            told = verdict.to_json().replace('"layer":null', '"layer":"<i>"')
            (folder / "verdict-0.json").write_text(told)
        (folder / "trial.json").write_text(json.dumps(state))
    study = results.study(tmp_path)
    for text in (as_html(study), results.Summary(study)._repr_html_()):
        page = Page(text)
        assert page.count("img") == 0
        assert page.count("i") == 0
        assert {t for t, _ in page.elements if t == "script"} <= {"script"}
        assert not [a for _, a in page.elements if "onerror" in a]
        assert not [a for _, a in page.elements if "script" in a.get("href", "")]
        shown = "".join(page.text)
        for hostile in expected:
            assert hostile in shown
    page = Page(as_html(study))
    assert page.count("script") == len(page.pictures) + 2
    # In a picture, too: plotly reads tags in its texts.
    assert "<script" not in json.dumps(page.pictures)
    assert "<img" not in json.dumps(page.pictures)

    markdown = as_markdown(study)
    cells = re.findall(r"(?<!\\)\|", markdown.splitlines()[-1])
    headings = re.findall(r"(?<!\\)\|", markdown.splitlines()[-1 - len(HOSTILE)])
    assert len(cells) == len(headings)
    assert not re.search(r"(?<!\\)[<`\[]", markdown)


def test_a_file_of_each_kind_says_the_same(project, tmp_path, capsys):
    targets = {k: tmp_path / f"report.{k}" for k in ("html", "markdown", "csv", "json")}
    options = [part for k, path in targets.items() for part in (f"--{k}", str(path))]
    assert cli.main(["report", str(project), *options]) == 0
    assert capsys.readouterr().out.count("written: ") == 4
    facts = files.loads(targets["json"].read_text())
    rows = list(csv.DictReader(io.StringIO(targets["csv"].read_text())))
    assert [row["trial"] for row in rows] == [t["id"] for t in facts["trials"]]
    assert [row["status"] for row in rows] == [t["status"] for t in facts["trials"]]
    assert [float(row["score"]) for row in rows] == [
        t["score"] for t in facts["trials"]
    ]
    assert rows[1]["cause"] == "ERG"
    assert rows[0]["hp/lr"] == "0.1"
    assert rows[3]["spared"] == "True"
    assert rows[1]["hp/lr"] == ""
    assert facts["project"] == "digits"
    markdown = targets["markdown"].read_text()
    for trial in facts["trials"]:
        assert f"| {trial['id']} | {trial['status'].lower()} |" in markdown
    assert targets["html"].read_text().startswith("<!doctype html>")


def test_without_a_file_the_text_is_printed(project, capsys):
    assert cli.main(["report", str(project)]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{results.Summary(results.study(project))}\n"
    assert "What stops cost: 0 of 1 trials" in printed


def test_mistakes_are_one_line(project, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    mistakes = [
        (["report"], "DIR"),
        (["report", str(tmp_path / "missing")], "no `trial_<id>` folder is in it"),
        (["report", str(tmp_path / "empty")], "no `trial_<id>` folder is in it"),
        (["report", str(project), "--html", str(tmp_path)], "cannot be written"),
        (["report", str(project), "--csv", str(tmp_path / "no" / "x")], "--csv"),
    ]
    for arguments, complaint in mistakes:
        try:
            code = cli.main(arguments)
        except SystemExit as stop:
            code = stop.code
        assert code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert complaint in error
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    assert cli.main(["report", str(project), "--html", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.endswith("pip install 'kt-bttackler[report]'\n")


def test_nothing_sound_is_exit_code_3(tmp_path, capsys):
    write_stopped(tmp_path, "0", ERG)
    assert cli.main(["report", str(tmp_path)]) == 3
    assert "ERG" in capsys.readouterr().out


def test_a_search_of_keras_tuner_alone_is_reported(tmp_path):
    for number, score in enumerate((0.5, 0.7, 0.6)):
        write_trial(tmp_path, str(number), score=score, values={"lr": 0.1 * number})
    started = {"0": "2026-01-01T10:00:00", "1": "never", "2": None}
    oracle = {"display": {"trial_start": started}}
    (tmp_path / "oracle.json").write_text(json.dumps(oracle))
    study = results.study(tmp_path)
    assert [trial.started is None for trial in study.trials] == [False, True, True]
    page = page_of(tmp_path)
    assert {"trials", "each", "hyperparameters"} <= drawn(page)
    assert not {"curves", "indicators", "savings"} & drawn(page)
    assert "3 of 3 trials were searched without" in "".join(page.text)
    assert "lr 0.1" in as_markdown(study)


def test_a_running_search_is_reported(project):
    running = write_trial(project, "4", status="RUNNING", score=None)
    write_trace(running, 2, end=None, started=1070.0)
    with open(running / "trace-0.jsonl", "a") as file:
        file.write('{"epoch": 3, "seco')  # in the midst of a line
    page = page_of(project)
    assert "1 running when this was written" in "".join(page.text)
    assert "2 of 10" in "".join(page.text)


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"trial_id": "9", "sta',
        "[]",
        "null",
        "[" * 100_000,
        '{"hyperparameters": [], "metrics": 3, "score": "x", "status": 7}',
        '{"metrics": {"metrics": {"loss": {"observations": [7]}}}}',
        '{"hyperparameters": {"values": [1]}, "trial_id": ["x"], "message": {}}',
    ],
)
def test_a_trial_that_cannot_be_read_is_shown_as_unknown(project, content, capsys):
    (project / "trial_1" / "trial.json").write_text(content)
    study = results.study(project)
    unknown = study.trials[1]
    assert (unknown.id, unknown.status, unknown.score) == ("1", "UNKNOWN", None)
    assert "unknown" in "".join(page_of(project).text)
    assert cli.main(["report", str(project)]) == 0
    assert "UNKNOWN" in capsys.readouterr().out


def test_a_dataframe_has_a_row_for_each_trial(project, monkeypatch):
    frame = ktb.trials_dataframe(project)
    headings, rows = report_table.table(results.study(project))
    assert list(frame.columns) == headings
    assert frame["trial"].tolist() == ["0", "1", "2", "3"]
    assert frame.groupby("cause").size().to_dict() == {"ERG": 1, "NMG": 1}
    assert frame["hp/lr"].tolist()[0] == rows[0][headings.index("hp/lr")]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'kt-bttackler\[report\]'"):
        ktb.trials_dataframe(project)


def test_a_summary_prints_in_a_terminal_and_shows_itself_in_a_notebook(
    project, capsys, monkeypatch
):
    shown = ktb.summary(project)
    assert capsys.readouterr().out == f"{shown}\n"
    assert repr(shown) == "<Summary of 4 trials>"

    class Notebook:
        kernel = None

        @classmethod
        def get_ipython(cls):
            return cls

    monkeypatch.setitem(sys.modules, "IPython", Notebook)
    table = ktb.summary(project)._repr_html_()
    assert capsys.readouterr().out == ""
    page = Page(table)
    assert page.count("script") == 0
    assert page.count("table") == 2
    assert "ERG" in "".join(page.text)


def test_what_judged_a_trial_decides_which_indicators_are_shown(project):
    judge = (
        Diagnosis()
        .without("LAR", "NMG")
        .replace("PLC", threshold=0.5, progress_guard=math.inf)
    )
    for trial in project.glob("trial_*"):
        (trial / "diagnosis-0.json").write_text(judge.to_json())
    pictures = page_of(project).pictures
    shown = next(p for p in pictures if p["layout"]["xaxis"].get("nticks") == 40)
    rows = shown["data"][0]["y"]
    assert rows == ["AGV", "EAG", "ERG", "PLC", "ULC", "NMG"]  # NMG was found
    # The loss of the project never changes: value 0 against 0.5.
    assert "positive below 0.5" in json.dumps(shown["data"][0]["hovertext"][3])


def test_two_hundred_trials_stay_a_small_page(tmp_path):
    for number in range(200):
        values = {"lr": 0.1 * number, "act": "relu"}
        folder = write_trial(tmp_path, f"{number:03d}", values=values)
        write_trace(folder, 10, started=1000.0 + 20 * number)
    text = as_html(results.study(tmp_path))
    pictures = Page(text).pictures
    assert sum(len(json.dumps(picture)) for picture in pictures) < 3_000_000
    assert len(text) < 9_000_000


def test_the_report_needs_no_tensorflow():
    program = (
        "import sys\n"
        "from kt_bttackler import report_command, report_html, report_markdown\n"
        "from kt_bttackler import report_page, summaries\n"
        "sys.exit(bool({'tensorflow', 'keras', 'keras_tuner'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=100).returncode == 0


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_can_be_told_from_light_and_from_dark_paper():
    from kt_bttackler.catalog import known_indicators

    style = pathlib.Path(colours.__file__).with_name("report_page.css").read_text()
    for paper in colours.PAPERS:
        assert f"--paper: {paper}" in style
        for cause in [None, *known_indicators(), "MINE"]:
            one, other = sorted([luminance(colours.colour(cause)), luminance(paper)])
            assert (other + 0.05) / (one + 0.05) >= 3, (cause, paper)
    seven = list(known_indicators())[:7]
    assert len({colours.colour(cause) for cause in seven}) == 7
    assert len({colours.mark(cause) for cause in seven}) == 7
