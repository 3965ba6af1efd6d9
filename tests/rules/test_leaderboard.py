"""Who competes, who copied whom, and what each gets."""

import random
from dataclasses import replace
from typing import Any

import pytest

from template.competition import CommitmentRecord, Competition
from template.errors import Reason
from template.records import ChainCommitment, ChainView, LeaderboardRow, Submission, SubmissionKey, Verdict
from template.rules.duplicates import Duplicate, eligible_datasets, find_duplicates, find_possible_duplicates
from template.rules.entries import (
    Entry,
    current_submissions,
    find_entries,
    missing_commit_blocks,
    order_entries,
)
from template.rules.leaderboard import build_leaderboard, choose_weights, weights_by_uid
from tests.fixtures.views import OWNER, make_commitment, make_key, make_neuron, make_text, make_view
from tests.fixtures.views import make_submission as submission

COMPETITION = Competition.from_defaults()
A, B, C = (make_key(name) for name in "abc")
HUNDRED = tuple(number.to_bytes(32, "big") for number in range(100))
ROWS = (*HUNDRED, b"x" * 32)
COPY = Duplicate(hotkey="x", commit="y", block=1, shared=101)


def see(view: ChainView, *earlier: Submission) -> dict[SubmissionKey, Submission]:
    """What the store holds once `view` was recorded on top of what was seen `earlier`, for ever the first block."""
    seen = {one.key: one for one in earlier}
    for now in current_submissions(view):
        before = seen.get(now.key, now)
        first_block = min(before.first_block, now.first_block)
        seen[now.key] = replace(now, first_block=first_block, reveal_block=min(before.reveal_block, now.reveal_block))
    return seen


def enter(view: ChainView, *earlier: Submission) -> dict[SubmissionKey, Entry]:
    return find_entries(view, see(view, *earlier), COMPETITION)


def stand(
    view: ChainView,
    entries: dict[SubmissionKey, Entry],
    verdicts: dict[SubmissionKey, Verdict],
    copies: dict[SubmissionKey, Duplicate],
    last_shares: dict[str, float] | None = None,
) -> tuple[list[LeaderboardRow], dict[int, float]]:
    """The table, and the weights that are submitted at `view`."""
    lines = build_leaderboard(COMPETITION, entries, verdicts, copies, verdicts)
    shares = choose_weights(lines, last_shares or {}, view.owner_hotkey)
    return lines, weights_by_uid(shares, view, {one.key.hotkey: one.registration_block for one in entries.values()})


def only(entries: dict[SubmissionKey, Entry]) -> Entry:
    (entry,) = entries.values()
    return entry


# Entrants


def test_entries_are_the_commitments_of_registered_hotkeys() -> None:
    view = make_view(
        neurons=[make_neuron(0, "a"), make_neuron(1, "b"), make_neuron(2, "silent")],
        commitments=[make_commitment("b", 30), make_commitment("gone", 20), make_commitment("a", 10)],
    )
    entries = enter(view)
    assert set(entries) == {A, B}
    assert entries[A] == Entry(
        key=A,
        uid=0,
        reveal_block=10,
        rank_block=10,
        registration_block=5,
        record=CommitmentRecord("a/data", "1", "a" * 40),
        rejection=None,
    )
    assert (entries[B].uid, entries[B].rank_block) == (1, 30)


def test_timelocked_commitment_is_no_entry() -> None:
    view = make_view(neurons=[make_neuron(0, "a")], commitments=[make_commitment("a", 10, None)])
    assert current_submissions(view) == []
    assert enter(view) == {}


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
    commitment = replace(make_commitment("a", 10), text=text)
    entry = only(enter(make_view(neurons=[make_neuron(0, "a")], commitments=[commitment])))
    assert entry.key == SubmissionKey("a", text)
    assert entry.record is None
    assert entry.rejection is not None
    assert entry.rejection.reason is reason


