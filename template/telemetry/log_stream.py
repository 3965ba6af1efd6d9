"""Logs on their way to stderr, which may be a pipe that nobody reads: no line of a log is worth a validator's weights.

A pipe takes some pages and then blocks whoever writes to it, for ever if its reader hangs. Here it is asked first
whether it has room, for a page at most, so that no write blocks; what finds no room is dropped, counted, and told of.
"""

import os
import select
from typing import TextIO

# Seconds that one write waits for the reader; those after it wait no more until there is room again.
PATIENCE_S = 5.0

# What a pipe that has room takes in one go. Source: PIPE_BUF, pipe(7).
_PAGE_BYTES = 4096


class LogStream:
    """Text for `stream`, which is asked nothing but its descriptor; where it has none, as in a test, it is written to.

    Not for two threads at once: loguru holds a lock around each of its sinks.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = 0
        self._is_stuck = False
        self._is_torn = False
        try:
            self._fd: int | None = stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._fd = None

    def write(self, text: str) -> None:
        """Writes the text, or drops what is left of it when nobody makes room."""
        if self._fd is None:
            self._stream.write(text)
            return
        if self._lost:
            end = "\n" if self._is_torn else ""
            text = f"{end}{self._lost} lines of the log were lost: nobody read them\n{text}"
        content = text.encode(self._stream.encoding or "utf-8", errors="backslashreplace")
        for start in range(0, len(content), _PAGE_BYTES):
            if not self._write(self._fd, content[start : start + _PAGE_BYTES]):
                self._lost += 1
                self._is_torn = self._is_torn or start > 0
                return
        self._lost, self._is_torn = 0, False

    def _write(self, fd: int, content: bytes) -> bool:
        """One page at most; False when there is no room for it."""
        room = select.poll()
        room.register(fd, select.POLLOUT)
        try:
            if not room.poll(0.0 if self._is_stuck else 1000.0 * PATIENCE_S):
                self._is_stuck = True
                return False
            while content:
                written = os.write(fd, content)
                self._is_torn = self._is_torn or written < len(content)
                content = content[written:]
        except OSError:
            # The reader is gone, or the descriptor: no reason for anything, and there is nobody to be told.
            return False
        self._is_stuck = False
        return True

    def flush(self) -> None:
        """Nothing is held back where there is a descriptor."""
        if self._fd is None:
            self._stream.flush()

    def isatty(self) -> bool:
        """As `stream` says."""
        return self._stream.isatty()
