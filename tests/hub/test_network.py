"""Where the Hub may point to, by address and not by name, and that no wait outlasts the call that waits."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpcore2
import huggingface_hub
import pytest

from template.errors import RemoteError
from template.hub import datasets
from template.hub.network import BoundedBackend, RequestBudget, allowed_addresses, network_of
from template.localnet.hub.faults import FaultKind, HubFault, set_faults
from template.localnet.hub.server import HubServer
from tests.fixtures.hub import DATA, OLD, REPO, download, upload_data

PUBLIC = "https://8.8.8.8"


@pytest.mark.parametrize(
    ("network", "addresses"),
    [
        ("public", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]),
        ("loopback", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]),
        ("private", ["10.0.0.1", "172.31.0.1", "192.168.0.1", "fd00:ec2::254", "::ffff:10.0.0.1", "64:ff9b::a00:1"]),
        ("link-local", ["169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"]),
        ("no host's", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "240.0.0.1", "255.255.255.255", "64:ff9b:1::1"]),
        ("shared", ["100.64.0.1", "100.100.100.200", "::ffff:100.64.0.1"]),
        ("private", ["192.0.2.1", "198.18.0.1", "2001:db8::1", "0.0.0.1", "192.0.0.192", "fec0::1"]),
    ],
)
def test_every_address_is_of_a_network(network: str, addresses: list[str]) -> None:
    assert {address: network_of(address) for address in addresses} == dict.fromkeys(addresses, network)


@pytest.mark.parametrize(
    ("endpoint", "allowed", "refused"),
    [
        (PUBLIC, "1.1.1.1", "127.0.0.1 ::1 10.0.0.1 169.254.169.254 0.0.0.0 100.64.0.1 fd00::1"),
        ("http://127.0.0.1:8080", "127.0.0.1 ::1 1.1.1.1", "10.0.0.1 169.254.169.254 0.0.0.0 fd00::1"),
        ("https://10.1.1.1/hub", "10.0.0.1 192.168.0.1 1.1.1.1", "127.0.0.1 169.254.169.254 0.0.0.0 224.0.0.1"),
        ("https://[fe80::1]", "fe80::2 1.1.1.1", "127.0.0.1 10.0.0.1"),
    ],
)
def test_only_the_endpoints_own_kind_of_network_is_open_beside_the_public_one(
    endpoint: str, allowed: str, refused: str
) -> None:
    for address in allowed.split():
        assert allowed_addresses([address], endpoint) == [address]
    for address in refused.split():
        with pytest.raises(RemoteError, match="not followed"):
            allowed_addresses([address], endpoint)


class Names:
    """A name server that knows what it is told, and counts the questions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **known: list[str]) -> None:
        self.asked: list[str] = []
        original = socket.getaddrinfo

        def look_up(host: str, port: int, *rest: Any, **named: Any) -> Any:
            if host not in known:
                return original(host, port, *rest, **named)
            self.asked.append(host)
            return [found for address in known[host] for found in original(address, port, *rest, **named)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)


@contextmanager
def connecting(host: str, port: int, *, endpoint: str = PUBLIC, seconds: float = 5.0) -> Iterator[Any]:
    """A connection as the Hub's client makes it within a call of so many seconds."""
    budget = RequestBudget(time.monotonic() + seconds, endpoint, 1000)
    with budget.activate():
        stream = BoundedBackend(httpcore2.SyncBackend(), is_proxied=False).connect_tcp(host, port, timeout=5.0)
        try:
            yield stream
        finally:
            stream.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        yield listening


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["::1", "127.0.0.1"]])
def test_a_name_that_leads_inside_is_not_connected_to(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket, addresses: list[str]
) -> None:
    Names(monkeypatch, cdn=addresses)
    with pytest.raises(RemoteError, match="not followed"), connecting("cdn", listener.getsockname()[1]):
        pass
    with pytest.raises(TimeoutError):
        listener.accept()


def test_an_address_inside_beside_one_that_is_open_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    """What is connected to stays judged: the listener at the one inside is never met."""
    Names(monkeypatch, cdn=["127.0.0.1", "10.0.0.1", "8.8.8.8"])
    tried = refuse_all(monkeypatch)
    with pytest.raises(httpcore2.ConnectTimeout), connecting("cdn", listener.getsockname()[1]):
        pass
    assert [address for address, _ in tried] == ["8.8.8.8"]


