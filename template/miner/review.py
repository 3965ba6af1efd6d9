"""Compare a draft with every dataset that is committed on the subnet, before it is published."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loguru import logger

from template.data.eval_set import read_eval_set_index
from template.data.rows import RowKey
from template.errors import Reason, RemoteError, SubmissionError
from template.miner.check_report import describe_comparison, describe_counting
from template.miner.competitors import SubnetSnapshot, compare_datasets, fetch_competitors, first_counted_block
from template.miner.draft import Draft

# The later the commitment, the lower its rank: datasets that are not read by then are left out, and named.
COMPARE_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Review:
    """A comparison in lines for the user, and the hotkey's dataset before this one; None where it is unknown."""

    lines: Sequence[str]
    subnet: SubnetSnapshot | None = None

    def first_block(self, draft: Draft, commit_block: int) -> int | None:
        """Return the first block at which rows committed in a block can count, None if unknown."""
        if self.subnet is None:
            return None
        return first_counted_block(self.subnet.own, draft.digest, commit_block - 1, draft.config.incentives)


def review_draft(draft: Draft, clock: Callable[[], float] = time.monotonic) -> Review:
    """Compare the draft with all other datasets, as `scripts/check_dataset.py` does.

    What cannot be read is named, and does not stop the publication.
    Raises: SubmissionError for a certain duplicate, unless forced.
    """
    config = draft.config
    if draft.eval_file is None:
        return Review(lines=["not made: a validator rejects the file itself"])
    folder = config.folder / "neighbours"
    logger.info("comparing with the subnet's datasets, for at most {:.0f} s", COMPARE_S)
    try:
        view = draft.chain.view()
    except RemoteError as error:
        logger.warning("not compared with the subnet's datasets: {}", error)
        return Review(lines=[f"not made: {error}"])
    eval_set = read_eval_set_index(draft.eval_file)
    subnet = fetch_competitors(
        view, config.competition, eval_set, folder, draft.chain.hotkey, deadline=clock() + COMPARE_S, clock=clock
    )
    counted_as = eval_set.dedup_keys(row.key for row in draft.rows)
    rows = [RowKey(row.line, key) for row, key in zip(draft.rows, counted_as, strict=True)]
    comparison = compare_datasets(rows, subnet, (view.block + 1, view.block + 1))
    problem = None if comparison.copy_of is None else comparison.copy_of.to_error()
    if comparison.unknowns:
        first = comparison.unknowns[0]
        logger.warning(
            "not compared with datasets={}, which may decide whether this one is a duplicate: the first is of {}: {}",
            len(comparison.unknowns), first.hotkey, first.unknown_reason or "the block of its commitment is unknown",
        )  # fmt: skip
    elif problem is not None and not config.is_forced:
        raise SubmissionError(Reason.DUPLICATE, f"{problem}; nothing was published, --force publishes it")
    if problem is not None:
        logger.warning("a validator will probably reject this dataset ({}): {}", problem.reason, problem)
    counts_from = first_counted_block(subnet.own, draft.digest, view.block, config.incentives)
    lines = [*describe_comparison(subnet, comparison), describe_counting(subnet, counts_from)]
    return Review(lines=lines, subnet=subnet)
