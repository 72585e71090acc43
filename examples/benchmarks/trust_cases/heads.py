"""Wrong outputs and wrong losses, where the rest of the network is in order."""

from trust_cases.dense import CANCER, DIGITS, NUMBERS
from trust_cases.models import dense, loss_with, pair, stack

PAIRS = (
    pair(
        "cancer-softmax-of-one",
        "a softmax of one unit under squared error",
        CANCER.but(loss="mse"),
        "OUTPUT_LOSS_MISMATCH ERG PLC UNCHANGED_WEIGHTS COLLAPSED_OUTPUT LAR",
        layers=(*stack((32, 16), "relu"), dense(1, "softmax")),
    ),
    pair(
        "digits-logits-as-probabilities",
        "a linear head under cross-entropy of probabilities",
        DIGITS,
        "OUTPUT_LOSS_MISMATCH ULC PLC AGV",
        layers=(*stack((64, 64), "relu"), dense(10)),
    ),
    pair(
        "diabetes-sigmoid-head",
        "a sigmoid head on targets of 25 to 346",
        NUMBERS.but(data="diabetes", batch=16),
        "OUTPUT_LOSS_MISMATCH SATURATION COLLAPSED_OUTPUT PLC ERG UPDATE_RATIO",
        data="diabetes raw",
        layers=(*stack((64, 32), "relu"), dense(1, "sigmoid")),
    ),
    pair(
        "numbers-relu-head",
        "a ReLU head on targets around zero, its bias too low",
        NUMBERS,
        "OUTPUT_LOSS_MISMATCH DEAD_UNITS ERG COLLAPSED_OUTPUT PLC UNCHANGED_WEIGHTS",
        layers=(
            *stack((64, 32), "relu"),
            dense(
                1,
                "relu",
                bias_initializer={"class_name": "Constant", "config": {"value": -3.0}},
            ),
        ),
    ),
    pair(
        "numbers-percentage-error",
        "percentage error on targets around zero",
        NUMBERS.but(loss="mae"),
        "COLLAPSED_OUTPUT NO_PROGRESS PLC LOSS_NOT_DECREASING ULC OSCILLATION",
        loss="mean_absolute_percentage_error",
    ),
    pair(
        "counts-linear-head",
        "a linear head under the Poisson loss, which takes its logarithm",
        NUMBERS.but(
            data="counts",
            layers=(*stack((64, 32), "tanh"), dense(1, "softplus")),
            loss="poisson",
        ),
        "AGV OUTPUT_LOSS_MISMATCH ULC",
        layers=(*stack((64, 32), "tanh"), dense(1)),
    ),
    pair(
        "digits-smoothed-away",
        "label smoothing of 1",
        DIGITS.but(
            data="digits one-hot",
            loss=loss_with("CategoricalCrossentropy", label_smoothing=0.1),
        ),
        "NO_PROGRESS LOSS_NOT_DECREASING PLC COLLAPSED_OUTPUT NMG",
        loss=loss_with("CategoricalCrossentropy", label_smoothing=1.0),
    ),
)
