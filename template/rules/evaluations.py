"""Choose the evaluations of a round by pure functions of datasets and losses."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from template.competition import Competition, Incentives
from template.constants import DAY_BLOCKS
from template.rules.ledger import Content, LedgerRow, estimate_loss, is_hopeless
from template.rules.stands import align

# Evaluations of one dataset in one round. Their seeds come from one aligned block.
PER_ROUND = 2

# Evaluations of a round for records, whose loss decides the pay of all that follow.
_RECORD_SLOTS = 4

# Hashed before the block's hash, so that no other use of it gives the same number.
_DOMAIN = b"lucky_num\n"


@dataclass(frozen=True)
class PlannedEvaluation:
    """One evaluation of a dataset. number: from 1. seed_block: an aligned block."""

    content: Content
    number: int
    seed_block: int


def first_seed_block(block: int, incentives: Incentives) -> int:
    """Return the aligned block from which a dataset's seeds come.

    Not before the season: who knew the seeds could choose a dataset by them.
    """
    return max(block, align(incentives.season_block, incentives.blocks_per_epoch))


def seed_block(first_block: int, number: int, period: int) -> int:
    """Return the aligned block that gives the seed of an evaluation, counted from 1."""
    return first_block + (number - 1) // PER_ROUND * period


def seed_base(block: int, number: int, period: int) -> int:
    """Return the first seed block of a dataset whose evaluation has its seed from `block`."""
    return block - seed_block(0, number, period)


def derive_seed(block_hash: str, digest: str, number: int) -> int:
    """Return the lucky_num, in [0, 2**32), of a dataset's evaluation.

    The first four bytes, little-endian, of sha256 over `lucky_num`, a line feed, the bytes of the block's hash and of
    the dataset's digest, and the number in four bytes. Raises: ValueError for a hash or digest that is not hex.
    """
    parts = bytes.fromhex(block_hash.removeprefix("0x")) + bytes.fromhex(digest) + number.to_bytes(4, "little")
    return int.from_bytes(hashlib.sha256(_DOMAIN + parts).digest()[:4], "little")


def newcomer_blocks(hotkeys: int, incentives: Incentives) -> int:
    """Return the time without an evaluation after which a hotkey comes first.

    It is a day, or longer where the first evaluations of so many hotkeys would take more than half of the slots.
    """
    return max(DAY_BLOCKS, 2 * -(-hotkeys // incentives.slots) * incentives.blocks_per_epoch)


def plan_evaluations(
    contents: Collection[Content],
    ledger: Sequence[LedgerRow],
    recent_runs: Mapping[str, int],
    block: int,
    competition: Competition,
    incentives: Incentives,
) -> list[PlannedEvaluation]:
    """Return the evaluations of the round that starts at `block`, in order.

    A round before the season has none, since no seed block is reached. First evaluations of hotkeys without any recent
    one precede all others. Then four slots, or half of fewer, are for records, half for datasets in progress (lowest
    mean and oldest rank in turn), and the rest for other first evaluations (hotkeys with the fewest recent ones first).
    A free slot goes to the next group.

    Args:
        contents: Datasets that can be evaluated: present, readable, no duplicates.
        recent_runs: Evaluations of each hotkey within `newcomer_blocks`.
    """
    records = [row.content for row in ledger if row.credit > 0.0 and len(row.content.losses) < incentives.hold]
    confirmed = {row.content.key for row in ledger}
    present = {content.key for content in contents}
    holders = sorted(
        (content for content in records if content.key in present),
        key=lambda content: (len(content.losses), content.rank),
    )
    open_contents = [content for content in contents if content.key not in confirmed]
    first = sorted(
        (content for content in open_contents if not content.losses),
        key=lambda content: (recent_runs.get(content.key.hotkey, 0), content.rank),
    )
    started = [
        content
        for content in open_contents
        if content.losses and not is_hopeless(content, ledger, competition, incentives)
    ]
    newcomers = [content for content in first if not recent_runs.get(content.key.hotkey)]

    ready = partial(_ready_evaluations, block=block, incentives=incentives)
    slots, evaluations = incentives.slots, incentives.evaluations
    of_records = ready(holders, incentives.hold)
    of_started = ready(_alternate_mean_and_rank(started, incentives.sd), evaluations)
    plan: dict[PlannedEvaluation, None] = {}
    for queue, most in (
        (ready(newcomers, evaluations, 1), slots),
        (of_records, min(_RECORD_SLOTS, slots // 2)),
        (of_started, -(-slots // 2)),
        (ready(first, evaluations, 1), slots),
        (of_started, slots),
        (of_records, slots),
    ):
        left = min(most, slots - len(plan))
        plan.update(dict.fromkeys([planned for planned in queue if planned not in plan][:left]))
    return list(plan)


def _alternate_mean_and_rank(contents: Collection[Content], sd: float) -> list[Content]:
    """Order datasets with losses by lowest mean and by oldest rank, in turn."""
    by_mean = sorted(contents, key=lambda content: (estimate_loss(content.losses, sd).mean, content.rank))
    by_rank = sorted(contents, key=lambda content: content.rank)
    return list(dict.fromkeys(chain.from_iterable(zip(by_mean, by_rank, strict=True))))


def _ready_evaluations(
    queue: Iterable[Content], runs: int, most: int = PER_ROUND, *, block: int, incentives: Incentives
) -> list[PlannedEvaluation]:
    """Return the next evaluations of each dataset whose seed blocks are reached.

    Args:
        runs: Evaluations after which a dataset is complete.
        most: Most evaluations of a dataset to return.
    """
    return [
        PlannedEvaluation(content, number, seeded)
        for content in queue
        for number in range(len(content.losses) + 1, min(len(content.losses) + most, runs) + 1)
        if (seeded := _seed_block(content, number, incentives)) <= block
    ]


def _seed_block(content: Content, number: int, incentives: Incentives) -> int:
    block = content.seed_block
    if block is None:
        block = max(content.rank.block, content.public.block if content.public else 0)
    return seed_block(first_seed_block(block, incentives), number, incentives.blocks_per_epoch)
