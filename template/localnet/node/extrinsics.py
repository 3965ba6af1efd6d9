"""Signed extrinsics: their parts, and the bytes that their signature covers.

The call is cut out of the extrinsic and never encoded again, because decoded text may encode to other bytes.
Source: https://docs.substrate.io/reference/transaction-format. Of the runtime's signed extensions, CheckMortality,
CheckNonce, ChargeTransactionPayment and CheckMetadataHash have bytes in the extrinsic.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from template.chain.client import bt
from template.localnet.chain.headers import hash_bytes
from template.localnet.node.runtime import SS58_FORMAT, TRANSACTION_VERSION

_SIGNED_V4 = 0x84
_ACCOUNT_ID = 0
_SIGNATURES = {0: bt.sp_core.CRYPTO_ED25519, 1: bt.sp_core.CRYPTO_SR25519}
_SIGNATURE_BYTES = 64
_LONGEST_PAYLOAD = 256
_LARGEST_QUANTUM_PERIOD = 4096


@dataclass(frozen=True)
class Era:
    """The blocks of an extrinsic: `period` blocks from each block at `phase`."""

    period: int
    phase: int

    def birth(self, current: int) -> int:
        """Return the first block of the period that holds `current`."""
        return (max(current, self.phase) - self.phase) // self.period * self.period + self.phase


@dataclass(frozen=True, kw_only=True)
class Extrinsic:
    """A signed extrinsic.

    data: all of its bytes. era: None if it never expires.
    """

    data: bytes
    public_key: bytes
    scheme: int
    signature: bytes
    era: Era | None
    nonce: int
    extra: bytes
    call: bytes

    @property
    def hash(self) -> str:
        return hash_bytes(self.data)

    @property
    def signer(self) -> str:
        return str(bt.sp_core.ss58_encode(self.public_key, SS58_FORMAT))

    def is_signed(self, *, spec_version: int, genesis: str, birth: str) -> bool:
        """Verify the signature over the hashes of genesis and the era's first block."""
        versions = spec_version.to_bytes(4, "little") + TRANSACTION_VERSION.to_bytes(4, "little")
        # The last byte is the absent metadata digest.
        implied = versions + bytes.fromhex(genesis[2:]) + bytes.fromhex(birth[2:]) + b"\x00"
        payload = self.call + self.extra + implied
        if len(payload) > _LONGEST_PAYLOAD:
            payload = hashlib.blake2b(payload, digest_size=32).digest()
        key = bt.sp_core.Keypair(ss58_address=self.signer, crypto_type=self.scheme)
        return bool(key.verify(payload, self.signature))


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.offset = 0

    def take(self, count: int) -> bytes:
        part = self._data[self.offset : self.offset + count]
        if len(part) != count:
            raise ValueError("the extrinsic ends early")
        self.offset += count
        return part

    def compact(self) -> int:
        first = self.take(1)[0]
        mode = first & 3
        if mode == 3:
            return int.from_bytes(self.take((first >> 2) + 4), "little")
        rest = self.take({0: 0, 1: 1, 2: 3}[mode])
        return (first | int.from_bytes(rest, "little") << 8) >> 2


def parse_extrinsic(data: bytes) -> Extrinsic:
    """Split a signed extrinsic into its parts. Raises: ValueError."""
    cursor = _Cursor(data)
    if cursor.compact() != len(data) - cursor.offset:
        raise ValueError("the length is not that of the extrinsic")
    if cursor.take(1)[0] != _SIGNED_V4 or cursor.take(1)[0] != _ACCOUNT_ID:
        raise ValueError("not a signed extrinsic of version 4 by an account")
    public_key = cursor.take(32)
    scheme = cursor.take(1)[0]
    if scheme not in _SIGNATURES:
        raise ValueError("the signature is neither ed25519 nor sr25519")
    signature = cursor.take(_SIGNATURE_BYTES)
    start = cursor.offset
    era = _read_era(cursor)
    nonce = cursor.compact()
    cursor.compact()  # the tip
    if cursor.take(1) != b"\x00":
        raise ValueError("a metadata digest cannot be checked here")
    return Extrinsic(
        data=data,
        public_key=public_key,
        scheme=_SIGNATURES[scheme],
        signature=signature,
        era=era,
        nonce=nonce,
        extra=data[start : cursor.offset],
        call=data[cursor.offset :],
    )


def _read_era(cursor: Any) -> Era | None:
    first = cursor.take(1)[0]
    if first == 0:
        return None
    encoded = first | cursor.take(1)[0] << 8
    period = 2 << (encoded & 0x0F)
    phase = (encoded >> 4) * max(1, period // _LARGEST_QUANTUM_PERIOD)
    if period < 4 or phase >= period:
        raise ValueError("an impossible era")
    return Era(period, phase)
