"""A request to stop that a signal handler may make."""

from contextlib import suppress
from queue import Empty, SimpleQueue


class StopRequest:
    """An event that is safe to set from a signal handler, for one waiting thread.

    `threading.Event` is not. Its lock is not reentrant, so a handler that sets it hangs for ever when the signal
    arrives while the main thread holds the lock in `wait`.
    """

    def __init__(self) -> None:
        self._is_set = False
        # Its `put` is documented to be reentrant.
        self._wakeup: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        self._is_set = True
        self._wakeup.put(None)

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most so many seconds; return whether it is."""
        if not self._is_set:
            with suppress(Empty):
                self._wakeup.get(timeout=timeout)
        return self._is_set
