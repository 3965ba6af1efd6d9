"""The state of a block as a node stores it: encoded values by storage key."""

from collections import OrderedDict
from typing import Any

from template.localnet.chain.ledger import Ledger
from template.localnet.node.events import block_events, count_extrinsics
from template.localnet.node.items import ITEMS, BlockView, Values, account_info
from template.localnet.node.runtime import Runtime

# The runtime's System.BlockHashCount: the hashes of past blocks that a state holds.
BLOCK_HASH_COUNT = 2400
_MAX_CACHED_ITEMS = 256
_PREFIX_BYTES = 32


class StateReader:
    """Reads the storage of any block by key.

    A whole item is encoded at its first read in a block, because clients read maps as a whole.
    """

    def __init__(self, ledger: Ledger, runtime: Runtime) -> None:
        self._ledger = ledger
        self._runtime = runtime
        self._cache: OrderedDict[tuple[str, str, str], dict[bytes, bytes]] = OrderedDict()
        self._are_events_hidden = False

    def hide_events(self, is_hidden: bool) -> None:
        """Leave the events of signed extrinsics out of every block, or show them again."""
        self._are_events_hidden = is_hidden
        self._cache.clear()

    def value(self, key: bytes, block: int) -> bytes | None:
        """Return the stored bytes of a key, None without a value."""
        item = self._runtime.item_of(key)
        if item is None:
            return None
        if item == ("System", "BlockHash"):
            return self._block_hash(key, block)
        stored = self._entries(item, block).get(key)
        if stored is None and item == ("System", "Account") and len(key) > _PREFIX_BYTES:
            return self._account(key, block)
        return stored

    def keys(self, prefix: bytes, block: int) -> list[bytes]:
        """List the keys that begin with a prefix, in order."""
        items = [self._runtime.item_of(prefix)] if len(prefix) >= _PREFIX_BYTES else self._runtime.items_below(prefix)
        candidates = (key for item in items if item is not None for key in self._entries(item, block))
        return sorted(key for key in candidates if key.startswith(prefix))

    def _entries(self, item: tuple[str, str], block: int) -> dict[bytes, bytes]:
        """Return every key of an item with its value."""
        name = (self._ledger.hash_of(block), *item)
        if name not in self._cache:
            self._cache[name] = self._encode(item, self._read(item, block))
            if len(self._cache) > _MAX_CACHED_ITEMS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(name)
        return self._cache[name]

    def _read(self, item: tuple[str, str], block: int) -> Values:
        if item == ("System", "ParentHash"):
            return {(): self._ledger.header(block).parent_hash}
        if item == ("System", "Events"):
            return {(): self._events(block)}
        if item == ("System", "EventCount"):
            return {(): len(self._events(block))}
        if item == ("System", "ExtrinsicCount"):
            return {(): count_extrinsics(self._ledger, block)}
        return ITEMS[item](BlockView(self._ledger, block)) if item in ITEMS else {}

    def _events(self, block: int) -> list[Any]:
        events = block_events(self._ledger, self._runtime, block)
        return events[:1] if self._are_events_hidden else events

    def _encode(self, item: tuple[str, str], values: Values) -> dict[bytes, bytes]:
        entry = self._runtime.codec.storage_entry(*item)
        keys = self._runtime.codec.storage_key_batch(entry, [list(key) for key in values])
        encoded = [self._runtime.encode(entry.value_type, value) for value in values.values()]
        return dict(zip(keys, encoded, strict=True))

    def _block_hash(self, key: bytes, block: int) -> bytes | None:
        entry = self._runtime.codec.storage_entry("System", "BlockHash")
        (number,) = self._runtime.codec.decode_storage_key_params(entry, key, fixed=0)
        is_stored = max(0, block - BLOCK_HASH_COUNT) <= number < block
        return bytes.fromhex(self._ledger.hash_of(number)[2:]) if is_stored else None

    def _account(self, key: bytes, block: int) -> bytes:
        entry = self._runtime.codec.storage_entry("System", "Account")
        (account,) = self._runtime.codec.decode_storage_key_params(entry, key, fixed=0)
        return self._runtime.encode(entry.value_type, account_info(self._ledger.at(block), account))
