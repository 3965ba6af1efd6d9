"""Faults of the rules of release 0.3, one per test."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from template.competition import Incentives, Reward
from template.records import ContentKey
from template.rules.evaluations import derive_seed
from template.rules.leaderboard import choose_weights, find_undecided
from tests.fixtures.table import DAY, PERIOD, Game, duplicates_of, make_dataset
from tests.fixtures.views import OWNER

FULL, OTHER = range(250), range(500, 750)
RULES = Incentives(evaluations=4, hold=4)


def author_and_copier(game: Game, copy: range = FULL) -> None:
    """Commit FULL as the author, and `copy` one round later as the copier."""
    game.commit("author", FULL)
    game.play()
    game.commit("copier", copy, text="copy")


# 1. Copies that are no copies


def test_identical_100_rows_of_another_are_all_duplicates() -> None:
    game = Game()
    game.commit("honest", FULL)
    game.play()
    for number in range(5):
        game.commit(f"copy{number}", range(100))
    assert duplicates_of(game.play(2)) == {f"copy{number}": "honest" for number in range(5)}
    assert set(game.shares()) == {"honest"}


# 2. The copier becomes the original


def update(game: Game) -> None:
    game.commit("author", range(5, 255))


def update_twice(game: Game) -> None:
    update(game)
    game.play()
    game.commit("author", range(10, 260))


def seal_update(game: Game) -> None:
    game.set_text("author", None, reveal_round=7)


def update_without_file(game: Game) -> None:
    game.withheld.add(game.commit("author", range(5, 255)))


def move_on(game: Game) -> None:
    game.play(3)
    game.commit("author", OTHER)


def start_season(game: Game) -> None:
    update(game)
    game.losses.clear()
    game.confirmed.clear()


def return_to_it(game: Game) -> None:
    game.commit("author", OTHER)
    game.play()
    game.commit("author", FULL)


@pytest.mark.parametrize(
    "change", [update, update_twice, seal_update, update_without_file, move_on, start_season, return_to_it]
)
def test_copier_of_an_earlier_version_stays_the_duplicate(change: Callable[[Game], None]) -> None:
    game = Game()
    author_and_copier(game)
    change(game)
    for _ in range(30):
        assert duplicates_of(game.play()) == {"copier": "author"}
    assert "copier" not in game.shares()


def test_copier_of_a_record_of_the_last_season_is_the_duplicate() -> None:
    game = Game(incentives=replace(RULES, update_blocks=0))
    game.commit("author", FULL)
    game.play(4)
    game.commit("author", OTHER)
    game.play()
    game.incentives = replace(game.incentives, season_block=game.block)
    game.losses.clear()
    game.confirmed.clear()
    game.commit("copier", FULL)
    for _ in range(10):
        assert duplicates_of(game.play()) == {"copier": "author"}


@pytest.mark.parametrize("is_replaced", [False, True], ids=["waits", "never counts"])
def test_copy_of_an_uncounted_update_is_the_duplicate(is_replaced: bool) -> None:
    game = Game()
    game.commit("author", FULL)
    game.play()
    game.commit("author", OTHER)
    game.play()
    game.commit("copier", OTHER)
    if is_replaced:
        game.commit("author", range(510, 760))
    for _ in range(40):
        assert duplicates_of(game.play()) == {"copier": "author"}


# 3. Rank and seed stick to the first glimpse of a text


def test_text_between_aligned_blocks_never_existed() -> None:
    game = Game()
    for number in range(12):
        game.commit("glimpse", range(number, number + 250))
    game.set_text("glimpse", None)
    game.play()
    game.commit("rival", range(6, 256))
    game.play()
    game.commit("glimpse", range(6, 256))
    assert duplicates_of(game.play()) == {"glimpse": "rival"}


def test_promise_without_a_file_outranks_nobody() -> None:
    game = Game()
    promise = game.commit("promise", FULL)
    game.withheld.add(promise)
    game.play(3)
    game.commit("rival", OTHER)
    game.play()
    game.withheld.discard(promise)
    ranks = {content.key.hotkey: content.rank.block for content in game.play(4).present.values()}
    assert ranks["rival"] < ranks["promise"]


def test_row_orders_are_one_dataset_with_one_seed() -> None:
    assert make_dataset(FULL).digest == make_dataset(reversed(FULL)).digest
    game = Game()
    for order in range(16):
        game.commit("a", [*FULL[order:], *FULL[:order]])
        game.play()
    assert len(game.losses) == 1
    blocks = [(evaluation.number, evaluation.seed_block) for _, evaluation in game.played]
    assert blocks == [(1, PERIOD), (2, PERIOD), (3, 2 * PERIOD), (4, 2 * PERIOD)]


def test_old_texts_do_not_take_the_turn_of_a_newcomer() -> None:
    game = Game(incentives=replace(RULES, slots=10, update_blocks=0))
    for number in range(10):
        game.commit(f"old{number}", range(300 * number, 300 * number + 250))
    game.play(3)
    for number in range(10):
        game.commit(f"old{number}", range(300 * number, 300 * number + 200))
    game.commit("new", range(9000, 9250))
    game.play()
    assert ContentKey("new", make_dataset(range(9000, 9250)).digest) in game.losses


# 4. Seeds are re-rolled for nothing


def seeds_of(game: Game, hotkey: str) -> list[tuple[int, int]]:
    return [(run.number, run.seed_block) for _, run in game.played if run.content.key.hotkey == hotkey]


def test_same_rows_under_another_commit_draw_no_other_seed() -> None:
    once, often = Game(), Game()
    once.commit("a", FULL)
    once.play(6)
    for number in range(6):
        often.commit("a", FULL, text=str(number))
        often.play()
    assert seeds_of(once, "a") == seeds_of(often, "a")


def test_gap_in_a_stand_draws_no_other_seed() -> None:
    game = Game(incentives=replace(RULES, evaluations=8, hold=8))
    game.commit("a", FULL)
    game.play(2)
    for _ in range(3):
        game.set_text("a", None)
        game.play()
        game.commit("a", FULL)
        game.play()
    assert seeds_of(game, "a") == [(number, PERIOD * (1 + (number - 1) // 2)) for number in range(1, 9)]


def test_file_that_comes_late_draws_unknown_seeds() -> None:
    game = Game()
    promise = game.commit("a", FULL)
    game.withheld.add(promise)
    game.play(3)
    read_block = game.block + PERIOD
    game.withheld.discard(promise)
    game.play(4)
    assert min(block for _, block in seeds_of(game, "a")) > read_block


# 5. Pay is linear in hotkeys


@pytest.mark.parametrize("hotkeys", [1, 5, 40])
def test_equal_datasets_of_many_hotkeys_earn_what_one_earns(hotkeys: int) -> None:
    game = Game()
    game.loss_of = lambda hotkey, digest, number: 2.5 if hotkey == "honest" else 2.45
    game.commit("honest", FULL)
    game.play(3)
    for number in range(hotkeys):
        game.commit(f"k{number}", range(1000 + 300 * number, 1250 + 300 * number))
    game.play(12)
    shares = game.shares()
    fair = Game()
    fair.loss_of = game.loss_of
    fair.commit("honest", FULL)
    fair.play(3)
    fair.commit("k0", range(1000, 1250))
    fair.play(12)
    assert sum(share for hotkey, share in shares.items() if hotkey != "honest") == pytest.approx(fair.shares()["k0"])


def test_datasets_worse_than_the_benchmark_earn_nothing() -> None:
    game = Game()
    game.loss_of = lambda hotkey, digest, number: 2.5 if hotkey == "good" else 2.61
    for number in range(100):
        game.commit(f"bad{number}", range(300 * number, 300 * number + 250))
    game.commit("good", range(90_000, 90_250))
    game.play(15)
    assert game.shares() == {"good": 1.0}


# 6. A watcher commits first


def test_tie_break_cannot_be_computed_before_the_block() -> None:
    game = Game()
    game.commit("a", FULL)
    (content,) = game.open().present.values()
    text = f"{game.block_hash(PERIOD)}\na\n{content.key.digest}"
    assert content.rank == (PERIOD, 1, hashlib.sha256(text.encode()).digest())


# 7. Deleted datasets are paid


def test_deleted_dataset_is_paid_for_a_day_at_most() -> None:
    game = Game()
    text = game.commit("a", FULL)
    game.play(3)
    assert game.shares() == {"a": 1.0}
    game.withheld.add(text)
    game.play(21)
    assert game.shares() == {}
    game.withheld.discard(text)
    game.play(2)
    assert game.shares() == {"a": 1.0}, "a confirmed record keeps its rank"


def test_deleted_record_is_paid_for_a_day_at_most() -> None:
    game = Game()
    text = game.commit("a", FULL)
    game.play(3)
    game.commit("a", OTHER)
    game.play(21)
    game.withheld.add(text)
    game.play(21)
    assert game.shares() == {"a": 1.0}
    game.play()
    assert game.shares() == {}
    game.withheld.discard(text)
    game.play()
    assert game.shares() == {"a": 1.0}


# 8. A new contest pays the earliest ranks everything


def test_new_season_pays_nobody_for_being_early_in_the_queue() -> None:
    game = Game(incentives=replace(RULES, slots=4))
    game.loss_of = lambda hotkey, digest, number: {"a": 2.5, "b": 2.45, "c": 2.41}[hotkey]
    for number, hotkey in enumerate("abc"):
        game.commit(hotkey, range(300 * number, 300 * number + 250))
    game.play(9)
    last = game.shares()
    assert set(last) == set("abc")
    season_block = game.block + PERIOD
    game.losses.clear()
    game.confirmed.clear()
    waits = []
    for _ in range(8):
        table = game.play()
        rows = game.leaderboard().rows
        undecided = find_undecided(table, season_block, game.competition, game.incentives)
        weights = choose_weights(rows, last, OWNER, has_ledger=bool(table.ledger), undecided=undecided)
        assert weights == (last if undecided else game.shares())
        waits.append(bool(undecided))
    assert waits[0] and not waits[-1] and set(weights) == set("abc")


# 9. Old versions refuse strangers


def test_old_version_refuses_no_stranger() -> None:
    game = Game(incentives=replace(RULES, evaluations=48, hold=48))
    game.commit("author", FULL)
    game.play()
    game.commit("author", OTHER)
    game.play(25)
    game.commit("stranger", FULL)
    assert duplicates_of(game.play()) == {}


# 10. Seeds chosen by the validator


def test_seed_follows_from_block_dataset_and_number() -> None:
    game = Game()
    game.commit("a", FULL)
    game.play(2)
    _, run = game.played[-1]
    seed = derive_seed(game.block_hash(run.seed_block), run.content.key.digest, run.number)
    assert seed != derive_seed(game.block_hash(run.seed_block), run.content.key.digest, run.number + 1)
    assert run.seed_block % PERIOD == 0 and PERIOD <= run.seed_block <= game.block


@pytest.mark.parametrize("reward", [Reward.IMPROVEMENT, Reward.WINNER])
def test_update_keeps_the_pay_while_it_waits_and_is_sealed(reward: Reward) -> None:
    game = Game(incentives=replace(RULES, reward=reward))
    game.commit("a", FULL)
    game.play(3)
    for change in (seal, commit_other, withhold):
        change(game)
        game.play(5)
        assert game.shares() == {"a": 1.0}


def seal(game: Game) -> None:
    game.set_text("a", None, reveal_round=7)


def commit_other(game: Game) -> None:
    game.commit("a", OTHER)


def withhold(game: Game) -> None:
    game.withheld.add(game.commit("a", range(2000, 2250)))


def test_dataset_that_left_and_returns_ranks_by_its_return() -> None:
    game = Game(incentives=replace(RULES, evaluations=48, hold=48))
    game.commit("a", FULL)
    game.play()
    game.commit("a", OTHER)
    game.play(22)
    game.commit("a", FULL)
    table = game.play(22)
    assert [content.rank.block for content in table.present.values()] == [PERIOD + 2 * DAY]
