"""Recording studies, on a task of one dense layer; the paper's tasks on random data."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import math
import shutil

import keras
import keras_tuner
import numpy as np
import pytest
import test_cli

from kt_bttackler import paper_data, paper_images, study_command, study_recording
from kt_bttackler.catalog import known_indicators
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.paper_tasks import TASKS
from kt_bttackler.presets import PRESETS
from kt_bttackler.recorded_task import Task, TaskData
from kt_bttackler.trace import TraceStore

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X[:, :1] * 2


def declare(hp):
    hp.Float("lr", 1e-3, 1e-1, sampling="log")
    hp.Choice("units", [2, 3])


def load(path):
    return TaskData((X, Y), (X, Y), X, float(np.var(Y)), "the mean")


def train(values, data, seed, epochs, callbacks):
    layers = [keras.layers.Dense(values["units"], "relu"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(keras.optimizers.SGD(values["lr"]), "mse")
    model.fit(
        *data.train,
        epochs=epochs,
        validation_data=data.validation,
        verbose=0,
        callbacks=list(callbacks),
    )


TINY = Task("tiny", "val_loss", "min", 3, declare, load, train, ("tiny",))


def record(folder, trials, **how):
    told = []
    how = {"task": TINY, "data": "none", "tell": told.append} | how
    study_recording.record(folder=folder, trials=trials, **how)
    return told


def losses(folder):
    return {t.header.trial_id: t.scalar("loss").tolist() for t in TraceStore(folder)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_recording, "SHARD_TRIALS", 2)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of five trials, the last in no shard."""
    folder = tmp_path_factory.mktemp("whole")
    record(folder, 5)
    return folder


def test_what_every_preset_and_every_indicator_needs_is_recorded(whole):
    needed = set().union(*(Diagnosis(name).needs for name in PRESETS))
    for indicator in known_indicators().values():
        if not indicator.__module__.startswith("kt_bttackler."):
            continue  # of another test
        needed |= getattr(indicator, "needs", set())
    assert needed <= study_recording.EveryStatistic.needs
    assert study_recording.EveryStatistic.id not in known_indicators()
    trace = TraceStore(whole).trial("0000")
    columns = {name for each in trace.records for name in each.columns}
    elsewhere = ("model/", "label/", "output/")
    assert columns == {n for n in needed if "/" in n and not n.startswith(elsewhere)}
    scalars = {name for each in trace.records for name in each.scalars}
    assert {name for name in needed if "/" not in name} <= scalars
    assert trace.max_epochs == 3
    assert trace.header.objective == "val_loss"
    assert set(trace.header.hyperparameters) == {"lr", "units"}
    for preset in PRESETS:  # replays, and disables nothing
        disabled = set()
        for prefix in trace.prefixes():
            Diagnosis(preset).findings(prefix, disabled)
        assert not disabled


def test_a_killed_recording_goes_on_where_it_was(whole, tmp_path):
    # Killed in trial 3: nothing of it is there, and nothing before it is lost.
    started = itertools.count()

    def killed(*arguments):
        if next(started) == 3:
            raise KeyboardInterrupt
        train(*arguments)

    with pytest.raises(KeyboardInterrupt):
        record(tmp_path, 5, task=dataclasses.replace(TINY, train=killed))
    assert names(tmp_path) == ["card.json", "shard-000.jsonl.xz", "trace-0002.jsonl"]
    told = record(tmp_path, 5)
    assert [line.split(":")[0] for line in told] == ["tiny trial 3", "tiny trial 4"]
    assert names(tmp_path) == names(whole)
    assert losses(tmp_path) == losses(whole)
    assert list(losses(whole)) == ["0000", "0001", "0002", "0003", "0004"]
    assert record(tmp_path, 5) == []
    # Trials stand one behind the other on the clock, also after the break.
    traces = list(TraceStore(tmp_path))
    assert traces[0].header.started == 0.0
    for before, trace in itertools.pairwise(traces):
        assert trace.header.started == pytest.approx(before.moment, abs=1e-3)
    for trace in traces:
        assert (np.diff(trace.seconds) > 0).all()
        assert 0 < trace.seconds[0] < 60


