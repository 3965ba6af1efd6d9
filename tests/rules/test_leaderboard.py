"""The leaderboard of a round and the weights made of it."""

from dataclasses import replace
from typing import Any

import pytest

from template.competition import Competition, Incentives, Reward
from template.errors import Reason
from template.records import ContentKey, LeaderboardRow, SubmissionKey, Verdict
from template.rules.leaderboard import build_leaderboard, choose_weights, find_undecided, weights_by_uid
from template.rules.ledger import Content, read_ledger
from template.rules.table import Table
from template.terminal import describe_verdict
from tests.fixtures.table import DAY, PERIOD, Game, make_content
from tests.fixtures.views import OWNER, make_entry, make_key, make_neuron, make_view

COMPETITION = Competition.from_defaults()
RULES = Incentives(evaluations=4, hold=8)
A, B, C = (make_key(name) for name in "abc")


def make_table(*contents: Content, readable: int = 90 * PERIOD, **changes: Any) -> Table:
    """Make the table of these datasets, all present."""
    values: dict[str, Any] = {
        "present": {make_key(content.key.hotkey): content for content in contents},
        "waiting": {},
        "readable": {content.key.hotkey: readable for content in contents},
        "duplicates": {},
        "ledger": read_ledger(contents, COMPETITION, RULES),
    }
    return Table(**{**values, **changes})


def rank(
    table: Table, *names: str, verdicts: dict[SubmissionKey, Verdict] | None = None, incentives: Incentives = RULES
) -> dict[str, LeaderboardRow]:
    """Return the rows of these hotkeys, all registered in block 1."""
    entries = {
        make_key(name): make_entry(make_key(name), 10, uid=uid, registration_block=1) for uid, name in enumerate(names)
    }
    rows, _ = build_leaderboard(COMPETITION, incentives, entries, verdicts or {}, table, 90 * PERIOD)
    return {row.hotkey: row for row in rows}


def test_row_shows_the_estimate_and_the_credit() -> None:
    rows = rank(make_table(make_content("a", 0, [2.5] * 4), make_content("b", 1, [2.45, 2.47])), "a", "b", "c")
    assert (rows["a"].loss, rows["a"].runs, rows["a"].spread, rows["a"].message) == (2.5, 4, 0.0, "")
    assert rows["a"].credit > 0.0 and rows["a"].weight == 1.0
    assert (rows["b"].mean, rows["b"].runs, rows["b"].weight) == (pytest.approx(2.46), 2, 0.0)
    assert rows["b"].message == "2 of 4 evaluations"
    assert rows["b"].loss is not None and rows["b"].loss > 2.46, "one spread above sd costs"
    assert (rows["c"].reason, rows["c"].digest, rows["c"].message) == (None, None, "waits for its download")


def test_dropped_dataset_is_told_the_loss_that_it_needs() -> None:
    record = make_content("a", 0, [2.5] * 4)
    rows = rank(make_table(record, make_content("b", 1, [2.52]), make_content("c", 2, [2.51])), "b", "c")
    text = "1 of 4 evaluations, dropped: more are unlikely to bring its loss 2.520000 below 2.495000, where pay begins"
    assert (rows["b"].message, rows["c"].message) == (text, "1 of 4 evaluations")
    assert [describe_verdict(row, []) for row in rows.values()] == ["dropped", "in_progress"]


def test_row_names_the_first_rule_that_failed() -> None:
    table = make_table(make_content("a", 0, [2.5] * 4))
    rows = rank(table, "a", verdicts={A: Verdict(reason=Reason.DIVERGED, message="step 3")})
    assert (rows["a"].reason, rows["a"].message, rows["a"].weight) == (Reason.DIVERGED, "step 3", 0.0)
    waiting = rank(make_table(waiting={B: 7200}), "b")["b"]
    assert (waiting.reason, waiting.message) == (None, "counts from block 7200")


def test_duplicate_with_a_loss_gets_nothing() -> None:
    game = Game()
    game.commit("a", range(250))
    game.play(2)
    game.commit("b", range(250))
    game.losses[ContentKey("b", next(iter(game.datasets.values())).digest)] = [2.4] * 4
    game.play()
    rows = {row.hotkey: row for row in game.leaderboard().rows}
    assert (rows["b"].reason, rows["b"].score, rows["b"].weight, rows["b"].runs) == (Reason.DUPLICATE, 0.0, 0.0, 4)
    assert "shares 250 rows with the earlier dataset of a" in rows["b"].message


@pytest.mark.parametrize(
    ("verdict", "readable", "is_paid"),
    [
        (None, 90 * PERIOD, True),
        (Verdict(reason=Reason.MISSING_FILE), 90 * PERIOD - DAY, True),
        (Verdict(reason=Reason.MISSING_FILE), 90 * PERIOD - DAY - PERIOD, False),
        (Verdict(reason=Reason.NOT_IN_POOL), 90 * PERIOD, False),
    ],
    ids=["readable", "missing for a day", "missing for longer", "rejected"],
)
def test_credit_is_paid_while_a_dataset_is_readable(verdict: Verdict | None, readable: int, is_paid: bool) -> None:
    table = make_table(make_content("a", 0, [2.5] * 4), readable=readable)
    row = rank(table, "a", verdicts={A: verdict} if verdict else {})["a"]
    assert (row.credit > 0.0) == (row.weight == 1.0) == is_paid


