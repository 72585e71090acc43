"""Ten published faulty programs, restated, each with a healthy twin.

They come from the public corpora of AUTOTRAINER (`shiningrain/AUTOTRAINER`, and its
models in `DeepDiagnosis/ICSE2022`), of DeepLocalize (`Wardat-ISU/DeepLocalize`,
programs asked about on Stack Overflow) and of TheDeepChecker
(`thedeepchecker/thedeepchecker`).
"""

from trust_cases.models import (
    Configuration,
    Pair,
    dense,
    initializer,
    layer,
    stack,
)

HE_UNIFORM = initializer(
    "VarianceScaling", scale=2.0, mode="fan_in", distribution="uniform"
)
HE_NORMAL = initializer(
    "VarianceScaling", scale=2.0, mode="fan_in", distribution="truncated_normal"
)
SMALL_UNIFORM = initializer("RandomUniform", minval=-0.05, maxval=0.05)
L2 = {"class_name": "L2", "config": {"l2": 1e-5}}


def _circle(depth, width, activation):
    return Configuration(
        data="circle",
        layers=(
            *stack(depth * [width], activation, kernel_initializer=HE_UNIFORM),
            dense(1, "sigmoid", kernel_initializer=HE_UNIFORM),
        ),
        loss="binary_crossentropy",
        batch=128,
        epochs=300,
    )


def _blob(depth, head, **more):
    return Configuration(
        data="blob",
        layers=(
            *stack(depth * [50], "relu", kernel_initializer=HE_UNIFORM),
            dense(3, head),
        ),
        loss="categorical_crossentropy",
        **more,
    )


def _base_cnn(kernel_initializer=HE_NORMAL, rate=0.1, epochs=20):
    kernel = {"kernel_initializer": kernel_initializer, "kernel_regularizer": L2}
    layers = []
    for filters in (6, 16):
        layers.append(
            layer(
                "Conv2D",
                filters=filters,
                kernel_size=5,
                activation="relu",
                padding="valid",
                **kernel,
            )
        )
        layers.append(layer("MaxPooling2D", pool_size=2))
    layers += [layer("Flatten"), *stack((120, 84), "relu", **kernel)]
    return Configuration(
        data="digits28",
        layers=(*layers, dense(10, "softmax", **kernel)),
        loss="categorical_crossentropy",
        optimizer="SGD",
        rate=rate,
        epochs=epochs,
    )


def _specimen(id, source, fault, faulty, healthy, expected):
    return Pair(id, fault, faulty, healthy, tuple(expected.split()), source)


_OSCILLATING = _blob(
    1, "softmax", optimizer="SGD", rate=0.01, epochs=200, batch=32
).but(optimizer_arguments={"momentum": 0.9})
_QUAD = Configuration(
    data="quad",
    layers=(
        dense(50, "relu"),
        dense(30, "relu", kernel_initializer=SMALL_UNIFORM),
        dense(1),
    ),
    loss="mean_squared_error",
    optimizer="SGD",
    rate=1e-4,
    epochs=1000,
)
_XOR4 = Configuration(
    data="xor4",
    layers=(dense(4, "sigmoid"), dense(1, "sigmoid")),
    loss="mean_squared_error",
    rate=0.05,
    batch=4,
    epochs=1000,
)
_XOR6 = Configuration(
    data="xor6",
    layers=(
        dense(2, "sigmoid", kernel_initializer=SMALL_UNIFORM),
        dense(3, "sigmoid", kernel_initializer=SMALL_UNIFORM),
        dense(1, "softmax", kernel_initializer=SMALL_UNIFORM),
    ),
    loss="mean_squared_error",
    optimizer="SGD",
    rate=0.001,
    optimizer_arguments={"momentum": 0.9, "nesterov": True},
    epochs=20,
)

PAIRS = (
    _specimen(
        "AT-GV-circle-demo",
        "AUTOTRAINER, demo case Gradient_Vanish_Case",
        "eight sigmoid layers",
        _circle(8, 5, "sigmoid"),
        _circle(8, 5, "tanh"),
        "ERG PLC NMG COLLAPSED_OUTPUT",
    ),
    _specimen(
        "AT-GE-circle-0ae2cd88",
        "DeepDiagnosis, Models_Circle.py, model_0ae2cd88",
        "a tower of exponential activations",
        _circle(8, 5, "exponential"),
        _circle(8, 5, "tanh"),
        "AGV EAG",
    ),
    _specimen(
        "AT-DR-circle-8e28bdef",
        "DeepDiagnosis, Models_Circle.py, model_8e28bdef",
        "sixteen narrow ReLU layers, one of which dies",
        _circle(16, 5, "relu"),
        _circle(2, 16, "relu"),
        "LAR DEAD_UNITS ERG COLLAPSED_OUTPUT UNCHANGED_WEIGHTS",
    ),
    _specimen(
        "AT-OL-blob-demo",
        "AUTOTRAINER, demo case Oscillating_Loss_Case",
        "batches of one row with momentum 0.9",
        _OSCILLATING.but(batch=1),
        _OSCILLATING,
        "ULC OSCILLATION UPDATE_RATIO",
    ),
    _specimen(
        "AT-IO-blob-demo",
        "AUTOTRAINER, demo case Improper_Activation_case",
        "a ReLU head under cross-entropy",
        _blob(4, "relu", rate=1e-4, batch=256, epochs=300),
        _blob(4, "softmax", rate=1e-4, batch=256, epochs=300),
        "OUTPUT_LOSS_MISMATCH LAR PLC ULC",
    ),
    _specimen(
        "SO-34311586",
        "Stack Overflow 34311586, DeepLocalize",
        "exclusive or with a softmax of one unit",
        _XOR6,
        _XOR4.but(
            data="xor6",
            layers=(dense(8, "tanh"), dense(1, "sigmoid")),
            loss="binary_crossentropy",
            batch=6,
            epochs=200,
        ),
        "ERG PLC COLLAPSED_OUTPUT UNCHANGED_WEIGHTS OUTPUT_LOSS_MISMATCH",
    ),
    _specimen(
        "SO-31556268",
        "Stack Overflow 31556268, DeepLocalize",
        "mean absolute error and a slow optimizer on exclusive or",
        _XOR4.but(
            loss="mean_absolute_error",
            optimizer="SGD",
            optimizer_arguments={"momentum": 0.11, "nesterov": True},
        ),
        _XOR4,
        "PLC NMG UPDATE_RATIO COLLAPSED_OUTPUT",
    ),
    _specimen(
        "SO-48934338",
        "Stack Overflow 48934338, DeepLocalize",
        "learning rate 0.1 on targets that are not scaled",
        _QUAD.but(rate=0.1),
        _QUAD,
        "ULC AGV EAG DEAD_UNITS UPDATE_RATIO",
    ),
    _specimen(
        "TDC-low_lr-baseCNN",
        "TheDeepChecker, low_lr/baseCNN_low_lr.py",
        "learning rate a hundred times too low, for five epochs",
        _base_cnn(rate=0.001, epochs=5),
        _base_cnn(rate=0.1, epochs=5),
        "UPDATE_RATIO PLC NMG",
    ),
    _specimen(
        "TDC-const_init-baseCNN",
        "TheDeepChecker, wrong_init/baseCNN_constant.py",
        "all weights 0.01",
        _base_cnn(initializer("Constant", value=0.01)),
        _base_cnn(),
        "POOR_INIT ERG COLLAPSED_OUTPUT PLC",
    ),
)
