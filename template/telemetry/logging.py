"""Logging: text on stderr, JSON lines in a file, client libraries in both.

A patcher redacts secrets and escapes control characters before any sink sees a record, so text from a stranger can
neither end a line nor move a terminal's cursor. Neither a full disk nor an unread pipe stops or delays the process.
"""

import contextlib
import errno
import json
import logging
import os
import select
import stat
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from datetime import UTC
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from loguru import logger

from template.telemetry.redaction import Redactor
from template.terminal import escape_line

if TYPE_CHECKING:
    from loguru import Record

FILE_BYTES = 50_000_000  # until the log file is rotated
KEPT_FILES = 10  # the current one included
STDERR_TIMEOUT_S = 5.0  # for the reader of stderr, then lines are dropped until it returns

_FORMAT = "<green>{time:YYYY-MM-DD HH:mm:ss}</green> <level>{level: <7}</level> {message}\n"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_CLIENT_LOGGERS = ("bittensor", "transformers", "huggingface_hub", "httpx2", "peft", "torch")
_WARNING_INTERVAL_S = 3600.0
# A pipe that polls as writable takes this much without blocking. Source: PIPE_BUF, pipe(7).
_PIPE_BYTES = 4096


class _Router(logging.Handler):
    """Handler that forwards records of the standard library to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            # A client passed arguments that do not fit its format.
            message = f"{record.msg} {record.args}"
        level = record.levelname if record.levelname in _LEVELS else record.levelno
        client = logger.bind(module=record.name).opt(exception=record.exc_info)
        client.log(level, "{}: {}", record.name, message)


class _ClientLogger(logging.Logger):
    """A client's top logger, which the client cannot reconfigure on import."""

    propagate = property(lambda self: True, lambda self, value: None)

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802
        pass

    def setLevel(self, level: int | str) -> None:  # noqa: N802
        pass


class NonBlockingStream:
    """Sink for a stream whose reader may hang: drops lines instead of blocking."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._dropped = 0
        self._fd: int | None = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._fd = stream.fileno()

    def write(self, text: str) -> None:
        if self._fd is None:
            self._stream.write(text)
            return
        if self._dropped:
            # The newline ends a line of which the reader got a part.
            text = f"\n{self._dropped} log lines dropped: stderr was not read\n{text}"
        content = text.encode(self._stream.encoding or "utf-8", errors="backslashreplace")
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        try:
            while content:
                if not room.poll(0.0 if self._dropped else 1000.0 * STDERR_TIMEOUT_S):
                    self._dropped += 1
                    return
                content = content[os.write(self._fd, content[:_PIPE_BYTES]) :]
        except OSError:
            return  # the reader is gone
        self._dropped = 0

    def isatty(self) -> bool:
        return self._stream.isatty()


def write_stderr(text: str) -> None:
    """Write text for people to stderr, if anything reads it."""
    if sys.stderr is not None:
        NonBlockingStream(sys.stderr).write(text)


class _PrivateFile(RotatingFileHandler):
    """Rotating file that only its owner can read, and that survives a full disk and another program's rotation.

    loguru's own file sink would print a traceback to stderr for each line that it cannot write.
    """

    _warned_at = -_WARNING_INTERVAL_S

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            # In a shared folder, somebody else may have created the file to read along.
            if status.st_uid != os.geteuid():
                os.close(fd)
                raise PermissionError(errno.EPERM, "the file belongs to another user", self.baseFilename)
            os.fchmod(fd, 0o600)
        return os.fdopen(fd, "a", encoding=self.encoding)

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is not None and not self._is_in_place(self.stream):
            # Moved by logrotate, or deleted: the next lines belong into a new file.
            with contextlib.suppress(OSError):
                self.stream.close()
            self.stream = None
        super().emit(record)

    def _is_in_place(self, stream: TextIO) -> bool:
        try:
            return os.path.samestat(Path(self.baseFilename).stat(), os.fstat(stream.fileno()))
        except OSError:
            return False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if time.monotonic() - self._warned_at >= _WARNING_INTERVAL_S:
            self._warned_at = time.monotonic()
            # Not through the logger, which holds this handler's lock.
            NonBlockingStream(sys.stderr).write(
                f"{time.strftime('%Y-%m-%d %H:%M:%S')} WARNING {self.baseFilename} misses lines: {sys.exception()}\n"
            )

    def close(self) -> None:
        # Closing writes what a full disk refused before.
        with contextlib.suppress(OSError):
            super().close()


def _format_text(record: "Record") -> str:
    return _FORMAT + ("{extra[trace]}" if "trace" in record["extra"] else "")


def _format_json(record: "Record") -> str:
    """Build one flat JSON object; the file handler ends the line."""
    fields = {
        "time": record["time"].astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": record["level"].name,
        "message": record["message"],
        "module": record["extra"].get("module", record["name"]),
    }
    if "exception" in record["extra"]:
        fields["exception"] = record["extra"]["exception"]
    record["extra"]["json"] = json.dumps(fields)
    return "{extra[json]}"


def choose_level(*, is_debug: bool, is_trace: bool) -> str:
    """Return the lowest level to log, by loguru's name."""
    return "TRACE" if is_trace else "DEBUG" if is_debug else "INFO"


def configure_logging(
    *, is_debug: bool = False, is_trace: bool = False, file: Path | None = None, secrets: Sequence[str] = ()
) -> None:
    """Configure the logs; clients log from WARNING, with `is_trace` from DEBUG.

    Two processes must not share a `file` of JSON lines, since each would rotate it. A file that cannot be opened is
    tried again with each line.
    """
    level = choose_level(is_debug=is_debug, is_trace=is_trace)
    redact = Redactor(secrets)

    def clean(record: "Record") -> None:
        record["message"] = escape_line(redact(record["message"]))
        if record["exception"] is not None:
            trace = redact("".join(traceback.format_exception(*record["exception"])))
            record["extra"]["exception"] = trace
            record["extra"]["trace"] = "".join(f"  {escape_line(line)}\n" for line in trace.split("\n") if line)
            # Otherwise the sinks would append their own, not redacted.
            record["exception"] = None

    logger.remove()
    logger.configure(patcher=clean)
    # https://no-color.org; None: colours on a terminal only.
    colorize = False if os.environ.get("NO_COLOR") else None
    stream = NonBlockingStream(sys.stderr)
    logger.add(stream, level=level, format=_format_text, colorize=colorize, backtrace=False, diagnose=False)
    logging.basicConfig(handlers=[_Router()], level=logging.WARNING, force=True)
    for name in _CLIENT_LOGGERS:
        client = logging.getLogger(name)
        client.handlers.clear()
        # In place, because the client and its child loggers hold this object.
        client.__class__ = _ClientLogger
        logging.Logger.setLevel(client, logging.DEBUG if is_trace else logging.WARNING)
    if file is not None:
        # Opened by the first line, so that a file that cannot be opened costs only its lines.
        handler = _PrivateFile(
            file.resolve(), maxBytes=FILE_BYTES, backupCount=KEPT_FILES - 1, encoding="utf-8", delay=True
        )
        logger.add(handler, level=level, format=_format_json, backtrace=False, diagnose=False)


def quiet_libraries() -> None:
    """Silence the clients' progress bars and advice, before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Announcements of their next major versions, which no operator can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
