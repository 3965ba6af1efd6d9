"""The local node against answers of a real one, of runtime 461, and against the metadata's own defaults.

From the bittensor 11.3.0 source distribution (PyPI, Apache-2.0), unchanged: `recorded-461.json` holds parts of
tests/fixtures/golden.json, and `recorded-shapes-461.json`, of tests/fixtures/shape_corpus/corpus.json, the types of all
values that the local node has rules for.
"""

import json
from pathlib import Path
from typing import Any

from template.localnet.chain.chain import LocalChain
from template.localnet.chain.pallets import HYPERPARAMETERS, RAO_PER_TAO
from template.localnet.node.apis import call_api
from template.localnet.node.extrinsics import Era, parse_extrinsic
from template.localnet.node.items import ITEMS, BlockView
from template.localnet.node.runtime import Runtime
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, SEALED, commit, connect, make_key, set_weights, submit
from tests.fixtures.node import Wire, dial, use_client

RECORD = json.loads(Path(__file__).with_name("recorded-461.json").read_text())
SHAPES = {
    f"scale_info::{each['id']}": each["samples"]
    for each in json.loads(Path(__file__).with_name("recorded-shapes-461.json").read_text())
}
RUNTIME = Runtime(12_000)
VALIDATOR, MINER = make_key("validator"), make_key("miner")

# A new subnet's own values. Source: init_new_network, pallets/subtensor/src/subnets/subnet.rs, and for the stake root's
# sudo_set_stake_threshold, pallets/admin-utils/src/lib.rs.
SET_AT_REGISTRATION = {"Tempo": 360, "MinAllowedWeights": 1, "StakeThreshold": 1000 * RAO_PER_TAO}
# Each API with its parameters, encoded.
APIS = {
    "NeuronInfoRuntimeApi_get_neurons_lite": NETUID.to_bytes(2, "little"),
    "StakeInfoRuntimeApi_get_stake_info_for_coldkey": VALIDATOR.public_key,
    "StakeInfoRuntimeApi_get_stake_info_for_coldkeys": b"\x04" + VALIDATOR.public_key,
    "StakeInfoRuntimeApi_get_stake_availability_for_coldkeys": b"\x04" + VALIDATOR.public_key + b"\x00",
    "SubnetInfoRuntimeApi_get_subnet_hyperparams_v3": NETUID.to_bytes(2, "little"),
    "SwapRuntimeApi_current_alpha_price": NETUID.to_bytes(2, "little"),
    "SwapRuntimeApi_current_alpha_price_all": b"",
    "AccountNonceApi_account_nonce": MINER.public_key,
    "SubnetInfoRuntimeApi_get_metagraph": NETUID.to_bytes(2, "little"),
    "SubnetInfoRuntimeApi_get_next_epoch_start_block": NETUID.to_bytes(2, "little"),
    "TransactionPaymentApi_query_info": b"",
}


