"""When and where the verdict on a published dataset is seen."""

from datetime import UTC, datetime

from loguru import logger

from template.chain_records import ChainView
from template.competition import Incentives, Seeds
from template.constants import BLOCK_S
from template.errors import RemoteError
from template.miner.draft import Draft
from template.rules.evaluations import first_seed_block, seed_block
from template.rules.stands import align


def log_outlook(draft: Draft, block: int, counts_from: int | None = None) -> None:
    """Log when and where the verdict is seen. Arguments: as of `describe_outlook`."""
    chain, incentives = draft.chain, draft.config.incentives
    try:
        view = chain.view()
    except RemoteError as error:
        logger.warning("verdict: its time is not known, because the chain does not answer: {}", error)
        return
    for line in describe_outlook(block, view, incentives, hotkey=chain.hotkey, counts_from=counts_from):
        logger.info("verdict: {}", line)


def describe_outlook(
    block: int, view: ChainView, incentives: Incentives, *, hotkey: str, counts_from: int | None = None
) -> list[str]:
    """Return what is known of the verdict, in lines.

    block: from which validators can read the commitment. counts_from: the first block at which its rows can count, None
    if unknown: a dataset after another one of the hotkey may have to wait.
    """
    period = incentives.blocks_per_epoch
    # Of an unknown wait, only the present dataset's could be told.
    start = max(align(block, period), align(incentives.start_block, period), counts_from or 0)
    first = first_seed_block(start, incentives)
    last_end = seed_block(first, incentives.evaluations, period) + period

    def at(due: int) -> str:
        moment = datetime.fromtimestamp(view.timestamp + (due - view.block) * BLOCK_S, UTC)
        return f"block {due} (about {moment:%Y-%m-%d %H:%M} UTC)"

    wait = "" if counts_from is not None else "; later if it follows another dataset of yours"
    lines = [
        f"the round of {at(start)} takes the dataset{wait}",
        f"a rejection is in the validators' round files from {at(start + period)} on; pay begins after"
        f" {incentives.evaluations} evaluations, at {at(last_end)} at the earliest",
        f"from then on: subnet check --netuid {view.netuid} --hotkey {hotkey} --dataset_path FILE compares it with all"
        f" others; subnet verdict --hotkey {hotkey} --rounds SOURCE tells what a validator recorded about it, and why",
    ]
    if incentives.seeds is Seeds.CHAIN:
        lines.append(
            f"from block {first} on: subnet score --as_validator --netuid {view.netuid} --hotkey {hotkey} computes its"
            " loss under the validators' seeds"
        )
    return lines
