"""Second readers of what strangers write, made to be plain rather than fast: what fuzzing compares the product with.

Each is written from what the format says and shares no code with the product: the JSON of a row character by character,
a commitment's parts without patterns, a SCALE string byte by byte.
"""

import hashlib
import json
import string
from dataclasses import dataclass

from template.data.rows import Limits
from template.errors import Reason

_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WHITE = " \t\n\r"
_WORD = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"


class NotJson(Exception):
    """The text is not one JSON value in which every key of an object stands once."""


class TooDeep(Exception):
    """Containers within containers, beyond the limit."""


class Number(str):
    """A number as it is written."""


class JsonReader:
    """Reads one JSON value. Objects are dicts, arrays are lists, numbers are `Number`."""

    def __init__(self, text: str, max_depth: int) -> None:
        self._text = text
        self._at = 0
        self._max_depth = max_depth

    def read(self) -> object:
        """Raises: NotJson, TooDeep."""
        value = self._value(0)
        self._skip()
        if self._at != len(self._text):
            raise NotJson
        return value

    def _skip(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in _WHITE:
            self._at += 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, expected: str) -> None:
        if not self._text.startswith(expected, self._at):
            raise NotJson
        self._at += len(expected)

    def _value(self, depth: int) -> object:
        self._skip()
        first = self._peek()
        if first in ("{", "["):
            if depth == self._max_depth:
                raise TooDeep
            return self._object(depth + 1) if first == "{" else self._array(depth + 1)
        if first == '"':
            return self._string()
        for word, value in (("null", None), ("true", True), ("false", False)):
            if first and word.startswith(first):
                self._take(word)
                return value
        return self._number()

    def _object(self, depth: int) -> dict[str, object]:
        self._take("{")
        found: dict[str, object] = {}
        self._skip()
        while self._peek() != "}":
            if found:
                self._take(",")
                self._skip()
            key = self._string()
            if key in found:
                raise NotJson
            self._skip()
            self._take(":")
            found[key] = self._value(depth)
            self._skip()
        self._take("}")
        return found

    def _array(self, depth: int) -> list[object]:
        self._take("[")
        found: list[object] = []
        self._skip()
        while self._peek() != "]":
            if found:
                self._take(",")
            found.append(self._value(depth))
            self._skip()
        self._take("]")
        return found

    def _string(self) -> str:
        self._take('"')
        units: list[int] = []
        while (one := self._peek()) != '"':
            if one == "" or ord(one) < 0x20:
                raise NotJson
            self._at += 1
            if one != "\\":
                units.append(ord(one))
                continue
            kind = self._peek()
            self._at += 1
            if kind == "u":
                digits = self._text[self._at : self._at + 4]
                if len(digits) != 4 or any(digit not in string.hexdigits for digit in digits):
                    raise NotJson
                self._at += 4
                low, high = int(digits, 16), units[-1] if units else 0
                # Only what two escapes spell is a pair; a high half is never left by anything else.
                if 0xDC00 <= low < 0xE000 and 0xD800 <= high < 0xDC00:
                    units[-1] = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)
                else:
                    units.append(low)
            elif kind in _ESCAPES and kind:
                units.append(ord(_ESCAPES[kind]))
            else:
                raise NotJson
        self._at += 1
        return "".join(map(chr, units))

    def _number(self) -> Number:
        start = self._at
        if self._peek() == "-":
            self._at += 1
        if self._peek() == "0":
            self._at += 1
        else:
            self._digits()
        if self._peek() == ".":
            self._at += 1
            self._digits()
        if self._peek() in ("e", "E"):
            self._at += 1
            if self._peek() in ("+", "-"):
                self._at += 1
            self._digits()
        return Number(self._text[start : self._at])

    def _digits(self) -> None:
        start = self._at
        while self._peek() and self._peek() in string.digits:
            self._at += 1
        if self._at == start:
            raise NotJson


@dataclass(frozen=True)
class ReferenceRow:
    """A row as the reference has it: what training reads, and the digest by which it is known."""

    line: int
    system: str | None
    contents: tuple[str, ...]

    @property
    def key(self) -> bytes:
        """sha256 over the canonical JSON, made by the standard library."""
        roles = ["user", "assistant"] * len(self.contents)
        turns = [{"role": role, "content": text} for role, text in zip(roles, self.contents, strict=False)]
        value = {"conversations": turns, "system": self.system}
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class ReferenceFault:
    """A line that is no row, and the reasons that may be given: two where a line is wrong in two ways."""

    line: int | None
    reasons: frozenset[Reason]


_EITHER = frozenset({Reason.MALFORMED, Reason.TOO_LARGE})


def read_rows(content: bytes, limits: Limits) -> list[ReferenceRow | ReferenceFault]:
    """What `template.data.rows.scan_rows` must find."""
    if len(content) > limits.file_bytes:
        return [ReferenceFault(None, frozenset({Reason.TOO_LARGE}))]
    found: list[ReferenceRow | ReferenceFault] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        while line and line[-1] in b" \t\r\n":
            line = line[:-1]
        if not line:
            continue
        if len(found) == limits.rows:
            return [*found, ReferenceFault(number, frozenset({Reason.TOO_LARGE}))]
        row = _read_row(line, number, limits)
        found.append(row if isinstance(row, ReferenceRow) else ReferenceFault(number, row))
    return found or [ReferenceFault(None, frozenset({Reason.EMPTY}))]


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
        # It may be too deep behind the place where it stops being JSON.
        openers = line.count(b"[") + line.count(b"{")
        return _EITHER if openers > limits.json_depth else frozenset({Reason.MALFORMED})
    turns = value.get("conversations") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(turns, list) or not turns:
        return frozenset({Reason.MALFORMED})
    if len(turns) > limits.messages:
        return frozenset({Reason.TOO_LARGE})
    texts = [value.get("system")] if value.get("system") is not None else []
    for at, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("role") != ("assistant" if at % 2 else "user"):
            return frozenset({Reason.MALFORMED})
        texts.append(turn.get("content"))
    if not all(type(text) is str and not any(0xD800 <= ord(one) < 0xE000 for one in text) for text in texts):
        return frozenset({Reason.MALFORMED})
    known = [str(text) for text in texts]
    return ReferenceRow(number, known.pop(0) if len(known) > len(turns) else None, tuple(known))


def read_commitment(text: str) -> tuple[str, str, str] | None:
    """Namespace, competition and commit; None where `CommitmentRecord.parse` must refuse the text."""
    parts = text.split(":")
    if len(parts) != 3 or len(text.encode(errors="surrogatepass")) > 128:
        return None
    namespace, competition, commit = parts
    names = namespace.split("/")
    if len(namespace) > 96 or len(names) != 2 or "--" in namespace or ".." in namespace or namespace[-4:] == ".git":
        return None
    for name in names:
        inner = all(one in _WORD + "._-" for one in name)
        if not name or not inner or name[0] not in _WORD or name[-1] not in _WORD + "_":
            return None
    if not 1 <= len(competition) <= 32 or any(one not in _WORD + "._-" for one in competition):
        return None
    if len(commit) not in (40, 64) or any(one not in _HEX for one in commit):
        return None
    return namespace, competition, commit


def read_scale_string(data: bytes) -> str | None:
    """The text of a SCALE string of fewer than 2**14 bytes, its length spelt as shortly as can be; None otherwise."""
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
