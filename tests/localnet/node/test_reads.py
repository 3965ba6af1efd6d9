"""Reads of the local node over its WebSocket."""

import hashlib
import inspect
import re
from typing import Any

from bittensor._transport.codec import RuntimeCodec

from template.chain.client import bt
from template.localnet.chain import pallets
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.scale_codec import encode_compact
from template.localnet.node.metadata import SPEC_VERSION, recorded_metadata, runtime_metadata
from template.localnet.node.runtime import Runtime
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, SEALED, commit, connect, make_key, run_async, set_weights
from tests.fixtures.node import Wire, dial, use_client
from tests.fixtures.substrate import LocalSubstrate

VALIDATOR, MINER, OWNER = make_key("validator"), make_key("miner"), make_key("owner")


def write_history(local: LocalChain) -> None:
    """Commit, reveal, set weights and replace a neuron."""
    commit(local, MINER, {"Raw5": b"hello"})
    commit(local, VALIDATOR, SEALED)
    with connect(local, VALIDATOR) as chain:
        set_weights(chain, {0: 0.25, 1: 0.75})
    local.reveal(VALIDATOR.ss58_address, "opened")
    # Encoded, it begins like a hex string, which the codec would convert.
    commit(local, VALIDATOR, SEALED)
    local.reveal(VALIDATOR.ss58_address, "x" * 12)
    local.register(OWNER.ss58_address)
    local.register(make_key("late").ss58_address, OWNER.ss58_address)
    local.deregister(make_key("late").ss58_address)


def test_view_equals_the_view_in_process(local: LocalChain, node: NodeServer) -> None:
    write_history(local)
    with connect(local) as inside, dial(node, NETUID) as outside:
        assert outside.view() == inside.view()


def test_every_snapshot_equals_the_one_in_process(local: LocalChain, node: NodeServer) -> None:
    write_history(local)
    with connect(local) as inside, dial(node, NETUID) as outside:
        for block in range(1, local.block() + 1):
            assert outside.snapshot(block) == inside.snapshot(block)


def test_metagraph_equals_the_one_in_process(local: LocalChain, node: NodeServer) -> None:
    write_history(local)
    # Not with the commitments: the client fails at one that is revealed as 12 letters x.
    over_wire = use_client(node, lambda client: client.subnets.metagraph(NETUID, commitments=False))

    async def read(substrate: LocalSubstrate) -> Any:
        return await substrate.runtime_call("SubnetInfoRuntimeApi", "get_metagraph", [NETUID])

    inside = run_async(local, read)
    assert {name: over_wire.raw[name] for name in inside} == inside


def test_unknown_netuid_has_no_metagraph(node: NodeServer) -> None:
    assert use_client(node, lambda client: client.subnets.metagraph(NETUID + 1)) is None


def test_map_longer_than_a_page_is_complete(local: LocalChain, node: NodeServer) -> None:
    keys = [make_key(f"miner {number}") for number in range(130)]
    with local.write() as state:
        for number, key in enumerate(keys):
            fields = [{"Raw1": f"0x{number:02x}"}]
            state.put("CommitmentOf", key.ss58_address, {"deposit": 0, "block": 1, "info": {"fields": fields}})
    pairs = use_client(node, lambda client: client.query_map(bt.storage.Commitments.CommitmentOf, [NETUID]))
    assert {hotkey for hotkey, _ in pairs} == {key.ss58_address for key in keys}


def test_header_hashes_to_the_block_hash(local: LocalChain, wire: Wire) -> None:
    local.advance(70)
    head = wire.result("chain_getHead")
    header = wire.result("chain_getHeader", head)
    parts = [bytes.fromhex(header[name][2:]) for name in ("parentHash", "stateRoot", "extrinsicsRoot")]
    data = parts[0] + encode_compact(int(header["number"], 16)) + parts[1] + parts[2] + b"\x00"
    assert "0x" + hashlib.blake2b(data, digest_size=32).hexdigest() == head


def test_past_hashes_are_in_the_state(local: LocalChain, node: NodeServer) -> None:
    local.advance(3)

    async def read(client: bt.Client) -> str:
        return str(await client.query(bt.storage.System.BlockHash, [2]))

    assert use_client(node, read) == local.hash_of(2)


def test_future_block_has_no_hash(local: LocalChain, wire: Wire) -> None:
    assert wire.result("chain_getBlockHash", local.block() + 1) is None


def test_unknown_block_has_no_header(wire: Wire) -> None:
    assert wire.result("chain_getHeader", "0x" + "12" * 32) is None


def test_state_of_an_unknown_block_is_an_error(wire: Wire) -> None:
    answer = wire.call("state_getStorage", "0x" + "00" * 32, "0x" + "12" * 32)
    assert answer["error"]["code"] == 4003 and "UnknownBlock" in answer["error"]["message"]


def test_block_time_is_that_of_the_chain(local: LocalChain) -> None:
    local.set_block_time(0.25)
    with NodeServer(local.path) as node:

        async def read(client: bt.Client) -> float:
            return float(await client._substrate.block_time())

        assert use_client(node, read) == 0.25


def test_added_item_is_all_that_differs_from_the_record() -> None:
    for version in (14, 15):
        recorded = RuntimeCodec(recorded_metadata(version), spec_version=461, transaction_version=1).metadata_ir()
        ours = RuntimeCodec(runtime_metadata(version, 12_000), spec_version=461, transaction_version=1).metadata_ir()
        (added,) = (item for pallet in ours.pallets for item in pallet.storage if item.name == "SubnetEpochConsensus")
        next(pallet for pallet in ours.pallets if pallet.name == "SubtensorModule").storage.remove(added)
        assert ours == recorded


def test_every_storage_item_has_an_encodable_default() -> None:
    runtime = Runtime(12_000)
    for pallet in runtime.codec.metadata_ir().pallets:
        for item in pallet.storage:
            value_type = runtime.codec.storage_entry(pallet.name, item.name).value_type
            runtime.codec.decode(value_type, runtime.default(value_type))


def test_runtime_version_is_that_of_the_metadata(wire: Wire) -> None:
    assert wire.result("state_getRuntimeVersion")["specVersion"] == SPEC_VERSION


def test_commitment_whose_reveal_failed_has_that_status(local: LocalChain, node: NodeServer) -> None:
    commit(local, MINER, SEALED)
    local.fail_reveal(MINER.ss58_address)
    commitments = use_client(node, lambda client: client.subnets.commitments(NETUID))
    assert commitments[MINER.ss58_address].status == "failed"


def test_view_of_a_failed_reveal_equals_the_view_in_process(local: LocalChain, node: NodeServer) -> None:
    commit(local, MINER, SEALED)
    local.fail_reveal(MINER.ss58_address)
    with connect(local) as inside, dial(node, NETUID) as outside:
        assert outside.view() == inside.view()


def test_every_error_of_the_pallets_is_one_of_the_runtime() -> None:
    source = inspect.getsource(pallets)
    ours = set(re.findall(r'DispatchError\("(\w+)"\)', source)) | set(re.findall(r'_check_rate\(.*"(\w+)"\)', source))
    numbered = {error.name for pallet in Runtime(12_000).codec.metadata_ir().pallets for error in pallet.errors}
    # It came with runtime 475.
    assert len(ours) > 15 and ours - numbered == {"CommitPayloadTooLarge"}
