"""Administration of the local chain over its node's WebSocket."""

import pytest

from template.chain.client import bt
from template.errors import UnknownSubnetError
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.pallets import neurons, parameter
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, make_key
from tests.fixtures.node import Wire, dial, use_client

STRANGER = make_key("stranger").ss58_address


def test_blocks_are_made_on_request(local: LocalChain, wire: Wire) -> None:
    before = local.block()
    assert wire.result("localnet_advance", 5) == local.block() == before + 5


def test_blocks_are_taken_back_on_request(local: LocalChain, wire: Wire) -> None:
    wire.result("localnet_setFinalityLag", 10)
    wire.result("localnet_advance", 5)
    head = wire.result("chain_getHead")
    wire.result("localnet_reorganise", 2)
    assert wire.result("chain_getHeader", head) is None


def test_final_block_lags_behind_on_request(local: LocalChain, wire: Wire) -> None:
    wire.result("localnet_setFinalityLag", 3)
    wire.result("localnet_advance", 5)
    assert wire.result("chain_getFinalizedHead") == local.hash_of(local.block() - 3)


def test_hotkey_is_registered_on_request(local: LocalChain, wire: Wire) -> None:
    uid = wire.result("localnet_register", STRANGER)
    assert local.at().get("Neuron", str(uid))["hotkey"] == STRANGER


def test_hyperparameter_is_set_on_request(local: LocalChain, wire: Wire) -> None:
    wire.result("localnet_setHyperparameter", "Tempo", 50)
    assert parameter(local.at(), "Tempo") == 50


def test_unknown_hyperparameter_is_an_invalid_parameter(wire: Wire) -> None:
    assert wire.call("localnet_setHyperparameter", "Temper", 50)["error"]["code"] == -32602


def test_dissolved_subnet_has_neither_metagraph_nor_neurons(local: LocalChain, wire: Wire, node: NodeServer) -> None:
    wire.result("localnet_dissolveSubnet")
    assert neurons(local.at()) == []
    with dial(node, NETUID) as chain, pytest.raises(UnknownSubnetError):
        chain.view()


def test_replaced_subnet_has_a_later_registration(local: LocalChain, wire: Wire, node: NodeServer) -> None:
    wire.result("localnet_replaceSubnet", STRANGER)
    with dial(node, NETUID) as chain:
        view = chain.view()
        assert (view.owner_hotkey, view.registered_block, view.neurons) == (STRANGER, local.block(), ())
        assert chain.registration_block() == local.block()


def test_downgraded_runtime_lacks_an_item(wire: Wire, node: NodeServer) -> None:
    wire.result("localnet_downgradeRuntime")

    async def read(client: bt.Client) -> None:
        await client.query(bt.storage.SubtensorModule.SubnetEpochConsensus, [NETUID])

    with pytest.raises(ValueError, match="SubnetEpochConsensus not found"):
        use_client(node, read)
