"""Seeds that everybody derives alike from the chain: which block gives a submission its seed, and which seed. Pure."""

import hashlib

# Hashed before the block's hash, so that no other use of it gives the same number.
_DOMAIN = b"lucky_num\n"


def seed_from_hash(block_hash: str) -> int:
    """The lucky_num, in [0, 2**32), that a block's hash in hex gives: it cannot be known before the block is made.

    The first four bytes, little-endian, of sha256 over `lucky_num`, a line feed and the bytes of the hash.
    Raises: ValueError when it is no hex.
    """
    digest = hashlib.sha256(_DOMAIN + bytes.fromhex(block_hash.removeprefix("0x"))).digest()
    return int.from_bytes(digest[:4], "little")


def seed_block(commit_block: int, period: int) -> int:
    """The first block at or after `commit_block` whose number is a multiple of `period`, which must be positive."""
    return -(-commit_block // period) * period
