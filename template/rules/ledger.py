"""Ledger of confirmed datasets and the credit of each improvement.

A dataset's loss is estimated from several evaluations. With enough of them the dataset is confirmed and enters the
ledger. The ledger is read by rank: a dataset that is better than all before it by more than `epsilon` is a record, and
its credit is the score that it adds beyond `epsilon`. So the credits of many hotkeys add up to no more than the
improvement that they made together, however it was split.
"""

import functools
import math
import statistics
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from template.competition import Competition, Incentives, Reward
from template.constants import DAY_BLOCKS
from template.errors import Reason
from template.records import ContentKey, LedgerLine, Rank
from template.rules.entries import MISSING
from template.rules.scoring import score_of, shares_from_scores


@dataclass(frozen=True, kw_only=True)
class Content:
    """A dataset in the competition. losses: by number of the evaluation.

    public: who copied whom, None for its rank. seed_block: of its first evaluation, None for its rank block, or for the
    block of `public` if that is later.
    """

    key: ContentKey
    rank: Rank
    registration_block: int
    losses: tuple[float, ...] = ()
    public: Rank | None = None
    seed_block: int | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated loss of a dataset.

    spread: sample standard deviation, None for one run. loss: the mean with its penalty; it decides the pay.
    """

    mean: float
    spread: float | None
    runs: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A confirmed dataset in the ledger.

    frontier: best loss of all records of earlier rank. credit: 0 unless the dataset is a record.
    """

    content: Content
    estimate: Estimate
    frontier: float
    credit: float


def estimate_loss(losses: Sequence[float], sd: float) -> Estimate:
    """Estimate a loss from at least one evaluation.

    A spread above `sd`, the competition's, adds a penalty: the mean of a wide distribution is easier to be lucky with.
    """
    return _estimate(tuple(losses), sd)


@functools.lru_cache(maxsize=4096)
def _estimate(losses: tuple[float, ...], sd: float) -> Estimate:
    # The deviation is exact, and so slow; each table needs the same ones.
    mean = math.fsum(losses) / len(losses)
    spread = statistics.stdev(losses) if len(losses) > 1 else None
    return Estimate(mean=mean, spread=spread, runs=len(losses), loss=paid_loss(mean, spread, len(losses), sd))


def paid_loss(mean: float, spread: float | None, runs: int, sd: float) -> float:
    """Return the loss that is paid: the mean, and a penalty for a spread above `sd`."""
    return mean + 2.0 * max(0.0, (spread or 0.0) - sd) / math.sqrt(runs)


def read_ledger(contents: Iterable[Content], competition: Competition, incentives: Incentives) -> list[LedgerRow]:
    """Return the confirmed datasets by rank, each with the credit of its improvement."""
    rows, frontier = [], competition.bench
    confirmed = [content for content in contents if len(content.losses) >= incentives.evaluations]
    for content in sorted(confirmed, key=lambda content: content.rank):
        estimate = estimate_loss(content.losses, incentives.sd)
        credit = record_credit(estimate.loss, frontier, competition, incentives)
        rows.append(LedgerRow(content=content, estimate=estimate, frontier=frontier, credit=credit or 0.0))
        frontier = frontier if credit is None else estimate.loss
    return rows


def record_credit(loss: float, frontier: float, competition: Competition, incentives: Incentives) -> float | None:
    """Return the score that a record adds beyond `epsilon`; None for a loss that is no record.

    An `epsilon` of each improvement is not paid. Otherwise many tries at a smaller one would pay: luck adds the rest.
    """
    credit = score_of(loss + incentives.epsilon, competition) - score_of(frontier, competition)
    return credit if credit > 0.0 else None


def frontier_before(rank: Rank, ledger: Sequence[LedgerRow], bench: float) -> float:
    """Return the best loss of the records of earlier rank, `bench` without any."""
    losses = [row.estimate.loss for row in ledger if row.credit > 0.0 and row.content.rank < rank]
    return min(losses, default=bench)


def is_hopeless(
    content: Content, ledger: Sequence[LedgerRow], competition: Competition, incentives: Incentives
) -> bool:
    """Check that an unconfirmed dataset is unlikely to become a record.

    Where each dataset is paid by its score, only one that would score 0 is hopeless.
    """
    if not content.losses:
        return False
    margin = 2.0 * incentives.sd / math.sqrt(len(content.losses))
    wanted = wanted_loss(content, ledger, competition, incentives)
    return estimate_loss(content.losses, incentives.sd).loss >= wanted + margin


