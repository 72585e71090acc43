"""Record a small random search to its end, and try diagnoses on it without training.

Then let a Bayesian search choose among the recorded trainings.

python examples/06_record_a_study.py [--trials 20] [--folder FOLDER] [--smoke]
"""

import argparse
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_tuner
from sklearn.datasets import load_digits

from kt_bttackler import oracles, replay, tabular
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.recorded_task import Task, TaskData
from kt_bttackler.study_recording import record
from kt_bttackler.trace import TraceStore


def declare(hp):
    """The search space."""
    hp.Float("learning_rate", 1e-5, 10.0, sampling="log")
    hp.Int("layers", 1, 6)
    hp.Choice("activation", ["relu", "sigmoid"])


def load(path):
    """The data; these are part of scikit-learn, and `path` is not used."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    return TaskData(
        train=(x[:1200], y[:1200]),
        validation=(x[1200:], y[1200:]),
        probe=x[:1200],
        trivial_score=0.1,
        trivial_predictor="always the same digit",
    )


def train(values, data, seed, epochs, callbacks):
    """Builds, compiles and fits one configuration."""
    hidden = [
        keras.layers.Dense(32, values["activation"]) for _ in range(values["layers"])
    ]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
    model.compile(
        keras.optimizers.SGD(values["learning_rate"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        *data.train,
        epochs=epochs,
        validation_data=data.validation,
        callbacks=list(callbacks),
        verbose=0,
    )


def main():
    """Records, and replays two presets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--folder", help="keeps the study; default: it is thrown away")
    parser.add_argument("--smoke", action="store_true", help="three trials")
    options = parser.parse_args()
    task = Task("digits", "val_accuracy", "max", 10, declare, load, train)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        trials = 3 if options.smoke else options.trials
        record(task, folder, data="", trials=trials)
        recording = replay.Recording(TraceStore(folder))
    for preset in ("conservative", "balanced"):
        # The trials as they were recorded, one after the other.
        [run] = replay.simulate(recording, Diagnosis(preset))
        saved = sum(trial.seconds_saved for trial in run.trials)
        print(
            f"{preset}: {run.count('stopped')} of {len(recording)} trials stopped, "
            f"{saved:.1f} of {recording.seconds:.1f} CPU seconds saved"
        )
        # A search of half the seconds, in which every stop changes what comes next.
        space = keras_tuner.HyperParameters()
        declare(space)
        oracle = oracles.BayesianOptimizationOracle(
            keras_tuner.Objective(task.objective, task.direction),
            max_trials=trials,
            num_initial_points=3,
            hyperparameters=space,
            seed=0,
        )
        run = tabular.search(
            oracle, recording, Diagnosis(preset), budget=recording.seconds / 2
        )
        print(f"    Bayesian search in half of them: {run.finished} trials ended")


if __name__ == "__main__":
    main()
