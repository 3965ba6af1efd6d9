"""Chain on a local chain: views, commitments, weights and refusals."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from template.chain.client import Chain, beacon_round_at
from template.chain_records import PreparedWeights
from template.errors import ConfigError, Reason, RemoteError, SubmissionError
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.ledger import Ledger
from tests.fixtures.chain import (
    DISCARDED,
    NETUID,
    SEALED,
    CountingSubstrate,
    commit,
    connect,
    make_key,
    make_node,
)
from tests.fixtures.substrate import InProcessChain, LocalSubstrate

MINER, VALIDATOR, OWNER = make_key("miner"), make_key("validator"), make_key("owner")


def test_view_tells_neurons_commitments_and_epoch_of_one_block(local: LocalChain, miner: Chain) -> None:
    miner.publish("owner/name:1:" + "a" * 40)
    view = miner.view()
    assert (view.netuid, view.block, view.tempo) == (NETUID, local.block(), 100)
    assert view.block_hash == miner.block_hash(view.block)
    assert [(neuron.uid, neuron.hotkey) for neuron in view.neurons] == [
        (0, VALIDATOR.ss58_address),
        (1, MINER.ss58_address),
    ]
    assert view.neurons[1].registration_block == 3
    (commitment,) = view.commitments
    assert commitment == miner.commitment(MINER.ss58_address)
    assert (commitment.hotkey, commitment.block) == (MINER.ss58_address, view.block)
    # The first epoch began in block 1, with the chain's first write.
    assert view.block + view.blocks_until_epoch == 101


@pytest.mark.parametrize("size", [3, 60])
def test_view_takes_the_same_calls_whatever_the_size(local: LocalChain, size: int) -> None:
    for number in range(size):
        key = make_key(f"miner{number}")
        local.register(key.ss58_address)
        field = SEALED if number % 2 else {"Raw2": b"hi"}
        assert commit(local, key, field).success
    local.reveal(make_key("miner1").ss58_address, "opened")
    node = CountingSubstrate(local.path)
    with connect(local, node=node) as chain:
        chain.block()
        node.calls.clear()
        view = chain.view()
    assert (len(view.neurons), len(view.commitments)) == (size + 2, size)
    # Three reads are of the two neurons without a commitment. In process they are made of single ones.
    expected = {"finalized_block_number": 1, "block_hash": 13, "runtime_call": 2, "query_map": 2, "query": 10}
    assert dict(node.calls) == {**expected, "query_batch": 3}


def test_view_tells_the_blocks_time_and_the_subnets_limits(local: LocalChain, miner: Chain) -> None:
    local.set_hyperparameter("ActivityCutoffFactorMilli", 2500)
    local.set_hyperparameter("WeightsVersionKey", 17)
    before = miner.view()
    assert (before.activity_cutoff, before.weights_version) == (250, 17)
    local.set_block_time(12)
    local.set_block_time(0)
    local.advance(5)
    assert 0 <= miner.view().timestamp - before.timestamp < 60
    with Ledger(local.path) as ledger:
        assert before.timestamp == pytest.approx(ledger.timestamp(before.block), abs=0.001)


def test_snapshot_of_a_past_block_is_what_it_was(local: LocalChain, miner: Chain) -> None:
    miner.publish("first")
    then = miner.view()
    miner.publish("second")
    local.deregister(MINER.ss58_address)
    local.set_hyperparameter("Tempo", 50)
    past = miner.snapshot(then.block)
    assert (past.block_hash, past.neurons, past.commitments) == (then.block_hash, then.neurons, then.commitments)
    assert miner.snapshot(1).neurons == ()
    with pytest.raises(RemoteError, match="no subnet 7 yet"):
        miner.snapshot(0)


@pytest.mark.parametrize("ahead", [1, 1000])
def test_snapshot_of_a_block_to_come_says_so(local: LocalChain, miner: Chain, ahead: int) -> None:
    head = miner.block()
    with pytest.raises(RemoteError, match=f"no finalized block {head + ahead}: the newest is {head}"):
        miner.snapshot(head + ahead)
    with pytest.raises(RemoteError, match="no finalized block -1"):
        miner.snapshot(-1)


def test_snapshot_of_a_dropped_state_says_so(local: LocalChain, miner: Chain) -> None:
    node = make_node(local, runtime_call=DISCARDED)
    with connect(local, node=node) as chain, pytest.raises(RemoteError, match=r"at block 2: State discarded .* arch"):
        chain.snapshot(2)


def publish_pairs(local: LocalChain) -> None:
    with connect(local, MINER) as first, connect(local, VALIDATOR) as second:
        for number in range(60):
            assert first.publish(f"{number:03}").is_accepted
            assert second.publish(f"{number:03}").is_accepted


def test_view_is_consistent_while_others_write(local: LocalChain) -> None:
    local.set_hyperparameter("MaxSpace", 100_000)
    seen = set()
    with connect(local) as chain, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(publish_pairs, local)
        while not writing.done():
            texts = {entry.hotkey: entry.text for entry in chain.view().commitments}
            first, second = texts.get(MINER.ss58_address), texts.get(VALIDATOR.ss58_address)
            if first and second:
                assert int(first) - int(second) in (0, 1)
                seen.add(first)
        writing.result()
    assert len(seen) > 5


def test_owner_without_a_uid_is_told_as_none(local: LocalChain, miner: Chain) -> None:
    view = miner.view()
    assert (view.owner_hotkey, view.owner_uid) == (OWNER.ss58_address, None)
    uid = local.register(OWNER.ss58_address)
    assert miner.view().owner_uid == uid == 2


def test_recycled_uid_is_another_neuron(local: LocalChain, miner: Chain) -> None:
    before = miner.view().by_hotkey[MINER.ss58_address]
    miner.publish("mine")
    local.deregister(MINER.ss58_address, replacement=OWNER.ss58_address)
    view = miner.view()
    after = view.by_hotkey[OWNER.ss58_address]
    assert (after.uid, after.registration_block) == (before.uid, view.block)
    assert MINER.ss58_address not in view.by_hotkey
    assert view.commitments == (), "the chain purges the commitment of a replaced neuron"


@pytest.mark.parametrize("text", ["a", "0x6869", "é" * 64, "x" * 128])
def test_published_text_is_read_back(miner: Chain, text: str) -> None:
    outcome = miner.publish(text)
    assert outcome.is_accepted and outcome.error is None
    stored = miner.commitment(miner.hotkey)
    assert stored is not None
    assert (stored.text, stored.block) == (text, outcome.block)


@pytest.mark.parametrize("text", ["", "x" * 129, "é" * 65, "\ud800"])
@pytest.mark.parametrize("is_sealed", [False, True])
def test_text_that_does_not_fit_is_refused_before_it_is_sent(
    local: LocalChain, miner: Chain, text: str, is_sealed: bool
) -> None:
    before = local.block()
    with pytest.raises(SubmissionError) as caught:
        miner.publish_sealed(text, beacon_round_at(2**32)) if is_sealed else miner.publish(text)
    assert caught.value.reason is Reason.BAD_COMMITMENT
    assert local.block() == before


def test_unregistered_publishing_is_an_outcome(local: LocalChain) -> None:
    with connect(local, OWNER) as chain:
        outcome = chain.publish("text")
        assert (outcome.is_accepted, outcome.error, outcome.block) == (False, "AccountNotAllowedCommit", None)
        assert "registered" in outcome.message
        assert chain.commitment(OWNER.ss58_address) is None


def test_used_up_space_tells_the_blocks_to_wait(local: LocalChain, miner: Chain) -> None:
    accepted = 0
    while (outcome := miner.publish("x")).is_accepted:
        accepted += 1
    assert accepted == 31
    assert outcome.error == "SpaceLimitExceeded"
    assert outcome.retry_after_blocks == miner.view().blocks_until_epoch
    local.advance(outcome.retry_after_blocks)
    assert miner.publish("x").is_accepted


def test_unknown_netuid_is_a_config_error(local: LocalChain) -> None:
    for netuid in (8, 0, -1, 65536):
        with pytest.raises(ConfigError, match="--netuid"):
            InProcessChain(LocalSubstrate(local.path), netuid).view()


def test_subnet_without_epochs_is_a_config_error(local: LocalChain, miner: Chain) -> None:
    local.set_hyperparameter("Tempo", 0)
    with pytest.raises(ConfigError, match="tempo"):
        miner.view()


def test_future_block_has_no_hash(local: LocalChain, miner: Chain) -> None:
    head = miner.block()
    with pytest.raises(RemoteError, match="no block"):
        miner.block_hash(head + 1)
    local.advance()
    assert miner.block_hash(head + 1) != miner.block_hash(head)


@pytest.mark.parametrize(
    "network", ["mainnet", "", "file:/nowhere", "http://127.0.0.1", "ws://", "ws://a b", "wss://h:99999"]
)
def test_network_that_makes_no_sense_is_a_config_error(network: str) -> None:
    with pytest.raises(ConfigError, match=r"--subtensor\.network"):
        Chain(network, NETUID)


def test_writing_without_a_wallet_is_a_config_error(local: LocalChain) -> None:
    with connect(local) as chain:
        writes: list[tuple[Callable[[Any], object], object]] = [
            (chain.publish, "a"),
            (lambda text: chain.publish_sealed(text, beacon_round_at(2**32)), "a"),
            (chain.prepare_weights, {0: 1.0}),
            (chain.set_weights, PreparedWeights(sent={0: 1}, block=1)),
            (chain.sign, b""),
        ]
        for write, argument in writes:
            with pytest.raises(ConfigError, match=r"--wallet\.name"):
                write(argument)


def test_a_block_is_read_once_and_the_next_one_anew(local: LocalChain) -> None:
    node = CountingSubstrate(local.path)
    with connect(local, node=node) as chain:
        first = chain.view()
        node.calls.clear()
        assert chain.view() is first and not node.calls["query_map"]
        assert chain.snapshot(first.block - 1).block == first.block - 1 and node.calls["query_map"]
        assert chain.view() is first, "a look at the past is not the newest"
        local.advance(1)
        later = chain.view()
    assert later.block == first.block + 1 and later.block_hash != first.block_hash
