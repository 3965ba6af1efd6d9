"""Open a round at an aligned block, and plan its evaluations.

Both are recorded before the work on them starts, so that a restart continues with the same round and plan.
"""

import dataclasses
import os
from collections.abc import Mapping
from functools import partial

from loguru import logger

from template.chain_records import ChainSnapshot, ChainView
from template.errors import ConfigError, RemoteError
from template.records import Confirmed, ContentKey, Round, RoundEvaluation
from template.rules import schedule
from template.rules.entries import MISSING, CommitBlocks, find_entries, keep_sealed
from template.rules.evaluations import PlannedEvaluation, derive_seed, newcomer_blocks, plan_evaluations
from template.rules.stands import extend_stands, stands_at
from template.rules.table import Inputs, Table, make_table
from template.validator.availability import long_absent
from template.validator.config import LuckyNumFrom
from template.validator.context import Context
from template.validator.evaluation import SubmissionEvaluator


def season_block(context: Context, evaluator: SubmissionEvaluator) -> int:
    """Return the start of the season.

    That is the competition's season_block, or the first round if it is later.
    """
    return max(context.store.first_start_block(evaluator.eval_config), context.config.incentives.season_block)


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
    commit_blocks: CommitBlocks,
    snapshot: ChainSnapshot,
    *,
    opened_block: int,
    end_block: int,
) -> Round:
    """Record a new round on `snapshot`, whose commit blocks are known."""
    store, config = context.store, context.config
    stands, period = store.stands(), config.incentives.blocks_per_epoch
    # A new season can read past rounds again, when newer stands are known.
    past = {hotkey: stands_at(own, snapshot.block) for hotkey, own in stands.items()}
    newest = {hotkey: own[-1] for hotkey, own in past.items() if own}
    entries = {
        **find_entries(snapshot, config.competition, commit_blocks),
        **keep_sealed(snapshot, newest, config.competition, period),
    }
    verdicts = store.verdicts(evaluator.eval_config)
    if all(stand.last_block < snapshot.block for own in stands.values() for stand in own):
        missing = {key for key in entries if key in verdicts and verdicts[key].reason in MISSING}
        missing |= long_absent(context)
        extended = extend_stands(
            newest, entries.values(), snapshot.block, period, missing=missing, datasets=evaluator.datasets
        )
        store.record_stands(
            dataclasses.replace(stand, missing_block=max(stand.missing_block, context.history.missing_block(stand.key)))
            for stand in extended
        )
    queue = schedule.plan_queue(
        entries,
        verdicts,
        evaluator.datasets,
        evaluator.retry_states(),
        context.now(),
        config.policy,
    )
    opened = store.begin_round(
        evaluator.eval_config,
        Round(
            start_block=snapshot.block,
            start_block_hash=snapshot.block_hash,
            opened_block=opened_block,
            end_block=end_block,
            entries=tuple(sorted(entries.values(), key=lambda entry: entry.uid)),
            queue=queue,
            lucky_num_from=config.seed_source.value,
        ),
        context.now(),
    )
    evaluator.block_hashes[opened.start_block] = opened.start_block_hash
    if opened.is_past:
        behind = (opened_block - snapshot.block) // period
        logger.warning("catching up: {} rounds behind; only shares of earlier rounds are submitted until then", behind)
    logger.info(
        "round {} opens blocks={}..{} entries={} downloads={}",
        opened.id, opened.start_block, opened.end_block, len(opened.entries), len(queue),
    )  # fmt: skip
    return opened


def read_block_hash(context: Context, evaluator: SubmissionEvaluator, block: int) -> str:
    """Return the hash of a final block, cached. Raises: RemoteError."""
    if block not in evaluator.block_hashes:
        evaluator.block_hashes[block] = context.chain.block_hash(block)
    return evaluator.block_hashes[block]


