"""Search a deliberately wide space of small networks, with every trial diagnosed."""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from kt_bttackler import files, report, results
from kt_bttackler.cli import INTERRUPTED, UsageError, quiet_loading

DEFAULT_TRIALS = 20
HYPERBAND_FACTOR = 3
TUNERS = ("random", "grid", "bayesian", "hyperband")
_KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclasses.dataclass(frozen=True)
class Data:
    """Data of a classification.

    Attributes:
        name: what it is, for people.
        x_train: [N, F] features or [N, H, W, C] images, standardised.
        y_train: classes from 0, [N].
        x_test: features or images for the validation.
        y_test: their classes.
        classes: number of classes.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kt-bttackler demo`."""
    parser.add_argument(
        "--tuner", choices=TUNERS, default="random", help="default: %(default)s"
    )
    parser.add_argument(
        "--trials",
        type=_at_least(1),
        help=f"number of trials (default: {DEFAULT_TRIALS}; with hyperband at most "
        "this many, by default the whole schedule)",
    )
    parser.add_argument(
        "--epochs",
        type=_at_least(1),
        default=10,
        help="epochs of a trial; with hyperband those of the longest (default: 10)",
    )
    parser.add_argument(
        "--rows",
        type=_at_least(1),
        help="rows to train on, drawn at random (default: all)",
    )
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        metavar="FILE.npz",
        help="arrays x_train, y_train, x_test, y_test: flat features or images, and "
        "integer labels (default: the digits of scikit-learn)",
    )
    parser.add_argument(
        "--directory",
        type=pathlib.Path,
        default=pathlib.Path("kt_bttackler_demo"),
        help="where files go (default: %(default)s); every search makes a new "
        "numbered folder in it, nothing is overwritten",
    )
    parser.add_argument(
        "--seed",
        type=_at_least(0),
        default=0,
        help="the same seed gives the same configurations and initial weights "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--no-diagnosis",
        action="store_true",
        help="only record, stop nothing: to compare with",
    )
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        metavar="FILE",
        help="write the results for a program",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the demo.

    Returns:
        The exit code: 0, or 130 when the search was interrupted.

    Raises:
        UsageError: an option or a file is wrong.
    """
    if options.json is not None:
        _check_target(options.json)
    data = _digits() if options.data is None else load(options.data)
    data = _fewer_rows(data, options.rows, options.seed)
    project = new_project(options.directory, options.tuner)
    print("Loading TensorFlow ...", flush=True)
    with quiet_loading():  # here and not above, so that mistakes are told at once
        from kt_bttackler import demo_search
    progress = Progress(_number_of_trials(options))
    tuner = demo_search.make_tuner(options, data, project, progress)
    watch = "recorded only" if options.no_diagnosis else "diagnosed"
    print(
        f"Searching with {progress.total} trials of at most {options.epochs} epochs on "
        f"{len(data.x_train)} rows of {data.name}, every trial {watch}.\n"
        f"Files go to {project}\n",
        flush=True,
    )
    interrupted = False
    try:
        demo_search.search(tuner, options, data, project)
    except KeyboardInterrupt:
        interrupted = True
        print("\nInterrupted; the trials so far:")
    study = results.study(tuner)
    print(f"\n{report.as_text(study)}", flush=True)
    if options.json is not None:
        files.write_atomically(options.json, _facts(options, data, study))
    return INTERRUPTED if interrupted else 0


def _number_of_trials(options: argparse.Namespace) -> int:
    if options.tuner != "hyperband":
        return options.trials or DEFAULT_TRIALS
    total = hyperband_trials(options.epochs, HYPERBAND_FACTOR)
    return min(total, options.trials or total)


def hyperband_trials(max_epochs: int, factor: int) -> int:
    """Trials of one iteration of KerasTuner's Hyperband, every rung counted.

    Args:
        max_epochs: epochs of the longest trial.
        factor: by which a rung is longer than the one before.

    Example:
        >>> hyperband_trials(10, 3)
        30
    """
    brackets = 0
    while max_epochs / factor**brackets >= 1:
        brackets += 1
    finalists = math.ceil(1 + math.log(max_epochs, factor))
    return sum(
        math.ceil(finalists / (bracket + 1) * factor ** (bracket - rung))
        for bracket in range(brackets)
        for rung in range(bracket + 1)
    )


class Progress:
    """Tells what a search is doing, on a terminal epoch by epoch.

    Args:
        total: number of trials.
        stream: where to write; standard output by default.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._started = time.monotonic()
        self._done = 0

    def begin(self, configuration: str) -> None:
        """A trial begins."""
        width = len(str(self.total))
        number = f"{self._done + 1:>{width}}"
        self._say(f"trial {number} of {self.total}: {configuration}")

    def epoch(self, epoch: int, score: float) -> None:
        """An epoch of it has ended."""
        if self._live:
            self._stream.write(f"\r    epoch {epoch}: val_accuracy {score:.4f} ")
            self._stream.flush()

    def end(self, outcome: str, reason: str = "") -> None:
        """The trial has ended.

        Args:
            outcome: its status or score.
            reason: why it was stopped.
        """
        self._done += 1
        elapsed = time.monotonic() - self._started
        left = elapsed / self._done * (self.total - self._done)
        times = f"{report.duration(elapsed)} elapsed"
        if left > 0:
            times += f", about {report.duration(left)} left"
        if self._live:
            self._stream.write("\r\x1b[K")  # erases the line of the epoch
        if reason:
            self._say(f"    {reason}")
        self._say(f"    {outcome}, {times}")

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def load(path: pathlib.Path) -> Data:
    """Reads the data of `--data`.

    Args:
        path: an .npz file with `x_train`, `y_train`, `x_test`, `y_test`.

    Raises:
        UsageError: the file is missing or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _KEYS if key in archive}
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}."
        ) from error
    except Exception as error:  # zip files and numpy have many ways to be malformed
        raise UsageError(f"{path} is not an .npz file of plain arrays.") from error
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise UsageError(f"{path}: no array named {', '.join(missing)}.")
    x_train, y_train, x_test, y_test = (arrays[key] for key in _KEYS)
    x_train, x_test = (
        _inputs(path, key, x) for key, x in (("x_train", x_train), ("x_test", x_test))
    )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UsageError(
            f"{path}: rows of x_train are {list(x_train.shape[1:])}, "
            f"those of x_test {list(x_test.shape[1:])}."
        )
    y_train = _labels(path, "y_train", y_train, len(x_train))
    y_test = _labels(path, "y_test", y_test, len(x_test))
    return _standardised(path.name, x_train, y_train, x_test, y_test)


def _inputs(path: pathlib.Path, key: str, x: np.ndarray) -> np.ndarray:
    if x.ndim == 3:  # images without a channel
        x = x[..., np.newaxis]
    if x.ndim not in (2, 4) or 0 in x.shape or x.dtype.kind not in "biuf":
        raise UsageError(
            f"{path}: {key} must be numbers, [N, features] or [N, height, width, "
            f"channels], got {x.dtype} {list(x.shape)}."
        )
    x = x.astype("float32")
    if not np.isfinite(x).all():
        raise UsageError(f"{path}: {key} contains values that are not finite.")
    return x


def _labels(path: pathlib.Path, key: str, y: np.ndarray, rows: int) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (rows,) or y.dtype.kind not in "iu":
        raise UsageError(
            f"{path}: {key} must be {rows} integer labels, "
            f"got {y.dtype} {list(y.shape)}."
        )
    return y


def _standardised(
    name: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
) -> Data:
    """Inputs of mean 0 and spread 1 (features each, images as a whole)."""
    axis = 0 if x_train.ndim == 2 else None
    mean, spread = x_train.mean(axis), x_train.std(axis)
    spread = np.where(spread > 0, spread, 1)
    names, classes = np.unique(np.concatenate([y_train, y_test]), return_inverse=True)
    return Data(
        name,
        ((x_train - mean) / spread).astype("float32"),
        classes[: len(y_train)],
        ((x_test - mean) / spread).astype("float32"),
        classes[len(y_train) :],
        len(names),
    )


def _digits() -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = np.split(order, [len(x) * 4 // 5])
    # All pixels have one unit; some are always blank.
    x = ((x - x[train].mean()) / x[train].std()).astype("float32")
    return Data("handwritten digits", x[train], y[train], x[test], y[test], 10)


def _fewer_rows(data: Data, rows: int | None, seed: int) -> Data:
    if rows is None or rows >= len(data.x_train):
        return data
    chosen = np.random.default_rng(seed).permutation(len(data.x_train))[:rows]
    return dataclasses.replace(
        data, x_train=data.x_train[chosen], y_train=data.y_train[chosen]
    )


def new_project(directory: pathlib.Path, tuner: str) -> pathlib.Path:
    """Makes a new numbered folder: what is there already is left alone.

    Args:
        directory: where the folder goes.
        tuner: the name that it begins with.

    Raises:
        UsageError: the folder cannot be made.
    """
    number = 1
    while True:
        project = directory / f"{tuner}-{number:02d}"
        try:
            project.mkdir(parents=True)
        except FileExistsError:
            if not directory.is_dir():
                raise UsageError(f"--directory {directory} is not a folder.") from None
            number += 1
        except OSError as error:
            raise UsageError(
                f"--directory {directory} cannot be made: {error.strerror}."
            ) from error
        else:
            return project


def _check_target(path: pathlib.Path) -> None:
    """Notices before the search what would be a pity after it."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--json {path} cannot be written: no such folder or file.")


def _facts(options: argparse.Namespace, data: Data, study: results.Study) -> str:
    searched = {
        "tuner": options.tuner,
        "seed": options.seed,
        "epochs": options.epochs,
        "rows": len(data.x_train),
        "data": data.name,
        "diagnosis": not options.no_diagnosis,
    }
    return files.dumps({"search": searched} | study.to_dict()) + "\n"


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value < 2**31:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {least}, got {text}"
            )
        return value

    return whole_number


def describe(values: dict[str, Any]) -> str:
    """A configuration in one line.

    Args:
        values: hyperparameters of a trial.
    """
    return (
        f"{values['depth']} x {values['width']} {values['activation']}, "
        f"{values['initializer']}, {values['optimizer']} at "
        f"{values['learning_rate']:.2g}, batches of {values['batch_size']}"
    )
