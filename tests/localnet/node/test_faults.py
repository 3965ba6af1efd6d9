"""Faults of the chain that its administrator injects, at the wire."""

import time

import pytest

from template.errors import RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.ledger import ChainFault
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, make_key
from tests.fixtures.node import dial

MINER = make_key("miner")


def test_silent_node_meets_the_deadline(local: LocalChain, node: NodeServer) -> None:
    with dial(node, NETUID, deadline_s=1) as chain:
        chain.view()
        local.set_fault("read", ChainFault.HANG)
        started = time.monotonic()
        with pytest.raises(RemoteError, match="no answer within 1 s"):
            chain.block()
        assert time.monotonic() - started < 5


def test_silent_handshake_meets_the_deadline(local: LocalChain, node: NodeServer) -> None:
    local.set_fault("connect", ChainFault.HANG)
    with dial(node, NETUID, deadline_s=1) as chain, pytest.raises(RemoteError, match="no answer within 1 s"):
        chain.block()


def test_error_of_the_node_is_a_remote_error(local: LocalChain, node: NodeServer) -> None:
    with dial(node, NETUID) as chain:
        chain.view()
        local.set_fault("read", ChainFault.ERROR)
        with pytest.raises(RemoteError, match="the node failed"):
            chain.block()


def test_refused_connection_is_a_remote_error(local: LocalChain, node: NodeServer) -> None:
    local.set_fault("connect", ChainFault.ERROR, calls=10)
    with dial(node, NETUID) as chain, pytest.raises(RemoteError, match="503"):
        chain.block()


def test_read_after_a_lost_connection_succeeds(local: LocalChain, node: NodeServer) -> None:
    with dial(node, NETUID) as chain:
        chain.view()
        local.set_fault("read", ChainFault.DISCONNECT)
        assert chain.block() == local.block()


def test_write_whose_answer_is_lost_has_an_unknown_result(local: LocalChain, node: NodeServer) -> None:
    with dial(node, NETUID, MINER) as chain:
        chain.view()
        local.set_fault("write", ChainFault.LOSE_ANSWER)
        with pytest.raises(RemoteError, match="result unknown"):
            chain.publish("hello")
        commitment = chain.commitment(MINER.ss58_address)
        assert commitment is not None and commitment.text == "hello"
