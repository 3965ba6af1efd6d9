"""One client's connection: requests, batches, subscriptions and injected faults.

Source: https://www.jsonrpc.org/specification.
"""

import asyncio
import json
import secrets
from contextlib import suppress
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from template.localnet.chain.ledger import ChainFault
from template.localnet.faults.answers import Ending, Message, Reply
from template.localnet.node.methods import INVALID_PARAMS, Methods, RpcError
from template.localnet.node.subscriptions import Subscriptions, Updates

_PARSE_ERROR, _INVALID_REQUEST, _INTERNAL_ERROR = -32700, -32600, -32603
_WRITES, _ADMIN = "author_submit", "localnet_"


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
        fault, reply = None, None
        try:
            request = json.loads(message)
        except ValueError:
            answer: Any = _error(None, _PARSE_ERROR, "Parse error")
        else:
            fault = await self._fault(request)
            if fault is ChainFault.ERROR:
                answer = _error(request.get("id"), _INTERNAL_ERROR, "the node failed (injected fault)")
            elif isinstance(request, list) and request:
                answer = [self._handle(each, started) for each in request]
            else:
                answer = self._handle(request, started)
                reply = self._wrong_reply(request, answer)
        if fault is ChainFault.LOSE_ANSWER:
            self._connection.transport.abort()
        await self._send(reply or Reply((json.dumps(answer),)))
        # A client learns the number of its subscription before the first update.
        for number, notification, updates in started:
            self._streams[number] = asyncio.create_task(self._stream(number, notification, updates))

    async def _fault(self, request: Any) -> ChainFault | None:
        """Apply a fault of `LocalChain.set_fault`; return the one that changes the answer."""
        method = _method_of(request)
        if not method or method.startswith(_ADMIN):
            return None
        kind = "write" if method.startswith(_WRITES) else "read"
        fault = self._methods.ledger.take_fault(kind)
        if fault is ChainFault.HANG:
            await asyncio.Event().wait()
        if fault is ChainFault.DISCONNECT:
            self._connection.transport.abort()
        return fault

    def _wrong_reply(self, request: Any, answer: Message) -> Reply | None:
        method = _method_of(request)
        return None if method.startswith(_ADMIN) else self._methods.answer_faults.reply(method, answer)

    async def _send(self, reply: Reply) -> None:
        """Send every frame, and end the connection as the reply says."""
        if reply.ending is Ending.DROPPED_IN_FRAME:
            data = Frame(Opcode.TEXT, "".join(map(str, reply.frames)).encode()).serialize(mask=False)
            self._connection.transport.write(data[: len(data) // 2])
        else:
            for frame in reply.frames:
                await self._connection.send(frame)
        if reply.ending is Ending.CLOSED:
            await self._connection.close()
        elif reply.ending is not Ending.OPEN:
            self._connection.transport.abort()

    def _handle(self, request: Any, started: list[tuple[str, str, Updates]]) -> dict[str, Any]:
        if not _method_of(request):
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
                message = {"jsonrpc": "2.0", "method": notification, "params": params}
                wrong = self._methods.answer_faults.reply(notification, message)
                await self._send(wrong or Reply((json.dumps(message),)))


def _method_of(request: Any) -> str:
    """Return the method of a request, empty without one."""
    method = request.get("method") if isinstance(request, dict) else None
    return method if isinstance(method, str) else ""


def _error(number: Any, code: int, message: str, data: str | None = None) -> dict[str, Any]:
    error = {"code": code, "message": message, **({} if data is None else {"data": data})}
    return {"jsonrpc": "2.0", "id": number, "error": error}
