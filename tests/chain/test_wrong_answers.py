"""Answers that no chain can give: refused whole, and the endpoint replaced."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from template.chain.client import Chain
from template.errors import RemoteError
from template.localnet.chain.chain import LocalChain
from tests.fixtures.chain import NETUID, connect, make_key, make_local_chain, make_node
from tests.fixtures.substrate import LocalSubstrate

MINER, OTHER = make_key("miner"), make_key("other")


class LyingSubstrate(LocalSubstrate):
    """A node that changes the chain's answers as the test sets."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.graph: Callable[[dict[str, Any]], object] | None = None
        self.records: Callable[[str, list[Any]], object] | None = None
        self.head: int | None = None

    async def finalized_block_number(self) -> int:
        return await super().finalized_block_number() if self.head is None else self.head

    async def runtime_call(self, api: str, method: str, *arguments: Any, **named: Any) -> Any:
        answer = await super().runtime_call(api, method, *arguments, **named)
        if self.graph is not None and method == "get_metagraph":
            self.graph(answer)
        return answer

    async def query_map(self, module: str, item: str, *arguments: Any, **named: Any) -> Any:
        answer = await super().query_map(module, item, *arguments, **named)
        if self.records is not None:
            self.records(item, answer)
        return answer


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalChain]:
    with make_local_chain(tmp_path) as chain:
        chain.register(MINER.ss58_address)
        chain.register(OTHER.ss58_address)
        chain.advance(5)
        with connect(chain, MINER) as miner:
            miner.publish("text")
        yield chain


@pytest.fixture
def node(local: LocalChain) -> LyingSubstrate:
    return LyingSubstrate(local.path)


@pytest.fixture
def chain(local: LocalChain, node: LyingSubstrate) -> Iterator[Chain]:
    with connect(local, node=node) as chain:
        yield chain


