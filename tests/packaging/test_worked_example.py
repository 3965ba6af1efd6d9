"""Compare the example of docs/incentives.md with the rules that validators run."""

import re
from dataclasses import dataclass, replace

from template.competition import Competition, Incentives
from template.constants import DAY_BLOCKS
from template.rules.duplicates import max_shared
from template.rules.ledger import estimate_loss, ledger_lines, live_credits, make_shares, read_ledger, record_credit
from template.rules.scoring import score_of
from tests.fixtures.table import make_content
from tests.packaging.test_docs import PAGES

COMPETITION = Competition.from_defaults()
RULES = replace(Incentives(), evaluations=4)
RANK_DAYS = {"A": 0, "C": 2, "D": 3}
LAST_DAY = 14
SECTION = PAGES["docs/incentives.md"].partition("### An example by hand\n")[2].partition("\n## ")[0]
TABLES = [
    [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]
    for table in re.findall(r"(?:^\|.*\n)+", SECTION, flags=re.MULTILINE)
]
LOSSES = {row[0]: [float(loss) for loss in row[1].split(", ")] for row in TABLES[0]}
LEDGER = ledger_lines(
    read_ledger(
        [make_content(name, RANK_DAYS[name] * DAY_BLOCKS, losses) for name, losses in LOSSES.items()],
        COMPETITION,
        RULES,
    )
)


@dataclass(frozen=True)
class Row:
    """The columns of the leaderboard that `make_shares` reads."""

    hotkey: str
    credit: float
    score: float = 0.0
    runs: int = 4
    reason: None = None


def score(loss: float) -> str:
    return f"{score_of(loss, COMPETITION):.6f}"


def test_losses_of_the_example_follow_from_its_runs() -> None:
    expected = []
    for name, losses in LOSSES.items():
        own = estimate_loss(losses, RULES.sd)
        values = (own.mean, own.spread, own.loss - own.mean, own.loss)
        expected.append([name, ", ".join(f"{loss:.3f}" for loss in losses), *(f"{value:.4f}" for value in values)])
    assert TABLES[0] == expected


def test_credits_of_the_example_follow_from_its_losses() -> None:
    holder, expected = "`bench`", []
    for line in LEDGER:
        credit = f"{line.credit:.6f}" if line.credit else "none: no record"
        raised = line.loss + RULES.epsilon
        before = f"{line.frontier:.4f} ({holder})"
        expected.append([line.hotkey, f"{raised:.4f}", score(raised), before, score(line.frontier), credit])
        holder = line.hotkey if line.credit else holder
    assert TABLES[1] == expected


def test_weights_of_the_example_follow_from_its_credits() -> None:
    registrations = dict.fromkeys(LOSSES, 1)
    live = live_credits(LAST_DAY * DAY_BLOCKS, LEDGER, registrations, RULES)
    shares = make_shares([Row(name, credit) for name, credit in live.items()], LEDGER, registrations, RULES)
    expected = []
    for line in LEDGER[: len(live)]:
        name, days = line.hotkey, LAST_DAY - RANK_DAYS[line.hotkey]
        halved = f"{line.credit:.6f} x 0.5^({days}/14) = {live[name]:.6f}"
        expected.append([name, f"{line.credit:.6f}", str(days), halved, f"{shares[name]:.1%}"])
    assert TABLES[2] == expected
    assert f"the share of {sum(live.values()):.6f}, the sum of both credits" in SECTION


def test_sentences_of_the_example_have_the_rules_numbers() -> None:
    first, second, _ = LEDGER
    alone = record_credit(second.loss, COMPETITION.bench, COMPETITION, RULES)
    text = SECTION.replace("\n", " ")
    assert f"its credit would be {alone:.6f}, more than the {first.credit:.6f} + {second.credit:.6f} of both" in text
    assert f"Half of its 250 rows are in A, and {max_shared(COMPETITION.rows)} may be" in text
    width, height = COMPETITION.bench - COMPETITION.minb, COMPETITION.bheight
    assert f"scores {height:.2f} + {1 - height:.2f} (({COMPETITION.bench:.2f} - L) / {width:.2f})²" in text
    assert f"`sd` ({RULES.sd})" in text and f"`epsilon` ({RULES.epsilon})" in text and COMPETITION.pow == 2
    assert RULES.half_life_blocks == 14 * DAY_BLOCKS
