"""The rows of a `data.jsonl`, parsed strictly.

Input that two parsers may read differently is rejected: duplicate keys, NaN, a byte order mark, half a surrogate pair.
The work is bounded before it starts, and linear in the number of bytes.

Only a line feed ends a line. Spaces, tabs and carriage returns around a row are ignored; an empty line is skipped but
counted, as in an editor. NUL is a character like any other.
"""

import codecs
import gc
import hashlib
import io
import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from template import constants
from template.data import hints
from template.errors import Reason, SubmissionError

T = TypeVar("T")

_WHITESPACE = b" \t\r\n"
_ROLES = ("user", "assistant")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
# Matches a string even without its closing quote, and never backtracks.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)

# Control characters that JSON escapes as \\u00.., \\b or \\f; rare in text.
_RARE_CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\n\r")


def _quote(text: str) -> bytes:
    """Encode like `json.dumps(text, ensure_ascii=False)`, in a third of the time."""
    raw = text.encode()
    if len(raw.translate(None, _RARE_CONTROLS)) != len(raw):
        return json.dumps(text, ensure_ascii=False).encode()
    raw = raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return b'"%b"' % raw.replace(b"\n", b"\\n").replace(b"\r", b"\\r").replace(b"\t", b"\\t")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, by the role "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation: alternating messages, the user's first. `line` counts from 1."""

    system: str | None
    messages: tuple[Message, ...]
    line: int = field(compare=False)
    # Cache: the key is read several times per evaluation.
    _key: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def key(self) -> bytes:
        """sha256 over the canonical JSON of the row's texts.

        Other keys, key order, escapes and white space outside the texts do not change it; any character of a text does.
        Near duplicates differ in it: see `template.data.near_duplicates`.
        """
        if self._key is None:
            turns = [
                b'{"content":%b,"role":%b}' % (_quote(message.content), _quote(message.role))
                for message in self.messages
            ]
            system = b"null" if self.system is None else _quote(self.system)
            text = b'{"conversations":[%b],"system":%b}' % (b",".join(turns), system)
            object.__setattr__(self, "_key", hashlib.sha256(text).digest())
        assert self._key is not None
        return self._key


class RowKey(NamedTuple):
    """A row without its texts: line number, counted from 1, and `Row.key`."""

    line: int
    key: bytes


def content_digest(keys: Iterable[bytes]) -> str:
    """Return the sha256, in hex, over the sorted keys of a dataset's counted rows."""
    return hashlib.sha256(b"".join(sorted(keys))).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on a file; `row_bytes` excludes the line end and trailing white space."""

    file_bytes: int
    rows: int
    row_bytes: int = constants.MAX_ROW_BYTES
    messages: int = constants.MAX_ROW_MESSAGES
    json_depth: int = constants.MAX_JSON_DEPTH


SUBMISSION_LIMITS = Limits(file_bytes=constants.MAX_SUBMISSION_BYTES, rows=constants.MAX_SUBMISSION_ROWS)
EVAL_SET_LIMITS = Limits(file_bytes=constants.MAX_EVAL_SET_BYTES, rows=constants.MAX_EVAL_SET_ROWS)


@dataclass(frozen=True, slots=True)
class LineError:
    """An invalid line, or an invalid file if `line` is None."""

    line: int | None
    error: SubmissionError


def parse_rows(content: bytes, *, name: str, limits: Limits) -> tuple[Row, ...]:
    """Parse a whole file with at least one row; `name` is the file's name in errors.

    Raises: SubmissionError: TOO_LARGE, EMPTY or MALFORMED.
    """
    return tuple(_raise_error(row, name) for row in scan_rows(content, limits=limits))


def read_keys(
    content: bytes,
    *,
    name: str,
    limits: Limits,
    keys_by_line: Mapping[bytes, bytes],
    on_row: Callable[[Row], None] | None = None,
) -> Iterator[tuple[bytes, Row | RowKey]]:
    """Yield the sha256 of each row's line with the row; raise like `parse_rows`.

    Lines in `keys_by_line` are not parsed; `on_row` is called with every other row. A `Row` makes its key when it is
    first read: of a line with many short messages, that takes as long as all the rest.
    """
    for line in _scan_lines(content, limits):
        number, text = _raise_error(line, name)
        digest = hashlib.sha256(text).digest()
        key = keys_by_line.get(digest)
        if key is not None:
            yield digest, RowKey(number, key)
            continue
        row = _raise_error(_read_line(text, number, limits), name)
        if on_row is not None:
            on_row(row)
        yield digest, row


def _raise_error(result: T | LineError, name: str) -> T:
    if isinstance(result, LineError):
        where = name if result.line is None else f"{name}, line {result.line}"
        raise SubmissionError(result.error.reason, f"{where}: {result.error}") from result.error
    return result


def scan_rows(content: bytes, *, limits: Limits) -> Iterator[Row | LineError]:
    """Yield every row or its line's error, up to the first row above the limit."""
    for line in _scan_lines(content, limits):
        yield line if isinstance(line, LineError) else _read_line(line[1], line[0], limits)


