"""An event loop on a thread of its own, so that synchronous code can run coroutines under a deadline.

A session is thrown away whole after a failure: its thread is a daemon, so that not even a coroutine that blocks the
loop for ever can hold the caller or the process.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_CLOSE_S = 2.0


class EventLoopThread:
    """A running loop and a connection on it.

    connect: awaited before each operation, so it must be idempotent. close: awaited when the session ends, for two
    seconds at most.
    """

    def __init__(self, connect: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]) -> None:
        self._connect = connect
        self._disconnect = close
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="chain-session", daemon=True)
        self._thread.start()
        self._started.wait()

    def run(self, operation: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        """What the operation returns or raises. Raises: TimeoutError after `timeout_s`, and then it is cancelled."""
        future = asyncio.run_coroutine_threadsafe(self._connected(operation), self._loop)
        try:
            return future.result(timeout_s)
        finally:
            # Also when the caller is interrupted; a finished future takes no notice.
            future.cancel()

    def close(self) -> None:
        """Ends the loop and whatever still runs on it; returns within seconds even when that does not end."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(2 * _CLOSE_S)

    async def _connected(self, operation: Callable[[], Awaitable[T]]) -> T:
        await self._connect()
        return await operation()

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._main())

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._started.set()
        await self._stop.wait()
        # Closing is a courtesy to the other side: the connection goes away with the loop in any case.
        with suppress(Exception):
            await asyncio.wait_for(self._disconnect(), _CLOSE_S)
        # A connection that was cancelled while it opened is forgotten by the client, socket and all.
        for transport in list(getattr(self._loop, "_transports", {}).values()):
            transport.abort()
