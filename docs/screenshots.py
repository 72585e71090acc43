"""Takes the pictures of report and TensorBoard: `python docs/screenshots.py [FOLDER]`.

Searches with `kt-bttackler demo`, reports with `kt-bttackler report --html`, starts
TensorBoard on the search, and lets a headless Chromium look at both. It needs Chromium,
Pillow and the extra `report`, and takes a few minutes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator

from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
TRIALS, EPOCHS = 40, 12
LARGEST = 200_000  # bytes of a picture
# What is seen of the page in each picture: the sections that are hidden, and the size.
PAGE = {
    "report": ("section:nth-of-type(n+3) { display: none }", 1030, []),
    "report-curves": (
        "header.top, nav, section:nth-of-type(1), section:nth-of-type(2), "
        "section:nth-of-type(n+6) { display: none }",
        1230,
        [],
    ),
    "report-trial": (
        "header.top, nav, section:nth-of-type(-n+8) { display: none }"
        "details:not([open]) { display: none }",
        900,
        ["--force-dark-mode"],
    ),
}
# Page of TensorBoard, the runs that are chosen there, and the size.
BOARD = {
    "tensorboard-hparams": ("hparams", "", (2200, 620)),
    "tensorboard-severity": ("custom_scalars", "*/execution0/diagnosis", (1280, 1010)),
    "tensorboard-summary": ("text", "_study", (1280, 900)),
}


def searched(folder: pathlib.Path) -> pathlib.Path:
    """The project of a search of the demo; made when it is not there."""
    project = folder / "random-01"
    if not project.is_dir():
        _command("demo", "--trials", TRIALS, "--epochs", EPOCHS, "--directory", folder)
    return project


def of_the_report(project: pathlib.Path, target: pathlib.Path) -> None:
    """Takes the pictures of the report."""
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder) / "report.html"
        _command("report", project, "--html", page)
        text = page.read_text(encoding="utf-8")
        for name, (hidden, height, flags) in PAGE.items():
            hidden += " footer { display: none }"
            shown = text.replace("</head>", f"<style>{hidden}</style></head>", 1)
            view = page.with_name(f"{name}.html")
            view.write_text(_with_an_open_trial(shown), encoding="utf-8")
            _picture(view.as_uri(), target / f"{name}.png", (1280, height), *flags)


def of_tensorboard(project: pathlib.Path, target: pathlib.Path) -> None:
    """Takes the pictures of TensorBoard."""
    log_dir = project / "tensorboard"
    with _served(log_dir) as address:
        for name, (page, runs, size) in BOARD.items():
            # Of more than 40 runs TensorBoard chooses none by itself.
            found = log_dir.glob(runs) if runs else ()
            chosen = {path.relative_to(log_dir).as_posix(): True for path in found}
            state = json.dumps(chosen)
            state += " " * (-len(state) % 3)  # so that there is no "=" in the address
            state = base64.b64encode(state.encode()).decode()
            fragment = f"#{page}&_smoothingWeight=0&runSelectionState={state}"
            _picture(address + fragment, target / f"{name}.png", size)


def _with_an_open_trial(page: str) -> str:
    """Opens the section of a trial that was stopped for its gradients."""
    sections = re.findall(r'<details id="trial-\d+">.*?</summary>', page)
    chosen = next((s for s in sections if ">ERG<" in s), sections[0])
    return page.replace(chosen, chosen.replace("<details", "<details open", 1), 1)


def _command(*arguments: object) -> None:
    command = [sys.executable, "-m", "kt_bttackler", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=HERE.parent)


@contextlib.contextmanager
def _served(log_dir: pathlib.Path) -> Iterator[str]:
    """A TensorBoard, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", log_dir.name]
    options = ["--port", str(port), "--load_fast=false"]
    with subprocess.Popen(
        [*command, *options], cwd=log_dir.parent, stderr=subprocess.DEVNULL
    ) as board:
        try:
            address = f"http://127.0.0.1:{port}/"
            _wait_for(address + "data/plugin/hparams/experiment")
            yield address
        finally:
            board.terminate()


def _wait_for(address: str) -> None:
    body = b'{"experimentName": ""}'
    for _ in range(120):
        with contextlib.suppress(OSError):
            request = urllib.request.Request(
                address, body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                if b"epochs saved" in answer.read():
                    return
        time.sleep(1)
    raise SystemExit("TensorBoard shows no experiment.")


def _picture(
    address: str, path: pathlib.Path, size: tuple[int, int], *flags: str
) -> None:
    """Takes one picture, with fewer colours where it would be large."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no chromium is installed")
    with tempfile.TemporaryDirectory() as folder:
        shot = pathlib.Path(folder) / "shot.png"
        command = [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--virtual-time-budget=25000",
            f"--user-data-dir={folder}/profile",
            f"--window-size={size[0]},{size[1]}",
            f"--screenshot={shot}",
            *flags,
        ]
        subprocess.run(
            [*command, address],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=240,
        )
        image = Image.open(shot).convert("RGB")
        image.save(path, optimize=True)
        if path.stat().st_size > LARGEST:
            fewer = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=0)
            fewer.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"{path} is {path.stat().st_size} bytes, at most {LARGEST}")
    print(path)


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "target", nargs="?", type=pathlib.Path, default=HERE / "screenshots"
    )
    parser.add_argument("--searches", type=pathlib.Path, help="keeps the search there")
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        project = searched(options.searches or pathlib.Path(folder))
        of_the_report(project, options.target)
        of_tensorboard(project, options.target)


if __name__ == "__main__":
    main()
