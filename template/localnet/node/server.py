"""The node's WebSocket server, in a thread of its own."""

import asyncio
import http
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from template.errors import ConfigError
from template.localnet.chain.ledger import ChainFault, Ledger
from template.localnet.faults.node_chain import NodeChain
from template.localnet.node.methods import Methods
from template.localnet.node.runtime import get_runtime
from template.localnet.node.session import Session
from template.localnet.node.subscriptions import POLL_S, Subscriptions

_HOST = "127.0.0.1"
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# Mainnet's, for clients that estimate times, while blocks are made by hand.
_NOMINAL_BLOCK_TIME_S = 12.0


async def _refuse(ledger: Ledger, connection: ServerConnection) -> Response | None:
    """Apply a fault of a connection; return None to accept it."""
    fault = ledger.take_fault("connect")
    if fault is ChainFault.HANG:
        await asyncio.Event().wait()
    if fault is ChainFault.DISCONNECT:
        connection.transport.abort()
    if fault is ChainFault.ERROR:
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "the node failed (injected fault)")
    return None


class NodeServer:
    """A node in its own thread, from construction to `close`.

    port: 0 takes a free one. Raises: ConfigError for a port that cannot be used, or a file without a local chain.
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
        except (OSError, OverflowError, ConfigError) as error:
            self._error = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        with NodeChain(self._path) as ledger:
            block_time_s = ledger.block_time_s() or _NOMINAL_BLOCK_TIME_S
            methods = Methods(ledger, get_runtime(max(1, round(block_time_s * 1000))))
            subscriptions = Subscriptions(methods)

            async def refuse(connection: ServerConnection, _: Request) -> Response | None:
                return await _refuse(ledger, connection)

            server = await serve(
                lambda connection: Session(connection, methods, subscriptions).run(),
                _HOST,
                self._port,
                max_size=_MAX_MESSAGE_BYTES,
                process_request=refuse,
            )
            self._port = next(iter(server.sockets)).getsockname()[1]
            self._started.set()
            while not self._stop.is_set():
                methods.pool.maintain()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), POLL_S)
            # Aborted, because a connection may hang by an injected fault.
            for connection in list(server.handlers):
                connection.transport.abort()
            server.close()
            await asyncio.sleep(0)
