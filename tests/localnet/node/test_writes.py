"""Calls that clients sign and send to the local node over its WebSocket."""

import json
import time
from typing import Any

from template.chain.client import bt
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.scale_codec import encode_call
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, connect, make_key, make_local_chain, set_weights
from tests.fixtures.node import Wire, dial, sign_call, use_client

VALIDATOR, MINER, STRANGER = make_key("validator"), make_key("miner"), make_key("stranger")


def sign(node: NodeServer, text: bytes = b"hello", *, key: Any = MINER, nonce: int = 0, era: Any = None) -> str:
    """Sign a commitment; return the extrinsic in hex."""
    call = bt.calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [{f"Raw{len(text)}": text}]})
    return sign_call(node, call, key, nonce=nonce, era=era)


def refusal(wire: Wire, extrinsic: str) -> tuple[int, str]:
    """Return code and reason of a refused submission."""
    error = wire.call("author_submitExtrinsic", extrinsic)["error"]
    return error["code"], error["data"]


def test_commitment_arrives_as_published(local: LocalChain, node: NodeServer) -> None:
    with dial(node, NETUID, MINER) as chain, connect(local) as inside:
        outcome = chain.publish("over the wire")
        assert outcome.is_accepted and outcome.block == local.block()
        commitment = inside.commitment(MINER.ss58_address)
        assert commitment is not None and commitment.text == "over the wire"


def test_sealed_commitment_arrives_with_its_round(node: NodeServer) -> None:
    with dial(node, NETUID, MINER) as chain:
        reveal_round = bt.timelock.round_at(time.time()) + 1000
        assert chain.publish_sealed("secret", reveal_round).is_accepted
        commitment = chain.commitment(MINER.ss58_address)
        assert commitment is not None and commitment.reveal_round == reveal_round


def test_plain_weights_arrive_as_prepared(local: LocalChain, node: NodeServer) -> None:
    with dial(node, NETUID, VALIDATOR) as chain:
        outcome = set_weights(chain, {0: 0.25, 1: 0.75})
        assert outcome.is_accepted and outcome.block == local.block()
        assert chain.weights(0, local.block()) == local.weights(VALIDATOR.ss58_address) == {0: 21845, 1: 65535}


def test_timelocked_weights_are_committed(local: LocalChain, node: NodeServer) -> None:
    local.set_hyperparameter("CommitRevealWeightsEnabled", True)
    with dial(node, NETUID, VALIDATOR) as chain:
        outcome = set_weights(chain, {1: 1.0})
        assert outcome.is_revealed_later
        ((block, _, reveal_round),) = local.weight_commits(VALIDATOR.ss58_address)
        assert (block, reveal_round) == (outcome.block, outcome.reveal_round)
        assert chain.weight_commits(VALIDATOR.ss58_address, block) == [block]


