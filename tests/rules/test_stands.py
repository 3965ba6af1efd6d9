"""Stands of commitments, and the versions of a hotkey's dataset."""

import random
from typing import Any

import pytest

from template.records import Dataset, Stand, SubmissionKey
from template.rules.stands import Version, align, extend_stands, find_versions, shorten_stands
from tests.fixtures.table import make_dataset
from tests.fixtures.views import make_entry, make_key, make_stand

T1, T2, T3 = (make_key("a", commit=letter * 40) for letter in "123")
X, Y, Z = make_dataset(range(9)), make_dataset(range(10, 19)), make_dataset(range(20, 29))


def versions_of(*stands: Stand, update_blocks: int = 0, **datasets: Dataset) -> list[Version]:
    """Return the versions of texts 1, 2 and 3, which name X, Y and Z."""
    read = {T1: X, T2: Y, T3: Z} | {make_key("a", commit=text[1] * 40): rows for text, rows in datasets.items()}
    return find_versions(stands, read, period=10, update_blocks=update_blocks)


def extend(last: Stand | None, block: int, *, previous: int | None = None, **changes: Any) -> Stand:
    """Extend `last` to `block` by an entry that was committed in block 8."""
    entry = make_entry(changes.pop("key", T1), changes.pop("commit_block", 8), **changes)
    newest = {} if last is None else {"a": last}
    if previous is not None:
        newest["other"] = make_stand(make_key("other"), previous)
    (stand,) = extend_stands(newest, [entry], block, 10)
    return stand


@pytest.mark.parametrize(("block", "aligned"), [(0, 0), (1, 10), (9, 10), (10, 10), (11, 20)])
def test_block_is_aligned_to_the_next_multiple(block: int, aligned: int) -> None:
    assert align(block, 10) == aligned


def test_stand_begins_at_the_aligned_block_after_the_commit() -> None:
    assert extend(None, 10) == make_stand(T1, 10, commit_block=8)
    assert extend(None, 50) == make_stand(T1, 10, 50, commit_block=8), "a validator that starts later"


def test_stand_goes_on_while_the_text_stays() -> None:
    last = make_stand(T1, 10, 20, commit_block=8)
    assert extend(last, 30) == make_stand(T1, 10, 30, commit_block=8)
    assert extend(last, 30, commit_block=25).first_block == 10, "set again"
    assert extend(last, 90).first_block == 10, "rounds were missed, and it was not set since"


@pytest.mark.parametrize(
    ("last", "changes"),
    [
        (make_stand(T2, 10, 20), {"commit_block": 25}),
        (make_stand(T1, 10, 20, registration_block=2), {"commit_block": 25, "registration_block": 22}),
        (make_stand(T1, 0, 10), {"commit_block": 25}),
        (make_stand(T1, 0, 10), {"commit_block": 25, "previous": 20}),
    ],
    ids=["another text", "another registration", "a gap", "a gap that others did not have"],
)
def test_stand_begins_anew(last: Stand, changes: dict[str, Any]) -> None:
    assert extend(last, 30, **changes).first_block == 30


def test_sealed_commitment_is_public_from_its_reveal() -> None:
    stand = extend(extend(None, 40, reveal_block=35), 50, reveal_block=35)
    assert stand == make_stand(T1, 10, 50, commit_block=8, reveal_block=35)
    (version,) = versions_of(stand)
    assert (version.rank_block, version.public_block, version.public_commit_block) == (10, 40, 8)


def test_rejected_commitment_does_not_stand() -> None:
    before_registration = make_entry(T1, 8, registration_block=9)
    assert extend_stands({}, [before_registration], 10, 10) == []


def test_lost_file_ends_a_stand_and_its_return_begins_another() -> None:
    last, entry = make_stand(T1, 10, 20, commit_block=8), make_entry(T1, 8)
    assert extend_stands({"a": last}, [entry], 30, 10, missing={T1}, datasets={T1}) == []
    newest = {"a": last, "b": make_stand(make_key("b"), 30)}
    (back,) = extend_stands(newest, [entry], 40, 10, datasets={T1})
    assert (back.first_block, back.last_block, back.missing_block) == (40, 40, 0)


def test_file_that_never_came_moves_its_missing_block() -> None:
    last = make_stand(T1, 10, 20, commit_block=8, missing_block=20)
    (stand,) = extend_stands({"a": last}, [make_entry(T1, 8)], 30, 10, missing={T1})
    assert (stand.first_block, stand.missing_block) == (10, 30)


# Versions


def test_version_ranks_by_its_first_block() -> None:
    (version,) = versions_of(make_stand(T1, 10, 30, commit_block=8))
    assert (version.rank_block, version.public_block, version.seed_block, version.commit_block) == (10, 10, 10, 8)


def test_another_commit_of_the_same_rows_changes_nothing() -> None:
    (version,) = versions_of(make_stand(T1, 10, 30, commit_block=8), make_stand(T2, 40, 50), t2=X)
    assert (version.key, version.rank_block, version.commit_block, version.last_block) == (T2, 10, 8, 50)


