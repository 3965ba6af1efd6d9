"""Timelocked commitments, and the drand beacon that opens them: round numbers, their times, and the encryption.

All of it is arithmetic and local cryptography. Source: bittensor.timelock.
"""

from typing import Any

import bittensor as bt

from template.chain.commitments import encode_timelock_plaintext
from template.errors import ConfigError


def beacon_round_at(posix_s: float) -> int:
    """The first round of the beacon that is published at or after a moment, given in POSIX seconds."""
    return bt.timelock.round_at(posix_s)


def round_time(beacon_round: int) -> float:
    """The moment in POSIX seconds at which a round of the beacon is published, whatever number a miner names."""
    # The client's own reveal_time fails on rounds past the year 9999.
    return float(bt.timelock.QUICKNET_GENESIS + (beacon_round - 1) * bt.timelock.QUICKNET_PERIOD)


def timelock_encrypt(text: str, reveal_round: int) -> dict[str, Any]:
    """The commitment field that the chain opens at `reveal_round` of the beacon, and then shows as `text`.

    It is 246 bytes longer than the text at most, well below the 1,024 that the chain takes (types.rs beside the
    pallet's lib.rs). Raises: SubmissionError (BAD_COMMITMENT) when the text does not fit; ConfigError unless the round
    is in the future.
    """
    plaintext = encode_timelock_plaintext(text)
    try:
        sealed = bt.timelock.encrypt(plaintext, reveal_round=reveal_round)
    except (bt.TimelockError, OverflowError, ValueError) as exc:
        raise ConfigError(f"a commitment must be sealed to a future round of the beacon: {exc}") from exc
    return {"TimelockEncrypted": {"encrypted": sealed.encrypted, "reveal_round": sealed.reveal_round}}
