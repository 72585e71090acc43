"""Train what trials share once: a grid of learning-rate schedules.

Trials that lower the learning rate at different epochs begin alike. The plan says
before any training how many epochs that saves; the search then trains just these.

    python examples/08_stage_tree.py [--smoke]
    kt-bttackler stages plan examples/08_stage_tree.py
"""

import argparse
import tempfile

import keras
from sklearn.datasets import load_digits

import kt_bttackler as ktb
from kt_bttackler import stages


def build_model(hp):
    """A classifier whose learning rate is lowered once, and whose batches grow once."""
    rate = stages.schedule(
        hp,
        "learning_rate",
        "step",
        start=[0.1, 0.03],
        milestones=[4, 6, 8],
        factor=[0.1, 0.3],
    )
    stages.schedule(hp, "batch_size", "piecewise", values=(32, 128), boundaries=[6, 9])
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(32, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def main():
    """Plans a search, searches, and compares what was trained with the plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="on few rows")
    options = parser.parse_args()
    x, y = load_digits(return_X_y=True)
    x = x[: 200 if options.smoke else None] / 16
    y = y[: len(x)]
    split = len(x) * 3 // 4

    with tempfile.TemporaryDirectory() as folder:
        tuner = stages.StageTuner(
            build_model,
            oracle=ktb.oracles.GridSearchOracle("val_accuracy"),
            epochs=10,
            disk_budget="100MB",
            directory=folder,
        )
        plan = stages.plan(tuner, seconds_per_epoch=0.1)
        print(plan)
        tuner.search(
            x[:split],
            y[:split],
            validation_data=(x[split:], y[split:]),
            callbacks=[ktb.DiagnosisCallback(stop=False)],
            verbose=0,
        )
        best = tuner.oracle.get_best_trials()[0]
        print("Best:", best.score, best.hyperparameters.values)
        print(
            f"{tuner.usage.trained} epochs were trained, {plan.unique_epochs} were "
            f"planned; the trials have {tuner.usage.epochs}"
        )


if __name__ == "__main__":
    main()
