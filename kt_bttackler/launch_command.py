"""Run the search of a script with a chief and several workers, by Ray.

The script is an ordinary one, that builds a tuner and calls its `search`; it runs in
every process. Exit code 0: the search has ended; 1: it could not go on; 2: a mistake in
the command.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import runpy
import sys
from collections.abc import Sequence

from kt_bttackler import user_script
from kt_bttackler.cli import UsageError
from kt_bttackler.launcher import launch

FAILED = 1


EPILOG = """\
examples:
  kt-bttackler launch search.py --workers 4
  kt-bttackler launch search.py --workers 8 --address auto --resources GPU=1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kt-bttackler launch`."""
    parser.add_argument(
        "script", type=pathlib.Path, metavar="SCRIPT", help="a Python script"
    )
    parser.add_argument(
        "--workers", type=int, required=True, metavar="N", help="number of workers"
    )
    parser.add_argument(
        "--resources",
        type=_resources,
        default={"CPU": 1.0},
        metavar="NAME=AMOUNT,...",
        help="what is reserved for each worker, such as CPU=2,GPU=1 (default: CPU=1)",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=3,
        metavar="N",
        help="how often a process that died is started again (default: 3)",
    )
    parser.add_argument(
        "--address",
        help='"auto" or HOST:PORT of a running Ray cluster of which this machine is a '
        "node (default: RAY_ADDRESS, else this machine alone)",
    )
    user_script.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Launches the search; returns the exit code."""
    user_script.check_script(options.script)
    script = options.script.resolve()
    try:
        launch(
            functools.partial(run_script, script, options.arguments),
            workers=options.workers,
            resources_per_worker=options.resources,
            max_restarts=options.max_restarts,
            address=options.address,
        )
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    except RuntimeError as error:
        print(f"{options.program}: {error}", file=sys.stderr)
        return FAILED
    return 0


def run_script(script: pathlib.Path, arguments: Sequence[str] = ()) -> None:
    """Runs a script as `python SCRIPT` does.

    Args:
        script: its path.
        arguments: those that it finds in `sys.argv`.
    """
    with user_script.started(script, arguments):
        runpy.run_path(str(script), run_name="__main__")


def _resources(text: str) -> dict[str, float]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {name.strip(): float(amount) for name, amount in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be NAME=AMOUNT, several with commas between, got {text!r}"
        ) from None
