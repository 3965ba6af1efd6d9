"""A local Hub: speaks the Hub's HTTP API to the unmodified huggingface_hub client, at HF_ENDPOINT.

    python -m template.localnet.hub.server --root DIR --port 8080

The content under DIR is `hub_store`'s, the answers are `hub_api`'s, and what may go wrong on purpose is
`hub_faults`'. Here they meet a socket, on the loopback interface only. A token `hf_local_NAME` acts as NAME.
"""

import argparse
import gzip
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import cast

from loguru import logger

from template.errors import ConfigError
from template.localnet.hub.api import FileSlice, Request, Response, respond
from template.localnet.hub.faults import FaultKind, HubFault, take_fault
from template.localnet.hub.store import HubStore

_HOST = "127.0.0.1"
_MAX_BODY_BYTES = 256 * 2**20
_CHUNK_BYTES = 2**18
_IDLE_TIMEOUT_S = 120.0


class HubServer:
    """A hub over `root`, serving from threads of its own until `close`; also a context manager.

    port 0 takes a free one; `endpoint` is what HF_ENDPOINT should be.
    """

    def __init__(self, root: Path, port: int = 0) -> None:
        self.store = HubStore(root)
        self._http = _Http(self.store, port)
        self.endpoint = self._http.endpoint
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="hub-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and drop every open connection, which clients keep for their next request; once is enough."""
        if self._http.is_closing.is_set():
            return
        self._http.is_closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._http.drop_connections()
        self._thread.join()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, store: HubStore, port: int) -> None:
        super().__init__((_HOST, port), _Handler)
        self.store = store
        self.is_closing = threading.Event()
        self.endpoint = f"http://{_HOST}:{self.server_port}"
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()

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
        # A client that goes away in mid-answer is what the faults are for; the default prints a traceback.
        error = sys.exception()
        if not isinstance(error, OSError):
            logger.opt(exception=error).error("the local hub failed a request")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "LocalHub"
    timeout = _IDLE_TIMEOUT_S
    disable_nagle_algorithm = True
    wbufsize = _CHUNK_BYTES

    @property
    def _http(self) -> _Http:
        return cast(_Http, self.server)

    def setup(self) -> None:
        super().setup()
        self._http.track(self.connection)

    def finish(self) -> None:
        self._http.untrack(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:
        logger.debug("local hub: " + format.replace("%s", "{}").replace("%d", "{}"), *args)

    def _serve(self) -> None:
        body = self._read_body()
        if body is None:
            return
        call = Request(
            method=self.command,
            target=self.path,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
            endpoint=self._http.endpoint,
        )
        fault = take_fault(self._http.store.root, f"{self.command} {self.path}")
        if fault is not None and fault.kind is FaultKind.LATENCY:
            self._http.is_closing.wait(fault.seconds)
            fault = None
        found = respond(self._http.store, call)
        if fault is None:
            self._send(found)
        else:
            self._send_faulty(found, fault)

    def _read_body(self) -> bytes | None:
        """The request's body, or None when it was refused unread, which ends the connection."""
        declared = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not declared.isascii() or not declared.isdigit():
            status = 411
        elif len(declared) > 12 or int(declared) > _MAX_BODY_BYTES:
            status = 413
        else:
            body = self.rfile.read(int(declared))
            return body if len(body) == int(declared) else None
        self.close_connection = True
        self._send(Response(status=status, headers={"Connection": "close"}))
        return None

    def _send(self, reply: Response) -> None:
        self._start(reply.status, {**reply.headers, "Content-Length": str(reply.length)})
        if self.command != "HEAD":
            for chunk in _chunks(reply.body):
                self.wfile.write(chunk)
        self.wfile.flush()

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_faulty(self, reply: Response, fault: HubFault) -> None:
        logger.debug("local hub: {} {} meets fault {}", self.command, self.path, fault.kind.value)
        if fault.kind is FaultKind.STATUS:
            retry = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            self._send(Response(status=fault.status, headers=retry, body=b"fault"))
        elif fault.kind is FaultKind.WRONG:
            self._send(Response(status=reply.status, headers=reply.headers, body=_flipped(reply.body)))
        elif fault.kind is FaultKind.REPLY:
            self._send_as_told(fault)
        elif fault.kind is FaultKind.GZIP_BOMB:
            body = gzip.compress(bytes(fault.size))
            self._send(Response(headers={**reply.headers, "Content-Encoding": "gzip"}, body=body))
        else:
            self._send_broken(reply, fault)

    def _send_as_told(self, fault: HubFault) -> None:
        body = fault.body.encode("latin-1")
        self.send_response(fault.status)
        for name, value in fault.headers:
            self.send_header(name, value)
        if not {"content-length", "transfer-encoding"} & {name.lower() for name, _ in fault.headers}:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")
        self.wfile.flush()

    def _send_broken(self, reply: Response, fault: HubFault) -> None:
        """Faults after which the connection is of no more use."""
        self.close_connection = True
        if fault.kind is FaultKind.HEADER_DRIP:
            self._drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 2**20, fault.seconds)
        elif fault.kind is FaultKind.ENDLESS:
            self._start(200, {**reply.headers, "Connection": "close"})
            while not self._http.is_closing.is_set():
                self.wfile.write(b"x" * _CHUNK_BYTES)
        elif fault.kind is FaultKind.DRIP:
            self._start(reply.status, {**reply.headers, "Content-Length": str(reply.length)})
            for chunk in _chunks(reply.body):
                self._drip(chunk, fault.seconds)
        elif fault.kind is FaultKind.RAW:
            self.wfile.write(fault.body.encode("latin-1"))
            self._repeat(fault.rest.encode("latin-1"), fault.repeat, fault.seconds)
        elif fault.kind is FaultKind.TRUNCATE:
            self._start(reply.status, {**reply.headers, "Content-Length": str(reply.length)})
            self.wfile.write(b"".join(_chunks(reply.body))[: fault.size or reply.length // 2])
        with suppress(OSError):
            self.wfile.flush()

    def _repeat(self, text: bytes, times: int | None, seconds: float) -> None:
        self.wfile.flush()
        while times is None or times > 0:
            # Many at once where there is no pause between them.
            together = 1 if seconds else max(1, min(_CHUNK_BYTES // max(1, len(text)), times or _CHUNK_BYTES))
            times = None if times is None else times - together
            self.wfile.write(text * together)
            self.wfile.flush()
            if self._http.is_closing.wait(seconds):
                return

    def _drip(self, text: bytes, seconds: float) -> None:
        for index in range(len(text)):
            self.wfile.write(text[index : index + 1])
            self.wfile.flush()
            if self._http.is_closing.wait(seconds):
                return


def _chunks(body: bytes | FileSlice) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    with body.path.open("rb") as file:
        file.seek(body.start)
        left = body.length
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk


def _flipped(body: bytes | FileSlice) -> bytes:
    return b"".join(_chunks(body)).translate(bytes(byte ^ 1 for byte in range(256)))


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m template.localnet.hub.server`."""
    parser = argparse.ArgumentParser(prog="hub_server", description="Serve a local Hub for HF_ENDPOINT.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the hub's content")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one (default)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, having printed the endpoint on one line of stdout once it answers.

    The exit status is ConfigError's when the port is taken or the folder cannot be made.
    """
    args = build_parser().parse_args(argv)
    logger.remove()
    logger.add(sys.stderr, level="INFO")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        hub = HubServer(args.root, args.port)
    except OSError as exc:
        logger.error("cannot serve {} on port {}: {}", args.root, args.port, exc.strerror)
        return ConfigError.exit_code
    with hub:
        print(hub.endpoint, flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
