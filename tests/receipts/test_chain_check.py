"""Weights and datasets that were sealed, compared with the chain at and after the reveal."""

import dataclasses
from collections.abc import Mapping

import pytest

from template.chain_records import ChainCommitment, ChainSnapshot
from template.receipts.chain_check import WeightsCheck, check_claimed_ranks
from template.receipts.history import ClaimedRank
from template.receipts.round_file import RoundHeader, make_round_lines
from template.records import ContentKey
from tests.fixtures.rounds import ACCOUNT, SIGNER, hash_of, sign
from tests.fixtures.views import make_neuron

INTENT = ACCOUNT.intents[0]
SENT = {uid: round(weight / max(INTENT.weights.values()) * 65535) for uid, weight in INTENT.weights.items()}
HEADER = RoundHeader.from_json(
    make_round_lines(
        dataclasses.replace(ACCOUNT, intents=[dataclasses.replace(INTENT, sent=SENT)]), signer=SIGNER, sign=sign
    )[0],
    "the header",
)
COMMITTED, REVEALED = 39, 55
assert HEADER.weights[0].included_block == COMMITTED


class TimelockedChain:
    """A chain at block `newest`, with the weights of block 39 revealed in block 55."""

    def __init__(self, newest: int, revealed: Mapping[int, int], commits: tuple[int, ...] = (COMMITTED,)) -> None:
        self.newest = newest
        self.reads = 0
        self._revealed = revealed
        self._commits = commits

    def block(self) -> int:
        return self.newest

    def block_hash(self, block: int) -> str:
        return hash_of(block)

    def snapshot(self, block: int) -> ChainSnapshot:
        last = max((commit for commit in self._commits if commit <= block), default=1)
        miners = [make_neuron(entry.uid, entry.key.hotkey) for entry in ACCOUNT.round.entries]
        return ChainSnapshot(
            netuid=96, block=block, block_hash=hash_of(block), commitments=(), owner_hotkey="owner", owner_uid=None,
            neurons=(make_neuron(1, SIGNER, registration_block=1, last_update_block=last), *miners),
        )  # fmt: skip

    def commit_blocks_of_revealed(self, reveals: Mapping[str, int]) -> dict[str, int]:
        return {}

    def weights(self, uid: int, block: int) -> dict[int, int]:
        assert uid == 1
        return dict(self._revealed) if block >= REVEALED else {}

    def weight_commits(self, hotkey: str, block: int) -> list[int]:
        self.reads += 1
        return [commit for commit in self._commits if commit <= block < REVEALED] if hotkey == SIGNER else []


class RevealedChain(TimelockedChain):
    """A miner's commitment of block 21, sealed until block 34."""

    def snapshot(self, block: int) -> ChainSnapshot:
        first = ACCOUNT.round.entries[0]
        sealed = ChainCommitment(hotkey=first.key.hotkey, block=21, text=None, reveal_round=9)
        revealed = ChainCommitment(hotkey=first.key.hotkey, block=34, text=first.key.commitment, is_revealed=True)
        commitments = (revealed if block >= 34 else sealed,) if block >= 21 else ()
        return dataclasses.replace(super().snapshot(block), commitments=commitments)

    def commit_blocks_of_revealed(self, reveals: Mapping[str, int]) -> dict[str, int]:
        return dict.fromkeys(reveals, 21)


@pytest.mark.parametrize(("block", "is_right"), [(36, True), (24, False), (28, False), (40, False)])
def test_seeds_of_a_sealed_dataset_before_the_files_are_checked(block: int, is_right: bool) -> None:
    key = ContentKey(ACCOUNT.round.entries[0].key.hotkey, "0" * 64)
    later = dataclasses.replace(HEADER, start_block=48)
    findings = list(check_claimed_ranks(later, [ClaimedRank(key, block, None)], RevealedChain(60, {})))
    assert (findings == []) == is_right, findings


def check(chain: TimelockedChain) -> tuple[list[str], list[str]]:
    weights = WeightsCheck(chain, SIGNER)
    return [finding.text for finding in weights.check(HEADER)], weights.notes


def test_revealed_weights_of_the_file_are_clean() -> None:
    chain = TimelockedChain(5000, SENT)
    assert check(chain) == ([], [])
    assert chain.reads < 20, "the reveal is found by halving"


def test_revealed_weights_for_a_friend_are_found() -> None:
    (fault,), _ = check(TimelockedChain(5000, {3: 65535}))
    assert fault.startswith("weights of block 38: on chain they are {3: 65535}, in the file ")


def test_weights_before_their_reveal_are_a_note() -> None:
    assert check(TimelockedChain(50, {})) == (
        [],
        ["weights of block 39 are timelocked and not revealed yet: audit again later"],
    )


def test_weights_replaced_before_their_reveal_are_a_note() -> None:
    later = TimelockedChain(5000, {3: 65535}, commits=(COMMITTED, 45))
    assert check(later) == ([], ["weights of block 39 were replaced by later ones before their reveal"])


@pytest.mark.parametrize(("change", "is_fault"), [(1, False), (3, True)])
def test_weights_are_equal_up_to_the_chains_rounding(change: int, is_fault: bool) -> None:
    uid = next(uid for uid, weight in SENT.items() if weight < 65535)
    faults, _ = check(TimelockedChain(5000, {**SENT, uid: SENT[uid] + change}))
    assert bool(faults) == is_fault
