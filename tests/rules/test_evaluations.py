"""The evaluations of a round, and the seeds that they have."""

import dataclasses
import hashlib
import random
from typing import Any

import pytest

from template.competition import Competition, Incentives
from template.rules.evaluations import (
    PlannedEvaluation,
    derive_seed,
    first_seed_block,
    newcomer_blocks,
    plan_evaluations,
    seed_block,
)
from template.rules.ledger import Content, read_ledger
from tests.fixtures.table import make_content

COMPETITION = Competition.from_defaults()
HASH, DIGEST = "0x" + "00" * 31 + "07", "ab" * 32
PERIOD = 360


def plan(*contents: Content, block: int = 90 * PERIOD, recent: dict[str, int] | None = None, **rules: Any) -> list[str]:
    """Return the planned evaluations as hotkey and number."""
    return [f"{run.content.key.hotkey}{run.number}" for run in planned(*contents, block=block, recent=recent, **rules)]


def planned(
    *contents: Content, block: int = 90 * PERIOD, recent: dict[str, int] | None = None, **rules: Any
) -> list[PlannedEvaluation]:
    incentives = Incentives(**{"evaluations": 8, "hold": 16, "slots": 8, **rules})
    ledger = read_ledger(contents, COMPETITION, incentives)
    recent = {content.key.hotkey: 1 for content in contents} if recent is None else recent
    return plan_evaluations(contents, ledger, recent, block, COMPETITION, incentives)


def record(name: str, block: int, loss: float, runs: int = 8) -> Content:
    return make_content(name, block, [loss] * runs)


def test_seed_is_the_first_4_bytes_of_the_tagged_digest() -> None:
    text = b"lucky_num\n" + bytes(31) + b"\x07" + b"\xab" * 32 + b"\x03\0\0\0"
    digest = hashlib.sha256(text).digest()
    assert derive_seed(HASH, DIGEST, 3) == int.from_bytes(digest[:4], "little")
    assert derive_seed(HASH, DIGEST, 3) == derive_seed(HASH[2:].upper(), DIGEST.upper(), 3)


def test_block_dataset_and_number_each_give_another_seed() -> None:
    seeds = [derive_seed(f"0x{block:064x}", DIGEST, 1) for block in range(50)]
    seeds += [derive_seed(HASH, f"{content:064x}", 1) for content in range(50)]
    seeds += [derive_seed(HASH, DIGEST, number) for number in range(2, 50)]
    assert len(set(seeds)) == len(seeds)


def test_invalid_hash_raises() -> None:
    with pytest.raises(ValueError, match="fromhex"):
        derive_seed("0xzz", DIGEST, 1)


@pytest.mark.parametrize(("number", "block"), [(1, 10), (2, 10), (3, 17), (4, 17), (48, 10 + 23 * 7)])
def test_aligned_block_gives_two_seeds(number: int, block: int) -> None:
    assert seed_block(10, number, 7) == block


# The plan


def test_evaluation_waits_for_the_block_of_its_seed() -> None:
    content = make_content("a", 10 * PERIOD, [2.5] * 3)
    assert plan(content, block=10 * PERIOD) == []
    assert plan(content, block=11 * PERIOD) == ["a4"]
    assert plan(content, block=12 * PERIOD) == ["a4", "a5"]


def test_seeds_and_evaluations_begin_with_the_season() -> None:
    content = make_content("a", 10 * PERIOD, [])
    assert plan(content, block=19 * PERIOD, season_block=20 * PERIOD) == []
    (first,) = planned(content, block=20 * PERIOD, season_block=20 * PERIOD - 5)
    assert (first.number, first.seed_block) == (1, 20 * PERIOD)
    assert first_seed_block(21 * PERIOD, Incentives(season_block=20 * PERIOD)) == 21 * PERIOD


def test_returned_dataset_keeps_the_seeds_of_its_first_stand() -> None:
    content = make_content("a", 50 * PERIOD, [2.5] * 2, seed_block=10 * PERIOD)
    assert [evaluation.seed_block for evaluation in planned(content)] == [11 * PERIOD, 11 * PERIOD]


def test_record_that_was_sealed_keeps_seeds_from_its_reveal() -> None:
    """Who knew them could reveal the dataset with the luckiest ones."""
    content = make_content("a", 10 * PERIOD, [2.5] * 8)
    sealed = dataclasses.replace(content, public=content.rank._replace(block=30 * PERIOD))
    assert [evaluation.seed_block for evaluation in planned(content)] == [14 * PERIOD] * 2
    assert [evaluation.seed_block for evaluation in planned(sealed)] == [34 * PERIOD] * 2


