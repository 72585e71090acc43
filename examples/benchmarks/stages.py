"""What it saves to train the beginnings that trials share once.

    python examples/benchmarks/stages.py --json stages.json [--smoke]
        [--parts plans,timed,rungs,diagnosis,workers]

- `plans`: for the spaces A to G of `stage_spaces.py` with 30 epochs: trials, their
  epochs, the epochs to train, the merge rate, states, the disk that they take, and a
  lower bound of the epochs that pass with two workers.
- `timed`: the grid of a space in three arms, alternating: KerasTuner's tuner, which
  builds and traces every model anew; `StageTuner` without room for states, which has
  warm models and shares nothing; `StageTuner`. Epochs are counted by a callback.
- `rungs`: successive halving on B: what beginning anew in every rung and what going on
  would train on the same trials, and what is trained in stages.
- `diagnosis`: the grid of a space with sick starts, and that of A, with and without
  stages, with and without diagnosis.
- `workers`: two processes that share a folder, on B, where an epoch waits as if for an
  accelerator.

The model is a small convolutional network with batch normalisation and dropout on the
digits of scikit-learn. Each measurement is a process of its own; its imports are not
counted. Those that the file has are not made again.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_tuner
import stage_spaces
from sklearn.datasets import load_digits

import kt_bttackler as ktb
from kt_bttackler import stages
from kt_bttackler.stages import schedules

PACKAGES = ("keras", "keras-tuner", "numpy", "tensorflow")
SPACES = "ABCDEFG"
ARMS = ("KerasTuner", "stages", "warm models")
# By name: space, epochs, filters, rows, trials of the grid (None: all), arms, runs.
# The first 12 trials of B are those of its first start and two first milestones.
CASES = {
    "D": ("D", 4, 128, 1437, 6, ("KerasTuner", "stages"), 1),
    "B": ("B", 12, 128, 1437, 12, ARMS, 1),
    "G, short epochs": ("G", 12, 2, 360, None, ARMS, 1),
}
SMOKE = {"G": ("G", 3, 2, 64, None, ARMS, 1)}
DIAGNOSED = ("sick", "A")
COMBINATIONS = ("neither", "diagnosis", "stages", "both")


class Digits(keras_tuner.HyperModel):
    """A small convolutional network on 8 x 8 images, in one of the spaces."""

    def __init__(self, space, epochs, filters):
        super().__init__()
        self.space = space
        self.scale = epochs / stage_spaces.EPOCHS
        self.filters = filters

    def build(self, hp):
        """The model; `weight_decay` is 0 where the space has none."""
        rate = stage_spaces.declare(hp, self.space, self.scale)
        decay = hp.values.get("weight_decay", 0.0)
        layers = keras.layers
        model = keras.Sequential([keras.Input((8, 8, 1))])
        for _ in range(2):
            model.add(layers.Conv2D(self.filters, 3, padding="same"))
            model.add(layers.BatchNormalization())
            model.add(layers.ReLU())
        model.add(layers.Flatten())
        model.add(layers.Dropout(0.2))
        model.add(layers.Dense(10, activation="softmax"))
        model.compile(
            keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        return model

    def schedules(self, hp):
        """The schedules of a trial."""
        own = keras_tuner.HyperParameters.from_config(hp.get_config())
        with schedules.collecting() as declared:
            stage_spaces.declare(own, self.space, self.scale)
        return declared


class InPlainKeras(Digits):
    """The same trials for KerasTuner's tuner, which knows of no schedules."""

    def fit(self, hp, model, *args, epochs, callbacks, **kwargs):
        """One `fit` for each batch size, with a scheduler for the learning rate."""
        declared = self.schedules(hp)
        rate, size = declared.get("learning_rate"), declared.get("batch_size")
        if rate is not None:
            scheduler = keras.callbacks.LearningRateScheduler(
                lambda epoch, _: float(rate.at(epoch))
            )
            callbacks = [scheduler, *callbacks]
        cuts = [stage.start for stage in size.segments(epochs)] if size else [0]
        history = {}
        for start, end in zip(cuts, [*cuts[1:], epochs], strict=True):
            kwargs["batch_size"] = size.at(start) if size else 32
            part = model.fit(
                *args, initial_epoch=start, epochs=end, callbacks=callbacks, **kwargs
            )
            for name, values in part.history.items():
                history.setdefault(name, []).extend(values)
        part.history = history
        return part


