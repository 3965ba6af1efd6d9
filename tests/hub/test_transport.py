"""Limits of every request to the Hub: redirects, time and proxies."""

import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import get_session

from template.errors import RemoteError
from template.hub import datasets
from template.hub.client import configure_client
from template.hub.transport import RequestBudget
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, set_faults
from tests.fixtures.hub import DATA, OLD, REPO, download, upload_data


@pytest.fixture(autouse=True)
def _client() -> None:
    configure_client()


def request(url: str, endpoint: str, *, seconds: float = math.inf, content: bytes | None = None) -> None:
    budget = RequestBudget(deadline=time.monotonic() + seconds, endpoint=endpoint, max_bytes=1000)
    with budget.activate():
        get_session().request("PUT" if content else "GET", url, content=content)


@pytest.mark.parametrize("url", ["http://8.8.8.8/x", "http://169.254.169.254/x", "ftp://8.8.8.8/x"])
def test_redirect_from_https_to_another_scheme_is_refused(url: str) -> None:
    with pytest.raises(RemoteError, match="not followed"):
        request(url, "https://8.8.8.8")


def test_header_that_never_ends_frees_its_connection(server: FaultyHub) -> None:
    set_faults(server.store.root, HubFault(kind=FaultKind.HEADER_DRIP, seconds=0.0001))
    started = time.monotonic()
    with pytest.raises(RemoteError, match="in the time allowed"):
        request(f"{server.endpoint}/x", server.endpoint, seconds=0.3)
    assert time.monotonic() - started < 2.0


def test_chunk_header_that_never_ends_frees_its_connection(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("template.hub.transport._METADATA_S", 0.3)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
    head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"
    set_faults(server.store.root, HubFault(kind=FaultKind.RAW, body=head, rest="x", repeat=20_000, seconds=0.0001))
    started = time.monotonic()
    # Without a budget of its own, as transformers calls it.
    with pytest.raises(httpx2.ConnectError, match="in the time allowed"):
        get_session().request("GET", f"{server.endpoint}/api/models/x")
    assert time.monotonic() - started < 2.0


def test_slow_upload_ends_at_its_deadline() -> None:
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def sip() -> None:
            connection, _ = listener.accept()
            with connection:
                while not over.wait(0.005):
                    connection.recv(2**16)

        reader = threading.Thread(target=sip, daemon=True)
        reader.start()
        started, endpoint = time.monotonic(), f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with pytest.raises(RemoteError):
                request(endpoint, endpoint, seconds=0.4, content=bytes(32 * 2**20))
        finally:
            over.set()
            reader.join()
    assert time.monotonic() - started < 2.0


def test_slow_name_server_delays_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, *rest: Any, **named: Any) -> Any:
        time.sleep(1.0)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    started = time.monotonic()
    with pytest.raises(RemoteError, match="did not answer"):
        datasets.download_dataset(REPO, "a" * 40, tmp_path, endpoint="http://hub.test", deadline_s=0.2)
    assert time.monotonic() - started < 0.9
    join_calls()


def join_calls() -> None:
    for thread in threading.enumerate():
        if thread.name == "hub-call":
            thread.join(5.0)
            assert not thread.is_alive()


@pytest.fixture
def proxy(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyHub]:
    """A hub that also answers as HTTP proxy, set as this process's proxy."""
    monkeypatch.setenv("HTTP_PROXY", server.endpoint)
    monkeypatch.delenv("NO_PROXY", raising=False)
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()


def test_proxy_resolves_the_endpoints_name(proxy: FaultyHub, tmp_path: Path) -> None:
    commit = upload_data(proxy)
    file = datasets.download_dataset(REPO, commit, tmp_path / "data", endpoint="http://hub.invalid")
    assert file.path.read_bytes() == OLD


def test_slow_download_thread_ends_after_the_deadline(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_data(server)
    set_faults(server.store.root, HubFault(kind=FaultKind.DRIP, seconds=0.02, pattern="/resolve-cache/"))
    with pytest.raises(RemoteError):
        download(server, commit, tmp_path / "data", deadline_s=0.2)
    join_calls()
    assert not list((tmp_path / "data").glob(f".{DATA}.*"))
