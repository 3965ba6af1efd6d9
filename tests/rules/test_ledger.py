"""Estimates of a loss, the ledger, its credits and the shares that follow."""

import math
import random
import statistics
from dataclasses import dataclass, replace
from typing import Any

import pytest

from template.competition import Competition, Incentives, Reward
from template.errors import Reason
from template.records import LedgerLine
from template.rules.ledger import (
    Content,
    LedgerRow,
    estimate_loss,
    frontier_before,
    is_credit_paid,
    is_hopeless,
    ledger_lines,
    live_credits,
    make_shares,
    read_ledger,
)
from template.rules.scoring import score_of
from tests.fixtures.table import DAY, make_content, make_rank

COMPETITION = Competition.from_defaults()
RULES = Incentives(evaluations=4, hold=8, sd=0.01, epsilon=0.005, half_life_blocks=1000)


@dataclass(frozen=True)
class Row:
    """The columns of the leaderboard that `make_shares` reads."""

    hotkey: str
    credit: float = 0.0
    score: float = 0.0
    runs: int = 4
    reason: Reason | None = None


def read(*contents: Content) -> list[LedgerRow]:
    return read_ledger(contents, COMPETITION, RULES)


def make_line(hotkey: str, rank_block: int, credit: float, registration_block: int = 1) -> LedgerLine:
    values: dict[str, Any] = dict.fromkeys(("mean", "spread", "loss", "frontier"), 2.5)
    return LedgerLine(
        hotkey=hotkey, digest=hotkey, rank_block=rank_block, commit_block=rank_block,
        registration_block=registration_block, runs=4, credit=credit, **values,
    )  # fmt: skip


def test_loss_is_the_mean_and_a_penalty_for_a_wide_spread() -> None:
    narrow, wide = [2.50, 2.51, 2.49, 2.50], [2.40, 2.60, 2.40, 2.60]
    assert estimate_loss(narrow, 0.01).loss == estimate_loss(narrow, 0.01).mean == pytest.approx(2.5)
    spread = statistics.stdev(wide)
    assert estimate_loss(wide, 0.01).loss == pytest.approx(2.5 + 2 * (spread - 0.01) / 2)
    assert estimate_loss([2.5], 0.01).spread is None


def test_estimate_does_not_depend_on_the_order_of_runs() -> None:
    draw = random.Random(1)
    losses = [draw.gauss(2.5, 0.01) for _ in range(48)]
    expected = estimate_loss(losses, 0.005)
    assert all(estimate_loss(draw.sample(losses, 48), 0.005) == expected for _ in range(20))


def test_record_is_credited_what_it_adds_beyond_epsilon() -> None:
    first, second = read(make_content("b", 20, [2.45] * 4), make_content("a", 10, [2.5] * 4))
    assert (first.content.key.hotkey, first.frontier, second.frontier) == ("a", COMPETITION.bench, 2.5)
    epsilon = RULES.epsilon
    assert first.credit == score_of(2.5 + epsilon, COMPETITION) - score_of(COMPETITION.bench, COMPETITION)
    assert second.credit == score_of(2.45 + epsilon, COMPETITION) - score_of(2.5, COMPETITION)


@pytest.mark.parametrize(("loss", "is_record"), [(2.4951, False), (2.4949, True), (2.7, False)])
def test_record_is_better_by_epsilon(loss: float, is_record: bool) -> None:
    rows = read(make_content("a", 10, [2.5] * 4), make_content("b", 20, [loss] * 4))
    assert (rows[1].credit > 0.0) == is_record


def test_dataset_enters_the_ledger_with_enough_runs() -> None:
    assert read(make_content("a", 10, [2.5] * 3)) == []
    assert read(make_content("a", 10, [2.7] * 4))[0].credit == 0.0, "worse than the benchmark"


@pytest.mark.parametrize("seed", range(20))
def test_credits_add_up_to_the_improvement_less_epsilons(seed: int) -> None:
    draw = random.Random(seed)
    names = [f"h{number}" for number in range(draw.randrange(1, 30))]
    rows = read(*(make_content(name, draw.randrange(9), [draw.uniform(2.41, 2.7)] * 4) for name in names))
    records = [row.estimate.loss for row in rows if row.credit > 0.0]
    best = min([COMPETITION.bench, *records])
    total = score_of(best, COMPETITION) - score_of(COMPETITION.bench, COMPETITION)
    deducted = [score_of(loss, COMPETITION) - score_of(loss + RULES.epsilon, COMPETITION) for loss in records]
    assert math.isclose(math.fsum(row.credit for row in rows), total - math.fsum(deducted), abs_tol=1e-12)


def test_improvement_in_two_steps_earns_less_than_in_one() -> None:
    steps = read(make_content("a", 10, [2.5] * 4), make_content("b", 20, [2.45] * 4))
    (one,) = read(make_content("b", 20, [2.45] * 4))
    assert math.fsum(row.credit for row in steps) < one.credit