def test_absent_record_is_unpaid_and_sets_the_frontier() -> None:
    first = make_content("a", 0, [2.5] * 4)
    second = replace(make_content("a", 1, [2.45] * 4), key=ContentKey("a", "second"))
    third = make_content("b", 2, [2.4] * 4)
    table = make_table(first, third, ledger=read_ledger([first, second, third], COMPETITION, RULES))
    entries = {key: make_entry(key, 10, registration_block=1) for key in (A, B)}
    boards = [
        build_leaderboard(COMPETITION, RULES, entries, {}, table, 90 * PERIOD, absent)
        for absent in (set(), {second.key}, {first.key, second.key})
    ]
    credits = [{row.hotkey: row.credit for row in board.rows} for board in boards]
    assert credits[0]["a"] > credits[1]["a"] > credits[2]["a"] == 0.0, "its other record stays paid"
    assert credits[0]["b"] == credits[1]["b"] == credits[2]["b"]
    assert [line.is_absent for line in boards[1].ledger] == [False, True, False]
    message = "unpaid records (rows second): the file is missing on the Hub for more than a day"
    assert [row.message for row in boards[1].rows] == [message, ""]


def test_proportional_pays_confirmed_scores() -> None:
    contents = make_content("a", 0, [2.5] * 4), make_content("b", 1, [2.5] * 4), make_content("c", 2, [2.4] * 3)
    rows = rank(make_table(*contents), "a", "b", "c", incentives=replace(RULES, reward=Reward.PROPORTIONAL))
    assert [rows[name].weight for name in "abc"] == [0.5, 0.5, 0.0]


# Weights


def make_row(
    name: str, *, loss: float | None = None, weight: float = 0.0, reason: Reason | None = None
) -> LeaderboardRow:
    return LeaderboardRow(key=make_key(name), uid=0, reason=reason, message="", loss=loss, score=0.0, weight=weight)


LAST = {"z": 1.0}
UNEVALUATED, EVALUATED = [make_row("a")], [make_row("a", loss=2.7), make_row("b")]


@pytest.mark.parametrize(
    ("rows", "last", "rules", "expected"),
    [
        ([make_row("a", loss=2.5, weight=1.0)], LAST, {"has_ledger": True}, {"a": 1.0}),
        ([make_row("a", loss=2.5, weight=1.0)], LAST, {"has_ledger": True, "undecided": {"b"}}, {"a": 1.0}),
        ([make_row("a", loss=2.5, weight=1.0)], LAST, {"has_ledger": True, "undecided": {"z"}}, LAST),
        (EVALUATED, LAST, {"has_ledger": True}, {OWNER: 1.0}),
        (EVALUATED, LAST, {"has_ledger": False}, {OWNER: 1.0}),
        (EVALUATED, LAST, {"has_ledger": False, "undecided": {"b"}}, LAST),
        (UNEVALUATED, LAST, {"has_ledger": False}, LAST),
        (UNEVALUATED, {}, {"has_ledger": False}, {}),
        ([make_row("a", reason=Reason.EMPTY)], {}, {"has_ledger": False}, {OWNER: 1.0}),
        ([], {}, {"has_ledger": False}, {OWNER: 1.0}),
    ],
    ids=[
        "own weights", "another waits", "one with a share waits", "no credit left", "all decided", "some still wait",
        "nothing evaluated", "nothing evaluated, no shares", "all rejected", "no entries",
    ],
)  # fmt: skip
def test_weights_of_a_round(
    rows: list[LeaderboardRow], last: dict[str, float], rules: dict[str, Any], expected: dict[str, float]
) -> None:
    assert choose_weights(rows, last, OWNER, **rules) == expected


def test_season_waits_for_datasets_that_are_older_than_it() -> None:
    contents = [
        make_content("confirmed", 1, [2.5] * 4), make_content("waiting", 2), make_content("started", 3, [2.45]),
        make_content("hopeless", 4, [2.6]), make_content("newer", 20),
    ]  # fmt: skip
    assert find_undecided(make_table(*contents), 10, COMPETITION, RULES) == {"waiting", "started"}


def test_shares_follow_hotkeys_to_their_present_uids() -> None:
    view = make_view(neurons=[make_neuron(0, "c"), make_neuron(1, "thief"), make_neuron(2, "a")])
    weights = weights_by_uid({"a": 0.5, "b": 0.3, "c": 0.2}, view, {})
    assert weights == {0: pytest.approx(2 / 7), 2: pytest.approx(5 / 7)}


def test_share_ends_with_a_new_registration() -> None:
    view = make_view(neurons=[make_neuron(0, "a", registration_block=90), make_neuron(1, "b"), make_neuron(9, OWNER)])
    assert weights_by_uid({"a": 0.5, "b": 0.5}, view, {"a": 5, "b": 5}) == {1: 1.0}
    assert weights_by_uid({"a": 1.0}, view, {"a": 5}) == {9: 1.0}
    assert weights_by_uid({}, view, {}) == {}
