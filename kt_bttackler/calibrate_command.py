"""Calibrate thresholds on recorded searches, and prove what they may cost."""

from __future__ import annotations

import argparse
import pathlib

from kt_bttackler import calibration, files, spared
from kt_bttackler.cli import UsageError, check_target
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.replay_command import (
    add_folders,
    add_json,
    add_scoring,
    diagnosis_named,
    plain,
    recorded,
)
from kt_bttackler.study import without_non_finite

EPILOG = """\
examples:
  kt-bttackler calibrate runs/cifar runs/rates --max-regret 0.10 --output mine.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kt-bttackler calibrate`."""
    add_folders(parser)
    parser.add_argument(
        "--max-regret",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="limit of the 95 %% upper bound of the share of the best 10 %% that may "
        "be stopped (default: %(default)s)",
    )
    parser.add_argument(
        "--diagnosis",
        default="balanced",
        metavar="PRESET|FILE.json",
        help="whose thresholds are tuned (default: %(default)s)",
    )
    parser.add_argument(
        "--adapt",
        action="store_true",
        help="DIR is the project of a search that ran with --diagnosis FILE.json and "
        "spared some trials (`amnesty`): loosen what wanted to stop good ones",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("calibrated.json"),
        metavar="FILE",
        help="where the diagnosis goes, for DiagnosisCallback (default: %(default)s)",
    )
    add_scoring(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Calibrates, prints what was found, and writes the diagnosis.

    Raises:
        UsageError: an option or a folder is wrong, or the limit cannot be proven.
    """
    check_target(options.json)
    check_target(options.output, "--output")
    base = diagnosis_named(options.diagnosis)
    try:
        found = _adapt(options, base) if options.adapt else _calibrate(options, base)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(found)
    files.write_atomically(options.output, found.diagnosis.to_json() + "\n")
    print(f"The diagnosis is in {options.output}")
    if options.json is not None:
        facts = plain(found) | {"diagnosis": files.loads(found.diagnosis.to_json())}
        files.write_atomically(
            options.json, files.dumps(without_non_finite(facts)) + "\n"
        )
    return 0


def _calibrate(options: argparse.Namespace, base: Diagnosis) -> calibration.Calibration:
    return calibration.calibrate(
        [recorded(folder) for folder in options.folders],
        max_regret=options.max_regret,
        diagnosis=base,
        score=options.score,
    )


def _adapt(options: argparse.Namespace, base: Diagnosis) -> spared.Adaptation:
    if len(options.folders) != 1:
        raise UsageError("--adapt needs one DIR, that of the search.")
    return spared.adapt(recorded(options.folders[0]), base, score=options.score)
