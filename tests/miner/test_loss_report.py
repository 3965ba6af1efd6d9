"""The runs after which validators stop evaluating, in the report of a loss."""

import io
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from template.competition import Competition, Incentives
from template.miner.committed import CommittedDataset
from template.miner.compare import compare_paired
from template.miner.loss_report import describe, loss_tables, paired_tables, summarize
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


def capture(parts: Iterable[RenderableType]) -> str:
    """Return what a terminal of 16 colours shows."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=100, highlight=False)
    with console.capture() as shown:
        for part in parts:
            console.print(part)
    return shown.get()


@pytest.mark.parametrize(("loss", "colour"), [(GOOD, "\x1b[32m"), (BAD, "\x1b[31m")], ids=["better", "worse"])
def test_terminal_gets_seeds_and_a_coloured_loss(loss: float, colour: str) -> None:
    text = capture(loss_tables([make_result(loss=loss)] * 2, COMPETITION, RULES, COMMITTED))
    assert [line.split()[-1] for line in text.splitlines()[2:4]] == [repr(loss)] * 2
    assert f"loss      {colour}{loss!r} as it is paid" in text and "on chain  alice/data:1:" in text


def test_terminal_gets_a_comparison_with_the_lower_loss_green() -> None:
    losses = [GOOD, GOOD], [BAD, GOOD - 0.2]
    results = tuple([make_result(loss=loss) for loss in side] for side in losses)
    text = capture(paired_tables(compare_paired(*losses), results, [Path("a"), Path("b")]))
    rows = [line.split() for line in text.splitlines() if "." in line]
    green = [["\x1b[32m" in cell for cell in row[1:3]] for row in rows[:3]]
    assert green == [[True, False], [False, True], [False, True]]
    assert rows[2][0] == "mean" and "UNDECIDED" in text