def wanted_loss(
    content: Content, ledger: Sequence[LedgerRow], competition: Competition, incentives: Incentives
) -> float:
    """Return the loss below which a dataset is worth its evaluations."""
    if incentives.reward is Reward.PROPORTIONAL:
        return competition.maxb
    return frontier_before(content.rank, ledger, competition.bench) - incentives.epsilon


def ledger_lines(ledger: Iterable[LedgerRow], absent: Container[ContentKey] = ()) -> list[LedgerLine]:
    """Return the ledger as the round's file shows it.

    absent: datasets whose file is missing for more than a day.
    """
    return [
        LedgerLine(
            hotkey=row.content.key.hotkey,
            digest=row.content.key.digest,
            rank_block=row.content.rank.block,
            commit_block=row.content.rank.commit_block,
            registration_block=row.content.registration_block,
            runs=row.estimate.runs,
            mean=row.estimate.mean,
            spread=row.estimate.spread,
            loss=row.estimate.loss,
            frontier=row.frontier,
            credit=row.credit,
            is_absent=row.content.key in absent,
        )
        for row in ledger
    ]


def live_records(
    block: int, ledger: Iterable[LedgerLine], registrations: Mapping[str, int], incentives: Incentives
) -> list[tuple[LedgerLine, float]]:
    """Return the records of registered hotkeys, each with its credit at a block.

    A credit halves every `half_life_blocks`. It belongs to one registration: a hotkey that registers again does
    not inherit it.
    """
    return [
        (line, line.credit * 0.5 ** (max(0, block - line.rank_block) / incentives.half_life_blocks))
        for line in ledger
        if line.credit > 0.0 and registrations.get(line.hotkey) == line.registration_block
    ]


def live_credits(
    block: int, ledger: Iterable[LedgerLine], registrations: Mapping[str, int], incentives: Incentives
) -> dict[str, float]:
    """Return the paid credit of each registered hotkey at a block."""
    live: dict[str, float] = {}
    for line, credit in live_records(block, ledger, registrations, incentives):
        if not line.is_absent:
            live[line.hotkey] = live.get(line.hotkey, 0.0) + credit
    return live


class PaidRow(Protocol):
    """A leaderboard row that can be paid."""

    @property
    def hotkey(self) -> str: ...
    @property
    def reason(self) -> Reason | None: ...
    @property
    def runs(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def credit(self) -> float: ...


def make_shares(
    rows: Sequence[PaidRow], ledger: Sequence[LedgerLine], registrations: Mapping[str, int], incentives: Incentives
) -> dict[str, float]:
    """Return the share of each hotkey, summing to 1; empty when no hotkey is paid.

    The credit in a row is 0 where it is not paid: see `is_credit_paid`.
    """
    credits = {row.hotkey: row.credit for row in rows if row.credit > 0.0}
    match incentives.reward:
        case Reward.PROPORTIONAL:
            complete = [row for row in rows if row.reason is None and row.runs >= incentives.evaluations]
            values = {row.hotkey: row.score for row in complete}
        case Reward.WINNER:
            records = [line for line in ledger if line.credit > 0.0 and not line.is_absent and line.hotkey in credits]
            current = [line for line in records if registrations.get(line.hotkey) == line.registration_block]
            values = {line.hotkey: 1.0 for line in current[-1:]}
        case Reward.IMPROVEMENT:
            # Scores lie in [0, 1], and the sum of a hotkey's credits need not.
            largest = max(credits.values(), default=0.0)
            values = {hotkey: credit / largest for hotkey, credit in credits.items()}
    return shares_from_scores(values)


def is_credit_paid(reason: Reason | None, readable_block: int, block: int) -> bool:
    """Check that a hotkey's credit is paid at `block`.

    Its dataset must be accepted, and readable within the last day.
    reason: of the rejection of its present dataset. readable_block: last aligned block at which it had a dataset.
    """
    return (reason is None or reason in MISSING) and readable_block >= block - DAY_BLOCKS
