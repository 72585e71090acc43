"""Dense networks on digits, tables and numbers: faults of rates, scales and starts."""

from trust_cases.models import (
    RATE_HIGH,
    RATE_LOW,
    TARGETS_RAW,
    Configuration,
    dense,
    initializer,
    layer,
    pair,
    scheduled,
    stack,
)

CROSS_ENTROPY = "sparse_categorical_crossentropy"
DIGITS = Configuration(
    data="digits",
    layers=(*stack((64, 64), "relu"), dense(10, "softmax")),
    loss=CROSS_ENTROPY,
)
DEEP_DIGITS = DIGITS.but(
    layers=(
        *stack(8 * [32], "relu", kernel_initializer="he_normal"),
        dense(10, "softmax"),
    ),
)
CANCER = Configuration(
    data="cancer",
    layers=(*stack((32, 16), "relu"), dense(1, "sigmoid")),
    loss="binary_crossentropy",
    rate=3e-3,
)
NUMBERS = Configuration(
    data="friedman",
    layers=(*stack((64, 32), "relu"), dense(1)),
    loss="mse",
    rate=3e-3,
)
MOMENTUM = {"optimizer": "SGD", "optimizer_arguments": {"momentum": 0.9}}


def _digits(activation="relu", dropout=0.0, head=None, **more):
    layers = []
    for width in (64, 64):
        layers.append(dense(width, activation, **more))
        if dropout:
            layers.append(layer("Dropout", rate=dropout))
    return (*layers, dense(10, "softmax", **(more if head is None else head)))


