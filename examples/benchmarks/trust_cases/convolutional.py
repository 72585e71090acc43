"""Convolutional, residual and normalised networks."""

from trust_cases.dense import CROSS_ENTROPY, MOMENTUM
from trust_cases.models import (
    RATE_HIGH,
    RATE_LOW,
    Configuration,
    conv,
    dense,
    initializer,
    layer,
    pair,
    stack,
)

POOL = layer("MaxPooling2D", pool_size=2)
MEAN = layer("GlobalAveragePooling2D")
HEAD = (layer("Flatten"), dense(10, "softmax"))
NORM = layer("BatchNormalization")


def _images():
    return (conv(16), POOL, conv(32), POOL, *HEAD)


def _averaged(kernel="glorot_uniform"):
    start = {"kernel_initializer": kernel}
    head = dense(10, "softmax", **start)
    return (conv(16, **start), POOL, conv(32, **start), MEAN, head)


def _normalised(momentum):
    norm = layer("BatchNormalization", momentum=momentum)
    plain = {"activation": "linear", "use_bias": False}
    relu = layer("ReLU")
    return (conv(16, **plain), norm, relu, POOL, conv(32, **plain), norm, relu, *HEAD)


def _residual(blocks, norm, scale=2.0):
    kernel = initializer(
        "VarianceScaling", scale=scale, mode="fan_in", distribution="normal"
    )
    body = (
        *norm,
        dense(32, "relu", kernel_initializer=kernel),
        dense(32, kernel_initializer=kernel),
    )
    deep = blocks * (layer("Residual", body=body),)
    return (dense(32), *deep, *norm, dense(1))


IMAGES = Configuration(
    data="images", layers=_images(), loss=CROSS_ENTROPY, rate=2e-3, epochs=12
)
RESIDUAL = Configuration(
    data="friedman",
    layers=_residual(12, (layer("LayerNormalization"),)),
    loss="mse",
    optimizer="SGD",
    rate=0.01,
)
SMALL_BATCHES = Configuration(
    data="wine",
    layers=(dense(32), NORM, layer("ReLU"), dense(3, "softmax")),
    loss=CROSS_ENTROPY,
    batch=16,
    rate=3e-3,
)

PAIRS = (
    pair(
        "images-rate-high",
        "Adam with a learning rate of 0.3",
        IMAGES,
        RATE_HIGH,
        rate=0.3,
    ),
    pair(
        "images-rate-low",
        "RMSprop with a learning rate of 1e-6",
        IMAGES.but(optimizer="RMSprop"),
        RATE_LOW,
        rate=1e-6,
    ),
    pair(
        "images-pixels",
        "pixels of 0 to 255, SGD with momentum",
        IMAGES.but(**MOMENTUM, rate=0.05),
        "INPUT_SCALE ULC AGV EAG DEAD_UNITS UPDATE_RATIO COLLAPSED_OUTPUT LAR",
        data="images 0-255",
    ),
    pair(
        "images-deep-sigmoid",
        "six sigmoid convolutions",
        IMAGES.but(
            layers=(*4 * (conv(12, kernel_initializer="he_normal"),), POOL, *HEAD)
        ),
        "ERG PLC COLLAPSED_OUTPUT SATURATION POOR_INIT",
        layers=(*6 * (conv(12, "sigmoid"),), MEAN, dense(10, "softmax")),
    ),
    pair(
        "images-dead-bias",
        "biases of -5 in the second convolution",
        IMAGES,
        "DEAD_UNITS LAR ERG COLLAPSED_OUTPUT PLC UNCHANGED_WEIGHTS POOR_INIT",
        layers=(
            conv(16),
            POOL,
            conv(32, bias_initializer=initializer("Constant", value=-5.0)),
            POOL,
            *HEAD,
        ),
    ),
    pair(
        "images-constant-weights",
        "all kernels 0.1",
        IMAGES.but(layers=_averaged(), rate=5e-3, epochs=15),
        "POOR_INIT COLLAPSED_OUTPUT ERG EAG ULC PLC",
        layers=_averaged(initializer("Constant", value=0.1)),
    ),
    pair(
        "images-normalisation-lags",
        "batch normalisation that keeps 0.9999 of its moving averages",
        IMAGES.but(layers=_normalised(0.9)),
        "OVERFIT ULC",
        layers=_normalised(0.9999),
    ),
    pair(
        "wine-normalised-alone",
        "batch normalisation with batches of one row",
        SMALL_BATCHES,
        "NO_PROGRESS PLC LOSS_NOT_DECREASING ERG COLLAPSED_OUTPUT LAR DEAD_UNITS",
        batch=1,
    ),
    pair(
        "residual-without-norm",
        "twelve residual blocks without normalisation, SGD",
        RESIDUAL,
        "EAG AGV ULC POOR_INIT NUMERIC_EDGE DEAD_UNITS UPDATE_RATIO COLLAPSED_OUTPUT",
        layers=_residual(12, ()),
    ),
    pair(
        "residual-rate-high",
        "Adam with a learning rate of 0.3 on residual blocks",
        RESIDUAL.but(layers=_residual(4, (), 0.3), optimizer="Adam", rate=1e-3),
        RATE_HIGH,
        rate=0.3,
    ),
    pair(
        "residual-penalty",
        "L1 penalty of 0.5 in a normalised net",
        RESIDUAL.but(
            optimizer="Adam",
            rate=3e-3,
            layers=(dense(32), NORM, layer("ReLU"), dense(1)),
        ),
        "REGULARISER_DOMINATES COLLAPSED_OUTPUT PLC LAR ERG",
        layers=(
            dense(32, kernel_regularizer=initializer("L1", l1=0.5)),
            NORM,
            layer("ReLU"),
            *stack((1,), "linear", kernel_regularizer=initializer("L1", l1=0.5)),
        ),
    ),
)
