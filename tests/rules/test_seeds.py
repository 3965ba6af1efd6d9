"""Seeds from the chain have fixed values that no later version may change."""

import hashlib

import pytest
from template.rules.seeds import seed_block, seed_from_hash

HASH = "0x" + "00" * 31 + "07"


def test_seed_is_the_first_4_bytes_of_the_tagged_digest() -> None:
    digest = hashlib.sha256(b"lucky_num\n" + bytes(31) + b"\x07").digest()
    assert seed_from_hash(HASH) == digest[0] + 256 * digest[1] + 256**2 * digest[2] + 256**3 * digest[3]
    assert seed_from_hash(HASH) == seed_from_hash(HASH[2:]) == seed_from_hash(HASH.upper().replace("X", "x"))
    assert 0 <= seed_from_hash(HASH) < 2**32


def test_another_block_gives_another_seed() -> None:
    assert len({seed_from_hash(f"0x{number:064x}") for number in range(100)}) == 100


def test_invalid_hash_raises() -> None:
    with pytest.raises(ValueError, match="fromhex"):
        seed_from_hash("0xzz")


@pytest.mark.parametrize(
    ("commit", "period", "expected"),
    [(0, 7, 0), (1, 7, 7), (6, 7, 7), (7, 7, 7), (8, 7, 14), (5, 1, 5), (10**9 + 1, 360, 1_000_000_080)],
)
def test_seed_block_is_the_next_multiple_of_the_period(commit: int, period: int, expected: int) -> None:
    assert seed_block(commit, period) == expected