@pytest.mark.parametrize(("block", "is_refused"), [(49, True), (50, True), (51, False)])
def test_commitment_up_to_the_registration_is_rejected(block: int, is_refused: bool) -> None:
    view = make_view(neurons=[make_neuron(0, "a", registration_block=50)], commitments=[make_commitment("a", block)])
    entry = only(enter(view))
    assert (entry.rejection is not None) == is_refused
    if entry.rejection is not None:
        assert entry.rejection.reason is Reason.BEFORE_REGISTRATION


def test_uid_that_changed_hands_passes_nothing_on() -> None:
    old = make_view(neurons=[make_neuron(4, "a")], commitments=[make_commitment("a", 10)])
    new = make_view(
        200,
        neurons=[make_neuron(4, "b", registration_block=150)],
        commitments=[make_commitment("a", 10), make_commitment("b", 160)],
    )
    entries = enter(new, *see(old).values())
    assert set(entries) == {B}
    lines, weights = stand(new, entries, {A: Verdict(loss=2.3)}, {})
    assert [(line.key, line.uid, line.score) for line in lines] == [(B, 4, 0.0)]
    assert weights == {}


def test_new_commit_replaces_the_old_submission() -> None:
    newer = make_key("a", commit="b" * 40)
    view = make_view(
        neurons=[make_neuron(0, "a")], commitments=[replace(make_commitment("a", 40), text=newer.commitment)]
    )
    entries = enter(view, submission(A, 10))
    assert only(entries).key == newer
    assert only(entries).rank_block == 40
    lines, _ = stand(view, entries, {A: Verdict(loss=2.3)}, {})
    assert [(line.key, line.loss, line.message) for line in lines] == [(newer, None, "waits for its turn")]


def test_same_commitment_again_keeps_the_rank() -> None:
    view = make_view(neurons=[make_neuron(0, "a")], commitments=[make_commitment("a", 40)])
    assert only(enter(view, submission(A, 10))).rank_block == 10


def test_same_commitment_after_a_new_registration_loses_rank() -> None:
    neuron = make_neuron(0, "a", registration_block=30)
    view = make_view(neurons=[neuron], commitments=[make_commitment("a", 40)])
    assert only(enter(view, submission(A, 10))).rank_block == 40
    assert only(enter(view, submission(A, 30))).rank_block == 40
    assert only(enter(view, submission(A, 31))).rank_block == 31


def test_failed_downloads_take_half_of_the_queue_at_most() -> None:
    view = make_view(
        neurons=[make_neuron(uid, name) for uid, name in enumerate("abcde")],
        commitments=[make_commitment(name, block) for name, block in zip("abcde", (10, 9, 30, 20, 20), strict=True)],
    )
    refused = replace(make_commitment("f", 1), text="no")
    view = replace(view, neurons=(*view.neurons, make_neuron(5, "f")), commitments=(*view.commitments, refused))
    entries = list(enter(view).values())
    random.Random(1).shuffle(entries)

    def order(failures: dict[SubmissionKey, int], limit: int) -> str:
        return "".join(key.hotkey for key in order_entries(entries, failures, limit))

    assert order({}, 10) == "badec" and order({}, 2) == "ba"
    assert order({A: 1, B: 2}, 10) == "badec", "there is room for all"
    assert order({A: 1, B: 2}, 4) == "bade", "both halves"
    assert order({A: 1, B: 2}, 3) == "ade", "the one that was withheld least often"
    assert order({A: 2, B: 1}, 3) == "bde"
    assert order({A: 1, B: 2}, 1) == "d"
    everybody = {key: 1 for key in (entry.key for entry in entries)}
    assert order(everybody, 3) == "bad", "an outage of the Hub costs nobody his turn"


def test_a_leaderboard_never_reads_all_verdicts() -> None:
    class Many(dict[SubmissionKey, Verdict]):
        def __iter__(self) -> Any:
            raise AssertionError("there are hundreds of thousands")

        items = keys = values = __iter__

    verdicts = Many({A: Verdict(loss=2.5), SubmissionKey("z", "gone"): Verdict(loss=2.5)})
    view = make_view(neurons=[make_neuron(0, "a")], commitments=[make_commitment("a", 10)])
    lines = build_leaderboard(COMPETITION, enter(view), verdicts, {}, {A})
    assert [line.loss for line in lines] == [2.5]


