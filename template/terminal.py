"""Text for a terminal. Pure."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from tqdm import tqdm

from template.records import Progress


def escape(text: str) -> str:
    """Text that a stranger may have written, with what would move the cursor or colour a terminal spelt out."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def escape_line(text: str) -> str:
    """The same as `escape`, but for a log: letters of any language stay as they are, and nothing ends the line."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def escape_cell(text: str, width: int) -> str:
    """The beginning of such a text, as wide on any terminal as it has characters: all but ASCII is spelt out."""
    is_simple = text.isascii() and text.isprintable()
    return (text if is_simple else text.encode("unicode_escape").decode("ascii"))[:width]


def format_table(rows: Sequence[Sequence[str]], *, has_header: bool = False) -> list[str]:
    """Lines in which the cells of each column begin one below the other, with a rule below a header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ruled = [*rows[:1], ["-" * width for width in widths], *rows[1:]] if has_header else rows
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in ruled]


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """What shows a score's progress: a bar with the remaining time, one for each stage."""
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
