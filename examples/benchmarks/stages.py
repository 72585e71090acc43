"""What it saves to train the beginnings that trials share once.

    python examples/benchmarks/stages.py --json stages.json [--smoke]
        [--parts plans,timed,rungs,diagnosis] [--spaces B,D] [--epochs 12]
        [--filters 16] [--rows 1437] [--runs 3]

- `plans`: for the spaces A to G of `stage_spaces.py` with 30 epochs: trials, their
  epochs, the epochs to train, the merge rate, states and the disk that they take.
- `timed`: the grid of a space in three arms, alternating: KerasTuner's tuner, which
  builds and traces every model anew; `StageTuner` without room for states, which has
  warm models and shares nothing; `StageTuner`. Epochs are counted by a callback.
- `rungs`: successive halving on B: what KerasTuner's way of promoting and an exact
  resumption would train on the same trials, and what is trained in stages.
- `diagnosis`: the grid of a space with sick starts, with and without stages, with and
  without diagnosis.

The model is a small convolutional network with batch normalisation and dropout on the
digits of scikit-learn. Seconds are wall clock. Results are written as they come.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
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
PARTS = ("plans", "timed", "rungs", "diagnosis")
SPACES = "ABCDEFG"


class Digits(keras_tuner.HyperModel):
    """A small convolutional network on 8 x 8 images, in one of the spaces."""

    def __init__(self, space, scale, filters):
        super().__init__()
        self.space = space
        self.scale = scale
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


class InPlainKeras(Digits):
    """The same trials for KerasTuner's tuner, which knows of no schedules."""

    def fit(self, hp, model, *args, epochs, callbacks, **kwargs):
        """One `fit` for each batch size, with a scheduler for the learning rate."""
        probe = keras_tuner.HyperParameters.from_config(hp.get_config())
        with schedules.collecting() as declared:
            stage_spaces.declare(probe, self.space, self.scale)
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
    """Counts the epochs of a whole search."""

    def __init__(self, counted=None):
        super().__init__()
        self.counted = [] if counted is None else counted

    def __deepcopy__(self, memo):
        """A copy that counts in the same place."""
        return Count(self.counted)

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Notes how long the epoch took."""
        self.counted.append(time.perf_counter() - self._begun)


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


def search(tuner, fit, *callbacks, **arguments):
    """Runs a search; returns what it took and how it ended."""
    count = Count()
    begun = time.perf_counter()
    tuner.search(**fit, callbacks=[*callbacks, count], **arguments)
    trials = tuner.oracle.trials.values()
    scores = [trial.score for trial in trials if trial.status == "COMPLETED"]
    facts = {
        "seconds": round(time.perf_counter() - begun, 2),
        "epochs": len(count.counted),
        "seconds_per_epoch": round(statistics.median(count.counted), 4),
        "trials": len(trials),
        "stopped": sum(trial.status == "STOPPED" for trial in trials),
        "best": max(scores, default=None),
    }
    if isinstance(tuner, stages.StageTuner):
        usage = tuner.usage
        facts["loading"] = round(usage.loading, 3)
        facts["saving"] = round(usage.saving, 3)
        facts["cancelled"] = usage.cancelled
        facts["disk"] = tuner.stage_store.disk_usage()
    return facts


def staged(space, options, folder, oracle=None, epochs=None, **arguments):
    """A `StageTuner` for a space."""
    epochs = epochs or options.epochs
    return stages.StageTuner(
        Digits(space, epochs / stage_spaces.EPOCHS, options.filters),
        oracle=oracle or ktb.oracles.GridSearchOracle("val_accuracy"),
        epochs=epochs,
        directory=folder,
        stateless=[Count],
        **arguments,
    )


def run_arm(arm, space, options, *callbacks):
    """One search of the grid of a space."""
    fit = data(options.rows)
    with tempfile.TemporaryDirectory() as folder:
        if arm == "KerasTuner":
            scale = options.epochs / stage_spaces.EPOCHS
            keras.utils.set_random_seed(0)
            tuner = keras_tuner.GridSearch(
                InPlainKeras(space, scale, options.filters),
                objective="val_accuracy",
                directory=folder,
            )
            return search(tuner, fit, *callbacks, epochs=options.epochs)
        budget = 0 if arm == "warm models" else None
        tuner = staged(space, options, folder, disk_budget=budget)
        return search(tuner, fit, *callbacks)


def plans(results, save, options):
    """What is to be expected, without training."""
    for space in SPACES:
        with tempfile.TemporaryDirectory() as folder:
            tuner = staged(space, options, folder, epochs=stage_spaces.EPOCHS)
            plan = stages.plan(tuner)
        results[space] = {
            "trials": plan.trials,
            "epochs": plan.total_epochs,
            "to_train": plan.unique_epochs,
            "merge_rate": round(plan.merge_rate, 2),
            "states": plan.states,
            "disk": plan.disk_peak,
        }
        save()
        print("plans", space, results[space], flush=True)


def timed(results, save, options):
    """The arms on the same grid, alternating."""
    arms = ("KerasTuner", "warm models", "stages")
    for space in options.spaces:
        facts = results.setdefault(space, {arm: [] for arm in arms})
        with tempfile.TemporaryDirectory() as folder:
            plan = stages.plan(staged(space, options, folder))
        facts["merge_rate"] = plan.merge_rate
        facts["planned"] = plan.unique_epochs
        for run in range(options.runs):
            for arm in arms if run % 2 == 0 else arms[::-1]:
                facts[arm].append(run_arm(arm, space, options))
                save()
                print("timed", space, arm, facts[arm][-1], flush=True)
        for arm in arms[:-1]:
            ratios = [
                one["seconds"] / other["seconds"]
                for one, other in zip(facts[arm], facts["stages"], strict=True)
            ]
            facts[f"{arm} / stages"] = {
                "median": round(statistics.median(ratios), 3),
                "range": [round(min(ratios), 3), round(max(ratios), 3)],
            }
        save()


def rungs(results, save, options):
    """Successive halving on B: epochs trained in three ways."""
    oracle = ktb.oracles.SuccessiveHalvingOracle(
        "val_accuracy", max_epochs=options.epochs, num_initial_trials=18, seed=0
    )
    with tempfile.TemporaryDirectory() as folder:
        tuner = staged("B", options, folder, oracle)
        facts = search(tuner, data(options.rows))
        values = [trial.hyperparameters.values for trial in oracle.trials.values()]
    restart = sum(each["tuner/epochs"] for each in values)
    resume = restart - sum(each["tuner/initial_epoch"] for each in values)
    results.update(facts | {"restarted": restart, "resumed": resume})
    results["resumed / stages"] = round(resume / facts["epochs"], 2)
    save()
    print("rungs", results, flush=True)


def diagnosis(results, save, options):
    """Stages and diagnosis, each without and with the other."""
    for arm in ("warm models", "stages"):
        for watched in (False, True):
            callbacks = [ktb.DiagnosisCallback()] if watched else []
            name = f"{arm}, {'diagnosis' if watched else 'none'}"
            results[name] = run_arm(arm, "sick", options, *callbacks)
            save()
            print("diagnosis", name, results[name], flush=True)
    plain = results["warm models, none"]["epochs"]
    gains = {name: plain / results[name]["epochs"] for name in results}
    single = gains["warm models, diagnosis"] * gains["stages, none"]
    results["gains"] = {name: round(gain, 3) for name, gain in gains.items()}
    results["both / product"] = round(gains["stages, diagnosis"] / single, 3)
    save()


def main():
    """Measures, and writes what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="as small as it gets")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--spaces", default="B,D")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--rows", type=int, default=1437)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    options.spaces = options.spaces.split(",")
    if options.smoke:
        options.epochs, options.filters, options.rows, options.runs = 3, 2, 64, 1
        options.spaces = ["G"]
    given = {k: v for k, v in vars(options).items() if k not in ("json", "parts")}
    results = {
        "settings": given,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }
    if options.json.exists():
        results |= json.loads(options.json.read_text())

    def save():
        options.json.write_text(json.dumps(results, indent=1))

    steps = {"plans": plans, "timed": timed, "rungs": rungs, "diagnosis": diagnosis}
    for part in options.parts.split(","):
        steps[part](results.setdefault(part, {}), save, options)


if __name__ == "__main__":
    main()
