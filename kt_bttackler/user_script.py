"""The user's own script, run up to its search: for commands that need models and data.

Whatever a script does before `tuner.search(...)` is done; there it ends, and what was
to be searched is known. A script without a search defines `build_model`, and the data
as `data()` or `x` and `y`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import runpy
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kt_bttackler.cli import UsageError

CONTRACT = """\
SCRIPT is your own search script. It is run as `python SCRIPT` does, up to its first
`tuner.search(...)`: the search is not begun, and the models, data, epochs and trials
of that call are taken. No project folder is made, reloaded or deleted. A script
without a search must define `build_model`, a function or a HyperModel, and the data:
either x and y (or x_train and y_train), beside them, if you like, x_val and y_val (or
x_test and y_test), or a function data() that returns (x, y) or the arguments of
`search` as a dict."""
_BUILDERS = ("build_model", "hypermodel", "build")


@dataclasses.dataclass(frozen=True)
class Search:
    """The search that a script is about to begin.

    Attributes:
        hypermodel: what builds the models.
        args: positional arguments of `search`.
        kwargs: keyword arguments of `search`.
        tuner: the tuner; `None` in a script without a search.
    """

    hypermodel: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    tuner: Any = None


class _Reached(BaseException):
    """Ends a script at its search; no `except Exception` of it is to catch this."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self.search = search


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what a script is started with."""
    parser.add_argument(
        "--arguments",
        type=shlex.split,
        default=[],
        metavar="TEXT",
        help="what SCRIPT is started with, such as --arguments='--fast 3'",
    )


def check_script(path: pathlib.Path) -> None:
    """Refuses what is no file; for commands that load TensorFlow before they run it.

    Raises:
        UsageError: there is no such file.
    """
    if not path.is_file():
        raise UsageError(f"SCRIPT must be a file, got {path}.")


def search_of(
    path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    project_name: str,
    arguments: Sequence[str] = (),
) -> Search:
    """Runs a script up to its search.

    Args:
        path: the script.
        directory: takes the place of the one that the script gives to its tuner.
        project_name: likewise.
        arguments: those of the script.

    Raises:
        UsageError: the script cannot be run, or has nothing to search.
    """
    path = pathlib.Path(path)
    check_script(path)
    reached = run_to_search(path, directory, project_name, arguments)
    return reached if isinstance(reached, Search) else _defined(path, reached)


def run_to_search(
    path: pathlib.Path,
    directory: str | os.PathLike[str],
    project_name: str,
    arguments: Sequence[str] = (),
) -> Search | Mapping[str, Any]:
    """Runs a script up to its search, or to its end.

    Args:
        path: the script.
        directory: takes the place of the one that the script gives to its tuner.
        project_name: likewise.
        arguments: those of the script.

    Returns:
        The search; what the script defines where it searches nothing.

    Raises:
        UsageError: the script cannot be run.
    """
    try:
        with _stopped_at_search(directory, project_name), started(path, arguments):
            return runpy.run_path(str(path), run_name="__main__")
    except _Reached as reached:
        return reached.search
    except SystemExit as end:
        raise UsageError(f"{path} ended before any search: {end}") from end
    except Exception as error:
        raise UsageError(f"{path}{_line(error, path)}: {_said(error)}") from error


@contextlib.contextmanager
def _stopped_at_search(
    directory: str | os.PathLike[str], project_name: str
) -> Iterator[None]:
    """Tuners made in it use another folder; their `search` ends the script."""
    import keras_tuner  # not for the help of a command

    base = keras_tuner.engine.base_tuner.BaseTuner
    own_init, own_search = base.__init__, base.search

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        # Of these three KerasTuner's own tuners pass keywords on.
        names = ("oracle", "hypermodel", "directory", "project_name", "overwrite")
        given = dict(zip(names, args, strict=False)) | kwargs
        given |= {"directory": str(directory), "project_name": project_name}
        own_init(self, **(given | {"overwrite": False}))

    def search(self: Any, *args: Any, **kwargs: Any) -> None:
        raise _Reached(Search(self.hypermodel, args, kwargs, self))

    base.__init__, base.search = init, search
    try:
        yield
    finally:
        base.__init__, base.search = own_init, own_search


@contextlib.contextmanager
def started(path: pathlib.Path, arguments: Sequence[str]) -> Iterator[None]:
    """`sys.argv` and `sys.path` are as `python SCRIPT ARGUMENTS` has them."""
    kept = sys.argv, sys.path
    sys.argv = [str(path), *arguments]
    sys.path = [str(path.resolve().parent), *sys.path]
    try:
        yield
    finally:
        sys.argv, sys.path = kept


def _defined(path: pathlib.Path, names: Mapping[str, Any]) -> Search:
    """The models and data that a script without a search defines."""
    builder = next((names[name] for name in _BUILDERS if name in names), None)
    if builder is None:
        raise UsageError(
            f"{path} reaches no `tuner.search(...)` and defines no `build_model`."
        )
    if callable(names.get("data")):
        given = names["data"]()
        if isinstance(given, Mapping):
            return Search(builder, (), dict(given))
        return Search(builder, tuple(given), {})
    for x, y in (("x", "y"), ("x_train", "y_train")):
        if x in names:
            validation = next(
                (
                    {"validation_data": (names[a], names[b])}
                    for a, b in (("x_val", "y_val"), ("x_test", "y_test"))
                    if a in names and b in names
                ),
                {},
            )
            return Search(builder, (names[x], names.get(y)), validation)
    raise UsageError(
        f"{path} reaches no `tuner.search(...)` and defines no data: neither a "
        "function `data` nor `x` or `x_train`."
    )


def _line(error: Exception, path: pathlib.Path) -> str:
    """Where in the script an error came from."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).name == path.name
    ]
    return f", line {lines[-1]}" if lines else ""


def _said(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}"
