"""The same search in one process, on all of this machine, or on a Ray cluster.

python examples/07_search_on_ray.py [--smoke] [--workers 2] [--address auto]

It needs `pip install 'kt-bttackler[ray]'`; with `--workers 0` it does not.
"""

import argparse
import functools
import tempfile

import keras
from sklearn.datasets import load_digits

import kt_bttackler as ktb


def build_model(hp):
    """A space in which about half of the configurations cannot learn."""
    initializer = hp.Choice("initializer", ["he_normal", "zeros"])
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(hp.Int("depth", 1, 3)):
        model.add(
            keras.layers.Dense(32, activation="relu", kernel_initializer=initializer)
        )
    model.add(keras.layers.Dense(10, activation="softmax"))
    rate = hp.Float("learning_rate", 1e-3, 0.1, sampling="log")
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def search(directory, trials, epochs):
    """Builds a tuner and calls its `search`: all that every process does."""
    x, y = load_digits(return_X_y=True)
    x = x / 16
    tuner = ktb.RandomSearch(
        build_model,
        objective="val_accuracy",
        max_trials=trials,
        seed=1,
        directory=directory,
        project_name="digits",
    )
    tuner.search(
        x[:-300],
        y[:-300],
        validation_data=(x[-300:], y[-300:]),
        epochs=epochs,
        verbose=0,
        callbacks=[ktb.DiagnosisCallback()],
    )


def main():
    """Searches and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few trials, few epochs")
    parser.add_argument("--workers", type=int, default=2, help="0: without Ray")
    parser.add_argument("--address", help="auto, or HOST:PORT of a Ray cluster")
    parser.add_argument("--directory", help="a folder that all machines share")
    options = parser.parse_args()
    trials, epochs = (4, 4) if options.smoke else (20, 10)

    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or temporary
        search_fn = functools.partial(search, directory, trials, epochs)
        if options.workers == 0:
            search_fn()
        else:
            result = ktb.launch(
                search_fn,
                workers=options.workers,
                resources_per_worker={"CPU": 1},
                address=options.address,
            )
            print({name: end.outcome for name, end in result.workers.items()})
        ktb.summary(f"{directory}/digits")


if __name__ == "__main__":
    main()
