"""Learn an indicator from searches that were recorded.

Three small searches train every trial to its end. A logistic regression learns from the
statistics of the first three epochs which trials end no better than by always answering
the commonest class; it is validated on each task by what it learned on the others. Then
it judges new trainings as any other indicator does.

    python examples/04_learn_an_indicator.py [--smoke] [--trials 24]
"""

import argparse
import dataclasses
import tempfile

import keras
import numpy as np
from sklearn import datasets, linear_model, metrics, preprocessing

import kt_bttackler as ktb
from kt_bttackler.testing import check_indicator

EPOCHS, SEEN = 8, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedDoom(ktb.QualityIndicator):
    """Chance that a training ends no better than a constant answer."""

    id = "LEARNED"
    needs = frozenset({"loss", "first_batch_loss", "step_gradient/abs_mean"})
    quantity = "learned chance of a useless training"
    advice = "change what the other findings name"
    min_epochs = SEEN
    threshold: float = 0.8
    intercept: float = 0.0
    weights: tuple[float, ...] = (0.0,) * 5

    def measure(self, trace):
        """The chance, from the third epoch on."""
        seen = features(trace)
        if seen is None:
            return float("nan")
        return float(1 / (1 + np.exp(-self.intercept - np.dot(self.weights, seen))))


def features(trace):
    """What the first three epochs show: five numbers without a unit, or None."""
    if len(trace) < SEEN or trace.header.initial_epoch > 0:
        return None
    start = trace.scalar("first_batch_loss")[0]
    losses = trace.scalar("loss")[:SEEN] / start
    shares = trace.header.kernel_shares  # from variables to layers, [V, L]
    gradients = trace.table("step_gradient/abs_mean")[:SEEN] @ shares
    if gradients.size == 0 or not np.all(np.isfinite([*losses, *gradients.ravel()])):
        return None
    sizes = np.log10(np.maximum(gradients, 1e-12) / start)
    return np.clip([*losses[[0, 2]], sizes[0, 0], sizes[2, 0], sizes[2, -1]], -20, 20)


def tasks():
    """Name, inputs and classes of three data sets that come with scikit-learn."""
    for load in (datasets.load_digits, datasets.load_wine, datasets.load_breast_cancer):
        x, y = load(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))[:600]
        x = preprocessing.scale(x).astype("float32")
        yield load.__name__.removeprefix("load_"), x[order], y[order]


def builder(width, classes):
    """A `build_model` whose space holds good and hopeless models."""

    def build_model(hp):
        model = keras.Sequential([keras.Input((width,))])
        activation = hp.Choice("activation", ["relu", "tanh", "sigmoid"])
        for _ in range(hp.Int("layers", 1, 6)):
            model.add(keras.layers.Dense(24, activation=activation))
        model.add(keras.layers.Dense(classes, activation="softmax"))
        rate = hp.Float("learning_rate", 1e-5, 10.0, sampling="log")
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        model.compile(
            optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        return model

    return build_model


def record(folder, name, x, y, trials):
    """Searches, stops nothing, and returns features and outcomes of the trials."""
    tuner = ktb.RandomSearch(
        builder(x.shape[1], len(np.unique(y))),
        "val_accuracy",
        max_trials=trials,
        seed=1,
        directory=folder,
        project_name=name,
    )
    half = len(x) // 2
    indicators = [LearnedDoom()]  # so that what it needs is recorded
    never = ktb.Diagnosis(indicators, rule=ktb.NeverStop())
    tuner.search(
        x[:half],
        y[:half],
        validation_data=(x[half:], y[half:]),
        epochs=EPOCHS,
        verbose=0,
        callbacks=[ktb.DiagnosisCallback(never)],
    )
    commonest = np.bincount(y[half:]).max() / half
    examples = [
        (features(trace), trace.scalar("objective")[-1] < 1.1 * commonest)
        for trace in ktb.TraceStore(f"{folder}/{name}")
    ]
    return [(seen, useless) for seen, useless in examples if seen is not None]


def fitted(examples):
    """A logistic regression of outcomes on features."""
    seen, useless = zip(*examples, strict=True)
    return linear_model.LogisticRegression().fit(np.array(seen), useless)


def main():
    """Records, learns, validates, and judges a training that nobody has seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="fewer trials")
    parser.add_argument("--trials", type=int, default=24, help="of each task")
    options = parser.parse_args()
    trials = 8 if options.smoke else options.trials

    with tempfile.TemporaryDirectory() as folder:
        stores = {name: record(folder, name, x, y, trials) for name, x, y in tasks()}
    for left_out, examples in stores.items():
        others = [
            e for name, store in stores.items() if name != left_out for e in store
        ]
        seen, useless = zip(*examples, strict=True)
        chances = fitted(others).predict_proba(np.array(seen))[:, 1]
        print(
            f"{left_out}: {sum(useless)} of {len(useless)} trials useless, area under "
            f"the ROC curve {metrics.roc_auc_score(useless, chances):.2f}"
        )
    model = fitted([example for store in stores.values() for example in store])
    indicator = LearnedDoom(
        intercept=float(model.intercept_[0]),
        weights=tuple(float(weight) for weight in model.coef_[0]),
    )
    check_indicator(indicator)

    _, x, y = next(tasks())
    keras.utils.set_random_seed(2)
    doomed = keras.Sequential(
        [keras.Input((x.shape[1],))]
        + [keras.layers.Dense(24, activation="sigmoid") for _ in range(6)]
        + [keras.layers.Dense(10, activation="softmax")]
    )
    doomed.compile(keras.optimizers.SGD(1e-5), "sparse_categorical_crossentropy")
    callback = ktb.DiagnosisCallback(ktb.Diagnosis([indicator]))
    doomed.fit(x, y, epochs=EPOCHS, verbose=0, callbacks=[callback])
    print(callback.verdict)


if __name__ == "__main__":
    main()
