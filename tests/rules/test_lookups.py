"""The records whose files are looked up."""

from collections.abc import Container
from dataclasses import replace

import pytest

from template.competition import Incentives, Reward
from template.records import ContentKey, LedgerLine, SubmissionKey
from template.rules.lookups import newest_commitments, records_to_look_up
from tests.fixtures.table import PERIOD, make_dataset
from tests.fixtures.views import make_key, make_stand

RULES = Incentives()
OTHER = {"mean": 2.5, "spread": None, "loss": 2.5, "frontier": 2.6}
CREDITS = {"a": 0.1, "b": 0.00011, "c": 0.00009, "d": 0.0}


def look_up(rules: Incentives = RULES, absent: Container[SubmissionKey] = ()) -> set[str]:
    """Return the hotkeys whose record is looked up, of one record each."""
    lines = [
        LedgerLine(
            hotkey=name, digest=name, rank_block=0, commit_block=0, registration_block=1, runs=4, credit=credit, **OTHER
        )
        for name, credit in CREDITS.items()
    ]
    commitments = {ContentKey(name, name): make_key(name) for name in CREDITS}
    registrations = dict.fromkeys(CREDITS, 1)
    return {key.hotkey for key in records_to_look_up(100_000, lines, registrations, rules, commitments, absent)}


@pytest.mark.parametrize(
    ("rules", "absent", "expected"),
    [
        (RULES, (), {"a", "b"}),
        (RULES, {make_key("c"), make_key("d")}, {"a", "b", "c"}),
        (replace(RULES, reward=Reward.WINNER), (), {"a", "b", "c"}),
    ],
    ids=["a thousandth", "missing before", "winner"],
)
def test_records_with_little_credit_are_not_looked_up(
    rules: Incentives, absent: Container[SubmissionKey], expected: set[str]
) -> None:
    assert look_up(rules, absent) == expected


def test_newest_commitment_to_the_rows_counts() -> None:
    old, new, other, unread = (make_key("a", commit=str(number) * 40) for number in range(4))
    stands = {"a": [make_stand(key, block * PERIOD) for block, key in enumerate((old, new, other, unread), start=1)]}
    datasets = {old: make_dataset(range(9)), new: make_dataset(range(9)), other: make_dataset(range(5))}
    first, second = ContentKey("a", datasets[old].digest), ContentKey("a", datasets[other].digest)
    assert newest_commitments(stands, datasets, 4 * PERIOD) == {first: new, second: other}
    assert newest_commitments(stands, datasets, PERIOD) == {first: old}
