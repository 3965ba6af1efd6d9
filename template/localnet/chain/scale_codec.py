"""SCALE codec of the three calls that the product makes.

Pallet and call indices are from the recorded runtime; a test compares every byte with the client's own codec.
Source: https://docs.substrate.io/reference/scale-codec and the subtensor runtime metadata.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

_RAW = re.compile(r"Raw(0|[1-9][0-9]*)")
_MAX_RAW_BYTES = 128
_HASHES = ("BlakeTwo256", "Sha256", "Keccak256", "ShaThree256")
_MAX_SEALED_BYTES, _MAX_BIG_RAW_BYTES = 1024, 512
_FIRST_HASH, _TIMELOCK, _RESET, _BIG_RAW, _REVEAL_FAILED = 130, 134, 135, 136, 137
_SEALED = {"TimelockEncrypted": _TIMELOCK, "TimelockRevealFailed": _REVEAL_FAILED}


class Call(NamedTuple):
    """A call in the form of the client's generated builders."""

    module: str
    function: str
    params: dict[str, Any]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, count: int) -> bytes:
        part = self._data[self._offset : self._offset + count]
        if len(part) != count:
            raise ValueError(f"the call lacks {count - len(part)} bytes")
        self._offset += count
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def compact(self) -> int:
        first = self.number(1)
        size = {0: 0, 1: 1, 2: 3}.get(first & 3)
        if size is None:
            raise ValueError("a length of 2**30 or more")
        return (first + (self.number(size) << 8)) >> 2

    def bounded(self, limit: int) -> str:
        """Read a byte string as 0x-hex. Raises: ValueError above the chain's limit."""
        size = self.compact()
        if size > limit:
            raise ValueError(f"a length of {size}: the limit is {limit}")
        return "0x" + self.take(size).hex()

    def finish(self) -> None:
        if self._offset != len(self._data):
            raise ValueError(f"the call has {len(self._data) - self._offset} extra bytes")


def encode_compact(value: int) -> bytes:
    """Encode a compact integer below 2**30. Raises: ValueError."""
    for mode, size in enumerate((1, 2, 4)):
        if value < 1 << (8 * size - 2):
            return (value << 2 | mode).to_bytes(size, "little")
    raise ValueError("a number of 2**30 or more")


