"""Block headers, whose hashes clients compute for themselves.

A header is the parent's hash, the compact number, the roots of state and extrinsics, and an empty digest; its hash is
BLAKE2b-256 of those bytes. Nothing proves anything from the roots here, so they are plain hashes.
Source: https://docs.substrate.io/reference/block-reference and sp_runtime::generic::Header.
"""

import hashlib
from dataclasses import dataclass

from template.localnet.chain.scale_codec import encode_compact


@dataclass(frozen=True, kw_only=True)
class Header:
    """A block's header; hashes and roots are 0x-hex."""

    number: int
    parent_hash: str
    state_root: str
    extrinsics_root: str

    def hash(self) -> str:
        """Return the block's hash in 0x-hex."""
        parts = (self.parent_hash, self.state_root, self.extrinsics_root)
        parent, state, extrinsics = (bytes.fromhex(part[2:]) for part in parts)
        return hash_bytes(parent + encode_compact(self.number) + state + extrinsics + encode_compact(0))


def hash_bytes(data: bytes) -> str:
    """Return BLAKE2b-256 in 0x-hex."""
    return "0x" + hashlib.blake2b(data, digest_size=32).hexdigest()


def make_header(genesis: str, fork: int, number: int, parent_hash: str) -> Header:
    """Make a header that differs by chain, fork and number.

    It does not depend on the block's calls, so that two runs of one chain's file draw the same hashes.
    genesis: the chain's random value.
    """
    content = bytes.fromhex(genesis[2:]) + fork.to_bytes(4, "little") + number.to_bytes(4, "little")
    return Header(
        number=number,
        parent_hash=parent_hash,
        state_root=hash_bytes(b"state" + content),
        extrinsics_root=hash_bytes(b"extrinsics" + content),
    )
