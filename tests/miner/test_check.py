"""Checks of a dataset before it is committed, compared with the validator's rules."""

import json
import random

import pytest

from template.competition import Incentives
from template.constants import MAX_SUBMISSION_BYTES
from template.data.eval_set import check_dataset
from template.data.rows import SUBMISSION_LIMITS, Row, parse_rows
from template.errors import Reason, RemoteError, SubmissionError
from template.miner.check import Inspection, inspect_file
from template.miner.competitors import (
    Competitor,
    DatasetComparison,
    SubnetSnapshot,
    compare_datasets,
    first_counted_block,
    possible_commit_blocks,
)
from tests.fixtures.miner import never_asked

MAX_ROWS = 6
NOW = 1000


def make_line(number: int, *, question: str = "say") -> str:
    talk = [{"role": "user", "content": f"{question} {number}"}, {"role": "assistant", "content": str(number)}]
    return json.dumps({"conversations": talk})


def read(*lines: str) -> tuple[Row, ...]:
    return parse_rows("\n".join(lines).encode(), name="x", limits=SUBMISSION_LIMITS)


POOL_LINES = [make_line(number) for number in range(300)]
POOL = frozenset(row.key for row in read(*POOL_LINES))
LONG = make_line(1, question="word " * 3000)


def inspect(content: bytes, *, pool: frozenset[bytes] = POOL, max_rows: int = MAX_ROWS) -> Inspection:
    return inspect_file(content, pool, max_rows=max_rows, has_target=never_asked)


def faults_of(inspection: Inspection) -> list[tuple[int | None, Reason]]:
    return [(fault.line, fault.reason) for fault in inspection.faults]


def test_every_problem_has_its_line() -> None:
    lines = [POOL_LINES[0], "{]", "", make_line(-1), '{"conversations": 5}', POOL_LINES[1], "nonsense"]
    inspection = inspect("\n".join(lines).encode())
    reasons = [Reason.MALFORMED, Reason.NOT_IN_POOL, Reason.MALFORMED, Reason.MALFORMED]
    assert faults_of(inspection) == list(zip([2, 4, 5, 7], reasons, strict=True))
    assert inspection.row_count == 6
    assert [row.line for row in inspection.counted] == [1, 4, 6]


def test_malformed_line_takes_the_place_of_a_row() -> None:
    lines = ["{]", *POOL_LINES[:5], make_line(-1), "{]"]
    inspection = inspect("\n".join(lines).encode())
    assert faults_of(inspection) == [(1, Reason.MALFORMED), (8, Reason.MALFORMED)]
    assert inspection.spare_lines == (7,)


def test_repeated_row_is_no_problem_and_names_the_first() -> None:
    lines = [POOL_LINES[0], POOL_LINES[1], POOL_LINES[0], POOL_LINES[0]]
    inspection = inspect("\n".join(lines).encode())
    assert inspection.faults == ()
    assert inspection.repeats == ((3, 1), (4, 1))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", [(None, Reason.EMPTY)]),
        (b"\n \n", [(None, Reason.EMPTY)]),
        (b"x" * (MAX_SUBMISSION_BYTES + 1), [(None, Reason.TOO_LARGE)]),
        (b"\xef\xbb\xbf" + POOL_LINES[0].encode() + b"\n{]", [(1, Reason.MALFORMED), (2, Reason.MALFORMED)]),
    ],
    ids=["empty", "blank", "too large", "byte order mark"],
)
def test_problem_of_the_whole_file_has_no_line(content: bytes, expected: list[tuple[int | None, Reason]]) -> None:
    assert faults_of(inspect(content)) == expected


def test_tokenizer_decides_only_on_long_rows() -> None:
    asked = []

    def has_target(row: Row) -> bool:
        asked.append(row.line)
        return row.line == 2

    lines = [POOL_LINES[0], LONG, POOL_LINES[1], LONG]
    pool = POOL | {row.key for row in read(LONG)}
    inspection = inspect_file("\n".join(lines).encode(), pool, max_rows=MAX_ROWS, has_target=has_target)
    assert asked == [2, 4]
    assert faults_of(inspection) == [(4, Reason.NO_TARGET)]
    assert inspection.undecided_lines == ()


