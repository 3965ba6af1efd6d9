"""Fuzzing of commitments: texts, sealed or not, and the chain's fields.

See `tests.campaigns.fuzz.targets` for what a target is.
"""

from typing import Any

from template.chain.commitments import encode_text, encode_timelock_plaintext, parse_commitment
from template.chain_records import ChainCommitment
from template.competition import CommitmentRecord
from template.errors import Reason, SubmissionError
from template.localnet.chain.scale_codec import decode_call, encode_call
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
    expected = _decode(data) if len(data) <= 128 else None
    text = None if len(data) > 128 else _parse([{f"Raw{len(data)}": "0x" + data.hex()}]).text
    expect(text == expected, "a field is read differently")
    _check_entry(data.decode(errors="replace") if expected is None else expected)
    expect(_open(data) == read_scale_string(_meant(data)), "a reveal is not read as a string")


def _check_entry(text: str) -> None:
    parts = read_commitment(text)
    try:
        record = CommitmentRecord.parse(text)
    except SubmissionError as error:
        expect(error.reason is Reason.BAD_COMMITMENT and parts is None, "a good commitment is refused")
        check_message(error)
    else:
        expect((record.namespace, record.competition_id, record.commit) == parts, "a commitment is read differently")
        is_same = str(record) == text and CommitmentRecord.parse(str(record)) == record
        expect(is_same, "a commitment written again differs")
    try:
        raw, sealed = encode_text(text), encode_timelock_plaintext(text)
    except SubmissionError as error:
        expect(error.reason is Reason.BAD_COMMITMENT, "a text is refused for another reason")
        expect(not 0 < len(text.encode()) <= 128, "a text is refused")
    else:
        expect(_open(sealed) == text == raw.decode(), "a sealed text is opened as another")


def _decode(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _shown(data: bytes) -> str:
    """Decode bytes as the client does."""
    text = _decode(data)
    return "0x" + data.hex() if text is None else text


def _meant(data: bytes) -> bytes:
    """Return the bytes, or the bytes that the client decodes to these characters."""
    hidden = data[2:].decode(errors="replace")
    if data[:2] != b"0x" or len(hidden) % 2 or any(letter not in "0123456789abcdef" for letter in hidden):
        return data
    return data if _decode(bytes.fromhex(hidden)) is not None else bytes.fromhex(hidden)


def _open(data: bytes) -> str | None:
    """Return the text of a reveal of these bytes."""
    opened = parse_commitment("hotkey", None, [(_shown(data), _BLOCK)])
    assert opened is not None
    return opened.text


def _parse(fields: list[Any], reveals: list[tuple[str, int]] | None = None) -> ChainCommitment:
    record = {"block": _BLOCK, "deposit": 0, "info": {"fields": fields}}
    commitment = parse_commitment("hotkey", record, reveals)
    assert commitment is not None
    return commitment


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
    blocks = {1: _BLOCK, 2: _BLOCK - 1, 4: _BLOCK + 1}
    reveals = [(_shown(data[1:9]), block) for bit, block in blocks.items() if data[0] & bit]
    text, sealed = None, None
    # A later reveal takes the place of the fields.
    if len(fields) == 1 and isinstance(fields[0], dict) and not data[0] & 4:
        ((name, value),) = fields[0].items()
        if isinstance(value, dict):
            sealed = value["reveal_round"] or None
        elif name[:3] == "Raw":
            text = _decode(bytes.fromhex(value[2:]))
    expected = ChainCommitment(hotkey="hotkey", block=_BLOCK, text=text, reveal_round=sealed)
    expect(_parse(fields, reveals) == expected, "fields are misread")
    opened = parse_commitment("hotkey", None, reveals)
    expect((opened is None) == (not reveals), "an opening is lost")