def test_returning_dataset_ranks_by_its_return_and_keeps_seeds() -> None:
    first, _, again = versions_of(make_stand(T1, 10), make_stand(T2, 20), make_stand(T1, 30, 40))
    assert first.rank_block == 10
    assert (again.rank_block, again.seed_block) == (30, 10)
    assert (again.public_block, again.public_commit_block) == (10, 10), "its rows were public before"


def test_gap_alone_costs_the_rank() -> None:
    _, again = versions_of(make_stand(T1, 10, 20), make_stand(T1, 40))
    assert (again.rank_block, again.seed_block) == (40, 10)


def test_next_dataset_counts_after_the_update_blocks() -> None:
    _, waiting = versions_of(make_stand(T1, 10), make_stand(T2, 20, 60), update_blocks=55)
    assert (waiting.rank_block, waiting.public_block, waiting.is_counted) == (70, 20, False)
    _, counted = versions_of(make_stand(T1, 10), make_stand(T2, 20, 70), update_blocks=55)
    assert (counted.rank_block, counted.seed_block, counted.is_counted) == (70, 70, True)


def test_dataset_replaced_before_it_counts_delays_no_other() -> None:
    stands = make_stand(T1, 10), make_stand(T2, 20, 30), make_stand(T3, 40, 70)
    assert [version.is_counted for version in versions_of(*stands, update_blocks=55)] == [True, False, True]
    assert versions_of(*stands, update_blocks=55)[-1].rank_block == 70


def test_late_file_counts_after_the_round_that_read_it() -> None:
    (version,) = versions_of(make_stand(T1, 10, 50, missing_block=20))
    assert (version.rank_block, version.public_block, version.seed_block) == (40, 30, 40)


def test_seeds_of_a_sealed_dataset_count_from_its_reveal() -> None:
    """Its author, who alone could know earlier seeds, would reveal it if they are lucky."""
    (version,) = versions_of(make_stand(T1, 10, 50, commit_block=8, reveal_block=33))
    assert (version.rank_block, version.public_block, version.seed_block) == (10, 40, 40)


def test_sealed_return_ranks_by_its_reveal_and_keeps_seeds() -> None:
    """Its seeds are known, so its author could let the luckiest of several be revealed."""
    *_, again = versions_of(
        make_stand(T1, 10), make_stand(T2, 20), make_stand(T1, 30, 90, commit_block=28, reveal_block=71)
    )
    assert (again.rank_block, again.public_block, again.seed_block) == (80, 10, 10)
    never_counted = (
        make_stand(T2, 20, 30),
        make_stand(T3, 40, 50),
        make_stand(T2, 60, 200, commit_block=58, reveal_block=101),
    )
    *_, again = versions_of(make_stand(T1, 10), *never_counted, update_blocks=55)
    assert (again.rank_block, again.seed_block) == (110, 110)


def test_versions_are_of_the_newest_registration() -> None:
    (version,) = versions_of(make_stand(T1, 10), make_stand(T1, 40, registration_block=30))
    assert (version.rank_block, version.seed_block, version.registration_block) == (40, 40, 30)


def test_stand_without_a_dataset_is_no_version() -> None:
    assert find_versions([make_stand(T1, 10)], {}, period=10, update_blocks=0) == []


@pytest.mark.parametrize("seed", range(10))
def test_shortened_stands_give_the_same_versions(seed: int) -> None:
    draw = random.Random(seed)
    texts = [make_key("a", commit=f"{number:040x}") for number in range(40)]
    contents = {text: make_dataset([draw.randrange(25)]) for text in texts if draw.random() < 0.9}
    rules = {"period": 10, "update_blocks": draw.choice([0, 25])}
    stands: list[Stand] = []
    text = texts[0]
    for block in range(10, 2000, 10):
        text = draw.choice([text, draw.choice(texts)])
        if draw.random() < 0.1:
            continue
        entry = make_entry(text, block - draw.randrange(9))
        (stand,) = extend_stands({"a": stands[-1]} if stands else {}, [entry], block, 10)
        stands = [*(old for old in stands if old.first_block != stand.first_block), stand]
        versions = find_versions(stands, contents, **rules)
        shortened = shorten_stands(stands, versions)
        assert find_versions(shortened, contents, **rules) == versions
        stands = draw.choice([stands, shortened])
    assert len(shortened) <= 120 and len(versions) > 30


@pytest.mark.parametrize(
    ("update_blocks", "expected"), [(0, [*range(8), *range(236, 300)]), (10**6, [0, *range(292, 300)])]
)
def test_many_versions_keep_the_first_and_the_last(update_blocks: int, expected: list[int]) -> None:
    texts = [make_key("a", commit=f"{number:040x}") for number in range(300)]
    contents: dict[SubmissionKey, Dataset] = {text: make_dataset([number]) for number, text in enumerate(texts)}
    stands = [make_stand(text, 10 * number) for number, text in enumerate(texts)]
    versions = find_versions(stands, contents, period=10, update_blocks=update_blocks)
    assert [texts.index(version.key) for version in versions] == expected