def test_rows_without_a_tokenizer_are_undecided() -> None:
    asked = []

    def has_target(row: Row) -> bool:
        asked.append(row.line)
        raise RemoteError("no tokenizer today")

    pool = POOL | {row.key for row in read(LONG)}
    content = "\n".join([LONG, POOL_LINES[0], LONG]).encode()
    inspection = inspect_file(content, pool, max_rows=MAX_ROWS, has_target=has_target)
    assert asked == [1]
    assert (inspection.faults, inspection.undecided_lines) == ((), (1, 3))
    assert inspection.undecided_why == "no tokenizer today"


def test_file_has_problems_exactly_when_a_validator_rejects() -> None:
    choices = random.Random(3)
    kinds = [*POOL_LINES[:3], "", "{]", make_line(-1), '{"conversations": []}', "[" * 40]
    outcomes: set[Reason | None] = set()
    for _ in range(400):
        weights = [6, 6, 6, 2, *(choices.choice([0, 0, 0, 1]) for _ in range(4))]
        content = "\n".join(choices.choices(kinds, weights, k=choices.randrange(10))).encode()
        faults = inspect(content).faults
        try:
            rows = check_dataset(content, POOL, name="x", max_rows=MAX_ROWS)
        except SubmissionError as rejection:
            assert rejection.reason in {fault.reason for fault in faults}
            outcomes.add(rejection.reason)
        else:
            assert faults == ()
            assert inspect(content).counted == rows
            outcomes.add(None)
    assert outcomes == {None, Reason.EMPTY, Reason.MALFORMED, Reason.NOT_IN_POOL, Reason.TOO_LARGE}


ROWS = read(*POOL_LINES[:150])
KEYS = tuple(row.key for row in ROWS)
# 40% of the later one's different rows may be shared: 60 of the 150.
FOREIGN = tuple(row.key for row in read(*POOL_LINES[150:250]))


def make_competitor(hotkey: str, block: int, keys: tuple[bytes, ...] = KEYS, **changes: object) -> Competitor:
    return Competitor(hotkey=hotkey, uid=1, block=block, entry=f"{hotkey}/data:1:x", row_keys=keys, **changes)  # type: ignore[arg-type]


def compare_with(
    *others: Competitor,
    ranks: tuple[int, int] = (NOW, NOW),
    own: Competitor | None = None,
    rows: tuple[Row, ...] = ROWS,
) -> DatasetComparison:
    return compare_datasets(rows, SubnetSnapshot(block=NOW - 1, others=others, own=own), ranks)


def unread(hotkey: str, block: int, **changes: object) -> Competitor:
    return make_competitor(hotkey, block, (), unknown_reason="no answer", **changes)


ORIGINAL = make_competitor("original", 5)
REVEALED = make_competitor("revealed", 9, is_revealed=True)
FEW = make_competitor("few", 9, FOREIGN + KEYS[:50], is_revealed=True)
EARLY, UNREAD = unread("early", 4), unread("unread", 9)
BEFORE, AFTER, EITHER = (8, 8), (NOW, NOW), (5, NOW)

# Competitors, the blocks that ours may rank by -> the dataset that it duplicates, and the unknowns.
COMPARED: dict[str, tuple[list[Competitor], tuple[int, int], str | None, list[str]]] = {
    "at the limit": ([make_competitor("a", 5, KEYS[:60])], AFTER, None, []),
    "over the limit": ([make_competitor("a", 5, KEYS[:61])], AFTER, "a", []),
    "the later is the duplicate": ([make_competitor("a", 9)], BEFORE, None, []),
    "unread and earlier": ([UNREAD], AFTER, None, ["unread"]),
    "unread and later": ([UNREAD], BEFORE, None, []),
    "unread and later than the original": ([ORIGINAL, UNREAD], AFTER, "original", []),
    "unread and earlier than the original": ([ORIGINAL, EARLY, UNREAD], AFTER, "original", ["early"]),
    "revealed before": ([REVEALED], AFTER, "revealed", []),
    "revealed after, perhaps committed before": ([REVEALED], BEFORE, None, ["revealed"]),
    "revealed after with few shared rows": ([FEW], BEFORE, None, []),
    "unread and revealed after": ([unread("a", 9, is_revealed=True)], BEFORE, None, ["a"]),
    "own unread commitment decides": ([make_competitor("a", 7)], EITHER, "a", ["own"]),
    "own unread commitment is later anyway": ([make_competitor("a", 3)], EITHER, "a", []),
    "own unread commitment with few shared rows": ([make_competitor("a", 7, KEYS[:50])], EITHER, None, []),
}


