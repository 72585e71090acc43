"""Try a search for a minute before it runs for days.

Corners and random configurations are built and trained for a few steps. It tells which
of them cannot be built, are not finite or contradict themselves; what a trial and the
search will take; and which ranges to narrow.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import tempfile

from kt_bttackler import files, user_script
from kt_bttackler.cli import UsageError, at_least, check_target, quiet_loading

EPILOG = """\
exit codes: 0, 1 when no configuration trains, 2 for a mistake

examples:
  kt-bttackler check search.py
  kt-bttackler check search.py --seconds 120 --epochs 50 --trials 200 --json found.json
"""
NOTHING_TRAINS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kt-bttackler check`."""
    parser.description = f"{__doc__}\n{user_script.CONTRACT}"
    parser.add_argument("script", type=pathlib.Path, metavar="SCRIPT")
    user_script.add_arguments(parser)
    parser.add_argument(
        "--seconds", type=at_least(1), default=60, help="budget (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs",
        type=at_least(1),
        help="of a trial (default: those of SCRIPT, or 10)",
    )
    parser.add_argument(
        "--trials", type=at_least(1), help="of the search (default: those of SCRIPT)"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of the random configurations"
    )
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="write what was found, too"
    )


def run(options: argparse.Namespace) -> int:
    """Checks a script.

    Returns:
        The exit code: 0, or 1 when no configuration trains.

    Raises:
        UsageError: the script cannot be run, or has nothing to search.
    """
    check_target(options.json)
    user_script.check_script(options.script)
    print("Loading TensorFlow ...", flush=True)
    with quiet_loading():  # here and not above, so that mistakes are told at once
        from kt_bttackler import rehearsal
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(None):
            search = user_script.search_of(
                options.script, folder, "check", options.arguments
            )
        oracle = getattr(search.tuner, "oracle", None)
        planned = getattr(oracle, "max_epochs", None) or search.kwargs.get("epochs", 10)
        taken = {k: v for k, v in search.kwargs.items() if k != "epochs"}
        try:
            found = rehearsal.preflight(
                search.hypermodel,
                *search.args,
                epochs=options.epochs or planned,
                max_trials=options.trials or getattr(oracle, "max_trials", None),
                executions_per_trial=getattr(search.tuner, "executions_per_trial", 1),
                seconds=options.seconds,
                hyperparameters=oracle.get_space() if oracle else None,
                seed=options.seed,
                **taken,
            )
        except (TypeError, ValueError) as error:
            raise UsageError(f"{options.script}: {error}") from error
    print(found, flush=True)
    if options.json is not None:
        files.write_atomically(options.json, files.dumps(found.to_dict()) + "\n")
    trains = any(c.outcome == "trains" for c in found.configurations)
    return 0 if trains else NOTHING_TRAINS