# Sealed


def test_revealed_commitment_ranks_by_its_commit_block() -> None:
    opened = ChainCommitment(hotkey="a", block=90, text=A.commitment, is_revealed=True)
    view = make_view(neurons=[make_neuron(0, "a")], commitments=[opened])
    (now,) = current_submissions(view, {("a", 90): 60, ("a", 80): 20, ("b", 90): 70})
    assert (now.first_block, now.reveal_block, now.block) == (60, 90, 90)
    entry = only(find_entries(view, {A: now}, COMPETITION, {("a", 90): 60}))
    assert (entry.rank_block, entry.reveal_block) == (60, 90)


def test_commit_before_registration_ranks_by_its_reveal() -> None:
    opened = ChainCommitment(hotkey="a", block=90, text=A.commitment, is_revealed=True)
    view = make_view(neurons=[make_neuron(0, "a", registration_block=70)], commitments=[opened])
    assert only(find_entries(view, {}, COMPETITION, {("a", 90): 60})).rank_block == 90


def test_commitments_of_unregistered_hotkeys_are_not_recorded() -> None:
    commitments = [make_commitment(f"gone{at}", 50) for at in range(100)] + [make_commitment("c", 50)]
    view = make_view(neurons=[make_neuron(0, "c")], commitments=commitments)
    assert [one.key.hotkey for one in current_submissions(view)] == ["c"]


def test_reveal_without_a_commit_block_is_left_out() -> None:
    opened = ChainCommitment(hotkey="a", block=90, text=A.commitment, is_revealed=True)
    gone = replace(opened, hotkey="gone")
    neurons = [make_neuron(0, "a"), make_neuron(1, "c")]
    view = make_view(neurons=neurons, commitments=[opened, gone, make_commitment("c", 50)])
    assert [one.key.hotkey for one in current_submissions(view, {("a", 80): 20})] == ["c"]
    assert missing_commit_blocks(view, {("a", 80): 20}) == {"a": 90}
    assert missing_commit_blocks(view, {("a", 90): 20}) == {}


def test_timelocked_commitment_is_no_submission() -> None:
    sealed = ChainCommitment(hotkey="a", block=30, text=None, reveal_round=1234)
    assert current_submissions(make_view(neurons=[make_neuron(0, "a")], commitments=[sealed]), {}) == []


def test_missing_file_costs_the_rank() -> None:
    view = make_view(neurons=[make_neuron(0, "a")], commitments=[make_commitment("a", 20)])
    missed = replace(submission(A, 10), missing_block=55)
    entry = only(find_entries(view, {A: missed}, COMPETITION))
    assert (entry.rank_block, entry.reveal_block) == (56, 10)


def test_same_commitment_again_keeps_the_reveal_block() -> None:
    view = make_view(neurons=[make_neuron(0, "a")], commitments=[make_commitment("a", 400)])
    assert only(enter(view, submission(A, 10))).reveal_block == 10


# Copies


def test_later_of_two_equal_datasets_is_the_duplicate() -> None:
    view = make_view(
        neurons=[make_neuron(0, "a"), make_neuron(1, "b")],
        commitments=[make_commitment("a", 20), make_commitment("b", 10)],
    )
    copies = find_duplicates(enter(view), see(view), {A: ROWS, B: ROWS})
    assert copies == {A: Duplicate(hotkey="b", commit=B.commitment, block=10, shared=101)}
    assert find_duplicates(enter(view), see(view), {A: HUNDRED, B: HUNDRED}) == {}


