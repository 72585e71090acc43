"""Trainings that take turns step by step, so that noise hits all of them alike."""

import random
import statistics
import threading
import time

import keras
import numpy as np
import tensorflow as tf

from kt_bttackler import DiagnosisCallback, probe_meter, recorder
from kt_bttackler.taps import TrainingTap
from overhead_parts.models import batches, compiled, rows_for

ARMS = ("plain", "plain again", "watched")


class Turns:
    """Lets several threads run one at a time, each for one training step.

    Every round has an order of its own: who always runs after the same neighbour pays
    for what that one leaves in the caches.
    """

    def __init__(self, parties, seed=0):
        self._condition = threading.Condition()
        self._parties = list(parties)
        self._random = random.Random(seed)
        self._round = []
        self._running = None
        self._next()

    def wait(self, party):
        """Waits for the turn of `party`."""
        with self._condition:
            self._condition.wait_for(lambda: self._running == party)

    def hand_over(self, party, *, leave=False):
        """Ends the turn of `party`, and its part in the game if it leaves."""
        with self._condition:
            if leave:
                self._parties.remove(party)
                self._round = [one for one in self._round if one != party]
            self._next()
            self._condition.notify_all()

    def _next(self):
        if not self._round:
            self._round = self._random.sample(self._parties, len(self._parties))
        self._running = self._round.pop() if self._round else None


class Meter(keras.callbacks.Callback):
    """Takes turns, and adds up the time of every epoch; the last in its list."""

    def __init__(self, arm, turns):
        super().__init__()
        self.arm, self.turns = arm, turns
        self.cpu = []
        self.wall = []
        self._steps = 0

    def on_train_begin(self, logs=None):
        """Starts the clocks."""
        self._start()

    def on_epoch_begin(self, epoch, logs=None):
        """Starts an epoch."""
        self.cpu.append(0.0)
        self.wall.append(0.0)
        self._steps = 0

    def on_train_batch_begin(self, batch, logs=None):
        """Charges what has been, and lets the next arm run."""
        # The time since the last step holds all that callbacks did after it.
        self._charge()
        self.turns.hand_over(self.arm)
        self.turns.wait(self.arm)
        self._start()

    def on_train_batch_end(self, batch, logs=None):
        """Counts."""
        self._steps += 1

    def on_train_end(self, logs=None):
        """Charges the rest."""
        self._charge()

    def _start(self):
        self._last = time.process_time(), time.perf_counter()

    def _charge(self):
        # Between two epochs: still the cost of the one before.
        place = -2 if self._steps == 0 and len(self.cpu) > 1 else -1
        self.cpu[place] += time.process_time() - self._last[0]
        self.wall[place] += time.perf_counter() - self._last[1]
        self._start()


class TimedDiagnosis(DiagnosisCallback):
    """Notes the seconds of its own hooks, epoch by epoch.

    Attributes:
        step_hooks: of every step, per epoch.
        epoch_hooks: of its beginning and its end, per epoch.
    """

    def __init__(self, diagnosis=None, clock=time.process_time):
        super().__init__(diagnosis, stop=False)
        self.clock = clock
        self.step_hooks = []
        self.epoch_hooks = []

    def on_epoch_begin(self, epoch, logs=None):
        """Times the hook."""
        start = self.clock()
        super().on_epoch_begin(epoch, logs)
        self.step_hooks.append([])
        self.epoch_hooks.append(self.clock() - start)

    def on_train_batch_end(self, batch, logs=None):
        """Times the hook."""
        start = self.clock()
        super().on_train_batch_end(batch, logs)
        self.step_hooks[-1].append(self.clock() - start)

    def on_epoch_end(self, epoch, logs=None):
        """Times the hook."""
        start = self.clock()
        super().on_epoch_end(epoch, logs)
        self.epoch_hooks[-1] += self.clock() - start


