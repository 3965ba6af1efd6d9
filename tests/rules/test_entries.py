"""Entries: their validity, commit blocks and order in the queue."""

import random
from dataclasses import replace

import pytest

from template.chain_records import ChainCommitment, ChainView
from template.competition import CommitmentRecord, Competition
from template.errors import Reason
from template.records import Entry, SubmissionKey
from template.rules.entries import (
    find_entries,
    is_within_upload_grace,
    keep_sealed,
    missing_commit_blocks,
    order_entries,
    prune_commit_blocks,
)
from tests.fixtures.views import (
    enter,
    make_commitment,
    make_key,
    make_neuron,
    make_stand,
    make_text,
    make_view,
    view_of,
)

COMPETITION = Competition.from_defaults()
A, B = make_key("a"), make_key("b")
REVEALED = ChainCommitment(hotkey="a", block=90, text=A.commitment, is_revealed=True)


def only(entries: dict[SubmissionKey, Entry]) -> Entry:
    (entry,) = entries.values()
    return entry


def view_of_a(commitment: ChainCommitment, registration_block: int = 5) -> ChainView:
    return make_view(neurons=[make_neuron(0, "a", registration_block=registration_block)], commitments=[commitment])


def test_entries_are_the_commitments_of_registered_hotkeys() -> None:
    view = view_of(a=10, b=30)
    entries = enter(replace(view, commitments=(*view.commitments, make_commitment("gone", 20))))
    record = CommitmentRecord("a/data", "1", "a" * 40)
    assert entries[A] == Entry(
        key=A, uid=0, reveal_block=10, commit_block=10, registration_block=5, record=record, rejection=None
    )
    assert set(entries) == {A, B} and (entries[B].uid, entries[B].commit_block) == (1, 30)


@pytest.mark.parametrize("reveal_round", [None, 1234])
def test_unreadable_commitment_is_no_entry(reveal_round: int | None) -> None:
    commitment = ChainCommitment(hotkey="a", block=30, text=None, reveal_round=reveal_round)
    assert enter(view_of_a(commitment)) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.BAD_COMMITMENT),
        ("hello", Reason.BAD_COMMITMENT),
        (make_text(commit="A" * 40), Reason.BAD_COMMITMENT),
        (make_text() + "\n", Reason.BAD_COMMITMENT),
        (make_text(competition_id="2"), Reason.WRONG_COMPETITION),
        (make_text(competition_id="01"), Reason.WRONG_COMPETITION),
    ],
)
def test_invalid_commitment_is_an_entry_with_a_rejection(text: str, reason: Reason) -> None:
    entry = only(enter(view_of_a(replace(make_commitment("a", 10), text=text))))
    assert entry.key == SubmissionKey("a", text) and entry.record is None
    assert entry.rejection is not None and entry.rejection.reason is reason


@pytest.mark.parametrize(("block", "is_rejected"), [(49, True), (50, True), (51, False)])
def test_commitment_up_to_the_registration_is_rejected(block: int, is_rejected: bool) -> None:
    rejection = only(enter(view_of_a(make_commitment("a", block), 50))).rejection
    assert (rejection is not None) == is_rejected
    assert rejection is None or rejection.reason is Reason.BEFORE_REGISTRATION


def test_revealed_commitment_keeps_its_commit_block() -> None:
    entry = only(find_entries(view_of_a(REVEALED), COMPETITION, {("a", 90): 60, ("a", 80): 20, ("b", 90): 70}))
    assert (entry.commit_block, entry.reveal_block) == (60, 90)


def test_commit_before_registration_counts_from_its_reveal() -> None:
    assert only(find_entries(view_of_a(REVEALED, 70), COMPETITION, {("a", 90): 60})).commit_block == 90


def test_reveal_without_a_commit_block_is_left_out() -> None:
    view = view_of(a=1, c=50)
    view = replace(view, commitments=(REVEALED, replace(REVEALED, hotkey="gone"), make_commitment("c", 50)))
    assert [key.hotkey for key in find_entries(view, COMPETITION, {("a", 80): 20})] == ["c"]
    assert missing_commit_blocks(view, {("a", 80): 20}) == {"a": 90}
    assert missing_commit_blocks(view, {("a", 90): 20}) == {}
    assert len(find_entries(view, COMPETITION)) == 2, "without commit blocks it counts from its reveal"


def test_newest_commit_block_of_a_hotkey_is_kept() -> None:
    blocks = {("a", 10): 1, ("a", 20): 2, ("b", 20): 3, ("b", 90): 4}
    assert prune_commit_blocks(blocks, before_block=50) == {("a", 20): 2, ("b", 20): 3, ("b", 90): 4}


@pytest.mark.parametrize(
    ("last_block", "registration_block", "is_kept"),
    [(80, 5, True), (90, 5, True), (70, 5, False), (80, 6, False)],
    ids=["stood before the seal", "kept before", "did not stand", "of another registration"],
)
def test_last_entry_stays_until_the_reveal(last_block: int, registration_block: int, is_kept: bool) -> None:
    view = view_of_a(ChainCommitment(hotkey="a", block=85, text=None, reveal_round=1234), registration_block)
    stand = make_stand(A, 60, last_block, commit_block=55, reveal_block=58, registration_block=5)
    sealed = keep_sealed(view, {"a": stand}, COMPETITION, 10)
    assert set(sealed) == ({A} if is_kept else set())
    assert all((entry.commit_block, entry.reveal_block) == (55, 58) for entry in sealed.values())
    assert all(entry.rejection is None for entry in sealed.values())
    assert keep_sealed(view, {}, COMPETITION, 10) == {}


def test_unreadable_commitment_keeps_no_entry() -> None:
    view = view_of_a(ChainCommitment(hotkey="a", block=85, text=None))
    assert keep_sealed(view, {"a": make_stand(A, 60, 80, registration_block=5)}, COMPETITION, 10) == {}


@pytest.mark.parametrize(
    ("commit", "reason", "block", "is_awaited"),
    [
        ("a" * 64, Reason.MISSING_FILE, 310, True),
        ("a" * 64, Reason.MISSING_FILE, 311, False),
        ("a" * 64, Reason.NOT_IN_POOL, 10, False),
        ("a" * 40, Reason.MISSING_FILE, 10, False),
    ],
)
def test_promised_file_may_come_for_an_hour(commit: str, reason: Reason, block: int, is_awaited: bool) -> None:
    record = CommitmentRecord("a/data", "1", commit)
    assert is_within_upload_grace(record, reason, reveal_block=10, block=block) == is_awaited


def test_failed_downloads_take_half_of_the_queue_at_most() -> None:
    entries = list(enter(view_of(a=10, b=9, c=30, d=20, e=20)).values())
    rejected = only(enter(view_of_a(replace(make_commitment("a", 1), text="no"))))
    entries.append(rejected)
    random.Random(1).shuffle(entries)

    def order(failures: dict[SubmissionKey, int], limit: int) -> str:
        return "".join(key.hotkey for key in order_entries(entries, failures, limit))

    assert order({}, 10) == "badec" and order({}, 2) == "ba"
    assert order({A: 1, B: 2}, 10) == "badec", "there is room for all"
    assert order({A: 1, B: 2}, 4) == "bade", "both halves"
    assert order({A: 1, B: 2}, 3) == "ade", "the one with fewer failures"
    assert order({A: 2, B: 1}, 3) == "bde"
    assert order({A: 1, B: 2}, 1) == "d"
    assert order({entry.key: 1 for entry in entries}, 3) == "bad", "an outage of the Hub costs no entry its turn"