def test_original_stays_original_after_a_new_commit() -> None:
    neurons = [make_neuron(0, "a"), make_neuron(1, "b")]
    again = make_view(neurons=neurons, commitments=[make_commitment("a", 40), make_commitment("b", 20)])
    assert set(find_duplicates(enter(again, submission(A, 10)), see(again, submission(A, 10)), {A: ROWS, B: ROWS})) == {
        B
    }
    newer = make_key("a", commit="b" * 40)
    moved = replace(
        again, commitments=(make_commitment("b", 20), replace(make_commitment("a", 40), text=newer.commitment))
    )
    seen = see(moved, submission(A, 10))
    copies = find_duplicates(enter(moved, submission(A, 10)), seen, {A: ROWS, B: ROWS, newer: ROWS})
    assert set(copies) == {B}
    assert copies[B].commit == A.commitment


def test_possible_duplicates_overlap_a_missing_datasets_version() -> None:
    neurons = [make_neuron(0, "a"), make_neuron(1, "b"), make_neuron(2, "c")]
    newer = make_key("a", commit="b" * 40)
    commitments = [
        replace(make_commitment("a", 40), text=newer.commitment),
        make_commitment("b", 20),
        make_commitment("c", 20),
    ]
    view = make_view(neurons=neurons, commitments=commitments)
    seen, known = see(view, submission(A, 10)), {A: ROWS, B: ROWS, C: HUNDRED}
    assert find_duplicates(enter(view), seen, known) == {}
    assert find_possible_duplicates(enter(view), seen, known) == {
        B: Duplicate(hotkey="a", commit=A.commitment, block=10, shared=101)
    }
    assert find_possible_duplicates(enter(view), seen, {**known, newer: ROWS}) == {}, (
        "it is read, so there is no doubt any more"
    )
    late = see(view, submission(A, 30))
    assert find_possible_duplicates(enter(view), late, known) == {}, "B came before that version"


def test_dataset_of_a_deregistered_hotkey_is_no_original() -> None:
    view = make_view(neurons=[make_neuron(1, "b")], commitments=[make_commitment("a", 10), make_commitment("b", 20)])
    assert find_duplicates(enter(view), see(view), {A: ROWS, B: ROWS}) == {}


def test_commitment_before_registration_is_no_original() -> None:
    neurons = [make_neuron(0, "a", registration_block=30), make_neuron(1, "b")]
    view = make_view(neurons=neurons, commitments=[make_commitment("a", 10), make_commitment("b", 35)])
    assert find_duplicates(enter(view), see(view), {A: ROWS, B: ROWS}) == {}


def test_unrelated_earlier_version_is_no_original() -> None:
    neurons = [make_neuron(0, "a"), make_neuron(1, "b")]
    view = make_view(neurons=neurons, commitments=[make_commitment("a", 30), make_commitment("b", 20)])
    old = make_key("a", commit="e" * 40)
    seen = see(view, submission(old, 6))
    others = tuple(bytes([255, at]) * 16 for at in range(150))
    assert find_duplicates(enter(view), seen, {old: ROWS, A: others, B: ROWS}) == {}
    assert set(find_duplicates(enter(view), seen, {old: ROWS, A: ROWS + others, B: ROWS})) == {B}


def test_rank_of_an_earlier_registration_does_not_count() -> None:
    neurons = [make_neuron(0, "a", registration_block=30), make_neuron(1, "b")]
    view = make_view(neurons=neurons, commitments=[make_commitment("a", 40), make_commitment("b", 35)])
    assert set(find_duplicates(enter(view, submission(A, 10)), see(view, submission(A, 10)), {A: ROWS, B: ROWS})) == {A}


def test_dataset_without_a_submission_is_left_out() -> None:
    view = make_view(neurons=[make_neuron(1, "b")], commitments=[make_commitment("b", 20)])
    assert find_duplicates(enter(view), see(view), {A: ROWS, B: ROWS}) == {}


# Standings and weights


def compete(names: str, *, owner_uid: int | None = None) -> tuple[ChainView, dict[SubmissionKey, Entry]]:
    """One entrant per letter with its place as uid, committed in this order, and the owner if it has a uid."""
    neurons = [make_neuron(uid, name) for uid, name in enumerate(names)]
    if owner_uid is not None:
        neurons.append(make_neuron(owner_uid, OWNER))
    view = make_view(neurons=neurons, commitments=[make_commitment(name, 10 + at) for at, name in enumerate(names)])
    return view, enter(view)


