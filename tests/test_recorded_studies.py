"""The studies of the benchmarks are whole, and what their data card says is so."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.presets import PRESETS
from kt_bttackler.replay import Recording, simulate
from kt_bttackler.trace import TraceStore

STUDIES = pathlib.Path(__file__).parents[1] / "examples" / "benchmarks" / "studies"
NAMES = sorted({path.parent.name for path in STUDIES.glob("*/shard-*")})


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_whole(name):
    folder = STUDIES / name
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    traces = list(TraceStore(folder))
    ids = [int(trace.header.trial_id) for trace in traces]
    assert ids == list(range(len(traces)))
    clock = 0.0
    for trace in traces:
        assert (trace.end, len(trace), trace.max_epochs) == ("finished", 20, 20)
        assert trace.header.objective == card["objective"]
        assert trace.header.direction == card["direction"]
        assert not trace.header.unobserved
        assert trace.header.started == pytest.approx(clock, abs=0.01)
        assert (np.diff(trace.seconds, prepend=0) > 0).all()
        clock = trace.moment
    configurations = {json.dumps(dict(t.header.hyperparameters)) for t in traces}
    assert len(configurations) == len(traces)
    row = f"| {name} | {len(traces)} | {clock:.0f} | {clock / len(traces):.1f} |"
    assert row in (STUDIES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_replays_on_it(name, recwarn):
    recording = Recording(list(TraceStore(STUDIES / name))[:20])
    for preset in PRESETS:
        [run] = simulate(recording, Diagnosis(preset))
        assert len(run.trials) == len(recording)
        assert run.count("unknown", "cut") == 0
    assert not [each for each in recwarn if "is off" in str(each.message)]
