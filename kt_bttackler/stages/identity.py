"""The name of a root: what must be the same for two trainings to begin the same.

Reusing a state that belongs to another training is the worst fault of all: nothing
shows it. So the name covers the code, the data, the versions, the machine, the seed.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import pathlib
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Private: TensorFlow tells by no public name whether determinism was asked for.
from tensorflow.python.framework.config import is_op_determinism_enabled

from kt_bttackler import files
from kt_bttackler.graph import named_layers

# Counts up when a new version of this package would store or train differently.
FORMAT = 1


def root_name(facts: Mapping[str, Any]) -> str:
    """Name of the root that these facts make."""
    text = files.dumps(_plain(facts))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def of_model(model: keras.Model, scheduled: Iterable[str]) -> dict[str, Any]:
    """What is in a compiled model, without the values that schedules set.

    Args:
        model: compiled.
        scheduled: names of the values that schedules set.

    Raises:
        ValueError: the model is not compiled.
    """
    if not model.compiled:
        raise ValueError("`hypermodel` must compile its models, got one that is not.")
    optimizer = keras.optimizers.serialize(model.optimizer)
    custom = [type(layer) for _, layer in named_layers(model)]
    custom += [type(model), type(model.optimizer)]
    custom += [each for each in keras.tree.flatten(model.loss) if callable(each)]
    return {
        "model": _without(
            _described(lambda: json.loads(model.to_json()), type(model)),
            {"compile_config"},
        ),
        "optimizer": _without(optimizer, set(scheduled)),
        "compiled": _without(
            _described(model.get_compile_config, model.loss), {"optimizer"}
        ),
        "code": sorted({source_digest(each) for each in custom if _is_custom(each)}),
        "trainable": [variable.trainable for variable in model.variables],
        # Weights that `build` read from a file are in no configuration.
        "initial": of_data([variable.numpy() for variable in model.variables], None),
    }


def of_data(data: Any, version: str | None) -> Any:
    """A fingerprint of data.

    Args:
        data: arrays, nested as Keras takes them; or anything else with `version`.
        version: the user's name for the data that is not in arrays.

    Raises:
        ValueError: there is neither.
    """
    if data is None:
        return None
    found: list[Any] = []
    for leaf in keras.tree.flatten(data):
        if leaf is None:
            continue
        if not hasattr(leaf, "__array__"):
            if version is None:
                raise ValueError(
                    "`data_version` must name the data where it is not in arrays, got "
                    f"none for a {type(leaf).__name__}."
                )
            found.append(type(leaf).__name__)
            continue
        array = np.ascontiguousarray(leaf)
        digest = hashlib.sha256(array.view(np.uint8).data if array.size else b"")
        found.append([array.dtype.str, list(array.shape), digest.hexdigest()])
    return found


def source_digest(code: Callable[..., Any] | type) -> str:
    """A digest of the source of a function, a method or a class.

    Where there is no source, as in an interactive session of Python, it is one of the
    compiled code.
    """
    code = inspect.unwrap(getattr(code, "__func__", code))
    while isinstance(code, functools.partial):
        code = code.func
    try:
        text = inspect.getsource(code)
    except (OSError, TypeError):
        text = _compiled(getattr(code, "__code__", None)) or repr(type(code))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def of_machine() -> dict[str, Any]:
    """What the bits of a result depend on besides the program."""
    return {
        "format": FORMAT,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "processor": [platform.machine(), _processor()],
        "cores": os.cpu_count(),
        "gpus": [gpu.name for gpu in tf.config.list_physical_devices("GPU")],
    }


def of_settings() -> dict[str, Any]:
    """The settings of TensorFlow and Keras that the bits of a result depend on."""
    environment = ("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "XLA_FLAGS")
    return {
        "deterministic": is_op_determinism_enabled(),
        "threads": [
            tf.config.threading.get_intra_op_parallelism_threads(),
            tf.config.threading.get_inter_op_parallelism_threads(),
        ],
        "tensor_float_32": tf.config.experimental.tensor_float_32_execution_enabled(),
        "jit": bool(tf.config.optimizer.get_jit()),
        "dtype_policy": keras.config.dtype_policy().name,
        "floatx": keras.config.floatx(),
        "environment": {name: os.environ.get(name) for name in environment},
    }


def _described(describe: Callable[[], Any], otherwise: Any) -> Any:
    """What Keras says, or the source where it cannot say it."""
    try:
        return describe()
    except Exception:
        code = [each for each in keras.tree.flatten(otherwise) if callable(each)]
        return sorted(source_digest(each) for each in code)


def _without(config: Any, names: set[str]) -> Any:
    """A configuration without some of its entries, at any depth."""
    if isinstance(config, Mapping):
        return {k: _without(v, names) for k, v in config.items() if k not in names}
    if isinstance(config, list | tuple):
        return [_without(each, names) for each in config]
    return config


def _is_custom(code: Any) -> bool:
    module = getattr(code, "__module__", None) or ""
    return module.partition(".")[0] not in ("keras", "tensorflow", "builtins")


def _compiled(code: Any) -> str:
    if code is None:
        return ""
    constants = [
        _compiled(each) if inspect.iscode(each) else repr(each)
        for each in code.co_consts
    ]
    return repr((code.co_code.hex(), code.co_names, constants))


def _processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    named = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return named[1] if named else platform.processor()


def _plain(facts: Any) -> Any:
    """Facts that JSON can hold, in an order that does not depend on chance."""
    if isinstance(facts, Mapping):
        named = {str(key): _plain(value) for key, value in facts.items()}
        return dict(sorted(named.items()))
    if isinstance(facts, list | tuple):
        return [_plain(each) for each in facts]
    if isinstance(facts, set | frozenset):
        return sorted(map(str, facts))
    if facts is None or isinstance(facts, str | bool | int | float):
        return facts
    if isinstance(facts, np.ndarray):
        return of_data(facts, None)
    return repr(facts) if not callable(facts) else source_digest(facts)
