"""Strict parsing of on-chain commitments, and the plaintext of a timelocked one.

The client's own reader joins fields without a separator, takes any payload's first bytes for a length, and fails on
all commitments when a revealed text begins with `0x`, which any miner can publish. Source: subtensor,
pallets/commitments/src/lib.rs.
"""

import re
from collections.abc import Sequence
from typing import Any

from template.chain_records import ChainCommitment
from template.constants import MAX_COMMITMENT_BYTES
from template.errors import Reason, SubmissionError

_HEX = re.compile(r"0x(?:[0-9a-f]{2})*")
_RAW_FIELD = re.compile(r"Raw([0-9]{1,3})")
_ANNOUNCEMENT = re.compile(r"dataset-rounds:([!-~]{1,96})")
# SCALE lengths below 2**6 take one byte, those below 2**14 two; no commitment is longer.
_ONE_BYTE_LENGTHS, _TWO_BYTE_LENGTHS = 2**6, 2**14


def parse_commitment(hotkey: str, record: Any, revealed: Sequence[Sequence[Any]] | None) -> ChainCommitment | None:
    """Parse a hotkey's commitment; None if it has none.

    The chain drops a record when it has revealed all its fields. So a record is newer than the reveals, unless other
    fields are left beside the revealed one.

    Args:
        record: the hotkey's value in CommitmentOf.
        revealed: its value in RevealedCommitments, pairs of (SCALE bytes of the decrypted text, reveal block).
    """
    reveals = [(int(block), data) for data, block in revealed or ()]
    if record is not None:
        return _parse_record(hotkey, record, [block for block, _ in reveals])
    if not reveals:
        return None
    newest = max(block for block, _ in reveals)
    texts = [_revealed_text(data) for block, data in reveals if block == newest]
    # Two reveals in one block are two fields of one commitment.
    text = texts[0] if len(texts) == 1 else None
    return ChainCommitment(hotkey=hotkey, block=newest, text=text, is_revealed=text is not None)


def _parse_record(hotkey: str, record: Any, reveal_blocks: Sequence[int]) -> ChainCommitment:
    block = int(record["block"])
    fields = record["info"]["fields"]
    # The chain reveals before it runs a block's calls. So a reveal in the record's own block is of an earlier
    # commitment, and a later one is of another field of this commitment.
    is_single = len(fields) == 1 and all(reveal_block <= block for reveal_block in reveal_blocks)
    field = fields[0] if is_single else None
    return ChainCommitment(
        hotkey=hotkey,
        block=block,
        text=_plain_text(field),
        reveal_round=_sealed_round(field),
        rounds_repo=_announced_repo(field),
    )


def _plain_text(field: object) -> str | None:
    if not isinstance(field, dict) or len(field) != 1:
        return None
    ((variant, value),) = field.items()
    match = _RAW_FIELD.fullmatch(variant) if isinstance(variant, str) else None
    if match is None or not isinstance(value, str) or _HEX.fullmatch(value) is None:
        return None
    raw = bytes.fromhex(value[2:])
    return _utf8(raw) if len(raw) == int(match[1]) else None


def _sealed_round(field: object) -> int | None:
    if not isinstance(field, dict) or field.keys() != {"TimelockEncrypted"}:
        return None
    sealed = field["TimelockEncrypted"]
    reveal_round = sealed.get("reveal_round") if isinstance(sealed, dict) else None
    return reveal_round if type(reveal_round) is int and reveal_round > 0 else None


def _announced_repo(field: object) -> str | None:
    if not isinstance(field, dict) or field.keys() != {"BigRaw"}:
        return None
    # The client decodes bytes of any length as text where they are UTF-8.
    text = field["BigRaw"]
    match = _ANNOUNCEMENT.fullmatch(text) if isinstance(text, str) else None
    return match[1] if match is not None else None


def encode_announcement(repo: str) -> bytes:
    """Encode the announcement of a validator's round files, for a BigRaw field.

    A miner's commitment is a Raw or a timelocked field, so no version of this package takes it for an entry.
    """
    return f"dataset-rounds:{repo}".encode()


def encode_timelock_plaintext(text: str) -> bytes:
    """Encode the plaintext that the chain reveals as `text`: a SCALE string.

    Raises: SubmissionError (BAD_COMMITMENT) unless it has 1 to 128 bytes, the limit of a plain commitment.
    """
    raw = encode_text(text)
    size = len(raw)
    return (bytes([size << 2]) if size < _ONE_BYTE_LENGTHS else (size << 2 | 1).to_bytes(2, "little")) + raw


def encode_text(text: str) -> bytes:
    """Encode a text of 1 to 128 bytes. Raises: SubmissionError (BAD_COMMITMENT)."""
    raw = text.encode(errors="surrogatepass")
    if not 0 < len(raw) <= MAX_COMMITMENT_BYTES or _utf8(raw) is None:
        raise SubmissionError(
            Reason.BAD_COMMITMENT, f"a commitment takes 1 to {MAX_COMMITMENT_BYTES} bytes of UTF-8, not {len(raw)}"
        )
    return raw


def _revealed_text(data: Any) -> str | None:
    """Return the text of a reveal, None unless its bytes are exactly one SCALE string.

    The client's decoder returns UTF-8 bytes as text and others as 0x-hex. Text that looks like the hex of other bytes
    is hex: a SCALE string that begins with `0x` has 13 bytes, and 11 hex digits are not whole bytes.
    """
    if not isinstance(data, str):
        return None
    if _HEX.fullmatch(data) and _utf8(raw := bytes.fromhex(data[2:])) is None:
        return _scale_string(raw)
    return _scale_string(data.encode(errors="surrogatepass"))


def _scale_string(data: bytes) -> str | None:
    mode = data[0] & 3 if data else None
    if mode not in (0, 1):
        return None
    width = mode + 1
    size = int.from_bytes(data[:width], "little") >> 2
    is_shortest = size < _TWO_BYTE_LENGTHS and (size >= _ONE_BYTE_LENGTHS) == (mode == 1)
    return _utf8(data[width:]) if is_shortest and len(data) - width == size else None


def _utf8(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except ValueError:
        return None
