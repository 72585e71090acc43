"""Traces with all the facts that the further rules read: healthy ones, sick ones."""

import dataclasses
import math
import random

import specimens

from kt_bttackler.trace import Record, Trace

LEARNING = specimens.learning()
STUCK = [2.303 + 1e-4 * (-1) ** n for n in range(19)]
OUTPUT = {
    "activation": "softmax",
    "units": 10,
    "loss": "categorical_crossentropy",
    "from_logits": False,
    "target_min": 0.0,
    "target_max": 1.0,
    "target_std": 0.3,
    "target_integers": True,
}
INPUTS = {
    "abs_max": 1.0,
    "std_ratio": 4.0,
    "finite": True,
    "integers": False,
    "image": True,
}


def trace(losses, *, scalars=None, columns=None, first_record=None, **changes):
    """A healthy training in all but what is said otherwise.

    Args:
        losses: training loss of each epoch.
        scalars: numbers of every epoch; a list has one for each.
        columns: one number for all units or variables of a column, or one for each;
            a function of the epoch gives them epoch by epoch.
        first_record: the same for columns and scalars of the first record only.
        changes: fields of the header, and `first`, the loss of the first batch.
    """
    facts = {
        "outputs": (OUTPUT,),
        "inputs": INPUTS,
        "dropout_rates": (0.0, 0.3),
        "adaptive_optimizer": True,
    }
    base = specimens.trace(losses, **facts | changes)
    header = base.header
    kernels = [0.0 if kernel else math.nan for kernel in header.kernels]
    known = {
        "label/trivial_loss": 2.303,
        "label/trivial_error": 0.0,
        "output/spread": 0.3,
        "output/top_share": 0.2,
        "output/label_top_share": 0.12,
        "output/neglected_share": 0.0,
        "steps": 40.0,
    } | (scalars or {})
    tables = {
        "activation/dead_ratio": 0.1,
        "activation/saturated_ratio": 0.1,
        "activation/abs_max": 5.0,
        "update/ratio": [1e-3 + k for k in kernels],
        "update/moved": [1e5 + k for k in kernels],
    } | (columns or {})
    first = {
        "output/initial_spread": 0.05,
        "weight/initial_symmetric": kernels,
        "weight/initial_finite": 1.0,
        "gradient/initial_norm": 0.1,
        "activation/initial_std": 0.5,
    } | (first_record or {})
    records = []
    for n, record in enumerate(base.records, 1):
        numbers, lists = dict(record.scalars), dict(record.columns)
        for name, value in {**known, **tables, **(first if n == 1 else {})}.items():
            value = value(n) if callable(value) else value
            if "/initial_spread" in name or name in known:
                numbers[name] = value[n - 1] if isinstance(value, list) else value
                continue
            width = len(header.activations if "activation/" in name else header.kernels)
            lists[name] = tuple(value) if isinstance(value, list) else (value,) * width
        records.append(Record(n, float(n), numbers, lists))
    return Trace(header, records)


def with_output(**changes):
    return (OUTPUT | changes,)


def kernels_and_biases(*values):
    """A column of a chain of layers; biases have no number."""
    return [number for value in values for number in (value, math.nan)]


def noisy(level, size, epochs=19, seed=0):
    draw = random.Random(seed)
    return [level * (1 + size * draw.gauss(0, 1)) for _ in range(epochs)]


_LINEAR = with_output(
    activation="linear",
    units=1,
    loss="mean_squared_error",
    target_min=-3.0,
    target_max=3.0,
    target_std=1.0,
    target_integers=False,
)
_REGRESSION = {
    "label/trivial_loss": 1.0,
    "label/trivial_error": 0.03,
    "output/top_share": math.nan,
    "output/label_top_share": math.nan,
    "output/neglected_share": math.nan,
}
_FALLING_RATE = [0.01 * 0.5**n for n in range(19)]

