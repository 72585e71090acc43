"""Project folders of searches, made by hand: what KerasTuner and the callback leave."""

from __future__ import annotations

import json

from kt_bttackler import channel
from kt_bttackler.diagnosis import Verdict
from kt_bttackler.indicators import Finding
from kt_bttackler.trace import Header, Record, TraceWriter

ERG = Verdict(
    stop=True,
    benign=False,
    epoch=3,
    cause="ERG",
    findings=(
        Finding("ERG", 3, 4e-5, 1e-3, "conv2d_1", "", "median gradient ratio"),
        Finding("PLC", 3, 1e-4, 1e-3),
    ),
    rule="AnyFinding",
)
NMG = Verdict(True, True, 7, "NMG", (Finding("NMG", 7, 1.0, 0.999),), "AnyFinding")


def write_trial(
    project,
    trial_id,
    status="COMPLETED",
    score=0.5,
    values=None,
    entries=None,
    message=None,
):
    """Writes `trial.json` as KerasTuner does, with `entries` among its metrics."""
    folder = project / f"trial_{trial_id}"
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        name: {
            "direction": "min",
            "observations": [{"value": [value], "step": 0}],
        }
        for name, value in (entries or {}).items()
    }
    state = {
        "trial_id": trial_id,
        "hyperparameters": {"space": [], "values": values or {}},
        "metrics": {"metrics": metrics},
        "score": score,
        "best_step": 0,
        "status": status,
        "message": message,
    }
    (folder / "trial.json").write_text(json.dumps(state))
    return folder


def write_trace(
    folder,
    epochs,
    planned=10,
    execution=0,
    end="finished",
    seconds=1.0,
    setup=5.0,
    partial=False,
    **header,
):
    """A trace of `epochs` epochs of `seconds` each, the first longer by `setup`."""
    fields = {
        "trial_id": folder.name.removeprefix("trial_"),
        "execution": execution,
        "max_epochs": planned,
        "objective": "val_accuracy",
        "direction": "max",
    }
    writer = TraceWriter(
        folder / f"trace-{execution}.jsonl", Header(**(fields | header))
    )
    for n in range(1, epochs + 1):
        broken = partial and n == epochs
        writer.append(Record(n, setup + seconds * n, {"loss": 1.0}, partial=broken))
    if end is not None:
        writer.close(end)


def write_stopped(project, trial_id, verdict=ERG, epochs=3, **trace):
    """A trial that `verdict` ended."""
    benign = verdict.benign
    folder = write_trial(
        project,
        trial_id,
        status="COMPLETED" if benign else "STOPPED",
        score=0.8 if benign else 0.1,
        entries=channel.encode(verdict, {"val_accuracy": 0.1}),
        message=str(verdict),
    )
    write_trace(folder, epochs, end="stopped", **trace)
    (folder / "verdict-0.json").write_text(verdict.to_json())
    return folder