def put(column: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Return a change that sets a column of the first neuron."""
    return lambda graph: graph[column].__setitem__(0, value)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (put("block_at_registration", 10**6), "must hold blocks up to"),
        (put("block_at_registration", 2**64 - 1), "must hold blocks up to"),
        (put("block_at_registration", -1), "must hold blocks up to"),
        (put("block_at_registration", None), "must hold blocks up to"),
        (put("last_update", 2**64 - 1), "must hold blocks up to"),
        (put("hotkeys", OTHER.ss58_address), "two uids"),
        (lambda graph: graph["block_at_registration"].pop(), "1 values of block_at_registration for 2"),
        (lambda graph: graph.pop("block_at_registration"), "block_at_registration"),
        (lambda graph: graph.pop("last_update"), "last_update"),
        (lambda graph: graph.update(netuid=NETUID + 1), "and netuid 8"),
        (lambda graph: graph.update(block=1), "of block 1"),
        (lambda graph: graph.update(hotkeys=5), "invalid answer"),
    ],
)
def test_impossible_metagraph_is_refused(
    local: LocalChain, node: LyingSubstrate, chain: Chain, graph: Callable[[dict[str, Any]], object], message: str
) -> None:
    node.graph = graph
    with pytest.raises(RemoteError, match=message):
        chain.view()
    node.graph = None
    assert [neuron.hotkey for neuron in chain.view().neurons] == [MINER.ss58_address, OTHER.ss58_address]


def test_missing_metagraph_of_a_subnet_is_refused(local: LocalChain) -> None:
    node = make_node(local, runtime_call=None)
    with connect(local, node=node) as chain, pytest.raises(RemoteError, match="netuid 7 exists, and has no metagraph"):
        chain.view()


def test_state_without_any_subnet_is_refused(local: LocalChain) -> None:
    node = make_node(local, runtime_call=None, query_batch=[False, False])
    with connect(local, node=node) as chain, pytest.raises(RemoteError, match="the root subnet is missing"):
        chain.view()


def test_registration_in_block_0_is_valid(node: LyingSubstrate, chain: Chain) -> None:
    node.graph = put("block_at_registration", 0)
    assert chain.view().neurons[0].registration_block == 0


@pytest.mark.parametrize("item", ["CommitmentOf", "RevealedCommitments"])
@pytest.mark.parametrize("ahead", [1, 2**64])
def test_commitment_of_a_future_block_is_refused(
    local: LocalChain, node: LyingSubstrate, chain: Chain, item: str, ahead: int
) -> None:
    block = local.block() + ahead

    def lie(asked: str, answer: list[Any]) -> None:
        if asked == item:
            record = {"block": block, "info": {"fields": [{"Raw1": "0x61"}]}}
            answer.append((OTHER.ss58_address, record if item == "CommitmentOf" else [("\x04a", block)]))

    node.records = lie
    with pytest.raises(RemoteError, match=f"a commitment is of block {block}, and the newest block is"):
        chain.view()
    node.records = None
    assert [entry.text for entry in chain.view().commitments] == ["text"]


@pytest.mark.parametrize(
    "record", [5, "0x", [], {"info": {"fields": []}}, {"block": 1}, {"block": 1, "info": {"fields": None}}]
)
def test_commitment_record_of_another_runtime_is_refused(node: LyingSubstrate, chain: Chain, record: object) -> None:
    def rename(asked: str, answer: list[Any]) -> None:
        if asked == "CommitmentOf":
            answer[:] = [(hotkey, record) for hotkey, _ in answer]

    node.records = rename
    with pytest.raises(RemoteError, match="invalid answer"):
        chain.view()


@pytest.mark.parametrize("head", [2**32, 2**64 - 1, -1])
def test_impossible_block_number_is_refused(node: LyingSubstrate, chain: Chain, head: int) -> None:
    node.head = head
    for ask in (chain.view, chain.block, lambda: chain.snapshot(1), lambda: chain.commitment(MINER.ss58_address)):
        with pytest.raises(RemoteError, match="newest finalized block cannot be"):
            ask()


def test_node_of_another_chain_is_replaced(local: LocalChain, tmp_path: Path) -> None:
    with make_local_chain(tmp_path / "other") as other:
        other.register(OTHER.ss58_address)
        other.advance(100)
        substrates = [LocalSubstrate(local.path), LocalSubstrate(other.path), LocalSubstrate(local.path)]
        with Chain("finney", NETUID, deadline_s=20) as chain:
            chain._endpoints.open = lambda: substrates[0]  # type: ignore[assignment, return-value]
            asked: list[str] = []
            chain._endpoints.rotate = lambda: asked.append(str(substrates.pop(0).path))  # type: ignore[method-assign]
            first = chain.view()
            chain.next_endpoint()
            with pytest.raises(RemoteError, match="another chain or fork"):
                chain.view()
            assert asked == [str(local.path), str(other.path)], "the next endpoint is asked"
            local.advance(1)
            assert chain.view().block == first.block + 1


def test_past_block_of_another_chain_is_refused(local: LocalChain, tmp_path: Path) -> None:
    with make_local_chain(tmp_path / "other") as other:
        other.advance(100)
        local.advance(5)
        node = LocalSubstrate(local.path)
        with connect(local, node=node) as chain:
            head = chain.view().block
            chain.close()
            node.path = other.path
            with pytest.raises(RemoteError, match="another chain"):
                chain.snapshot(head + 1)
            with pytest.raises(RemoteError, match="no block 0x"):
                chain.snapshot(head - 1)


@pytest.mark.parametrize("blocks", [1, 2399, 2401])
def test_fork_is_detected_by_the_new_state_or_the_node(local: LocalChain, blocks: int) -> None:
    """The client keeps stale hashes when it switches endpoints by itself."""
    local.set_finality_lag(10)
    remembered: dict[int, str] = {}

    class Forgetful(LocalSubstrate):
        async def finalized_block_number(self) -> int:
            return await self.block_number()

        async def block_hash(self, block: int | None = None) -> str:
            assert block is not None
            return remembered.setdefault(block, await super().block_hash(block))

    with connect(local, node=Forgetful(local.path)) as chain:
        local.advance(10)
        first = chain.view()
        local.reorganise(1)
        local.advance(1 + blocks)
        if blocks < 2400:
            with pytest.raises(RemoteError, match="another chain or fork"):
                chain.view()
        remembered.clear()
        with pytest.raises(RemoteError, match=f"block {first.block} has the hashes {first.block_hash}"):
            chain.view()


def test_reads_ignore_blocks_that_are_not_final(local: LocalChain) -> None:
    local.set_finality_lag(2)
    local.advance(3)
    with connect(local, OTHER) as chain:
        before = chain.view()
        assert before.block == local.block() - 2
    with connect(local, MINER, deadline_s=0.3) as miner, pytest.raises(RemoteError, match="result unknown"):
        miner.publish("undone")
    local.advance(1)
    with connect(local) as chain:
        seen = chain.view()
        assert [entry.text for entry in seen.commitments] == ["text"], "the new text is in a block that is not final"
        final = seen.block
        local.reorganise(2)
        again = chain.view()
        assert (again.block, again.block_hash) == (final, seen.block_hash), "what was final is still there"
        local.advance(6)
        after = chain.view()
        assert after.block == local.block() - 2 and [entry.text for entry in after.commitments] == ["text"]
