"""Replay recorded searches: what would these diagnoses have saved and cost?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kt_bttackler import comparison, comparison_text, files
from kt_bttackler.cli import UsageError, at_least, check_target
from kt_bttackler.comparison import Comparison
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.measures import KillRegret
from kt_bttackler.presets import PRESETS
from kt_bttackler.recording import Recording
from kt_bttackler.study import without_non_finite
from kt_bttackler.trace import TraceStore

CARD = "card.json"


EPILOG = """\
examples:
  kt-bttackler replay runs/cifar
  kt-bttackler replay runs/* --diagnosis conservative --diagnosis mine.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kt-bttackler replay`."""
    add_folders(parser)
    parser.add_argument(
        "--diagnosis",
        action="append",
        metavar="PRESET|FILE.json",
        help="a preset or a file; may be given several times (default: all presets)",
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=1, help="trials at a time (default: 1)"
    )
    parser.add_argument(
        "--budget",
        metavar="SECONDS|SHARE%",
        help="of a simulated search: seconds, or a share such as 50%% of what the "
        "recorded trainings took per worker (default: 100%%)",
    )
    parser.add_argument(
        "--orders",
        type=at_least(0),
        default=100,
        help="simulated searches per diagnosis; 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of the orders (default: 0)"
    )
    add_scoring(parser)
    parser.add_argument(
        "--trivial",
        type=float,
        metavar="SCORE",
        help="what a trivial predictor scores, for the ceiling (default: "
        f"`trivial_score` of {CARD} in the folder)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Replays each folder and prints its table, then the regret of all together.

    Raises:
        UsageError: an option or a folder is wrong.
    """
    check_target(options.json)
    diagnoses = _diagnoses(options.diagnosis or PRESETS)
    budget = _budget(options.budget)
    found: list[Comparison] = []
    for folder in options.folders:
        recording = recorded(folder)
        trivial = options.trivial
        if trivial is None:
            trivial = _card(folder).get("trivial_score")
        each = comparison.compare(
            recording,
            diagnoses,
            workers=options.workers,
            budget=budget(recording.completed().seconds / options.workers),
            orders=options.orders,
            seed=options.seed,
            score=options.score,
            trivial=None if trivial is None else float(trivial),
        )
        print(f"{comparison_text.as_text(each)}\n", flush=True)
        found.append(each)
    if len(found) > 1:
        print(comparison_text.pooled_text(found))
    if options.json is not None:
        files.write_atomically(options.json, _facts(found, diagnoses))
    return 0


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Declares the folders of recorded searches."""
    parser.add_argument(
        "folders",
        nargs="+",
        type=pathlib.Path,
        metavar="DIR",
        help="a folder with traces of one search; several are several tasks",
    )


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Declares how trials are scored."""
    parser.add_argument(
        "--score",
        choices=("live", "last"),
        default="live",
        help="live: best epoch, last epoch of a harmful stop; last: last epoch of all "
        "(default: %(default)s)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declares the file for programs."""
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        metavar="FILE",
        help="write the results for a program",
    )


def recorded(folder: pathlib.Path) -> Recording:
    """Reads the recorded search of a folder.

    Raises:
        UsageError: there is none.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.")
    try:
        recording = Recording(TraceStore(folder), folder.name or str(folder))
    except ValueError as error:
        raise UsageError(f"{folder}: {error}") from error
    if not len(recording):
        raise UsageError(f"{folder} holds no trace with an epoch.")
    return recording


def diagnosis_named(name: str) -> Diagnosis:
    """A preset, or the diagnosis in a JSON file.

    Raises:
        UsageError: it is neither.
    """
    try:
        return Diagnosis.load(name) if name.endswith(".json") else Diagnosis(name)
    except ValueError as error:
        raise UsageError(f"--diagnosis {name}: {error}") from error


def _diagnoses(names: Sequence[str]) -> dict[str, Diagnosis]:
    return {
        pathlib.Path(name).stem if name.endswith(".json") else name: diagnosis_named(
            name
        )
        for name in names
    }


def _budget(text: str | None) -> Callable[[float], float]:
    """How the budget follows from the seconds that were recorded per worker."""
    number, is_share = (text or "100%").removesuffix("%"), (text or "100%")[-1:] == "%"
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"--budget must be seconds or a share such as 50%, got {text}")
    return lambda seconds: value / 100 * seconds or value if is_share else value


def _card(folder: pathlib.Path) -> Mapping[str, Any]:
    path = folder / CARD
    if not path.exists():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return card if isinstance(card, dict) else {}


def _facts(found: Sequence[Comparison], diagnoses: Mapping[str, Diagnosis]) -> str:
    facts: dict[str, Any] = {
        "tasks": [plain(each) for each in found],
        "pooled": {
            name: [plain(regret) for regret in comparison.pooled_regret(found, name)]
            for name in diagnoses
        },
        "diagnoses": {n: files.loads(d.to_json()) for n, d in diagnoses.items()},
    }
    return files.dumps(without_non_finite(facts)) + "\n"


def plain(item: Any) -> Any:
    """Dataclasses as dictionaries; a kill-regret with its rate and bound."""
    if isinstance(item, KillRegret):
        return dataclasses.asdict(item) | {"rate": item.rate, "upper": item.upper}
    if dataclasses.is_dataclass(item):
        names = [field.name for field in dataclasses.fields(item)]
        return {name: plain(getattr(item, name)) for name in names}
    if isinstance(item, tuple | list):
        return [plain(part) for part in item]
    if isinstance(item, Mapping):
        return {str(key): plain(part) for key, part in item.items()}
    return item
