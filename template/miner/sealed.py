"""Sealed submissions: commit to a file's sha256 under a timelock, and upload the file once the chain has opened it.

Until the upload nothing that could be copied is readable anywhere: the text, which opens some blocks earlier, names
the file by its digest alone. See docs/miner.md for why it is done so.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from loguru import logger

from template import constants
from template.chain.client import beacon_round_at, round_time
from template.chain.protocols import MinerChain
from template.competition import CommitmentRecord
from template.errors import ConfigError, RemoteError, SubmissionError
from template.hub import datasets
from template.miner.draft import (
    Draft,
    MinerConfig,
    PublishResult,
    check_seal,
    committed_block,
    describe,
    draft_dataset,
    is_publicly_readable,
    make_record,
    open_journal,
)
from template.miner.journal import Intent, Journal
from template.miner.publish import CommitStrategy, Sleep, ensure_committed, is_current, upload
from template.records import ChainCommitment, ChainView, PublishOutcome

# Most calls are in a block, and final, after so many blocks: a seal that opens sooner would hide nothing.
MARGIN_BLOCKS = 25

# The beacon's pulse reaches the chain in a call, which is applied in a later block: what is to be open at a round's
# first block must be due some blocks before it.
SEAL_LEAD_BLOCKS = 15

# A week: a seal is of no use to anybody for longer than a round.
MAX_REVEAL_BLOCKS = 50_400

# Kept of the time after the reveal for the upload itself, and for a Hub that is away for a while.
_UPLOAD_BLOCKS = 50

_REPORT_EVERY_BLOCKS = 25
_LATE_S = 600.0


@dataclass(frozen=True)
class RevealSchedule:
    """When a seal is to open, given the newest block, and when its file is uploaded, given the block of the reveal."""

    reveal_block: Callable[[int], int]
    upload_block: Callable[[int], int]


def after_blocks(blocks: int) -> RevealSchedule:
    """Opens so many blocks from now, the file to follow at once.

    Raises: ConfigError when that is too soon to hide anything, or too late.
    """
    if not MARGIN_BLOCKS <= blocks <= MAX_REVEAL_BLOCKS:
        raise ConfigError(f"--reveal_blocks must be {MARGIN_BLOCKS} to {MAX_REVEAL_BLOCKS}, not {blocks}")
    return RevealSchedule(lambda block: block + blocks, lambda revealed: revealed)


def at_round_start(blocks_per_epoch: int) -> RevealSchedule:
    """Opens just before a multiple of `blocks_per_epoch`, where validators fix the entries of a round; uploads there.

    It is the next multiple, unless that is too near to hide anything. When a seal opens late, its file waits for the
    multiple after, so that nobody sees it a round before it counts, unless it would then come too late to be accepted.
    Raises: ConfigError.
    """
    if not 1 <= blocks_per_epoch <= MAX_REVEAL_BLOCKS:
        raise ConfigError(f"--blocks_per_epoch must be 1 to {MAX_REVEAL_BLOCKS}, not {blocks_per_epoch}")

    def round_from(block: int) -> int:
        return -(-block // blocks_per_epoch) * blocks_per_epoch

    def upload_block(revealed: int) -> int:
        start = round_from(revealed)
        return start if start <= revealed + constants.SEAL_GRACE_BLOCKS - _UPLOAD_BLOCKS else revealed

    return RevealSchedule(
        lambda block: round_from(block + MARGIN_BLOCKS + SEAL_LEAD_BLOCKS) - SEAL_LEAD_BLOCKS, upload_block
    )


def seal_dataset(
    config: MinerConfig,
    chain: MinerChain,
    *,
    schedule: RevealSchedule,
    confirm: Callable[[str], bool],
    sleep: Sleep = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> PublishResult | None:
    """Checks, asks, commits under seal, waits until the chain opens it and the file is due, uploads and reads back.

    A run after a kill goes on where that one was. Returns and raises as `template.miner.publish.publish_dataset`.
    """
    with open_journal(config, chain) as journal:
        draft = draft_dataset(config, chain)
        record = make_record(config, draft.sha256)
        check_seal(draft, journal, str(record), block=chain.block(), is_forced=config.is_forced)
        sealed = _Sealed(
            config=config,
            chain=chain,
            journal=journal,
            draft=draft,
            record=record,
            schedule=schedule,
            sleep=sleep,
            clock=clock,
        )
        if not sealed.is_committed(draft.held):
            if not confirm(sealed.describe(schedule.reveal_block(chain.block()))):
                return None
            sealed.commit()
        opened = sealed.wait()
        sealed.wait_to_upload(opened)
        sealed.deliver(opened)
        return PublishResult(record, committed_block(opened, journal.last))


@dataclass(frozen=True, kw_only=True)
class _Sealed:
    """One sealed commitment on its way."""

    config: MinerConfig
    chain: MinerChain
    journal: Journal
    draft: Draft
    record: CommitmentRecord
    schedule: RevealSchedule
    sleep: Sleep
    clock: Callable[[], float]

    def is_committed(self, held: ChainCommitment | None) -> bool:
        """True when `held` is this commitment, sealed or open."""
        if is_current(held, self.record, self.draft, self.journal):
            return True
        last = self.journal.last
        if held is None or last is None or last.text != str(self.record):
            return False
        return last.is_sealed_as(held) and held.block > self.draft.neuron.registration_block

    def describe(self, reveal_block: int) -> str:
        """What the operator is asked about. Raises: ConfigError when the repo could not be read after the reveal."""
        notes = [
            f"the text above is hidden until about block {reveal_block}, and shows no row even then",
            f"the file is uploaded at about block {self.schedule.upload_block(reveal_block)}, for which this process"
            f" must run: validators refuse it {constants.SEAL_GRACE_BLOCKS} blocks after the text opens",
        ]
        _check_repo(self.config)
        if is_publicly_readable(self.record, self.draft.content):
            warning = f"{self.config.hf_repo_id} shows this very file already, so sealing it hides nothing"
            logger.warning(warning)
            notes.append(warning)
        text = f"{self.record} (sealed)"
        return describe(self.config, self.draft, hotkey=self.chain.hotkey, text=text, notes=tuple(notes))

    def commit(self) -> None:
        """Commits under seal and returns once that is visible."""
        # An opened commitment is worth nothing without the very bytes, whatever becomes of the operator's file.
        self.journal.save_dataset(self.draft.content)

        def make_intent(block: int) -> Intent:
            view = self.chain.view()
            beacon_round = beacon_round_at(_time_of(self.schedule.reveal_block(view.block), view))
            return Intent(text=str(self.record), block=block, reveal_round=beacon_round)

        def send(intent: Intent) -> PublishOutcome:
            assert intent.reveal_round is not None
            return self.chain.publish_sealed(intent.text, intent.reveal_round)

        strategy = CommitStrategy(is_current=self.is_committed, make_intent=make_intent, send=send)
        ensure_committed(strategy, self.config, self.chain, self.journal, self.sleep)

    def wait(self) -> ChainCommitment:
        """The commitment once the chain has opened it.

        Raises: ConfigError when another commitment has taken its place, or the chain could not open it.
        """
        report_block = 0
        while True:
            try:
                held = self.chain.commitment(self.chain.hotkey)
                if held is not None and is_current(held, self.record, self.draft, self.journal):
                    return held
                self._check_still_there(held)
                if self.chain.block() >= report_block:
                    report_block = self._report()
            except RemoteError as error:
                logger.warning("will look again: {}", error)
            self.sleep(self.config.poll_s)

    def _check_still_there(self, held: ChainCommitment | None) -> None:
        last = self.journal.last
        assert last is not None
        # What is older than ours comes from a node that lags behind.
        if held is None or held.block < (last.committed_block or last.block + 1) or self.is_committed(held):
            return
        if held.text is None and held.reveal_round is None:
            raise ConfigError(f"the sealed commitment cannot be read at block {held.block}; publish again")
        raise ConfigError(f"another commitment replaced the sealed one at block {held.block}; nothing is uploaded")

    def _report(self) -> int:
        """Says how long it takes; returns the block at which to say it again."""
        view, last = self.chain.view(), self.journal.last
        assert last is not None and last.reveal_round is not None
        opens_at = round_time(last.reveal_round)
        when = f"{datetime.fromtimestamp(opens_at, UTC):%Y-%m-%d %H:%M:%S} UTC round={last.reveal_round}"
        if view.timestamp < opens_at + _LATE_S:
            logger.info("sealed, opens at {} block={}", when, view.block)
        else:
            logger.warning("sealed, and was to open at {}: the chain is late block={}", when, view.block)
        return view.block + _REPORT_EVERY_BLOCKS

    def wait_to_upload(self, opened: ChainCommitment) -> None:
        """Returns at the block at which the file is to be uploaded; by the clock while the chain does not answer."""
        due = self.schedule.upload_block(opened.block)
        logger.info("opened in block={}: the file is uploaded at block {}", opened.block, due)
        block, seen_at = opened.block, self.clock()
        while True:
            try:
                block, seen_at = self.chain.block(), self.clock()
            except RemoteError as error:
                logger.warning("will look again: {}", error)
            if block + (self.clock() - seen_at) / constants.BLOCK_S >= due:
                return
            self.sleep(self.config.poll_s)

    def deliver(self, opened: ChainCommitment) -> None:
        """Puts the file on the Hub, where everyone can read it back, trying again until it is too late.

        Raises: RemoteError after that; HostError when the token may not write there.
        """
        due = opened.block + constants.SEAL_GRACE_BLOCKS
        logger.info("the file must be on the Hub by block {}", due)
        while not self._is_delivered(due):
            self.sleep(self.config.poll_s)
        self.journal.delete_dataset(self.draft.content)

    def _is_delivered(self, due: int) -> bool:
        left = None
        try:
            # The upload does not depend on the chain being there.
            with contextlib.suppress(RemoteError):
                left = due - self.chain.block()
            if not is_publicly_readable(self.record, self.draft.content):
                _log_time_left(left)
                upload(self.config, self.record, self.draft.content)
        except RemoteError as error:
            if left is not None and left < 0:
                raise
            logger.warning("will try again: {}", error)
            return False
        logger.info("{} gives everyone the file; it must stay on main", self.config.hf_repo_id)
        return True


def _log_time_left(left: int | None) -> None:
    if left is None:
        logger.warning("uploading; the chain does not tell how much time is left")
    elif left < 0:
        logger.warning("uploading {} blocks too late: validators may have refused the commitment already", -left)
    else:
        logger.info("uploading, blocks_left={} minutes_left={}", left, left * constants.BLOCK_S // 60)


def _time_of(block: int, view: ChainView) -> float:
    """When a block is to come, in POSIX seconds."""
    return view.timestamp + (block - view.block) * constants.BLOCK_S


def _check_repo(config: MinerConfig) -> None:
    """Raises: ConfigError when the repo is for its owner's eyes only, which would else show after the reveal."""
    try:
        datasets.resolve_revision(config.hf_repo_id, token=config.hub_token)
    except SubmissionError:
        return
    try:
        datasets.resolve_revision(config.hf_repo_id, token=None)
    except SubmissionError as error:
        raise ConfigError(f"--hf_repo_id {config.hf_repo_id} must be public, as its file must be later") from error
