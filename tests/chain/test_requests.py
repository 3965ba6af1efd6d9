"""The requests that a view of the subnet takes on the wire."""

from collections import Counter
from collections.abc import Iterator

import pytest

from template.chain.client import Chain, bt
from template.localnet.chain.chain import LocalChain
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, connect
from tests.fixtures.node import dial, record_requests

# The client's own pages have 100 keys, and a node returns at most 1,000.
COMMITMENTS = 1050
SS58_FORMAT = 42


def make_address(number: int) -> str:
    return str(bt.sp_core.ss58_encode(number.to_bytes(32, "little"), SS58_FORMAT))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return record_requests(monkeypatch)


@pytest.fixture
def chain(local: LocalChain) -> Iterator[Chain]:
    with local.write() as state:
        for number in range(COMMITMENTS):
            record = {"deposit": 0, "block": 1, "info": {"fields": [{"Raw2": f"0x{number:04x}"}]}}
            state.put("CommitmentOf", make_address(number), record)
    with NodeServer(local.path) as node, dial(node, NETUID) as chain:
        yield chain


def test_first_view_looks_up_the_runtime_once(sent: list[str], chain: Chain) -> None:
    chain.view()
    # Of the head when it connects, and of the block.
    assert Counter(sent)["state_getRuntimeVersion"] == 2 and len(sent) <= 23


def test_view_of_a_new_block_reads_each_map_in_long_pages(sent: list[str], chain: Chain, local: LocalChain) -> None:
    chain.view()
    local.advance(1)
    sent.clear()
    chain.view()
    # Two pages of the commitments with their values, and one of the reveals, without any.
    assert (sent.count("state_getKeysPaged"), sent.count("state_queryStorageAt"), len(sent)) == (3, 2, 16)


def test_view_of_an_old_block_takes_one_request(sent: list[str], chain: Chain) -> None:
    first = chain.view()
    sent.clear()
    assert chain.view() is first and sent == ["chain_getFinalizedHead"]


def test_view_of_more_than_a_page_equals_the_one_in_process(chain: Chain, local: LocalChain) -> None:
    with connect(local) as inside:
        view = chain.view()
        assert view == inside.view() and len(view.commitments) == COMMITMENTS
