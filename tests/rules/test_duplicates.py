"""Duplicates among datasets, and the versions that make others duplicates."""

import pickle
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import pytest

from template.competition import Incentives
from template.errors import Reason
from template.records import ContentKey
from template.rules import duplicates as module
from template.rules.duplicates import (
    Candidate,
    Duplicate,
    former_versions,
    match_duplicates,
    max_shared,
    related_versions,
)
from template.rules.stands import find_versions
from tests.fixtures.table import make_dataset, make_rank, row_key
from tests.fixtures.views import make_key, make_stand


def candidate(hotkey: str, block: int, rows: range | list[int], digest: str = "d") -> Candidate:
    keys = tuple(map(row_key, rows))
    return Candidate(hotkey=hotkey, digest=digest, rank=make_rank(block, hotkey + digest), row_keys=keys)


def brute_force(candidates: list[Candidate]) -> dict[ContentKey, Duplicate]:
    """Compare every pair, in the order in which datasets were promised and became public."""
    steps = [(late.rank, False, late) for late in candidates]
    steps += [(late.promised, True, late) for late in candidates if late.promised is not None]
    originals: list[tuple[Candidate, int, set[bytes]]] = []
    public: set[bytes] = set()
    promises: dict[str, set[bytes]] = {}
    duplicates: dict[ContentKey, Duplicate] = {}
    for rank, is_promise, late in sorted(steps, key=lambda step: step[0]):
        rows = set(late.row_keys)
        foreign = rows - promises.get(late.digest, set())
        matches = [
            (early, block)
            for early, block, held in originals
            if early.hotkey != late.hotkey and len(held & foreign) > max_shared(len(rows))
        ]
        if is_promise and not matches:
            promises[late.digest] = rows - public
            originals.append((late, rank.block, promises[late.digest]))
            public |= promises[late.digest]
        elif not is_promise:
            public |= rows
            if late.is_former:
                originals = [entry for entry in originals if entry[0] is not late]
            elif matches:
                early, block = matches[0]
                duplicates[ContentKey(late.hotkey, late.digest)] = Duplicate(
                    hotkey=early.hotkey, digest=early.digest, block=block, shared=len(set(early.row_keys) & rows)
                )
            else:
                originals.append((late, rank.block, rows))
    return duplicates


def originals_of(*candidates: Candidate) -> dict[str, str]:
    return {late.hotkey: duplicate.hotkey for late, duplicate in match_duplicates(candidates).items()}


@pytest.mark.parametrize(
    ("rows", "is_duplicate"),
    [
        ([*range(100), *range(900, 1050)], False),
        ([*range(101), *range(900, 1049)], True),
        ([*range(50, 150)], True),
        ([*range(41), *range(900, 959)], True),
        ([*range(40), *range(900, 960)], False),
        ([0], True),
        ([*range(40)] * 3 + [*range(900, 960)], False),
    ],
    ids=["100 of 250", "101 of 250", "100 of 100", "41 of 100", "40 of 100", "1 of 1", "repeated rows count once"],
)
def test_more_than_40_percent_of_its_own_rows_make_a_duplicate(rows: list[int], is_duplicate: bool) -> None:
    assert originals_of(candidate("a", 1, range(250)), candidate("b", 2, rows)) == ({"b": "a"} if is_duplicate else {})