def test_newcomers_come_first_and_wait_for_nobody() -> None:
    contents = [make_content(name, 100 + number) for number, name in enumerate("abcd")]
    started = [make_content(f"s{number}", number, [2.4]) for number in range(9)]
    order = plan(*started, *contents, record("r", 1, 2.5), recent={**{f"s{n}": 1 for n in range(9)}, "c": 1, "r": 1})
    assert order[:3] == ["a1", "b1", "d1"] and order[3:5] == ["r9", "r10"]


def test_half_of_the_slots_is_for_datasets_in_progress() -> None:
    started = [make_content(f"s{number}", number, [2.4 + number / 1000]) for number in range(9)]
    first = [make_content(f"f{number}", number) for number in range(9)]
    order = plan(*started, *first)
    assert [name[0] for name in order] == list("ssssffff")
    assert plan(*started, first[0]) == ["s02", "s03", "s12", "s13", "f01", "s22", "s23", "s32"], "unused ones pass on"


def test_lowest_mean_and_oldest_rank_take_turns() -> None:
    losses = {"a": 2.53, "b": 2.50, "c": 2.51, "d": 2.52}
    started = [make_content(name, number, [loss]) for number, (name, loss) in enumerate(losses.items())]
    assert plan(*started) == ["b2", "b3", "a2", "a3", "c2", "c3", "d2", "d3"]


def test_records_get_four_slots_until_they_have_enough_runs() -> None:
    records = record("a", 1, 2.55), record("b", 2, 2.50, runs=9), record("c", 3, 2.45, runs=16)
    first = [make_content(f"f{number}", number) for number in range(9)]
    assert plan(*records, *first)[:4] == ["a9", "a10", "b10", "b11"]
    assert plan(*records) == ["a9", "a10", "b10", "b11"], "c has enough"


@pytest.mark.parametrize(("slots", "expected"), [(1, ["s2"]), (2, ["a9", "s2"]), (4, ["a9", "a10", "s2", "s3"])])
def test_few_slots_leave_half_for_datasets_in_progress(slots: int, expected: list[str]) -> None:
    records = record("a", 1, 2.55), record("b", 2, 2.50), record("c", 3, 2.45)
    assert plan(*records, make_content("s", 4, [2.4]), slots=slots) == expected


def test_confirmed_dataset_that_is_no_record_is_not_evaluated() -> None:
    assert plan(record("a", 1, 2.5), record("b", 2, 2.55), slots=30) == ["a9", "a10"]


def test_hopeless_dataset_is_not_evaluated() -> None:
    assert plan(record("a", 1, 2.5, runs=16), make_content("b", 2, [2.6])) == []


def test_dataset_has_no_more_runs_than_confirm_it() -> None:
    assert plan(make_content("a", 1, [2.5] * 7)) == ["a8"]


def test_fewest_runs_of_the_last_day_come_first() -> None:
    contents = [make_content(name, number) for number, name in enumerate("abc")]
    assert plan(*contents, recent={"a": 9, "b": 2, "c": 5}) == ["b1", "c1", "a1"]


@pytest.mark.parametrize("waiting", [1, 30, 31, 200, 256])
def test_every_newcomer_has_its_turn_in_time(waiting: int) -> None:
    started = [make_content(f"s{number}", number, [2.4]) for number in range(50)]
    newcomers = [make_content(f"n{number}", 100 + number) for number in range(waiting)]
    recent = {content.key.hotkey: 1 for content in started}
    for _ in range(-(-waiting // 30)):
        done = {evaluation.content.key for evaluation in planned(*started, *newcomers, recent=recent, slots=30)}
        newcomers = [content for content in newcomers if content.key not in done]
    assert newcomers == []


@pytest.mark.parametrize(("hotkeys", "slots", "rounds"), [(1, 1, 20), (256, 30, 20), (20, 1, 40), (200, 8, 50)])
def test_flood_of_newcomers_leaves_half_of_the_slots(hotkeys: int, slots: int, rounds: int) -> None:
    blocks = newcomer_blocks(hotkeys, Incentives(slots=slots))
    assert blocks == rounds * PERIOD and 2 * hotkeys <= slots * rounds


def test_plan_does_not_depend_on_the_order_of_its_input() -> None:
    draw = random.Random(1)
    contents = [
        make_content(
            f"h{number}", draw.randrange(5), [draw.uniform(2.4, 2.6) for _ in range(draw.choice([0, 0, 1, 7, 8]))]
        )
        for number in range(60)
    ]
    recent = {content.key.hotkey: draw.randrange(3) for content in contents}
    expected = plan(*contents, recent=recent, slots=30)
    assert len(expected) == len(set(expected)) == 30
    assert all(plan(*draw.sample(contents, 60), recent=recent, slots=30) == expected for _ in range(5))
