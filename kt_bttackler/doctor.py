"""Say what is wrong with the directory of a search, and mend what can be mended.

Exit code 0: nothing is wrong, or, with --fix, nothing that the next start of the search
does not mend by itself; 1: something is; 2: there is no such project.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import kt_bttackler
from kt_bttackler import checkpoints, files, project
from kt_bttackler.cli import UsageError
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.locking import ProjectLock
from kt_bttackler.trace import read_trace

FINE, PROBLEMS = 0, 1


EPILOG = """\
examples:
  kt-bttackler doctor runs/cifar
  kt-bttackler doctor runs/cifar --fix
"""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        text: what, in one line.
        remedy: what mends it, in a few words; "" where nothing does it here.
        mend: mends it; `None` where nothing does it here.
        heals: the next start of the search mends it by itself.
    """

    text: str
    remedy: str = ""
    mend: Callable[[], object] | None = None
    heals: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kt-bttackler doctor`."""
    parser.add_argument(
        "directory",
        type=pathlib.Path,
        metavar="DIR",
        help="the project directory: that with the folders `trial_<id>`",
    )
    parser.add_argument(
        "--fix",
        action="store_true",
        help="mend what can be mended: files that cannot be read are set aside as "
        "*.corrupt, left-over temporary files and a stale lock are removed; the next "
        "start of the search does the rest. Nothing of yours is deleted",
    )


def run(options: argparse.Namespace) -> int:
    """Prints what is wrong; returns the exit code."""
    folder = options.directory
    if not folder.is_dir():
        raise UsageError(f"{folder} is no directory.")
    if not project.trial_folders(folder) and not (folder / project.ORACLE).exists():
        raise UsageError(
            f"{folder} is no project directory: it has neither {project.ORACLE} nor "
            "a `trial_<id>` folder."
        )
    print("\n".join(facts(folder)))
    lock = ProjectLock(folder)
    holder = lock.other()
    if holder is not None:
        print(f"in use by {holder}: what is half done may be in progress")
    problems = list(problems_of(folder))
    mended = left = 0
    for problem in problems:
        done = ""
        if options.fix and problem.mend is not None and holder is None:
            try:
                problem.mend()
                done, mended = "; mended", mended + 1
            except OSError as error:
                done, left = f"; not mended: {error}", left + 1
        elif not (options.fix and problem.heals):
            left += 1
        remedy = f" ({problem.remedy})" if problem.remedy and not done else ""
        print(f"- {problem.text}{remedy}{done}")
    if options.fix and holder is not None and problems:
        print("nothing was mended: the directory is in use")
    print(f"{len(problems)} problems, {mended} mended" if problems else "no problem")
    return PROBLEMS if left else FINE


def facts(folder: pathlib.Path) -> Iterator[str]:
    """What the directory holds, in a few lines.

    Args:
        folder: the project directory.
    """
    counts: dict[str, int] = {}
    stopped_bytes = stopped = 0
    for trial_folder in project.trial_folders(folder):
        try:
            status = project.read_trial(trial_folder / project.TRIAL)["status"]
        except (OSError, ValueError):
            status = "unreadable"
        counts[status] = counts.get(status, 0) + 1
        if status == "STOPPED" and (size := checkpoints.size(trial_folder)):
            stopped, stopped_bytes = stopped + 1, stopped_bytes + size
    listed = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    yield f"{folder}: {sum(counts.values())} trials ({listed or 'none'})"
    try:
        state = project.read_oracle(folder / project.ORACLE)
        writer = state.get("version")
        by = f"kt_bttackler {writer}" if writer else "KerasTuner, or an early version"
        yield f"written by {by}; this is {kt_bttackler.__version__}"
    except (OSError, ValueError):
        pass
    yield (
        f"checkpoints of stopped trials: {stopped}, {stopped_bytes / 2**20:.1f} MB "
        "(`keep_checkpoints=` of the tuner says how many are kept)"
    )


def problems_of(folder: pathlib.Path) -> Iterator[Problem]:
    """What is wrong with a project directory.

    Args:
        folder: the project directory.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / "trial_0").mkdir()
        >>> [problem.text for problem in problems_of(folder)]
        ['trial_0 has no trial.json', 'there is no oracle.json']
    """
    yield from _of_lock(folder)
    yield from _of_left_overs(folder)
    statuses: dict[str, str] = {}
    for trial_folder in project.trial_folders(folder):
        yield from _of_trial(trial_folder, statuses)
    yield from _of_oracle(folder, statuses)
    for path in sorted(folder.glob("*.json")):
        if path.name != project.ORACLE:
            yield from _unreadable(path, project.read_json)


def _of_lock(folder: pathlib.Path) -> Iterator[Problem]:
    lock = ProjectLock(folder)
    holder = lock.read()
    if holder is not None and lock.is_stale(holder):
        yield Problem(
            f"{lock.path.name} is that of {holder}, which runs no more",
            "the next search takes it over",
            lambda: lock.path.unlink(missing_ok=True),
        )


def _of_left_overs(folder: pathlib.Path) -> Iterator[Problem]:
    """Temporary files of processes that were killed while they wrote."""
    patterns = (
        ".*.json.*",
        ".*.jsonl.*",
        ".*.npz.*",
        f".{ProjectLock(folder).path.name}.*",
    )
    for pattern in patterns:
        for place in (folder, *project.trial_folders(folder)):
            for path in sorted(place.glob(pattern)):
                yield Problem(
                    f"{path.relative_to(folder)} was being written when its process "
                    "was killed; the file it was to replace is whole",
                    "--fix deletes it",
                    lambda path=path: path.unlink(missing_ok=True),  # type: ignore[misc]
                )


def _of_trial(folder: pathlib.Path, statuses: dict[str, str]) -> Iterator[Problem]:
    trial_id, path = project.trial_id_of(folder), folder / project.TRIAL
    status = None
    if not path.exists():
        yield Problem(
            f"{folder.name} has no {project.TRIAL}",
            "the next search runs it again, or counts it as failed",
            heals=True,
        )
    else:
        try:
            status = statuses[trial_id] = project.read_trial(path)["status"]
        except (OSError, ValueError):
            yield from _unreadable(path, project.read_trial)
    for trace_path in sorted(folder.glob("trace-*.jsonl")):
        yield from _of_trace(trace_path, status)
    for verdict_path in sorted(folder.glob("verdict-*.json")):
        yield from _unreadable(
            verdict_path, lambda path: Verdict.from_json(files.read_text(path))
        )


def _of_trace(path: pathlib.Path, status: str | None) -> Iterator[Problem]:
    try:
        trace = read_trace(path, columns=False)
    except (OSError, ValueError):
        yield from _unreadable(path, read_trace)
        return
    name = f"{path.parent.name}/{path.name}"
    if trace.end is None and status in ("COMPLETED", "STOPPED"):
        yield Problem(
            f"{name} has no end: the training was broken off after epoch {trace.epoch}"
        )


def _of_oracle(folder: pathlib.Path, statuses: dict[str, str]) -> Iterator[Problem]:
    path = folder / project.ORACLE
    again = "the next search runs it again"
    if not path.exists():
        yield Problem(
            f"there is no {project.ORACLE}",
            "the next search makes it anew of the trials",
            heals=True,
        )
        state = {}
    else:
        try:
            state = project.read_oracle(path)
        except (OSError, ValueError):
            yield from _unreadable(path, project.read_oracle)
            state = {}
    held = ProjectLock(folder).other() is not None
    for trial_id, status in statuses.items():
        if status == "RUNNING" and not held:
            yield Problem(
                f"trial {trial_id} was running when its process ended",
                again,
                heals=True,
            )
    for tuner_id, trial_id in state.get("ongoing_trials", {}).items():
        if statuses.get(trial_id) in project.ENDED:
            yield Problem(
                f"{project.ORACLE} has trial {trial_id} running on {tuner_id}, which "
                "has ended",
                "the next search leaves it as it is",
                heals=True,
            )
    for trial_id in state.get("start_order", ()):
        if not (folder / f"trial_{trial_id}").exists():
            yield Problem(
                f"the folder of trial {trial_id} is gone",
                "the next search counts it as failed",
                heals=True,
            )


def _unreadable(
    path: pathlib.Path, read: Callable[[pathlib.Path], object]
) -> Iterator[Problem]:
    try:
        read(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason.removeprefix(f"{path}: ")
        yield Problem(
            f"{path} cannot be read: {reason}",
            f"--fix renames it to *{project.CORRUPT}",
            lambda: project.set_aside(path),
        )
