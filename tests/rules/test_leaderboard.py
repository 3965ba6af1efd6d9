"""The leaderboard of a round and the weights made of it."""

import random
from dataclasses import replace
from typing import Any

import pytest

from template.competition import Competition
from template.errors import Reason
from template.records import ChainView, Entry, LeaderboardRow, SubmissionKey, Verdict
from template.rules.duplicates import Duplicate, find_duplicates
from template.rules.leaderboard import build_leaderboard, choose_weights, weights_by_uid
from tests.fixtures.views import OWNER, enter, make_commitment, make_key, make_neuron, make_view, record, view_of

COMPETITION = Competition.from_defaults()
A, B, C = (make_key(name) for name in "abc")
ROWS = tuple(number.to_bytes(32, "big") for number in range(101))
DUPLICATE = Duplicate(hotkey="x", commit="y", block=1, shared=101)
# Beyond the curve: its score is 0.
HIGH_LOSS = Verdict(loss=2.9)


def compete(names: str, *, owner_uid: int | None = None) -> tuple[ChainView, dict[SubmissionKey, Entry]]:
    """One entry per letter, in the order of uids, and the owner if it has a uid."""
    view = view_of(**{name: 10 + uid for uid, name in enumerate(names)})
    if owner_uid is not None:
        view = replace(view, neurons=(*view.neurons, make_neuron(owner_uid, OWNER)), owner_uid=owner_uid)
    return view, enter(view)


def rank(
    view: ChainView,
    entries: dict[SubmissionKey, Entry],
    verdicts: dict[SubmissionKey, Verdict],
    duplicates: dict[SubmissionKey, Duplicate],
    last_shares: dict[str, float] | None = None,
) -> tuple[dict[str, LeaderboardRow], dict[int, float]]:
    """The leaderboard by hotkey, and the weights that are submitted at `view`."""
    rows = build_leaderboard(COMPETITION, entries, verdicts, duplicates, verdicts)
    shares = choose_weights(rows, last_shares or {}, view.owner_hotkey)
    registrations = {entry.key.hotkey: entry.registration_block for entry in entries.values()}
    return {row.key.hotkey: row for row in rows}, weights_by_uid(shares, view, registrations)


def test_scores_become_weights_by_uid() -> None:
    verdicts = {A: Verdict(loss=2.3), B: Verdict(loss=2.6), C: HIGH_LOSS}
    rows, weights = rank(*compete("abc", owner_uid=9), verdicts, {})
    assert [rows[name].score for name in "abc"] == [1.0, pytest.approx(0.05), 0.0]
    assert weights == {0: pytest.approx(1 / 1.05), 1: pytest.approx(0.05 / 1.05)}
    assert [(row.weight, row.loss, row.reason) for row in rows.values()] == [
        (weights[0], 2.3, None), (weights[1], 2.6, None), (0.0, 2.9, None),
    ]  # fmt: skip


def test_rows_without_a_score_have_a_reason() -> None:
    view, _ = compete("abc")
    invalid = replace(make_commitment("d", 5), text="no")
    view = replace(view, neurons=(*view.neurons, make_neuron(7, "d")), commitments=(*view.commitments, invalid))
    verdicts = {A: Verdict(reason=Reason.NOT_IN_POOL, message="line 3"), SubmissionKey("d", "no"): Verdict(loss=2.3)}
    rows, _ = rank(view, enter(view), verdicts, {B: DUPLICATE})
    assert (rows["a"].reason, rows["a"].message) == (Reason.NOT_IN_POOL, "line 3")
    assert rows["b"].reason is Reason.DUPLICATE
    assert "shares 101 rows with the earlier submission of x" in rows["b"].message
    assert (rows["c"].reason, rows["c"].message) == (None, "waits for its turn")
    assert (rows["d"].reason, rows["d"].loss, rows["d"].score) == (Reason.BAD_COMMITMENT, None, 0.0)


def test_duplicate_with_a_loss_gets_nothing() -> None:
    verdicts = {A: Verdict(loss=2.5), B: Verdict(loss=2.3)}
    rows, weights = rank(*compete("ab"), verdicts, {B: DUPLICATE})
    assert weights == {0: 1.0} and rows["a"].weight == 1.0
    assert (rows["b"].score, rows["b"].weight, rows["b"].loss) == (0.0, 0.0, 2.3)


@pytest.mark.parametrize("owner_uid", [0, 9])
def test_without_scores_all_weight_goes_to_the_owner(owner_uid: int) -> None:
    view = make_view(
        neurons=[make_neuron(owner_uid, OWNER), make_neuron(3, "a")], commitments=[make_commitment("a", 10)]
    )
    rows, weights = rank(view, enter(view), {A: HIGH_LOSS}, {})
    assert weights == {owner_uid: 1.0} and rows["a"].weight == 0.0


