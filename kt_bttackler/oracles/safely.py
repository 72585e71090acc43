"""KerasTuner's `synchronized` for methods that may raise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import keras_tuner

_Method = TypeVar("_Method", bound=Callable[..., Any])


def synchronized(method: _Method) -> _Method:
    """As `keras_tuner.synchronized`, but the lock is released after an exception.

    KerasTuner's decorator keeps it: a worker that reports nonsense would leave a chief
    that answers nobody and never ends.

    Example:
        >>> import concurrent.futures
        >>> class Broken(keras_tuner.Oracle):
        ...     @synchronized
        ...     def update_trial(self, trial_id, metrics, step=0):
        ...         raise KeyError(trial_id)
        >>> oracle = Broken("loss")
        >>> for _ in range(2):  # the second call is made by another thread
        ...     with concurrent.futures.ThreadPoolExecutor() as pool:
        ...         print(repr(pool.submit(oracle.update_trial, "7", {}).exception(9)))
        KeyError('7')
        KeyError('7')
    """

    @keras_tuner.synchronized  # type: ignore[untyped-decorator]
    @functools.wraps(method)  # it looks at the name
    def guarded(*args: Any, **kwargs: Any) -> tuple[Any, BaseException | None]:
        try:
            return method(*args, **kwargs), None
        except BaseException as error:
            return None, error

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result, error = guarded(*args, **kwargs)
        if error is not None:
            raise error
        return result

    return wrapper  # type: ignore[return-value]
