"""Membership of a submission's rows in the evaluation set."""

import json

import pytest

from template.data.eval_set import check_membership
from template.data.rows import SUBMISSION_LIMITS, Row, parse_rows
from template.errors import Reason, SubmissionError


def make_rows(*texts: str) -> tuple[Row, ...]:
    lines = [json.dumps({"conversations": [{"role": "user", "content": text}]}) for text in texts]
    return parse_rows("\n".join(lines).encode(), name="x", limits=SUBMISSION_LIMITS)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("axaA", r"2 of the 4 counted rows .*: line 2, 4$"),
        ("cdefghijk", r"^9 of the 9 .*: line 1, 2, 3, 4, 5, \.\.\.$"),
    ],
)
def test_foreign_rows_are_rejected_with_count_and_lines(texts: str, message: str) -> None:
    eval_keys = frozenset(row.key for row in make_rows("a", "b"))
    check_membership(make_rows("b", "a", "b"), eval_keys, max_rows=250)
    with pytest.raises(SubmissionError, match=message) as caught:
        check_membership(make_rows(*texts), eval_keys, max_rows=250)
    assert caught.value.reason is Reason.NOT_IN_POOL


def test_rows_beyond_the_limit_need_no_membership() -> None:
    rows, eval_keys = make_rows("a", "b", "x"), frozenset(row.key for row in make_rows("a", "b"))
    check_membership(rows, eval_keys, max_rows=2)
    with pytest.raises(SubmissionError):
        check_membership(rows, eval_keys, max_rows=3)