@pytest.mark.parametrize("case", COMPARED)
def test_duplicate_is_of_an_earlier_dataset_over_the_limit(case: str) -> None:
    others, ranks, copied, unknowns = COMPARED[case]
    comparison = compare_with(*others, ranks=ranks, own=unread("own", 5) if ranks == EITHER else None)
    assert (comparison.copy_of.hotkey if comparison.copy_of else None) == copied
    assert [unknown.hotkey for unknown in comparison.unknowns] == unknowns


RULES = Incentives(blocks_per_epoch=100, update_blocks=250)


@pytest.mark.parametrize(
    ("own", "digest", "block", "expected"),
    [
        pytest.param(None, "d", 199, 200, id="the next round"),
        pytest.param(None, "d", 200, 300, id="the state of this block is past"),
        pytest.param(make_competitor("own", 5, digest="d"), "d", 299, 100, id="the same rows"),
        pytest.param(make_competitor("own", 5, digest="d"), "e", 150, 400, id="other rows, a day later"),
        pytest.param(make_competitor("own", 5, digest="d"), "e", 450, 500, id="other rows, more than a day later"),
        pytest.param(make_competitor("own", 5, digest="d"), "e", 50, 100, id="the present ones never counted"),
        pytest.param(unread("own", 5), "e", 150, 400, id="the present ones are unknown"),
        pytest.param(
            unread("own", 5, rejection=SubmissionError(Reason.EMPTY, "x")), "e", 150, 200, id="the present is rejected"
        ),
    ],
)
def test_dataset_counts_from_an_aligned_block(own: Competitor | None, digest: str, block: int, expected: int) -> None:
    assert first_counted_block(own, digest, block, RULES) == expected


def test_overlaps_have_the_most_shared_rows_first() -> None:
    comparison = compare_with(make_competitor("few", 5, KEYS[:60]), make_competitor("many", 1005, KEYS[49:]))
    overlaps = [(overlap.shared, overlap.limit, overlap.is_earlier) for overlap in comparison.overlaps]
    assert overlaps == [(101, 40, False), (60, 60, True)], "40% of the later one's rows"


def test_overlap_has_all_lines_and_counts_a_row_once() -> None:
    rows = read(POOL_LINES[5], POOL_LINES[200], POOL_LINES[5], POOL_LINES[7])
    (overlap,) = compare_with(ORIGINAL, rows=rows).overlaps
    assert (overlap.shared, overlap.lines) == (2, (1, 3, 4))


def test_duplicate_of_another_makes_no_duplicate() -> None:
    original = make_competitor("original", 5, KEYS[:50] + KEYS[:1])
    copy = make_competitor("copy", 6, KEYS[20:80])
    mine = read(*POOL_LINES[50:150])
    comparison = compare_with(original, copy, rows=mine[:50])
    assert [overlap.is_over_limit for overlap in comparison.overlaps] == [True]
    assert comparison.copy_of is None and comparison.unknowns == ()


def test_rank_is_that_of_a_commitment_to_the_same_file() -> None:
    own = make_competitor("own", 5, sha256="s")
    refused = make_competitor("own", 5, (), rejection=SubmissionError(Reason.BEFORE_REGISTRATION, "old"))
    assert possible_commit_blocks(own, "s", None, NOW) == (5, 5)
    assert possible_commit_blocks(own, "s", "own/data", NOW) == (5, 5)
    assert possible_commit_blocks(own, "s", "own/other", NOW) == (NOW, NOW)
    assert possible_commit_blocks(own, "t", None, NOW) == (NOW, NOW)
    assert possible_commit_blocks(None, "s", None, NOW) == (NOW, NOW)
    assert possible_commit_blocks(make_competitor("own", 5, sha256="s", is_revealed=True), "s", None, NOW) == (0, 5)
    assert possible_commit_blocks(unread("own", 5), "s", None, NOW) == (5, NOW)
    assert possible_commit_blocks(refused, "s", None, NOW) == (NOW, NOW)