def _blob(value: object) -> bytes:
    """Convert any input of the client's codec: bytes, 0x-hex text, or plain text."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str):
        raise ValueError(f"expected bytes or text, got {type(value).__name__}")
    return bytes.fromhex(value[2:]) if value.startswith("0x") else value.encode()


def _sized(value: object, size: int) -> bytes:
    data = _blob(value)
    if len(data) != size:
        raise ValueError(f"expected {size} bytes, got {len(data)}")
    return data


def _prefixed(value: object) -> bytes:
    data = _blob(value)
    return encode_compact(len(data)) + data


def _encode_field(field: object) -> bytes:
    """Encode a `Data` variant of pallets/commitments/src/types.rs."""
    if field == "None":
        return b"\x00"
    if field == "ResetBondsFlag":
        return bytes([_RESET])
    if not isinstance(field, dict) or len(field) != 1:
        raise ValueError(f"not a commitment field: {field!r}")
    ((variant, value),) = field.items()
    match = _RAW.fullmatch(variant)
    if match and int(match[1]) <= _MAX_RAW_BYTES:
        return bytes([int(match[1]) + 1]) + _sized(value, int(match[1]))
    if variant in _HASHES:
        return bytes([_FIRST_HASH + _HASHES.index(variant)]) + _sized(value, 32)
    if variant in _SEALED:
        return (
            bytes([_SEALED[variant]]) + _prefixed(value["encrypted"]) + int(value["reveal_round"]).to_bytes(8, "little")
        )
    if variant == "BigRaw":
        return bytes([_BIG_RAW]) + _prefixed(value)
    raise ValueError(f'no variant named "{variant}"')


def _decode_field(reader: _Reader) -> object:
    index = reader.number(1)
    if index == 0:
        return "None"
    if index < _FIRST_HASH:
        return {f"Raw{index - 1}": "0x" + reader.take(index - 1).hex()}
    if index < _TIMELOCK:
        return {_HASHES[index - _FIRST_HASH]: "0x" + reader.take(32).hex()}
    if index in _SEALED.values():
        variant = next(name for name, number in _SEALED.items() if number == index)
        encrypted = reader.bounded(_MAX_SEALED_BYTES)
        return {variant: {"encrypted": encrypted, "reveal_round": reader.number(8)}}
    if index == _RESET:
        return "ResetBondsFlag"
    if index == _BIG_RAW:
        return {"BigRaw": reader.bounded(_MAX_BIG_RAW_BYTES)}
    raise ValueError("invalid leading byte")


def _encode_info(info: Any) -> bytes:
    fields = info["fields"]
    return encode_compact(len(fields)) + b"".join(_encode_field(field) for field in fields)


def _decode_info(reader: _Reader) -> dict[str, Any]:
    return {"fields": [_decode_field(reader) for _ in range(reader.compact())]}


def _encode_u16s(values: Any) -> bytes:
    return encode_compact(len(values)) + b"".join(int(value).to_bytes(2, "little") for value in values)


def _unsigned(size: int) -> tuple[Callable[[Any], bytes], Callable[[_Reader], int]]:
    return lambda value: int(value).to_bytes(size, "little"), lambda reader: reader.number(size)


_INFO = (_encode_info, _decode_info)
_U16S = (_encode_u16s, lambda reader: [reader.number(2) for _ in range(reader.compact())])
_BYTES = (_prefixed, lambda reader: "0x" + reader.take(reader.compact()).hex())
_U8, _U16, _U32, _U64, _U128 = (_unsigned(size) for size in (1, 2, 4, 8, 16))

_Codec = tuple[Callable[[Any], bytes], Callable[[_Reader], Any]]
_CALLS: dict[tuple[str, str], tuple[bytes, dict[str, _Codec]]] = {
    ("Commitments", "set_commitment"): (b"\x12\x00", {"netuid": _U16, "info": _INFO}),
    ("SubtensorModule", "set_mechanism_weights"): (
        b"\x07\x77",
        {"netuid": _U16, "mecid": _U8, "dests": _U16S, "weights": _U16S, "version_key": _U64},
    ),
    ("SubtensorModule", "serve_axon"): (
        b"\x07\x04",
        {
            "netuid": _U16,
            "version": _U32,
            "ip": _U128,
            "port": _U16,
            "ip_type": _U8,
            "protocol": _U8,
            "placeholder1": _U8,
            "placeholder2": _U8,
        },
    ),
    ("SubtensorModule", "commit_timelocked_mechanism_weights"): (
        b"\x07\x76",
        {"netuid": _U16, "mecid": _U8, "commit": _BYTES, "reveal_round": _U64, "commit_reveal_version": _U16},
    ),
}


def encode_string(text: str) -> bytes:
    """Encode a SCALE string: its length, then its UTF-8."""
    return _prefixed(text.encode())


def encode_call(module: str, function: str, params: dict[str, Any]) -> bytes:
    """Encode a call. Raises: ValueError for an unknown call or a misfit argument."""
    if (module, function) not in _CALLS:
        raise ValueError(f"the local chain has no call {module}.{function}")
    index, codecs = _CALLS[module, function]
    if params.keys() != codecs.keys():
        raise ValueError(f"{function} takes {', '.join(codecs)}, not {', '.join(params)}")
    try:
        return index + b"".join(encode(params[name]) for name, (encode, _) in codecs.items())
    except (KeyError, TypeError, OverflowError) as exc:
        raise ValueError(f"{function}: {exc}") from exc


def decode_call(data: bytes) -> Call:
    """Decode a call, byte strings as 0x-hex. Raises: ValueError."""
    for (module, function), (index, codecs) in _CALLS.items():
        if data.startswith(index):
            reader = _Reader(data[len(index) :])
            params = {name: decode(reader) for name, (_, decode) in codecs.items()}
            reader.finish()
            return Call(module, function, params)
    raise ValueError("the bytes are not a known call")
