"""Rows: what a `data.jsonl` holds, read strictly, and the token ids that training reads of it.

One parser serves a miner's file and the subnet owner's pool alike, so a line means the same in both. It refuses
whatever two readers could understand differently (duplicate keys, NaN, a byte order mark, half a surrogate pair)
and bounds its own work before doing it: every check is linear in the bytes given.

Only a line feed ends a line; spaces, tabs and carriage returns around a row do not matter, and a line of nothing
else is skipped but counted, so that line numbers are those of an editor. NUL is a character like any other.
"""

import codecs
import gc
import hashlib
import io
import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from template import constants
from template.errors import Reason, SubmissionError

T = TypeVar("T")
_OnRow = Callable[["Row"], None]

_WHITESPACE = b" \t\r\n"
_ROLES = ("user", "assistant")
# A string is matched even when its closing quote is missing, and never backtracked into.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)

# Those that JSON writes as \\u00.., \\b or \\f, and that next to no text has.
_RARE_CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\n\r")


def _quote(text: str) -> bytes:
    """`text` as JSON writes it, in UTF-8: what `json.dumps(text, ensure_ascii=False)` gives, in a third of the time."""
    raw = text.encode()
    if len(raw.translate(None, _RARE_CONTROLS)) != len(raw):
        return json.dumps(text, ensure_ascii=False).encode()
    raw = raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return b'"%b"' % raw.replace(b"\n", b"\\n").replace(b"\r", b"\\r").replace(b"\t", b"\\t")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. role: "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation: turns that alternate and start with the user's.

    system: None when the file has none or null, which training reads alike. line: where it stood, counted from 1;
    equal rows may stand anywhere.
    """

    system: str | None
    messages: tuple[Message, ...]
    line: int = field(compare=False)
    # Asked for several times on the way to a verdict, so computed once.
    _key: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def key(self) -> bytes:
        """The row's identity: sha256 over the canonical JSON of its texts, character by character.

        A row is of the pool when a row there has this key, and by nothing else. Keys that nothing reads are left out
        and their order is fixed: no extra key, other order, escape or white space outside the texts makes another row.
        In the duplicate check rows of the pool that look alike count as one: see `template.data.near_duplicates`.
        """
        if self._key is None:
            turns = [b'{"content":%b,"role":%b}' % (_quote(one.content), _quote(one.role)) for one in self.messages]
            system = b"null" if self.system is None else _quote(self.system)
            text = b'{"conversations":[%b],"system":%b}' % (b",".join(turns), system)
            object.__setattr__(self, "_key", hashlib.sha256(text).digest())
        assert self._key is not None
        return self._key


class RowKey(NamedTuple):
    """A row of which the texts are not needed: where it stood, counted from 1, and `Row.key`."""

    line: int
    key: bytes


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may hold. row_bytes: of one line, without its line end and trailing white space."""

    file_bytes: int
    rows: int
    row_bytes: int
    messages: int
    json_depth: int


SUBMISSION_LIMITS = Limits(
    file_bytes=constants.MAX_SUBMISSION_BYTES,
    rows=constants.MAX_SUBMISSION_ROWS,
    row_bytes=constants.MAX_ROW_BYTES,
    messages=constants.MAX_ROW_MESSAGES,
    json_depth=constants.MAX_JSON_DEPTH,
)
EVAL_SET_LIMITS = Limits(
    file_bytes=constants.MAX_EVAL_SET_BYTES,
    rows=constants.MAX_EVAL_SET_ROWS,
    row_bytes=constants.MAX_ROW_BYTES,
    messages=constants.MAX_ROW_MESSAGES,
    json_depth=constants.MAX_JSON_DEPTH,
)


@dataclass(frozen=True, slots=True)
class LineError:
    """A line that is no row, and why; line None when the fault is the whole file's."""

    line: int | None
    error: SubmissionError


def parse_rows(content: bytes, *, name: str, limits: Limits) -> tuple[Row, ...]:
    """The rows of a whole file, in order; never none.

    name: what to call the file in an error. Raises: SubmissionError naming file, line and what was expected:
    TOO_LARGE past a limit, EMPTY without a row, MALFORMED for anything else. A caller that reads the owner's pool
    translates it.
    """
    return tuple(_raise_fault(row, name) for row in scan_rows(content, limits=limits))


