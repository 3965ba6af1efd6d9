"""Frozen records as JSON that a stranger may have written: read strictly, written canonically. Pure.

A record reads back to the same bits: floats are written so, and numbers are finite.
"""

import dataclasses
import json
import reprlib
import sys
from collections.abc import Mapping
from enum import StrEnum
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from template.competition import Competition
from template.errors import ConfigError

_Record = TypeVar("_Record")


def canonical_json(content: Mapping[str, Any]) -> str:
    """One line of ASCII, the same for equal content: keys in order, no spaces. Raises: ValueError for a non-finite."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_object(text: str | bytes, format_name: str, source: str) -> dict[str, Any]:
    """The JSON object of this `format`, without that key. source: what to call the origin in an error.

    Raises: ConfigError when the text is no JSON object, has a key twice or half of a surrogate pair, or names
    another format.
    """
    try:
        # Bytes as they are would also be taken in UTF-16 and UTF-32.
        content = json.loads(text if isinstance(text, str) else text.decode(), object_pairs_hook=_unique)
        # JSON can spell half of a surrogate pair, which can be neither printed nor stored.
        json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != format_name:
        raise ConfigError(f"{source}: not what it should be; expected a JSON object with format {format_name!r}")
    return {key: value for key, value in content.items() if key != "format"}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Of two values under one key another reader might take the other one."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return content


def read_record(kind: type[_Record], values: object, where: str) -> _Record:
    """The dataclass `kind` with exactly these fields, each of the annotated type; records within are read alike.

    Raises: ConfigError naming the first field, under `where`, that is unknown, missing or cannot be.
    """
    hints = get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise ConfigError(f"{where}: expected exactly the keys {', '.join(hints)}")
    return kind(**{name: _read(hint, values[name], f"{where}.{name}") for name, hint in hints.items()})


def _read(hint: Any, value: object, where: str) -> Any:
    """A JSON value as what the annotation says: a list as a tuple, an object as a record or a mapping."""
    parts = get_args(hint)
    if get_origin(hint) is UnionType:
        present = [part for part in parts if part is not type(None)]
        if value is None and len(present) < len(parts):
            return None
        return _read(_choose(present, value), value, where)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_read(parts[0], item, f"{where}[{at}]") for at, item in enumerate(value))
    if get_origin(hint) is Mapping and isinstance(value, dict):
        return {
            _read(parts[0], key, where): _read(parts[1], item, f"{where}[{reprlib.repr(key)}]")
            for key, item in value.items()
        }
    if hint is Competition:
        return Competition.from_mapping(value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return read_record(hint, value, where)
    if isinstance(hint, type) and issubclass(hint, StrEnum) and isinstance(value, str) and value in list(hint):
        return hint(value)
    if not _is_plain(value, hint):
        raise ConfigError(f"{where} cannot be {reprlib.repr(value)}")
    return value


def _choose(parts: list[Any], value: object) -> Any:
    """Of the alternatives of a union, the one that a plain value fits, else the first, which will refuse it."""
    return next((part for part in parts if _is_plain(value, part)), parts[0])


def _is_plain(value: object, hint: Any) -> bool:
    """True when a JSON value is text, whole or finite number, or claim, as `hint` says."""
    if hint is float:
        # A whole number may stand for a float, but it has no largest value, so isfinite would raise.
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if hint is str:
        return isinstance(value, str)
    return hint in (bool, int) and type(value) is hint
