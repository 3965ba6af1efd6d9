"""Every call the product makes, as the chain's own runtime encodes it."""

from pathlib import Path
from typing import Any

import pytest
from bittensor._transport.codec import RuntimeCodec

from template import constants
from template.chain.client import beacon_round_at, bt
from template.chain.commitments import encode_timelock_plaintext
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.ledger import Ledger
from template.localnet.chain.scale_codec import decode_call, encode_call
from template.localnet.node.metadata import recorded_metadata
from tests.fixtures.chain import NETUID, SEALED, commit, connect, make_key, set_weights
from tests.fixtures.substrate import LocalSubstrate
from tests.fixtures.substrate_storage import read_entries, read_value

FIELDS: list[object] = [
    {"Raw1": b"a"},
    {"Raw128": bytes(range(128))},
    {"Raw2": "hi"},
    {"Raw2": "0x6869"},
    {"BlakeTwo256": bytes(32)},
    {"Sha256": bytes(32)},
    {"Keccak256": bytes(32)},
    {"ShaThree256": bytes(32)},
    {"TimelockEncrypted": {"encrypted": bytes(100), "reveal_round": 2**40}},
    {"BigRaw": bytes(300)},
    "ResetBondsFlag",
    "None",
]


class RecordingSubstrate(LocalSubstrate):
    """Keeps the calls that the client composes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.composed: list[tuple[str, str, dict[str, Any]]] = []

    async def compose(self, call: tuple[str, str, dict[str, Any]]) -> Any:
        self.composed.append(call)
        return await super().compose(call)


@pytest.fixture(scope="module")
def codec() -> RuntimeCodec:
    return RuntimeCodec(recorded_metadata(15), spec_version=461, transaction_version=1, spec_name="node-subtensor")


@pytest.fixture
def calls(local: LocalChain) -> list[tuple[str, str, dict[str, Any]]]:
    """The calls of a miner and a validator, as the product and the client build them."""
    node = RecordingSubstrate(local.path)
    with connect(local, make_key("validator"), node=node) as chain:
        assert chain.publish("owner/name:1:" + "a" * 40).is_accepted
        assert chain.publish("x" * 128).is_accepted
        assert chain.publish_sealed("x" * 128, beacon_round_at(2**32)).is_accepted
        assert set_weights(chain, {0: 0.25, 1: 0.75}).is_accepted
        local.set_hyperparameter("CommitRevealWeightsEnabled", True)
        assert set_weights(chain, {0: 0.25, 1: 0.75}).is_revealed_later
    return node.composed


def test_every_product_call_encodes_and_decodes(
    codec: RuntimeCodec, calls: list[tuple[str, str, dict[str, Any]]]
) -> None:
    commits, weights = ["set_commitment"] * 3, ["set_mechanism_weights", "commit_timelocked_mechanism_weights"]
    assert [function for _, function, _ in calls] == commits + weights
    for module, function, params in calls:
        composed = codec.compose_call(module, function, params)
        decoded = codec.decode_call(composed.data)
        assert (decoded["call_module"], decoded["call_function"]) == (module, function)
        values = {argument["name"]: argument["value"] for argument in decoded["call_args"]}
        assert values.keys() == params.keys()
        assert codec.compose_call(module, function, values).data == composed.data
        assert encode_call(module, function, params) == composed.data
        assert encode_call(*decode_call(composed.data)) == composed.data


def test_product_calls_decode_to_their_arguments(
    codec: RuntimeCodec, calls: list[tuple[str, str, dict[str, Any]]]
) -> None:
    first, _, timelocked, weights, sealed = calls
    decoded = codec.decode_call(codec.compose_call(*first).data)
    (field,) = decoded["call_args"][1]["value"]["fields"]
    assert bytes.fromhex(field["Raw53"][2:]).decode() == "owner/name:1:" + "a" * 40
    (field,) = timelocked[2]["info"]["fields"][0].values()
    assert len(field["encrypted"]) <= 128 + 246
    decoded = codec.decode_call(codec.compose_call(*timelocked).data)
    shown = {"encrypted": "0x" + field["encrypted"].hex(), "reveal_round": beacon_round_at(2**32)}
    assert decoded["call_args"][1]["value"]["fields"] == [{"TimelockEncrypted": shown}]
    sent = {"dests": [0, 1], "weights": [21845, 65535], "version_key": constants.WEIGHTS_VERSION}
    assert weights[2] == {"netuid": NETUID, "mecid": 0, **sent}
    assert sealed[2]["commit_reveal_version"] == 4 and isinstance(sealed[2]["commit"], bytes)


# Only the runtime may store it.
REVEAL_FAILED = {"TimelockRevealFailed": {"encrypted": bytes(100), "reveal_round": 2**40}}


@pytest.mark.parametrize("field", [*FIELDS, REVEAL_FAILED], ids=str)
def test_commitment_fields_encode_like_the_client(codec: RuntimeCodec, field: object) -> None:
    call = bt.calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [field]})
    data = codec.compose_call(*call).data
    assert encode_call(*call) == data
    assert encode_call(*decode_call(data)) == data


@pytest.mark.parametrize("field", [{"Raw3": b"ab"}, {"Raw129": bytes(129)}, {"Nope": b""}, {"Sha256": bytes(31)}])
def test_fields_that_the_runtime_lacks_do_not_encode(codec: RuntimeCodec, field: object) -> None:
    call = bt.calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [field]})
    for compose in (codec.compose_call, encode_call):
        with pytest.raises(ValueError, match=r"expected|no variant"):
            compose(*call)


def test_metadata_allows_what_the_product_sends(codec: RuntimeCodec) -> None:
    assert codec.constant("Commitments", "MaxFields") == 3
    for item in ("CommitmentOf", "RevealedCommitments"):
        assert codec.storage_entry("Commitments", item).name == item


@pytest.mark.parametrize(
    "field", [{"TimelockEncrypted": {"encrypted": bytes(1025), "reveal_round": 1}}, {"BigRaw": bytes(513)}]
)
def test_fields_above_the_chains_limits_do_not_decode(field: object) -> None:
    data = encode_call(*bt.calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [field]}))
    with pytest.raises(ValueError, match="a length of"):
        decode_call(data)


@pytest.mark.parametrize("text", ["a", "hello", "xello world!", "x" * 63, "x" * 64, "é" * 64])
def test_stored_reveals_decode_like_the_client(codec: RuntimeCodec, local: LocalChain, text: str) -> None:
    key = make_key("miner")
    commit(local, key, SEALED)
    local.reveal(key.ss58_address, text)
    entry = codec.storage_entry("Commitments", "RevealedCommitments")
    plaintext = encode_timelock_plaintext(text)
    stored = b"\x04" + codec.encode_compact(len(plaintext)) + plaintext + local.block().to_bytes(8, "little")
    with Ledger(local.path) as ledger:
        ((data, block),) = read_value(ledger.at(), "Commitments.RevealedCommitments", [key.ss58_address])
    assert codec.decode(entry.value_type, stored) == [(data, block)]


def test_bytes_of_no_known_call_do_not_decode() -> None:
    call = bt.calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [{"Raw2": b"ab"}]})
    data = encode_call(*call)
    for bad in (b"", b"\x99\x99", data[:-1], data + b"\x00", data[:4] + b"\x03" + data[5:]):
        with pytest.raises(ValueError, match=r"call|length"):
            decode_call(bad)


def test_block_hashes_of_state_and_number_have_one_form(codec: RuntimeCodec, local: LocalChain) -> None:
    local.advance(3)
    with connect(local) as chain:
        asked = chain.block_hash(2)
    entry = codec.storage_entry("System", "BlockHash")
    assert codec.decode(entry.decode_type(True), bytes.fromhex(asked[2:])) == asked
    assert not int(codec.decode(entry.decode_type(False), entry.default_bytes), 16)


@pytest.mark.parametrize("field", [*FIELDS, {"Raw0": b""}, {"Raw4": b"\xff\xfe\x1b["}, {"BigRaw": b""}], ids=str)
def test_stored_commitments_decode_like_the_client(codec: RuntimeCodec, local: LocalChain, field: object) -> None:
    key = make_key("miner")
    commit(local, key, field, field)
    with Ledger(local.path) as ledger:
        stored = ledger.at().get("CommitmentOf", key.ss58_address)
        shown = read_value(ledger.at(), "Commitments.CommitmentOf", [key.ss58_address])
        assert read_entries(ledger.at(), "Commitments.CommitmentOf") == [(key.ss58_address, shown)]
    entry = codec.storage_entry("Commitments", "CommitmentOf")
    assert codec.decode(entry.value_type, codec.encode(entry.value_type, stored)) == shown
