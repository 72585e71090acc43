import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import specimens

from kt_bttackler import files
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.trace import (
    Header,
    Record,
    Trace,
    TraceStore,
    TraceWriter,
    read_trace,
)

AWKWARD = [
    0.1,
    1 / 3,
    1e-320,
    -0.0,
    1.7976931348623157e308,
    math.inf,
    -math.inf,
    math.nan,
]


def same(one, other):
    """Equal with nan equal to nan, and -0.0 apart from 0.0."""
    return files.dumps(one) == files.dumps(other)


def write(path, trace, end="finished"):
    writer = TraceWriter(path, trace.header)
    for record in trace.records:
        writer.append(record)
    if end:
        writer.close(end)


def test_a_trace_comes_back_bit_for_bit(tmp_path):
    header = specimens.header(
        trial_id="07",
        hyperparameters={"lr": 0.1, "act": "nan", "deep": True, "units": 3},
        planned_learning_rates=tuple(AWKWARD),
        unobserved={"activation": "no probe data"},
    )
    records = [
        Record(
            n,
            0.1 * n,
            {f"s{k}": v for k, v in enumerate(AWKWARD)},
            {"weight/mean": tuple(AWKWARD)},
            n == 2,
        )
        for n in (1, 2)
    ]
    write(tmp_path / "trace-0.jsonl", Trace(header, records))
    back = read_trace(tmp_path / "trace-0.jsonl")
    assert same(vars(back.header), vars(header))
    assert [
        same(vars(a), vars(b)) for a, b in zip(back.records, records, strict=True)
    ] == [True, True]
    assert back.end == "finished"
    assert back.header.edges == header.edges
    assert back.header.hyperparameters["act"] == "nan"


def test_every_line_is_strict_json(tmp_path):
    write(tmp_path / "trace-0.jsonl", specimens.SICK["AGV"])
    for line in (tmp_path / "trace-0.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_half_a_last_line_is_ignored(tmp_path):
    path = tmp_path / "trace-0.jsonl"
    write(path, specimens.SICK["PLC"], end=None)
    content = path.read_bytes()
    whole = len(read_trace(path))
    for cut in (1, 20, 60):
        path.write_bytes(content[:-cut])
        assert len(read_trace(path)) == whole - 1
        assert read_trace(path).end is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"[]\n",
        b"nonsense\n",
        b'{"schema":2,"header":{}}\n',
        b"\x80\x04K\x01.\n",
    ],
)
def test_what_is_no_trace_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "trace-0.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"trace-0\.jsonl"):
        read_trace(path)


def test_a_broken_line_inside_is_refused(tmp_path):
    path = tmp_path / "trace-0.jsonl"
    write(path, specimens.SICK["PLC"])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], '{"epoch": 2}\n', *lines[3:]]))
    with pytest.raises(ValueError, match="line 3 is not part of a trace"):
        read_trace(path)


def test_prefixes_share_columns_and_know_nothing_of_the_rest():
    whole = specimens.SICK["ULC"]
    prefix = whole.prefix(3)
    assert (len(prefix), prefix.epoch) == (3, 3)
    assert (
        prefix.table("step_gradient/abs_mean").base
        is whole.table("step_gradient/abs_mean").base
    )
    assert prefix.scalar("loss").tolist() == whole.scalar("loss")[:3].tolist()
    assert len(prefix.records) == 3
    with pytest.raises(ValueError, match="`length` must be between 0 and 3, got 4"):
        prefix.prefix(4)


def test_a_prefix_of_a_prefix_with_a_record_more_is_its_own():
    whole = specimens.SICK["ULC"]
    whole.scalar("loss")
    longer = whole.prefix(2).with_record(Record(3, 3.0, {"loss": 99.0}))
    assert longer.scalar("loss")[-1] == 99.0
    assert whole.scalar("loss")[2] != 99.0


