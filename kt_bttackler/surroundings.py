"""Leaves the random numbers and the names of Keras as they were."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

# Private, both: there is no public way to read what `keras.utils.set_random_seed` has
# set, the numbers that Keras gives to layers, or how many seeds TensorFlow drew.
from keras.src.backend.common import global_state
from tensorflow.python.eager import context

# Where `global_state` keeps them; older versions of Keras have no constant for it.
_COUNTERS = "object_name_uids"
GLOBAL_SEED_GENERATOR = "global_seed_generator"


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Trainings in it change nothing for what comes after it.

    Restored are the random numbers of Python, numpy, Keras and TensorFlow, and the
    numbers in the names of layers. A training after it is, bit for bit, the one that
    it would have been without.
    """
    python, numbers = random.getstate(), np.random.get_state()
    seeds, of_keras = context.context(), global_state.GLOBAL_STATE_TRACKER
    seed, drawing = seeds._seed, getattr(seeds, "_rng", None)
    drawn = drawing and drawing.getstate()
    fresh_names()
    try:
        yield
    finally:
        global_state.GLOBAL_STATE_TRACKER = of_keras
        if drawing is not None:
            seeds._seed, seeds._rng = seed, drawing
            drawing.setstate(drawn)
        random.setstate(python)
        np.random.set_state(numbers)


def fresh_names() -> None:
    """Begins the names of layers anew; policies and scopes of Keras stay in force."""
    kept: dict[str, Any] = dict(global_state.GLOBAL_STATE_TRACKER.__dict__)
    for name in (_COUNTERS, GLOBAL_SEED_GENERATOR):
        kept.pop(name, None)
    tracker = threading.local()
    tracker.__dict__.update(kept)
    global_state.GLOBAL_STATE_TRACKER = tracker