def read_keys(
    content: bytes, *, name: str, limits: Limits, keys_by_line: Mapping[bytes, bytes], on_row: _OnRow | None = None
) -> Iterator[tuple[bytes, RowKey]]:
    """(sha256 of its line, line number and key) of every row of a whole file. Raises: as `parse_rows`, when it comes.

    known: `Row.key` by the sha256 of the line that it was read from; such a line is not read again. note: is called
    with every row that is.
    """
    for line in _scan_lines(content, limits):
        number, text = _raise_fault(line, name)
        digest = hashlib.sha256(text).digest()
        key = keys_by_line.get(digest)
        if key is None:
            row = _raise_fault(_read_line(text, number, limits), name)
            key = row.key
            if on_row is not None:
                on_row(row)
        yield digest, RowKey(number, key)


def _raise_fault(found: T | LineError, name: str) -> T:
    if isinstance(found, LineError):
        where = name if found.line is None else f"{name}, line {found.line}"
        raise SubmissionError(found.error.reason, f"{where}: {found.error}") from found.error
    return found


def scan_rows(content: bytes, *, limits: Limits) -> Iterator[Row | LineError]:
    """Every row of a file in order and, in place of each line that is none, its fault; `parse_rows` raises the first.

    Reading ends at the first row past `limits.rows`, and does not begin in a file of too many bytes.
    """
    for line in _scan_lines(content, limits):
        yield line if isinstance(line, LineError) else _read_line(line[1], line[0], limits)


def _scan_lines(content: bytes, limits: Limits) -> Iterator[tuple[int, bytes] | LineError]:
    """(number, text) of every line that is to be a row, and the faults that are not of one line's content."""
    if len(content) > limits.file_bytes:
        message = f"{len(content)} bytes, at most {limits.file_bytes} are read"
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
    # A row of a hundred thousand lists has the collector walk over all objects of the process again and again, for a
    # hundred times as long as the reading takes. Nothing in a row refers to itself, and it is gone soon.
    was_collecting = gc.isenabled()
    if was_collecting:  # or else another thread may be the one to switch it on again
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
        raise SubmissionError(
            Reason.TOO_LARGE, f"expected at most {limits.row_bytes} bytes in a row, found {len(line)}"
        )
    if _is_deeper(line, limits.json_depth):
        raise SubmissionError(Reason.TOO_LARGE, f"expected JSON nested at most {limits.json_depth} deep")
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _malformed(f"expected UTF-8, found byte 0x{line[error.start]:02x} at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise _malformed(f"expected one JSON object, but at character {error.colno}: {error.msg}") from error
    return _read_row(value, number, limits)


def _is_deeper(line: bytes, max_depth: int) -> bool:
    # The JSON decoder recurses, so depth is known before it starts. Closers without an opener may make the count
    # too small, but the decoder stops at the first of those.
    if line.count(b"[") + line.count(b"{") <= max_depth:
        return False
    depth = 0
    for byte in _STRING.sub(b"", line):
        if byte in b"[{":
            depth += 1
            if depth > max_depth:
                return True
        elif byte in b"]}":
            depth -= 1
    return False


def _read_row(value: object, number: int, limits: Limits) -> Row:
    if not isinstance(value, dict):
        raise _malformed(f"expected a JSON object, found {reprlib.repr(value)}")
    turns = value.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise _malformed(f"expected 'conversations' to be a list of messages, found {reprlib.repr(turns)}")
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
        raise _malformed(f"expected the role {role!r} in message {index + 1}, found {reprlib.repr(value.get('role'))}")
    return Message(role, _read_text(value.get("content"), index))


def _read_text(value: object, index: int | None) -> str:
    """The content of a message, or, with no index, the system's text."""
    if isinstance(value, str) and (value.isascii() or _is_encodable(value)):
        return value
    expected = "'system' to be text or null" if index is None else f"the content of message {index + 1} to be text"
    if isinstance(value, str):
        raise _malformed(f"expected {expected}, found half of a surrogate pair, which is no character")
    raise _malformed(f"expected {expected}, found {reprlib.repr(value)}")


def _is_encodable(text: str) -> bool:
    """False with half of a surrogate pair in it, which is all that UTF-8 cannot write; JSON can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _malformed(message: str) -> SubmissionError:
    return SubmissionError(Reason.MALFORMED, message)


@dataclass(frozen=True, slots=True)
class _Number:
    """A number as written. No field is one, so none is converted: that could be slow, or fail by its size."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _refuse_constant(text: str) -> object:
    raise _malformed(f"expected JSON, found {text}")


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _malformed(f"expected each key once in an object, found {reprlib.repr(key)} again")
        seen.add(key)
    raise AssertionError("unreachable: fewer keys than pairs without a key seen twice")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_without_duplicates,
    parse_constant=_refuse_constant,
    parse_float=_Number,
    parse_int=_Number,
)