def test_missing_statistics_are_nan():
    trace = specimens.SICK["PLC"]
    assert np.isnan(trace.scalar("nothing")).all()
    assert trace.table("weight/mean").shape == (len(trace), 8)
    assert np.isnan(trace.table("weight/mean")).all()
    assert trace.table("activation/mean").shape == (len(trace), 3)


def test_a_store_reads_a_search_and_follows_it(tmp_path):
    for trial in ("0", "1"):
        header = Header(trial_id=trial)
        write(
            tmp_path / f"trial_{trial}" / "trace-0.jsonl", Trace(header, []), end=None
        )
    (tmp_path / "trial_2").mkdir()
    (tmp_path / "trial_2" / "trace-0.jsonl").write_text("nonsense\n")
    store = TraceStore(tmp_path)
    assert [t.header.trial_id for t in store] == ["0", "1"]
    write(
        tmp_path / "trial_1" / "trace-0.jsonl",
        Trace(Header(trial_id="1"), [Record(1, 1.0, {})]),
    )
    assert [len(t) for t in store] == [0, 1]
    assert store.trial("1").end == "finished"
    with pytest.raises(KeyError, match="no trace of trial '9'"):
        store.trial("9")


def test_a_trial_that_is_run_again_replaces_its_trace(tmp_path):
    path = tmp_path / "trace-0.jsonl"
    write(path, specimens.SICK["PLC"], end=None)
    write(path, specimens.SICK["PLC"].prefix(2))
    assert len(read_trace(path)) == 2


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "verdict-0.json"
    files.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["verdict-0.json"]


def test_strict_json_refuses_constants():
    with pytest.raises(ValueError, match="NaN is not strict JSON"):
        files.loads('{"loss": NaN}')


PURE = [
    "files", "trace", "records", "indicators", "gradient_indicators", "loss_indicators",
    "activation_indicators", "upstream", "rules", "diagnosis", "channel", "context",
    "stats", "study", "report", "results", "testing",
    "recording", "shards", "recorded_task", "replay", "measures", "comparison", "comparison_text", "sweeping", "calibration",
    "spared", "replay_command", "calibrate_command", "peer_rules", "median_stopping", "learning_curves", "extrapolation", "curve_families",
]  # fmt: skip


def test_facts_and_judgements_never_import_tensorflow():
    code = (
        "import importlib, sys\n"
        f"for name in {PURE!r}:\n"
        "    importlib.import_module(f'kt_bttackler.{name}')\n"
        "heavy = {'tensorflow', 'keras', 'keras_tuner', 'tensorboard'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_trial_of_a_deep_model_stays_below_a_megabyte(tmp_path):
    """50 layers with kernel and bias, an activation each, 20 epochs: all the default
    diagnosis asks for, with numbers of full length."""
    draw = np.random.default_rng(1)
    head = specimens.header(
        layers=50,
        trial_id="0007",
        objective="val_accuracy",
        hyperparameters={f"hyperparameter_{k}": 0.1 * k for k in range(13)},
        planned_learning_rates=tuple(draw.random(21)),
        activations=tuple(f"dense_{k}" for k in range(50)),
    )
    needed = {name for name in Diagnosis().needs if "/" in name}
    assert len(needed) == 5
    writer = TraceWriter(tmp_path / "trace-0.jsonl", head)
    for n in range(1, 21):
        columns = {
            name: tuple(draw.lognormal(-7, 3, 50 if "activation" in name else 100))
            for name in needed
        }
        scalars = {
            name: float(draw.lognormal())
            for name in ("loss", "accuracy", "val_loss", "val_accuracy", "objective",
                         "first_batch_loss", "learning_rate", "regularization")
        }  # fmt: skip
        writer.append(Record(n, n * 1.2345678901234, scalars, columns))
    writer.close("finished")
    size = (tmp_path / "trace-0.jsonl").stat().st_size
    assert 100_000 < size < 1_000_000
    back = read_trace(tmp_path / "trace-0.jsonl")
    assert back.header.hyperparameters == head.hyperparameters
    assert (len(back), back.scalar("objective").size) == (20, 20)
