"""The node's WebSocket server: requests, batches and subscriptions.

Source: https://www.jsonrpc.org/specification, and https://polkadot.js.org/docs/substrate/rpc for subscriptions.
"""

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from template.errors import ConfigError
from template.localnet.chain.ledger import Ledger
from template.localnet.node.methods import INVALID_PARAMS, Methods, RpcError
from template.localnet.node.runtime import Runtime

DEFAULT_PORT = 9944
_HOST = "127.0.0.1"
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_POLL_S = 0.05
_PARSE_ERROR, _INVALID_REQUEST = -32700, -32600

# Mainnet's, for clients that estimate times, while blocks are made by hand.
_NOMINAL_BLOCK_TIME_S = 12.0

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
                await asyncio.sleep(_POLL_S)

        return stream()

    def heads(self) -> Updates:
        return self._headers(self._methods.ledger.block)

    def finalized_heads(self) -> Updates:
        return self._headers(self._methods.ledger.finalized)

    async def runtime_versions(self) -> Updates:
        """Stream the only version that there is."""
        yield self._methods.runtime_version()

    async def storage(self, keys: list[str]) -> Updates:
        """Stream the values of keys whenever one changes."""
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
        sent = newest() - 1
        last_hash = ""
        while True:
            head = newest()
            if head < sent or (head == sent and ledger.hash_of(head) != last_hash):
                sent = head - 1
            for block in range(sent + 1, head + 1):
                yield block
            if head > sent:
                sent, last_hash = head, ledger.hash_of(head)
            await asyncio.sleep(_POLL_S)


class Session:
    """One client's connection."""

    def __init__(self, connection: ServerConnection, methods: Methods, subscriptions: Subscriptions) -> None:
        self._connection = connection
        self._methods = methods
        self._subscriptions = subscriptions
        self._streams: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Answer messages until the connection ends."""
        try:
            async for message in self._connection:
                await self._answer(message)
        except ConnectionClosed:
            pass
        finally:
            for stream in self._streams.values():
                stream.cancel()

    async def _answer(self, message: str | bytes) -> None:
        started: list[tuple[str, str, Updates]] = []
        try:
            request = json.loads(message)
        except ValueError:
            answer: Any = _error(None, _PARSE_ERROR, "Parse error")
        else:
            if isinstance(request, list) and request:
                answer = [self._handle(each, started) for each in request]
            else:
                answer = self._handle(request, started)
        await self._connection.send(json.dumps(answer))
        # A client learns the number of its subscription before the first update.
        for number, notification, updates in started:
            self._streams[number] = asyncio.create_task(self._stream(number, notification, updates))

    def _handle(self, request: Any, started: list[tuple[str, str, Updates]]) -> dict[str, Any]:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error(None, _INVALID_REQUEST, "Invalid request")
        number, method, params = request.get("id"), request["method"], request.get("params") or []
        if not isinstance(params, list):
            return _error(number, INVALID_PARAMS, "Invalid params")
        try:
            return {"jsonrpc": "2.0", "id": number, "result": self._result(method, params, started)}
        except RpcError as error:
            return _error(number, error.code, error.message, error.data)

    def _result(self, method: str, params: list[Any], started: list[tuple[str, str, Updates]]) -> Any:
        if method in self._subscriptions.ends:
            stream = self._streams.pop(str(params[0]) if params else "", None)
            if stream is not None:
                stream.cancel()
            return stream is not None
        if method not in self._subscriptions.starts:
            return self._methods.call(method, params)
        start, notification = self._subscriptions.starts[method]
        number = secrets.token_urlsafe(12)
        started.append((number, notification, self._methods.guard(lambda: start(*params))))
        return number

    async def _stream(self, number: str, notification: str, updates: Updates) -> None:
        with suppress(ConnectionClosed):
            async for update in updates:
                params = {"subscription": number, "result": update}
                await self._connection.send(json.dumps({"jsonrpc": "2.0", "method": notification, "params": params}))


def _error(number: Any, code: int, message: str, data: str | None = None) -> dict[str, Any]:
    error = {"code": code, "message": message, **({} if data is None else {"data": data})}
    return {"jsonrpc": "2.0", "id": number, "error": error}


class NodeServer:
    """A node in its own thread, from construction to `close`.

    port: 0 takes a free one. Raises: ConfigError for a port in use, or a file without a local chain.
    """

    def __init__(self, path: Path, port: int = 0) -> None:
        self._path = path
        self._port = port
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="local-node", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise ConfigError(f"the node cannot listen on {_HOST}:{port}: {self._error}") from self._error

    @property
    def url(self) -> str:
        """The value for --subtensor.network."""
        return f"ws://{_HOST}:{self._port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __enter__(self) -> "NodeServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _serve(self) -> None:
        try:
            asyncio.run(self._main())
        except (OSError, ConfigError) as error:
            self._error = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        with Ledger(self._path) as ledger:
            block_time_s = ledger.block_time_s() or _NOMINAL_BLOCK_TIME_S
            methods = Methods(ledger, Runtime(max(1, round(block_time_s * 1000))))
            subscriptions = Subscriptions(methods)
            async with serve(
                lambda connection: Session(connection, methods, subscriptions).run(),
                _HOST,
                self._port,
                max_size=_MAX_MESSAGE_BYTES,
            ) as server:
                self._port = next(iter(server.sockets)).getsockname()[1]
                self._started.set()
                while not self._stop.is_set():
                    methods.pool.maintain()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), _POLL_S)
