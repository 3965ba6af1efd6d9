"""The runs after which validators stop evaluating, in the report of a loss."""

from pathlib import Path

import pytest

from template.competition import Competition, Incentives
from template.miner.committed import CommittedDataset
from template.miner.loss_report import describe, summarize
from template.records import SubmissionKey
from tests.fixtures.results import make_result

COMPETITION = Competition.from_defaults()
RULES = Incentives(evaluations=6, hold=6)
COMMITTED = CommittedDataset(
    key=SubmissionKey("alice", "alice/data:1:" + "a" * 40), digest="b" * 64, folder=Path("data"), rank_block=360,
    seeds=(1,) * 6, seed_blocks=(360,) * 6, seed_count=6, has_history=True,
)  # fmt: skip
GOOD, BAD = COMPETITION.bench - 0.05, COMPETITION.bench + 0.05


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ([BAD, *[GOOD] * 5], "6 of 6: validators stop after 1, since"),
        ([GOOD, BAD, BAD, GOOD, GOOD, GOOD], "6 of 6: validators stop after 3, since"),
        ([BAD], "1 of 6: validators stop here, since"),
        ([GOOD] * 6, "6 of 6: enough to be confirmed"),
    ],
    ids=["first", "third", "only", "never"],
)
def test_validators_stop_at_the_first_hopeless_runs(losses: list[float], text: str) -> None:
    """The mean of all runs can be good, and validators do not come so far."""
    results = [make_result(loss=loss) for loss in losses]
    assert f"runs     {text}" in describe(results, COMPETITION, RULES, COMMITTED)
    assert summarize(results, COMPETITION, RULES, COMMITTED)["is_dropped"] == ("stop" in text)


def test_own_seeds_are_judged_together() -> None:
    """Their order is no validator's."""
    results = [make_result(loss=loss) for loss in [BAD, *[GOOD] * 5]]
    assert "6 of 6: enough to be confirmed" in describe(results, COMPETITION, RULES)
