"""Several devices, several steps at once, compiled and half-precise trainings.

Each runs in a process of its own, with two virtual processors.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

HERE = pathlib.Path(__file__).parent
PROGRAM = """
import contextlib, json, sys
import keras, numpy as np, tensorflow as tf
import kt_bttackler as ktb

processor = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(processor, two)
random = np.random.default_rng(1)
x = random.normal(size=(192, 8)).astype("float32")
y = (x.sum(axis=1) > 0).astype("float32")[:, None]


def fitted(kind, way):
    keras.utils.set_random_seed(3)
    keras.mixed_precision.set_global_policy("mixed_float16" if way == "half" else "float32")
    scope = contextlib.nullcontext()
    if way == "mirrored":
        scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()
    start = {"dead": "zeros", "fine": "he_normal"}.get(kind)
    start = start or keras.initializers.RandomNormal(stddev=4.0)
    with scope:
        layers = [keras.Input((8,))]
        for _ in range(6):
            layers.append(keras.layers.Dense(16, activation="relu", kernel_initializer=start))
        layers.append(keras.layers.Dense(1, kernel_initializer=start, dtype="float32"))
        model = keras.Sequential(layers)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(
            keras.optimizers.SGD(0.01), loss,
            steps_per_execution=4 if way == "several" else 1,
            jit_compile=way == "compiled",
        )
    callback = ktb.DiagnosisCallback()
    model.fit(x, y, batch_size=24, epochs=6, verbose=0, validation_data=(x, y), callbacks=[callback])
    verdict = callback.verdict
    trace = callback.trace
    return {
        "cause": verdict and verdict.cause,
        "epoch": verdict and verdict.epoch,
        "stop": bool(verdict and verdict.stop),
        "unobserved": dict(trace.header.unobserved),
        "gradients": trace.table("step_gradient/abs_mean")[0].tolist(),
        "length": len(trace),
    }


ways = ["plain", "mirrored", "several", "compiled", "half"]
print(json.dumps({k: {w: fitted(k, w) for w in ways} for k in ("fine", "dead", "exploding")}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error:.* is off", "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "is off" not in done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["mirrored", "several", "compiled", "half"])
@pytest.mark.parametrize("kind", ["fine", "dead", "exploding"])
def test_the_verdict_is_that_of_the_plain_training(
    kind: str, way: str, found: dict[str, Any]
) -> None:
    plain, other = found[kind]["plain"], found[kind][way]
    assert plain["stop"] == (kind != "fine")
    for fact in ("cause", "epoch", "stop", "unobserved", "length"):
        assert other[fact] == plain[fact], fact


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_gradients_are_those_of_the_whole_batch(found: dict[str, Any]) -> None:
    plain = found["fine"]["plain"]["gradients"]
    assert found["fine"]["mirrored"]["gradients"] == pytest.approx(plain, rel=0.05)
    assert found["fine"]["compiled"]["gradients"] == pytest.approx(plain, rel=1e-3)
    assert found["fine"]["half"]["gradients"] == pytest.approx(plain, rel=0.05)
