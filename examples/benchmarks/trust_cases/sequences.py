"""Recurrent networks, attention and embeddings."""

from trust_cases.dense import CROSS_ENTROPY
from trust_cases.models import (
    RATE_HIGH,
    RATE_LOW,
    TARGETS_RAW,
    Configuration,
    dense,
    initializer,
    layer,
    pair,
    stack,
)

NORM = layer("LayerNormalization")
WORDS = layer("Embedding", input_dim=200, output_dim=32)


def _attention(first, dropout=0.0, blocks=2, normalised=True):
    norm = (NORM,) if normalised else ()
    drop = (layer("Dropout", rate=dropout),) if dropout else ()
    attention = (*norm, layer("SelfAttention", num_heads=2, key_dim=16), *drop)
    wide = (*norm, dense(64, "gelu"), dense(32), *drop)
    block = (layer("Residual", body=attention), layer("Residual", body=wide))
    pool = layer("GlobalAveragePooling1D")
    return (first, *blocks * block, *norm, pool)


WAVES = Configuration(
    data="waves",
    layers=(layer("LSTM", units=24), dense(3, "softmax")),
    loss=CROSS_ENTROPY,
    rate=5e-3,
)
FADING = Configuration(
    data="fading",
    layers=(layer("SimpleRNN", units=24), dense(1)),
    loss="mse",
    rate=3e-3,
)
PASSENGERS = Configuration(
    data="passengers",
    layers=(layer("GRU", units=24), dense(1)),
    loss="mse",
    rate=5e-3,
    epochs=15,
)
REVIEWS = Configuration(
    data="reviews",
    layers=(
        layer("Embedding", input_dim=300, output_dim=16),
        layer("GlobalAveragePooling1D"),
        dense(16, "relu"),
        dense(1, "sigmoid"),
    ),
    loss="binary_crossentropy",
    rate=5e-3,
)
TOPICS = Configuration(
    data="topics",
    layers=(
        *_attention(first=WORDS),
        dense(5, "softmax"),
    ),
    loss=CROSS_ENTROPY,
    rate=1e-3,
    epochs=12,
)
RATINGS = Configuration(
    data="ratings",
    layers=(
        layer("Embedding", input_dim=110, output_dim=8),
        layer("Flatten"),
        *stack((32, 16), "relu"),
        dense(1),
    ),
    loss="mse",
    rate=3e-3,
)
# Neighbours first: attention alone does not know the order.
LOCAL = layer("Conv1D", filters=32, kernel_size=5, activation="relu")
ATTENTION = WAVES.but(
    layers=(*_attention(LOCAL), dense(3, "softmax")), rate=1e-3, epochs=12
)
UNNORMALISED = ATTENTION.but(
    layers=(*_attention(LOCAL, normalised=False), dense(3, "softmax"))
)

