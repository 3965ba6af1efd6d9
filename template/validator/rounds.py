"""Open a round: its snapshot, queue and seeds are recorded before any work on it."""

import dataclasses
import os
from collections.abc import Container, Mapping

from loguru import logger

from template.errors import ConfigError, RemoteError
from template.records import ChainView, Entry, Round, SubmissionKey
from template.rules import schedule
from template.rules.duplicates import eligible_datasets, find_duplicates
from template.rules.entries import demote, find_entries
from template.rules.seeds import seed_block, seed_from_hash
from template.validator.config import LuckyNumFrom, ValidatorConfig
from template.validator.context import Context
from template.validator.evaluation import SubmissionEvaluator
from template.validator.submission_index import SubmissionIndex


def check_chain(context: Context, view: ChainView) -> None:
    """Check that the newest recorded round was opened on the chain of `view`.

    Raises: ConfigError on another chain, whose blocks mean nothing here; RemoteError while the node is behind.
    """
    last = context.store.last_round()
    if last is None:
        return
    if view.block < last.start_block:
        raise RemoteError(f"the node is at block {view.block}, before the start of round {last.id} of this state")
    block_hash = context.chain.block_hash(last.start_block)
    if block_hash != last.start_block_hash:
        raise ConfigError(
            f"the state {context.store.path} is of another chain: in its round {last.id} block {last.start_block} has"
            f" the hash {last.start_block_hash}, and on --subtensor.network {block_hash}; use another --state_dir"
        )


def open_round(
    context: Context,
    evaluator: SubmissionEvaluator,
    index: SubmissionIndex,
    snapshot: ChainView,
    *,
    opened_block: int,
    end_block: int,
) -> Round:
    """Record a new round on `snapshot`, whose submissions `index` has recorded."""
    store, config, submissions = context.store, context.config, index.submissions
    verdicts, datasets = store.verdicts(evaluator.eval_config), evaluator.datasets
    entries = {
        key: demote(entry, snapshot.block)
        if key not in datasets and key in submissions and submissions[key].missing_block
        else entry
        for key, entry in find_entries(snapshot, submissions, config.competition, index.commit_blocks).items()
    }
    duplicates = find_duplicates(entries, submissions, eligible_datasets(datasets, verdicts))
    queue = schedule.plan_queue(
        entries, verdicts, duplicates, datasets, evaluator.retry_states(), context.now(), config.policy
    )
    # Evaluations that started in an earlier round and belong to no round file yet.
    started = {evaluation.key for evaluation in context.executor.running()}
    started |= store.unpublished_receipts(evaluator.eval_config)
    lucky_num = _choose_seed(config, snapshot.block_hash)
    opened = store.begin_round(
        evaluator.eval_config,
        Round(
            start_block=snapshot.block,
            start_block_hash=snapshot.block_hash,
            opened_block=opened_block,
            end_block=end_block,
            lucky_num=lucky_num,
            entries=_seed_entries(
                context,
                entries,
                {key for key in queue if key not in verdicts},
                lucky_num,
                store.latest_seeds(evaluator.eval_config, started),
            ),
            queue=queue,
            lucky_num_from=config.seed_source.value,
            seed_period=config.seed_period,
        ),
        context.now(),
    )
    logger.info(
        "round {} opens blocks={}..{} entries={} queue={} lucky_num={}",
        opened.id, opened.start_block, opened.end_block, len(opened.entries), len(queue), opened.lucky_num,
    )  # fmt: skip
    return opened


def _choose_seed(config: ValidatorConfig, block_hash: str) -> int:
    if config.lucky_num is not None:
        return config.lucky_num
    if config.seed_source is LuckyNumFrom.CHAIN:
        return seed_from_hash(block_hash)
    return int.from_bytes(os.urandom(4), "little")


def _seed_entries(
    context: Context,
    entries: Mapping[SubmissionKey, Entry],
    unevaluated: Container[SubmissionKey],
    lucky_num: int,
    started: Mapping[SubmissionKey, tuple[int, int | None]],
) -> tuple[Entry, ...]:
    """Return the entries by uid, with seeds for those to be evaluated.

    An evaluation that started in an earlier round keeps its seed. A seed from the chain belongs to the submission,
    so that every validator gets the same bits whatever round the evaluation falls into.
    """
    period = context.config.seed_period
    seeds: dict[int, int] = {}
    seeded = []
    for entry in sorted(entries.values(), key=lambda entry: entry.uid):
        seed, block = started.get(entry.key, (None, None))
        if seed is None and entry.key in unevaluated:
            seed = lucky_num
            if period is not None:
                block = seed_block(entry.reveal_block, period)
                if block not in seeds:
                    seeds[block] = seed_from_hash(context.chain.block_hash(block))
                seed = seeds[block]
        seeded.append(dataclasses.replace(entry, lucky_num=seed, seed_block=block))
    return tuple(seeded)
