"""Show what a search has come to: as text, or as a file for a browser or a program.

Examples:
  kt-bttackler report runs/cifar
  kt-bttackler report runs/cifar --html report.html

DIR is the project folder of any KerasTuner search, one that is running included; of
trials without a diagnosis the score and the configuration are shown.
"""

from __future__ import annotations

import argparse
import pathlib

from kt_bttackler import files, results
from kt_bttackler.cli import UsageError, check_target
from kt_bttackler.extras import required
from kt_bttackler.regions import regions
from kt_bttackler.report import as_text
from kt_bttackler.study import Study

# No trial has a score to go by.
NOTHING_SOUND = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kt-bttackler report`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "exit codes: 0, 2 for a mistake, 3 when no trial has ended with a score"
    )
    parser.add_argument(
        "directory",
        type=pathlib.Path,
        metavar="DIR",
        help="project folder of the search, with its `trial_<id>` folders",
    )
    for option, about in (
        ("--html", "one page with pictures, that needs no network"),
        ("--markdown", "tables, for an issue or a wiki"),
        ("--csv", "one row for each trial"),
        ("--json", "everything, for a program"),
    ):
        parser.add_argument(option, type=pathlib.Path, metavar="FILE", help=about)


def run(options: argparse.Namespace) -> int:
    """Writes the files that are asked for, or prints the text.

    Returns:
        The exit code: 0, or 3 when no trial has ended with a score.

    Raises:
        UsageError: the folder is no project, or a file cannot be written.
    """
    try:
        study = results.study(options.directory)
    except ValueError as error:
        raise UsageError(str(error)) from error
    makers = {
        "html": _as_html,
        "markdown": _as_markdown,
        "csv": _as_csv,
        "json": _as_json,
    }
    asked = {name: getattr(options, name) for name in makers if getattr(options, name)}
    for name, path in asked.items():
        _write(path, makers[name](study), f"--{name}")
    if not asked:
        print(as_text(study))
    return 0 if study.ranked() or _scored(study) else NOTHING_SOUND


def _scored(study: Study) -> bool:
    """Whether a trial of a search whose direction is unknown has a score."""
    return study.direction is None and any(
        trial.score is not None for trial in study.trials
    )


def _write(path: pathlib.Path, text: str, option: str) -> None:
    check_target(path, option)
    try:
        files.write_atomically(path, text)
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}.") from (
            error
        )
    print(f"written: {path}")


def _as_html(study: Study) -> str:
    try:
        required("plotly.graph_objects", "--html", extra="report")
    except ImportError as error:
        raise UsageError(str(error)) from error
    from kt_bttackler.report_page import as_html

    return as_html(study)


def _as_markdown(study: Study) -> str:
    from kt_bttackler.report_markdown import as_markdown

    return as_markdown(study)


def _as_csv(study: Study) -> str:
    from kt_bttackler.report_table import as_csv

    return as_csv(study)


def _as_json(study: Study) -> str:
    found = {"regions": [str(region) for region in regions(study.trials)]}
    return files.dumps({"project": study.name} | study.to_dict() | found) + "\n"
