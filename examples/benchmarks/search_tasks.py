"""What the search algorithms of `oracles.py` are compared on.

Each task has a space, a true value of every point, the least value there is, and the
standard deviation of the noise that is added to what a search sees.
"""

import dataclasses
import importlib.metadata
import itertools
import json
import math
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras_tuner
import numpy as np

TABLE = pathlib.Path(__file__).parent / "data" / "digits-mlp.json"


@dataclasses.dataclass(frozen=True)
class Task:
    """One thing to search.

    Attributes:
        declare: takes `keras_tuner.HyperParameters` and asks for all of them.
        value: the true value to minimise, of values by name.
        optimum: the least value.
        noise: standard deviation of what is added to the values that a search sees.
    """

    declare: Callable[[keras_tuner.HyperParameters], None]
    value: Callable[[dict[str, Any]], float]
    optimum: float
    noise: float = 0.0

    def space(self):
        """All hyperparameters of the task."""
        hp = keras_tuner.HyperParameters()
        self.declare(hp)
        return hp


def declare_branin(hp):
    """Two floats."""
    hp.Float("x0", -5.0, 10.0)
    hp.Float("x1", 0.0, 15.0)


def branin(values):
    """Three equally deep valleys (Dixon and Szegő, 1978)."""
    x, y = values["x0"], values["x1"]
    parabola = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return parabola**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


HARTMANN_WEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
HARTMANN_SCALES = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
HARTMANN_CENTRES = np.array(
    [
        [0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886],
        [0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991],
        [0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650],
        [0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381],
    ]
)


def declare_six_floats(hp):
    """Six floats between 0 and 1."""
    for number in range(6):
        hp.Float(f"x{number}", 0.0, 1.0)


def hartmann6(values):
    """Four hollows of different depth (Hartman, 1973)."""
    x = np.array([values[f"x{number}"] for number in range(6)])
    distances = (HARTMANN_SCALES * (x - HARTMANN_CENTRES) ** 2).sum(axis=1)
    return -float(HARTMANN_WEIGHTS @ np.exp(-distances))


def declare_conditional(hp):
    """A learning rate, and an optimizer and a network with settings of their own."""
    hp.Float("rate", 1e-5, 1.0, sampling="log")
    hp.Choice("optimizer", ["sgd", "adam", "rmsprop"])
    with hp.conditional_scope("optimizer", ["sgd"]):
        hp.Float("momentum", 0.0, 0.99)
        hp.Boolean("nesterov")
    hp.Choice("network", ["dense", "conv"])
    with hp.conditional_scope("network", ["dense"]):
        hp.Int("units", 16, 512, step=2, sampling="log")
        hp.Float("dropout", 0.0, 0.8, step=0.1)
    with hp.conditional_scope("network", ["conv"]):
        hp.Int("filters", 4, 64, step=4)
        hp.Choice("kernel", [1, 3, 5, 7])


def conditional(values):
    """Every optimizer has its own best rate, every network its own best size."""
    exponent = math.log10(values["rate"])
    if values["optimizer"] == "sgd":
        best = -1.0 - values["momentum"]
        loss = 0.1 * (values["momentum"] - 0.9) ** 2 - 0.02 * values["nesterov"] + 0.02
    else:
        best = -3.0 if values["optimizer"] == "adam" else -3.5
        loss = 0.05 if values["optimizer"] == "adam" else 0.08
    loss += 0.1 * (exponent - best) ** 2
    if values["network"] == "dense":
        loss += 0.15 + 0.02 * abs(math.log2(values["units"]) - 7.0)
        return loss + 0.2 * (values["dropout"] - 0.3) ** 2
    loss += 0.03 * abs(math.log2(values["filters"]) - 5.0)
    return loss + 0.03 * abs(values["kernel"] - 3) / 2.0


GRID = {
    "width": [8, 16, 32, 64],
    "layers": [1, 2, 3],
    "rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "activation": ["relu", "tanh", "logistic"],
    "batch": [32, 128],
}


def declare_table(hp):
    """The settings of which `digits-mlp.json` holds the errors."""
    for name, choices in GRID.items():
        hp.Choice(name, choices)


def measured_errors():
    """Errors of small networks on scikit-learn's digits, by setting.

    They are read from a file, which is made when there is none: that takes minutes.
    """
    if not TABLE.exists():
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(json.dumps(measure_errors(), indent=1) + "\n")
    recorded = json.loads(TABLE.read_text())["errors"]
    return dict(zip(itertools.product(*GRID.values()), recorded, strict=True))


def measure_errors():
    """Trains a network with every setting of the grid; the mean of two trainings."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order] / 16.0, y[order]
    start = time.process_time()
    errors = []
    for width, layers, rate, activation, batch in itertools.product(*GRID.values()):
        wrong = []
        for seed in range(2):
            network = MLPClassifier(
                (width,) * layers,
                activation=activation,
                learning_rate_init=rate,
                batch_size=batch,
                max_iter=8,
                random_state=seed,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it has not converged, and need not
                network.fit(x[:600], y[:600])
            wrong.append(1.0 - network.score(x[1000:], y[1000:]))
        errors.append(round(float(np.mean(wrong)), 5))
    return {
        "what": "error on rows 1000-1796 of digits after 8 epochs on rows 0-599",
        "grid": GRID,
        "versions": {p: importlib.metadata.version(p) for p in ("scikit-learn",)},
        "cpu_seconds": round(time.process_time() - start, 1),
        "errors": errors,
    }


def make_tasks():
    """All tasks by name."""
    errors = measured_errors()

    def table(values):
        return errors[tuple(values[name] for name in GRID)]

    return {
        "branin": Task(declare_branin, branin, 0.39788735772973816),
        "hartmann6": Task(declare_six_floats, hartmann6, -3.322368011391339),
        "conditional": Task(declare_conditional, conditional, 0.0),
        "digits-mlp": Task(declare_table, table, min(errors.values())),
        "branin-noisy": Task(declare_branin, branin, 0.39788735772973816, 5.0),
        "hartmann6-noisy": Task(declare_six_floats, hartmann6, -3.322368011391339, 0.2),
    }


def declare_training(hp):
    """Three settings of a training that is simulated."""
    hp.Float("rate", 1e-5, 1.0, sampling="log")
    hp.Int("depth", 1, 12)
    hp.Float("dropout", 0.0, 0.8)


def simulated_training(values, flattering):
    """Losses of twenty epochs, and the epoch after which it is stopped, or None.

    The larger the learning rate, the better, until the training diverges; deep networks
    diverge earlier. The best setting so lies at the edge of those that are stopped, as
    it does in real spaces. What a stopped training shows at its last epoch misleads:

    - "flattering": it falls faster than any other, before it explodes;
    - else: three epochs are too few, so that it looks worse than it would be even with
      a rate a little below.
    """
    exponent = math.log10(values["rate"])
    edge = -1.5 - 0.1 * values["depth"]
    final = 0.1 + 0.05 * (exponent - edge) ** 2 + 0.1 * (values["dropout"] - 0.3) ** 2
    final += 0.02 * abs(values["depth"] - 5)
    epochs = np.arange(1, 21)
    losses = final + 2.2 * np.exp(-epochs / 3.0)
    if exponent <= edge:
        return losses, None
    if flattering:
        return 0.05 + 2.2 * np.exp(-epochs / 0.8) + 1e-3 * np.exp(epochs), 5
    return losses + 0.2 * epochs, 3


# The least loss of a simulated training: right at the edge, five layers deep.
BEST_TRAINING = 0.1 + 2.2 * math.exp(-20 / 3.0)