def by_hotkey(lines: list[LeaderboardRow]) -> dict[str, LeaderboardRow]:
    return {line.key.hotkey: line for line in lines}


def test_scores_become_weights_by_uid() -> None:
    view, entries = compete("abc", owner_uid=9)
    verdicts = {A: Verdict(loss=2.3), B: Verdict(loss=2.6), C: Verdict(loss=2.9)}
    lines, weights = stand(view, entries, verdicts, {})
    table = by_hotkey(lines)
    assert [table[name].score for name in "abc"] == [1.0, pytest.approx(0.05), 0.0]
    assert weights == {0: pytest.approx(1 / 1.05), 1: pytest.approx(0.05 / 1.05)}
    assert [table[name].weight for name in "abc"] == [weights[0], weights[1], 0.0]
    assert [table[name].loss for name in "abc"] == [2.3, 2.6, 2.9]
    assert {line.reason for line in lines} == {None}


def test_rows_without_a_score_have_a_reason() -> None:
    view, entries = compete("abc")
    refused = replace(make_commitment("d", 5), text="no")
    view = replace(view, neurons=(*view.neurons, make_neuron(7, "d")), commitments=(*view.commitments, refused))
    entries = enter(view)
    verdicts = {A: Verdict(reason=Reason.NOT_IN_POOL, message="line 3"), SubmissionKey("d", "no"): Verdict(loss=2.3)}
    table = by_hotkey(stand(view, entries, verdicts, {B: COPY})[0])
    assert (table["a"].reason, table["a"].message) == (Reason.NOT_IN_POOL, "line 3")
    assert table["b"].reason is Reason.DUPLICATE
    assert "shares 101 rows with the earlier submission of x" in table["b"].message
    assert (table["c"].reason, table["c"].message) == (None, "waits for its turn")
    assert (table["d"].reason, table["d"].loss, table["d"].score) == (Reason.BAD_COMMITMENT, None, 0.0)


def test_duplicate_with_a_loss_gets_nothing() -> None:
    view, entries = compete("ab")
    verdicts = {A: Verdict(loss=2.5), B: Verdict(loss=2.3)}
    lines, weights = stand(view, entries, verdicts, {B: COPY})
    table = by_hotkey(lines)
    assert weights == {0: 1.0}
    assert (table["b"].score, table["b"].weight, table["b"].loss) == (0.0, 0.0, 2.3)
    assert table["a"].weight == 1.0


@pytest.mark.parametrize("owner_uid", [0, 9])
def test_without_scores_all_weight_goes_to_the_owner(owner_uid: int) -> None:
    view = make_view(
        neurons=[make_neuron(owner_uid, OWNER), make_neuron(3, "a")], commitments=[make_commitment("a", 10)]
    )
    lines, weights = stand(view, enter(view), {A: Verdict(loss=2.9)}, {})
    assert weights == {owner_uid: 1.0}
    assert [line.weight for line in lines] == [0.0]


def test_burn_is_not_the_owners_own_share() -> None:
    key = make_key(OWNER)
    view = make_view(
        neurons=[make_neuron(2, OWNER), make_neuron(3, "a")],
        commitments=[make_commitment(OWNER, 10), make_commitment("a", 11)],
    )
    judged = {A: Verdict(loss=2.9)}
    lines, weights = stand(view, enter(view), {**judged, key: Verdict(loss=2.9)}, {})
    assert weights == {2: 1.0}
    assert by_hotkey(lines)[OWNER].weight == 0.0
    lines, weights = stand(view, enter(view), {**judged, key: Verdict(loss=2.3)}, {})
    assert weights == {2: 1.0}
    assert by_hotkey(lines)[OWNER].weight == 1.0


def test_without_scores_and_owner_there_are_no_weights() -> None:
    view, entries = compete("a")
    lines, weights = stand(view, entries, {A: Verdict(loss=2.9)}, {})
    assert weights == {}
    assert [line.weight for line in lines] == [0.0]
    assert stand(make_view(), {}, {}, {}) == ([], {})


