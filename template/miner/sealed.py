"""Commit to a file's sha256 under a timelock; upload it after the reveal.

Until the upload nothing that could be copied is public: the text, revealed some blocks earlier, has only the digest.
docs/miner.md explains why.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from loguru import logger

from template import constants
from template.chain.client import beacon_round_at, round_time
from template.chain.protocols import MinerChain
from template.chain_records import ChainCommitment, PublishOutcome
from template.competition import CommitmentRecord
from template.errors import ConfigError, RemoteError
from template.miner.draft import Draft, MinerConfig, PublishResult, draft_dataset, open_journal
from template.miner.journal import Intent
from template.miner.outlook import log_outlook
from template.miner.publish import CommitStrategy, Sleep, deliver, ensure_committed
from template.miner.retries import retry_wait_s
from template.miner.review import review_draft
from template.rules.stands import align

# Most calls are in a final block after so many blocks; a seal that opens sooner would hide nothing.
MARGIN_BLOCKS = 25

# The beacon's pulse reaches the chain in a call of its own, so a commitment that must be revealed at a round's first
# block is due some blocks earlier.
SEAL_LEAD_BLOCKS = 15

# A week: longer than any round.
MAX_REVEAL_BLOCKS = 50_400

# Reserved for the upload, and for an outage of the Hub, out of the blocks in which validators accept a late file.
_UPLOAD_BLOCKS = 50

_REPORT_EVERY_BLOCKS = 25
_LATE_S = 600.0


@dataclass(frozen=True)
class RevealSchedule:
    """Reveal block by the newest block, and upload block by the actual reveal block."""

    reveal_block: Callable[[int], int]
    upload_block: Callable[[int], int]


def after_blocks(blocks: int) -> RevealSchedule:
    """Reveal so many blocks from now and upload at once."""
    if not MARGIN_BLOCKS <= blocks <= MAX_REVEAL_BLOCKS:
        raise ConfigError(f"--reveal_blocks must be {MARGIN_BLOCKS} to {MAX_REVEAL_BLOCKS}, not {blocks}")
    return RevealSchedule(lambda block: block + blocks, lambda revealed: revealed)


def at_round_start(blocks_per_epoch: int) -> RevealSchedule:
    """Reveal just before a multiple of `blocks_per_epoch`, and upload at it.

    It is the next multiple unless that is too near to hide anything. After a late reveal the upload waits for the
    following multiple, so that the file is not public a round early, unless validators would then reject it as late.
    """
    if not 1 <= blocks_per_epoch <= MAX_REVEAL_BLOCKS:
        raise ConfigError(f"--blocks_per_epoch must be 1 to {MAX_REVEAL_BLOCKS}, not {blocks_per_epoch}")

    def reveal_block(block: int) -> int:
        return align(block + MARGIN_BLOCKS + SEAL_LEAD_BLOCKS, blocks_per_epoch) - SEAL_LEAD_BLOCKS

    def upload_block(revealed: int) -> int:
        start = align(revealed, blocks_per_epoch)
        return start if start <= revealed + constants.SEAL_GRACE_BLOCKS - _UPLOAD_BLOCKS else revealed

    return RevealSchedule(reveal_block, upload_block)


def seal_dataset(
    config: MinerConfig,
    chain: MinerChain,
    *,
    schedule: RevealSchedule,
    confirm: Callable[[str], bool],
    sleep: Sleep = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> PublishResult | None:
    """Check, confirm, commit sealed, wait for the reveal, upload and read back.

    After a kill a repeated run continues. Returns like `template.miner.publish.publish_dataset`.
    """
    with open_journal(config, chain) as journal:
        draft = draft_dataset(config, chain, journal)
        record = config.make_record(draft.sha256)
        draft.check_seal(str(record), block=chain.block())
        sealed = _Sealed(draft, record, schedule, sleep, clock)
        counts_from = None
        if not sealed.is_committed(draft.on_chain):
            review = review_draft(draft)
            if not confirm(sealed.describe(schedule.reveal_block(chain.block()), review.lines)):
                return None
            counts_from = review.first_block(draft, sealed.commit().block)
        elif config.is_dry_run:
            confirm(f"nothing new: {record} is committed, sealed")
            return None
        revealed = sealed.wait_for_reveal(counts_from)
        sealed.wait_for_upload_block(revealed)
        deliver(draft, record, revealed.block, sleep)
        log_outlook(draft, revealed.block, counts_from)
        return PublishResult(record, draft.rank_block(revealed))


@dataclass(frozen=True)
class _Sealed:
    draft: Draft
    record: CommitmentRecord
    schedule: RevealSchedule
    sleep: Sleep
    clock: Callable[[], float]

    def is_committed(self, on_chain: ChainCommitment | None) -> bool:
        """Return whether `on_chain` is this commitment, sealed or revealed."""
        if self.draft.is_current(on_chain, self.record):
            return True
        last = self.draft.journal.last
        if on_chain is None or last is None or last.text != str(self.record):
            return False
        return last.is_sealed_as(on_chain) and on_chain.block > self.draft.neuron.registration_block

    def describe(self, reveal_block: int, compared: Sequence[str]) -> str:
        """Return the text to confirm; reject a private repo."""
        repo = self.draft.config.hf_repo_id
        notes = [
            f"the commitment is hidden until about block {reveal_block}, and shows no row even then",
            f"the file is uploaded at about block {self.schedule.upload_block(reveal_block)}; keep this process"
            f" running: validators reject the file {constants.SEAL_GRACE_BLOCKS} blocks after the reveal",
        ]
        self.draft.check_repo()
        if self.draft.is_public(self.record):
            notes.append(f"{repo} has this file already, so sealing hides nothing")
            logger.warning(notes[-1])
        return self.draft.describe(f"{self.record} (sealed)", tuple(notes), compared)

    def commit(self) -> ChainCommitment:
        """Commit under seal and return once it is visible."""
        chain = self.draft.chain
        self.draft.check_upload()
        # A revealed commitment is worthless without these bytes, even if the user's file is lost.
        self.draft.journal.save_dataset(self.draft.content, self.draft.sha256)

        def make_intent(block: int) -> Intent:
            view = chain.view()
            reveal_time = view.timestamp + (self.schedule.reveal_block(view.block) - view.block) * constants.BLOCK_S
            return Intent(text=str(self.record), block=block, reveal_round=beacon_round_at(reveal_time))

        def send(intent: Intent) -> PublishOutcome:
            assert intent.reveal_round is not None
            return chain.publish_sealed(intent.text, intent.reveal_round, intent.block)

        strategy = CommitStrategy(is_current=self.is_committed, make_intent=make_intent, send=send)
        return ensure_committed(strategy, self.draft, self.sleep)

    def wait_for_reveal(self, counts_from: int | None) -> ChainCommitment:
        """Return the revealed commitment; raise if it was replaced or not revealed."""
        chain = self.draft.chain
        report_block = 0
        self._log_outlook(counts_from)
        while True:
            wait_s = self.draft.config.poll_s
            try:
                on_chain = chain.commitment(chain.hotkey)
                if on_chain is not None and self.draft.is_current(on_chain, self.record):
                    return on_chain
                self._check_unreplaced(on_chain)
                if chain.block() >= report_block:
                    report_block = self._log_waiting() + _REPORT_EVERY_BLOCKS
            except RemoteError as error:
                wait_s = retry_wait_s(wait_s, error)
                logger.warning("chain request failed, retrying in_s={:.0f}: {}", wait_s, error)
            self.sleep(wait_s)

    def _log_outlook(self, counts_from: int | None) -> None:
        """Log the expected time of the verdict, while the reveal is to come."""
        last = self.draft.journal.last
        if last is None or last.reveal_round is None:
            return  # revealed, and the journal is lost
        try:
            view = self.draft.chain.view()
        except RemoteError:
            return  # the wait for the reveal reports it
        seconds = round_time(last.reveal_round) - view.timestamp
        if seconds > 0:
            log_outlook(self.draft, view.block + math.ceil(seconds / constants.BLOCK_S), counts_from)

    def _check_unreplaced(self, on_chain: ChainCommitment | None) -> None:
        last = self.draft.journal.last
        assert last is not None
        # An older commitment comes from a node that lags behind.
        is_older = on_chain is None or on_chain.block < (last.committed_block or last.block + 1)
        if on_chain is None or is_older or self.is_committed(on_chain):
            return
        if on_chain.text is None and on_chain.reveal_round is None:
            raise ConfigError(f"the chain could not reveal the commitment of block {on_chain.block}; publish again")
        raise ConfigError(f"another commitment replaced the sealed one in block {on_chain.block}; nothing is uploaded")

    def _log_waiting(self) -> int:
        """Log the expected time of the reveal and return the newest block."""
        view, last = self.draft.chain.view(), self.draft.journal.last
        assert last is not None and last.reveal_round is not None
        due = round_time(last.reveal_round)
        when = f"{datetime.fromtimestamp(due, UTC):%Y-%m-%d %H:%M:%S} UTC round={last.reveal_round} block={view.block}"
        if view.timestamp < due + _LATE_S:
            logger.info("sealed, opens at {}", when)
        else:
            logger.warning("sealed, but the chain's reveal is late: due at {}", when)
        return view.block

    def wait_for_upload_block(self, revealed: ChainCommitment) -> None:
        """Return at the upload block, or by the clock while the chain does not answer."""
        due = self.schedule.upload_block(revealed.block)
        logger.info("revealed block={} upload_block={}", revealed.block, due)
        block, read_at = revealed.block, self.clock()
        while True:
            wait_s = self.draft.config.poll_s
            try:
                block, read_at = self.draft.chain.block(), self.clock()
            except RemoteError as error:
                wait_s = retry_wait_s(wait_s, error)
                logger.warning("chain request failed, retrying in_s={:.0f}: {}", wait_s, error)
            if block + (self.clock() - read_at) / constants.BLOCK_S >= due:
                return
            self.sleep(wait_s)
