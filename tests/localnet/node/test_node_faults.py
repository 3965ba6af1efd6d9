"""Wrong states of a node that its administrator injects over the WebSocket."""

import time
from pathlib import Path

import pytest

from template.chain.client import bt
from template.errors import RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, make_key, make_local_chain
from tests.fixtures.node import Wire, dial, sign_call, use_client

MINER, VALIDATOR = make_key("miner"), make_key("validator")


def test_node_behind_has_an_older_head(local: LocalChain, wire: Wire) -> None:
    local.advance(10)
    newest = wire.result("chain_getHead")
    wire.result("localnet_setMissingBlocks", 4)
    assert int(wire.result("chain_getHeader")["number"], 16) == local.block() - 4
    assert wire.result("chain_getFinalizedHead") == local.hash_of(local.block() - 4)
    assert wire.result("chain_getHeader", newest) is None


def test_view_of_a_node_behind_is_refused(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    local.advance(10)
    with dial(node, NETUID) as chain:
        newest = chain.view().block
        wire.result("localnet_setMissingBlocks", 3)
        with pytest.raises(RemoteError, match=f"the node is at block {newest - 3}, behind block {newest}"):
            chain.view()


def test_fallback_replaces_a_node_behind(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    local.advance(10)
    with NodeServer(local.path) as other, dial(node, NETUID, fallback_endpoints=[other.url]) as chain:
        newest = chain.view().block
        wire.result("localnet_setMissingBlocks", 3)
        with pytest.raises(RemoteError):
            chain.view()
        assert chain.view().block == newest


def test_discarded_state_is_named(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    local.advance(20)
    wire.result("localnet_setKeptStates", 5)
    with dial(node, NETUID) as chain:
        assert chain.view().block == local.block()
        with pytest.raises(RemoteError, match=r"State discarded .* archive node"):
            chain.snapshot(5)


def test_archive_node_has_the_discarded_state(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    local.advance(20)
    wire.result("localnet_setKeptStates", 5)
    with NodeServer(local.path) as archive, dial(node, NETUID, archive_endpoints=[archive.url]) as chain:
        assert chain.snapshot(5).block == 5


def test_another_chain_behind_the_same_address_is_refused(
    tmp_path: Path, local: LocalChain, node: NodeServer, wire: Wire
) -> None:
    (tmp_path / "other").mkdir()
    with make_local_chain(tmp_path / "other") as other, dial(node, NETUID) as chain:
        other.register(MINER.ss58_address)
        other.advance(100)
        first = chain.view()
        wire.result("localnet_replaceChain", str(other.path))
        with pytest.raises(RemoteError, match="another chain or fork"):
            chain.view()
        wire.result("localnet_replaceChain", str(local.path))
        assert chain.view() == first


def test_metadata_after_an_upgrade_has_other_type_numbers(node: NodeServer, wire: Wire) -> None:
    async def read(client: bt.Client) -> tuple[int, str]:
        codec = await client._substrate.raw._runtimes.codec_at(None)
        return codec.spec_version, codec.storage_entry("System", "Account").value_type

    before = use_client(node, read)
    wire.result("localnet_upgradeRuntime")
    after = use_client(node, read)
    assert after[0] == before[0] + 1 and after[1] != before[1]


def test_reads_across_an_upgrade_are_right(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    with dial(node, NETUID) as chain:
        before = chain.view()
        for _ in range(2):
            wire.result("localnet_upgradeRuntime")
            local.advance(2)
            with dial(node, NETUID) as fresh:
                assert chain.view() == fresh.view()
        assert chain.snapshot(before.block).neurons == before.neurons


def test_subscriber_learns_of_an_upgrade(wire: Wire) -> None:
    wire.result("state_subscribeRuntimeVersion")
    first = wire.update()["specVersion"]
    wire.result("localnet_upgradeRuntime")
    assert wire.update()["specVersion"] == first + 1


def test_signature_for_an_older_runtime_is_refused(node: NodeServer, wire: Wire) -> None:
    call = bt.calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [{"Raw1": b"a"}]})
    extrinsic = sign_call(node, call, MINER)
    wire.result("localnet_upgradeRuntime")
    assert wire.call("author_submitExtrinsic", extrinsic)["error"]["data"] == "Transaction has a bad signature"


def test_refusal_of_the_pool_is_the_injected_one(node: NodeServer, wire: Wire) -> None:
    wire.result("localnet_refuseExtrinsics", 1012, "Transaction is temporarily banned", None, 2)
    call = bt.calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [{"Raw1": b"a"}]})
    extrinsic = sign_call(node, call, MINER)
    refused = [wire.call("author_submitExtrinsic", extrinsic) for _ in range(2)]
    assert [answer["error"]["code"] for answer in refused] == [1012, 1012]
    assert wire.result("author_submitExtrinsic", extrinsic).startswith("0x")


def test_hidden_events_leave_that_of_the_timestamp(node: NodeServer, wire: Wire) -> None:
    with dial(node, NETUID, MINER) as chain:
        chain.publish("hello")
    wire.result("localnet_hideEvents", True)
    assert len(use_client(node, lambda client: client._substrate.events())) == 1
    wire.result("localnet_hideEvents", False)
    assert len(use_client(node, lambda client: client._substrate.events())) == 4


def test_used_nonce_is_that_of_a_second_writer(wire: Wire) -> None:
    wire.result("localnet_useNonce", MINER.ss58_address)
    assert wire.result("account_nextIndex", MINER.ss58_address) == 1


@pytest.mark.parametrize("kind", ["close", "number_frame", "binary_frame", "list_id"])
def test_connection_that_ended_is_not_waited_for(local: LocalChain, node: NodeServer, wire: Wire, kind: str) -> None:
    with dial(node, NETUID, deadline_s=60) as chain:
        chain.view()
        local.advance(1)
        wire.result("localnet_setAnswerFault", "chain_getHeader", kind, 1)
        started = time.monotonic()
        with pytest.raises(RemoteError, match="the connection ended without an answer"):
            chain.block()
        assert time.monotonic() - started < 10
        assert chain.block() == local.block()
