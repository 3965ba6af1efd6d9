"""A request to stop that a signal handler may make."""

import threading
from contextlib import suppress


class StopRequest:
    """An event that is safe to set from a signal handler, for one waiting thread.

    `threading.Event` is not. Its lock is not reentrant, so a handler that sets it hangs for ever when the signal
    arrives while the main thread holds the lock in `wait`. `queue.SimpleQueue` is, but before Python 3.13 its `get`
    waits for ever if its time is over before it begins to wait.
    """

    def __init__(self) -> None:
        self._is_set = False
        # Held until the request: `release` is one step of the interpreter, which no handler can interrupt.
        self._unrequested = threading.Lock()
        self._unrequested.acquire()

    def set(self) -> None:
        self._is_set = True
        self._release()

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most so many seconds; return whether it is."""
        if not self._is_set and self._unrequested.acquire(timeout=-1 if timeout is None else timeout):
            self._release()
        return self._is_set

    def _release(self) -> None:
        with suppress(RuntimeError):  # released already
            self._unrequested.release()
