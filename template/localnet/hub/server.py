"""A local Hub on the loopback interface, for the unmodified huggingface_hub.

Its address is the value for HF_ENDPOINT. A token `hf_local_NAME` acts as NAME, and `hf_read_NAME` reads as NAME. The
bytes of large files come from a second origin, which is another port.
"""

import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self, cast

from loguru import logger

from template.errors import ConfigError
from template.localnet.hub.api import respond, respond_from_storage
from template.localnet.hub.messages import FileSlice, Request, Response
from template.localnet.hub.store import HubStore

_HOST = "127.0.0.1"
_MAX_BODY_BYTES = 256 * 2**20
CHUNK_BYTES = 2**18
_IDLE_TIMEOUT_S = 120.0


class HubServer:
    """A hub over `root` on threads of its own, until `close`.

    port: 0 takes a free one. Raises: ConfigError for one that cannot be used.
    """

    def __init__(self, root: Path, port: int = 0, *, handler: "type[HubHandler] | None" = None) -> None:
        self.store = HubStore(root)
        storage = _Http(self.store, 0, handler or HubHandler, storage=None)
        try:
            hub = _Http(self.store, port, handler or HubHandler, storage=storage)
        except (OSError, OverflowError) as error:
            storage.server_close()
            raise ConfigError(f"the Hub cannot listen on {_HOST}:{port}: {error}") from error
        self.endpoint, self.storage = hub.endpoint, storage.endpoint
        self._servers = (hub, storage)
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.01,), name="hub-server", daemon=True)
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop serving and drop the connections that clients keep open."""
        for server in self._servers:
            server.stop()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, store: HubStore, port: int, handler: "type[HubHandler]", storage: "_Http | None") -> None:
        """Listen. storage: the second origin; None for that origin itself."""
        super().__init__((_HOST, port), handler)
        self.store = store
        self.storage = storage
        self.is_closing = threading.Event()
        self.endpoint = f"http://{_HOST}:{self.server_port}"
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()

    def stop(self) -> None:
        if self.is_closing.is_set():
            return
        self.is_closing.set()
        self.shutdown()
        self.server_close()
        self.drop_connections()

    def track(self, connection: socket.socket) -> None:
        with self._connections_lock:
            self._connections.add(connection)
        if self.is_closing.is_set():
            self.drop_connections()

    def untrack(self, connection: socket.socket) -> None:
        with self._connections_lock:
            self._connections.discard(connection)

    def drop_connections(self) -> None:
        with self._connections_lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        # Faults make clients disconnect; the default would print a traceback.
        if not isinstance(sys.exception(), OSError):
            logger.exception("the local hub failed a request")


class HubHandler(BaseHTTPRequestHandler):
    """Handler of one request; a subclass may override `deliver`."""

    protocol_version = "HTTP/1.1"
    server_version = "LocalHub"
    timeout = _IDLE_TIMEOUT_S
    disable_nagle_algorithm = True
    wbufsize = CHUNK_BYTES

    @property
    def hub(self) -> _Http:
        return cast(_Http, self.server)

    def setup(self) -> None:
        super().setup()
        self.hub.track(self.connection)

    def finish(self) -> None:
        self.hub.untrack(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        body = self._read_body()
        if body is None:
            return
        request = Request(
            method=self.command,
            target=self.path,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
            endpoint=self.hub.endpoint,
            storage=self.hub.storage.endpoint if self.hub.storage else self.hub.endpoint,
        )
        self.deliver(request)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def deliver(self, request: Request) -> None:
        self.send(self.respond(request))

    def respond(self, request: Request) -> Response:
        return (respond if self.hub.storage else respond_from_storage)(self.hub.store, request)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug("local hub: " + format.replace("%s", "{}").replace("%d", "{}"), *args)

    def _read_body(self) -> bytes | None:
        """Read the request's body; None after refusing it, which ends the connection."""
        declared = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not declared.isascii() or not declared.isdigit():
            status = 411
        elif len(declared) > 12 or int(declared) > _MAX_BODY_BYTES:
            status = 413
        else:
            body = self.rfile.read(int(declared))
            return body if len(body) == int(declared) else None
        self.close_connection = True
        self.send(Response(status=status, headers={"Connection": "close"}))
        return None

    def send(self, response: Response) -> None:
        self.hub.is_closing.wait(response.delay_s)
        if response.is_chunked:
            self.start(response.status, [*response.headers.items(), ("Transfer-Encoding", "chunked")])
        else:
            self.start_sized(response)
        if self.command != "HEAD":
            for chunk in read_chunks(response.body):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if response.is_chunked else chunk)
            self.wfile.write(b"0\r\n\r\n" if response.is_chunked else b"")
        self.wfile.flush()

    def start_sized(self, response: Response) -> None:
        self.start(response.status, [*response.headers.items(), ("Content-Length", str(response.length))])

    def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()


def read_chunks(body: bytes | FileSlice) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    with body.path.open("rb") as file:
        file.seek(body.start)
        left = body.length
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk
