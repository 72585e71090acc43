"""What a search by stages will take, told before any training."""

from __future__ import annotations

import argparse
import pathlib
import runpy
import sys
from typing import Any

EPILOG = """\
examples:
  kt-bttackler stages plan search.py
  kt-bttackler stages plan --seconds-per-epoch 12 search.py
"""


class _Planned(BaseException):
    """Ends the script where its search would begin."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    about = "plan the search of a script, without training"
    plan = actions.add_parser("plan", help=about, description=about)
    plan.add_argument("script", help="a Python file that searches with a StageTuner")
    plan.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="arguments of the script"
    )
    plan.add_argument(
        "--trials", type=int, metavar="N", help="look at no more than N trials"
    )
    plan.add_argument(
        "--seconds-per-epoch", type=float, metavar="S", help="what an epoch takes"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the script up to its search, and prints the plan of it."""
    from kt_bttackler.cli import UsageError, quiet_loading

    script = pathlib.Path(options.script)
    if not script.is_file():
        raise UsageError(f"`script` must be a file, got {str(script)!r}.")
    with quiet_loading():
        from kt_bttackler.stages import planning

    def report(tuner: Any, epochs: int | None) -> None:
        print(
            planning.plan(
                tuner,
                epochs=epochs,
                trials=options.trials,
                seconds_per_epoch=options.seconds_per_epoch,
            )
        )
        raise _Planned

    token = planning.instead_of_search.set(report)
    arguments, path = sys.argv, list(sys.path)
    sys.argv = [str(script), *options.arguments]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except _Planned:
        return 0
    except ValueError as error:
        raise UsageError(str(error)) from error
    finally:
        planning.instead_of_search.reset(token)
        sys.argv, sys.path[:] = arguments, path
    raise UsageError(f"{script} ended without the search of a StageTuner")
