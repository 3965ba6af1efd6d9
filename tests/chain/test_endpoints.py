"""Endpoints: flags, rotation, and silent or stalled nodes."""

import argparse
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from websockets.sync.server import ServerConnection, serve

from template.chain.client import STALL_S, Chain
from template.chain.endpoints import Endpoints
from template.cli import add_chain_arguments, open_chain
from template.errors import ConfigError, RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.ledger import ChainFault
from tests.fixtures.chain import NETUID, ManualClock, connect
from tests.fixtures.logs import log_lines
from tests.fixtures.substrate import LocalSubstrate


@contextmanager
def serving(handle: Callable[[ServerConnection], None]) -> Iterator[str]:
    """Yield the URL of a websocket server, whose threads end with it."""
    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(10)


class Silent:
    """Reads every connection, and answers no more than `answers` requests."""

    def __init__(self, answers: int = 0) -> None:
        self.answers = answers
        self.dialled = 0
        self.asked = threading.Event()

    def __call__(self, connection: ServerConnection) -> None:
        self.dialled += 1
        for _ in connection:
            self.asked.set()
            if self.answers:
                self.answers -= 1
                connection.send('{"jsonrpc": "2.0", "id": 1, "result": null}')


@pytest.mark.parametrize("answers", [0, 1], ids=["from the start", "while connected"])
def test_silent_node_is_replaced_after_the_deadline(answers: int) -> None:
    first, second = Silent(answers), Silent()
    with (
        serving(first) as url,
        serving(second) as fallback,
        Chain(url, NETUID, fallback_endpoints=[fallback], deadline_s=0.5) as chain,
    ):
        with pytest.raises(RemoteError):
            chain.block()
        assert first.asked.wait(10), "it was connected and asked, not just dialled"
        assert (first.dialled, second.dialled) == (1, 0)
        with pytest.raises(RemoteError):
            chain.block()
        assert second.asked.wait(10)
        assert (first.dialled, second.dialled) == (1, 1)
        with pytest.raises(RemoteError):
            chain.block()
        assert (first.dialled, second.dialled) == (2, 1), "and then it is the first one's turn again"


def test_unreachable_node_is_skipped_within_one_call() -> None:
    fallback = Silent()
    with serving(fallback) as url, Chain("ws://127.0.0.1:1", NETUID, fallback_endpoints=[url], deadline_s=1) as chain:
        with pytest.raises(RemoteError, match="no answer"):
            chain.block()
        assert fallback.asked.wait(10) and fallback.dialled == 1


def test_refused_read_keeps_the_endpoint(local: LocalChain) -> None:
    with connect(local, fallback_endpoints=["ws://127.0.0.1:2"]) as chain:
        first = chain._endpoints.current
        with pytest.raises(RemoteError, match="no finalized block"):
            chain.snapshot(10**6)
        assert chain._endpoints.current == first
        local.set_fault("read", ChainFault.ERROR)
        with pytest.raises(RemoteError):
            chain.block()
        assert chain._endpoints.current == first
        local.set_fault("read", ChainFault.DISCONNECT)
        with pytest.raises(RemoteError):
            chain.block()
        assert chain._endpoints.current == "ws://127.0.0.1:2"


FIRST, SECOND, THIRD = "ws://127.0.0.1:1", "ws://127.0.0.1:2", "ws://127.0.0.1:3"


class Lagging(LocalSubstrate):
    """A node that is `lag` blocks behind, and counts the connections that it loses."""

    lag = 0
    closed = 0

    async def finalized_block_number(self) -> int:
        return await super().finalized_block_number() - self.lag

    async def close(self) -> None:
        self.closed += 1
        await super().close()


@contextmanager
def watching(local: LocalChain) -> Iterator[tuple[Chain, Lagging, ManualClock, list[str]]]:
    """Yield a connection with three endpoints, its node, its clock and its log lines."""
    node, clock = Lagging(local.path), ManualClock()
    with log_lines() as logged, connect(local, node=node, fallback_endpoints=[SECOND, THIRD], clock=clock) as chain:
        yield chain, node, clock, logged


def test_node_behind_the_newest_block_is_replaced(local: LocalChain) -> None:
    with watching(local) as (chain, node, _, logged):
        local.advance(10)
        head = chain.view().block
        node.lag = 3
        with pytest.raises(RemoteError, match=rf"at block {head - 3}, behind block {head}$"):
            chain.view()
        assert (chain._endpoints.current, node.closed) == (SECOND, 1)
        with pytest.raises(RemoteError, match=rf"behind block {head}$"):
            chain.view()
        assert (chain._endpoints.current, node.closed) == (THIRD, 2)
        assert chain.snapshot(head - 5).block == head - 5, "a past that is asked for is no lag"
        node.lag = 0
        assert chain.view().block == head
        local.advance()
        assert chain.view().block == head + 1
        assert (chain._endpoints.current, node.closed) == (THIRD, 2)
        assert logged == []


