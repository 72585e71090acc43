"""How a cause looks, in every picture: one colour, one mark, one kind of line.

Colours stand out from white and from near-black paper alike (contrast of at least 3 to
1 with both), and none is the only sign: marks and lines differ, too.
"""

from __future__ import annotations

import zlib

# Paper of the light and of the dark theme.
PAPERS = ("#ffffff", "#14181f")
SOUND = "#71829b"
# Of a trial that neither ended nor was diagnosed.
OTHER = "#8c8577"

_COLOURS = {
    "AGV": "#dc3545",
    "EAG": "#d4700b",
    "ERG": "#2b7fd6",
    "PLC": "#9a5fe0",
    "LAR": "#0d8f8a",
    "ULC": "#d6409f",
    "NMG": "#4a9338",
    "COLLAPSED_OUTPUT": "#a8652a",
    "NO_PROGRESS": "#5f6ee0",
    "MSR": "#8f7a12",
    "LCE": "#b0527a",
}
_MARKS = {
    "AGV": "x",
    "EAG": "triangle-up",
    "ERG": "triangle-down",
    "PLC": "square",
    "LAR": "diamond",
    "ULC": "cross",
    "NMG": "star",
    "COLLAPSED_OUTPUT": "pentagon",
    "NO_PROGRESS": "hexagon",
    "MSR": "bowtie",
    "LCE": "hourglass",
}
_FURTHER = ("#a8652a", "#5f6ee0", "#8f7a12", "#b0527a", "#1f8aa8", "#7c8a1c")
_FURTHER_MARKS = ("pentagon", "hexagon", "bowtie", "hourglass", "star-diamond")


def colour(cause: str | None) -> str:
    """The colour of a cause; `None` is a sound training.

    Example:
        >>> colour("AGV"), colour(None), colour("MINE") == colour("MINE")
        ('#dc3545', '#71829b', True)
    """
    if cause is None:
        return SOUND
    return _COLOURS.get(cause) or _FURTHER[_number(cause) % len(_FURTHER)]


def mark(cause: str | None) -> str:
    """The mark of a cause, as plotly names it."""
    if cause is None:
        return "circle"
    return _MARKS.get(cause) or _FURTHER_MARKS[_number(cause) % len(_FURTHER_MARKS)]


def dash(cause: str | None) -> str:
    """The kind of line of a cause, as plotly names it."""
    if cause is None:
        return "solid"
    kinds = ("dash", "dot", "dashdot", "longdash")
    known = list(_COLOURS)
    place = known.index(cause) if cause in known else _number(cause)
    return kinds[place % len(kinds)]


def _number(cause: str) -> int:
    """The same for the same name, in every process."""
    return zlib.crc32(cause.encode())
