"""A relay between a client and a node that counts bytes and messages on the wire."""

import asyncio
import threading
from collections.abc import Generator
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from websockets.frames import OP_BINARY, OP_TEXT
from websockets.streams import StreamReader

_CHUNK_BYTES = 2**16
_MAX_LINE_BYTES = 2**13
# Lengths of a frame that stand for a longer number, and its size.
_LENGTH_BYTES = {126: 2, 127: 8}


class Traffic(NamedTuple):
    """What has passed since the relay started. Bytes are those of the TCP streams."""

    requests: int
    answers: int
    sent_bytes: int
    received_bytes: int

    def since(self, earlier: "Traffic") -> "Traffic":
        return Traffic(*(now - then for now, then in zip(self, earlier, strict=True)))


class _Meter:
    """One direction of a connection: a handshake of HTTP, then frames, see RFC 6455."""

    def __init__(self) -> None:
        self.messages = self.bytes = 0
        self._stream = StreamReader()
        self._parser = self._parse()
        next(self._parser)

    def feed(self, data: bytes) -> None:
        self.bytes += len(data)
        self._stream.feed_data(data)
        next(self._parser)

    def _parse(self) -> Generator[None, None, None]:
        while (yield from self._stream.read_line(_MAX_LINE_BYTES)) != b"\r\n":
            pass
        while True:
            first, second = yield from self._stream.read_exact(2)
            length = second & 0x7F
            if length in _LENGTH_BYTES:
                length = int.from_bytes((yield from self._stream.read_exact(_LENGTH_BYTES[length])))
            yield from self._stream.read_exact(length + (4 if second & 0x80 else 0))
            # Neither a continuation nor a control frame begins a message.
            self.messages += first & 0x0F in (OP_TEXT, OP_BINARY)


class Relay:
    """Passes connections on to the node of a url, in a thread of its own."""

    def __init__(self, url: str) -> None:
        self._node = urlsplit(url)
        self._meters: list[tuple[_Meter, _Meter]] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="relay", daemon=True)
        self._thread.start()
        self._started.wait()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    @property
    def traffic(self) -> Traffic:
        up, down = zip(*self._meters, strict=True) if self._meters else ((), ())
        return Traffic(
            requests=sum(meter.messages for meter in up),
            answers=sum(meter.messages for meter in down),
            sent_bytes=sum(meter.bytes for meter in up),
            received_bytes=sum(meter.bytes for meter in down),
        )

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node_reader, node_writer = await asyncio.open_connection(self._node.hostname, self._node.port)
        up, down = _Meter(), _Meter()
        self._meters.append((up, down))
        # The relay ends before its connections do.
        with suppress(asyncio.CancelledError, ConnectionError):
            await asyncio.gather(_copy(reader, node_writer, up), _copy(node_reader, writer, down))


async def _copy(source: Any, target: Any, meter: _Meter) -> None:
    while data := await source.read(_CHUNK_BYTES):
        meter.feed(data)
        target.write(data)
        await target.drain()
    target.close()
