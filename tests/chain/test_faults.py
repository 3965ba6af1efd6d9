"""Failed calls: deadlines, lost connections and unknown results."""

import asyncio
import socket
import threading
import time
from contextlib import suppress
from typing import Literal

import pytest

from template.chain.client import Chain, bt
from template.chain.event_loop import EventLoopThread
from template.errors import RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.ledger import ChainFault
from tests.fixtures.chain import NETUID, connect, make_key, make_node, set_weights
from tests.fixtures.substrate import LocalSubstrate

MINER, VALIDATOR = make_key("miner"), make_key("validator")


def test_dead_endpoint_is_a_remote_error() -> None:
    with Chain("ws://127.0.0.1:1", NETUID) as chain, pytest.raises(RemoteError, match="could not"):
        chain.block()


def test_handshake_without_an_answer_meets_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}"
        with Chain(url, NETUID, deadline_s=0.3) as chain:
            started = time.monotonic()
            with pytest.raises(RemoteError, match=r"no answer within 0\.3 s"):
                chain.block()
            assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", ["connect", "read"])
def test_hanging_call_meets_the_deadline_and_the_next_recovers(
    local: LocalChain, kind: Literal["connect", "read"]
) -> None:
    local.set_fault(kind, ChainFault.HANG)
    with connect(local, deadline_s=0.5) as chain:
        with pytest.raises(RemoteError, match="no answer"):
            chain.block()
        assert chain.block() == local.block()


@pytest.mark.parametrize("fault", [ChainFault.DISCONNECT, ChainFault.ERROR])
def test_failed_read_is_a_remote_error_and_the_next_recovers(
    local: LocalChain, miner: Chain, fault: ChainFault
) -> None:
    miner.view()
    local.set_fault("read", fault)
    with pytest.raises(RemoteError, match="injected"):
        miner.view()
    assert miner.view().block == local.block()


@pytest.mark.parametrize("fault", [ChainFault.DISCONNECT, ChainFault.HANG, ChainFault.ERROR])
def test_call_after_a_failure_has_a_connection_of_its_own(local: LocalChain, fault: ChainFault) -> None:
    class Recording(LocalSubstrate):
        async def close(self) -> None:
            closed.append(threading.current_thread())
            await super().close()

    closed: list[threading.Thread] = []
    with connect(local, node=Recording(local.path), deadline_s=0.3) as chain:
        chain.block()
        local.set_fault("read", fault)
        with pytest.raises(RemoteError):
            chain.block()
        assert len(closed) == 1 and not closed[0].is_alive()
        chain.block()
        assert len(closed) == 1


@pytest.mark.parametrize("fault", [ChainFault.DISCONNECT, ChainFault.HANG, ChainFault.ERROR])
def test_write_without_an_answer_has_an_unknown_result(local: LocalChain, fault: ChainFault) -> None:
    local.set_fault("write", fault)
    with connect(local, MINER, deadline_s=0.3) as chain:
        with pytest.raises(RemoteError, match="result unknown"):
            chain.publish("text")
        assert chain.commitment(chain.hotkey) is None
        assert chain.publish("text").is_accepted


def test_write_that_landed_without_an_answer_is_found_by_reading(local: LocalChain, validator: Chain) -> None:
    local.set_fault("write", ChainFault.LOSE_ANSWER, calls=2)
    with pytest.raises(RemoteError, match="result unknown"):
        validator.publish("text")
    stored = validator.commitment(validator.hotkey)
    assert stored is not None and stored.text == "text"
    with pytest.raises(RemoteError, match="result unknown"):
        set_weights(validator, {1: 1.0})
    assert local.weights(VALIDATOR.ss58_address) == {1: 65535}


def test_failed_hint_does_not_hide_the_refusal(local: LocalChain, miner: Chain) -> None:
    local.set_hyperparameter("MaxSpace", 0)
    with connect(local, MINER, node=make_node(local, runtime_call=bt.RpcConnectionError("gone"))) as chain:
        outcome = chain.publish("text")
    assert (outcome.error, outcome.retry_after_blocks) == ("SpaceLimitExceeded", None)


def test_answer_of_an_unknown_shape_is_a_remote_error(local: LocalChain) -> None:
    node = make_node(local, runtime_call={"hotkeys": ["a"]})
    with connect(local, node=node) as chain, pytest.raises(RemoteError, match="invalid answer"):
        chain.view()


def test_closing_leaves_no_thread_and_a_later_call_reconnects(local: LocalChain) -> None:
    before = threading.active_count()
    chain = connect(local)
    chain.block()
    chain.close()
    chain.close()
    assert threading.active_count() == before
    assert chain.block() == local.block()
    chain.close()


def test_receiver_that_loses_a_cancellation_is_not_waited_for() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def receive() -> None:
        # As asyncio.wait_for of Python 3.11, when a message comes with the cancellation.
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def connect() -> None:
        if not tasks:
            tasks.append(asyncio.create_task(receive(), name="rpc-session"))

    async def close() -> None:
        tasks[0].cancel()
        with suppress(asyncio.CancelledError):
            await tasks[0]

    loop = EventLoopThread(connect, close)
    loop.run(lambda: asyncio.sleep(0), 5)
    started = time.monotonic()
    loop.close()
    assert time.monotonic() - started < 1