def test_frontier_is_the_best_record_of_earlier_rank() -> None:
    rows = read(*(make_content(name, block, [loss] * 4) for name, block, loss in [("a", 10, 2.5), ("b", 20, 2.55)]))
    bench = COMPETITION.bench
    assert frontier_before(make_rank(10), rows, bench) == bench
    assert frontier_before(make_rank(30), rows, bench) == 2.5, "b is no record"


@pytest.mark.parametrize(("loss", "runs", "is_dropped"), [(2.514, 1, False), (2.516, 1, True), (2.506, 3, False)])
def test_dataset_is_dropped_when_a_record_is_unlikely(loss: float, runs: int, is_dropped: bool) -> None:
    rows = read(make_content("a", 10, [2.5] * 4))
    assert is_hopeless(make_content("b", 20, [loss] * runs), rows, COMPETITION, RULES) == is_dropped
    assert not is_hopeless(make_content("b", 5, [loss] * runs), rows, COMPETITION, RULES), "it is earlier than a"
    assert not is_hopeless(make_content("b", 20), rows, COMPETITION, RULES)


def test_dataset_with_a_score_is_kept_where_scores_are_paid() -> None:
    rules = replace(RULES, reward=Reward.PROPORTIONAL)
    rows = read(make_content("a", 10, [2.41] * 4))
    assert not is_hopeless(make_content("b", 20, [2.79]), rows, COMPETITION, rules)
    assert is_hopeless(make_content("b", 20, [2.9]), rows, COMPETITION, rules)


# Credits


def test_credit_halves_with_every_half_life() -> None:
    lines = [make_line("a", 100, 0.4), make_line("a", 1100, 0.2)]
    assert live_credits(100, lines, {"a": 1}, RULES) == {"a": pytest.approx(0.6)}
    assert live_credits(2100, lines, {"a": 1}, RULES) == {"a": pytest.approx(0.2)}


def test_credit_ends_with_the_registration() -> None:
    lines = [make_line("a", 100, 0.4), make_line("b", 200, 0.1)]
    assert live_credits(200, lines, {"a": 150, "b": 1}, RULES) == {"b": pytest.approx(0.1)}
    assert live_credits(200, lines, {"b": 1}, RULES) == {"b": pytest.approx(0.1)}


def test_absent_record_has_no_credit_and_is_no_winner() -> None:
    lines = [make_line("a", 100, 0.4), make_line("b", 200, 0.1), replace(make_line("b", 300, 0.3), is_absent=True)]
    assert live_credits(200, lines, {"a": 1, "b": 1}, RULES) == {"a": pytest.approx(0.4 * 0.5**0.1), "b": 0.1}
    rows, rules = [Row("a", credit=0.4), Row("b", credit=0.1)], replace(RULES, reward=Reward.WINNER)
    only = [lines[0], lines[2]]
    assert make_shares(rows, only, {"a": 1, "b": 1}, rules) == {"a": 1.0}


def test_credit_survives_a_day_without_a_readable_dataset() -> None:
    assert is_credit_paid(None, 1000, 1000) and is_credit_paid(None, 1000, 1000 + DAY)
    assert is_credit_paid(Reason.MISSING_FILE, 1000, 1000 + DAY)
    assert not is_credit_paid(Reason.MISSING_FILE, 1000, 1001 + DAY)
    assert not is_credit_paid(None, -1, DAY)
    assert not is_credit_paid(Reason.DUPLICATE, 1000, 1000)


# Shares


def test_shares_are_the_credits_normalised() -> None:
    rows = [Row("a", credit=3.0), Row("b", credit=1.0), Row("c", score=1.0)]
    assert make_shares(rows, [], {}, RULES) == {"a": 0.75, "b": 0.25}
    assert make_shares([Row("c", score=1.0)], [], {}, RULES) == {}


def test_proportional_shares_follow_scores_of_confirmed_datasets() -> None:
    rules = replace(RULES, reward=Reward.PROPORTIONAL)
    rows = [Row("a", score=0.6), Row("b", score=0.2), Row("c", score=0.9, runs=3), Row("d", reason=Reason.DUPLICATE)]
    assert make_shares(rows, [], {}, rules) == {"a": pytest.approx(0.75), "b": pytest.approx(0.25)}


def test_winner_is_the_last_record_that_is_paid() -> None:
    rules, lines = replace(RULES, reward=Reward.WINNER), [make_line("a", 10, 0.2), make_line("b", 20, 0.1)]
    lines.append(make_line("c", 30, 0.0))
    rows, registrations = [Row("a", credit=0.2), Row("b", credit=0.1), Row("c")], {"a": 1, "b": 1, "c": 1}
    assert make_shares(rows, lines, registrations, rules) == {"b": 1.0}
    assert make_shares(rows, lines, {**registrations, "b": 15}, rules) == {"a": 1.0}
    assert make_shares([Row("a", credit=0.2), Row("b")], lines, registrations, rules) == {"a": 1.0}
    assert make_shares([], lines, registrations, rules) == {}


def test_ledger_lines_show_the_rows() -> None:
    (line,) = ledger_lines(read(make_content("a", 10, [2.5] * 4)))
    assert (line.hotkey, line.rank_block, line.runs, line.loss) == ("a", 10, 4, 2.5)
    assert line.credit > 0.0 and line.frontier == COMPETITION.bench