def _scan_lines(content: bytes, limits: Limits) -> Iterator[tuple[int, bytes] | LineError]:
    if len(content) > limits.file_bytes:
        message = f"expected at most {limits.file_bytes} bytes, found {len(content)}"
        yield LineError(None, SubmissionError(Reason.TOO_LARGE, message))
        return
    count = 0
    for number, raw_line in enumerate(io.BytesIO(content), start=1):
        if not (line := raw_line.rstrip(_WHITESPACE)):
            continue
        if count == limits.rows:
            yield LineError(number, SubmissionError(Reason.TOO_LARGE, f"expected at most {limits.rows} rows"))
            return
        count += 1
        yield number, line
    if count == 0:
        yield LineError(None, SubmissionError(Reason.EMPTY, "expected at least one row, found none"))


def _read_line(line: bytes, number: int, limits: Limits) -> Row | LineError:
    # In a row of a hundred thousand lists the garbage collector would take a hundred times as long as the parser.
    # A row holds no reference cycle.
    was_collecting = gc.isenabled()
    if was_collecting:  # another thread may have disabled it, and then enables it
        gc.disable()
    try:
        return _parse_row(line, number, limits)
    except SubmissionError as error:
        return LineError(number, error)
    finally:
        if was_collecting:
            gc.enable()


def _parse_row(line: bytes, number: int, limits: Limits) -> Row:
    if number == 1 and line.startswith(codecs.BOM_UTF8):
        raise _malformed("expected UTF-8 without a byte order mark")
    if len(line) > limits.row_bytes:
        message = f"expected at most {limits.row_bytes} bytes in a row, found {len(line)}{hints.hint_for_line(line)}"
        raise SubmissionError(Reason.TOO_LARGE, message)
    if _is_deeper(line, limits.json_depth):
        raise SubmissionError(Reason.TOO_LARGE, f"expected JSON nested at most {limits.json_depth} deep")
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        where = f"found byte 0x{line[error.start]:02x} at byte {error.start + 1}"
        raise _malformed(f"expected UTF-8, {where}{hints.hint_for_line(line)}") from error
    except json.JSONDecodeError as error:
        cause = f"at character {error.colno}: {error.msg}{hints.hint_for_json_error(error.doc, error.pos)}"
        raise _malformed(f"expected one JSON object, but {cause}") from error
    return _read_row(value, number, limits)


def _is_deeper(line: bytes, max_depth: int) -> bool:
    # The JSON decoder recurses, so measure the depth first. Unbalanced closers make the count too small, but the
    # decoder stops at the first of them.
    if line.count(b"[") + line.count(b"{") <= max_depth:
        return False
    depth = 0
    for byte in _STRING.sub(b"", line).translate(None, _NO_BRACKETS):
        if byte in b"[{":
            depth += 1
            if depth > max_depth:
                return True
        else:
            depth -= 1
    return False


def _read_row(value: object, number: int, limits: Limits) -> Row:
    if not isinstance(value, dict):
        hint = hints.hint_for_line(b"[") if isinstance(value, list) else ""
        raise _malformed(f"expected a JSON object, found {reprlib.repr(value)}{hint}")
    turns = value.get("conversations")
    if not isinstance(turns, list) or not turns:
        hint = hints.hint_for_row(value) if turns is None else ""
        raise _malformed(f"expected 'conversations' to be a list of messages, found {reprlib.repr(turns)}{hint}")
    if len(turns) > limits.messages:
        raise SubmissionError(Reason.TOO_LARGE, f"expected at most {limits.messages} messages, found {len(turns)}")
    system = value.get("system")
    return Row(
        None if system is None else _read_text(system, None),
        tuple([_read_message(turn, index) for index, turn in enumerate(turns)]),
        number,
    )


def _read_message(value: object, index: int) -> Message:
    if not isinstance(value, dict):
        raise _malformed(f"expected message {index + 1} to be an object, found {reprlib.repr(value)}")
    role = _ROLES[index % 2]
    if value.get("role") != role:
        actual = f"{reprlib.repr(value.get('role'))}{hints.hint_for_message(value, index)}"
        raise _malformed(f"expected the role {role!r} in message {index + 1}, found {actual}")
    return Message(role, _read_text(value.get("content"), index))


def _read_text(value: object, index: int | None) -> str:
    """Check a message's content, or with no index the system text."""
    if isinstance(value, str) and (value.isascii() or _is_encodable(value)):
        return value
    expected = "'system' to be text or null" if index is None else f"the content of message {index + 1} to be text"
    actual = "half of a surrogate pair" if isinstance(value, str) else reprlib.repr(value)
    actual += hints.hint_for_content(value)
    raise _malformed(f"expected {expected}, found {actual}")


def _is_encodable(text: str) -> bool:
    # JSON can spell half of a surrogate pair, UTF-8 cannot.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _malformed(message: str) -> SubmissionError:
    return SubmissionError(Reason.MALFORMED, message)


@dataclass(slots=True)  # a frozen one takes twice as long to make, and a file can hold eight million
class _Number:
    """A number as written; no field holds a number, and converting a long one is slow."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _refuse_constant(text: str) -> object:
    raise _malformed(f"expected JSON, found {text}")


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        duplicate = next(key for key, count in counts.items() if count > 1)
        raise _malformed(f"expected each key once in an object, found {reprlib.repr(duplicate)} again")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_without_duplicates,
    parse_constant=_refuse_constant,
    parse_float=_Number,
    parse_int=_Number,
)
