"""A KerasTuner search that diagnoses itself, with our tuner and with KerasTuner's own.

python examples/02_search_with_diagnosis.py [--smoke]
"""

import argparse
import tempfile

import keras
import keras_tuner
from sklearn.datasets import load_digits

import kt_bttackler as ktb


def build_model(hp):
    """A space in which about half of the configurations cannot learn."""
    activation = hp.Choice("activation", ["relu", "sigmoid"])
    initializer = hp.Choice("initializer", ["he_normal", "zeros"])
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(hp.Int("depth", 1, 4)):
        model.add(
            keras.layers.Dense(
                32, activation=activation, kernel_initializer=initializer
            )
        )
    model.add(keras.layers.Dense(10, activation="softmax"))
    rate = hp.Float("learning_rate", 1e-4, 10.0, sampling="log")
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def main():
    """Searches twice and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few trials, few rows")
    options = parser.parse_args()
    rows, trials, epochs = (200, 3, 4) if options.smoke else (1400, 10, 10)
    x, y = load_digits(return_X_y=True)
    x = x / 16
    fit = {
        "x": x[:rows],
        "y": y[:rows],
        "validation_data": (x[-300:], y[-300:]),
        "epochs": epochs,
        "verbose": 0,
    }

    with tempfile.TemporaryDirectory() as folder:
        # The tuner of kt_bttackler: one word changes.
        tuner = ktb.RandomSearch(
            build_model,
            objective="val_accuracy",
            max_trials=trials,
            seed=1,
            directory=folder,
            project_name="ours",
        )
        tuner.search(**fit, callbacks=[ktb.DiagnosisCallback()])
        ktb.summary(tuner)

        # KerasTuner's own tuner, with any oracle class made to understand verdicts.
        oracle_class = ktb.diagnosed(keras_tuner.oracles.BayesianOptimizationOracle)
        tuner = keras_tuner.Tuner(
            oracle=oracle_class(
                "val_accuracy", max_trials=trials, num_initial_points=2, seed=1
            ),
            hypermodel=build_model,
            directory=folder,
            project_name="stock",
        )
        tuner.search(**fit, callbacks=[ktb.DiagnosisCallback()])
        ktb.summary(tuner)
        for trial in tuner.oracle.get_best_trials(trials):
            print(trial.trial_id, trial.status, ktb.diagnosis_of(trial) or "")


if __name__ == "__main__":
    main()
