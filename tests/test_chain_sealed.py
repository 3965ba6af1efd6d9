"""Sealed commitments from the commit to the reveal, on a local chain and under the beacon's real signature."""

import time

import pytest
from chain_fixtures import NETUID, commit, connect, make_key, run_async

from template.chain import Chain, beacon_round_at, beacon_time, bt
from template.commitments import encode_sealed_text
from template.errors import ConfigError, Reason, SubmissionError
from template.localnet.localchain import LocalChain
from template.localnet.substrate import LocalSubstrate
from template.records import ChainCommitment

MINER, VALIDATOR = make_key("miner"), make_key("validator")

# Round 1000 of drand's quicknet, as published; the chain's own tests use it too.
PAST_ROUND = 1000
PAST_SIGNATURE = "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39"


def soon() -> int:
    return beacon_round_at(time.time() + 3600)


def test_sealed_text_is_unreadable_until_the_chain_opens_it(local: LocalChain, miner: Chain) -> None:
    reveal_round = soon()
    outcome = miner.publish_sealed("owner/name:1:" + "a" * 64, reveal_round)
    assert outcome.is_accepted
    sealed = ChainCommitment(hotkey=miner.hotkey, block=outcome.block or 0, text=None, reveal_round=reveal_round)
    assert miner.view().commitments == (sealed,)
    assert miner.commitment(miner.hotkey) == sealed
    local.advance(3)
    local.reveal(miner.hotkey, "owner/name:1:" + "a" * 64)
    opened = ChainCommitment(
        hotkey=miner.hotkey, block=local.block(), text="owner/name:1:" + "a" * 64, is_revealed=True
    )
    assert miner.view().commitments == (opened,)
    assert miner.commitment(miner.hotkey) == opened
    assert miner.view(outcome.block).commitments == (sealed,), "the past stays sealed"


def test_what_follows_a_reveal_overrides_it(local: LocalChain, miner: Chain) -> None:
    miner.publish_sealed("one", soon())
    local.reveal(miner.hotkey, "one")
    outcome = miner.publish_sealed("two", soon() + 7)
    (entry,) = miner.view().commitments
    assert (entry.text, entry.is_revealed, entry.block) == (None, False, outcome.block)
    assert entry == miner.commitment(miner.hotkey)
    local.reveal(miner.hotkey, "two")
    assert miner.view().commitments[0].text == "two"
    miner.publish("three")
    (entry,) = miner.view().commitments
    assert (entry.text, entry.is_revealed) == ("three", False)
    assert entry == miner.commitment(miner.hotkey)


def test_sealed_and_plain_overwrite_each_other(local: LocalChain, miner: Chain) -> None:
    miner.publish_sealed("one", soon())
    miner.publish("two")
    assert [(entry.text, entry.reveal_round) for entry in miner.view().commitments] == [("two", None)]
    with pytest.raises(ValueError, match="no sealed commitment"):
        local.reveal(miner.hotkey, "one")
    with pytest.raises(ValueError, match="no sealed commitment"):
        local.reveal(VALIDATOR.ss58_address, "one")


def test_only_the_newest_ten_reveals_stay(local: LocalChain, miner: Chain) -> None:
    local.set_hyperparameter("MaxSpace", 100_000)
    for number in range(12):
        miner.publish_sealed(f"text {number}", soon())
        local.reveal(miner.hotkey, f"text {number}")

    async def use(substrate: LocalSubstrate) -> int:
        return len(await substrate.query("Commitments", "RevealedCommitments", [NETUID, MINER.ss58_address]))

    assert run_async(local, use) == 10
    assert miner.view().commitments[0].text == "text 11"


def test_a_field_beside_the_sealed_one_stays_and_has_no_text(local: LocalChain, miner: Chain) -> None:
    sealed = {"TimelockEncrypted": {"encrypted": b"sealed", "reveal_round": 5}}
    assert commit(local, MINER, sealed, {"Raw5": b"plain"}).success
    local.reveal(miner.hotkey, "opened")
    (entry,) = miner.view().commitments
    assert (entry.text, entry.reveal_round, entry.is_revealed) == (None, None, False)
    assert entry == miner.commitment(miner.hotkey)


