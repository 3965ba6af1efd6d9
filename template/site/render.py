"""Fill the pages' templates, with strangers' texts made harmless."""

import csv
import functools
import io
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from template.constants import BLOCK_S
from template.receipts.sources import is_hotkey
from template.site.words import CONFIRMED
from template.terminal import escape_formula, escape_line, format_duration

# Of all scripts and styles. There is no other source, so a page asks for nothing that leaves the machine.
ASSETS = ("site.css", "site.js", "charts.js", "icon.svg", "uPlot.iife.min.js", "uPlot.min.css", "uPlot-LICENSE.txt")


def plain(text: str) -> str:
    r"""Show control, bidi and other invisible characters as \u escapes."""
    return escape_line(text)


def short(hotkey: str) -> str:
    """Shorten an address to its ends."""
    return f"{hotkey[:6]}…{hotkey[-4:]}" if is_hotkey(hotkey) else hotkey


def number(value: float | None, digits: int = 6) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value: float) -> str:
    return "0" if value == 0.0 else f"{value:.2%}"


def age(blocks: int) -> str:
    """Return the time of so many blocks in words."""
    return format_duration(blocks * BLOCK_S)


def label(code: str) -> str:
    """Return a verdict's code as words."""
    return "no record" if code == CONFIRMED else code.replace("_", " ")


def _finalize(value: object) -> object:
    # Markup, of a macro, is escaped already.
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("template.site"),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "number": number, "percent": percent, "age": age, "label": label}
    return environment


def render(template: str, **values: Any) -> bytes:
    """Fill one template."""
    return _environment().get_template(template).render(**values).encode()


def read_asset(name: str) -> bytes:
    return (files("template.site") / "assets" / name).read_bytes()


def script(name: str, value: object) -> bytes:
    """Return a script that sets `window.NAME`: pages opened as files may not fetch JSON."""
    text = _json(value)
    if "\\" in text or not text.isprintable():
        text = _json(_plain_texts(value))
    return f"window.{name}={text};\n".encode()


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _plain_texts(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {key: _plain_texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_texts(item) for item in value]
    return value


def table_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV whose texts no spreadsheet takes for formulas."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return stream.getvalue().encode()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return "" if value is None else value
    return escape_formula(value)
