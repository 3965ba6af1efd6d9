"""The search for better rows, with losses from a table."""

import itertools
import random
from pathlib import Path

import pytest

from template.miner.selection import Budget, CopyRule, Evaluation, Journal, OutOfBudget, Rows, Search, swap_rows

SEEDS = (1, 2, 3)


def make_search(budget: Budget | None = None, noise: float = 0.0) -> Search:
    """Search for a low sum of rows; under seed 1 the loss of row 9 alone is `noise` lower."""

    def evaluate(rows: Rows, lucky_num: int) -> Evaluation:
        return Evaluation(sum(rows) - noise * (rows == (9,) and lucky_num == 1), 10.0)

    return Search(evaluate, SEEDS, budget or Budget(evaluations=100))


def test_worse_proposal_is_dropped_after_one_seed() -> None:
    search = make_search()
    search.challenge("first", [5])
    search.challenge("second", [7])
    first, second = search.trials
    assert (second.outcome, second.difference, len(search.losses_of(second))) == ("dropped", 2.0, 1)
    assert search.best is first and search.budget.done == 2


def test_better_proposal_is_paired_under_every_seed() -> None:
    search = make_search()
    search.challenge("first", [5])
    search.challenge("second", [3])
    assert search.best is search.trials[1] and search.best.difference == -2.0
    assert [len(search.losses_of(trial)) for trial in search.trials] == [3, 3]


def test_luck_under_the_first_seed_is_not_enough() -> None:
    search = make_search(noise=5.0)
    search.challenge("first", [8])
    search.challenge("lucky", [9])
    lucky = search.trials[1]
    # -4, then 1 and 1: still better on average. A gain of half as much is lost to the second seed.
    assert lucky.difference == pytest.approx(-2 / 3)
    search = make_search(noise=1.5)
    search.challenge("first", [8])
    search.challenge("lucky", [9])
    assert search.trials[1].outcome == "dropped" and len(search.losses_of(search.trials[1])) == 2


def test_equal_rows_in_another_order_are_not_tried_again() -> None:
    search = make_search()
    search.challenge("first", [5, 2])
    search.challenge("second", [2, 5])
    assert len(search.trials) == 1 and search.budget.done == 1


@pytest.mark.parametrize("budget", [Budget(evaluations=4), Budget(seconds=45.0)], ids=["evaluations", "seconds"])
def test_budget_ends_a_trial_undecided(budget: Budget) -> None:
    search = make_search(budget)
    search.challenge("first", [5])
    with pytest.raises(OutOfBudget):
        search.challenge("second", [3])
    assert search.budget.done == 4 and search.budget.left_s <= 5.0
    assert search.best is search.trials[0]
    assert search.trials[1].outcome == "undecided, the budget is spent"


def test_swaps_come_to_the_best_rows() -> None:
    search = make_search(Budget(evaluations=1000))
    search.challenge("first", range(6, 12))
    swaps = swap_rows(search, random.Random(1), 12, CopyRule((), 6), lambda rows: -sum(rows))
    for name, rows in itertools.islice(swaps, 300):
        search.challenge(name, rows)
    assert search.best is not None and search.best.rows == tuple(range(6))


def test_swaps_keep_the_copy_rule() -> None:
    # Low rows are better, and most of them are another's.
    other = {0, 1, 2, 3}
    rule, search = CopyRule([other], 6), make_search(Budget(evaluations=1000))
    search.challenge("first", range(6, 12))
    swaps = swap_rows(search, random.Random(1), 12, rule, lambda rows: -sum(rows))
    for name, rows in itertools.islice(swaps, 100):
        search.challenge(name, rows)
    assert len(search.trials) > 10 and search.best is not None
    assert max(len(other & {*trial.rows}) for trial in search.trials) == len(other & {*search.best.rows}) == 2


def test_copy_rule_passes_over_rows_of_another_dataset() -> None:
    rule = CopyRule([{0, 1, 2, 3, 4}], 5)
    assert rule.take(range(12)) == (0, 1, 5, 6, 7)
    assert rule.allows((0, 1, 5, 6, 7)) and not rule.allows((0, 1, 2, 5, 6))


def test_journal_without_its_cut_off_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).add("a", 1, Evaluation(2.5, 3.0))
    path.write_bytes(path.read_bytes() + b'{"rows": "b", "lucky')
    Journal(path).add("c", 1, Evaluation(1.5, 3.0))
    journal = Journal(path)
    assert len(journal) == 2
    assert journal.find("a", 1) == Evaluation(2.5, 3.0) and journal.find("c", 1) == Evaluation(1.5, 3.0)
    assert journal.find("b", 1) is None