def tap_seconds(make, batch, copies, steps):
    """What the tap adds to the CPU time of a step, in several copies of a model.

    In each, the training functions with and without the tap take turns on the same
    weights. Copies of one graph differ, by more than the tap costs: how TensorFlow
    spreads their operations is not the same.

    Returns:
        Seconds, [copies].
    """
    added = []
    order = random.Random(0)
    for _ in range(copies):
        model, classes = compiled(make, built=True)
        iterator = batches(model, classes, batch)
        functions = {"plain": model.make_train_function() or model.train_function}
        tap = TrainingTap()
        tap.install(model)
        functions["tapped"] = model.train_function
        seconds = {name: [] for name in functions}
        for step in range(steps + 2):
            for name in order.sample(list(functions), len(functions)):
                start = time.process_time()
                functions[name](iterator)
                if step >= 2:  # they are traced, and grow warm
                    seconds[name].append(time.process_time() - start)
        pairs = zip(seconds["tapped"], seconds["plain"], strict=True)
        added.append(statistics.median(a - b for a, b in pairs))
        keras.backend.clear_session()
    return added


def train_in_turns(make, batch, steps, epochs, watching=None):
    """Trains a model in every arm.

    Args:
        make: one of `models`.
        batch: rows of a step.
        steps: of an epoch.
        epochs: with the one in which the step is traced.
        watching: the callback of each arm that has one, by default of "watched".

    Returns:
        The meter of every arm, and the callbacks.
    """
    turns = Turns(ARMS)
    restored = probe_meter.PROBE_SHARE, recorder.SUMMARY_SHARE
    # The clock runs on while the other arms train: of a training by itself, what a
    # measurement may take is a share of a third of that time.
    probe_meter.PROBE_SHARE /= len(ARMS)
    recorder.SUMMARY_SHARE /= len(ARMS)
    meters = {arm: Meter(arm, turns) for arm in ARMS}
    models = {arm: compiled(make, built=True) for arm in ARMS}
    watching = watching or {"watched": TimedDiagnosis()}
    data = tf.data.Dataset.from_tensor_slices(rows_for(*models["plain"], batch * steps))
    # Arms that wait for each other must not wait for TensorFlow's one thread as well.
    threads = tf.data.Options()
    threads.threading.private_threadpool_size = 1
    data = data.batch(batch).with_options(threads)

    def run(arm):
        turns.wait(arm)
        try:
            models[arm][0].fit(
                data,
                epochs=epochs,
                verbose=0,
                callbacks=[*filter(None, [watching.get(arm)]), meters[arm]],
            )
        finally:
            turns.hand_over(arm, leave=True)

    threads = [threading.Thread(target=run, args=(arm,)) for arm in ARMS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    probe_meter.PROBE_SHARE, recorder.SUMMARY_SHARE = restored
    keras.backend.clear_session()
    return meters, watching


def ratio(over, under):
    """Ratio of the sums over paired epochs, with a 95 % bootstrap interval.

    The first epoch, which traces, is left out.
    """
    over, under = np.array(over[1:]), np.array(under[1:])
    draws = np.random.default_rng(0).integers(0, len(over), (4000, len(over)))
    resampled = over[draws].sum(axis=1) / under[draws].sum(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {
        "ratio": float(over.sum() / under.sum()),
        "low": float(low),
        "high": float(high),
    }


def derived_ratio(watching, plain, taps):
    """The ratio made of its parts: hooks, timed one by one, and the tap in each step.

    The first epoch counts here.

    Args:
        watching: the callback of the watched arm.
        plain: CPU seconds of each epoch of the arm without it.
        taps: `tap_seconds`.
    """
    plain_seconds = len(plain) * np.mean(plain[1:])
    steps = sum(map(len, watching.step_hooks))
    hooks = sum(map(sum, watching.step_hooks)) + sum(watching.epoch_hooks)
    draws = np.random.default_rng(0).integers(0, len(taps), (4000, len(taps)))
    low, high = np.quantile(np.mean(np.array(taps)[draws], axis=1), [0.025, 0.975])
    return {
        name: float(1 + (hooks + steps * tap) / plain_seconds)
        for name, tap in (("ratio", np.mean(taps)), ("low", low), ("high", high))
    }
