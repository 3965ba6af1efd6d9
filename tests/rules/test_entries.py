"""Entries: their validity, rank and order in the queue."""

import random
from dataclasses import replace

import pytest

from template.competition import CommitmentRecord, Competition
from template.errors import Reason
from template.records import ChainCommitment, ChainView, Entry, SubmissionKey
from template.rules.entries import current_submissions, find_entries, missing_commit_blocks, order_entries
from tests.fixtures.views import (
    enter,
    make_commitment,
    make_key,
    make_neuron,
    make_submission,
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
        key=A, uid=0, reveal_block=10, rank_block=10, registration_block=5, record=record, rejection=None
    )
    assert set(entries) == {A, B} and (entries[B].uid, entries[B].rank_block) == (1, 30)


@pytest.mark.parametrize("reveal_round", [None, 1234])
def test_unreadable_commitment_is_no_entry(reveal_round: int | None) -> None:
    commitment = ChainCommitment(hotkey="a", block=30, text=None, reveal_round=reveal_round)
    assert current_submissions(view_of_a(commitment), {}) == [] and enter(view_of_a(commitment)) == {}


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


def test_new_commit_is_another_entry() -> None:
    newer = make_key("a", commit="b" * 40)
    entry = only(enter(view_of_a(replace(make_commitment("a", 40), text=newer.commitment)), make_submission(A, 10)))
    assert (entry.key, entry.rank_block) == (newer, 40)


@pytest.mark.parametrize(
    ("registration_block", "first_block", "rank_block"), [(5, 10, 10), (30, 10, 40), (30, 30, 40), (30, 31, 31)]
)
def test_rank_is_the_first_block_since_registration(registration_block: int, first_block: int, rank_block: int) -> None:
    entry = only(enter(view_of({"a": registration_block}, a=40), make_submission(A, first_block)))
    assert (entry.rank_block, entry.reveal_block) == (rank_block, rank_block)


def test_missing_file_costs_the_rank() -> None:
    missing = replace(make_submission(A, 10), missing_block=55)
    entry = only(find_entries(view_of(a=20), {A: missing}, COMPETITION))
    assert (entry.rank_block, entry.reveal_block) == (56, 10)


def test_revealed_commitment_ranks_by_its_commit_block() -> None:
    view = view_of_a(REVEALED)
    (now,) = current_submissions(view, {("a", 90): 60, ("a", 80): 20, ("b", 90): 70})
    assert (now.first_block, now.reveal_block, now.block) == (60, 90, 90)
    entry = only(find_entries(view, {A: now}, COMPETITION, {("a", 90): 60}))
    assert (entry.rank_block, entry.reveal_block) == (60, 90)


def test_commit_before_registration_ranks_by_its_reveal() -> None:
    assert only(find_entries(view_of_a(REVEALED, 70), {}, COMPETITION, {("a", 90): 60})).rank_block == 90


def test_reveal_without_a_commit_block_is_left_out() -> None:
    view = view_of(a=1, c=50)
    view = replace(view, commitments=(REVEALED, replace(REVEALED, hotkey="gone"), make_commitment("c", 50)))
    assert [submission.key.hotkey for submission in current_submissions(view, {("a", 80): 20})] == ["c"]
    assert missing_commit_blocks(view, {("a", 80): 20}) == {"a": 90}
    assert missing_commit_blocks(view, {("a", 90): 20}) == {}


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
