"""Fuzzing of what a miner writes on chain: the text of an entry, sealed or not, and the fields of a commitment.

See `tests.campaigns.fuzz.targets` for what a target is.
"""

from typing import Any

from template.chain.commitments import encode_text, encode_timelock_plaintext, parse_commitment
from template.competition import CommitmentRecord
from template.errors import Reason, SubmissionError
from template.localnet.chain.scale_codec import decode_call, encode_call
from template.records import ChainCommitment
from tests.campaigns.fuzz.reference import read_commitment, read_scale_string

_BLOCK = 10
_MESSAGE_CHARS = 2000


def expect(holds: bool, what: str) -> None:
    """Raises: AssertionError unless it holds."""
    if not holds:
        raise AssertionError(what)


def check_message(error: Exception) -> None:
    """A refusal is a sentence that can be stored, printed and read: of some length, and UTF-8."""
    expect(0 < len(str(error)) < _MESSAGE_CHARS, "a refusal of no length, or without end")
    str(error).encode()


def check_commitment(data: bytes) -> None:
    """One plain field of these bytes, the text of it as an entry, and the same text sealed and opened."""
    text = None if len(data) > 128 else _text_of([{f"Raw{len(data)}": "0x" + data.hex()}])
    try:
        expected = data.decode() if len(data) <= 128 else None
    except UnicodeDecodeError:
        expected = None
    expect(text == expected, "a field is not read as its bytes' text")
    _check_entry(data.decode(errors="surrogatepass" if expected is not None else "replace"))
    opened = parse_commitment("hotkey", None, [(_shown(data), _BLOCK)])
    expect(opened is not None and opened.text == read_scale_string(_meant(data)), "a reveal is not read as a string")


def _check_entry(text: str) -> None:
    parts = read_commitment(text)
    try:
        record = CommitmentRecord.parse(text)
    except SubmissionError as error:
        expect(error.reason is Reason.BAD_COMMITMENT and parts is None, "an entry is refused that is one")
        check_message(error)
    else:
        expect((record.namespace, record.competition_id, record.commit) == parts, "an entry is read as another")
        expect(str(record) == text and CommitmentRecord.parse(str(record)) == record, "an entry changes on its way")
    try:
        raw, sealed = encode_text(text), encode_timelock_plaintext(text)
    except SubmissionError as error:
        expect(error.reason is Reason.BAD_COMMITMENT, "a text is refused for another reason")
        expect(not 0 < len(text.encode(errors="surrogatepass")) <= 128 or not _is_utf8(text), "a text is refused")
    else:
        opened = parse_commitment("hotkey", None, [(_shown(sealed), _BLOCK)])
        expect(opened is not None and opened.text == text == raw.decode(), "a sealed text is opened as another")


def _is_utf8(text: str) -> bool:
    return not any(0xD800 <= ord(one) < 0xE000 for one in text)


def _shown(data: bytes) -> str:
    """Bytes as the client's decoder gives them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "0x" + data.hex()


def _meant(data: bytes) -> bytes:
    """The bytes, or those that the client would show as these very characters."""
    hidden = data[2:].decode(errors="replace")
    if data[:2] != b"0x" or len(hidden) % 2 or any(one not in "0123456789abcdef" for one in hidden):
        return data
    return data if _is_text(bytes.fromhex(hidden)) else bytes.fromhex(hidden)


def _text_of(fields: list[Any]) -> str | None:
    found = parse_commitment("hotkey", {"block": _BLOCK, "deposit": 0, "info": {"fields": fields}}, None)
    assert found is not None
    return found.text


def check_fields(data: bytes) -> None:
    """A commitment as the chain stores it, from its SCALE bytes; the first byte says what was revealed of it."""
    prefix = b"\x12\x00" + (96).to_bytes(2, "little")
    try:
        call = decode_call(prefix + data[1:])
    except ValueError:
        return
    again = decode_call(encode_call(call.module, call.function, call.params))
    expect(again == call, "a commitment's fields change on their way")
    fields = call.params["info"]["fields"]
    reveals = [
        (_shown(data[1:9]), block) for bit, block in ((1, _BLOCK), (2, _BLOCK - 1), (4, _BLOCK + 1)) if data[0] & bit
    ]
    record = {"block": _BLOCK, "deposit": 0, "info": {"fields": fields}}
    found = parse_commitment("hotkey", record, reveals)
    assert found is not None
    is_single = len(fields) == 1 and not data[0] & 4
    (name, value), *_ = (*fields[0].items(),) if is_single and isinstance(fields[0], dict) else (("", None),)
    raw = bytes.fromhex(value[2:]) if isinstance(value, str) and name[:3] == "Raw" else None
    text = _shown(raw) if raw is not None and _is_text(raw) else None
    sealed = value["reveal_round"] or None if isinstance(value, dict) else None
    expect(
        found == ChainCommitment(hotkey="hotkey", block=_BLOCK, text=text, reveal_round=sealed), "fields are misread"
    )
    opened = parse_commitment("hotkey", None, reveals)
    expect((opened is None) == (not reveals), "an opening is lost")


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