def test_stalled_node_rotates_endpoints_every_stall_period(local: LocalChain) -> None:
    with watching(local) as (chain, node, clock, logged):
        clock.now += 50
        then = chain.view()
        for _ in range(2):
            clock.now += STALL_S / 2 - 1
            assert chain.view() == then
        assert (chain._endpoints.current, node.closed, logged) == (FIRST, 0, [])
        clock.now += 2
        assert chain.view() == then
        assert (chain._endpoints.current, node.closed) == (SECOND, 1)
        assert logged == [f"WARNING no new final block={then.block} seconds=600 action=next_endpoint\n"]
        clock.now += STALL_S - 1
        assert chain.view() == chain.view() == then
        assert (chain._endpoints.current, len(logged)) == (SECOND, 1), "once in a while, not at every view"
        clock.now += 1
        assert chain.view() == then
        assert (chain._endpoints.current, len(logged)) == (THIRD, 2)
        assert "seconds=1200" in logged[1]


def test_slow_chain_keeps_the_endpoint(local: LocalChain) -> None:
    with watching(local) as (chain, node, clock, logged):
        for _ in range(4):
            local.advance()
            chain.view()
            clock.now += STALL_S - 1
            chain.view()
        assert (chain._endpoints.current, node.closed, logged) == (FIRST, 0, [])


def test_views_of_past_blocks_keep_the_endpoint(local: LocalChain) -> None:
    with watching(local) as (chain, node, clock, logged):
        head = chain.view().block
        for _ in range(3):
            clock.now += STALL_S
            local.advance()
            chain.snapshot(head)
        assert chain.view().block == head + 3
        assert (chain._endpoints.current, node.closed, logged) == (FIRST, 0, [])


def test_endpoints_take_turns_each_once() -> None:
    endpoints = Endpoints("ws://a:1", ["ws://b:1", "ws://a:1", "ws://c:1"])
    seen = []
    for _ in range(4):
        seen.append((endpoints.current, endpoints.open().fallback_endpoints))
        endpoints.rotate()
    assert seen[0] == seen[3] == ("ws://a:1", ["ws://b:1", "ws://c:1"])
    assert seen[1:3] == [("ws://b:1", ["ws://c:1", "ws://a:1"]), ("ws://c:1", ["ws://a:1", "ws://b:1"])]


def test_named_network_has_public_fallbacks_by_default() -> None:
    public = Endpoints("finney").open()
    assert public.endpoint.startswith("wss://") and public.fallback_endpoints and public.archive_endpoints
    own = Endpoints("finney", ["ws://mine:1"], ["ws://old:1"]).open()
    assert own.endpoint == public.endpoint
    assert (own.fallback_endpoints, own.archive_endpoints) == (["ws://mine:1"], ["ws://old:1"])
    url = Endpoints("ws://mine:1").open()
    assert (url.fallback_endpoints, url.archive_endpoints) == ([], [])


def open_with(*flags: str) -> Chain:
    parser = argparse.ArgumentParser()
    add_chain_arguments(parser)
    return open_chain(parser.parse_args(["--netuid", "7", *flags]), needs_wallet=False)


def test_flags_reach_the_connection() -> None:
    chain = open_with(
        *("--subtensor.network", "ws://a:1", "--subtensor.fallback_endpoints", "ws://b:1, wss://c:443"),
        *("--subtensor.archive_endpoints", "wss://d:443", "--subtensor.deadline_seconds", "7.5"),
    )
    opened = chain._endpoints.open()
    assert (opened.endpoint, opened.fallback_endpoints) == ("ws://a:1", ["ws://b:1", "wss://c:443"])
    assert (opened.archive_endpoints, chain._deadline_s) == (["wss://d:443"], 7.5)


NO_ENDPOINTS = ("", "127.0.0.1:1", "ws://a:1,", "http://a", "ws://a:1 ws://b:1", "wss://h:99999")


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--subtensor.fallback_endpoints", NO_ENDPOINTS),
        ("--subtensor.archive_endpoints", NO_ENDPOINTS),
        ("--subtensor.deadline_seconds", ("0", "-1", "nan", "inf", "3601")),
    ],
)
def test_invalid_value_is_a_config_error_with_its_flag(flag: str, values: tuple[str, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=flag):
            open_with("--subtensor.network", "ws://a:1", flag, value)
