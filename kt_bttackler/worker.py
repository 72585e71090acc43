"""One thread beside the training, for what need not hold it up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

_Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Worker:
    """Runs what it is given in one background thread, in order.

    The thread starts with the first job and does not keep the process alive.

    Example:
        >>> worker = Worker()
        >>> worker.submit(sum, [1, 2, 3]).result(), worker.run(len, "four", seconds=1)
        (6, 4)
        >>> worker.close()

    Args:
        capacity: jobs that may wait; handing over one more waits for its turn, so
            that a slow worker bounds the memory and not the other way round.
    """

    def __init__(self, capacity: int = 1) -> None:
        self._capacity = capacity
        self._jobs: queue.Queue[_Job | None] | None = None

    def submit(self, action: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Hands a job over and returns at once, unless too many are waiting."""
        if self._jobs is None:
            self._jobs = queue.Queue(self._capacity)
            threading.Thread(
                target=_serve, args=(self._jobs,), name="kt_bttackler", daemon=True
            ).start()
        future: Future[Any] = Future()
        self._jobs.put((future, action, arguments))
        return future

    def run(self, action: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """Runs a job in the thread and waits for it.

        Raises:
            TimeoutError: it took longer than `seconds`. The thread is left to it, the
                next job gets a new one.
            Exception: whatever the job raised.
        """
        future = self.submit(action, *arguments)
        if future not in wait([future], seconds).done:
            self.close()
            raise TimeoutError(f"took longer than {seconds:g} s")
        return future.result()

    def __del__(self) -> None:
        # A training that ended in an exception closes nothing.
        self.close()

    def close(self) -> None:
        """Lets the thread end after the jobs it has; a new job starts a new one."""
        if self._jobs is not None:
            jobs, self._jobs = self._jobs, None
            try:
                jobs.put_nowait(None)
            except queue.Full:  # a job hangs and others wait: the thread is lost
                pass


def _serve(jobs: queue.Queue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, action, arguments = job
        try:
            future.set_result(action(*arguments))
        except BaseException as error:
            future.set_exception(error)
        # Arrays must not live on until the next job comes.
        del job, future, action, arguments
