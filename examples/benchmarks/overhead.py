"""What watching a training costs: CPU time with and without the default callback.

    python examples/benchmarks/overhead.py --json overhead.json [--smoke]
        [--models cnn,lstm,transformer,tabular,resnet] [--epochs 20] [--epoch-seconds 5]

Three arms train copies of one model in one process: plain, plain again, and watched.
They take turns step by step, so that whatever else the machine does hits all three
alike, and each step, with all that callbacks do after it, is charged to its arm by the
CPU time of the whole process. `plain again` per `plain` is the null: what the method
itself resolves. The first epoch is left out: what it costs to set up is measured apart,
on fresh models.

A port of the published way (ten statistics of w, |w|, g and |g| of every layer, after
every batch) and a GradientTape on a probe batch are timed in the same run. Their
gradients come from the tap here, so the port is dearer still in truth.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import scipy.stats

from kt_bttackler import DiagnosisCallback, taps

layers = keras.layers
PACKAGES = ("tensorflow", "keras", "numpy", "scipy")
ARMS = ("plain", "plain again", "watched")


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


MODELS = {
    "cnn": cnn,
    "lstm": lstm,
    "transformer": transformer,
    "tabular": tabular,
    "resnet": resnet,
}


def compiled(make):
    """A compiled model, the same at every call."""
    keras.utils.set_random_seed(0)
    model, loss, classes = make()
    model.compile("adam", loss)
    return model, classes


def rows_for(model, classes, count):
    """Random inputs and targets."""
    random = np.random.default_rng(0)
    x = random.normal(size=(count, *model.input_shape[1:])).astype("float32")
    if classes:
        return x, random.integers(0, classes, count)
    return x, random.normal(size=(count, 1)).astype("float32")


class Turns:
    """Lets several threads run one at a time, each for one training step."""

    def __init__(self, parties):
        self._condition = threading.Condition()
        self._parties = list(parties)
        self._running = self._parties[0]

    def wait(self, party):
        """Waits for the turn of `party`."""
        with self._condition:
            self._condition.wait_for(lambda: self._running == party)

    def hand_over(self, party, *, leave=False):
        """Ends the turn of `party`, and its part in the game if it leaves."""
        with self._condition:
            place = self._parties.index(party)
            if leave:
                self._parties.remove(party)
            else:
                place += 1
            if self._parties:
                self._running = self._parties[place % len(self._parties)]
            self._condition.notify_all()


class Meter(keras.callbacks.Callback):
    """Takes turns, and adds up the CPU time of every epoch; the last in its list."""

    def __init__(self, arm, turns):
        super().__init__()
        self.arm, self.turns = arm, turns
        self.epochs = []
        self.steps = []

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._last = time.process_time()

    def on_epoch_begin(self, epoch, logs=None):
        """Starts an epoch."""
        self.epochs.append(0.0)
        self.steps.append(0)

    def on_train_batch_begin(self, batch, logs=None):
        """Charges what has been, and lets the next arm run."""
        # The time since the last step holds all that callbacks did after it.
        self._charge()
        self.turns.hand_over(self.arm)
        self.turns.wait(self.arm)
        self._last = time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        """Counts."""
        self.steps[-1] += 1

    def on_train_end(self, logs=None):
        """Charges the rest."""
        self._charge()

    def _charge(self):
        now = time.process_time()
        # Between two epochs: still the cost of the one before.
        place = -2 if self.steps[-1] == 0 and len(self.epochs) > 1 else -1
        self.epochs[place] += now - self._last
        self._last = now


def train_in_turns(make, batch, steps, epochs):
    """CPU seconds of every epoch of every arm."""
    turns = Turns(ARMS)
    meters = {arm: Meter(arm, turns) for arm in ARMS}
    models = {arm: compiled(make) for arm in ARMS}
    x, y = rows_for(*models["plain"], batch * steps)

    def run(arm):
        turns.wait(arm)
        try:
            watch = [DiagnosisCallback(stop=False)] if arm == "watched" else []
            models[arm][0].fit(
                x,
                y,
                batch_size=batch,
                epochs=epochs,
                shuffle=False,
                verbose=0,
                callbacks=[*watch, meters[arm]],
            )
        finally:
            turns.hand_over(arm, leave=True)

    threads = [threading.Thread(target=run, args=(arm,)) for arm in ARMS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {arm: meters[arm].epochs for arm in ARMS}


def ratio(over, under):
    """Ratio of the sums over paired epochs, with a 95 % bootstrap interval."""
    over, under = np.array(over[1:]), np.array(under[1:])
    draws = np.random.default_rng(0).integers(0, len(over), (4000, len(over)))
    resampled = over[draws].sum(axis=1) / under[draws].sum(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {
        "ratio": float(over.sum() / under.sum()),
        "low": float(low),
        "high": float(high),
    }


def step_seconds(make, batch):
    """Wall seconds of a plain step, to choose the number of steps."""
    model, classes = compiled(make)
    x, y = rows_for(model, classes, batch)
    for _ in range(3):
        model.train_on_batch(x, y)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        model.train_on_batch(x, y)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def batch_for(make, per_variable):
    """The smallest power of two at which a step takes `per_variable` s per variable."""
    model, _ = compiled(make)
    wanted = per_variable * len(model.trainable_variables)
    batch = 16
    while batch < 16384:
        seconds = step_seconds(make, batch)
        if seconds >= wanted:
            break
        batch *= 2
    return batch, seconds


def one_epoch_cpu(make, batch, steps, watched):
    """CPU seconds of building nothing but training a fresh model for one epoch."""
    model, classes = compiled(make)
    x, y = rows_for(model, classes, batch * steps)
    gc.collect()
    start = time.process_time()
    model.fit(
        x,
        y,
        batch_size=batch,
        verbose=0,
        callbacks=[DiagnosisCallback(stop=False)] if watched else [],
    )
    return time.process_time() - start


def set_up(make, batch, repeats):
    """CPU seconds that the callback adds to a fit of one step, in interleaved pairs."""
    pairs = [
        (one_epoch_cpu(make, batch, 1, True), one_epoch_cpu(make, batch, 1, False))
        for _ in range(repeats)
    ]
    return {
        "setup_seconds": statistics.median(a - b for a, b in pairs),
        "first_step_seconds": statistics.median(b for _, b in pairs),
        "setup_pairs": len(pairs),
    }


def published_statistics(tensor):
    """The ten statistics of one tensor, one call each."""
    flat = tensor.ravel()
    np.mean(flat), np.var(flat), np.median(flat), np.min(flat), np.max(flat)
    np.percentile(flat, 75), np.percentile(flat, 25)
    scipy.stats.skew(flat), scipy.stats.kurtosis(flat), np.mean(flat == 0)


def baselines(make, batch):
    """CPU seconds per step of the published way, and of one probe of a tape."""
    model, classes = compiled(make)
    x, y = rows_for(model, classes, batch)
    tap = taps.TrainingTap()
    tap.install(model)
    model.fit(x, y, batch_size=batch, verbose=0)
    start = time.process_time()
    repeats = 3
    for _ in range(repeats):
        for gradient, variable in zip(
            tap.gradients(), model.trainable_variables, strict=True
        ):
            weight = variable.numpy()
            for tensor in (weight, np.abs(weight), gradient, np.abs(gradient)):
                published_statistics(tensor)
    published = (time.process_time() - start) / repeats
    probe = taps.ProbeTap(x[:32], y[:32])
    probe.install(model)
    probe.gradients()
    start = time.process_time()
    for _ in range(repeats):
        probe.gradients()
    return {
        "published_seconds_per_step": published,
        "probe_tape_seconds": (time.process_time() - start) / repeats,
    }


def measure(name, options):
    """All figures of one model."""
    make = MODELS[name]
    batch, seconds = batch_for(make, options.step_ms / 1000)
    steps = max(2, round(options.epoch_seconds / seconds))
    cpu = train_in_turns(make, batch, steps, options.epochs)
    model, _ = compiled(make)
    plain, watched = sum(cpu["plain"][1:]), sum(cpu["watched"][1:])
    facts = {
        **ratio(cpu["watched"], cpu["plain"]),
        "null": ratio(cpu["plain again"], cpu["plain"]),
        "parameters": int(model.count_params()),
        "variables": len(model.trainable_variables),
        "batch": batch,
        "steps": steps,
        "epochs": options.epochs,
        "step_cpu_seconds": plain / (options.epochs - 1) / steps,
        "epoch_cpu_seconds": cpu,
        **set_up(make, batch, options.repeats),
        **baselines(make, batch),
    }
    pairs = [
        (
            one_epoch_cpu(make, batch, steps, True),
            one_epoch_cpu(make, batch, steps, False),
        )
        for _ in range(max(1, options.repeats // 3))
    ]
    facts["one_epoch_ratio"] = statistics.median(a / b for a, b in pairs)
    added = (watched - plain) / (options.epochs - 1) / steps
    facts["added_seconds_per_step"] = added
    facts["published_share"] = (
        facts["published_seconds_per_step"] / facts["step_cpu_seconds"]
    )
    return facts


def main():
    """Measures, and writes what it has after every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, help="file for the results")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--epoch-seconds", type=float, default=5.0)
    parser.add_argument("--step-ms", type=float, default=2.0, help="per variable")
    parser.add_argument("--repeats", type=int, default=6, help="of the set-up")
    parser.add_argument("--smoke", action="store_true", help="a few seconds a model")
    options = parser.parse_args()
    if options.smoke:
        options.epochs, options.epoch_seconds, options.repeats = 3, 0.2, 1
        options.step_ms = 0.1
    target = pathlib.Path(options.json)
    results = {
        "settings": {
            "epochs": options.epochs,
            "epoch_seconds": options.epoch_seconds,
            "step_milliseconds_per_variable": options.step_ms,
        },
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES}
        | {"python": platform.python_version(), "cores": os.cpu_count()},
        "models": {},
    }
    print(
        "model        ratio  [95 % interval]   null   set-up s (first step)  published"
    )
    for name in options.models.split(","):
        facts = results["models"][name] = measure(name, options)
        target.write_text(json.dumps(results, indent=1) + "\n")
        print(
            f"{name:12} {facts['ratio']:.4f} [{facts['low']:.4f}, {facts['high']:.4f}] "
            f"{facts['null']['ratio']:.4f}  {facts['setup_seconds']:+.3f} "
            f"({facts['first_step_seconds']:.2f})  "
            f"{facts['published_share']:.2f} of a step",
            flush=True,
        )
        keras.backend.clear_session()


if __name__ == "__main__":
    main()
