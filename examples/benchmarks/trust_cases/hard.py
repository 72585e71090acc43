"""Healthy trainings that look as if something was wrong with them."""

from trust_cases.convolutional import IMAGES, NORM, RESIDUAL
from trust_cases.dense import CANCER, CROSS_ENTROPY, DIGITS, MOMENTUM, NUMBERS
from trust_cases.models import (
    Configuration,
    HardCase,
    conv,
    dense,
    initializer,
    layer,
    loss_with,
    scheduled,
    stack,
)
from trust_cases.sequences import PASSENGERS, REVIEWS, TOPICS, WAVES


def _steps_per_epoch(rows, batch):
    return -(-rows // batch)


_TOWER = (layer("Dropout", rate=0.1), dense(32, "relu"))
_HALF = layer("Dropout", rate=0.5)

CASES = (
    HardCase(
        "hard-small-rate",
        "small updates: SGD with a learning rate of 0.003",
        DIGITS.but(optimizer="SGD", rate=0.003, batch=8, epochs=25),
    ),
    HardCase(
        "hard-small-rate-adam",
        "small updates: Adam with a learning rate of 5e-5",
        DIGITS.but(rate=5e-5, batch=8, epochs=25),
    ),
    HardCase(
        "hard-warmup",
        "six epochs in which the rate rises from next to nothing",
        DIGITS.but(
            **MOMENTUM,
            rate=0.1,
            epoch_rates=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.1, 0.05),
        ),
    ),
    HardCase(
        "hard-warmup-schedule",
        "a schedule that warms up over four epochs",
        TOPICS.but(
            rate=scheduled(
                "CosineDecay",
                initial_learning_rate=0.0,
                decay_steps=8 * _steps_per_epoch(900, 32),
                warmup_target=2e-3,
                warmup_steps=4 * _steps_per_epoch(900, 32),
            )
        ),
    ),
    HardCase(
        "hard-cosine-restarts",
        "the rate jumps back up every five epochs",
        DIGITS.but(
            **MOMENTUM,
            rate=scheduled(
                "CosineDecayRestarts",
                initial_learning_rate=0.1,
                first_decay_steps=5 * _steps_per_epoch(1000, 32),
                t_mul=1.0,
            ),
        ),
    ),
    HardCase(
        "hard-deep-tanh",
        "ten tanh layers",
        CANCER.but(layers=(*stack(10 * [16], "tanh"), dense(1, "sigmoid"))),
    ),
    HardCase(
        "hard-sigmoid",
        "three sigmoid layers",
        DIGITS.but(
            layers=(*stack((64, 64, 32), "sigmoid"), dense(10, "softmax")), rate=5e-3
        ),
    ),
    HardCase(
        "hard-saturating",
        "tanh of large weights, most of it saturated",
        DIGITS.but(
            layers=(
                dense(
                    128,
                    "tanh",
                    kernel_initializer=initializer("RandomNormal", stddev=0.7),
                ),
                dense(10, "softmax"),
            ),
        ),
    ),
    HardCase(
        "hard-sparse-relu",
        "most units silent: bias of -1 and a penalty on activity",
        DIGITS.but(
            layers=(
                dense(
                    256,
                    "relu",
                    bias_initializer=initializer("Constant", value=-1.0),
                    activity_regularizer=initializer("L1", l1=1e-5),
                ),
                dense(10, "softmax"),
            ),
        ),
    ),
    HardCase(
        "hard-idle-inputs",
        "strided convolutions, and pixels that are always black",
        IMAGES.but(
            layers=(
                conv(8, strides=2),
                conv(16, strides=2),
                layer("Flatten"),
                dense(10, "softmax"),
            )
        ),
    ),
    HardCase(
        "hard-small-batches",
        "a noisy loss: batches of 2, SGD",
        CANCER.but(optimizer="SGD", rate=0.02, batch=2, epochs=15),
    ),
    HardCase(
        "hard-faint-signal",
        "a tenth of the variance can be explained, no more",
        Configuration(
            data="faint",
            layers=(dense(16, "tanh"), dense(1)),
            loss="mse",
            optimizer="SGD",
            rate=0.003,
        ),
    ),
    HardCase(
        "hard-rare-class",
        "6 % of the rows are positive",
        CANCER.but(data="rare", rate=1e-3),
    ),
    HardCase(
        "hard-class-weights",
        "a training loss in which the rare class counts four times",
        CANCER.but(data="rare", rate=1e-3, fit={"class_weight": {0: 1.0, 1: 4.0}}),
    ),
    HardCase(
        "hard-mixed-precision",
        "float16 and a scaled loss",
        DIGITS.but(policy="mixed_float16", epochs=12),
    ),
    HardCase(
        "hard-label-smoothing",
        "a loss that cannot fall far",
        DIGITS.but(
            data="digits one-hot",
            loss=loss_with("CategoricalCrossentropy", label_smoothing=0.3),
        ),
    ),
    HardCase(
        "hard-own-loss",
        "a loss of the user's own",
        NUMBERS.but(loss="pinball"),
    ),
    HardCase(
        "hard-negative-loss",
        "a likelihood: the loss crosses zero and goes on falling",
        NUMBERS.but(
            data="pictures",
            layers=(*stack((64, 16, 64), "relu"), dense(64)),
            loss="likelihood",
            batch=16,
        ),
    ),
    HardCase(
        "hard-several-outputs",
        "a class and a number at once",
        NUMBERS.but(
            data="two targets",
            layers=(
                *stack((48, 32), "relu"),
                layer(
                    "Heads",
                    heads={
                        "label": (dense(16, "relu"), dense(1, "sigmoid")),
                        "number": (dense(16, "relu"), dense(1)),
                    },
                ),
            ),
            loss={"label": "binary_crossentropy", "number": "mse"},
        ),
    ),
    HardCase(
        "hard-several-labels",
        "five labels at once, each its own yes or no",
        CANCER.but(
            data="several labels",
            layers=(*stack((32, 32), "elu"), dense(5, "sigmoid")),
        ),
    ),
    HardCase(
        "hard-clipped",
        "every gradient clipped to a norm of 0.1",
        WAVES.but(
            layers=(layer("SimpleRNN", units=24), dense(3, "softmax")),
            optimizer_arguments={"clipnorm": 0.1},
        ),
    ),
    HardCase(
        "hard-five-epochs",
        "a budget of five epochs",
        DIGITS.but(epochs=5),
    ),
    HardCase(
        "hard-three-epochs",
        "a budget of three epochs, as in the first bracket of a Hyperband",
        IMAGES.but(epochs=3),
    ),
    HardCase(
        "hard-plateau-parity",
        "a long plateau: the parity of three bits in ten",
        CANCER.but(
            data="parity",
            layers=(dense(32, "tanh"), dense(1, "sigmoid")),
            rate=1e-3,
            epochs=40,
        ),
    ),
    HardCase(
        "hard-longer-plateau-parity",
        "a plateau of a third of the budget: the parity of four bits in ten",
        CANCER.but(
            data="parity of four",
            layers=(dense(32, "tanh"), dense(1, "sigmoid")),
            epochs=40,
        ),
    ),
    HardCase(
        "hard-plateau-spirals",
        "a long plateau: two spirals",
        CANCER.but(
            data="spirals",
            layers=(*stack((32, 32), "tanh"), dense(1, "sigmoid")),
            rate=1e-2,
            epochs=40,
        ),
    ),
    HardCase(
        "hard-plateau-exclusive-or",
        "a long plateau: exclusive or under sigmoids",
        Configuration(
            data="xor4",
            layers=(dense(8, "sigmoid"), dense(1, "sigmoid")),
            loss="mse",
            rate=0.1,
            batch=4,
            epochs=150,
        ),
    ),
    HardCase(
        "hard-slow-start-lstm",
        "an LSTM that tells the waves apart only after some epochs",
        WAVES.but(data="long waves", rate=2e-3, epochs=20),
    ),
    HardCase(
        "hard-slow-start-words",
        "words that say nothing until the embedding has moved",
        REVIEWS.but(rate=1e-3, epochs=25),
    ),
    HardCase(
        "hard-half-dropout",
        "a training loss above that of the validation: dropout of 0.5 thrice",
        DIGITS.but(
            layers=(
                _HALF,
                *(dense(128, "relu"), _HALF, dense(128, "relu"), _HALF),
                dense(10, "softmax"),
            )
        ),
    ),
    HardCase(
        "hard-random-features",
        "only the head is trained",
        DIGITS.but(
            layers=(dense(256, "relu", trainable=False), dense(10, "softmax")),
            rate=3e-3,
        ),
    ),
    HardCase(
        "hard-large-penalty",
        "a penalty that makes up most of the first losses",
        DIGITS.but(
            layers=(
                *stack(
                    (64, 64),
                    "relu",
                    kernel_initializer="he_normal",
                    kernel_regularizer=initializer("L2", l2=0.003),
                ),
                dense(10, "softmax"),
            ),
            rate=3e-3,
        ),
    ),
    HardCase(
        "hard-weight-decay",
        "weights that shrink: AdamW with a decay of 0.1",
        DIGITS.but(
            layers=(*stack((128, 64), "silu"), dense(10, "softmax")),
            optimizer="AdamW",
            optimizer_arguments={"weight_decay": 0.1},
        ),
    ),
    HardCase(
        "hard-large-rate-normalised",
        "large updates, which batch normalisation bears",
        DIGITS.but(
            layers=(
                *2 * (dense(64, use_bias=False), NORM, layer("ReLU")),
                dense(10, "softmax"),
            ),
            optimizer="SGD",
            rate=0.5,
        ),
    ),
    HardCase(
        "hard-own-scaling",
        "pixels of 0 to 255, scaled by the model itself",
        IMAGES.but(
            data="images 0-255",
            layers=(layer("Rescaling", scale=1 / 255), *IMAGES.layers),
        ),
    ),
    HardCase(
        "hard-zero-start-residual",
        "residual branches that start at zero",
        RESIDUAL.but(
            layers=(
                dense(32),
                *8
                * (
                    layer(
                        "Residual",
                        body=(
                            dense(32, "relu"),
                            dense(32, kernel_initializer="zeros"),
                        ),
                    ),
                ),
                dense(1),
            ),
            optimizer="Adam",
            rate=2e-3,
        ),
    ),
    HardCase(
        "hard-raw-targets",
        "targets of hundreds, but a rate to match",
        NUMBERS.but(data="diabetes raw", rate=0.03, batch=16, loss="mae"),
    ),
    HardCase(
        "hard-small-table",
        "120 rows, eight steps an epoch",
        Configuration(
            data="wine",
            layers=(*_TOWER, dense(3, "softmax")),
            loss=CROSS_ENTROPY,
            rate=3e-3,
            batch=16,
            epochs=30,
        ),
    ),
    HardCase(
        "hard-stacked-lstm",
        "two LSTMs, one upon the other, with recurrent dropout",
        PASSENGERS.but(
            layers=(
                layer("LSTM", units=16, return_sequences=True),
                layer("LSTM", units=16, recurrent_dropout=0.2),
                dense(1),
            )
        ),
    ),
)
