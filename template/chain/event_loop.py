"""An event loop on a thread, to run coroutines under a deadline.

The bittensor client has no deadline of its own per call. The thread is a daemon, so that a coroutine that blocks the
loop holds up neither the caller nor the exit of the process.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_CLOSE_S = 2.0
# The task of bittensor's RpcSession that receives messages. When it fails, the session's requests never end.
_RECEIVER = "rpc-session"
_GRACE_S = 1.0


class EventLoopThread:
    """A running event loop with one connection; used until its first failure.

    `connect` is awaited before each operation, so it must be idempotent; `close` at the end, for two seconds at most.
    """

    def __init__(self, connect: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]) -> None:
        self._connect = connect
        self._disconnect = close
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="chain-client", daemon=True)
        self._thread.start()
        self._started.wait()

    def run(self, operation: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        """Run an operation; cancel it after `timeout_s`. Raises: TimeoutError."""
        future = asyncio.run_coroutine_threadsafe(self._connect_and_run(operation), self._loop)
        try:
            return future.result(timeout_s)
        finally:
            # Also when the caller is interrupted. No effect on a finished future.
            future.cancel()

    def close(self) -> None:
        """Stop the loop and its tasks; return within seconds even if they do not end."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(2 * _CLOSE_S)

    async def _connect_and_run(self, operation: Callable[[], Awaitable[T]]) -> T:
        await self._connect()
        receivers = _receivers()
        running = asyncio.ensure_future(operation())
        try:
            await asyncio.wait([running, *receivers], return_when=asyncio.FIRST_COMPLETED)
            # The client fails the operation itself, unless its receiver ended by an unexpected message.
            await asyncio.wait([running], timeout=_GRACE_S if any(task.done() for task in receivers) else None)
            if not running.done():
                errors = [repr(task.exception()) for task in receivers if task.done() and not task.cancelled()]
                raise ConnectionError(f"the connection ended without an answer: {', '.join(errors)}")
            return running.result()
        finally:
            running.cancel()

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._main())

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._started.set()
        await self._stop.wait()
        # The connection ends with the loop in any case.
        with suppress(Exception):
            await asyncio.wait_for(self._end_connection(), _CLOSE_S)
        # The client leaks the socket of a connection that was cancelled while it opened.
        for transport in list(getattr(self._loop, "_transports", {}).values()):
            transport.abort()

    async def _end_connection(self) -> None:
        # The client cancels its receiver once, and Python 3.11 loses a cancellation that meets a message.
        for task in _receivers():
            while not task.done():
                task.cancel()
                await asyncio.sleep(0)
        await self._disconnect()


def _receivers() -> list["asyncio.Task[object]"]:
    return [task for task in asyncio.all_tasks() if task.get_name() == _RECEIVER]
