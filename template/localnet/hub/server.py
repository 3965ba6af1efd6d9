"""A local Hub at HF_ENDPOINT for the unmodified huggingface_hub client.

    python -m template.localnet.hub.server --root DIR --port 8080

Serves the content under DIR on the loopback interface, with the faults set there. A token `hf_local_NAME` acts as
NAME.
"""

import argparse
import gzip
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
    """A hub over `root` on threads of its own, until `close`. Port 0 takes a free one."""

    def __init__(self, root: Path, port: int = 0) -> None:
        self.store = HubStore(root)
        self._http = _Http(self.store, port)
        self.endpoint = self._http.endpoint
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="hub-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and drop the connections that clients keep open."""
        if self._http.is_closing.is_set():
            return
        self._http.is_closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._http.drop_connections()
        self._thread.join()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *_: object) -> None:
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
        # Faults make clients disconnect; the default would print a traceback.
        if not isinstance(sys.exception(), OSError):
            logger.exception("the local hub failed a request")


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
        body = self._read_body()
        if body is None:
            return
        request = Request(
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
        response = respond(self._http.store, request)
        if fault is None:
            self._send(response)
        else:
            self._send_fault(response, fault)

    do_HEAD = do_POST = do_GET  # noqa: N815

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
        self._send(Response(status=status, headers={"Connection": "close"}))
        return None

    def _send(self, response: Response) -> None:
        self._start_sized(response)
        if self.command != "HEAD":
            for chunk in _chunks(response.body):
                self.wfile.write(chunk)
        self.wfile.flush()

    def _start_sized(self, response: Response) -> None:
        self._start(response.status, [*response.headers.items(), ("Content-Length", str(response.length))])

    def _start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def _send_fault(self, response: Response, fault: HubFault) -> None:
        logger.debug("local hub: {} {} fault={}", self.command, self.path, fault.kind.value)
        if fault.kind is FaultKind.STATUS:
            retry = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            self._send(Response(status=fault.status, headers=retry, body=b"fault"))
        elif fault.kind is FaultKind.WRONG:
            body = b"".join(_chunks(response.body)).translate(bytes(byte ^ 1 for byte in range(256)))
            self._send(Response(status=response.status, headers=response.headers, body=body))
        elif fault.kind is FaultKind.REPLY:
            self._send_reply(fault)
        elif fault.kind is FaultKind.GZIP_BOMB:
            body = gzip.compress(bytes(fault.size))
            self._send(Response(headers={**response.headers, "Content-Encoding": "gzip"}, body=body))
        else:
            self._send_broken(response, fault)

    def _send_reply(self, fault: HubFault) -> None:
        body, headers = fault.body.encode("latin-1"), list(fault.headers)
        if not {"content-length", "transfer-encoding"} & {name.lower() for name, _ in headers}:
            headers.append(("Content-Length", str(len(body))))
        self._start(fault.status, headers)
        self.wfile.write(body if self.command != "HEAD" else b"")
        self.wfile.flush()

    def _send_broken(self, response: Response, fault: HubFault) -> None:
        """Send a fault after which the connection is unusable."""
        self.close_connection = True
        if fault.kind is FaultKind.HEADER_DRIP:
            self._drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 2**20, fault.seconds)
        elif fault.kind is FaultKind.ENDLESS:
            self._start(200, [*response.headers.items(), ("Connection", "close")])
            while not self._http.is_closing.is_set():
                self.wfile.write(b"x" * _CHUNK_BYTES)
        elif fault.kind is FaultKind.DRIP:
            self._start_sized(response)
            for chunk in _chunks(response.body):
                self._drip(chunk, fault.seconds)
        elif fault.kind is FaultKind.RAW:
            self.wfile.write(fault.body.encode("latin-1"))
            self._repeat(fault.rest.encode("latin-1"), fault.repeat, fault.seconds)
        elif fault.kind is FaultKind.TRUNCATE:
            self._start_sized(response)
            self.wfile.write(b"".join(_chunks(response.body))[: fault.size or response.length // 2])
        with suppress(OSError):
            self.wfile.flush()

    def _repeat(self, text: bytes, times: int | None, seconds: float) -> None:
        self.wfile.flush()
        while times is None or times > 0:
            batch = 1 if seconds else max(1, min(_CHUNK_BYTES // max(1, len(text)), times or _CHUNK_BYTES))
            times = None if times is None else times - batch
            self.wfile.write(text * batch)
            self.wfile.flush()
            if self._http.is_closing.wait(seconds):
                return

    def _drip(self, text: bytes, seconds: float) -> None:
        for byte in text:
            self._repeat(bytes([byte]), 1, seconds)
            if self._http.is_closing.is_set():
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


@contextmanager
def serve_hub(root: Path) -> Iterator[str]:
    """Serve a hub over `root` in a process of its own; yield its endpoint."""
    command = [sys.executable, "-m", "template.localnet.hub.server", "--root", str(root)]
    cwd = Path(__file__).resolve().parents[3]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; print the endpoint on stdout once it responds.

    Returns ConfigError's exit code when the port is taken or the folder cannot be created.
    """
    parser = argparse.ArgumentParser(prog="localnet-hub", description="Serve a local Hub for HF_ENDPOINT.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the hub's content")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one (default)")
    args = parser.parse_args(argv)
    logger.remove()
    logger.add(sys.stderr, level="INFO")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        hub = HubServer(args.root, args.port)
    except OSError as error:
        logger.error("hub cannot start: root={} port={}: {}", args.root, args.port, error.strerror)
        return ConfigError.exit_code
    with hub:
        print(hub.endpoint, flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
