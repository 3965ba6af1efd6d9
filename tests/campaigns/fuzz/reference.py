"""Second readers of strangers' bytes, plain rather than fast.

They follow the formats' documentation and share no code with the product.
"""

import hashlib
import json
import re
import string
from dataclasses import dataclass

from template.data.rows import Limits
from template.errors import Reason

_WORD = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# Two escapes that spell a pair of surrogates are one character.
_ESCAPE = re.compile(r"\\u([dD][89abAB]..)\\u([dD][c-fC-F]..)|\\u(....)|\\(.)")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_LITERALS = {"null": None, "true": True, "false": False}


class NotJson(Exception):
    """The text is not one JSON value without duplicate keys."""


class TooDeep(Exception):
    """Containers are nested beyond the limit."""


class Number(str):
    """A number as it is written."""


class JsonReader:
    """Reads one JSON value. Objects are dicts, arrays are lists, numbers are `Number`."""

    def __init__(self, text: str, max_depth: int) -> None:
        self._text, self._index, self._max_depth = text, 0, max_depth

    def read(self) -> object:
        """Raises: NotJson, TooDeep."""
        value = self._value(0)
        self._match(_SPACE)
        if self._index != len(self._text):
            raise NotJson
        return value

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._index)
        if match is None:
            raise NotJson
        self._index = match.end()
        return match[0]

    def _skip(self, token: str) -> bool:
        """Skip a token behind white space; False when another follows."""
        self._match(_SPACE)
        is_next = self._text.startswith(token, self._index)
        self._index += len(token) * is_next
        return is_next

    def _value(self, depth: int) -> object:
        self._match(_SPACE)
        first = self._text[self._index : self._index + 1]
        if first in ("{", "["):
            if depth == self._max_depth:
                raise TooDeep
            self._index += 1
            return self._object(depth + 1) if first == "{" else self._array(depth + 1)
        if first == '"':
            return self._string()
        for literal, value in _LITERALS.items():
            if self._skip(literal):
                return value
        return Number(self._match(_NUMBER))

    def _object(self, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        while not self._skip("}"):
            if values and not self._skip(","):
                raise NotJson
            self._match(_SPACE)
            key = self._string()
            if key in values or not self._skip(":"):
                raise NotJson
            values[key] = self._value(depth)
        return values

    def _array(self, depth: int) -> list[object]:
        values: list[object] = []
        while not self._skip("]"):
            if values and not self._skip(","):
                raise NotJson
            values.append(self._value(depth))
        return values

    def _string(self) -> str:
        return _ESCAPE.sub(_unescape, self._match(_STRING)[1:-1])


def _unescape(match: re.Match[str]) -> str:
    high, low, single, letter = match.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00))
    return chr(int(single, 16)) if single else _ESCAPES.get(letter, letter)


@dataclass(frozen=True)
class ReferenceRow:
    """A row: the texts for training, and its key."""

    line: int
    system: str | None
    contents: tuple[str, ...]

    @property
    def key(self) -> bytes:
        """sha256 over the canonical JSON of the standard library."""
        roles = ["user", "assistant"] * len(self.contents)
        turns = [{"role": role, "content": text} for role, text in zip(roles, self.contents, strict=False)]
        value = {"conversations": turns, "system": self.system}
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class ReferenceFault:
    """A line that is not a row, with the allowed reasons."""

    line: int | None
    reasons: frozenset[Reason]


_EITHER = frozenset({Reason.MALFORMED, Reason.TOO_LARGE})


def read_rows(content: bytes, limits: Limits) -> list[ReferenceRow | ReferenceFault]:
    """Return what `template.data.rows.scan_rows` must find."""
    if len(content) > limits.file_bytes:
        return [ReferenceFault(None, frozenset({Reason.TOO_LARGE}))]
    rows: list[ReferenceRow | ReferenceFault] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        while line and line[-1] in b" \t\r\n":
            line = line[:-1]
        if not line:
            continue
        if len(rows) == limits.rows:
            return [*rows, ReferenceFault(number, frozenset({Reason.TOO_LARGE}))]
        row = _read_row(line, number, limits)
        rows.append(row if isinstance(row, ReferenceRow) else ReferenceFault(number, row))
    return rows or [ReferenceFault(None, frozenset({Reason.EMPTY}))]


def _read_row(line: bytes, number: int, limits: Limits) -> ReferenceRow | frozenset[Reason]:
    if number == 1 and line[:3] == b"\xef\xbb\xbf":
        return frozenset({Reason.MALFORMED})
    if len(line) > limits.row_bytes:
        return frozenset({Reason.TOO_LARGE})
    try:
        value = JsonReader(line.decode("utf-8"), limits.json_depth).read()
    except TooDeep:
        return frozenset({Reason.TOO_LARGE})
    except (NotJson, UnicodeDecodeError):
        # It may be too deep behind the first error.
        openers = line.count(b"[") + line.count(b"{")
        return _EITHER if openers > limits.json_depth else frozenset({Reason.MALFORMED})
    turns = value.get("conversations") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(turns, list) or not turns:
        return frozenset({Reason.MALFORMED})
    if len(turns) > limits.messages:
        return frozenset({Reason.TOO_LARGE})
    texts = [value.get("system")] if value.get("system") is not None else []
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("role") != ("assistant" if index % 2 else "user"):
            return frozenset({Reason.MALFORMED})
        texts.append(turn.get("content"))
    if not all(type(text) is str and not any(0xD800 <= ord(letter) < 0xE000 for letter in text) for text in texts):
        return frozenset({Reason.MALFORMED})
    contents = [str(text) for text in texts]
    return ReferenceRow(number, contents.pop(0) if len(contents) > len(turns) else None, tuple(contents))


def read_commitment(text: str) -> tuple[str, str, str] | None:
    """Return namespace, competition and commit; None for a bad commitment."""
    parts = text.split(":")
    if len(parts) != 3 or len(text.encode(errors="surrogatepass")) > 128:
        return None
    namespace, competition, commit = parts
    names = namespace.split("/")
    if len(namespace) > 96 or len(names) != 2 or "--" in namespace or ".." in namespace or namespace[-4:] == ".git":
        return None
    for name in names:
        inner = all(letter in _WORD + "._-" for letter in name)
        if not name or not inner or name[0] not in _WORD or name[-1] not in _WORD + "_":
            return None
    if not 1 <= len(competition) <= 32 or any(letter not in _WORD + "._-" for letter in competition):
        return None
    if len(commit) not in (40, 64) or any(letter not in _HEX for letter in commit):
        return None
    return namespace, competition, commit


def read_scale_string(data: bytes) -> str | None:
    """Return the text of a SCALE string below 2**14 bytes, None for others."""
    if not data:
        return None
    if data[0] % 4 == 0:
        size, rest = data[0] // 4, data[1:]
    elif data[0] % 4 == 1 and len(data) > 1:
        size, rest = (data[0] + 256 * data[1]) // 4, data[2:]
        if size < 64:
            return None
    else:
        return None
    try:
        return rest.decode("utf-8") if len(rest) == size else None
    except UnicodeDecodeError:
        return None
