"""Streams of updates: new blocks, changed values, the statuses of an extrinsic.

Source: https://polkadot.js.org/docs/substrate/rpc for the methods of subscriptions.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from template.localnet.node.methods import Methods

POLL_S = 0.05

Updates = AsyncIterator[Any]


class Subscriptions:
    """Streams of updates by the method that subscribes to them."""

    def __init__(self, methods: Methods) -> None:
        self._methods = methods
        # Method: the stream's function, and the method of its notifications.
        self.starts: dict[str, tuple[Callable[..., Updates], str]] = {
            "author_submitAndWatchExtrinsic": (self.watch, "author_extrinsicUpdate"),
            "chain_subscribeAllHeads": (self.heads, "chain_allHead"),
            "chain_subscribeFinalizedHeads": (self.finalized_heads, "chain_finalizedHead"),
            "chain_subscribeNewHead": (self.heads, "chain_newHead"),
            "chain_subscribeNewHeads": (self.heads, "chain_newHead"),
            "state_subscribeRuntimeVersion": (self.runtime_versions, "state_runtimeVersion"),
            "state_subscribeStorage": (self.storage, "state_storage"),
        }
        self.ends = {
            "author_unwatchExtrinsic",
            "chain_unsubscribeAllHeads",
            "chain_unsubscribeFinalizedHeads",
            "chain_unsubscribeNewHead",
            "chain_unsubscribeNewHeads",
            "state_unsubscribeRuntimeVersion",
            "state_unsubscribeStorage",
        }
        methods.names |= {*self.starts, *self.ends}

    def watch(self, data: str) -> Updates:
        """Submit an extrinsic; stream its statuses. Raises: PoolError."""
        transaction = self._methods.pool.submit(bytes.fromhex(data.removeprefix("0x")))

        async def stream() -> Updates:
            sent = 0
            while True:
                for status in transaction.statuses[sent:]:
                    yield status
                    sent += 1
                if transaction.is_ended:
                    return
                await asyncio.sleep(POLL_S)

        return stream()

    def heads(self) -> Updates:
        return self._headers(self._methods.ledger.block)

    def finalized_heads(self) -> Updates:
        return self._headers(self._methods.ledger.finalized)

    async def runtime_versions(self) -> Updates:
        """Stream the newest version whenever it changes."""
        last = None
        async for _ in self._blocks(self._methods.ledger.block):
            version = self._methods.runtime_version()
            if version != last:
                yield version
            last = version

    def storage(self, keys: list[str]) -> Updates:
        """Stream the values of keys whenever one changes.

        Raises: TypeError, ValueError for a wrong key.
        """
        self._methods.changes(keys, self._methods.ledger.block())
        return self._changes(keys)

    async def _changes(self, keys: list[str]) -> Updates:
        last: Any = None
        async for block in self._blocks(self._methods.ledger.block):
            update = self._methods.changes(keys, block)
            changed = [pair for pair in update["changes"] if last is None or pair not in last]
            if changed:
                yield {**update, "changes": changed}
            last = update["changes"]

    async def _headers(self, newest: Callable[[], int]) -> Updates:
        async for block in self._blocks(newest):
            yield self._methods.header(block)

    async def _blocks(self, newest: Callable[[], int]) -> AsyncIterator[int]:
        """Stream the numbers of new blocks, after the newest one; after a reorganisation those of the new fork."""
        ledger = self._methods.ledger
        sent, sent_hash = newest() - 1, ""
        while True:
            head = newest()
            if sent > head or (sent_hash and ledger.hash_of(sent) != sent_hash):
                sent, sent_hash = min(sent, head) - 1, ""
            if head > sent:
                sent, sent_hash = sent + 1, ledger.hash_of(sent + 1)
                yield sent
            else:
                await asyncio.sleep(POLL_S)