HEALTHY = {
    "ordinary": trace(LEARNING),
    "noisy": trace(specimens.learning(noise=0.02)),
    "without a plan": trace(LEARNING, max_epochs=None),
    "converged at once": trace([0.01 + 1e-5 * n for n in range(19)], first=2.3),
    "low signal": trace(
        [0.975 - 0.001 * n for n in range(19)],
        first=1.4,
        scalars=_REGRESSION | {"output/spread": 0.18},
        outputs=_LINEAR,
    ),
    "a rate that decays": trace(
        LEARNING,
        scalars={"learning_rate": _FALLING_RATE},
        columns={
            "update/ratio": lambda n: kernels_and_biases(*[1e-3 * 0.3**n] * 4),
            "update/moved": lambda n: kernels_and_biases(*[0.5 if n > 9 else 9e4] * 4),
        },
    ),
    "recovers from an explosion": trace(
        [
            2.3,
            40.0,
            20.0,
            8.0,
            3.0,
            2.0,
            1.6,
            1.3,
            1.1,
            *[1.0 - 0.03 * n for n in range(10)],
        ],
        first=2.4,
        columns={
            "update/ratio": lambda n: kernels_and_biases(*[0.2 if n < 4 else 1e-2] * 4)
        },
    ),
    "slow start of sigmoids": trace(
        [2.31, 2.30, 2.15, *LEARNING[:16]],
        first=2.32,
        scalars={"output/spread": [1e-6, *[0.1] * 18]},
        first_record={"output/initial_spread": 0.002},
    ),
    "hardly any positives": trace(
        noisy(0.03, 0.005),
        first=0.5,
        scalars={
            "label/trivial_loss": 0.0315,
            "label/trivial_error": 0.004,
            "output/spread": 5e-5,
            "output/top_share": 1.0,
            "output/label_top_share": 0.995,
        },
        outputs=with_output(activation="sigmoid", units=1, loss="binary_crossentropy"),
    ),
    "logits": trace(
        LEARNING, outputs=with_output(activation="linear", from_logits=True)
    ),
    "a loss of one's own": trace(
        LEARNING,
        scalars={"label/trivial_loss": math.nan, "label/trivial_error": math.nan},
        outputs=with_output(activation="linear", loss=None),
    ),
    "regression": trace(
        [1.2 * 0.8**n for n in range(19)],
        scalars=_REGRESSION | {"output/spread": 0.9},
        outputs=_LINEAR,
    ),
    # Healthy validations that lie above the loss of a constant for a while.
    "comes down in time": trace(
        [40.0 * 0.7**n for n in range(19)],
        first=60.0,
        scalars={"val_loss": [50.0 * 0.72**n for n in range(19)]},
        outputs=_LINEAR,
    ),
    "averages that lag behind": trace(
        LEARNING,
        scalars={"val_loss": [2.6 + 0.1 * n for n in range(8)] + LEARNING[8:]},
        averaging_steps=100.0,
    ),
    "a plateau that ends": trace(
        [2.35 - 0.01 * n for n in range(9)]
        + [2.2, 2.1, 1.8, 1.4, 1.0, 0.7, 0.5, 0.4, 0.3, 0.25],
        first=2.38,
        scalars={
            "val_loss": [2.41] * 10 + [2.2, 1.9, 1.5, 1.1, 0.8, 0.6, 0.5, 0.4, 0.3],
            "label/trivial_loss": 2.4,
        },
    ),
    "an accuracy that is good in spite of the loss": trace(
        LEARNING,
        scalars={"val_loss": [2.0 + 0.2 * n for n in range(19)]},
        objective="val_accuracy",
        direction="max",
    ),
    "other targets in the validation": trace(
        [1.2 * 0.8**n for n in range(19)],
        scalars=_REGRESSION | {"output/spread": 0.9, "val_loss": [1.1] * 19},
        outputs=_LINEAR,
    ),
    "head of zeros": trace(
        LEARNING,
        first_record={
            "weight/initial_symmetric": kernels_and_biases(0.0, 0.0, 0.0, 1.0)
        },
    ),
    "swings on its way down": trace(
        [2.0 * 0.9**n * (1 + 0.05 * (-1) ** n) for n in range(19)], first=2.3
    ),
    "one layer": trace(
        LEARNING,
        layers=1,
        first_record={"weight/initial_symmetric": [1.0, math.nan]},
        columns={name: [1e-3, math.nan] for name in ("update/ratio",)}
        | {"update/moved": [1e5, math.nan]},
    ),
}


