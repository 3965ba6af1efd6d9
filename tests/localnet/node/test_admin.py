"""Administration of the local chain over its node's WebSocket."""

from template.localnet.chain.chain import LocalChain
from template.localnet.chain.pallets import parameter
from tests.fixtures.chain import make_key
from tests.fixtures.node import Wire

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
