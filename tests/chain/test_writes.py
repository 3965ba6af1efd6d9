"""Writes over the wire that the chain refuses, loses or includes without a word."""

from collections.abc import Iterator

import pytest

from template.chain.client import Chain
from template.constants import ERA_BLOCKS
from template.errors import NotSubmittedError, RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, connect, make_key, make_node, set_weights
from tests.fixtures.node import Wire, dial

MINER, VALIDATOR = make_key("miner"), make_key("validator")
OUTDATED = (1010, "Invalid Transaction", "Transaction is outdated")


@pytest.fixture
def chain(node: NodeServer) -> Iterator[Chain]:
    with dial(node, NETUID, VALIDATOR) as chain:
        yield chain


def count_calls(local: LocalChain) -> int:
    """Return the validator's commitments and weights in all blocks."""
    records = (record for block in range(local.block() + 1) for record in local.records(block))
    return sum(record.signer == VALIDATOR.ss58_address for record in records)


def test_write_after_a_second_writer_is_accepted(chain: Chain, wire: Wire) -> None:
    chain.publish("first")
    wire.result("localnet_useNonce", VALIDATOR.ss58_address)
    assert chain.publish("second").is_accepted


def test_nonce_taken_in_between_is_read_again_once(local: LocalChain, chain: Chain, wire: Wire) -> None:
    wire.result("localnet_refuseExtrinsics", *OUTDATED, 1)
    assert chain.publish("text").is_accepted and count_calls(local) == 1


def test_nonce_taken_twice_is_not_submitted(local: LocalChain, chain: Chain, wire: Wire) -> None:
    wire.result("localnet_refuseExtrinsics", *OUTDATED, 2)
    with pytest.raises(NotSubmittedError, match="another program signs with this hotkey"):
        chain.publish("text")
    assert count_calls(local) == 0


def test_unknown_number_of_the_pool_is_not_submitted(local: LocalChain, chain: Chain, wire: Wire) -> None:
    wire.result("localnet_refuseExtrinsics", 1010, "Invalid Transaction", "Custom error: 77", 1)
    with pytest.raises(NotSubmittedError, match=r"the node's transaction pool refuses the call.*Custom error: 77"):
        chain.publish("text")
    assert count_calls(local) == 0


@pytest.mark.parametrize("code", [1002, 1011, 1012, 1014, 1016, 1021])
def test_every_refusal_of_the_pool_is_not_submitted(chain: Chain, wire: Wire, code: int) -> None:
    wire.result("localnet_refuseExtrinsics", code, "The pool refuses", None, 2)
    with pytest.raises(NotSubmittedError, match="The pool refuses"):
        chain.publish("text")


def test_call_that_the_pool_has_already_may_land(chain: Chain, wire: Wire) -> None:
    wire.result("localnet_refuseExtrinsics", 1013, "Transaction Already Imported", None, 1)
    with pytest.raises(RemoteError, match="result unknown") as caught:
        chain.publish("text")
    assert not isinstance(caught.value, NotSubmittedError)


def test_failure_before_the_submission_is_not_submitted(chain: Chain, wire: Wire) -> None:
    wire.result("localnet_setAnswerFault", "account_nextIndex", "null", 1)
    with pytest.raises(NotSubmittedError):
        chain.publish("text")


def test_runtime_without_an_item_is_named(local: LocalChain, chain: Chain, wire: Wire) -> None:
    wire.result("localnet_downgradeRuntime")
    local.advance()
    expected = (
        r"SubtensorModule\.SubnetEpochConsensus not found: the chain's runtime 474 is older than .* bittensor \d.*"
        r"install an earlier release, such as pip install 'bittensor<"
    )
    prepared = chain.prepare_weights({1: 1.0})
    with pytest.raises(NotSubmittedError, match=expected):
        chain.set_weights(prepared)


def test_included_call_without_events_may_have_landed(local: LocalChain, chain: Chain, wire: Wire) -> None:
    wire.result("localnet_hideEvents", True)
    with pytest.raises(RemoteError, match=r"result unknown.*it is in block \d+, and no event") as caught:
        set_weights(chain, {1: 1.0})
    assert not isinstance(caught.value, NotSubmittedError)
    assert local.weights(VALIDATOR.ss58_address) == {1: 65535}


def test_write_lands_while_finality_lags_by_100_blocks(local: LocalChain, node: NodeServer) -> None:
    local.set_finality_lag(100)
    local.advance(200)
    with dial(node, NETUID, VALIDATOR, deadline_s=0.5) as chain:
        with pytest.raises(RemoteError, match=r"result unknown.*no answer within 0\.5 s"):
            chain.publish("text")
        local.advance(101)
        commitment = chain.commitment(VALIDATOR.ss58_address)
        assert commitment is not None and commitment.text == "text"


def test_call_of_an_era_that_is_over_cannot_land(local: LocalChain, chain: Chain) -> None:
    block = chain.signing_block()
    local.advance(ERA_BLOCKS - 1)
    with pytest.raises(NotSubmittedError, match="its signature is refused"):
        chain.publish("text", block)
    assert count_calls(local) == 0


@pytest.mark.parametrize("newest", [600, 2**32])
def test_era_of_an_impossible_block_is_refused(local: LocalChain, newest: int) -> None:
    with connect(local, VALIDATOR, node=make_node(local, block_number=newest)) as inside:
        with pytest.raises(RemoteError, match=f"the newest block cannot be {newest}"):
            inside.prepare_weights({1: 1.0})
        with pytest.raises(NotSubmittedError, match=f"the newest block cannot be {newest}"):
            inside.publish("text")


def test_call_lands_in_the_last_block_of_its_era(local: LocalChain, chain: Chain) -> None:
    block = chain.signing_block()
    local.advance(ERA_BLOCKS - 2)
    outcome = chain.publish("text", block)
    assert outcome.is_accepted and outcome.block == block + ERA_BLOCKS - 1