def _sick(**facts):
    return trace(STUCK, first=2.303, **facts)


SICK = {
    "OUTPUT_LOSS_MISMATCH": _sick(
        outputs=with_output(activation="softmax", units=1, loss="mean_squared_error"),
        first_record={"output/initial_spread": 0.0},
    ),
    "INPUT_SCALE": _sick(inputs=INPUTS | {"abs_max": 255.0, "integers": True}),
    "POOR_INIT": _sick(
        dropout_rates=(),
        first_record={
            "weight/initial_symmetric": kernels_and_biases(1.0, 1.0, 1.0, 0.0)
        },
    ),
    "LR_RANGE": _sick(scalars={"learning_rate": 3.0}),
    "HIGH_DROPOUT": _sick(dropout_rates=(0.1, 0.95)),
    "LINEAR_STACK": _sick(linear_pairs=(("dense_1", "dense_2"),)),
    "UPDATE_RATIO": _sick(
        columns={"update/ratio": kernels_and_biases(1e-6, 1e-6, 1e-5, 1e-6)}
    ),
    "DEAD_UNITS": _sick(
        scalars={"output/spread": 0.0},
        columns={"activation/dead_ratio": [0.2, 1.0, 0.4]},
    ),
    "SATURATION": _sick(columns={"activation/saturated_ratio": [0.2, 0.95, 0.1]}),
    "UNCHANGED_WEIGHTS": _sick(
        columns={"update/moved": kernels_and_biases(0, 0, 0, 0)}
    ),
    "COLLAPSED_OUTPUT": _sick(scalars={"output/spread": 1e-6}),
    "NO_PROGRESS": _sick(),
    "LOSS_NOT_DECREASING": _sick(),
    "REGULARISER_DOMINATES": _sick(
        scalars={"regularization": [2.29 * (1 - 0.5**n) for n in range(1, 20)]}
    ),
    "NUMERIC_EDGE": _sick(columns={"activation/abs_max": [3.0, 2e4, 5.0]}),
    "OSCILLATION": trace([2.0 + 0.3 * (-1) ** n for n in range(19)], first=2.3),
    "CLASS_NEGLECT": _sick(scalars={"output/neglected_share": 0.1}),
    "OVERFIT": trace(
        LEARNING,
        scalars={"val_loss": [1.0 + 0.05 * abs(n - 6) for n in range(1, 20)]},
    ),
    "WORSE_THAN_CONSTANT": trace(
        [30.0 * 0.88**n for n in range(19)],
        first=60.0,
        scalars={"val_loss": [40.0 * 0.9**n for n in range(19)]},
        outputs=_LINEAR,
    ),
}


def without_facts(of):
    """What an older version would have recorded of the same training."""
    old = Trace(
        specimens.header(planned=of.max_epochs),
        [
            Record(
                record.epoch,
                record.seconds,
                {
                    k: v
                    for k, v in record.scalars.items()
                    if "/" not in k and k != "steps"
                },
                {
                    k: v
                    for k, v in record.columns.items()
                    if k.startswith("step_gradient")
                },
            )
            for record in of.records
        ],
    )
    return old


def resumed(of, offset=3):
    """The same training as the second part of one that began earlier."""
    header = dataclasses.replace(of.header, initial_epoch=offset)
    records = [
        dataclasses.replace(record, epoch=record.epoch + offset)
        for record in of.records[: -offset or None]
    ]
    return Trace(header, records)
