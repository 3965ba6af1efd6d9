"""Logs: human lines on stderr, JSON lines in a file on request, the standard-library loggers of the clients in both.

stdout is for results. Configured once, by the entry point; every line is redacted on its way out. A message is one
line whatever it quotes, with what would move a cursor spelt out, and a traceback is indented: nobody whose text gets
into a log can end a line there and write the next.
"""

import contextlib
import errno
import json
import logging
import os
import stat
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from template.errors import ConfigError
from template.telemetry.log_stream import LogStream
from template.telemetry.redaction import Redactor
from template.terminal import escape_line

if TYPE_CHECKING:
    from loguru import Message, Record

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

_FORMAT = "<green>{time:YYYY-MM-DD HH:mm:ss}</green> <level>{level: <7}</level> {message}\n"

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# The clients' own chatter is wanted only when something is wrong with it, or when the operator asks.
_CLIENT_LOGGERS = ("bittensor", "transformers", "huggingface_hub", "httpx2", "peft", "torch")

FILE_BYTES = 50_000_000
"""Size at which the log file is set aside and another is begun."""
KEPT_FILES = 10
"""Log files kept, the current one included."""

_COMPLAINT_INTERVAL_S = 3600.0


class _Router(logging.Handler):
    """Hands records of the standard library's logging to loguru, name in front."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            # Their arguments do not fit their text; a log line is no reason to end a score.
            message = f"{record.msg} {record.args}"
        level = record.levelname if record.levelname in _LEVELS else record.levelno
        client = logger.bind(module=record.name).opt(exception=record.exc_info)
        client.log(level, "{}: {}", record.name, message)


class _ClientLogger(logging.Logger):
    """The top logger of a client that would set up its own output, level and handlers, when it is imported."""

    @property
    def propagate(self) -> bool:
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None:
        pass

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802
        pass

    def setLevel(self, level: int | str) -> None:  # noqa: N802
        pass


class _RedactedStream:
    """A text stream whose every text is redacted first."""

    def __init__(self, stream: LogStream, redact: Redactor) -> None:
        self._stream = stream
        self._redact = redact

    def write(self, message: "Message") -> None:
        self._stream.write(self._redact(message))

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


class _JsonLines:
    """One flat JSON object per line in a rotating file, its texts redacted."""

    def __init__(self, path: Path, redact: Redactor) -> None:
        self._file = _RotatingFile(path)
        self._redact = redact

    def write(self, message: "Message") -> None:
        record = message.record
        fields = {
            "time": record["time"].astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record["level"].name,
            "message": self._redact(record["message"]),
            "module": record["extra"].get("module", record["name"]),
        }
        if record["exception"] is not None:
            fields["exception"] = self._redact("".join(traceback.format_exception(*record["exception"])))
        self._file.emit(logging.makeLogRecord({"msg": json.dumps(fields)}))

    def stop(self) -> None:
        """Closes the file; loguru calls it when the sink is removed."""
        self._file.close()


class _RotatingFile(RotatingFileHandler):
    """The standard library's rotating file, readable by its owner alone, which no failing disk turns into an exception.

    Not loguru's own: that one prints the whole record, secrets included, for every line that it cannot write.
    """

    def __init__(self, path: Path) -> None:
        self._complained_at: float | None = None
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=KEPT_FILES - 1, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        fd = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            # In a folder that others write to, somebody may have made it first, to read along.
            if status.st_uid != os.geteuid():
                os.close(fd)
                raise PermissionError(errno.EPERM, "the file belongs to another user", self.baseFilename)
            os.fchmod(fd, 0o600)
        return os.fdopen(fd, "a", encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        now = time.monotonic()
        if self._complained_at is not None and now - self._complained_at < _COMPLAINT_INTERVAL_S:
            return
        self._complained_at = now
        # Past loguru, whose handler this is in the midst of.
        told = f"{datetime.now():%Y-%m-%d %H:%M:%S} WARNING {self.baseFilename} misses lines: {sys.exception()}\n"
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(told)

    def close(self) -> None:
        # What could not be written before cannot be now.
        with contextlib.suppress(OSError):
            super().close()


def _spell_out(record: "Record") -> None:
    record["message"] = escape_line(record["message"])


def _choose_format(record: "Record") -> str:
    """The form of a line, with the traceback indented below it where there is one."""
    if record["exception"] is None:
        return _FORMAT
    trace = "".join(traceback.format_exception(*record["exception"]))
    record["extra"]["trace"] = "".join(f"  {escape_line(line)}\n" for line in trace.split("\n") if line)
    return _FORMAT + "{extra[trace]}"


def choose_level(*, is_debug: bool, is_trace: bool) -> str:
    """The least that goes into the logs, by loguru's name."""
    return "TRACE" if is_trace else "DEBUG" if is_debug else "INFO"


def configure_logging(
    *, is_debug: bool = False, is_trace: bool = False, file: Path | None = None, secrets: Sequence[str] = ()
) -> None:
    """Sets up the process's logs: INFO by default, DEBUG or TRACE on request, the clients' from WARNING or DEBUG.

    file: where the same lines go as JSON, in this process alone, since two must not rotate one file. secrets: values
    that no line may show. Raises: ConfigError when the file cannot be opened; the logs on stderr are set up by then.
    """
    level = choose_level(is_debug=is_debug, is_trace=is_trace)
    redact = Redactor(secrets)
    logger.remove()
    logger.configure(patcher=_spell_out)
    stream = _RedactedStream(LogStream(sys.stderr), redact)
    logger.add(stream, level=level, format=_choose_format, backtrace=False, diagnose=False)
    logging.basicConfig(handlers=[_Router()], level=logging.WARNING, force=True)
    for name in _CLIENT_LOGGERS:
        client = logging.getLogger(name)
        client.handlers.clear()
        # In place, because the client and its children hold this very object.
        client.__class__ = _ClientLogger
        logging.Logger.setLevel(client, logging.DEBUG if is_trace else logging.WARNING)
    if file is not None:
        logger.add(_open_json_lines(file, redact), level=level, format="{message}", backtrace=False, diagnose=False)


def _open_json_lines(path: Path, redact: Redactor) -> _JsonLines:
    path = path.expanduser().resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _JsonLines(path, redact)
    except OSError as error:
        raise ConfigError(f"--logging.file {path}: cannot be opened: {error.strerror or error}") from error


def quiet_libraries() -> None:
    """Keeps the clients' progress bars and advice out of the logs. Before they are imported: they read it then."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # What these two say to each other about their next major version is nothing an operator can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
