"""Run a stopped trial to its planned end.

Where its last state was kept (`keep_stopped=` of the tuner) the training goes on
exactly there, else it is trained anew with the same seed. The trial is corrected for
what the search does next, and its trace becomes a complete one, which counts for a
calibration.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib

from kt_bttackler import user_script
from kt_bttackler.cli import UsageError, quiet_loading

EPILOG = """\
examples:
  kt-bttackler run-on runs/cifar 07 --script search.py
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kt-bttackler run-on`."""
    parser.description = (
        f"{__doc__}\nSCRIPT must make its tuner as it did for the search.\n\n"
        f"{user_script.CONTRACT.partition(' A script')[0]}"
    )
    parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
    parser.add_argument("trial", metavar="TRIAL", help="id of the trial, such as 07")
    parser.add_argument("--script", type=pathlib.Path, metavar="SCRIPT", required=True)
    user_script.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Runs a trial on.

    Returns:
        The exit code, 0.

    Raises:
        UsageError: there is no such trial, or the script does not search.
    """
    folder = options.directory.resolve()
    if not (folder / f"trial_{options.trial}").is_dir():
        raise UsageError(f"{options.directory} has no folder trial_{options.trial}.")
    user_script.check_script(options.script)
    print("Loading TensorFlow ...", flush=True)
    with quiet_loading():  # here and not above, so that mistakes are told at once
        from kt_bttackler import appeal
    with contextlib.redirect_stdout(None):
        search = user_script.search_of(
            options.script, folder.parent, folder.name, options.arguments
        )
    if search.tuner is None:
        raise UsageError(f"{options.script} reaches no `tuner.search(...)`.")
    try:
        trial = appeal.run_on(
            search.tuner, options.trial, *search.args, **dict(search.kwargs)
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    print(f"trial {trial.trial_id}: {trial.status.lower()}, {trial.message}")
    return 0
