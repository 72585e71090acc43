"""The command `kt-bttackler`: its subcommands, and how mistakes are reported."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import NoReturn

import kt_bttackler

# Name, module and help of each subcommand. A module has `add_arguments(parser)` and
# `run(options) -> exit code`, and imports TensorFlow only inside `run`.
COMMANDS = (
    (
        "demo",
        "kt_bttackler.demo",
        "search a wide space on handwritten digits, or on data of your own",
    ),
    (
        "report",
        "kt_bttackler.report_command",
        "show what a search has come to, as text, HTML, Markdown, CSV or JSON",
    ),
    (
        "study",
        "kt_bttackler.study_command",
        "record a random search of complete trainings, to replay diagnoses on",
    ),
    (
        "replay",
        "kt_bttackler.replay_command",
        "what diagnoses would have saved and cost on recorded searches",
    ),
    (
        "calibrate",
        "kt_bttackler.calibrate_command",
        "tune thresholds on recorded searches, and prove what they may cost",
    ),
)
MISTAKE, INTERRUPTED = 2, 130


class UsageError(Exception):
    """A mistake of the user, told in one line."""


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps the notes that TensorFlow's C++ side writes while it is loaded.

    No setting of TensorFlow 2.21 switches them off. They are shown when loading
    fails.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as notes, os.fdopen(os.dup(2), "wb") as screen:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            screen.write(notes.read())
            raise
        finally:
            os.dup2(screen.fileno(), 2)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says in one line what is wrong, without the usage."""
        self.exit(MISTAKE, f"{self.prog}: {' '.join(message.split())}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments: without the name of the program; by default those of the process.

    Returns:
        The exit code: 0, 2 for a mistake of the user, 130 after Ctrl+C.
    """
    # The notes of TensorFlow's C++ side are about the machine, not the search.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = _Parser(
        prog="kt-bttackler",
        description="Diagnose the trainings of a hyperparameter search.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {kt_bttackler.__version__}"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module_name, about in COMMANDS:
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=about, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run, program=command.prog)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except UsageError as mistake:
        print(f"{options.program}: {mistake}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
