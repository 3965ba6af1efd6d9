"""Reading what a hotkey's commitment holds, strictly, from the fields as the chain's decoder shows them."""

import re
from collections.abc import Sequence

from template.records import ChainCommitment

_HEX = re.compile(r"0x[0-9a-f]*")
_RAW_FIELD = re.compile(r"Raw([0-9]{1,3})")


def to_commitment(
    hotkey: str, block: int, fields: Sequence[object], revealed: Sequence[tuple[int, str]]
) -> ChainCommitment:
    """The record of one commitment; its text is None unless it was committed in the open as one Raw field of UTF-8.

    revealed: (block, text) of what the chain has decrypted for this hotkey; since the commitment's block, that means
    that the commitment was sealed.
    """
    is_revealed = any(reveal_block >= block for reveal_block, _ in revealed)
    return ChainCommitment(hotkey=hotkey, block=block, text=None if is_revealed else _plain_text(fields))


def _plain_text(fields: Sequence[object]) -> str | None:
    # The client's own text joins fields without a mark between them, and shows other bytes as text that begins with
    # 0x, so that two commitments could read the same.
    if len(fields) != 1 or not isinstance(fields[0], dict) or len(fields[0]) != 1:
        return None
    ((variant, value),) = fields[0].items()
    match = _RAW_FIELD.fullmatch(variant) if isinstance(variant, str) else None
    if match is None or not isinstance(value, str) or _HEX.fullmatch(value) is None:
        return None
    try:
        raw = bytes.fromhex(value[2:])
        return raw.decode() if len(raw) == int(match[1]) else None
    except ValueError:
        return None
