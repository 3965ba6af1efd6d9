"""Timelocked commitments on a local chain, from commit to reveal."""

import time

import pytest

from template.chain.client import Chain, beacon_round_at, bt, round_time
from template.chain.commitments import encode_timelock_plaintext
from template.chain_records import ChainCommitment
from template.errors import ConfigError, RemoteError
from template.localnet.chain.chain import LocalChain
from tests.fixtures.chain import DISCARDED, NETUID, SEALED, commit, connect, make_key, make_node, run_async
from tests.fixtures.substrate import LocalSubstrate

MINER, VALIDATOR = make_key("miner"), make_key("validator")

# Round 1000 of drand's quicknet, as published; the chain's own tests use it too.
PAST_ROUND = 1000
PAST_SIGNATURE = "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39"

TEXT = "owner/name:1:" + "a" * 64


def soon() -> int:
    return beacon_round_at(time.time() + 3600)


def test_sealed_text_is_unreadable_until_the_chain_opens_it(local: LocalChain, miner: Chain) -> None:
    reveal_round = soon()
    outcome = miner.publish_sealed(TEXT, reveal_round)
    assert outcome.is_accepted
    sealed = ChainCommitment(hotkey=miner.hotkey, block=outcome.block or 0, text=None, reveal_round=reveal_round)
    assert miner.view().commitments == (sealed,)
    assert miner.commitment(miner.hotkey) == sealed
    local.advance(3)
    local.reveal(miner.hotkey, TEXT)
    opened = ChainCommitment(hotkey=miner.hotkey, block=local.block(), text=TEXT, is_revealed=True)
    assert miner.view().commitments == (opened,)
    assert miner.commitment(miner.hotkey) == opened
    assert outcome.block is not None and miner.snapshot(outcome.block).commitments == (sealed,), "the past stays sealed"


def test_commitment_after_a_reveal_replaces_it(local: LocalChain, miner: Chain) -> None:
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
    with pytest.raises(ValueError, match="no timelocked commitment"):
        local.reveal(miner.hotkey, "one")
    with pytest.raises(ValueError, match="no timelocked commitment"):
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


def seal_and_reveal(local: LocalChain, chain: Chain, text: str, *, blocks: int = 3) -> tuple[int | None, int]:
    """Return the blocks of the commit and of the reveal."""
    outcome = chain.publish_sealed(text, soon())
    if blocks:
        local.advance(blocks)
    local.reveal(chain.hotkey, text)
    return outcome.block, local.block()


def test_the_block_of_the_commit_is_known_after_the_reveal(local: LocalChain, miner: Chain, validator: Chain) -> None:
    first, first_reveal = seal_and_reveal(local, miner, "one")
    second, second_reveal = seal_and_reveal(local, validator, "two")
    reveals = {miner.hotkey: first_reveal, validator.hotkey: second_reveal}
    expected = {miner.hotkey: first, validator.hotkey: second}
    assert miner.commit_blocks_of_revealed(reveals) == expected
    miner.publish("plain")
    assert miner.commit_blocks_of_revealed(reveals) == expected, "whatever was committed since"
    assert miner.commit_blocks_of_revealed({}) == {}


def test_the_block_of_an_overwritten_seal_is_the_newer_ones(local: LocalChain, miner: Chain) -> None:
    miner.publish_sealed("old", soon())
    local.advance(3)
    newer, reveal_block = seal_and_reveal(local, miner, "new")
    assert miner.commit_blocks_of_revealed({miner.hotkey: reveal_block}) == {miner.hotkey: newer}
    newest, last_reveal = seal_and_reveal(local, miner, "newest")
    assert miner.commit_blocks_of_revealed({miner.hotkey: reveal_block}) == {miner.hotkey: newer}
    assert miner.commit_blocks_of_revealed({miner.hotkey: last_reveal}) == {miner.hotkey: newest}


def test_a_seal_of_the_very_block_before_its_reveal_counts(local: LocalChain, miner: Chain) -> None:
    block, reveal_block = seal_and_reveal(local, miner, "text", blocks=0)
    assert block == reveal_block - 1
    assert miner.commit_blocks_of_revealed({miner.hotkey: reveal_block}) == {miner.hotkey: block}


def test_hotkeys_without_a_sealed_commitment_are_left_out(local: LocalChain, miner: Chain, validator: Chain) -> None:
    sealed, reveal_block = seal_and_reveal(local, validator, "sealed")
    miner.publish("plain")
    several = make_key("several")
    local.register(several.ss58_address)
    assert commit(local, several, SEALED, {"Raw5": b"plain"}).success
    head = local.advance()
    asked = {miner.hotkey: head, several.ss58_address: head, make_key("nobody").ss58_address: head}
    assert miner.commit_blocks_of_revealed(asked | {validator.hotkey: reveal_block}) == {validator.hotkey: sealed}
    assert miner.commit_blocks_of_revealed({validator.hotkey: reveal_block + 1}) == {}, (
        "after the reveal the record is gone"
    )


