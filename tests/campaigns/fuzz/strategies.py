"""Nearly valid inputs, for hypothesis to make.

Each target has a strategy that gives bytes. Rows, entries and fields are made part by part; records that are signed are
honest ones with a few of their values exchanged, taken out or doubled.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from hypothesis import strategies as st

from tests.campaigns.fuzz.seeds import COMMIT, DIGEST, make_seeds
from tests.fixtures.rounds import container_of, json_places

_T = TypeVar("_T")

_HALVES = st.characters(categories=["Cs"])
_ODD = st.sampled_from(
    ["\0", "\x1f", "\x7f", "\x85", "\u2028", "\u200b", "\ufeff", "\u202e", "e\u0301", "\u0958", "\U0001f600", "\ud800",
     "<|im_end|>", "<|im_start|>user\n", "<|im_", "'s", "\\", '"', "{}", "\r\n", " ", "0x", "\u0430"]
)  # fmt: skip
_TEXT = st.lists(st.one_of(_ODD, st.text(max_size=8), st.text(_HALVES, max_size=1)), max_size=6).map("".join)
_BREAKS = [b"", b",", b'"', b"\\", b"[", b"}", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0", b"NaN", b"9" * 50]
_JUNK: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(2**63), 2**64, 0.0, -0.0, 1e308, 5e-324, float("nan"), float("inf"), "\ud800", ""]),
    _TEXT,
    st.builds(list),
    st.builds(dict),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=3),
)


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _usually(usual: _T, otherwise: st.SearchStrategy[_T]) -> st.SearchStrategy[_T]:
    """Draw `usual` five times of six."""
    return st.integers(0, 5).flatmap(lambda draw: otherwise if draw == 0 else st.just(usual))


@st.composite
def _row(draw: st.DrawFn) -> bytes:
    """Draw a line that is nearly a row, in any spelling of its JSON."""
    turns: list[Any] = []
    for index in range(draw(_usually(2, st.integers(0, 8)))):
        turn: dict[str, Any] = {
            "role": draw(_usually(("user", "assistant")[index % 2], _JUNK)),
            "content": draw(_usually(draw(_TEXT), _JUNK)),
        }
        if draw(st.booleans()):
            turn = dict(reversed(turn.items()))
        turns.append(draw(_usually(turn, _JUNK)))
    row: dict[str, Any] = {"conversations": draw(_usually(turns, _JUNK))}
    if draw(st.booleans()):
        row["system"] = draw(st.one_of(_TEXT, st.none(), _JUNK))
    if draw(st.booleans()):
        row[draw(st.text(max_size=4))] = draw(_JUNK)
    is_ascii = draw(st.booleans())
    text = json.dumps(row, ensure_ascii=is_ascii, indent=draw(st.sampled_from([None, None, 1])))
    raw = _encode(text.replace("\n", draw(st.sampled_from([" ", "\r", "\t"]))))
    return draw(_usually(raw, _broken(raw)))


def _broken(raw: bytes) -> st.SearchStrategy[bytes]:
    """Draw the bytes with a part cut, doubled or inserted."""
    where, put_in = st.integers(0, len(raw)), st.sampled_from(_BREAKS)
    return st.builds(
        lambda start, end, middle: raw[: min(start, end)] + middle + raw[max(start, end) :], where, where, put_in
    )


_LINE = st.builds(bytes.__add__, _row(), st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b" \t\r\n", b""]))
_ROWS = st.lists(_LINE, min_size=1, max_size=4).map(b"".join)


@st.composite
def _entry(draw: st.DrawFn) -> bytes:
    """Draw the text of a commitment that is nearly valid."""
    name = st.from_regex(r"\A[A-Za-z0-9._-]{1,12}\Z")
    parts = [
        draw(st.builds(lambda owner, repo: f"{owner}/{repo}", name, name)) if draw(st.booleans()) else "owner/name",
        draw(_usually("1", st.one_of(name, _TEXT))),
        draw(_usually(COMMIT, st.sampled_from([DIGEST, COMMIT.upper(), COMMIT[1:], COMMIT + "0", "\u0661" * 40]))),
    ]
    raw = _encode(":".join(parts))
    if draw(st.booleans()):
        return draw(_usually(raw, _broken(raw)))
    mode = draw(st.sampled_from([0, 1, 2, 3]))
    size = draw(_usually(len(raw), st.integers(0, 200)))
    return (size << 2 | mode).to_bytes(2 if mode else max(1, (size << 2).bit_length() + 7 >> 3), "little")[:2] + raw


@st.composite
def _changed(draw: st.DrawFn, name: str) -> bytes:
    """Draw an honest record with up to three values changed."""
    lines = [json.loads(line) for line in make_seeds()[name][0].splitlines()]
    for _ in range(draw(st.integers(0, 3))):
        line = draw(st.sampled_from(lines))
        place = draw(st.sampled_from([*json_places(line)]))
        holder, last = container_of(line, place), place[-1]
        change = draw(st.sampled_from(["junk", "junk", "near", "gone", "twice"]))
        if change == "junk":
            holder[last] = draw(_JUNK)
        elif change == "near":
            holder[last] = _near(holder[last])
        elif change == "gone":
            del holder[last]
        elif isinstance(holder, list):
            holder.append(holder[last])
        else:
            holder[draw(st.text(max_size=3))] = holder[last]
    texts = [json.dumps(line, indent=draw(st.sampled_from([None, None, None, 0]))) for line in lines]
    if draw(st.integers(0, 9)) == 0:
        for key in ('"loss":', '"netuid":'):
            texts[0] = texts[0].replace(key, f"{key} 3, {key}", 1)
    raw = "\n".join(text.replace("\n", "") for text in texts).encode() + b"\n"
    return draw(_usually(raw, _broken(raw)))


def _near(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value[:-1] if isinstance(value, str | list) else {**value, "": None}


@st.composite
def _stored(draw: st.DrawFn) -> bytes:
    """Draw a reveal and the SCALE bytes of fields."""
    count = draw(_usually(1, st.integers(0, 4)))
    parts = [bytes([draw(st.integers(0, 7)), count << 2])]
    for _ in range(count):
        raw = draw(st.one_of(_entry(), _TEXT.map(_encode), st.binary(max_size=140)))[:128]
        sealed = b"\x86" + (len(raw) << 2 | 1).to_bytes(2, "little") + raw + b"\x01\0\0\0\0\0\0\0"
        a_hash = bytes([draw(st.integers(130, 133))]) + draw(st.binary(min_size=32, max_size=32))
        variants = [bytes([len(raw) + 1]) + raw, b"\x00", b"\x87", a_hash, sealed, b"\x86\x00" + bytes(8)]
        parts.append(draw(st.sampled_from(variants)))
    return draw(_usually(b"".join(parts), _broken(b"".join(parts))))


@st.composite
def _chat(draw: st.DrawFn) -> bytes:
    """Draw texts between 0xff bytes, or a file of rows."""
    if draw(st.booleans()):
        return draw(_ROWS)
    texts = [draw(_TEXT) * draw(st.sampled_from([1, 1, 1, 40])) for _ in range(draw(st.integers(1, 5)))]
    return b"\xff".join(text.encode(errors="ignore") for text in texts)


SHAPES: Mapping[str, st.SearchStrategy[bytes]] = {
    "commitment": _entry(),
    "fields": _stored(),
    "rows": _ROWS,
    "chat": _chat(),
    "receipt": _changed("receipt"),
    "round": _changed("round"),
}
