"""The models that are trained, and random data for them."""

import itertools
import time

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers


def cnn():
    """Four convolutions on images."""
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for width in (32, 32, 64, 64):
        model.add(layers.Conv2D(width, 3, activation="relu", padding="same"))
        model.add(layers.BatchNormalization())
        if width == 64:
            model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(10, activation="softmax"))
    return model, "sparse_categorical_crossentropy", 10


def lstm():
    """Two recurrent layers on sequences."""
    model = keras.Sequential(
        [
            keras.Input((48, 32)),
            layers.LSTM(64, return_sequences=True),
            layers.LSTM(64),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    return model, "sparse_categorical_crossentropy", 10


def transformer():
    """Two encoder blocks on sequences."""
    x = inputs = keras.Input((64, 32))
    x = layers.Dense(64)(x)
    for _ in range(2):
        attended = layers.MultiHeadAttention(4, 16)(x, x)
        x = layers.LayerNormalization()(layers.Add()([x, attended]))
        wide = layers.Dense(128, activation="gelu")(x)
        x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(64)(wide)]))
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    return model, "sparse_categorical_crossentropy", 10


def tabular():
    """A dense net on rows of features."""
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(4):
        model.add(layers.Dense(256, activation="relu"))
    model.add(layers.Dense(1))
    return model, "mse", 0


def resnet():
    """A hundred layers with residual connections."""
    x = inputs = keras.Input((64,))
    x = layers.Dense(96)(x)
    for _ in range(49):
        inner = layers.Dense(96, activation="relu", kernel_initializer="he_normal")(x)
        x = layers.Add()([x, layers.Dense(96, kernel_initializer="zeros")(inner)])
    model = keras.Model(inputs, layers.Dense(1)(x))
    return model, "mse", 0


def wide():
    """A dense net of eight million parameters, whose statistics go to the worker."""
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(3):
        model.add(layers.Dense(2000, activation="relu"))
    model.add(layers.Dense(1))
    return model, "mse", 0


MODELS = {
    "cnn": cnn,
    "lstm": lstm,
    "transformer": transformer,
    "tabular": tabular,
    "resnet": resnet,
}


def compiled(make, *, built=False):
    """A compiled model, the same at every call, and its number of classes or 0.

    Args:
        make: one of the functions above.
        built: build the optimizer, too, which Keras does in the first step.
    """
    keras.utils.set_random_seed(0)
    model, loss, classes = make()
    model.compile("adam", loss)
    if built:
        model.optimizer.build(model.trainable_variables)
    return model, classes


def rows_for(model, classes, count):
    """Random inputs and targets."""
    random = np.random.default_rng(0)
    x = random.normal(size=(count, *model.input_shape[1:])).astype("float32")
    if classes:
        return x, random.integers(0, classes, count)
    return x, random.normal(size=(count, 1)).astype("float32")


def batch_for(make, per_variable):
    """The smallest power of two at which a step takes `per_variable` s per variable.

    Returns:
        The batch size, and CPU seconds of a step: the least of several, since
        whatever else the machine does makes a step dearer and never cheaper.
    """
    model, classes = compiled(make, built=True)
    model.make_train_function()
    wanted = per_variable * len(model.trainable_variables)
    for exponent in itertools.count(4):
        batch = 2**exponent
        iterator = batches(model, classes, batch)
        seconds = []
        for _ in range(6):
            start = time.process_time()
            model.train_function(iterator)
            seconds.append(time.process_time() - start)
        if min(seconds) >= wanted or batch >= 2**15:
            return batch, min(seconds)


def batches(model, classes, batch):
    """One random batch, again and again, as training functions take it."""
    data = tf.data.Dataset.from_tensor_slices(rows_for(model, classes, batch))
    return iter(data.repeat().batch(batch))
