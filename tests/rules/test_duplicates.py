"""Membership, registration, competition and duplicates."""

import dataclasses
import hashlib
import json
import pickle
import random
import sys
import time
from collections.abc import Callable
from types import FrameType

import pytest

from template.competition import CommitmentRecord, Competition
from template.constants import DEFAULT_DUPLICATE_COUNT
from template.data.eval_set import check_membership
from template.data.rows import SUBMISSION_LIMITS, Row, parse_rows
from template.errors import Reason, SubmissionError
from template.rules import duplicates as admission
from template.rules.duplicates import Candidate, Duplicate, match_duplicates
from template.rules.entries import check_competition, check_registration


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def candidate(hotkey: str, block: int, rows: range | list[int], commit: str = "c") -> Candidate:
    return Candidate(hotkey=hotkey, commit=commit, block=block, row_keys=tuple(key(number) for number in rows))


def make_rows(*texts: str) -> tuple[Row, ...]:
    lines = [json.dumps({"conversations": [{"role": "user", "content": text}]}) for text in texts]
    return parse_rows("\n".join(lines).encode(), name="x", limits=SUBMISSION_LIMITS)


def brute_force(candidates: list[Candidate], max_shared: int) -> dict[tuple[str, str], Duplicate]:
    """Every pair compared, straight from the rule's words."""

    def order(c: Candidate) -> tuple[int, bytes]:
        return c.block, hashlib.sha256(f"{c.hotkey}:{c.commit}".encode()).digest()

    admitted: list[Candidate] = []
    duplicates: dict[tuple[str, str], Duplicate] = {}
    for late in sorted(candidates, key=order):
        for early in admitted:
            shared = len(set(early.row_keys) & set(late.row_keys))
            if early.hotkey != late.hotkey and shared > max_shared:
                duplicates[late.hotkey, late.commit] = Duplicate(
                    hotkey=early.hotkey, commit=early.commit, block=early.block, shared=shared
                )
                break
        else:
            admitted.append(late)
    return duplicates


# Competition and registration


def test_record_of_another_competition_is_rejected() -> None:
    competition = Competition.from_defaults()
    check_competition(CommitmentRecord("o/d", "1", "a" * 40), competition.id)
    with pytest.raises(SubmissionError, match=r"'01'.*'1'") as caught:
        check_competition(CommitmentRecord("o/d", "01", "a" * 40), competition.id)
    assert caught.value.reason is Reason.WRONG_COMPETITION


def test_commitment_up_to_the_registration_is_rejected() -> None:
    check_registration(101, 100)
    for block in (100, 99, 0):
        with pytest.raises(SubmissionError, match=f"block {block}.*block 100") as caught:
            check_registration(block, 100)
        assert caught.value.reason is Reason.BEFORE_REGISTRATION


# Membership


def test_membership_accepts_rows_in_any_order() -> None:
    pool = frozenset(row.key for row in make_rows("a", "b", "c"))
    check_membership(make_rows("c", "a", "c"), pool, max_rows=250)


def test_foreign_row_is_rejected_with_line_and_count() -> None:
    pool = frozenset(row.key for row in make_rows("a"))
    with pytest.raises(SubmissionError, match=r"2 of the 4 counted rows .*: line 2, 4$") as caught:
        check_membership(make_rows("a", "x", "a", "A"), pool, max_rows=250)
    assert caught.value.reason is Reason.NOT_IN_POOL


def test_many_foreign_rows_are_counted_first_ones_named() -> None:
    with pytest.raises(SubmissionError, match=r"^9 of the 9 .*: line 1, 2, 3, 4, 5, \.\.\.$"):
        check_membership(make_rows(*"abcdefghi"), frozenset(), max_rows=250)


def test_rows_beyond_the_limit_need_no_membership() -> None:
    pool = frozenset(row.key for row in make_rows("a", "b"))
    check_membership(make_rows("a", "b", "x"), pool, max_rows=2)
    with pytest.raises(SubmissionError):
        check_membership(make_rows("a", "b", "x"), pool, max_rows=3)


# Duplicates


def test_over_100_shared_rows_make_the_later_a_duplicate() -> None:
    original = candidate("alice", 10, range(250))
    assert match_duplicates([original, candidate("bob", 11, range(150, 400))]) == {}
    found = match_duplicates([original, candidate("bob", 11, range(149, 399))])
    assert found == {("bob", "c"): Duplicate(hotkey="alice", commit="c", block=10, shared=101)}


def test_default_threshold_is_the_protocols() -> None:
    assert DEFAULT_DUPLICATE_COUNT == 100


def test_row_repeated_in_one_file_counts_once() -> None:
    original = candidate("alice", 10, range(250))
    assert match_duplicates([original, candidate("bob", 11, [*range(100)] * 3)]) == {}
    assert match_duplicates([candidate("bob", 9, [*range(100)] * 3), original]) == {}


def test_duplicate_of_a_duplicate_names_the_first_author() -> None:
    found = match_duplicates([candidate(name, block, range(250)) for block, name in enumerate(["a", "b", "c"])])
    assert {hotkey: original.hotkey for (hotkey, _), original in found.items()} == {"b": "a", "c": "a"}


