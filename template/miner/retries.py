"""Waits between tries, as long as the Hub or the chain asks for."""

import threading
import time

from template.errors import RemoteError

# The Hub counts requests in windows of five minutes. A file that is late is rejected, so nothing waits longer.
_MAX_WAIT_S = 300.0


def retry_wait_s(poll_s: float, error: RemoteError) -> float:
    """Return the seconds to wait after an error: `poll_s`, or more if it says so."""
    return max(poll_s, min(error.retry_after_s or 0.0, _MAX_WAIT_S))


class SharedPause:
    """A pause of several threads that one of them was asked for."""

    def __init__(self) -> None:
        self._until = 0.0
        self._lock = threading.Lock()

    def extend(self, error: RemoteError) -> float:
        """Pause for as long as an error asks; return the seconds."""
        seconds = retry_wait_s(0.0, error)
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)
        return seconds

    def wait(self) -> None:
        """Return when the pause is over."""
        while (seconds := self._until - time.monotonic()) > 0.0:
            time.sleep(seconds)
