"""How rows outside the evaluation set differ from the rows that they look like."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from template.data.hints import name_character
from template.data.near_duplicates import normalize
from template.data.rows import EVAL_SET_LIMITS, Row, scan_rows

_MIN_SIMILARITY = 0.5
_SHOWN = 24  # characters of a text


def explain_foreign_rows(rows: Iterable[Row], eval_set: Path) -> dict[int, str]:
    """Describe the difference of each row from its look-alike in the file, by line.

    Rows look alike if they share at least half of their messages' text, the longest message included, apart from
    spelling: see `template.data.near_duplicates`. Rows without a look-alike are missing from the result.
    """
    own = {row.line: (row, _messages(row)) for row in rows}
    by_longest: dict[bytes, list[int]] = defaultdict(list)
    for line, (_, messages) in own.items():
        by_longest[max(messages, key=len)].append(line)
    best: dict[int, tuple[tuple[float, bool, int], Row]] = {}
    for theirs in scan_rows(eval_set.read_bytes() if own else b"", limits=EVAL_SET_LIMITS):
        if not isinstance(theirs, Row):
            continue
        messages = _messages(theirs)
        for line in {line for message in messages for line in by_longest.get(message, ())}:
            rank = _rank(*own[line], theirs, messages)
            if rank[0] >= _MIN_SIMILARITY and (line not in best or rank > best[line][0]):
                best[line] = rank, theirs
    return {line: _describe(own[line][0], theirs) for line, (_, theirs) in sorted(best.items())}


def _messages(row: Row) -> list[bytes]:
    return [normalize(message.content) for message in row.messages]


def _rank(row: Row, messages: list[bytes], theirs: Row, their_messages: list[bytes]) -> tuple[float, bool, int]:
    """Return the shared part of the text, then what tells look-alikes of it apart."""
    shared = sum(len(own) for own, their in zip(messages, their_messages, strict=False) if own == their)
    size = max(sum(map(len, messages)), sum(map(len, their_messages)))
    exact = sum(own == their for own, their in zip(row.messages, theirs.messages, strict=False))
    return shared / max(1, size), normalize(row.system or "") == normalize(theirs.system or ""), exact


def _describe(row: Row, theirs: Row) -> str:
    differences = list(_differences(row, theirs))
    more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
    return f"looks like line {theirs.line} of the evaluation set, differs in {differences[0]}{more}"


def _differences(row: Row, theirs: Row) -> Iterator[str]:
    if row.system != theirs.system:
        yield f"'system': {_compare(row.system, theirs.system)}"
    for number, (own, their) in enumerate(zip(row.messages, theirs.messages, strict=False), start=1):
        if own.content != their.content:
            yield f"message {number}: {_compare(own.content, their.content)}"
    if len(row.messages) != len(theirs.messages):
        yield f"the number of messages: {len(row.messages)}, not {len(theirs.messages)}"


def _compare(own: str | None, theirs: str | None) -> str:
    """Describe the first difference of two texts."""
    if not own or not theirs:
        return f"{_quote(own)}, not {_quote(theirs)}"
    if unicodedata.normalize("NFC", own) == unicodedata.normalize("NFC", theirs):
        return f"Unicode form {_form(own)}, not {_form(theirs)}"
    if own.rstrip() == theirs.rstrip():
        return f"ends with {own[len(own.rstrip()) :]!r}, not {theirs[len(theirs.rstrip()) :]!r}"
    if own.lstrip() == theirs.lstrip():
        return f"begins with {own[: -len(own.lstrip())]!r}, not {theirs[: -len(theirs.lstrip())]!r}"
    index = next((i for i, pair in enumerate(zip(own, theirs, strict=False)) if pair[0] != pair[1]), None)
    if index is None:
        index = min(len(own), len(theirs))
    elif normalize(own) == normalize(theirs):
        return f"character {index + 1} is {name_character(own[index])}, not {name_character(theirs[index])}"
    return f"{_quote(own[index:])} at character {index + 1}, not {_quote(theirs[index:])}"


def _form(text: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, text)), "mixed")


def _quote(text: str | None) -> str:
    if text is None:
        return "null"
    return ascii(text[:_SHOWN])[:-1] + ("...'" if len(text) > _SHOWN else ascii(text)[-1])