def read_table(context: Context, evaluator: SubmissionEvaluator, current: Round) -> Table:
    """Make the table of a round from the present stands, datasets and losses.

    Raises:
        RemoteError: If the hash of a block cannot be read.
    """
    store, config = context.store, context.config
    inputs = Inputs(
        block=current.start_block,
        competition=config.competition,
        incentives=config.incentives,
        entries=current.by_key,
        stands=store.stands(),
        datasets=evaluator.datasets,
        losses=evaluator.losses,
        confirmed=evaluator.confirmed,
        rejected=store.verdicts(evaluator.eval_config),
        block_hash=partial(read_block_hash, context, evaluator),
    )
    return make_table(inputs)


def update_table(context: Context, evaluator: SubmissionEvaluator, current: Round) -> Table:
    """Make the table, and record the datasets that are now confirmed.

    Their rank is final.
    """
    table = read_table(context, evaluator, current)
    rows = {content.key: evaluator.datasets[key].row_keys for key, content in table.present.items()}
    new = {
        row.content.key: Confirmed(
            rank=row.content.rank,
            registration_block=row.content.registration_block,
            row_keys=rows[row.content.key],
            public=row.content.public,
        )
        for row in table.ledger
        if row.content.key not in evaluator.confirmed
    }
    if new:
        context.store.record_confirmed(evaluator.eval_config, new, context.now())
        evaluator.confirmed.update(new)
    return table


def plan_round(context: Context, evaluator: SubmissionEvaluator, current: Round) -> Round:
    """Record the round's evaluations with their seeds."""
    store, config = context.store, context.config
    table = update_table(context, evaluator, current)
    recent_blocks = newcomer_blocks(len(current.entries), config.incentives)
    recent = store.recent_runs(evaluator.eval_config, after_block=current.start_block - recent_blocks)
    planned = plan_evaluations(
        table.originals, table.ledger, recent, current.start_block, config.competition, config.incentives
    )
    keys = {content.key: key for key, content in table.present.items()}
    drawn = {}
    if config.seed_source is LuckyNumFrom.RANDOM:
        drawn = {**context.history.seeds, **store.drawn_seeds(evaluator.eval_config)}
    evaluations = []
    for run in planned:
        lucky_num, block = _choose_seed(context, evaluator, drawn, run)
        evaluations.append(
            RoundEvaluation(
                key=keys[run.content.key],
                digest=run.content.key.digest,
                number=run.number,
                lucky_num=lucky_num,
                seed_block=block,
            )
        )
    current = dataclasses.replace(current, evaluations=tuple(evaluations))
    store.record_plan(current)
    logger.info("round {} has {} evaluations of {} datasets", current.id, len(planned), len(table.originals))
    return current


def adopt_results(context: Context, evaluator: SubmissionEvaluator, current: Round, model: str) -> None:
    """Record the losses of a missed round from the files of --bootstrap_rounds.

    The round's other evaluations run on this machine.
    """
    results = {run: context.history.result(run, model) for run in current.evaluations or ()}
    adopted = 0
    for run, result in results.items():
        if result is not None and len(evaluator.losses.get(run.content, ())) + 1 == run.number:
            evaluator.record(run, result)
            adopted += 1
    models = context.history.models
    if models and results:
        logger.info("round {}: {} of {} losses are from --bootstrap_rounds", current.id, adopted, len(results))
    if models and model not in models:
        logger.warning("losses of --bootstrap_rounds are of {}, here of {}: datasets are evaluated here", models, model)


def _choose_seed(
    context: Context,
    evaluator: SubmissionEvaluator,
    drawn: Mapping[tuple[ContentKey, int], int],
    planned: PlannedEvaluation,
) -> tuple[int, int | None]:
    """Return the seed of an evaluation, and the block that it comes from.

    An evaluation that is planned again keeps its first seed.
    """
    config = context.config
    if config.lucky_num is not None:
        return config.lucky_num, None
    if config.seed_source is LuckyNumFrom.CHAIN:
        block_hash = read_block_hash(context, evaluator, planned.seed_block)
        return derive_seed(block_hash, planned.content.key.digest, planned.number), planned.seed_block
    seed = drawn.get((planned.content.key, planned.number))
    return int.from_bytes(os.urandom(4), "little") if seed is None else seed, None