def test_what_a_process_left_when_it_was_killed_is_tidied(whole, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(whole, folder)
    shard = (folder / "shard-000.jsonl.xz").read_bytes()
    study = study_recording._Folder(folder, TINY, 0)
    study.keep(1, TraceStore(folder).trial("0001"), started=0.0)  # after its shard
    (folder / ".trace-0005.jsonl").write_text("half a trace")  # while writing
    record(folder, 6)
    assert names(folder) == [
        "card.json",
        *(f"shard-00{number}.jsonl.xz" for number in range(3)),
    ]
    assert (folder / "shard-000.jsonl.xz").read_bytes() == shard
    assert len(losses(folder)) == 6


def test_processes_can_share_a_study(whole, tmp_path):
    record(tmp_path, 5, first=3)
    record(tmp_path, 3)
    assert names(tmp_path) == names(whole)
    assert losses(tmp_path) == losses(whole)
    # Each is a worker of its own: both start at 0.
    starts = [trace.header.started for trace in TraceStore(tmp_path)]
    assert starts[0] == starts[3] == 0.0
    assert 0.0 < starts[1] < starts[2]


def test_a_training_without_hope_is_recorded_to_its_end(tmp_path):
    def hopeless(values, *rest):
        train({**values, "lr": 1e30}, *rest)

    record(tmp_path, 1, task=dataclasses.replace(TINY, train=hopeless))
    [trace] = TraceStore(tmp_path)
    assert trace.end == "finished"
    assert len(trace) == 3
    assert not any(each.partial for each in trace.records)
    assert math.isnan(trace.scalar("objective")[-1])
    verdict = Diagnosis()(trace.prefix(1))
    assert verdict.cause == "AGV"


def test_a_study_is_recorded_one_way_only(whole, tmp_path):
    card = json.loads((whole / "card.json").read_text())
    assert card["trivial_score"] == pytest.approx(float(np.var(Y)))
    shutil.copy(whole / "card.json", tmp_path)
    with pytest.raises(ValueError, match="`seed` is 0, here it is 1"):
        record(tmp_path, 2, seed=1)
    with pytest.raises(ValueError, match="`epochs` is 3, here it is 4"):
        record(tmp_path, 2, task=dataclasses.replace(TINY, epochs=4))


def test_no_configuration_comes_twice():
    def few(hp):
        hp.Int("a", 1, 3)
        hp.Choice("b", ["x", "y"])

    task = dataclasses.replace(TINY, declare=few)
    drawn = itertools.islice(study_recording.configurations(task, 0), 6)
    assert len({tuple(values.values()) for values in drawn}) == 6
    first = [next(study_recording.configurations(TINY, seed)) for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


def test_an_estimate_records_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    estimate = study_recording.estimate(TINY, "none", 100, sample=2)
    assert not names(tmp_path)
    assert 0 < estimate.seconds_per_trial < 60
    assert 100 < estimate.bytes_per_trial < 20_000
    assert "for 100 trials. Measured on two epochs of 2 conf" in str(estimate)


# The paper's tasks.

SPACES = {
    "cifar10-cnn": {
        "conv1_k_num": (8, 31),
        "conv2_k_num": (32, 63),
        "conv3_k_num": (64, 127),
        "conv4_k_num": (64, 127),
        "conv_k_size": [2, 3],
        "batch_norm": [0, 1],
        "mlp_f_num": (10, 999),
        "lr": (1e-4, 0.4),
        "weight_decay": (1e-5, 1e-3),
        "drop_rate": (0.0, 0.9),
        "act": ["relu", "tanh", "sigmoid", "elu", "leaky_relu"],
        "opt": ["SGD", "Adam", "RMSprop", "Adagrad", "Adadelta"],
        "batch_size": [45, 90, 180, 360, 720],
    },
    "cifar10-lstm": {
        "hidden_size": [16, 32, 64, 128],
        "mlp_f_num": (10, 999),
        "lr": (1e-4, 0.4),
        "weight_decay": (1e-5, 1e-3),
        "drop_rate": (0.0, 0.9),
        "act": ["relu", "tanh", "sigmoid", "elu", "leaky_relu"],
        "opt": ["SGD", "Adam", "RMSprop", "Adagrad", "Adadelta"],
        "batch_size": [45, 90, 180, 360, 720],
    },
    "exchange-transformer": {
        "e_layers": (1, 3),
        "d_layers": (1, 3),
        "d_model": [256, 512, 1024],
        "n_heads": (5, 14),
        "d_ff": (1024, 2047),
        "learning_rate": (1e-5, 1e-3),
        "batch_size": [16, 32, 64],
        "dropout": [0.05, 0.1, 0.15, 0.2],
    },
}
LOG = {"lr", "weight_decay", "learning_rate"}


@pytest.mark.parametrize("name", SPACES)
def test_the_spaces_are_those_of_the_paper(name):
    space = keras_tuner.HyperParameters()
    TASKS[name].declare(space)
    found = {
        each.name: (each.min_value, each.max_value)
        if hasattr(each, "min_value")
        else each.values
        for each in space.space
    }
    assert {k: list(v) for k, v in found.items()} == {
        k: list(v) for k, v in SPACES[name].items()
    }
    logarithmic = {e.name for e in space.space if getattr(e, "sampling", "") == "log"}
    assert logarithmic == LOG & set(found)
    draws = itertools.islice(study_recording.configurations(TASKS[name], 0), 400)
    drawn = [list(values) for values in zip(*(d.values() for d in draws), strict=True)]
    for values, bounds in zip(drawn, found.values(), strict=True):
        if isinstance(bounds, tuple) and isinstance(bounds[0], int):
            reached = {min(values), max(values)}  # both ends belong to the space
            wide = bounds[1] - bounds[0] > 100
            assert wide or reached == set(bounds)


def test_the_command_knows_the_tasks():
    assert study_command.TASKS == tuple(TASKS) == tuple(SPACES)


@pytest.fixture(scope="module")
def data_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    dice = np.random.default_rng(0)
    np.savez(
        folder / "images.npz",
        x_train=dice.integers(0, 256, (720, 32, 32, 3), "uint8"),
        y_train=np.arange(720) % 10,
        x_test=dice.integers(0, 256, (40, 32, 32, 3), "uint8"),
        y_test=(np.arange(40) % 10)[:, None],
    )
    steps = dice.normal(0, 0.01, (6100, 8)).cumsum(axis=0) + 1
    with gzip.open(folder / "rates.txt.gz", "wt") as file:
        np.savetxt(file, steps, "%.6f", ",")
    return folder


def path_for(name, folder):
    return folder / ("rates.txt.gz" if "exchange" in name else "images.npz")


def smallest(name):
    """The task with a quick configuration of its space."""
    task = TASKS[name]
    values = next(study_recording.configurations(task, 0))
    values |= {"batch_size": max(SPACES[name]["batch_size"])}
    values |= {"d_layers": 1, "e_layers": 1} if "exchange" in name else {}
    return task, values


@pytest.mark.parametrize("name", SPACES)
def test_a_trial_of_the_paper_can_be_repeated(name, data_files):
    task, values = smallest(name)
    data = task.load(path_for(name, data_files))
    epochs = 2 if name == "cifar10-cnn" else 1
    # The images of both networks are drawn alike: one shows it.
    repeats = 1 if name == "cifar10-lstm" else 2
    traces = [
        study_recording.train(task, data, values, 7, epochs) for _ in range(repeats)
    ]
    facts = [[dict(each.scalars) for each in trace.records] for trace in traces]
    assert facts[0] == facts[-1]
    trace = traces[0]
    assert len(trace) == epochs
    assert trace.max_epochs == 20
    assert not trace.header.unobserved
    assert np.isfinite(trace.scalar("label/trivial_loss")).all()
    # The rates fall as in the paper.
    factor, whole = (0.5, 2) if "exchange" in name else (0.7, 1)
    rate = values.get("lr", values.get("learning_rate"))
    expected = [rate * factor ** max(0, n - whole) for n in range(1, 21)]
    assert trace.header.planned_learning_rates[:-1] == pytest.approx(expected, rel=1e-5)


def test_images_are_halved_shifted_and_mirrored(data_files):
    images = paper_data.load_images(data_files / "images.npz")
    with np.load(data_files / "images.npz") as raw:
        block = raw["x_train"][3, 4:6, 8:10].astype("float64")
    pixels, labels = images.train
    assert pixels[3, 2, 4] == pytest.approx(block.mean(axis=(0, 1)))
    few = (paper_images.padded(pixels[:6]), labels[:6])
    batches = paper_images.ShiftedImages(*few, 2, seed=0)
    assert len(batches) == 3
    margin = paper_images.padded(pixels[:6])
    seen = set()
    for _ in range(30):
        orders = []
        for number in range(3):
            for image, label in zip(*batches[number], strict=True):
                matches = [
                    (row, mirrored, down, right)
                    for row, mirrored, down, right in itertools.product(
                        range(6), range(2), range(5), range(5)
                    )
                    if np.array_equal(
                        margin[mirrored, row, down : down + 16, right : right + 16],
                        image,
                    )
                ]
                [(row, *move)] = matches
                assert labels[row] == label
                orders.append(row)
                seen.add(tuple(move))
        assert sorted(orders) == list(range(6))
        batches.on_epoch_end()
    assert len(seen) > 45  # of 2 x 5 x 5


def test_black_is_what_the_margin_is_filled_with():
    black = paper_images.padded(np.zeros((1, 16, 16, 3), "float32"))
    assert (black == black[0, 0, 0, 0]).all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("images.npz", {"x_test": np.zeros((4, 28, 28, 1), "uint8")}, "uint8"),
        ("images.npz", {"y_test": np.full(40, 10)}, "from 0 to 9"),
        ("images.npz", {"y_test": np.zeros(40)}, "from 0 to 9"),
        ("rates.txt", "1,2,3\n", "lines of 8 numbers"),
        ("rates.txt", "1,2,3,4,5,6,7,x\n", "lines of 8 numbers"),
        ("rates.txt", "1,2,3,4,5,6,7,nan\n", "lines of 8 numbers"),
        ("rates.txt", "", "lines of 8 numbers"),
        ("rates.txt", "1,2,3,4,5,6,7,8\n" * 9, "at least 6071 days, got 9"),
    ],
)
def test_data_of_another_kind_are_refused(name, changes, message, data_files, tmp_path):
    path = tmp_path / name
    if isinstance(changes, str):
        path.write_text(changes)
        task = TASKS["exchange-transformer"]
    else:
        with np.load(data_files / "images.npz") as raw:
            np.savez(path, **(dict(raw) | changes))
        task = TASKS["cifar10-cnn"]
    with pytest.raises(ValueError, match=message):
        task.load(path)


def test_the_command_records_and_goes_on(tmp_path, data_files):
    data = str(data_files / "images.npz")
    command = ["study", "record", "cifar10-cnn", "--folder", "s", "--data", data]
    codes, loaded, printed, errors = test_cli.in_fresh_process(
        tmp_path, ["study", "record", "mnist"], ["study"],
        [*command, "--trials", "0"], [*command[:-1], "missing.npz"],
    )  # fmt: skip
    assert (codes, loaded, printed) == ([2] * 4, False, [])
    told = ["invalid choice: 'mnist'", "ACTION", "at least 1", "missing.npz is no file"]
    assert all(text in line for text, line in zip(told, errors, strict=True))
    codes, _, printed, _ = test_cli.in_fresh_process(
        tmp_path, [*command, "--trials", "1"], [*command, "--trials", "1"]
    )
    assert codes == [0, 0]
    assert len(printed) == 1
    assert "cifar10-cnn trial 0: val_accuracy" in printed[0]
    assert len(next(iter(TraceStore(tmp_path / "s")))) == 20
