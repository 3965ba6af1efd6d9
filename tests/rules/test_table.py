"""The table of the game: present datasets, duplicates and the ledger."""

import random
import time
from dataclasses import replace

from template.competition import Incentives
from template.records import Confirmed, ContentKey, Dataset, SubmissionKey
from template.rules.table import Inputs, Table, make_table
from tests.fixtures.table import DAY, PERIOD, Game, duplicates_of, make_rank, row_key
from tests.fixtures.views import make_entry, make_key, make_stand

FULL, COPY = range(250), range(20, 270)


def ranks(table: Table) -> dict[str, int]:
    return {content.key.hotkey: content.rank.block for content in table.present.values()}


def test_present_dataset_ranks_by_its_stand() -> None:
    game = Game()
    game.commit("a", FULL)
    game.open()
    game.commit("b", range(300, 400))
    assert ranks(game.open()) == {"a": PERIOD, "b": 2 * PERIOD}


def test_update_waits_a_day_and_then_counts() -> None:
    game = Game()
    game.commit("a", FULL)
    game.open()
    key = SubmissionKey("a", game.commit("a", range(300, 400)))
    table = game.open()
    assert (table.present, dict(table.waiting)) == ({}, {key: PERIOD + DAY})
    assert ranks(game.play(19)) == {"a": PERIOD + DAY}


def test_tie_is_broken_by_the_hash_of_the_aligned_block() -> None:
    winners = set()
    for start in range(40):
        game = Game(block=start * PERIOD)
        for hotkey in "ab":
            game.block = start * PERIOD
            game.commit(hotkey, FULL)
        winners |= set(duplicates_of(game.open()).values())
    assert winners == {"a", "b"}


def test_table_of_an_earlier_block_knows_nothing_newer() -> None:
    game = Game(incentives=Incentives(evaluations=4, hold=4, update_blocks=0))
    reveal = game.seal("sealed", FULL)
    key = SubmissionKey("a", game.commit("a", FULL))
    table = game.open()
    entries, block = game.entries, game.block
    reveal()
    for rows in (range(300, 400), FULL, range(500, 600)):
        game.commit("a", rows)
        game.open()
    game.entries, game.block = entries, block
    assert game.table() == table and table.present[key].rank.block == block


def test_rejected_dataset_is_not_present() -> None:
    game = Game()
    game.withheld.add(game.commit("a", FULL))
    assert game.open().present == {}


def test_dataset_of_an_earlier_registration_decides_nothing() -> None:
    game = Game()
    game.commit("a", FULL)
    game.play(2)
    game.leave("a")
    game.commit("b", COPY)
    game.play()
    game.registrations["a"] = game.block
    assert game.open().present.keys() == {key for key in game.entries if key.hotkey == "b"}
    game.commit("a", FULL)
    table = game.open()
    assert duplicates_of(table) == {"a": "b"} and ranks(table)["a"] == game.block


def test_confirmed_dataset_keeps_its_rank_and_its_originality() -> None:
    game = Game()
    game.commit("a", FULL)
    game.play(3)
    game.commit("a", range(500, 750))
    game.play(25)
    game.commit("b", COPY)
    table = game.play(2)
    assert duplicates_of(table) == {"b": "a"}
    assert table.ledger[0].content.rank.block == PERIOD
    game.leave("a")
    assert duplicates_of(game.play(2)) == {"b": "a"}, "departed hotkeys included"
    game.registrations["a"] = game.block
    game.commit("a", FULL)
    assert duplicates_of(game.play(2)) == {"b": "a"}, "and those that registered again"


def test_sealed_update_counts_from_its_commit_and_costs_no_round() -> None:
    game = Game()
    game.commit("a", FULL)
    game.play(22)
    reveal = game.seal("a", range(500, 750))
    for _ in range(3):
        assert ranks(game.play()) == {"a": PERIOD}
    reveal()
    assert ranks(game.play()) == {"a": 23 * PERIOD}


def test_ledger_entry_found_to_be_a_duplicate_leaves_the_ledger() -> None:
    game = Game()
    reveal = game.seal("author", FULL)
    game.play()
    game.commit("copier", COPY)
    game.commit("next", range(500, 750))
    game.loss_of = lambda hotkey, digest, number: {"copier": 2.5, "next": 2.48, "author": 2.49}[hotkey]
    table = game.play(5)
    assert [row.content.key.hotkey for row in table.ledger if row.credit > 0.0] == ["copier", "next"]
    reveal()
    table = game.play(3)
    assert duplicates_of(table) == {"copier": "author"}
    assert [row.content.key.hotkey for row in table.ledger] == ["author", "next"]
    assert set(game.shares()) == {"author", "next"}


def test_table_does_not_depend_on_the_order_of_its_input() -> None:
    draw = random.Random(1)
    game = Game()
    for number in range(40):
        start = draw.randrange(9) * 60
        game.commit(f"h{number}", range(start, start + 100))
        game.block += draw.choice([0, 300])
        if draw.random() < 0.3:
            game.play()
    game.play(3)
    expected = game.table()
    for _ in range(5):
        for values in (game.entries, game.stands, game.datasets, game.losses, game.confirmed):
            items = draw.sample(list(values.items()), len(values))
            values.clear()
            values.update(items)
        table = game.table()
        assert (dict(table.present), table.duplicates, table.ledger) == (
            dict(expected.present), expected.duplicates, expected.ledger,
        )  # fmt: skip
        assert game.plan(table) == game.plan(expected)
    assert len(expected.duplicates) > 3


def test_full_subnet_of_60_days_makes_a_table_in_seconds() -> None:
    draw, versions = random.Random(0), 60
    keys = [row_key(number) for number in range(5000)]
    datasets, stands, entries, last = {}, {}, {}, 60 * DAY
    for uid in range(256):
        hotkey = f"h{uid:03}"
        stands[hotkey] = []
        for version in range(versions):
            key = make_key(hotkey, commit=f"{version:040x}")
            start = 200 * (uid % 20) + draw.randrange(350)
            datasets[key] = Dataset(digest=f"{uid:032x}{version:032x}", row_keys=tuple(keys[start : start + 250]))
            first = (version + 1) * DAY
            stands[hotkey].append(make_stand(key, first, min(first + DAY - PERIOD, last)))
        stands[hotkey][-1] = replace(stands[hotkey][-1], last_block=last)
        entries[key] = make_entry(key, last - uid % 3, uid=uid)
    confirmed = {
        ContentKey(hotkey, "x"): Confirmed(
            rank=make_rank(DAY + number, hotkey), registration_block=-1, row_keys=tuple(keys[number::20])
        )
        for number, hotkey in enumerate(f"old{number}" for number in range(500))
    }
    incentives = Incentives()
    inputs = Inputs(
        block=last, competition=Game().competition, incentives=incentives, entries=entries, stands=stands,
        datasets=datasets, losses={key: [2.5] * 48 for key in confirmed}, confirmed=confirmed, rejected=(),
        block_hash=str,
    )  # fmt: skip
    started = time.process_time()
    table = make_table(inputs)
    assert time.process_time() - started < 10.0
    assert len(table.present) == 256 and len(table.ledger) > 0