def test_duplicate_makes_no_other_a_duplicate() -> None:
    first, copy = candidate("alice", 1, range(200)), candidate("bob", 2, range(99, 299))
    own_work = candidate("carol", 3, range(200, 400))
    assert set(match_duplicates([first, copy, own_work])) == {("bob", "c")}
    assert set(match_duplicates([copy, own_work], max_shared=98)) == {("carol", "c")}


def test_new_version_of_the_same_hotkey_is_no_duplicate() -> None:
    versions = [candidate("alice", 1, range(250), "v1"), candidate("alice", 5, range(250), "v2")]
    assert match_duplicates(versions) == {}


def test_copy_between_two_versions_leaves_the_author_original() -> None:
    found = match_duplicates(
        [
            candidate("alice", 1, range(250), "v1"),
            candidate("mallory", 2, range(250)),
            candidate("alice", 3, range(20, 270), "v2"),
        ]
    )
    assert set(found) == {("mallory", "c")}


def test_earliest_of_several_originals_is_named() -> None:
    found = match_duplicates(
        [candidate("a", 1, range(100)), candidate("b", 2, range(100, 300)), candidate("c", 3, range(300))],
        max_shared=50,
    )
    assert found == {("c", "c"): Duplicate(hotkey="a", commit="c", block=1, shared=100)}


def test_tie_break_within_a_block_favors_no_hotkey() -> None:
    losers = set()
    for commit in map(str, range(20)):
        pair = [candidate("alice", 7, range(250), commit), candidate("bob", 7, range(250), commit)]
        (loser,) = {hotkey for hotkey, _ in match_duplicates(pair)}
        assert {hotkey for hotkey, _ in match_duplicates(pair[::-1])} == {loser}
        losers.add(loser)
    assert losers == {"alice", "bob"}


def test_tie_break_is_the_documented_one() -> None:
    pair = [candidate("alice", 7, range(250)), candidate("bob", 7, range(250))]
    alice, bob = (hashlib.sha256(f"{name}:c".encode()).digest() for name in ("alice", "bob"))
    assert set(match_duplicates(pair)) == {("bob" if alice < bob else "alice", "c")}


def test_submission_repeated_at_a_later_block_changes_nothing() -> None:
    alice, bob = candidate("alice", 3, range(250)), candidate("bob", 5, range(250))
    later_alice = dataclasses.replace(alice, block=9)
    assert set(match_duplicates([later_alice, bob, alice])) == {("bob", "c")}


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


@pytest.mark.parametrize("seed", range(150))
def test_duplicates_equal_those_of_pairwise_comparison(seed: int) -> None:
    candidates = random_instance(seed)
    max_shared = seed % 7
    expected = brute_force(candidates, max_shared)
    assert match_duplicates(candidates, max_shared=max_shared) == expected


def test_random_instances_have_duplicates_and_originals() -> None:
    found = [len(brute_force(random_instance(seed), seed % 7)) for seed in range(150)]
    assert sum(count > 1 for count in found) > 50
    assert sum(count == 0 for count in found) > 10


@pytest.mark.parametrize("seed", range(20))
def test_duplicates_do_not_depend_on_input_order(seed: int) -> None:
    candidates = random_instance(seed)
    expected = match_duplicates(candidates, max_shared=3)
    for _ in range(5):
        random.Random(seed).shuffle(candidates)
        assert match_duplicates(iter(candidates), max_shared=3) == expected


@pytest.mark.parametrize("pool_rows", [250, 2_000, 64_000])
def test_full_subnet_is_compared_in_under_a_second(pool_rows: int) -> None:
    rng = random.Random(0)
    candidates = [candidate(f"h{n}", n, rng.sample(range(pool_rows), 250)) for n in range(256)]
    started = time.process_time()
    duplicates = match_duplicates(candidates)
    assert time.process_time() - started < 3.0
    assert len(duplicates) == (255 if pool_rows == 250 else 0)


def count_steps(work: Callable[[], object]) -> int:
    """Lines that ran in template/rules/duplicates.py while `work` did: the same on every machine."""
    steps, before = [0], sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> object:
        if frame.f_code.co_filename == admission.__file__:
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
        rows = [[*range(100), *range(1000 * one, 1000 * one + 50)] for one in range(1, miners + 1)]
        return [candidate(f"h{one}", v, own, commit=str(v)) for one, own in enumerate(rows) for v in range(3)]

    few, many = near(10), near(40)
    assert match_duplicates(many) == {}
    assert count_steps(lambda: match_duplicates(many)) < 5 * count_steps(lambda: match_duplicates(few))


def test_duplicate_error_names_the_original_and_pickles() -> None:
    original = Duplicate(hotkey="5Alice", commit="a" * 40, block=12, shared=101)
    error = pickle.loads(pickle.dumps(original.to_error()))
    assert error.reason is Reason.DUPLICATE
    assert all(part in str(error) for part in ("101 rows", "5Alice", "a" * 40, "block 12"))
