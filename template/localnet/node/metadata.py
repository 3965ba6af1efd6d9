"""The runtime's metadata: a recorded one, with one item more and this block time.

`metadata-461.tar.xz` holds versions 14 and 15 of the metadata of runtime 461, byte for byte from the file
tests/fixtures/golden.json of the bittensor 11.3.0 source distribution (PyPI, Apache-2.0), whose authors recorded them
from a local node. The client of that release was generated from a later runtime, 475, and reads one item more when it
sets weights: SubtensorModule.SubnetEpochConsensus. It is added here, so this runtime has the number 475.
Source: https://docs.rs/frame-metadata (v14.rs and v15.rs), for the layout.
"""

import tarfile
from functools import cache
from pathlib import Path

from template.localnet.chain.scale_codec import encode_compact
from template.localnet.faults.type_numbers import reverse_types

SPEC_VERSION = 475
_FILE = Path(__file__).with_name("metadata-461.tar.xz")
_DEFAULT, _MAP, _IDENTITY, _VARIANT = b"\x01", b"\x01", b"\x06", b"\x01"


@cache
def recorded_metadata(version: int) -> bytes:
    """Return the recorded metadata of runtime 461 in version 14 or 15."""
    with tarfile.open(_FILE) as archive:
        file = archive.extractfile(f"v{version}.scale")
        assert file is not None
        return file.read()


@cache
def runtime_metadata(version: int, block_time_ms: int, upgrades: int = 0) -> bytes:
    """Return the metadata of this chain's runtime in version 14 or 15.

    Each upgrade numbers the types anew, and changes nothing else. A runtime before this one, after a negative number of
    upgrades, lacks the item that was added.
    """
    recorded = recorded_metadata(version)
    data = _set_slot_duration(recorded if upgrades < 0 else _add_epoch_consensus(recorded), block_time_ms)
    return reverse_types(data) if upgrades > 0 and upgrades % 2 else data


def _text(value: str) -> bytes:
    return encode_compact(len(value)) + value.encode()


def _read_compact(data: bytes, offset: int) -> tuple[int, int]:
    """Return a compact number below 2**30 and the offset behind it."""
    size = {0: 1, 1: 2, 2: 4}[data[offset] & 3]
    return int.from_bytes(data[offset : offset + size], "little") >> 2, offset + size


def _add_to_vector(data: bytes, offset: int) -> tuple[bytes, int]:
    """Count one element more in the vector at `offset`.

    Returns the data and the offset of the vector's first element.
    """
    count, start = _read_compact(data, offset)
    grown = encode_compact(count + 1)
    return data[:offset] + grown + data[start:], offset + len(grown)


def _add_epoch_consensus(data: bytes) -> bytes:
    """Add the item SubnetEpochConsensus, a map from netuid to an enum."""
    # The number of pallets takes one byte.
    end_of_types = _first_pallet(data) - 1
    new_type, _ = _read_compact(data, 5)
    variants = [
        _text(name) + encode_compact(0) + bytes([index]) + encode_compact(0)
        for index, name in enumerate(("Yuma", "Null"))
    ]
    path = encode_compact(1) + _text("EpochConsensus")
    enum = path + encode_compact(0) + _VARIANT + encode_compact(len(variants)) + b"".join(variants) + encode_compact(0)
    data = data[:end_of_types] + encode_compact(new_type) + enum + data[end_of_types:]
    data, _ = _add_to_vector(data, 5)
    name = _text("SubtensorModule")
    data, first_item = _add_to_vector(data, data.index(name + b"\x01" + name) + 2 * len(name) + 1)
    key_type = _netuid_type(data)
    hashers = encode_compact(1) + _IDENTITY
    types = hashers + encode_compact(key_type) + encode_compact(new_type)
    item = _text("SubnetEpochConsensus") + _DEFAULT + _MAP + types + encode_compact(1) + b"\x00" + encode_compact(0)
    return data[:first_item] + item + data[first_item:]


def _first_pallet(data: bytes) -> int:
    """Return the offset of the first pallet, System; the types end before it."""
    return data.index(_text("System") + b"\x01" + _text("System"))


def _netuid_type(data: bytes) -> int:
    """Return the type of a netuid, the key of the map Tempo."""
    head = _text("Tempo") + _DEFAULT + _MAP + encode_compact(1) + _IDENTITY
    return _read_compact(data, data.index(head) + len(head))[0]


def _set_slot_duration(data: bytes, block_time_ms: int) -> bytes:
    """Set the constant Aura.SlotDuration, which clients take for the block time."""
    name = _text("SlotDuration")
    _, length = _read_compact(data, data.index(name, _first_pallet(data)) + len(name))
    _, start = _read_compact(data, length)
    return data[:start] + block_time_ms.to_bytes(8, "little") + data[start + 8 :]
