"""What a search by stages will take, told before any training."""

from __future__ import annotations

import argparse
import pathlib
import tempfile

from kt_bttackler import user_script
from kt_bttackler.cli import UsageError, quiet_loading

EPILOG = """\
examples:
  kt-bttackler stages plan search.py
  kt-bttackler stages plan --seconds-per-epoch 12 search.py
"""


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
    script = pathlib.Path(options.script)
    user_script.check_script(script)
    with quiet_loading():
        from kt_bttackler.stages import planning, tuner
    with tempfile.TemporaryDirectory() as folder:
        search = user_script.run_to_search(script, folder, "plan", options.arguments)
        if not isinstance(search, user_script.Search) or not isinstance(
            search.tuner, tuner.StageTuner
        ):
            raise UsageError(f"{script} ended without the search of a StageTuner")
        try:
            plan = planning.plan(
                search.tuner,
                epochs=search.kwargs.get("epochs"),
                trials=options.trials,
                seconds_per_epoch=options.seconds_per_epoch,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
    print(plan)
    return 0
