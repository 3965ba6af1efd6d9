"""Duplicates among entries and their earlier versions."""

import hashlib
import pickle
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import pytest

from template.errors import Reason
from template.records import ChainView, Submission, SubmissionKey, Verdict
from template.rules import duplicates as module
from template.rules.duplicates import (
    Candidate,
    Duplicate,
    eligible_datasets,
    find_duplicates,
    find_possible_duplicates,
    match_duplicates,
    related_versions,
)
from tests.fixtures.views import enter, make_commitment, make_entry, make_key, make_submission, record, view_of

A, B, C = (make_key(name) for name in "abc")
NEWER = make_key("a", commit="b" * 40)
HUNDRED = tuple(number.to_bytes(32, "big") for number in range(100))
ROWS = (*HUNDRED, b"x" * 32)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def candidate(hotkey: str, block: int, rows: range | list[int], commit: str = "c") -> Candidate:
    return Candidate(hotkey=hotkey, commit=commit, block=block, row_keys=tuple(key(number) for number in rows))


def brute_force(candidates: list[Candidate], max_shared: int) -> dict[tuple[str, str], Duplicate]:
    """Compare every pair."""

    def sort_key(c: Candidate) -> tuple[int, bytes]:
        return c.block, hashlib.sha256(f"{c.hotkey}:{c.commit}".encode()).digest()

    originals: list[Candidate] = []
    duplicates: dict[tuple[str, str], Duplicate] = {}
    for late in sorted(candidates, key=sort_key):
        for early in originals:
            shared = len(set(early.row_keys) & set(late.row_keys))
            if early.hotkey != late.hotkey and shared > max_shared:
                duplicates[late.hotkey, late.commit] = Duplicate(
                    hotkey=early.hotkey, commit=early.commit, block=early.block, shared=shared
                )
                break
        else:
            originals.append(late)
    return duplicates


def test_over_100_shared_rows_make_the_later_a_duplicate() -> None:
    original = candidate("alice", 10, range(250))
    assert match_duplicates([original, candidate("bob", 11, range(150, 400))]) == {}
    duplicates = match_duplicates([original, candidate("bob", 11, range(149, 399))])
    assert duplicates == {("bob", "c"): Duplicate(hotkey="alice", commit="c", block=10, shared=101)}


