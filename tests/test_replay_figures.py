"""The figures in `docs/replay.md` are those of the recorded results, or computed."""

import json
import pathlib
import re

from kt_bttackler import measures

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
RESULTS = json.loads(
    (ROOT / "examples" / "benchmarks" / "results" / "replay.json").read_text()
)


def test_the_speed_is_the_recorded_one_and_what_was_promised():
    for preset, found in RESULTS["replay"].items():
        afresh = found["afresh_trials_per_second"]
        once = found["measured_once_trials_per_second"]
        assert f"`{preset}`, measured afresh | {afresh:.0f} |" in PAGE
        assert f"| the same, measured once | {once:.0f} |" in PAGE
        assert afresh >= 200
        assert once >= 2000
    slowest = max(RESULTS["sweep_seconds"].values())
    assert f"| {slowest:.2f} s |" in PAGE
    settings = RESULTS["settings"]
    assert (settings["trials"], settings["thresholds"]) == (200, 1000)
    assert (settings["epochs"], settings["layers"]) == (20, 10)


def test_what_zero_kills_prove_is_computed():
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) % \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for trials, percent in rows:
        digits = len(percent.partition(".")[2])
        bound = 100 * measures.upper_bound(0, int(trials))
        assert f"{bound:.{digits}f}" == percent
