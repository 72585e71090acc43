"""Fills the page of the API, and keeps links within the site.

A hook of MkDocs, see `mkdocs.yml`.
"""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any

# MkDocs runs in the folder of `mkdocs.yml`, and need not have the package installed.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import kt_bttackler


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Puts the public names where the page of the API has its marker.

    Links to files of the repository that are no part of the site become plain text.
    """
    if page.file.src_uri == "api.md":
        return markdown.replace("{{ names }}", "\n".join(_sections()))
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)


def _sections() -> list[str]:
    """Every public name, under the module that it is in."""
    lines = []
    for module, names in kt_bttackler._MODULES.items():
        lines += [f"## {module.replace('_', ' ').capitalize()}", ""]
        for name in names:
            # A function of a package is described where it is written.
            home = f"{module}.diagnosed" if module == "oracles" else module
            lines += [f"::: kt_bttackler.{home}.{name}", ""]
    return lines
