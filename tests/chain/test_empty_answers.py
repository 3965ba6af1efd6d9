"""Empty answers of a node about commitments, which are there."""

from collections.abc import Iterator

import pytest

from template.chain.client import Chain
from template.errors import RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, SEALED, commit, make_key
from tests.fixtures.node import Wire, dial

MINER, VALIDATOR = make_key("miner"), make_key("validator")
FAULTS = [
    ("state_getKeysPaged", "empty_list", "the map of commitments lacks that of"),
    ("state_getKeysPaged", "null", "the map of commitments lacks that of"),
    ("state_queryStorageAt", "empty_list", "storage has no uid for"),
    ("state_queryStorageAt", "null", "storage has no uid for"),
]


@pytest.fixture
def node(local: LocalChain) -> Iterator[NodeServer]:
    """A node of a subnet with a plain and a revealed commitment."""
    commit(local, MINER, {"Raw4": b"text"})
    commit(local, VALIDATOR, SEALED)
    local.reveal(VALIDATOR.ss58_address, "opened")
    with NodeServer(local.path) as server:
        yield server


@pytest.fixture
def chain(node: NodeServer) -> Iterator[Chain]:
    with dial(node, NETUID) as chain:
        yield chain


def read_texts(chain: Chain) -> list[str | None]:
    return [commitment.text for commitment in chain.view().commitments]


@pytest.mark.parametrize(("method", "kind", "reason"), FAULTS)
def test_first_view_does_not_believe_an_empty_answer(
    chain: Chain, wire: Wire, method: str, kind: str, reason: str
) -> None:
    wire.result("localnet_setAnswerFault", method, kind, 100)
    with pytest.raises(RemoteError, match=reason):
        chain.view()
    wire.result("localnet_setAnswerFault", method, kind, 0)
    assert read_texts(chain) == ["text", "opened"]


@pytest.mark.parametrize(("method", "kind", "reason"), FAULTS[::2])
def test_view_does_not_lose_what_the_last_one_had(
    local: LocalChain, chain: Chain, wire: Wire, method: str, kind: str, reason: str
) -> None:
    chain.view()
    local.advance()
    wire.result("localnet_setAnswerFault", method, kind, 100)
    with pytest.raises(RemoteError, match=reason):
        chain.view()


@pytest.mark.parametrize(("method", "kind", "reason"), FAULTS[::2])
def test_snapshot_does_not_believe_an_empty_answer(
    local: LocalChain, chain: Chain, wire: Wire, method: str, kind: str, reason: str
) -> None:
    wire.result("localnet_setAnswerFault", method, kind, 100)
    with pytest.raises(RemoteError, match=reason):
        chain.snapshot(local.block())


def test_one_empty_page_is_not_believed(local: LocalChain, chain: Chain, wire: Wire) -> None:
    wire.result("localnet_setAnswerFault", "state_getKeysPaged", "empty_list", 1)
    with pytest.raises(RemoteError, match="the map of commitments lacks that of"):
        chain.snapshot(local.block())


def test_commitment_that_the_chain_dropped_is_gone(local: LocalChain, chain: Chain) -> None:
    chain.view()
    local.deregister(MINER.ss58_address)
    local.register(MINER.ss58_address)
    assert read_texts(chain) == ["opened"]
