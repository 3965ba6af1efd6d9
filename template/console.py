"""Tables and colours for people at a terminal. Elsewhere commands print plain lines."""

import io
import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from template.terminal import escape, write_stdout

# Columns where stdout is not a terminal.
_WIDTH = 120

GOOD, OPEN, BAD, FAINT = "green", "yellow", "red", "dim"
"""Styles. NO_COLOR leaves the colours out."""

_VERDICTS = {"record": GOOD, "confirmed": "", "in_progress": OPEN, "waiting": OPEN}


def open_console() -> Console:
    """Return a console on stdout, without colours where that is no terminal."""
    file = sys.stdout or io.StringIO()  # closed by the caller
    return Console(file=file, markup=False, highlight=False, emoji=False, width=None if file.isatty() else _WIDTH)


def show(console: Console, *parts: RenderableType) -> bool:
    """Print on stdout. Return whether it took the text: a reader such as `head` may leave."""
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return write_stdout(capture.get()) is None


def verdict_style(code: str) -> str:
    """Return the style of a verdict; every code but the four of `describe_verdict` is a rejection."""
    return _VERDICTS.get(code, BAD)


def make_grid(lines: Iterable[tuple[str, str, str]], *, indent: int = 2) -> Table:
    """Return lines of label, text and the text's style. Long texts are folded below their start."""
    grid = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
    for label, text, style in lines:
        grid.add_row(f"{'':{indent}}{label}", Text(escape(text), style=style))
    return grid


def make_table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """Return an empty table; the columns of `numbers` are aligned to the right and never folded."""
    right = set(numbers)
    return Table(
        *(
            Column(name, no_wrap=True, justify="right") if name in right else Column(name, overflow="fold")
            for name in columns
        ),
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False,
    )  # fmt: skip
