"""Fuzzing of commitments: texts, sealed or not, and the chain's fields.

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
    """Raises: AssertionError unless a refusal is short, and UTF-8."""
    expect(0 < len(str(error)) < _MESSAGE_CHARS, "a refusal is empty or too long")
    str(error).encode()


def check_commitment(data: bytes) -> None:
    """Read these bytes as a plain field, as a commitment, and sealed."""
    text = None if len(data) > 128 else _text_of([{f"Raw{len(data)}": "0x" + data.hex()}])
    try:
        expected = data.decode() if len(data) <= 128 else None
    except UnicodeDecodeError:
        expected = None
    expect(text == expected, "a field is read differently")
    _check_entry(data.decode(errors="surrogatepass" if expected is not None else "replace"))
    opened = parse_commitment("hotkey", None, [(_shown(data), _BLOCK)])
    expect(opened is not None and opened.text == read_scale_string(_meant(data)), "a reveal is not read as a string")


def _check_entry(text: str) -> None:
    parts = read_commitment(text)
    try:
        record = CommitmentRecord.parse(text)
    except SubmissionError as error:
        expect(error.reason is Reason.BAD_COMMITMENT and parts is None, "a good commitment is refused")
        check_message(error)
    else:
        expect((record.namespace, record.competition_id, record.commit) == parts, "a commitment is read differently")
        expect(
            str(record) == text and CommitmentRecord.parse(str(record)) == record, "a commitment written again differs"
        )
    try:
        raw, sealed = encode_text(text), encode_timelock_plaintext(text)
    except SubmissionError as error:
        expect(error.reason is Reason.BAD_COMMITMENT, "a text is refused for another reason")
        expect(not 0 < len(text.encode(errors="surrogatepass")) <= 128 or not _is_utf8(text), "a text is refused")
    else:
        opened = parse_commitment("hotkey", None, [(_shown(sealed), _BLOCK)])
        expect(opened is not None and opened.text == text == raw.decode(), "a sealed text is opened as another")


def _is_utf8(text: str) -> bool:
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


def _shown(data: bytes) -> str:
    """Bytes as the client's decoder gives them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "0x" + data.hex()


def _meant(data: bytes) -> bytes:
    """The bytes, or those that the client would show as these very characters."""
    hidden = data[2:].decode(errors="replace")
    if data[:2] != b"0x" or len(hidden) % 2 or any(letter not in "0123456789abcdef" for letter in hidden):
        return data
    return data if _is_text(bytes.fromhex(hidden)) else bytes.fromhex(hidden)


def _text_of(fields: list[Any]) -> str | None:
    commitment = parse_commitment("hotkey", {"block": _BLOCK, "deposit": 0, "info": {"fields": fields}}, None)
    assert commitment is not None
    return commitment.text


def check_fields(data: bytes) -> None:
    """Read SCALE bytes as a stored commitment; the first byte adds reveals."""
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
    commitment = parse_commitment("hotkey", record, reveals)
    assert commitment is not None
    is_single = len(fields) == 1 and not data[0] & 4
    (name, value), *_ = (*fields[0].items(),) if is_single and isinstance(fields[0], dict) else (("", None),)
    raw = bytes.fromhex(value[2:]) if isinstance(value, str) and name[:3] == "Raw" else None
    text = _shown(raw) if raw is not None and _is_text(raw) else None
    sealed = value["reveal_round"] or None if isinstance(value, dict) else None
    expect(
        commitment == ChainCommitment(hotkey="hotkey", block=_BLOCK, text=text, reveal_round=sealed),
        "fields are misread",
    )
    opened = parse_commitment("hotkey", None, reveals)
    expect((opened is None) == (not reveals), "an opening is lost")


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
