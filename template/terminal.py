"""Print results, escape strangers' text, format durations, show progress."""

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from loguru import logger

from template.constants import DROPPED_MARK
from template.records import LeaderboardRow, LedgerLine, Progress

# What a spreadsheet takes for a formula at the start of a cell, which holds no control characters.
_FORMULA = ("=", "+", "-", "@")
# A tag or an autolink, and the target of a link or of an image.
_MARKUP = re.compile(r"<|(?<=\])\(")


def configure_output() -> None:
    """Escape the characters that the encoding of stdout or stderr lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write_stdout(text: str) -> str | None:
    """Write text to stdout. Return why it cannot take it; it is closed then."""
    if sys.stdout is None:
        return "it is closed"
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            # Otherwise the interpreter would fail at its end, on what is left in the buffer.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stdout = None
        return error.strerror or str(error)
    return None


def print_result(text: str) -> None:
    """Print a command's result on stdout. Log it if stdout cannot take it."""
    if (problem := write_stdout(f"{text}\n")) is not None:
        logger.warning("the result is logged here, because standard output cannot be written: {}", problem)
        for line in text.splitlines():
            logger.info("{}", line)


def escape(text: str) -> str:
    """Escape text that could move the cursor or colour a terminal, as ASCII."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def escape_line(text: str) -> str:
    """Escape unprintable characters only: a log keeps letters of any language."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def escape_cell(text: str, width: int) -> str:
    """Escape everything but ASCII and cut to `width` columns."""
    is_simple = text.isascii() and text.isprintable()
    return (text if is_simple else text.encode("unicode_escape").decode("ascii"))[:width]


def escape_formula(text: str) -> str:
    """Escape a text for a table that others open, so that no spreadsheet takes it for a formula."""
    text = escape_line(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def escape_markup(text: str) -> str:
    """Escape a text so that no reader of HTML or Markdown shows an element, a link or an image."""
    return _MARKUP.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def describe_verdict(row: LeaderboardRow, ledger: Iterable[LedgerLine]) -> str:
    """Return a rejection's reason, or how far the dataset of a row has come."""
    if row.reason is not None:
        return row.reason.value
    confirmed = [line for line in ledger if (line.hotkey, line.digest) == (row.hotkey, row.digest)]
    if confirmed:
        return "record" if confirmed[0].credit > 0.0 else "confirmed"
    if row.loss is None:
        return "waiting"
    return "dropped" if DROPPED_MARK in row.message else "in_progress"


def format_duration(seconds: float) -> str:
    """Format a duration in its largest suitable unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


class Countdown:
    """Logs after each of several like pieces of work how many are done and about how long the others take."""

    def __init__(self, what: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total, self._clock = what, total, clock
        self._done = 0
        self._began = self._first_at = clock()

    def advance(self) -> None:
        """Count one more piece, and log it unless it is the last."""
        self._done += 1
        now = self._clock()
        if self._done == 1:
            self._first_at = now
        if self._done >= self._total:
            return
        # The first piece also loads the model.
        each_s = (now - self._first_at) / (self._done - 1) if self._done > 1 else now - self._began
        left = format_duration(each_s * (self._total - self._done))
        logger.info("{}: {} of {}, about {} left", self._what, self._done, self._total, left)


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Show a bar with the remaining time for each stage of an evaluation."""
    # Every command imports this module, and few show a bar.
    from tqdm import tqdm

    bars: dict[str, tqdm[NoReturn]] = {}

    def show(progress: Progress) -> None:
        if progress.stage not in bars:
            for bar in bars.values():
                bar.close()
            bars[progress.stage] = tqdm(total=progress.total, desc=progress.stage, unit="tok", disable=None)
        bars[progress.stage].update(progress.done - bars[progress.stage].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