ALICE, ALICE_LATER = candidate("alice", 1, range(250), "v1"), candidate("alice", 3, range(20, 270), "v2")
EXAMPLES: dict[str, tuple[list[Candidate], dict[str, str]]] = {
    "a small original of a large dataset": ([candidate("bob", 0, range(90)), ALICE], {}),
    "a copy of a copy": (
        [candidate(name, block, range(250)) for block, name in enumerate("abc")],
        {"b": "a", "c": "a"},
    ),
    "a copy makes no copies": (
        [candidate("a", 1, range(200)), candidate("b", 2, range(100, 300)), candidate("c", 3, range(200, 400))],
        {"b": "a"},
    ),
    "a new version of one's own": ([ALICE, ALICE_LATER], {}),
    "a copy between two versions": ([ALICE, candidate("bob", 2, range(250)), ALICE_LATER], {"bob": "alice"}),
    "the earliest of two originals": (
        [candidate("a", 1, range(100)), candidate("b", 2, range(100, 220)), candidate("c", 3, range(220))],
        {"c": "a"},
    ),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_duplicates_name_their_original(example: str) -> None:
    candidates, originals = EXAMPLES[example]
    assert originals_of(*candidates) == originals


def random_instance(seed: int) -> list[Candidate]:
    rng = random.Random(seed)
    rows = rng.randrange(4, 40)
    candidates = [
        candidate(
            f"h{rng.randrange(6)}",
            rng.randrange(5),
            [rng.randrange(rows) for _ in range(rng.randrange(0, 25))],
            digest=f"c{number}",
        )
        for number in range(rng.randrange(1, 14))
    ]
    return [late if rng.random() < 0.5 else make_late(late, rng) for late in candidates]


def make_late(late: Candidate, rng: random.Random) -> Candidate:
    promised = late.rank._replace(block=late.rank.block - rng.randrange(1, 4))
    return replace(late, promised=promised, is_former=rng.random() < 0.3)


def test_pairwise_comparison_in_any_order_finds_the_same() -> None:
    counts = []
    for seed in range(150):
        candidates = random_instance(seed)
        expected = brute_force(candidates)
        for _ in range(3):
            assert match_duplicates(iter(candidates)) == expected
            random.Random(seed).shuffle(candidates)
        counts.append(len(expected))
    assert sum(count > 1 for count in counts) > 50 and counts.count(0) > 10


@pytest.mark.parametrize("pool_rows", [250, 2_000])
def test_full_subnet_is_compared_in_seconds(pool_rows: int) -> None:
    rng = random.Random(0)
    candidates = [candidate(f"h{n}", n, rng.sample(range(pool_rows), 250)) for n in range(256)]
    started = time.process_time()
    duplicates = match_duplicates(candidates)
    assert time.process_time() - started < 3.0
    assert len(duplicates) == (255 if pool_rows == 250 else 0)


def count_steps(work: Callable[[], object]) -> int:
    """Count the lines of the module that `work` runs: the same on every machine."""
    steps, before = [0], sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> object:
        if frame.f_code.co_filename == module.__file__:
            steps[0] += 1
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps[0]


def test_near_threshold_overlaps_cost_no_more_than_their_rows() -> None:
    def near(miners: int) -> list[Candidate]:
        """Make candidates that share 60 of 150 rows, each with three versions."""
        rows = [[*range(60), *range(1000 * miner, 1000 * miner + 90)] for miner in range(1, miners + 1)]
        return [candidate(f"h{miner}", v, own, digest=str(v)) for miner, own in enumerate(rows) for v in range(3)]

    few, many = near(10), near(40)
    assert match_duplicates(many) == {}
    assert count_steps(lambda: match_duplicates(many)) < 5 * count_steps(lambda: match_duplicates(few))


def test_duplicate_error_names_the_original_and_pickles() -> None:
    original = Duplicate(hotkey="5Alice", digest="a" * 64, block=12, shared=101)
    error = pickle.loads(pickle.dumps(original.to_error()))
    assert error.reason is Reason.DUPLICATE
    assert all(part in str(error) for part in ("101 rows", "5Alice", "a" * 12, "block 12"))


# Versions that make others duplicates


def related(*rows: range, current: int | None = None, last_block: int = 0) -> list[int]:
    """Return the numbers of the versions that count, for these rows in turn."""
    texts = [make_key("a", commit=f"{number:040x}") for number in range(len(rows))]
    contents = {text: make_dataset(own) for text, own in zip(texts, rows, strict=True)}
    stands = [make_stand(text, 10 * number) for number, text in enumerate(texts)]
    stands[-1] = replace(stands[-1], last_block=max(stands[-1].last_block, last_block))
    versions = find_versions(stands, contents, period=10, update_blocks=0)
    key = None if current is None else texts[current]
    return [texts.index(version.key) for version in related_versions(versions, key, contents)]


def test_version_too_close_to_the_current_one_counts() -> None:
    assert related(range(250), range(500, 750), range(100, 350), current=2) == [0, 2]
    assert related(range(250), range(500, 750), range(150, 400), current=2) == [2], "100 of 250 rows"
    assert related(range(250), range(600, 610), range(200, 600), current=2) == [2]
    assert related(range(250), range(200, 310), range(309, 400), current=2) == [2]


def test_newest_version_counts_while_the_current_one_is_unknown() -> None:
    assert related(range(250), range(500, 750), range(510, 760)) == [1, 2]
    assert related_versions([], None, {}) == []


def test_first_and_last_8_of_many_versions_count() -> None:
    assert related(*[range(250)] * 1, *[range(n, n + 250) for n in range(1, 20)], current=19) == [
        *range(8), *range(12, 20),
    ]  # fmt: skip


@pytest.mark.parametrize(("reveal_block", "is_former"), [(8, True), (70, True), (71, False)])
def test_sealed_dataset_protects_after_a_season_if_it_was_long_readable(reveal_block: int, is_former: bool) -> None:
    """Its evaluations began with the reveal, so it could be no record before."""
    key = make_key("a")
    stand = make_stand(key, 10, 300, commit_block=8, reveal_block=reveal_block)
    versions = find_versions([stand], {key: make_dataset(range(9))}, period=10, update_blocks=0)
    # 48 evaluations, two in each round: the last two begin 230 blocks after the first.
    incentives = Incentives(evaluations=48, blocks_per_epoch=10, season_block=1000)
    assert bool(former_versions(versions, incentives)) == is_former
