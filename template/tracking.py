"""Logs: one loguru sink on stderr, with the standard-library loggers of the clients routed into it.

stdout is for results, stderr for logs. Configured once, by the entry point.
"""

import logging
import sys

from loguru import logger

_FORMAT = "<green>{time:YYYY-MM-DD HH:mm:ss}</green> <level>{level: <7}</level> {message}"

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# The clients' own chatter is wanted only when something is wrong with it, or when the operator asks.
_CLIENT_LOGGERS = ("bittensor", "transformers", "huggingface_hub", "httpx2", "peft", "torch")


class _Router(logging.Handler):
    """Hands records of the standard library's logging to loguru, name in front."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            # Their arguments do not fit their text; a log line is no reason to end a score.
            message = f"{record.msg} {record.args}"
        level = record.levelname if record.levelname in _LEVELS else record.levelno
        logger.opt(exception=record.exc_info).log(level, "{}: {}", record.name, message)


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


def configure_logging(*, is_debug: bool = False, is_trace: bool = False) -> None:
    """Sets up the process's logs: INFO by default, DEBUG or TRACE on request, the clients' from WARNING or DEBUG."""
    level = "TRACE" if is_trace else "DEBUG" if is_debug else "INFO"
    logger.remove()
    logger.add(sys.stderr, level=level, format=_FORMAT, backtrace=False, diagnose=False)
    logging.basicConfig(handlers=[_Router()], level=logging.WARNING, force=True)
    for name in _CLIENT_LOGGERS:
        client = logging.getLogger(name)
        client.handlers.clear()
        # In place, because the client and its children hold this very object.
        client.__class__ = _ClientLogger
        logging.Logger.setLevel(client, logging.DEBUG if is_trace else logging.WARNING)