class Count(keras.callbacks.Callback):
    """Notes the epochs of a whole search: when each ended, what it took."""

    def __init__(self, noted=None, pause=0.0):
        super().__init__()
        self.noted = [] if noted is None else noted
        self.pause = pause

    def __deepcopy__(self, memo):
        """A copy that notes in the same place."""
        return Count(self.noted, self.pause)

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clocks."""
        self._begun = time.time(), time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        """Notes the epoch."""
        time.sleep(self.pause)
        wall, cpu = self._begun
        self.noted.append((wall, time.time(), time.process_time() - cpu))


def data(rows):
    """Arguments of `fit`."""
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
    return {
        "x": x[:rows],
        "y": y[:rows],
        "validation_data": (x[1437:], y[1437:]),
        "verbose": 0,
    }


def searched(tuner, fit, *callbacks, pause=0.0, **arguments):
    """Runs a search; returns what it took and how it ended."""
    count = Count(pause=pause)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    tuner.search(**fit, callbacks=[*callbacks, count], **arguments)
    trials = tuner.oracle.trials.values()
    scores = [trial.score for trial in trials if trial.status == "COMPLETED"]
    facts = {
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(time.process_time() - begun_cpu, 2),
        "epochs": len(count.noted),
        "cpu_seconds_per_epoch": round(
            statistics.median([cpu for *_, cpu in count.noted] or [0]), 4
        ),
        "trials": len(trials),
        "stopped": sum(trial.status == "STOPPED" for trial in trials),
        "best": max(map(float, scores), default=None),
    }
    if isinstance(tuner, stages.StageTuner):
        usage = tuner.usage
        facts |= {
            "loading": round(usage.loading, 3),
            "saving": round(usage.saving, 3),
            "cancelled": usage.cancelled,
            "second_opinions": usage.second_opinions,
            "trained": usage.trained,
            "disk": tuner.stage_store.disk_usage(),
        }
    return facts, count.noted


def staged(model, folder, oracle=None, trials=None, epochs=None, **arguments):
    """A `StageTuner`."""
    return stages.StageTuner(
        model,
        oracle=oracle
        or ktb.oracles.GridSearchOracle("val_accuracy", max_trials=trials),
        epochs=epochs,
        directory=folder,
        stateless=[Count],
        **arguments,
    )


def measure_plans(space):
    """What is to be expected of 30 epochs, without training."""
    model = Digits(space, stage_spaces.EPOCHS, 16)
    with tempfile.TemporaryDirectory() as folder:
        plan = stages.plan(staged(model, folder, epochs=stage_spaces.EPOCHS))
    return {
        "trials": plan.trials,
        "epochs": plan.total_epochs,
        "to_train": plan.unique_epochs,
        "merge_rate": round(plan.merge_rate, 3),
        "states": plan.states,
        "disk": plan.disk_peak,
        "two_workers": plan.tree.shortest_makespan(2),
    }


def measure_timed(name, arm, run):
    """One search of the grid of a space."""
    space, epochs, filters, rows, trials, *_ = (CASES | SMOKE)[name]
    fit = data(rows)
    with tempfile.TemporaryDirectory() as folder:
        if arm == "plan":
            model = Digits(space, epochs, filters)
            plan = stages.plan(staged(model, folder, trials=trials, epochs=epochs))
            return {"merge_rate": plan.merge_rate, "to_train": plan.unique_epochs}
        if arm == "KerasTuner":
            keras.utils.set_random_seed(0)
            tuner = keras_tuner.GridSearch(
                InPlainKeras(space, epochs, filters),
                objective="val_accuracy",
                max_trials=trials,
                directory=folder,
            )
            return searched(tuner, fit, epochs=epochs)[0]
        tuner = staged(
            Digits(space, epochs, filters),
            folder,
            trials=trials,
            epochs=epochs,
            disk_budget=0 if arm == "warm models" else None,
        )
        return searched(tuner, fit)[0]


def measure_rungs(smoke):
    """Successive halving on B: epochs trained in three ways."""
    oracle = ktb.oracles.SuccessiveHalvingOracle(
        "val_accuracy",
        max_epochs=27,
        min_epochs=3,
        num_initial_trials=4 if smoke else 36,
        seed=0,
    )
    model = Digits("B", stage_spaces.EPOCHS, 4)
    with tempfile.TemporaryDirectory() as folder:
        facts, _ = searched(staged(model, folder, oracle), data(180))
    trials = [trial.hyperparameters for trial in oracle.trials.values()]
    tree = stages.StageTree()
    for hp in trials:
        declared = model.schedules(hp).values()
        tree.add(stages.split(declared, hp.values["tuner/epochs"]))
    resumed = sum(hp.values["tuner/initial_epoch"] for hp in trials)
    return facts | {
        "to_train": tree.unique_epochs,
        "restarted": tree.total_epochs,
        "resumed": tree.total_epochs - resumed,
    }


def measure_diagnosis(space, arm, smoke):
    """Stages and diagnosis, each without and with the other."""
    epochs, filters, rows = (3, 2, 64) if smoke else (12, 4, 360)
    callbacks = [ktb.DiagnosisCallback()] if arm in ("diagnosis", "both") else []
    budget = 0 if arm in ("neither", "diagnosis") else None
    model = Digits(space, epochs, filters)
    with tempfile.TemporaryDirectory() as folder:
        tuner = staged(model, folder, epochs=epochs, disk_budget=budget)
        return searched(tuner, data(rows), *callbacks)[0]


def measure_worker(folder, number, pause):
    """One of the processes that share a folder; its epochs wait."""
    model = Digits("B", 12, 2)
    tuner = staged(
        model,
        f"{folder}/{number}",
        epochs=12,
        stage_dir=f"{folder}/stages",
        workers=2,
    )
    facts, noted = searched(tuner, data(64), pause=float(pause))
    return facts | {"noted": noted}


def measure_workers(pause):
    """Two processes at once; the longest path and half of the work are the bound."""
    with tempfile.TemporaryDirectory() as folder:
        plan = stages.plan(staged(Digits("B", 12, 2), f"{folder}/plan", epochs=12))
        workers = [
            start(["worker", folder, number, pause]) for number in ("one", "two")
        ]
        facts = [answer(worker) for worker in workers]
    epochs = sorted(epoch for fact in facts for epoch in fact.pop("noted"))
    second = statistics.median(end - begun for begun, end, _ in epochs)
    bound = max(plan.tree.critical_path, plan.unique_epochs / 2)
    makespan = max(end for _, end, _ in epochs) - epochs[0][0]
    return {
        "to_train": plan.unique_epochs,
        "trained": len(epochs),
        "seconds_per_epoch": round(second, 3),
        "makespan": round(makespan, 2),
        "bound": round(bound * second, 2),
        "makespan / bound": round(makespan / bound / second, 3),
        "workers": facts,
    }


def start(call):
    """Starts a measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps(call)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def answer(process):
    """What a measurement has found."""
    found, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measurement ended with {process.returncode}")
    return json.loads(found.splitlines()[-1])


