"""The view of a search in TensorBoard, read back as TensorBoard reads it."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing import plugin_event_multiplexer
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.util import tensor_util

import kt_bttackler as ktb
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.tensorboard_study import Entry, StudyBoard, study_card

X = np.linspace(-1, 1, 64, dtype="float32").reshape(32, 2)
Y = (X[:, 0] > 0).astype("float32")


def build(hp):
    # With the larger one the first loss is infinite.
    scale = hp.Choice("scale", [0.1, 1e30])
    rate = hp.Float("lr", 1e-3, 1e-1, sampling="log")
    start = keras.initializers.Constant(scale)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(4, "relu", kernel_initializer=start),
            keras.layers.Dense(1, kernel_initializer=start),
        ]
    )
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def search(folder, trials, log_dir=None, **how):
    tuner = ktb.RandomSearch(
        build,
        "val_loss",
        max_trials=trials,
        seed=3,
        directory=folder,
        project_name="p",
        **how,
    )
    boards = [] if log_dir is None else [keras.callbacks.TensorBoard(log_dir)]
    tuner.search(
        X,
        Y,
        epochs=3,
        validation_data=(X, Y),
        callbacks=[ktb.DiagnosisCallback(), *boards],
        verbose=0,
    )
    return tuner


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A search of which one run made three trials, and another one two more."""
    folder = tmp_path_factory.mktemp("search")
    search(folder, 3, folder / "logs")
    tuner = search(folder, 5, folder / "logs")
    statuses = {trial.status for trial in tuner.oracle.trials.values()}
    assert statuses == {"COMPLETED", "STOPPED"}
    return tuner, folder / "logs"


def events(folder):
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    return found.Reload()


def hparams(log_dir):
    """Columns and rows of the HParams page."""
    runs = plugin_event_multiplexer.EventMultiplexer()
    runs.AddRunsFromDirectory(str(log_dir))
    runs.Reload()
    provider = MultiplexerDataProvider(runs, str(log_dir))
    context = backend_context.Context(TBContext(data_provider=provider))
    contents = context.hparams_metadata(RequestContext(), "")
    nothing = context.hparams_from_data_provider(RequestContext(), "", None)
    columns = context.experiment_from_metadata(
        RequestContext(), "", True, contents, nothing
    )
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100,
        allowed_statuses=list(api_pb2.Status.values()),
    )
    rows = list_session_groups.Handler(RequestContext(), context, "", request).run()
    return columns, rows.session_groups


def test_the_columns_are_those_that_matter_and_no_others(logged):
    _, log_dir = logged
    columns, _ = hparams(log_dir)
    names = [info.name for info in columns.hparam_infos]
    assert names == ["cause", "status", "lr", "scale"]  # those that matter first
    shown = {info.display_name: info.name for info in columns.metric_infos}
    assert set(shown) == {"val_loss", "stopped at", "epochs saved"}
    assert {name.group for name in shown.values()} == {"diagnosis"}


def test_there_is_a_row_for_each_trial_with_what_became_of_it(logged):
    tuner, log_dir = logged
    _, rows = hparams(log_dir)
    assert sorted(row.name for row in rows) == sorted(tuner.oracle.trials)
    for row in rows:
        trial = tuner.oracle.trials[row.name]
        values = {name: value for name, value in row.hparams.items()}
        assert values["status"].string_value == trial.status.lower()
        stopped = trial.status == "STOPPED"
        assert values["cause"].string_value == ("AGV" if stopped else "none")
        rate = trial.hyperparameters.values["lr"]
        assert values["lr"].number_value == pytest.approx(rate)
        metrics = {value.name.tag: value.value for value in row.metric_values}
        if stopped:
            assert metrics["diagnosis/stopped_at"] == 1.0
            assert metrics["diagnosis/epochs_saved"] == 2.0
        else:
            assert metrics["diagnosis/score"] == pytest.approx(trial.score, rel=1e-6)
            assert metrics["diagnosis/epochs_saved"] == 0.0
            assert "diagnosis/stopped_at" not in metrics


def test_the_page_of_custom_scalars_is_made_ready(logged):
    _, log_dir = logged
    found = events(log_dir / "_study")
    assert "custom_scalars__config__" in found.PluginTagToContent("custom_scalars")
    (event,) = found.Tensors("custom_scalars__config__")
    content = tensor_util.make_ndarray(event.tensor_proto).item()
    charts = layout_pb2.Layout.FromString(content).category[0].chart
    ids = [indicator.id for indicator in Diagnosis().indicators]
    assert [chart.title for chart in charts] == ids
    for chart in charts:
        (tag,) = chart.multiline.tag
        assert tag == f"^diagnosis/severity/{chart.title}$"


def test_the_summary_grows_with_every_trial(logged):
    _, log_dir = logged
    found = events(log_dir / "_study")
    texts = {
        event.step: tensor_util.make_ndarray(event.tensor_proto).item().decode()
        for event in found.Tensors("study/summary")
    }
    assert sorted(texts) == [1, 2, 3, 4, 5]
    entries = StudyBoard(log_dir).entries()
    assert texts[5] == study_card(entries)
    stopped = sum(entry.status == "stopped" for entry in entries)
    assert f"5 trials: {5 - stopped} completed, {stopped} stopped." in texts[5]
    assert ": AGV at epoch 1: " in texts[5]


