"""Diagnose one training: no search, no tuner.

A network whose first layers cannot learn is stopped after two epochs, and the verdict
says why. What was recorded can be judged again by another diagnosis.

    python examples/01_diagnose_one_fit.py [--smoke]
"""

import argparse
import tempfile

import keras
from sklearn.datasets import load_digits

import kt_bttackler as ktb


def build_model(initializer):
    """A classifier of 8 x 8 images."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(32, activation="relu", kernel_initializer=initializer),
            layers.Dense(32, activation="relu", kernel_initializer=initializer),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main():
    """Trains a dead and a healthy network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="on few rows")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = x[: 200 if options.smoke else None] / 16
    y = y[: len(x)]

    with tempfile.TemporaryDirectory() as folder:
        for initializer in ("zeros", "he_normal"):
            callback = ktb.DiagnosisCallback(trace_dir=folder)
            model = build_model(initializer)
            history = model.fit(x, y, epochs=10, verbose=0, callbacks=[callback])
            print(f"{initializer}: {len(history.history['loss'])} of 10 epochs")
            print("   ", callback.verdict or "nothing was found")

        # The facts are on disk; another diagnosis may judge them.
        watchful = ktb.Diagnosis("paper").without("ERG")
        for trace in ktb.TraceStore(folder):
            print(f"{trace.epoch} epochs recorded:", watchful(trace) or "fine")


if __name__ == "__main__":
    main()