MEASURES = {
    "plans": measure_plans,
    "timed": measure_timed,
    "rungs": measure_rungs,
    "diagnosis": measure_diagnosis,
    "workers": measure_workers,
    "worker": measure_worker,
}


def calls(parts, smoke):
    """All measurements: the part, the path in the results, the arguments."""
    cases = SMOKE if smoke else CASES
    found = {
        "plans": [([space], [space]) for space in ("G" if smoke else SPACES)],
        "timed": [([name, "plan"], [name, "plan", 0]) for name in cases],
        "rungs": [([], [smoke])],
        "diagnosis": [
            ([space, arm], [space, arm, smoke])
            for space in (DIAGNOSED[:1] if smoke else DIAGNOSED)
            for arm in COMBINATIONS
        ],
        "workers": [([], [0.02 if smoke else 0.5])],
    }
    for run in range(2):  # the first runs of all before the second ones
        for name, (*_, arms, runs) in cases.items():
            for arm in (arms if run % 2 == 0 else arms[::-1]) if run < runs else ():
                found["timed"].append(([name, arm, str(run)], [name, arm, run]))
    return [(part, *call) for part in parts for call in found[part]]


def main():
    """Measures what was not measured yet, and writes it as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--smoke", action="store_true", help="as small as it gets")
    parser.add_argument("--parts", default="plans,timed,rungs,diagnosis,workers")
    parser.add_argument("--only", type=int, help="no more measurements than these")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        part, *arguments = json.loads(options.measure)
        print(json.dumps(MEASURES[part](*arguments)))
        return
    results = {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }
    if options.json.exists():
        results |= json.loads(options.json.read_text())
    made = 0
    for part, path, arguments in calls(options.parts.split(","), options.smoke):
        place = results
        for name in [part, *path][:-1]:
            place = place.setdefault(name, {})
        last = [part, *path][-1]
        if last in place or made == options.only:
            continue
        made += 1
        place[last] = answer(start([part, *arguments]))
        print(part, *path, place[last], flush=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
