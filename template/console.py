"""Tables and colours for people at a terminal. Elsewhere commands print plain lines."""

import io
import sys
from collections.abc import Callable, Iterable
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from template.terminal import escape, print_result

# Columns where stdout is not a terminal.
_WIDTH = 120

GOOD, OPEN, BAD, FAINT = "green", "yellow", "red", "dim"
"""Styles. NO_COLOR leaves the colours out."""

_VERDICTS = {"record": GOOD, "confirmed": "", "dropped": "", "in_progress": OPEN, "waiting": OPEN}


class _Page(io.StringIO):
    """Text for stdout, of its encoding, which decides about box characters."""

    encoding = property(lambda self: getattr(sys.stdout, "encoding", None))


def _open(page: _Page) -> Console:
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    shape: dict[str, Any] = {"force_terminal": True} if is_terminal else {"width": _WIDTH}
    return Console(file=page, markup=False, highlight=False, emoji=False, **shape)


def is_terminal() -> bool:
    """Check whether stdout shows tables and colours: a terminal does, and so does FORCE_COLOR."""
    return _open(_Page()).is_terminal


def render(fill: Callable[[Console], None]) -> str:
    """Return what `fill` prints on a console like stdout, without colours where that is no terminal.

    Not on stdout itself, since a console writes to its file also while it captures, and a full disk would end it.
    """
    page = _Page()
    fill(_open(page))
    return page.getvalue()


def show(*parts: RenderableType) -> None:
    """Print tables and texts as a command's result."""

    def fill(console: Console) -> None:
        for part in parts:
            console.print(part)

    print_result(render(fill).removesuffix("\n"))


def verdict_style(code: str) -> str:
    """Return the style of a verdict; every code but the five of `describe_verdict` is a rejection."""
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