def test_call_is_stored_byte_for_byte(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    # Decoded, these bytes are text; encoded again, that text would be two bytes.
    text = b"0x1234"
    wire.result("author_submitExtrinsic", sign(node, text))
    fields = [{"Raw6": text}]
    expected = encode_call("Commitments", "set_commitment", {"netuid": NETUID, "info": {"fields": fields}})
    assert local.extrinsics(local.block()) == [(expected, MINER.ss58_address)]


def test_block_holds_the_extrinsic_as_it_was_sent(node: NodeServer, wire: Wire) -> None:
    extrinsic = sign(node)
    wire.result("author_submitExtrinsic", extrinsic)
    assert wire.result("chain_getBlock")["block"]["extrinsics"][1] == extrinsic


def test_events_tell_the_success_of_a_call(node: NodeServer) -> None:
    with dial(node, NETUID, MINER) as chain:
        chain.publish("hello")
    events = use_client(node, lambda client: client._substrate.events())
    assert [event["event_id"] for event in events if event["extrinsic_idx"] == 1] == [
        "Commitment",
        "TransactionFeePaid",
        "ExtrinsicSuccess",
    ]


def test_failed_call_has_the_error_of_the_chain(node: NodeServer) -> None:
    with dial(node, NETUID, STRANGER) as chain:
        outcome = chain.publish("hello")
    assert not outcome.is_accepted and outcome.error == "AccountNotAllowedCommit"


def test_failed_call_uses_its_nonce(node: NodeServer, wire: Wire) -> None:
    with dial(node, NETUID, STRANGER) as chain:
        chain.publish("hello")
    assert wire.result("account_nextIndex", STRANGER.ss58_address) == 1


def test_signature_of_another_key_is_refused(node: NodeServer, wire: Wire) -> None:
    signed = bytes.fromhex(sign(node)[2:])
    forged = signed.replace(bytes(MINER.public_key), bytes(VALIDATOR.public_key))
    assert refusal(wire, "0x" + forged.hex()) == (1010, "Transaction has a bad signature")


def test_changed_call_is_refused(node: NodeServer, wire: Wire) -> None:
    changed = bytes.fromhex(sign(node, b"hello")[2:]).replace(b"hello", b"jello")
    assert refusal(wire, "0x" + changed.hex()) == (1010, "Transaction has a bad signature")


def test_signature_for_another_chain_is_refused(tmp_path: Any, node: NodeServer, wire: Wire) -> None:
    (tmp_path / "other").mkdir()
    with make_local_chain(tmp_path / "other") as other, NodeServer(other.path) as elsewhere:
        assert refusal(wire, sign(elsewhere)) == (1010, "Transaction has a bad signature")


def test_expired_extrinsic_is_refused(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    extrinsic = sign(node, era={"period": 8})
    local.advance(8)
    assert refusal(wire, extrinsic) == (1010, "Transaction has a bad signature")


def test_extrinsic_lives_to_the_end_of_its_era(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    extrinsic = sign(node, era={"period": 8})
    local.advance(6)
    wire.result("author_submitExtrinsic", extrinsic)
    assert local.extrinsics(local.block())


def test_used_nonce_is_refused(node: NodeServer, wire: Wire) -> None:
    wire.result("author_submitExtrinsic", sign(node, b"first"))
    assert refusal(wire, sign(node, b"second")) == (1010, "Transaction is outdated")


def test_extrinsic_is_refused_a_second_time(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    local.set_finality_lag(5)
    extrinsic = sign(node)
    wire.result("author_submitExtrinsic", extrinsic)
    assert wire.call("author_submitExtrinsic", extrinsic)["error"]["code"] == 1013


def test_nonce_of_a_waiting_call_is_refused(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    first, second = sign(node, b"first"), sign(node, b"second")
    local.set_block_time(60)
    wire.result("author_submitExtrinsic", first)
    error = wire.call("author_submitExtrinsic", second)["error"]
    assert error["code"] == 1014 and error["message"].startswith("Priority is too low")


def test_next_nonce_counts_waiting_calls(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    extrinsic = sign(node)
    local.set_block_time(60)
    wire.result("author_submitExtrinsic", extrinsic)
    assert wire.result("account_nextIndex", MINER.ss58_address) == 1


def test_later_nonce_waits_for_the_earlier(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    wire.result("author_submitExtrinsic", sign(node, b"second", nonce=1))
    before = local.block()
    wire.result("author_submitExtrinsic", sign(node, b"first", nonce=0))
    signers = [signer for block in range(before, local.block() + 1) for _, signer in local.extrinsics(block)]
    assert signers == [MINER.ss58_address] * 2


def test_unknown_call_is_refused(node: NodeServer, wire: Wire) -> None:
    call = bt.calls.System.remark(remark=b"hello")
    assert refusal(wire, sign_call(node, call, MINER)) == (1010, "Transaction call is not expected")


def test_broken_extrinsic_has_an_invalid_format(wire: Wire) -> None:
    assert wire.call("author_submitExtrinsic", "0x1234")["error"]["code"] == 1001


def test_watcher_gets_every_status_in_order(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    local.set_finality_lag(2)
    extrinsic = sign(node)
    wire.result("author_submitAndWatchExtrinsic", extrinsic)
    assert wire.update() == "ready"
    assert wire.update() == {"inBlock": local.hash_of(local.block())}
    included = local.block()
    local.advance(2)
    assert wire.update() == {"finalized": local.hash_of(included)}


def test_reorganisation_retracts_and_includes_again(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    local.set_finality_lag(10)
    wire.result("author_submitAndWatchExtrinsic", sign(node))
    wire.update()
    included = wire.update()["inBlock"]
    local.reorganise(1)
    assert wire.update() == {"retracted": included}
    assert wire.update() == "ready"
    again = wire.update()["inBlock"]
    assert again != included and wire.result("chain_getHeader", included) is None


def test_call_whose_era_was_reorganised_away_is_invalid(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    local.set_finality_lag(10)
    local.advance(3)
    extrinsic = sign(node, era={"period": 4, "current": local.block()})
    wire.result("author_submitAndWatchExtrinsic", extrinsic)
    included = [wire.update() for _ in range(2)][1]["inBlock"]
    local.reorganise(2)
    assert [wire.update() for _ in range(2)] == [{"retracted": included}, "invalid"]


def test_unwatched_extrinsic_has_no_updates(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    extrinsic = sign(node)
    local.set_block_time(60)
    number = wire.result("author_submitAndWatchExtrinsic", extrinsic)
    assert wire.update() == "ready"
    assert wire.result("author_unwatchExtrinsic", number) is True
    local.set_block_time(0)
    assert wire.result("system_chain") == "Bittensor"


def test_malformed_messages_are_errors(wire: Wire) -> None:
    codes = {
        "{": -32700,
        "[]": -32600,
        '"text"': -32600,
        json.dumps({"id": 1, "method": "no_method"}): -32601,
        json.dumps({"id": 1, "method": "state_getStorage", "params": []}): -32602,
        json.dumps({"id": 1, "method": "state_getStorage", "params": {"key": "0x"}}): -32602,
        json.dumps({"id": 1, "method": "state_getStorage", "params": [5]}): -32602,
    }
    assert {message: wire.send(message)["error"]["code"] for message in codes} == codes


def test_batch_is_answered_in_order(local: LocalChain, wire: Wire) -> None:
    requests = [{"id": number, "method": "chain_getBlockHash", "params": [number]} for number in range(3)]
    answers = wire.send(json.dumps(requests))
    assert [answer["result"] for answer in answers] == [local.hash_of(number) for number in range(3)]


def test_heads_come_as_they_are_made(local: LocalChain, wire: Wire) -> None:
    wire.result("chain_subscribeNewHeads")
    first = int(wire.update()["number"], 16)
    local.advance(2)
    assert [int(wire.update()["number"], 16) for _ in range(2)] == [first + 1, first + 2]


def test_heads_of_a_new_fork_come_after_a_reorganisation(local: LocalChain, wire: Wire) -> None:
    local.set_finality_lag(10)
    local.advance(3)
    wire.result("chain_subscribeNewHeads")
    before = wire.update()
    local.reorganise(2)
    local.advance(2)
    # A node that looks between the two blocks sends both.
    while wire.update()["number"] != before["number"]:
        pass
    assert wire.result("chain_getHeader")["stateRoot"] != before["stateRoot"]


def test_wrong_key_ends_no_connection(wire: Wire) -> None:
    assert wire.call("state_subscribeStorage", ["zz"])["error"]["code"] == -32602
    assert wire.result("system_chain") == "Bittensor"


def test_finalized_heads_lag_behind(local: LocalChain, wire: Wire) -> None:
    local.set_finality_lag(3)
    local.advance(5)
    wire.result("chain_subscribeFinalizedHeads")
    assert int(wire.update()["number"], 16) == local.block() - 3


def test_storage_updates_hold_the_changed_value(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    key = "0x26aa394eea5630e07c48ae0c9558cef702a5c1b19ab7a04f536c519aca4983ac"
    wire.result("state_subscribeStorage", [key])
    wire.update()
    number = local.advance(1)
    assert wire.update()["changes"] == [[key, "0x" + number.to_bytes(4, "little").hex()]]


def send_weights(node: NodeServer, wire: Wire, key: Any) -> tuple[int, str]:
    """Send plain weights without the client's own checks; return the refusal."""
    call = bt.calls.SubtensorModule.set_mechanism_weights(
        netuid=NETUID, mecid=0, dests=[1], weights=[65535], version_key=0
    )
    return refusal(wire, sign_call(node, call, key))


def test_weights_without_stake_stay_out_of_the_pool(node: NodeServer, wire: Wire) -> None:
    assert send_weights(node, wire, MINER) == (1010, "Custom error: 1")


def test_weights_set_too_fast_stay_out_of_the_pool(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    local.set_hyperparameter("WeightsSetRateLimit", 100)
    assert send_weights(node, wire, VALIDATOR) == (1010, "Custom error: 6")


def test_weights_with_a_past_reveal_round_stay_out_of_the_pool(local: LocalChain, node: NodeServer, wire: Wire) -> None:
    local.set_hyperparameter("CommitRevealWeightsEnabled", True)
    call = bt.calls.SubtensorModule.commit_timelocked_mechanism_weights(
        netuid=NETUID, mecid=0, commit=b"sealed", reveal_round=5, commit_reveal_version=4
    )
    assert refusal(wire, sign_call(node, call, VALIDATOR)) == (1010, "Custom error: 15")


def test_refused_call_uses_no_nonce(node: NodeServer, wire: Wire) -> None:
    send_weights(node, wire, MINER)
    assert wire.result("account_nextIndex", MINER.ss58_address) == 0


def test_failed_reveal_may_not_be_committed(node: NodeServer) -> None:
    field = {"TimelockRevealFailed": {"encrypted": b"sealed", "reveal_round": 5}}

    async def submit(client: Any) -> Any:
        call = bt.calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [field]})
        return await client.submit_call(call, MINER, signer="hotkey")

    result = use_client(node, submit)
    assert not result.success and result.error.name == "TimelockRevealFailedNotAllowed"


def test_error_without_a_number_in_the_metadata_is_told_as_other(local: LocalChain, node: NodeServer) -> None:
    local.set_hyperparameter("CommitRevealWeightsEnabled", True)
    reveal_round = bt.timelock.round_at(time.time()) + 1000

    async def submit(client: Any) -> Any:
        call = bt.calls.SubtensorModule.commit_timelocked_mechanism_weights(
            netuid=NETUID, mecid=0, commit=bytes(5001), reveal_round=reveal_round, commit_reveal_version=4
        )
        return await client.submit_call(call, VALIDATOR, signer="hotkey")

    result = use_client(node, submit)
    assert not result.success and result.error.name == "Other"


def test_served_axon_is_in_the_metagraph(node: NodeServer) -> None:
    async def serve(client: Any) -> Any:
        result = await client.execute(bt.ServeAxon(NETUID, ip="10.0.0.1", port=8091), MINER)
        return result, await client.subnets.metagraph(NETUID), await client._substrate.events()

    result, graph, events = use_client(node, serve)
    assert result.success and graph.neurons[1].axon == "10.0.0.1:8091"
    assert any(event["event_id"] == "AxonServed" for event in events)


def test_axon_without_an_address_stays_out_of_the_pool(node: NodeServer, wire: Wire) -> None:
    call = bt.calls.SubtensorModule.serve_axon(
        netuid=NETUID, version=1, ip=0, port=1, ip_type=4, protocol=4, placeholder1=0, placeholder2=0
    )
    assert refusal(wire, sign_call(node, call, MINER)) == (1010, "Custom error: 11")
