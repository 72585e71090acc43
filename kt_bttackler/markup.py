"""Markdown of names that come from users: they must not become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SPECIAL = "\\`*_|<>[]~&$"


def escaped(text: str) -> str:
    r"""Text as one line of Markdown that shows just that text.

    Example:
        >>> print(escaped("a|b [x](javascript:y)"))
        a\|b \[x\](javascript:y)
    """
    for character in _SPECIAL:
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A table; what is in it is escaped.

    Example:
        >>> print(table(("trial", "cause"), [("0", "a|b")]))
        | trial | cause |
        |---|---|
        | 0 | a\|b |
    """
    lines = [headings, *rows]
    shown = ["| " + " | ".join(map(escaped, cells)) + " |" for cells in lines]
    return "\n".join([shown[0], "|" + "---|" * len(headings), *shown[1:]])
