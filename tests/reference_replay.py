"""A slow twin of the simulated search: every epoch is judged, and all is looked up."""

import math

from kt_bttackler.diagnosis import standing
from kt_bttackler.trace import Record, Trace


def moved(trace, started, trial_id):
    """A copy of a trace that begins at another moment."""
    fields = vars(trace.header) | {"started": started, "trial_id": trial_id}
    fields.pop("kernel_shares", None)
    return Trace(type(trace.header)(**fields), trace.records, trace.end)


def known_at(trial, moment):
    """A copy of what a simulated trial had recorded at a moment."""
    trace, length, stopped = trial["trace"], trial["length"], trial["stopped"]
    records = [
        Record(**vars(record))
        for record in trace.records[:length]
        if trace.header.started + record.seconds <= moment
    ]
    end = None
    if len(records) == length:
        end = "stopped" if stopped else trace.end
    return Trace(trace.header, records, end)


def simulate(traces, diagnosis, workers):
    """Verdict, start, end and epochs of each trial, in the order of their start."""
    waiting = [moved(t, 0.0, t.header.trial_id) for t in traces]
    trials, free = [], [0.0] * workers
    running = []
    while waiting or running:
        while waiting and free:
            free.sort()
            begun = free.pop(0)
            trace = waiting.pop(0)
            trace = moved(trace, begun, trace.header.trial_id)
            trial = {
                "trace": trace,
                "length": len(trace),
                "stopped": False,
                "verdict": None,
                "epoch": 0,
            }
            trials.append(trial)
            running.append(trial)
        # The next epoch that ends anywhere.
        trial = min(running, key=next_end)
        moment = next_end(trial)
        trial["epoch"] += 1
        if not (trial["verdict"] and trial["verdict"].stop):
            peers = [known_at(t, moment) for t in trials if t is not trial]
            verdict = diagnosis(known_at(trial, moment), peers)
            trial["verdict"] = standing(trial["verdict"], verdict)
            if verdict is not None and verdict.stop:
                delay = trial["trace"].header.stop_delay
                trial["length"] = min(trial["epoch"] + delay, trial["length"])
                trial["stopped"] = True
        if trial["epoch"] >= trial["length"]:
            running.remove(trial)
            free.append(moment)
            trial["ended"] = moment
    return [
        (t["verdict"], t["trace"].header.started, t["ended"], t["length"])
        for t in trials
    ]


def next_end(trial):
    trace = trial["trace"]
    return trace.header.started + trace.records[trial["epoch"]].seconds


def score(trace, length, best):
    """The objective of the best epoch, or of the last one."""
    values = [r.scalars.get("objective", math.nan) for r in trace.records[:length]]
    if not best:
        return values[-1] if math.isfinite(values[-1]) else math.nan
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return math.nan
    return max(finite) if trace.header.direction == "max" else min(finite)
