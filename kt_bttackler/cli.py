"""The command `kt-bttackler`: its subcommands, and how mistakes are reported."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import kt_bttackler

# Name, module and help of each subcommand, in the order of the help. A module has
# `add_arguments(parser)`, `run(options) -> exit code` and `EPILOG`, with examples; it
# is loaded when its command is asked for, and imports TensorFlow only inside `run`.
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
        "doctor",
        "kt_bttackler.doctor",
        "say what is wrong with the directory of a search, and mend it",
    ),
    (
        "check",
        "kt_bttackler.check",
        "try a search for a minute before it runs for days",
    ),
    (
        "run-on",
        "kt_bttackler.run_on_command",
        "run a stopped trial to its planned end: you were wrong about this one",
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
    (
        "stages",
        "kt_bttackler.stages.command",
        "plan a search that trains what trials share once",
    ),
    (
        "launch",
        "kt_bttackler.launch_command",
        "run the search of a script on many processes and machines, by Ray",
    ),
)
MISTAKE, INTERRUPTED = 2, 130
_EPILOG = """\
examples:
  kt-bttackler demo
  kt-bttackler check search.py
  kt-bttackler COMMAND --help

exit codes:
  0    done
  2    a mistake in the options or the files, told in one line
  130  interrupted by Ctrl+C
others are told in the help of their command
"""


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


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number.

    Args:
        least: the smallest that is taken.

    Example:
        >>> at_least(1)("12")
        12
    """

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


def check_target(path: pathlib.Path | None, option: str = "--json") -> None:
    """Notices before the work what would be a pity after it.

    Args:
        path: a file that is to be written, if any.
        option: that gave it.

    Raises:
        UsageError: it cannot be written.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UsageError(f"{option} {path} cannot be written: no such folder or file.")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says in one line what is wrong, without the usage."""
        self.exit(MISTAKE, f"{self.prog}: {' '.join(message.split())}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments: without the name of the program; by default those of the process.

    Returns:
        The exit code: that of the command, 2 for a mistake of the user, 130 after
        Ctrl+C.
    """
    # The notes of TensorFlow's C++ side are about the machine, not the search.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = _Parser(
        prog="kt-bttackler",
        description="Diagnose the trainings of a hyperparameter search.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {kt_bttackler.__version__}"
    )
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    given = sys.argv[1:] if arguments is None else list(arguments)
    asked = next((each for each in given if not each.startswith("-")), None)
    for name, module_name, about in COMMANDS:
        if name != asked:  # its options need not be known
            commands.add_parser(name, help=about)
            continue
        module = importlib.import_module(module_name)
        command = commands.add_parser(
            name,
            help=about,
            description=module.__doc__,
            epilog=getattr(module, "EPILOG", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, program=command.prog)
    options = parser.parse_args(given)
    try:
        return int(options.run(options))
    except UsageError as mistake:
        print(f"{options.program}: {mistake}", file=sys.stderr)
        return MISTAKE
    except BrokenPipeError:  # as in `kt-bttackler ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