PAIRS = (
    pair(
        "lstm-rate-high",
        "Adam with a learning rate of 1 on an LSTM",
        WAVES,
        RATE_HIGH,
        rate=1.0,
    ),
    pair(
        "lstm-rate-low",
        "SGD with a learning rate of 1e-4 on an LSTM",
        WAVES,
        RATE_LOW,
        optimizer="SGD",
        rate=1e-4,
    ),
    pair(
        "lstm-deep-sigmoid",
        "four LSTMs with sigmoid outputs, SGD",
        WAVES,
        "ERG PLC COLLAPSED_OUTPUT POOR_INIT",
        layers=(
            *3
            * (layer("LSTM", units=12, activation="sigmoid", return_sequences=True),),
            layer("LSTM", units=12, activation="sigmoid"),
            dense(3, "softmax"),
        ),
        optimizer="SGD",
        rate=0.01,
    ),
    pair(
        "rnn-exploding",
        "a ReLU recurrence with weights above 1 over 60 steps",
        FADING.but(data="long fading"),
        "AGV EAG ULC POOR_INIT NUMERIC_EDGE",
        layers=(
            layer(
                "SimpleRNN",
                units=24,
                activation="relu",
                recurrent_initializer=initializer("RandomNormal", stddev=0.6),
            ),
            dense(1),
        ),
    ),
    pair(
        "rnn-saturated",
        "waves of amplitude 100 and large weights under tanh",
        WAVES.but(layers=(layer("SimpleRNN", units=24), dense(3, "softmax"))),
        "INPUT_SCALE SATURATION LAR EAG POOR_INIT",
        layers=(
            layer(
                "SimpleRNN",
                units=24,
                recurrent_initializer=initializer("RandomNormal", stddev=1.0),
            ),
            dense(3, "softmax"),
        ),
        data="waves x100",
    ),
    pair(
        "gru-raw-series",
        "a series of 400 and more, as it was measured",
        PASSENGERS,
        "INPUT_SCALE SATURATION COLLAPSED_OUTPUT LAR PLC UPDATE_RATIO",
        data="passengers raw",
    ),
    pair(
        "gru-rate-low",
        "Adam with a learning rate of 1e-6 on a GRU",
        PASSENGERS,
        RATE_LOW,
        rate=1e-6,
    ),
    pair(
        "gru-dropout",
        "dropout of 0.95 on inputs and states of a GRU",
        WAVES.but(layers=(layer("GRU", units=24), dense(3, "softmax"))),
        "HIGH_DROPOUT NO_PROGRESS PLC LOSS_NOT_DECREASING COLLAPSED_OUTPUT",
        layers=(
            layer("GRU", units=24, dropout=0.95, recurrent_dropout=0.95),
            dense(3, "softmax"),
        ),
    ),
    pair(
        "attention-rate-high",
        "Adam with a learning rate of 0.1 on attention without normalisation",
        UNNORMALISED,
        RATE_HIGH,
        rate=0.1,
    ),
    pair(
        "attention-large-inputs",
        "waves of amplitude 100, no normalisation, SGD with momentum",
        ATTENTION,
        "INPUT_SCALE AGV EAG ULC UPDATE_RATIO NUMERIC_EDGE COLLAPSED_OUTPUT",
        data="waves x100",
        layers=UNNORMALISED.layers,
        optimizer="SGD",
        optimizer_arguments={"momentum": 0.9},
        rate=0.01,
    ),
    pair(
        "topics-dropout",
        "dropout of 0.95 in every block of attention",
        TOPICS,
        "HIGH_DROPOUT NO_PROGRESS PLC LOSS_NOT_DECREASING",
        layers=(
            *_attention(
                dropout=0.95,
                first=WORDS,
            ),
            layer("Dropout", rate=0.95),
            dense(5, "softmax"),
        ),
    ),
    pair(
        "embedding-slow",
        "plain SGD, which hardly reaches the rows of an embedding",
        REVIEWS,
        "UPDATE_RATIO PLC COLLAPSED_OUTPUT ERG",
        optimizer="SGD",
        rate=0.01,
    ),
    pair(
        "embedding-overfitted",
        "an embedding of 128 numbers a word, for 60 epochs",
        REVIEWS,
        "OVERFIT",
        layers=(
            layer("Embedding", input_dim=300, output_dim=128),
            layer("Flatten"),
            dense(64, "relu"),
            dense(1, "sigmoid"),
        ),
        epochs=30,
    ),
    pair(
        "ratings-raw",
        "ratings of 0 to 100 under a learning rate for scaled ones",
        RATINGS.but(optimizer="SGD", rate=0.1),
        TARGETS_RAW,
        data="ratings raw",
    ),
    pair(
        "ratings-huge-embedding",
        "an embedding that starts with a deviation of 50",
        RATINGS,
        "POOR_INIT EAG ULC NUMERIC_EDGE UPDATE_RATIO OVERFIT",
        layers=(
            layer(
                "Embedding",
                input_dim=110,
                output_dim=8,
                embeddings_initializer=initializer("RandomNormal", stddev=50.0),
            ),
            *RATINGS.layers[1:],
        ),
    ),
)