ALICE, ALICE_LATER = candidate("alice", 1, range(250), "v1"), candidate("alice", 3, range(20, 270), "v2")
EXAMPLES: dict[str, tuple[list[Candidate], dict[str, str]]] = {
    "a repeated row counts once": ([ALICE, candidate("bob", 0, [*range(100)] * 3)], {}),
    "a copy of a copy": (
        [candidate(name, block, range(250)) for block, name in enumerate("abc")],
        {"b": "a", "c": "a"},
    ),
    "a copy makes no copies": (
        [candidate("a", 1, range(200)), candidate("b", 2, range(99, 299)), candidate("c", 3, range(200, 400))],
        {"b": "a"},
    ),
    "a new version of one's own": ([ALICE, ALICE_LATER], {}),
    "a copy between two versions": ([ALICE, candidate("bob", 2, range(250)), ALICE_LATER], {"bob": "alice"}),
    "the earliest of two originals": (
        [candidate("a", 1, range(101)), candidate("b", 2, range(101, 302)), candidate("c", 3, range(302))],
        {"c": "a"},
    ),
    "the original submitted again": (
        [replace(ALICE, block=9), candidate("bob", 5, range(250)), ALICE],
        {"bob": "alice"},
    ),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_duplicates_name_their_original(example: str) -> None:
    candidates, originals = EXAMPLES[example]
    duplicates = match_duplicates(candidates)
    assert {hotkey: original.hotkey for (hotkey, _), original in duplicates.items()} == originals


def random_instance(seed: int) -> list[Candidate]:
    rng = random.Random(seed)
    rows = rng.randrange(4, 40)
    return [
        candidate(
            f"h{rng.randrange(6)}",
            rng.randrange(5),
            [rng.randrange(rows) for _ in range(rng.randrange(0, 25))],
            commit=f"c{number}",
        )
        for number in range(rng.randrange(1, 14))
    ]


def test_pairwise_comparison_in_any_order_finds_the_same() -> None:
    counts = []
    for seed in range(150):
        candidates, max_shared = random_instance(seed), seed % 7
        expected = brute_force(candidates, max_shared)
        for _ in range(3):
            assert match_duplicates(iter(candidates), max_shared=max_shared) == expected
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
        """All share a hundred rows, each in three versions of its own."""
        rows = [[*range(100), *range(1000 * miner, 1000 * miner + 50)] for miner in range(1, miners + 1)]
        return [candidate(f"h{miner}", v, own, commit=str(v)) for miner, own in enumerate(rows) for v in range(3)]

    few, many = near(10), near(40)
    assert match_duplicates(many) == {}
    assert count_steps(lambda: match_duplicates(many)) < 5 * count_steps(lambda: match_duplicates(few))


def test_duplicate_error_names_the_original_and_pickles() -> None:
    original = Duplicate(hotkey="5Alice", commit="a" * 40, block=12, shared=101)
    error = pickle.loads(pickle.dumps(original.to_error()))
    assert error.reason is Reason.DUPLICATE
    assert all(part in str(error) for part in ("101 rows", "5Alice", "a" * 40, "block 12"))


# Entries and their earlier versions


def test_later_of_two_equal_datasets_is_the_duplicate() -> None:
    view = view_of(a=20, b=10)
    duplicates = find_duplicates(enter(view), record(view), {A: ROWS, B: ROWS})
    assert duplicates == {A: Duplicate(hotkey="b", commit=B.commitment, block=10, shared=101)}
    assert find_duplicates(enter(view), record(view), {A: HUNDRED, B: HUNDRED}) == {}


def test_original_stays_original_after_a_new_commit() -> None:
    view, earlier = view_of(a=40, b=20), make_submission(A, 10)
    assert set(find_duplicates(enter(view, earlier), record(view, earlier), {A: ROWS, B: ROWS})) == {B}
    moved = replace(view, commitments=(replace(make_commitment("a", 40), text=NEWER.commitment), view.commitments[1]))
    duplicates = find_duplicates(enter(moved, earlier), record(moved, earlier), {A: ROWS, B: ROWS, NEWER: ROWS})
    assert {key: original.commit for key, original in duplicates.items()} == {B: A.commitment}


def test_possible_duplicates_overlap_a_missing_datasets_version() -> None:
    view = view_of(a=40, b=20, c=20)
    view = replace(view, commitments=(replace(view.commitments[0], text=NEWER.commitment), *view.commitments[1:]))
    entries, recorded, datasets = enter(view), record(view, make_submission(A, 10)), {A: ROWS, B: ROWS, C: HUNDRED}
    assert find_duplicates(entries, recorded, datasets) == {}
    expected = {B: Duplicate(hotkey="a", commit=A.commitment, block=10, shared=101)}
    assert find_possible_duplicates(entries, recorded, datasets) == expected
    assert find_possible_duplicates(entries, recorded, {**datasets, NEWER: ROWS}) == {}, "it is no longer missing"
    late = record(view, make_submission(A, 30))
    assert find_possible_duplicates(entries, late, datasets) == {}, "B is earlier than that version"


@pytest.mark.parametrize(
    ("view", "earlier", "duplicates"),
    [
        pytest.param(view_of(b=20), [make_submission(A, 10)], set(), id="its hotkey left"),
        pytest.param(view_of({"a": 30}, a=10, b=35), [], set(), id="committed before registration"),
        pytest.param(view_of({"a": 30}, a=40, b=35), [make_submission(A, 10)], {A}, id="ranked before registration"),
    ],
)
def test_original_counts_from_its_present_registration(
    view: ChainView, earlier: list[Submission], duplicates: set[SubmissionKey]
) -> None:
    assert set(find_duplicates(enter(view, *earlier), record(view, *earlier), {A: ROWS, B: ROWS})) == duplicates


def test_unrelated_earlier_version_is_no_original() -> None:
    view, old = view_of(a=30, b=20), make_key("a", commit="e" * 40)
    recorded = record(view, make_submission(old, 6))
    others = tuple(bytes([255, number]) * 16 for number in range(150))
    assert find_duplicates(enter(view), recorded, {old: ROWS, A: others, B: ROWS}) == {}
    assert set(find_duplicates(enter(view), recorded, {old: ROWS, A: ROWS + others, B: ROWS})) == {B}


def test_related_versions_count_since_registration_up_to_8() -> None:
    versions = [make_key("a", commit=f"{number:040x}") for number in range(24)]
    recorded = {key: make_submission(key, 4 + number) for number, key in enumerate(versions)}
    recorded[A] = make_submission(A, 6)
    datasets = {**dict.fromkeys(versions, ROWS), versions[3]: HUNDRED}
    entries = [make_entry(A, 50, registration_block=5)]
    assert related_versions(entries, recorded, datasets) == {A: [*versions[2:10], *versions[-8:]]}, "not downloaded"
    datasets[A] = ROWS
    assert related_versions(entries, recorded, datasets) == {A: [versions[2], *versions[4:11]]}


def test_dataset_rejected_after_its_check_is_no_original() -> None:
    verdicts = {A: Verdict(reason=Reason.DIVERGED), B: Verdict(loss=2.5)}
    assert set(eligible_datasets({A: ROWS, B: ROWS, C: ROWS}, verdicts)) == {B, C}
