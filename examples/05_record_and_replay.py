"""Records a search, replays it under other diagnoses, and calibrates thresholds on it.

python examples/05_record_and_replay.py [--smoke]
"""

import argparse
import pathlib
import tempfile

import keras
from sklearn.datasets import load_digits

import kt_bttackler as ktb
from kt_bttackler import calibration, comparison, comparison_text, replay


def build_model(hp):
    """A space in which some configurations cannot learn."""
    initializer = hp.Choice("initializer", ["he_normal", "he_uniform", "zeros"])
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(hp.Int("depth", 1, 2)):
        model.add(
            keras.layers.Dense(16, activation="relu", kernel_initializer=initializer)
        )
    model.add(keras.layers.Dense(10, activation="softmax"))
    rate = hp.Float("learning_rate", 1e-4, 1.0, sampling="log")
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def main():
    """Records once; everything after that trains nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few trials, few rows")
    options = parser.parse_args()
    rows, trials, epochs = (120, 6, 6) if options.smoke else (1000, 40, 12)
    x, y = load_digits(return_X_y=True)
    x = x / 16

    with tempfile.TemporaryDirectory() as folder:
        # What "balanced" needs is recorded; nothing is stopped.
        recorder = ktb.Diagnosis("balanced", ktb.NeverStop())
        tuner = ktb.RandomSearch(
            build_model,
            objective="val_accuracy",
            max_trials=trials,
            seed=1,
            directory=folder,
            project_name="digits",
        )
        tuner.search(
            x[:rows],
            y[:rows],
            epochs=epochs,
            validation_data=(x[-300:], y[-300:]),
            verbose=0,
            callbacks=[ktb.DiagnosisCallback(recorder)],
        )

        # One diagnosis, trial by trial.
        recording = replay.Recording(ktb.TraceStore(tuner.project_dir), "digits")
        [run] = replay.simulate(recording, ktb.Diagnosis("balanced"))
        for trial in run.trials:
            print(trial.trial_id, trial.outcome, trial.epochs, trial.verdict or "")

        # Several side by side. One of ten digits is right by chance.
        table = comparison.compare(
            recording,
            {name: ktb.Diagnosis(name) for name in ("conservative", "balanced")},
            orders=5 if options.smoke else 100,
            trivial=0.1,
        )
        print(comparison_text.as_text(table))

        # So few top trials prove little: the limit must be wide.
        found = calibration.calibrate([recording], max_regret=0.96)
        print(found)
        path = pathlib.Path(folder) / "calibrated.json"
        found.save(path)
        ktb.DiagnosisCallback(path)  # what the next search is watched with


if __name__ == "__main__":
    main()
