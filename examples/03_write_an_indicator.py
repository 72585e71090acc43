"""Write an indicator of your own: a frozen dataclass with `needs` and `measure`.

This one asks whether the validation loss has left the training loss behind, and makes
a training end that the seven indicators let run.

    python examples/03_write_an_indicator.py [--smoke]
"""

import argparse
import dataclasses

import keras
import numpy as np

import kt_bttackler as ktb
from kt_bttackler.testing import check_indicator


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationLeftBehind(ktb.QualityIndicator):
    """Validation loss per training loss."""

    id = "VLB"
    needs = frozenset({"loss", "val_loss"})
    quantity = "validation loss per training loss"
    advice = "regularise, or use more data"
    min_epochs = 3
    threshold: float = 3.0

    def measure(self, trace):
        """The ratio at the last epoch."""
        loss = trace.scalar("loss")[-1]
        return trace.scalar("val_loss")[-1] / loss if loss > 0 else float("nan")


def main():
    """Trains on labels that mean nothing, and looks at the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="fewer epochs")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 20)).astype("float32")
    y = random.integers(0, 2, 200)

    indicator = ValidationLeftBehind()
    check_indicator(indicator)  # the contract that every indicator keeps
    diagnosis = ktb.Diagnosis([*ktb.Diagnosis().indicators, indicator])
    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), "binary_crossentropy")
    callback = ktb.DiagnosisCallback(diagnosis)
    model.fit(
        x,
        y,
        validation_split=0.5,
        epochs=10 if options.smoke else 50,
        verbose=0,
        callbacks=[callback],
    )
    print(callback.verdict)


if __name__ == "__main__":
    main()
