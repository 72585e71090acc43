"""Markdown of names that come from users: they must not become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Backslashes for what every dialect of Markdown lets escape so, references for others.
_ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_[]"}
    | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    | {"|": "&#124;", "~": "&#126;", "$": "&#36;"}
)


def escaped(text: str) -> str:
    r"""Text as one line of Markdown that shows just that text.

    Example:
        >>> print(escaped("a|b [x](javascript:y)"))
        a&#124;b \[x\](javascript:y)
    """
    return " ".join(text.translate(_ESCAPES).split())


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A table; what is in it is escaped.

    Example:
        >>> print(table(("trial", "cause"), [("0", "a|b")]))
        | trial | cause |
        |---|---|
        | 0 | a&#124;b |
    """
    lines = [headings, *rows]
    shown = ["| " + " | ".join(map(escaped, cells)) + " |" for cells in lines]
    return "\n".join([shown[0], "|" + "---|" * len(headings), *shown[1:]])