def data(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def ask(node: NodeServer, *calls: tuple[Any, ...]) -> list[Any]:
    """Call methods of the client's connection, each named before its arguments."""

    async def run(client: Any) -> list[Any]:
        return [await getattr(client._substrate, method)(*arguments) for method, *arguments in calls]

    answers: list[Any] = use_client(node, run)
    return answers


def ours(params: list[Any]) -> list[Any]:
    """Return recorded parameters with this subnet's number in place of 1."""
    return [NETUID if param == 1 else param for param in params]


def fits(ours: Any, theirs: Any) -> bool:
    """Tell whether two values have the same fields and types; an empty list fits every list."""
    if isinstance(theirs, dict):
        is_record = isinstance(ours, dict) and ours.keys() == theirs.keys()
        return is_record and all(fits(ours[name], theirs[name]) for name in theirs)
    if isinstance(theirs, list):
        return isinstance(ours, list | tuple) and (not ours or not theirs or fits(ours[0], theirs[0]))
    return type(ours) is type(theirs)


def test_recorded_values_have_their_recorded_keys_and_bytes() -> None:
    for recorded in RECORD["storage_values"]:
        entry = RUNTIME.codec.storage_entry(recorded["pallet"], recorded["storage_function"])
        assert bytes(RUNTIME.codec.storage_key(entry, recorded["params"])) == data(recorded["key_hex"])
        if recorded["raw_hex"] is not None:
            assert RUNTIME.encode(entry.value_type, recorded["decoded"]) == data(recorded["raw_hex"]), recorded


def test_values_have_the_shapes_of_recorded_ones(node: NodeServer) -> None:
    recorded = RECORD["storage_values"]
    calls = [("query", each["pallet"], each["storage_function"], ours(each["params"])) for each in recorded]
    for each, value in zip(recorded, ask(node, *calls), strict=True):
        assert fits(value, each["decoded"]), (each["storage_function"], value)


def test_maps_have_the_shapes_of_recorded_ones(node: NodeServer) -> None:
    recorded = RECORD["query_maps"]
    calls = [("query_map", each["pallet"], each["storage_function"], ours(each["params"])) for each in recorded]
    for each, pairs in zip(recorded, ask(node, *calls), strict=True):
        assert pairs and fits(pairs, each["pairs"]), (each["storage_function"], pairs)


def test_runtime_calls_have_the_shapes_of_recorded_ones(node: NodeServer) -> None:
    params = {"get_neurons_lite": [NETUID], "account_nonce": [MINER.ss58_address]}
    recorded = RECORD["runtime_calls"]
    calls = [("runtime_call", each["api"], each["method"], params[each["method"]]) for each in recorded]
    for each, value in zip(recorded, ask(node, *calls), strict=True):
        assert fits(value, each["decoded"]), (each["method"], value)


def test_recorded_runtime_calls_are_encoded_to_their_bytes() -> None:
    for recorded in RECORD["runtime_calls"]:
        output = RUNTIME.codec.runtime_api_map[recorded["api"]][recorded["method"]]["output"]
        assert RUNTIME.encode(output, recorded["decoded"]) == data(recorded["raw_hex"])


def test_recorded_events_are_read_by_this_metadata() -> None:
    value_type = RUNTIME.codec.storage_entry("System", "Events").value_type
    events = RUNTIME.codec.decode(value_type, data(RECORD["events"]["raw_hex"]))
    assert [event["event_id"] for event in events] == [event["event_id"] for event in RECORD["events"]["decoded"]]


def test_events_have_the_shapes_of_recorded_ones(node: NodeServer) -> None:
    with dial(node, NETUID, MINER) as chain:
        chain.publish("hello")
    recorded = {event["event_id"]: event for event in RECORD["events"]["decoded"]}
    (events,) = ask(node, ("events",))
    common = [event for event in events if event["event_id"] in recorded]
    assert len(common) == 3 and all(fits(event, recorded[event["event_id"]]) for event in common)


def test_header_has_the_shape_of_a_recorded_one(wire: Wire) -> None:
    assert fits(wire.result("chain_getHeader"), RECORD["header"])


def test_recorded_extrinsics_are_split_into_their_parts() -> None:
    for recorded in RECORD["extrinsics"]:
        extrinsic = parse_extrinsic(data(recorded["extrinsic_hex"]))
        assert extrinsic.hash == recorded["extrinsic_hash"] and extrinsic.signer == recorded["address"]
        assert extrinsic.nonce == recorded["nonce"] and extrinsic.call == data(recorded["call_data_hex"])
        assert extrinsic.era == (None if recorded["era"] == "00" else Era(64, recorded["era"]["current"] % 64))


def test_new_subnet_has_the_defaults_of_the_chain(tmp_path: Path) -> None:
    with LocalChain.create(tmp_path / "chain.sqlite3", netuid=NETUID, owner_hotkey=MINER.ss58_address) as local:
        local.register(MINER.ss58_address)
        with NodeServer(local.path) as node:
            graph = use_client(node, lambda client: client.subnets.metagraph(NETUID)).raw
    assert graph["commit_reveal_weights_enabled"] is True and graph["max_weights_limit"] == 65535
    assert all(type(letter) is int for letter in (*graph["name"], *graph["symbol"]))
    assert graph["axons"][0].keys() >= {"ip", "port", "protocol"}


def fill(local: LocalChain) -> None:
    """Give every storage item a value."""
    axon = {"version": 1, "ip": 2**24, "port": 1, "ip_type": 4, "protocol": 4, "placeholder1": 0, "placeholder2": 0}
    submit(local, MINER, "SubtensorModule", "serve_axon", netuid=NETUID, **axon)
    with connect(local, VALIDATOR) as chain:
        set_weights(chain, {1: 1.0})
        commit(local, MINER, SEALED)
        local.reveal(MINER.ss58_address, "opened")
        commit(local, MINER, SEALED, {"Raw5": b"hello"})
        local.set_hyperparameter("CommitRevealWeightsEnabled", True)
        set_weights(chain, {1: 1.0})


def test_every_item_with_rules_has_values_of_its_type(local: LocalChain) -> None:
    fill(local)
    view = BlockView(local, local.block())
    for item, values_of in ITEMS.items():
        type_string = RUNTIME.codec.storage_entry(*item).value_type
        values = list(values_of(view).values())
        assert values and all(RUNTIME.encode(type_string, value) for value in values), item


def test_every_api_with_rules_has_an_answer_of_its_type(local: LocalChain) -> None:
    fill(local)
    for name, parameters in APIS.items():
        api, _, method = name.partition("_")
        output = RUNTIME.codec.runtime_api_map[api][method]["output"]
        answer = RUNTIME.codec.decode(output, call_api(local, RUNTIME, name, parameters, local.block()))
        assert answer not in (None, [], {}), name


def test_recorded_values_of_every_type_have_their_bytes() -> None:
    for type_string, samples in SHAPES.items():
        for sample in samples:
            raw = data(sample["scale_hex"])
            decoded = RUNTIME.codec.decode(type_string, raw)
            assert json.loads(json.dumps(decoded)) == sample["decoded"], type_string
            # Not the JSON, which has texts for the numbers of netuids.
            assert RUNTIME.encode(type_string, decoded) == raw, type_string


def test_hyperparameters_are_the_metadatas_but_for_a_new_subnets() -> None:
    for name, ours in HYPERPARAMETERS.items():
        entry = RUNTIME.codec.storage_entry("Commitments" if name == "MaxSpace" else "SubtensorModule", name)
        default = RUNTIME.codec.decode(entry.value_type, bytes(entry.default_bytes))
        assert ours == SET_AT_REGISTRATION.get(name, default), name
