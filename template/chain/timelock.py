"""Timelock encryption of commitments, and the drand rounds that reveal them.

Arithmetic and local cryptography only. Source: bittensor.timelock.
"""

from typing import Any

import bittensor as bt

from template.chain.commitments import encode_timelock_plaintext
from template.errors import ConfigError


def beacon_round_at(posix_s: float) -> int:
    """Return the first beacon round published at or after a POSIX time."""
    return bt.timelock.round_at(posix_s)


def round_time(beacon_round: int) -> float:
    """Return the POSIX time at which a beacon round is published."""
    # The client's own reveal_time fails for rounds past the year 9999, which a miner may name.
    return float(bt.timelock.QUICKNET_GENESIS + (beacon_round - 1) * bt.timelock.QUICKNET_PERIOD)


def timelock_encrypt(text: str, reveal_round: int) -> dict[str, Any]:
    """Return the commitment field that the chain reveals as `text` at `reveal_round`.

    It is at most 246 bytes longer than the text, well below the chain's limit of 1,024 (types.rs beside the pallet's
    lib.rs). Raises: SubmissionError (BAD_COMMITMENT) for a text that does not fit; ConfigError for a past round.
    """
    plaintext = encode_timelock_plaintext(text)
    try:
        sealed = bt.timelock.encrypt(plaintext, reveal_round=reveal_round)
    except (bt.TimelockError, OverflowError, ValueError) as exc:
        raise ConfigError(f"the reveal round {reveal_round} must be a future beacon round: {exc}") from exc
    return {"TimelockEncrypted": {"encrypted": sealed.encrypted, "reveal_round": sealed.reveal_round}}