def test_every_trial_has_a_card_and_its_worst_layers(logged):
    tuner, log_dir = logged
    for trial_id, trial in tuner.oracle.trials.items():
        found = events(log_dir / trial_id / "execution0" / "diagnosis")
        (card,) = found.Tensors("diagnosis/verdict")
        text = tensor_util.make_ndarray(card.tensor_proto).item().decode()
        tags = found.PluginTagToContent("histograms") if trial.score else {}
        if trial.status == "STOPPED":
            assert text.startswith("**Stopped at epoch 1: AGV**")
            continue
        assert text.startswith("**Nothing was found**")
        assert len(tags) == 2
        trace = next(
            trace
            for trace in ktb.TraceStore(tuner.project_dir)
            if trace.header.trial_id == trial_id
        )
        for tag in tags:
            variable = tag.removeprefix("diagnosis/gradient/")
            number = trace.header.variables.index(variable)
            shown = found.Tensors(tag)
            assert [event.step for event in shown] == [0, 1, 2]
            buckets = tensor_util.make_ndarray(shown[-1].tensor_proto)
            assert buckets[:, 2].sum() == trace.header.variable_sizes[number]
            assert (buckets[:, 0] <= buckets[:, 1]).all()
            low = trace.table("gradient/minimum")[-1, number]
            high = trace.table("gradient/maximum")[-1, number]
            assert (buckets[0, 0], buckets[-1, 1]) == (low, high)


def test_a_running_search_has_its_columns_and_no_summary_yet(tmp_path):
    board = StudyBoard(tmp_path)
    board.begin(Entry("0", {"lr": 0.1}, "val_loss", "min", ["AGV"]))
    columns, rows = hparams(tmp_path)
    assert {info.name for info in columns.hparam_infos} == {"status", "cause", "lr"}
    assert len(rows) == 0
    assert "study/summary" not in events(tmp_path / "_study").Tags()["tensors"]


def test_the_same_written_twice_is_there_once(tmp_path):
    board = StudyBoard(tmp_path)
    entry = Entry("0", {"lr": 0.1}, "val_loss", "min", ["AGV"], started=5.0)
    board.begin(entry)
    board.begin(entry)
    assert len(board.entries()) == 1
    record = tmp_path / "_study" / "events.out.tfevents.0000000000.experiment"
    before = record.stat().st_mtime_ns
    board.begin(entry)
    assert record.stat().st_mtime_ns == before


def test_several_workers_write_side_by_side(tmp_path):
    program = (
        "import sys\n"
        "from kt_bttackler.tensorboard_study import Entry, StudyBoard\n"
        "board = StudyBoard(sys.argv[1])\n"
        "for k in range(20):\n"
        "    entry = Entry(f'{sys.argv[2]}-{k}', {'lr': k, sys.argv[2]: 1}, 'loss',\n"
        "                  'min', why='x' * 500)\n"
        "    board.begin(entry)\n"
        "    board.end(entry)\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name])
        for name in "abc"
    ]
    assert [worker.wait(timeout=100) for worker in workers] == [0, 0, 0]
    lines = (tmp_path / "_study" / "trials.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 120
    assert len(StudyBoard(tmp_path).entries()) == 60
    columns, rows = hparams(tmp_path)
    assert {"lr", "a", "b", "c"} <= {info.name for info in columns.hparam_infos}
    assert len(rows) == 60


@pytest.mark.parametrize("line", ["{", "[]", '{"trial": 1}', "null", "\x00"])
def test_a_line_that_is_no_entry_is_left_out(tmp_path, line):
    board = StudyBoard(tmp_path)
    board.begin(Entry("0", {}, "loss", "min"))
    with open(tmp_path / "_study" / "trials.jsonl", "a") as file:
        file.write(line + "\n")
    board.end(Entry("1", {}, "loss", "min", status="completed", score=1.0))
    assert [entry.trial for entry in board.entries()] == ["0", "1"]


def test_time_saved_is_estimated_by_other_trials_where_one_has_no_later_epoch():
    sound = Entry("0", {}, "loss", "min", status="completed", seconds_per_epoch=2.0)
    stopped = Entry("1", {}, "loss", "min", status="stopped", epochs_saved=9)
    assert "9 saved, about 18 s." in study_card([sound, stopped])
    assert "9 saved." in study_card([stopped])


def test_names_are_escaped_in_the_summary():
    hostile = "](javascript:x) <script> | `"
    entry = Entry("0", {hostile: hostile}, "loss", "min", "", 0.0, "stopped", "AGV")
    card = study_card([entry])
    assert "<" not in card
    assert "](" not in card.replace("\\]", "")
    assert card.splitlines()[-1].count("|") == 3


def test_a_view_that_cannot_be_written_costs_one_warning(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "_study").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="study in TensorBoard is off"):
        tuner = search(tmp_path, 1, logs)
    assert [t.status for t in tuner.oracle.trials.values()] == ["COMPLETED"]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(StudyBoard, "begin", lambda *_: pytest.fail("written"))
    search(tmp_path, 1)
    assert not list(tmp_path.glob("**/*tfevents*"))