def test_loss_without_row_keys_pays_nothing() -> None:
    _, entries = compete("ab", owner_uid=9)
    verdicts = {A: Verdict(loss=2.3), B: Verdict(loss=2.3)}
    lines = build_leaderboard(COMPETITION, entries, verdicts, {}, {B: ROWS})
    assert [(line.loss, line.weight) for line in lines] == [(None, 0.0), (2.3, 1.0)]


def test_dataset_rejected_after_its_check_is_no_original() -> None:
    datasets = {A: ROWS, B: ROWS, C: ROWS}
    verdicts = {A: Verdict(reason=Reason.DIVERGED), B: Verdict(loss=2.5)}
    assert set(eligible_datasets(datasets, verdicts)) == {B, C}


def test_stuck_entry_does_not_delay_the_burn() -> None:
    _, entries = compete("ab", owner_uid=9)
    lines = build_leaderboard(COMPETITION, entries, {A: Verdict(loss=2.9)}, {}, {A: ROWS})
    assert choose_weights(lines, {"b": 1.0}, OWNER) == {"b": 1.0}
    assert choose_weights(lines, {"b": 1.0}, OWNER, stuck={B}) == {OWNER: 1.0}
    nothing = build_leaderboard(COMPETITION, entries, {}, {}, {})
    assert choose_weights(nothing, {"b": 1.0}, OWNER, stuck={A, B}) == {"b": 1.0}, "this machine can score none"


def test_waiting_entry_delays_the_burn() -> None:
    view, entries = compete("ab", owner_uid=9)
    judged = {A: Verdict(loss=2.9)}
    assert stand(view, entries, judged, {})[1] == {}
    assert stand(view, entries, judged, {}, {"b": 1.0})[1] == {1: 1.0}
    assert stand(view, entries, judged, {B: COPY})[1] == {9: 1.0}
    assert stand(view, entries, {**judged, B: Verdict(reason=Reason.EMPTY)}, {}, {"b": 1.0})[1] == {9: 1.0}


def test_shares_follow_hotkeys_to_their_present_uids() -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    later = make_view(neurons=[make_neuron(0, "c"), make_neuron(1, "thief"), make_neuron(2, "a")])
    assert weights_by_uid(shares, later, {}) == {0: pytest.approx(2 / 7), 2: pytest.approx(5 / 7)}


def test_share_ends_with_a_new_registration() -> None:
    view = make_view(neurons=[make_neuron(0, "a", registration_block=90), make_neuron(1, "b"), make_neuron(9, OWNER)])
    assert weights_by_uid({"a": 0.5, "b": 0.5}, view, {"a": 5, "b": 5}) == {1: 1.0}
    assert weights_by_uid({"a": 1.0}, view, {"a": 5}) == {9: 1.0}
    assert weights_by_uid({}, view, {}) == {}


def test_leaderboard_does_not_depend_on_input_order() -> None:
    draw = random.Random(1)
    names = [f"h{number:02}" for number in range(40)]
    neurons = [make_neuron(uid, name) for uid, name in enumerate(names)]
    commitments = [make_commitment(name, 10 + uid // 4) for uid, name in enumerate(names)]
    verdicts = {make_key(name): Verdict(loss=draw.uniform(2.3, 2.9)) for name in names}
    datasets = {make_key(name): ROWS if draw.random() < 0.3 else (name.encode() * 12,) for name in names}
    results = []
    for _ in range(5):
        for some in (neurons, commitments):
            draw.shuffle(some)
        mixed = dict(draw.sample(sorted(datasets.items()), len(datasets)))
        view = make_view(neurons=sorted(neurons, key=lambda neuron: neuron.uid), commitments=commitments)
        entries = enter(view)
        copies = find_duplicates(entries, see(view), mixed)
        lines, weights = stand(view, entries, verdicts, copies)
        results.append((copies, sorted(lines, key=lambda line: line.uid), weights))
    assert len(results[0][0]) > 3
    assert all(result == results[0] for result in results)
