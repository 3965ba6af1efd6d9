"""Opening a round: its snapshot, queue and seeds, all recorded before any work on it."""

import os
from collections.abc import Callable, Collection, Mapping

from loguru import logger

from template import schedule, standing
from template.judging import Judge
from template.records import ChainView
from template.seeds import seed_block, seed_from_hash
from template.standing import Entrant
from template.state import Round, RoundEntry, Submission, SubmissionKey
from template.store import Store
from template.validator_config import ChainSeam, LuckyNumFrom, ValidatorConfig


class Opener:
    """Opens the rounds of one validator."""

    def __init__(self, config: ValidatorConfig, *, chain: ChainSeam, store: Store, now: Callable[[], float]) -> None:
        self._config = config
        self._chain = chain
        self._store = store
        self._now = now

    def open(
        self,
        judge: Judge,
        snapshot: ChainView,
        running: Collection[SubmissionKey],
        seen: Mapping[SubmissionKey, Submission],
        *,
        opened_block: int,
        end_block: int,
    ) -> Round:
        """A new round on `snapshot`. running: what is being scored now. seen: every submission ever recorded."""
        store, config = self._store, self._config
        entrants = standing.find_entrants(snapshot, seen, config.competition)
        copies = standing.find_copies(entrants, seen, judge.datasets)
        verdicts, attempts = store.verdicts(judge.contest), store.attempts(judge.contest)
        queue = schedule.plan_queue(entrants, verdicts, copies, attempts, self._now(), config.policy)
        # What was begun in an earlier round and is told of in this one or later.
        begun = store.unpublished(judge.contest).union(running)
        before = store.last_round() if begun else None
        under_way = {entry.key: entry for entry in before.entries if entry.key in begun} if before else {}
        lucky_num = self._choose_seed(snapshot.block_hash)
        opened = Round(
            start_block=snapshot.block,
            start_block_hash=snapshot.block_hash,
            opened_block=opened_block,
            end_block=end_block,
            lucky_num=lucky_num,
            entries=self._seed_entries(entrants, frozenset(queue), lucky_num, under_way),
            queue=queue,
        )
        opened = store.begin_round(judge.contest, opened, self._now())
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
        entrants: Mapping[SubmissionKey, Entrant],
        queue: frozenset[SubmissionKey],
        lucky_num: int,
        under_way: Mapping[SubmissionKey, RoundEntry],
    ) -> tuple[RoundEntry, ...]:
        """The snapshot's entries by uid, with seeds for those whose turn it is; what is under way keeps its own.

        A seed from the chain belongs to the submission and not to the round in which its turn came, so that whoever
        scores it later, in another round, gets the same bits.
        """
        period = self._config.seed_period
        seeds: dict[int, int] = {}
        entries = []
        for entrant in sorted(entrants.values(), key=lambda one: one.uid):
            block, seed = None, None
            if (started := under_way.get(entrant.key)) is not None:
                block, seed = started.seed_block, started.lucky_num
            elif entrant.key in queue and period is None:
                seed = lucky_num
            elif entrant.key in queue and period is not None:
                block = seed_block(entrant.block, period)
                if block not in seeds:
                    seeds[block] = seed_from_hash(self._chain.block_hash(block))
                seed = seeds[block]
            entries.append(entrant.to_entry(lucky_num=seed, seed_block=block))
        return tuple(entries)