def test_more_reveals_than_one_batch_are_all_returned(local: LocalChain, miner: Chain) -> None:
    expected, reveals = {}, {}
    for number in range(20):
        key = make_key(f"miner{number}")
        local.register(key.ss58_address)
        with connect(local, key) as chain:
            expected[chain.hotkey], reveals[chain.hotkey] = seal_and_reveal(local, chain, f"text {number}")
    assert miner.commit_blocks_of_revealed(reveals) == expected


def test_dropped_state_of_a_reveal_is_a_remote_error(local: LocalChain, miner: Chain) -> None:
    _, reveal_block = seal_and_reveal(local, miner, "text")
    node = make_node(local, query=DISCARDED)
    with connect(local, node=node) as chain, pytest.raises(RemoteError, match=r"commit blocks: State disc"):
        chain.commit_blocks_of_revealed({miner.hotkey: reveal_block})


@pytest.mark.parametrize("ahead", [2, 1000])
def test_a_reveal_that_is_not_final_is_a_remote_error(local: LocalChain, miner: Chain, ahead: int) -> None:
    with pytest.raises(RemoteError, match="no finalized block"):
        miner.commit_blocks_of_revealed({miner.hotkey: local.block() + ahead})


def test_a_field_beside_the_sealed_one_stays_and_has_no_text(local: LocalChain, miner: Chain) -> None:
    assert commit(local, MINER, SEALED, {"Raw5": b"plain"}).success
    local.reveal(miner.hotkey, "opened")
    (entry,) = miner.view().commitments
    assert (entry.text, entry.reveal_round, entry.is_revealed) == (None, None, False)
    assert entry == miner.commitment(miner.hotkey)


def test_official_client_reads_the_local_reveal_alike(local: LocalChain, miner: Chain) -> None:
    reveal_round = soon()
    miner.publish_sealed(TEXT, reveal_round)

    async def use(substrate: LocalSubstrate) -> tuple[str, int | None, str | None]:
        client = bt.Client("ws://127.0.0.1:1", substrate=substrate)
        entry = (await client.subnets.commitments(NETUID))[MINER.ss58_address]
        return entry.status, entry.reveal_round, entry.value

    assert run_async(local, use) == ("sealed", reveal_round, None)
    local.reveal(miner.hotkey, TEXT)
    assert run_async(local, use) == ("revealed", None, TEXT)


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
    plaintext = encode_timelock_plaintext(TEXT)
    core = pytest.importorskip("bittensor_core")
    sealed, _ = core.encrypt_at_round(plaintext, PAST_ROUND)
    assert core.decrypt_with_signature(sealed, PAST_SIGNATURE) == plaintext, "the client adds no length of its own"


def test_sealed_bytes_are_the_clients_own_and_differ_each_time(local: LocalChain, miner: Chain) -> None:
    async def stored(substrate: LocalSubstrate) -> str:
        record = await substrate.query("Commitments", "CommitmentOf", [NETUID, MINER.ss58_address])
        (field,) = record["info"]["fields"]
        return str(field["TimelockEncrypted"]["encrypted"])

    reveal_round = soon()
    ciphertexts = set()
    for _ in range(2):
        miner.publish_sealed("text", reveal_round)
        ciphertexts.add(run_async(local, stored))
    assert len(ciphertexts) == 2
    assert b"text".hex() not in "".join(ciphertexts)
    own = bt.timelock.encrypt(b"\x10text", reveal_round=reveal_round).encrypted
    assert {len(data) for data in ciphertexts} == {2 + 2 * len(own)}


@pytest.mark.parametrize("reveal_round", [-1, 0, 1000, 2**64])
def test_past_reveal_round_is_a_config_error(local: LocalChain, miner: Chain, reveal_round: int) -> None:
    before = local.block()
    with pytest.raises(ConfigError, match="future beacon round"):
        miner.publish_sealed("text", reveal_round)
    assert local.block() == before


def test_rounds_and_their_times_agree() -> None:
    for moment in (1_800_000_000.0, 1_800_000_000.5, 1_800_000_001.0, 1_800_000_002.999):
        beacon_round = beacon_round_at(moment)
        assert moment <= round_time(beacon_round) < moment + 3
        assert beacon_round_at(round_time(beacon_round)) == beacon_round
        assert round_time(beacon_round) == bt.timelock.reveal_time(beacon_round).timestamp()
    assert round_time(2**64 - 1) > 10**19, "a miner may name any round"
