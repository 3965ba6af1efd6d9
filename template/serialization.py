"""Read strangers' JSON into frozen records, strictly, and write canonical JSON."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from template.errors import ConfigError

_Record = TypeVar("_Record")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def canonical_json(content: Mapping[str, Any]) -> str:
    """Return one line of ASCII. Raises: ValueError for a float that is not finite."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_object(text: str | bytes, format_name: str, source: str) -> dict[str, Any]:
    """Parse a JSON object of this `format` and drop that key. Raises: ConfigError."""
    try:
        # json.loads would also take bytes in UTF-16 and UTF-32.
        text = text if isinstance(text, str) else text.decode()
        content = json.loads(text, object_pairs_hook=_without_duplicates)
        # JSON can spell half of a surrogate pair, which can be neither printed nor stored.
        if not text.isascii() or _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != format_name:
        raise ConfigError(f"{source}: expected a JSON object with format {format_name!r}")
    return {key: value for key, value in content.items() if key != "format"}


def without_format(text: str | bytes, format_name: str) -> str | None:
    """Return a parsed object's text without its `format`, None where it is spelled unlike canonical JSON.

    In a string the quotes would be escaped, so a key is cut out. Where it is one of an inner object, the outer `format`
    stays, which no record takes.
    """
    text = text if isinstance(text, str) else text.decode()
    before, mark, after = text.partition(f'"format":{json.dumps(format_name)},')
    return before + after if mark else None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("duplicate key in an object")  # Readers differ in which of the two values they take.
    return content


def read_record(kind: type[_Record], values: object, source: str, *, text: str | None = None) -> _Record:
    """Build `kind` from exactly its fields, nested too. Raises: ConfigError.

    text: JSON that is tried first, which saves writing `values` again.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if not isinstance(values, dict) or values.keys() != set(names):
        raise ConfigError(f"{source}: expected exactly the keys {', '.join(names)}")
    try:
        # Only in JSON may a strict pydantic read a list as a tuple and a text as an enum.
        (record,) = _adapter(kind).validate_json(f"[{text or json.dumps(values)}]")  # type: ignore[arg-type]
    except ValidationError as error:
        if text is not None:
            return read_record(kind, values, source)
        first = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f".{repr(str(part))[1:-1]:.40}" for part in first["loc"][1:])
        raise ConfigError(f"{source}{place}: {first['msg']}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    return record  # type: ignore[no-any-return]


@functools.cache
def _adapter(kind: type) -> TypeAdapter[tuple[Any]]:
    # pydantic takes no configuration for a bare dataclass, but applies the tuple's to it.
    return TypeAdapter(tuple[kind], config=_STRICT)  # type: ignore[valid-type, arg-type]
