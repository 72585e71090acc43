"""The documentation: its links lead somewhere, and its code is code."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import textwrap

import nbclient
import nbformat
import pytest
import yaml

import kt_bttackler as ktb

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOK = ROOT / "examples" / "before_and_after.ipynb"
# The mark of a block that is run as it is: `<!-- run -->` in the line before it.
BLOCK = re.compile(r"^(<!-- run -->\n)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(page: pathlib.Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: pathlib.Path) -> set[str]:
    """Those that MkDocs makes of the headings."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles)
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_pages_and_headings(page: pathlib.Path) -> None:
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_is_python_and_names_exist(page: pathlib.Path) -> None:
    for _, block in BLOCK.findall(text_of(page)):
        compile(block, page.name, "exec")
        for name in re.findall(r"\bktb\.(\w+)", block):
            assert hasattr(ktb, name), name


def marked() -> list[tuple[str, str]]:
    return [
        (page.stem, block)
        for page in PAGES
        for run, block in BLOCK.findall(text_of(page))
        if run
    ]


@pytest.mark.parametrize(
    ("page", "block"), marked(), ids=[page for page, _ in marked()]
)
def test_code_that_is_marked_runs(
    page: str, block: str, tmp_path: pathlib.Path
) -> None:
    script = tmp_path / "block.py"
    script.write_text(textwrap.dedent(block))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path, capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["block.py"]


def environment() -> dict[str, str]:
    """That of this process, with this copy of the package before an installed one."""
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_every_page_can_be_found() -> None:
    pages = re.findall(r"^  - .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(pages) == [page.name for page in PAGES]
    assert pages[0] == "index.md"


def test_nothing_is_loaded_from_elsewhere() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & config.keys()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in ktb._HOME:
        assert f'.{name}"' in reference, name
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?:[^\" >]+)",
            page.read_text(encoding="utf-8"),
        )
        assert loaded == [], page.name


def test_the_notebook_runs(tmp_path: pathlib.Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (small,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    small.source = "TRIALS, EPOCHS = 2, 2"
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(path))
    client = nbclient.NotebookClient(
        notebook, timeout=100, kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )  # fmt: skip
    client.execute()
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_shows_what_it_prints_and_is_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    printed = "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    for part in ("best: ", "Summary of 12 trials", "Preflight: "):
        assert part in printed
    assert NOTEBOOK.stat().st_size < 30_000
