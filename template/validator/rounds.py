"""Opening a round: its snapshot, queue and seeds, all recorded before any work on it."""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping

from loguru import logger

from template.chain.protocols import ValidatorChain
from template.errors import ConfigError, RemoteError
from template.records import ChainView, Entry, Round, Submission, SubmissionKey
from template.rules import duplicates, schedule
from template.rules.entries import CommitBlocks, demote, find_entries
from template.rules.seeds import seed_block, seed_from_hash
from template.store.store import Store
from template.validator.config import LuckyNumFrom, ValidatorConfig
from template.validator.evaluation import SubmissionEvaluator


class RoundOpener:
    """Opens the rounds of one validator."""

    def __init__(
        self, config: ValidatorConfig, *, chain: ValidatorChain, store: Store, now: Callable[[], float]
    ) -> None:
        self._config = config
        self._chain = chain
        self._store = store
        self._now = now

    def check_chain(self, view: ChainView) -> None:
        """Raises: ConfigError when the newest round was opened on another chain than `view` is of.

        Blocks of two chains say nothing of each other: ranks, seeds and weights would be made of both. RemoteError when
        that cannot be told yet.
        """
        last = self._store.last_round()
        if last is None:
            return
        if view.block < last.start_block:
            raise RemoteError(f"the node is at block {view.block}, before the start of round {last.id} of this state")
        found = self._chain.block_hash(last.start_block)
        if found != last.start_block_hash:
            raise ConfigError(
                f"the state {self._store.path} is of another chain: in its round {last.id} block {last.start_block}"
                f" has the hash {last.start_block_hash}, and on --subtensor.network {found}; give another --state_dir"
            )

    def open(
        self,
        judge: SubmissionEvaluator,
        snapshot: ChainView,
        running: Collection[SubmissionKey],
        seen: Mapping[SubmissionKey, Submission],
        commit_blocks: CommitBlocks,
        *,
        opened_block: int,
        end_block: int,
    ) -> Round:
        """A new round on `snapshot`. running: what is being scored now. seen, openings: all that was recorded."""
        store, config = self._store, self._config
        verdicts, attempts = store.verdicts(judge.eval_config), judge.retry_states()
        entries = find_entries(snapshot, seen, config.competition, commit_blocks)
        entries = {
            key: entry
            if key in judge.datasets or not (key in seen and seen[key].missing_block)
            else demote(entry, snapshot.block)
            for key, entry in entries.items()
        }
        copies = duplicates.find_duplicates(entries, seen, duplicates.eligible_datasets(judge.datasets, verdicts))
        queue = schedule.plan_queue(entries, verdicts, copies, judge.datasets, attempts, self._now(), config.policy)
        # What was begun in an earlier round and is told of in this one or later.
        begun = store.latest_seeds(judge.eval_config, store.unpublished_receipts(judge.eval_config).union(running))
        unscored = frozenset(key for key in queue if key not in verdicts)
        lucky_num = self._choose_seed(snapshot.block_hash)
        opened = Round(
            start_block=snapshot.block,
            start_block_hash=snapshot.block_hash,
            opened_block=opened_block,
            end_block=end_block,
            lucky_num=lucky_num,
            entries=self._seed_entries(entries, unscored, lucky_num, begun),
            queue=queue,
            lucky_num_from=config.seed_source,
            seed_period=config.seed_period,
        )
        opened = store.begin_round(judge.eval_config, opened, self._now())
        logger.info(
            "round {} opens blocks={}..{} entries={} queue={} lucky_num={}",
            opened.id, opened.start_block, opened.end_block, len(opened.entries), len(queue), opened.lucky_num,
        )  # fmt: skip
        return opened

    def _choose_seed(self, block_hash: str) -> int:
        """The seed of a round that starts with the block of this hash."""
        if self._config.lucky_num is not None:
            return self._config.lucky_num
        if self._config.seed_source is LuckyNumFrom.CHAIN:
            return seed_from_hash(block_hash)
        return int.from_bytes(os.urandom(4), "little")

    def _seed_entries(
        self,
        entries: Mapping[SubmissionKey, Entry],
        unscored: frozenset[SubmissionKey],
        lucky_num: int,
        begun: Mapping[SubmissionKey, tuple[int, int | None]],
    ) -> tuple[Entry, ...]:
        """Return the snapshot's entries by uid, with seeds for those that may be evaluated.

        An evaluation that began in an earlier round keeps its seed. A seed from the chain belongs to the submission,
        so that every validator gets the same bits whatever round the evaluation falls into.
        """
        period = self._config.seed_period
        seeds: dict[int, int] = {}
        seeded = []
        for entry in sorted(entries.values(), key=lambda entry: entry.uid):
            seed, block = begun.get(entry.key, (None, None))
            if seed is None and entry.key in unscored:
                if period is None:
                    seed = lucky_num
                else:
                    block = seed_block(entry.reveal_block, period)
                    if block not in seeds:
                        seeds[block] = seed_from_hash(self._chain.block_hash(block))
                    seed = seeds[block]
            seeded.append(dataclasses.replace(entry, lucky_num=seed, seed_block=block))
        return tuple(seeded)
