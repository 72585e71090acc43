"""The files of a project directory: their names, and how they are read with care.

Whoever can write in the directory may have written anything, and a process that was
killed may have left anything. So what is read is bounded in size, is nothing but JSON,
and is checked before it is used; a file that fails is set aside, not deleted.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from kt_bttackler import files

ORACLE, TRIAL = "oracle.json", "trial.json"
CORRUPT = ".corrupt"
ENDED = ("COMPLETED", "STOPPED", "FAILED")
STATUSES = (*ENDED, "RUNNING", "IDLE", "INVALID")
# What KerasTuner's own `Oracle` keeps; every oracle adds to it.
ORACLE_KEYS: Mapping[str, type] = {
    "ongoing_trials": dict,
    "hyperparameters": dict,
    "start_order": list,
    "end_order": list,
    "run_times": dict,
    "retry_queue": list,
    "seed_state": int,
    "tried_so_far": list,
    "id_to_hash": dict,
    "display": dict,
}
# What KerasTuner's `Trial` keeps.
_TRIAL_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "trial_id": str,
    "hyperparameters": dict,
    "metrics": dict,
    "score": (int, float, type(None)),
    "best_step": (int, float, type(None)),
    "status": str,
    "message": (str, type(None)),
}
# An oracle of 10,000 trials keeps 2 MB.
_MOST_BYTES = 64 * 2**20


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON object that KerasTuner wrote; it may contain NaN and Infinity.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than any of ours, or no JSON object.

    Example:
        >>> path = getfixture("tmp_path") / "tuner0.json"
        >>> _ = path.write_text('{"score": NaN')
        >>> read_json(path)
        Traceback (most recent call last):
        ...
        ValueError: it is no JSON: Expecting ',' delimiter: line 1 column 14 (char 13)
    """
    try:
        content = json.loads(files.read_text(path, _MOST_BYTES))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, not an object")
    return content


def read_trial(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the `trial.json` of a trial.

    Args:
        path: the file, in the folder `trial_<id>`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no state of that trial.
    """
    state = read_json(path)
    _check_types(state, _TRIAL_KEYS)
    expected = trial_id_of(pathlib.Path(path).parent)
    if state["trial_id"] != expected:
        raise ValueError(f"it is of trial {state['trial_id']!r}, not {expected!r}")
    if state["status"] not in STATUSES:
        raise ValueError(f"its status is {state['status']!r}")
    _check_types(state["hyperparameters"], {"space": list, "values": dict})
    _check_types(state["metrics"], {"metrics": dict})
    for name, history in state["metrics"]["metrics"].items():
        if not _is_history(history):
            raise ValueError(f"its metric {name!r} has no list of observations")
    return state


def read_oracle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads an `oracle.json`.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no state of an oracle.
    """
    state = read_json(path)
    _check_types({"schema": 0, **state}, {**ORACLE_KEYS, "schema": int})
    _check_types(state["hyperparameters"], {"space": list, "values": dict})
    named = [*state["start_order"], *state["end_order"], *state["retry_queue"]]
    for trial_id in (*named, *state["ongoing_trials"].values()):
        if not is_trial_id(trial_id):
            raise ValueError(f"it names a trial {trial_id!r}")
    return state


def is_trial_id(trial_id: object) -> bool:
    """Whether `trial_<id>` is the name of a folder, and of none elsewhere."""
    return (
        isinstance(trial_id, str)
        and 0 < len(trial_id) <= 200
        and trial_id.isprintable()
        and not set(trial_id) & set('/\\:*?"<>|')
    )


def trial_id_of(folder: pathlib.Path) -> str:
    """Id of the trial whose folder this is."""
    return folder.name.removeprefix("trial_")


def trial_folders(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Folders of trials in the order of their ids; "9" comes before "10"."""
    folders = pathlib.Path(folder).glob("trial_*")
    return sorted(
        (path for path in folders if path.is_dir()), key=lambda p: order(trial_id_of(p))
    )


def order(trial_id: str) -> tuple[float, str]:
    """What to sort ids by; those that are no number come last."""
    number = int(trial_id) if trial_id.isdecimal() else math.inf
    return number, trial_id


def missing_ids(found: Collection[str]) -> list[str]:
    """Ids that are skipped in 0, 1, 2, ...

    KerasTuner names a new trial after the number of trials there are; where one is
    missing, it would overwrite the last one.

    Example:
        >>> missing_ids(["00", "03", "mine"])
        ['01', '02']
    """
    numbered = {int(trial_id) for trial_id in found if trial_id.isdecimal()}
    if not numbered:
        return []
    width = max(len(trial_id) for trial_id in found if trial_id.isdecimal())
    every = range(min(max(numbered), len(found) + 1_000) + 1)
    return [f"{number:0{width}d}" for number in every if number not in numbered]


def set_aside(path: str | os.PathLike[str]) -> pathlib.Path:
    """Renames a file that cannot be used, to `<name>.corrupt`; nothing is deleted.

    Args:
        path: the file.

    Returns:
        Where it is now: `<name>.corrupt`, or `<name>.corrupt-1`, ...

    Raises:
        OSError: the folder cannot be written.
    """
    path = pathlib.Path(path)
    place, number = path.with_name(path.name + CORRUPT), 0
    while place.exists():
        number += 1
        place = path.with_name(f"{path.name}{CORRUPT}-{number}")
    path.rename(place)
    return place


def _is_history(history: object) -> bool:
    """Whether this is a metric as KerasTuner keeps it."""
    observations = history.get("observations") if isinstance(history, dict) else None
    return isinstance(observations, list) and all(
        isinstance(each, dict)
        and isinstance(each.get("value"), list)
        and len(each["value"]) > 0
        and all(isinstance(value, int | float) for value in each["value"])
        for each in observations
    )


def _check_types(
    state: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]]
) -> None:
    for key, expected in types.items():
        if key not in state:
            raise ValueError(f"it has no {key!r}")
        if not isinstance(state[key], expected):
            raise ValueError(f"its {key!r} is {type(state[key]).__name__}")