def test_official_client_reads_the_local_reveal_alike(local: LocalChain, miner: Chain) -> None:
    reveal_round = soon()
    miner.publish_sealed("me/data:1:" + "a" * 64, reveal_round)

    async def use(substrate: LocalSubstrate) -> tuple[str, int | None, str | None]:
        client = bt.Client("ws://127.0.0.1:1", substrate=substrate)
        entry = (await client.subnets.commitments(NETUID))[MINER.ss58_address]
        return entry.status, entry.reveal_round, entry.value

    assert run_async(local, use) == ("sealed", reveal_round, None)
    local.reveal(miner.hotkey, "me/data:1:" + "a" * 64)
    assert run_async(local, use) == ("revealed", None, "me/data:1:" + "a" * 64)


def test_one_miners_reveal_does_not_hide_the_others(local: LocalChain, miner: Chain) -> None:
    with connect(local, VALIDATOR) as other:
        other.publish("honest")
    # As text this begins like 0x, and the client's own reader fails on it, for every hotkey at once.
    miner.publish_sealed("xello world!", soon())
    local.reveal(miner.hotkey, "xello world!")

    async def use(substrate: LocalSubstrate) -> None:
        with pytest.raises(ValueError, match="non-hexadecimal"):
            await bt.Client("ws://127.0.0.1:1", substrate=substrate).subnets.commitments(NETUID)

    run_async(local, use)
    assert [entry.text for entry in miner.view().commitments] == ["honest", "xello world!"]


def test_the_chain_decrypts_what_the_reader_expects() -> None:
    plaintext = encode_sealed_text("owner/name:1:" + "a" * 64)
    core = pytest.importorskip("bittensor_core")
    sealed, _ = core.encrypt_at_round(plaintext, PAST_ROUND)
    assert core.decrypt_with_signature(sealed, PAST_SIGNATURE) == plaintext, "the client adds no length of its own"


def test_sealed_bytes_are_the_clients_own_and_differ_each_time(local: LocalChain, miner: Chain) -> None:
    async def stored(substrate: LocalSubstrate) -> str:
        record = await substrate.query("Commitments", "CommitmentOf", [NETUID, MINER.ss58_address])
        (field,) = record["info"]["fields"]
        return str(field["TimelockEncrypted"]["encrypted"])

    reveal_round = soon()
    found = set()
    for _ in range(2):
        miner.publish_sealed("text", reveal_round)
        found.add(run_async(local, stored))
    assert len(found) == 2
    assert b"text".hex() not in "".join(found)
    assert {len(data) for data in found} == {
        2 + 2 * len(bt.timelock.encrypt(b"\x10text", reveal_round=reveal_round).encrypted)
    }


@pytest.mark.parametrize("text", ["", "x" * 129, "é" * 65])
def test_sealed_text_that_does_not_fit_is_refused_before_it_is_sent(local: LocalChain, miner: Chain, text: str) -> None:
    before = local.block()
    with pytest.raises(SubmissionError) as caught:
        miner.publish_sealed(text, soon())
    assert caught.value.reason is Reason.BAD_COMMITMENT
    assert local.block() == before


@pytest.mark.parametrize("reveal_round", [-1, 0, 1000, 2**64])
def test_a_round_that_is_not_to_come_is_a_config_error(local: LocalChain, miner: Chain, reveal_round: int) -> None:
    before = local.block()
    with pytest.raises(ConfigError, match="future round"):
        miner.publish_sealed("text", reveal_round)
    assert local.block() == before


def test_sealing_without_a_wallet_or_registration_is_told(local: LocalChain) -> None:
    with connect(local) as chain, pytest.raises(ConfigError, match=r"--wallet\.name"):
        chain.publish_sealed("text", soon())
    with connect(local, make_key("owner")) as chain:
        assert chain.publish_sealed("text", soon()).error == "AccountNotAllowedCommit"


def test_rounds_and_their_times_agree() -> None:
    for moment in (1_800_000_000.0, 1_800_000_000.5, 1_800_000_001.0, 1_800_000_002.999):
        found = beacon_round_at(moment)
        assert moment <= beacon_time(found) < moment + 3
        assert beacon_round_at(beacon_time(found)) == found
        assert beacon_time(found) == bt.timelock.reveal_time(found).timestamp()
    assert beacon_time(2**64 - 1) > 10**19, "a miner may name any round"
