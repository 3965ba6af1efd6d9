"""Derive evaluation seeds from the chain, alike for every validator and auditor."""

import hashlib

# Hashed before the block's hash, so that no other use of it gives the same number.
_DOMAIN = b"lucky_num\n"


def seed_from_hash(block_hash: str) -> int:
    """Return the lucky_num, in [0, 2**32), of a block's hash in hex.

    The first four bytes, little-endian, of sha256 over `lucky_num`, a line feed and the bytes of the hash.
    Raises: ValueError for a hash that is not hex.
    """
    digest = hashlib.sha256(_DOMAIN + bytes.fromhex(block_hash.removeprefix("0x"))).digest()
    return int.from_bytes(digest[:4], "little")


def seed_block(reveal_block: int, period: int) -> int:
    """Return the first multiple of `period` at or after `reveal_block`."""
    return -(-reveal_block // period) * period