@pytest.mark.parametrize(("loss", "weight"), [(2.9, 0.0), (2.3, 1.0)])
def test_burn_is_not_the_owners_own_share(loss: float, weight: float) -> None:
    view = view_of(a=11, **{OWNER: 10})
    view = replace(view, owner_uid=view.by_hotkey[OWNER].uid)
    rows, weights = rank(view, enter(view), {A: HIGH_LOSS, make_key(OWNER): Verdict(loss=loss)}, {})
    assert weights == {1: 1.0} and rows[OWNER].weight == weight


def test_without_scores_and_owner_there_are_no_weights() -> None:
    rows, weights = rank(*compete("a"), {A: HIGH_LOSS}, {})
    assert weights == {} and rows["a"].weight == 0.0
    assert rank(make_view(), {}, {}, {}) == ({}, {})


def test_loss_without_row_keys_pays_nothing() -> None:
    verdicts = {A: Verdict(loss=2.3), B: Verdict(loss=2.3)}
    rows = build_leaderboard(COMPETITION, compete("ab", owner_uid=9)[1], verdicts, {}, {B: ROWS})
    assert [(row.loss, row.weight) for row in rows] == [(None, 0.0), (2.3, 1.0)]


def test_leaderboard_never_reads_all_verdicts() -> None:
    class Many(dict[SubmissionKey, Verdict]):
        def __iter__(self) -> Any:
            raise AssertionError("there are hundreds of thousands")

        items = keys = values = __iter__

    verdicts = Many({A: Verdict(loss=2.5), SubmissionKey("z", "gone"): Verdict(loss=2.5)})
    assert [row.loss for row in build_leaderboard(COMPETITION, compete("a")[1], verdicts, {}, {A})] == [2.5]


def test_stuck_entry_does_not_delay_the_burn() -> None:
    _, entries = compete("ab", owner_uid=9)
    rows = build_leaderboard(COMPETITION, entries, {A: HIGH_LOSS}, {}, {A: ROWS})
    assert choose_weights(rows, {"b": 1.0}, OWNER) == {"b": 1.0}
    assert choose_weights(rows, {"b": 1.0}, OWNER, stuck={B}) == {OWNER: 1.0}
    nothing = build_leaderboard(COMPETITION, entries, {}, {}, {})
    assert choose_weights(nothing, {"b": 1.0}, OWNER, stuck={A, B}) == {"b": 1.0}, "this machine can evaluate nothing"


def test_waiting_entry_delays_the_burn() -> None:
    competing, verdicts = compete("ab", owner_uid=9), {A: HIGH_LOSS}
    assert rank(*competing, verdicts, {})[1] == {}
    assert rank(*competing, verdicts, {}, {"b": 1.0})[1] == {1: 1.0}
    assert rank(*competing, verdicts, {B: DUPLICATE})[1] == {9: 1.0}
    assert rank(*competing, {**verdicts, B: Verdict(reason=Reason.EMPTY)}, {}, {"b": 1.0})[1] == {9: 1.0}


def test_shares_follow_hotkeys_to_their_present_uids() -> None:
    view = make_view(neurons=[make_neuron(0, "c"), make_neuron(1, "thief"), make_neuron(2, "a")])
    weights = weights_by_uid({"a": 0.5, "b": 0.3, "c": 0.2}, view, {})
    assert weights == {0: pytest.approx(2 / 7), 2: pytest.approx(5 / 7)}


def test_share_ends_with_a_new_registration() -> None:
    view = make_view(neurons=[make_neuron(0, "a", registration_block=90), make_neuron(1, "b"), make_neuron(9, OWNER)])
    assert weights_by_uid({"a": 0.5, "b": 0.5}, view, {"a": 5, "b": 5}) == {1: 1.0}
    assert weights_by_uid({"a": 1.0}, view, {"a": 5}) == {9: 1.0}
    assert weights_by_uid({}, view, {}) == {}


def test_leaderboard_does_not_depend_on_input_order() -> None:
    draw = random.Random(1)
    names = [f"h{number:02}" for number in range(40)]
    view = view_of(**{name: 10 + uid // 4 for uid, name in enumerate(names)})
    verdicts = {make_key(name): Verdict(loss=draw.uniform(2.3, 2.9)) for name in names}
    datasets = {make_key(name): ROWS if draw.random() < 0.3 else (name.encode() * 12,) for name in names}
    results = []
    for _ in range(5):
        commitments = draw.sample(view.commitments, len(names))
        mixed = replace(view, commitments=tuple(commitments))
        shuffled = dict(draw.sample(sorted(datasets.items()), len(datasets)))
        duplicates = find_duplicates(enter(mixed), record(mixed), shuffled)
        results.append((duplicates, *rank(mixed, enter(mixed), verdicts, duplicates)))
    assert len(results[0][0]) > 3
    assert all(result == results[0] for result in results)