PAIRS = (
    pair(
        "digits-rate-high-adam",
        "Adam with a learning rate of 0.5",
        DIGITS,
        RATE_HIGH,
        rate=0.5,
    ),
    pair(
        "digits-rate-high-momentum",
        "SGD with momentum 0.9 and a learning rate of 2",
        DIGITS.but(**MOMENTUM, rate=0.02),
        RATE_HIGH,
        rate=2.0,
    ),
    pair(
        "digits-rate-low",
        "Adam with a learning rate of 1e-6",
        DIGITS,
        RATE_LOW,
        rate=1e-6,
    ),
    pair(
        "numbers-rate-high",
        "SGD with a learning rate of 1.5 on a regression",
        NUMBERS.but(optimizer="SGD", rate=0.03),
        RATE_HIGH,
        rate=1.5,
    ),
    pair(
        "numbers-rate-low",
        "SGD with a learning rate of 1e-5 on a regression",
        NUMBERS.but(optimizer="SGD", rate=0.03),
        RATE_LOW,
        rate=1e-5,
    ),
    pair(
        "digits-momentum-oscillation",
        "momentum 0.99 and batches of 4 at a rate made for batches of 128",
        DIGITS.but(
            optimizer="SGD",
            optimizer_arguments={"momentum": 0.9},
            rate=0.1,
            batch=128,
        ),
        RATE_HIGH,
        optimizer_arguments={"momentum": 0.99},
        batch=4,
        epochs=12,
    ),
    pair(
        "digits-deep-sigmoid",
        "eight sigmoid layers",
        DEEP_DIGITS,
        "ERG PLC COLLAPSED_OUTPUT SATURATION POOR_INIT",
        layers=(*stack(8 * [32], "sigmoid"), dense(10, "softmax")),
    ),
    pair(
        "digits-saturated-tanh",
        "tanh layers that start with weights of deviation 3",
        DIGITS.but(layers=_digits("tanh"), optimizer="SGD", rate=0.1),
        "SATURATION POOR_INIT LAR EAG ERG ULC",
        layers=_digits(
            "tanh", kernel_initializer=initializer("RandomNormal", stddev=3)
        ),
    ),
    pair(
        "digits-dead-bias",
        "biases of -10 under ReLU",
        DIGITS,
        "DEAD_UNITS LAR ERG COLLAPSED_OUTPUT PLC POOR_INIT UNCHANGED_WEIGHTS",
        layers=_digits(bias_initializer=initializer("Constant", value=-10.0), head={}),
    ),
    pair(
        "digits-zero-weights",
        "all weights start at zero",
        DIGITS,
        "POOR_INIT ERG LAR DEAD_UNITS COLLAPSED_OUTPUT PLC UNCHANGED_WEIGHTS",
        layers=_digits(kernel_initializer="zeros"),
    ),
    pair(
        "digits-tiny-weights",
        "weights of deviation 1e-3 in eight layers",
        DEEP_DIGITS.but(optimizer="SGD", rate=0.05),
        "POOR_INIT ERG PLC COLLAPSED_OUTPUT UPDATE_RATIO",
        layers=(
            *stack(
                8 * [32],
                "relu",
                kernel_initializer=initializer("RandomNormal", stddev=1e-3),
            ),
            dense(10, "softmax"),
        ),
    ),
    pair(
        "digits-huge-weights",
        "weights of deviation 1 in eight layers",
        DEEP_DIGITS,
        "POOR_INIT EAG AGV ULC NUMERIC_EDGE",
        layers=(
            *stack(
                8 * [32],
                "relu",
                kernel_initializer=initializer("RandomNormal", stddev=1.0),
            ),
            dense(10, "softmax"),
        ),
    ),
    pair(
        "digits-pixels",
        "pixels of 0 to 255, SGD with momentum",
        DIGITS.but(**MOMENTUM, rate=0.02),
        "INPUT_SCALE ULC AGV EAG DEAD_UNITS UPDATE_RATIO COLLAPSED_OUTPUT LAR",
        data="digits 0-255",
    ),
    pair(
        "cancer-raw",
        "features as they were measured, 0.001 to 4,000, under tanh",
        CANCER.but(
            layers=(*stack((32, 16), "tanh"), dense(1, "sigmoid")),
            optimizer="SGD",
            rate=0.1,
        ),
        "INPUT_SCALE SATURATION LAR ERG COLLAPSED_OUTPUT",
        data="cancer raw",
    ),
    pair(
        "wine-raw",
        "features as they were measured, SGD",
        Configuration(
            data="wine",
            layers=(*stack((32, 16), "relu"), dense(3, "softmax")),
            loss=CROSS_ENTROPY,
            optimizer="SGD",
            rate=0.05,
            batch=16,
            epochs=30,
        ),
        "INPUT_SCALE ULC EAG AGV DEAD_UNITS COLLAPSED_OUTPUT LAR UPDATE_RATIO",
        data="wine raw",
    ),
    pair(
        "prices-raw",
        "targets of 300,000, SGD",
        NUMBERS.but(optimizer="SGD", rate=0.03),
        TARGETS_RAW,
        data="prices",
    ),
    pair(
        "digits-penalty",
        "L2 penalty of 1 on every layer",
        DIGITS.but(layers=_digits(kernel_regularizer=initializer("L2", l2=1e-5))),
        "REGULARISER_DOMINATES COLLAPSED_OUTPUT PLC ERG",
        layers=_digits(kernel_regularizer=initializer("L2", l2=1.0)),
    ),
    pair(
        "cancer-weight-decay",
        "weight decay of 100 at a learning rate of 0.003",
        CANCER.but(optimizer="AdamW", optimizer_arguments={"weight_decay": 1e-3}),
        "COLLAPSED_OUTPUT REGULARISER_DOMINATES PLC UPDATE_RATIO ERG LAR",
        optimizer_arguments={"weight_decay": 100.0},
    ),
    pair(
        "digits-dropout",
        "dropout of 0.97 after every layer",
        DIGITS.but(layers=_digits(dropout=0.2)),
        "HIGH_DROPOUT NO_PROGRESS PLC LOSS_NOT_DECREASING CLASS_NEGLECT",
        layers=_digits(dropout=0.97),
    ),
    pair(
        "digits-frozen",
        "everything frozen but the batch normalisation",
        DIGITS.but(
            layers=(
                dense(64, "relu"),
                layer("BatchNormalization"),
                dense(10, "softmax"),
            )
        ),
        "NO_PROGRESS PLC LOSS_NOT_DECREASING NMG UNCHANGED_WEIGHTS",
        layers=(
            dense(64, "relu", trainable=False),
            layer("BatchNormalization"),
            dense(10, "softmax", trainable=False),
        ),
    ),
    pair(
        "digits-decay-per-step",
        "a learning rate that halves every step instead of every few epochs",
        DIGITS.but(
            rate=scheduled(
                "ExponentialDecay",
                initial_learning_rate=1e-3,
                decay_steps=300,
                decay_rate=0.5,
            )
        ),
        "UPDATE_RATIO UNCHANGED_WEIGHTS PLC LR_RANGE",
        rate=scheduled(
            "ExponentialDecay",
            initial_learning_rate=1e-3,
            decay_steps=1,
            decay_rate=0.5,
        ),
    ),
    pair(
        "digits-rate-grows",
        "a learning rate that doubles every epoch instead of halving",
        DIGITS.but(
            optimizer="SGD",
            rate=0.2,
            epoch_rates=tuple(0.2 * 0.8**n for n in range(20)),
        ),
        RATE_HIGH,
        epoch_rates=tuple(0.2 * 2.0**n for n in range(20)),
    ),
    pair(
        "numbers-clipped",
        "gradients clipped to a norm of 1e-4 under SGD",
        NUMBERS.but(optimizer="SGD", rate=0.05, optimizer_arguments={"clipnorm": 1.0}),
        RATE_LOW,
        optimizer_arguments={"clipnorm": 1e-4},
    ),
    pair(
        "few-rows-overfitted",
        "a wide net on 100 rows with noisy labels",
        Configuration(
            data="few and noisy",
            layers=(
                layer("Dropout", rate=0.5),
                dense(1, "sigmoid", kernel_regularizer=initializer("L2", l2=0.02)),
            ),
            loss="binary_crossentropy",
            rate=0.01,
            batch=16,
            epochs=40,
        ),
        "OVERFIT",
        layers=(*stack((256, 256), "relu"), dense(1, "sigmoid")),
    ),
    pair(
        "cancer-labels-shifted",
        "labels that belong to the row before",
        CANCER,
        "OVERFIT NO_PROGRESS PLC LOSS_NOT_DECREASING CLASS_NEGLECT NMG",
        data="cancer rolled",
        epochs=40,
    ),
    pair(
        "moons-exponential",
        "three layers of exponential activations, SGD",
        Configuration(
            data="moons",
            layers=(*stack((16, 16, 16), "relu"), dense(1, "sigmoid")),
            loss="binary_crossentropy",
            optimizer="SGD",
            rate=0.2,
        ),
        "AGV EAG ULC NUMERIC_EDGE",
        layers=(*stack((16, 16, 16), "exponential"), dense(1, "sigmoid")),
    ),
)
