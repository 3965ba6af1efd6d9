"""Publish a dataset: check, upload, read back, commit on chain.

Safe to repeat at any time, also after a kill. A commitment to the same bytes is not made twice, since that would move
its block and lose its rank.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from loguru import logger

from template.chain.protocols import MinerChain
from template.competition import CommitmentRecord
from template.errors import ConfigError, RemoteError, SubmissionError
from template.miner.draft import Draft, MinerConfig, PublishResult, draft_dataset, open_journal
from template.miner.journal import Intent
from template.records import ChainCommitment, PublishOutcome

# The chain's errors for a commit limit that is used up, which pass with time.
_TEMPORARY_ERRORS = {"SpaceLimitExceeded", "CommitmentSetRateLimitExceeded"}

Sleep = Callable[[float], object]


@dataclass(frozen=True, kw_only=True)
class CommitStrategy:
    """A way to commit, sealed or not. make_intent: the call, given the newest block."""

    is_current: Callable[[ChainCommitment | None], bool]
    make_intent: Callable[[int], Intent]
    send: Callable[[Intent], PublishOutcome]


def publish_dataset(
    config: MinerConfig, chain: MinerChain, *, confirm: Callable[[str], bool], sleep: Sleep = time.sleep
) -> PublishResult | None:
    """Check, confirm, upload, read back and commit; return None if declined.

    `confirm` is called with a description unless the file is committed already; nothing is written before.
    """
    with open_journal(config, chain) as journal:
        draft = draft_dataset(config, chain, journal)
        record = _find_record(draft)
        if record is not None and draft.is_current(draft.on_chain, record):
            return _complete(draft, record)
        record = None if record is None or record.is_content_addressed else record
        draft.check_seal(None, block=chain.block())
        text = str(record or f"{config.hf_repo_id}:{config.competition.id}:(the Hub commit of the upload)")
        if not confirm(draft.describe(text)):
            return None
        final = record or config.make_record(draft.upload())
        draft.verify_public(final)
        strategy = CommitStrategy(
            is_current=lambda on_chain: draft.is_current(on_chain, final),
            make_intent=lambda block: Intent(text=str(final), block=block),
            send=lambda intent: chain.publish(intent.text),
        )
        return PublishResult(final, ensure_committed(strategy, draft, sleep).block)


def _find_record(draft: Draft) -> CommitmentRecord | None:
    """Return a commitment made or begun for these bytes, which needs no new upload."""
    config, last = draft.config, draft.journal.last
    texts = [draft.on_chain.text if draft.on_chain is not None else None]
    texts += [last.text] if last is not None and last.reveal_round is None else []
    for text in texts:
        try:
            record = CommitmentRecord.parse(text or "")
        except SubmissionError:
            continue
        if (record.namespace, record.competition_id) != (config.hf_repo_id, config.competition.id):
            continue
        if record.commit == draft.sha256 or (not record.is_content_addressed and draft.is_public(record)):
            return record
    return None


def _complete(draft: Draft, record: CommitmentRecord) -> PublishResult:
    """Return a commitment already on chain; upload its file if that is missing."""
    assert draft.on_chain is not None
    if not draft.is_public(record):
        draft.upload()
        draft.verify_public(record)
    block = draft.rank_block(draft.on_chain)
    logger.info("already committed block={} text={}", block, record)
    return PublishResult(record, block)


def ensure_committed(strategy: CommitStrategy, draft: Draft, sleep: Sleep) -> ChainCommitment:
    """Commit unless it is done, and return the commitment once it is visible.

    A call may land unseen, and a second one would lose the rank: nothing is sent while an earlier call, of this process
    or of one that was killed, may still land.
    """
    chain, journal = draft.chain, draft.journal
    while True:
        try:
            on_chain = chain.commitment(chain.hotkey)
            if on_chain is not None and strategy.is_current(on_chain):
                logger.info("committed and visible block={}", on_chain.block)
                return on_chain
            block = chain.block()
            if journal.last is None or not journal.last.may_yet_appear(block, on_chain):
                intent = strategy.make_intent(block)
                journal.start(intent)
                logger.info("sending the commitment block={}", block)
                outcome = strategy.send(intent)
                journal.finish(outcome)
                _wait_if_rejected(outcome, draft, sleep)
        except RemoteError as error:
            logger.warning("chain request failed, retrying: {}", error)
        sleep(draft.config.poll_s)


def _wait_if_rejected(outcome: PublishOutcome, draft: Draft, sleep: Sleep) -> None:
    """Wait until a rejected call may be repeated; raise if it never may."""
    if outcome.is_accepted:
        logger.info("commitment included block={}", outcome.block)
        return
    if outcome.error not in _TEMPORARY_ERRORS:
        raise ConfigError(f"the chain rejected the commitment: {outcome.error}: {outcome.message}")
    blocks = outcome.retry_after_blocks or 1
    logger.warning("commit limit reached, waiting blocks={}: {}", blocks, outcome.message)
    end = draft.chain.block() + blocks
    while draft.chain.block() < end:
        sleep(draft.config.poll_s)
