"""The runtime of a local chain: its codec, types, storage keys and error numbers.

Encoding is the bittensor client's own codec over the runtime's metadata. A value may leave out fields that the local
chain has no rules for; they get the value that a new chain has: zero, empty, none, or an enum's first variant.
"""

from functools import cache
from typing import Any

from template.chain.client import bt
from template.localnet.node.metadata import SPEC_VERSION, runtime_metadata

SPEC_NAME = "node-subtensor"
TRANSACTION_VERSION = 1
SS58_FORMAT = 42

# The address of the public key zero, which the chain stores for no account.
ZERO_ACCOUNT = "5C4hrfjw9DjXZTzV3MwzrrAr9P1MJhSrvWGWqi1eSuyUpnhM"

_PREFIX_BYTES = 32


class _Absent:
    """The mark of a value that is not given; None is a value."""


_ABSENT = _Absent()


class Runtime:
    """Encodes values as the chain does, by the runtime's metadata."""

    def __init__(self, block_time_ms: int) -> None:
        self.block_time_ms = block_time_ms
        self.codec = bt._transport.codec.RuntimeCodec(
            self.metadata(15),
            spec_version=SPEC_VERSION,
            transaction_version=TRANSACTION_VERSION,
            spec_name=SPEC_NAME,
            ss58_format=SS58_FORMAT,
        )
        self._types = {entry["id"]: entry["type"] for entry in self.codec.registry_types()}
        self._items: dict[bytes, tuple[str, str]] = {}
        self._errors: dict[tuple[str, str], tuple[int, int]] = {}
        for pallet in self.codec.metadata_ir().pallets:
            for item in pallet.storage:
                entry = self.codec.storage_entry(pallet.name, item.name)
                self._items[bytes(self.codec.storage_key(entry, []))] = (pallet.name, item.name)
            for error in pallet.errors:
                self._errors[pallet.name, error.name] = (pallet.index, error.index)

    def metadata(self, version: int, upgrades: int = 0) -> bytes:
        """Return the metadata in version 14 or 15, after so many upgrades."""
        return runtime_metadata(version, self.block_time_ms, upgrades)

    def item_of(self, key: bytes) -> tuple[str, str] | None:
        """Return the pallet and the name of the storage item of a key."""
        return self._items.get(key[:_PREFIX_BYTES])

    def items_below(self, prefix: bytes) -> list[tuple[str, str]]:
        """List the storage items of a prefix shorter than an item's."""
        return [item for key, item in self._items.items() if key.startswith(prefix)]

    def dispatch_error(self, pallet: str, name: str) -> dict[str, Any] | str:
        """Return the DispatchError of a pallet's error, by its numbers.

        An error of a later runtime than this metadata's is "Other".
        """
        if (pallet, name) not in self._errors:
            return "Other"
        index, error = self._errors[pallet, name]
        return {"Module": {"index": index, "error": "0x" + bytes([error, 0, 0, 0]).hex()}}

    def encode(self, type_string: str, value: Any) -> bytes:
        """Encode a value, completed, as `scale_info::N`. Raises: ValueError."""
        return bytes(self.codec.encode(type_string, self._complete(_type_id(type_string), value)))

    def default(self, type_string: str) -> bytes:
        """Encode the value that a new chain has for a type."""
        return bytes(self.codec.encode(type_string, self._complete(_type_id(type_string), _ABSENT)))

    def _complete(self, type_id: int, value: Any) -> Any:
        """Return `value` with every field of its type."""
        described = self._types[type_id]
        ((kind, shape),) = described["def"].items()
        if kind == "composite":
            return self._complete_fields(described, shape.get("fields", []), value)
        if kind == "variant":
            return self._complete_variant(described, shape.get("variants", []), value)
        if kind == "compact":
            return self._complete(shape["type"], value)
        if kind == "tuple":
            values = [_ABSENT] * len(shape) if value is _ABSENT else value
            return tuple(self._complete(part, each) for part, each in zip(shape, values, strict=True))
        if kind == "sequence":
            if isinstance(value, list | tuple):
                return [self._complete(shape["type"], each) for each in value]
            return [] if value is _ABSENT else value
        if value is not _ABSENT:
            return value
        if kind == "array":
            return [self._complete(shape["type"], _ABSENT)] * shape["len"]
        return {"bool": False, "str": ""}.get(shape, 0) if kind == "primitive" else []

    def _complete_fields(self, described: Any, fields: list[Any], value: Any) -> Any:
        """Complete a struct; one with a single field without a name is that field."""
        if described.get("path", [""])[-1] == "AccountId32":
            return ZERO_ACCOUNT if value is _ABSENT else value
        if described.get("path") == ["BTreeMap"]:
            return {} if value is _ABSENT else value
        if len(fields) == 1 and "name" not in fields[0]:
            inner = self._complete(fields[0]["type"], value)
            # The codec takes a list with one entry for a struct with one field, only in this type.
            return [inner] if described.get("path") == ["BTreeSet"] else inner
        if fields and "name" not in fields[0]:
            values = [_ABSENT] * len(fields) if value is _ABSENT else value
            return tuple(self._complete(field["type"], each) for field, each in zip(fields, values, strict=True))
        given = {} if value is _ABSENT else value
        if unknown := given.keys() - {field["name"] for field in fields}:
            raise ValueError(f"{described.get('path')} has no field {', '.join(sorted(unknown))}")
        return {field["name"]: self._complete(field["type"], given.get(field["name"], _ABSENT)) for field in fields}

    def _complete_variant(self, described: Any, variants: list[Any], value: Any) -> Any:
        if described.get("path") == ["Option"]:
            inner = variants[1]["fields"][0]["type"]
            return None if value is _ABSENT or value is None else self._complete(inner, value)
        if isinstance(value, dict):
            ((name, content),) = value.items()
            (variant,) = (each for each in variants if each["name"] == name)
            fields = variant.get("fields", [])
            # A tuple's fields are completed together, or alone if there is one.
            return {name: self._complete_fields(variant, fields, content) if fields else content}
        if value is not _ABSENT:
            return value
        first = min(variants, key=lambda variant: variant["index"])
        fields = first.get("fields", [])
        return {first["name"]: self._complete_fields(first, fields, _ABSENT)} if fields else first["name"]


@cache
def get_runtime(block_time_ms: int) -> Runtime:
    """Return the runtime of a block time, loaded once."""
    return Runtime(block_time_ms)


def _type_id(type_string: str) -> int:
    return int(type_string.removeprefix("scale_info::"))