def refuse_all(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Nothing can be connected to, and this is what was tried: the address, and the seconds that it was given."""
    tried: list[tuple[str, float]] = []

    def refuse(_: object, host: str, port: int, timeout: float, *rest: object) -> None:
        tried.append((host, timeout))
        raise httpcore2.ConnectTimeout

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", refuse)
    return tried


def test_a_family_that_leads_nowhere_leaves_time_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, cdn=["2606:4700::1", "2606:4700::2", "2606:4700::3", "1.1.1.1"])
    tried = refuse_all(monkeypatch)
    with pytest.raises(httpcore2.ConnectTimeout), connecting("cdn", 443, seconds=6.0):
        pass
    assert [address for address, _ in tried] == ["2606:4700::1", "1.1.1.1", "2606:4700::2", "2606:4700::3"]
    assert all(given <= 2.0 for _, given in tried[:-1])


@pytest.mark.parametrize("host", ["0", "0.0.0.0", "2130706433", "0x7f.1", "127.1", "localhost", "0177.0.0.1"])
def test_no_spelling_of_this_machine_is_connected_to(listener: socket.socket, host: str) -> None:
    with pytest.raises(RemoteError, match="not followed"), connecting(host, listener.getsockname()[1]):
        pass
    with pytest.raises(TimeoutError):
        listener.accept()


def test_what_was_judged_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    """A name is looked up once: another answer a moment later changes nothing."""
    names = Names(monkeypatch, cdn=["127.0.0.1"])
    with connecting("cdn", listener.getsockname()[1], endpoint="http://127.0.0.1:9"):
        listener.accept()[0].close()
    assert names.asked == ["cdn"]


def test_the_endpoint_may_be_anywhere(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    Names(monkeypatch, hub=["127.0.0.1"])
    with connecting("hub", listener.getsockname()[1], endpoint="https://hub"):
        listener.accept()[0].close()


def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    Names(monkeypatch, hub=["::1", "127.0.0.1"])
    with connecting("hub", listener.getsockname()[1], endpoint="https://hub"):
        listener.accept()[0].close()


def test_an_upload_that_is_taken_in_drop_by_drop_ends(listener: socket.socket) -> None:
    over = threading.Event()
    listener.settimeout(10.0)

    def sip() -> None:
        taken, _ = listener.accept()
        with taken:
            while not over.wait(0.005):
                taken.recv(2**16)

    drinker = threading.Thread(target=sip, daemon=True)
    drinker.start()
    port, started = listener.getsockname()[1], time.monotonic()
    try:
        with (
            pytest.raises((RemoteError, httpcore2.WriteTimeout)),
            connecting("127.0.0.1", port, endpoint=f"http://127.0.0.1:{port}", seconds=0.4) as stream,
        ):
            stream.write(bytes(128 * 2**20), timeout=5.0)
    finally:
        over.set()
        drinker.join()
    assert time.monotonic() - started < 2.0


def test_a_slow_name_server_holds_up_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def dawdle(host: str, *rest: Any, **named: Any) -> Any:
        asked.set()
        time.sleep(1.0)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", dawdle)
    started = time.monotonic()
    with pytest.raises(RemoteError, match="did not answer"):
        datasets.download_dataset(REPO, "a" * 40, tmp_path, endpoint="http://hub.test", deadline_s=0.2)
    assert asked.is_set() and time.monotonic() - started < 0.9
    for thread in threading.enumerate():
        if thread.name == "hub-call":
            thread.join(5.0)
            assert not thread.is_alive()


@pytest.fixture
def proxied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that takes whole addresses as a proxy does, where the environment says that the proxy is."""
    datasets.configure_client()
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setenv("HTTP_PROXY", server.endpoint)
        monkeypatch.delenv("NO_PROXY", raising=False)
        huggingface_hub.close_session()
        yield server
    huggingface_hub.close_session()


def test_behind_a_proxy_names_are_the_proxys_affair(proxied: HubServer, tmp_path: Path) -> None:
    commit = upload_data(proxied)
    held = datasets.download_dataset(REPO, commit, tmp_path / "data", endpoint="http://hub.invalid")
    assert held.path.read_bytes() == OLD


@pytest.mark.parametrize("target", ["http://169.254.169.254/x", "http://10.0.0.1/x", "http://[::1]/x", "ftp://a/x"])
def test_behind_a_proxy_an_address_inside_is_not_asked_for(proxied: HubServer, tmp_path: Path, target: str) -> None:
    commit = upload_data(proxied)
    moved = HubFault(kind=FaultKind.REPLY, status=302, headers=(("Location", target),), pattern=f"8:81.*{DATA}")
    set_faults(proxied.store.root, moved)
    with pytest.raises(RemoteError, match="not followed"):
        datasets.download_dataset(REPO, commit, tmp_path / "data", endpoint="http://8.8.8.8:81")
    assert download(proxied, commit, tmp_path / "data").path.read_bytes() == OLD
