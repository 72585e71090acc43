"""Search a deliberately wide space of small networks, with every trial diagnosed."""

from __future__ import annotations

import argparse
import importlib.util
import pathlib

from kt_bttackler import demo_data, files, report, results
from kt_bttackler.brackets import hyperband_trials
from kt_bttackler.cli import (
    INTERRUPTED,
    UsageError,
    at_least,
    check_target,
    quiet_loading,
)
from kt_bttackler.study import Study

EPILOG = """\
examples:
  kt-bttackler demo
  kt-bttackler demo --tuner bayesian --trials 40 --data pictures.npz --json facts.json
"""
DEFAULT_TRIALS = 20
TUNERS = ("random", "grid", "bayesian", "tpe", "smac", "hyperband")
# What is installed only on request, by the extra of that name.
_LIBRARIES = {"tpe": "optuna", "smac": "smac"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kt-bttackler demo`."""
    parser.add_argument(
        "--tuner", choices=TUNERS, default="random", help="default: %(default)s"
    )
    parser.add_argument(
        "--trials",
        type=at_least(1),
        help=f"number of trials (default: {DEFAULT_TRIALS}; with hyperband at most "
        "this many, by default the whole schedule)",
    )
    parser.add_argument(
        "--epochs",
        type=at_least(1),
        default=10,
        help="epochs of a trial; with hyperband those of the longest (default: 10)",
    )
    parser.add_argument(
        "--rows",
        type=at_least(1),
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
        type=at_least(0),
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
        check_target(options.json)
    _check_installed(options.tuner)
    data = demo_data.digits() if options.data is None else demo_data.load(options.data)
    data = demo_data.fewer_rows(data, options.rows, options.seed)
    project = new_project(options.directory, options.tuner)
    print("Loading TensorFlow ...", flush=True)
    with quiet_loading():  # here and not above, so that mistakes are told at once
        from kt_bttackler import demo_search
    trials = _number_of_trials(options, demo_search.HYPERBAND_FACTOR)
    tuner = demo_search.make_tuner(options, data, project, trials)
    watch = "recorded only" if options.no_diagnosis else "diagnosed"
    print(
        f"Searching with {trials} trials of at most {options.epochs} epochs on "
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


def _number_of_trials(options: argparse.Namespace, factor: int) -> int:
    if options.tuner != "hyperband":
        return options.trials or DEFAULT_TRIALS
    total = hyperband_trials(options.epochs, factor)
    return min(total, options.trials or total)


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


def _check_installed(tuner: str) -> None:
    library = _LIBRARIES.get(tuner)
    if library is not None and importlib.util.find_spec(library) is None:
        raise UsageError(
            f"--tuner {tuner} needs {library}: pip install 'kt-bttackler[{tuner}]'"
        )


def _facts(options: argparse.Namespace, data: demo_data.Data, study: Study) -> str:
    searched = {
        "tuner": options.tuner,
        "seed": options.seed,
        "epochs": options.epochs,
        "rows": len(data.x_train),
        "data": data.name,
        "diagnosis": not options.no_diagnosis,
    }
    return files.dumps({"search": searched} | study.to_dict()) + "\n"
