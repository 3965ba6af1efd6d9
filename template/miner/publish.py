"""Publish a dataset: check, commit to its digest on chain, upload, read back.

The file is uploaded once its commitment is final, and the digest is bound to the hotkey, so a copy of file or
commitment cannot rank first. Safe to repeat at any time, also after a kill. A commitment to the
same bytes is not made twice, since that would move its block and lose its rank.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from loguru import logger

from template import constants
from template.chain.protocols import MinerChain
from template.chain_records import ChainCommitment, PublishOutcome
from template.competition import CommitmentRecord, bind_digest
from template.errors import ConfigError, NotSubmittedError, RemoteError, SubmissionError
from template.miner.draft import Draft, MinerConfig, PublishResult, draft_dataset, open_journal
from template.miner.journal import Intent
from template.miner.outlook import log_outlook
from template.miner.retries import retry_wait_s
from template.miner.review import review_draft

# The chain's errors for a commit limit that is used up, which pass with time.
_TEMPORARY_ERRORS = {"SpaceLimitExceeded", "CommitmentSetRateLimitExceeded"}

Sleep = Callable[[float], object]


@dataclass(frozen=True, kw_only=True)
class CommitStrategy:
    """A way to commit, sealed or not. make_intent: the call, given the block at which its era begins."""

    is_current: Callable[[ChainCommitment | None], bool]
    make_intent: Callable[[int], Intent]
    send: Callable[[Intent], PublishOutcome]


def publish_dataset(
    config: MinerConfig, chain: MinerChain, *, confirm: Callable[[str], bool], sleep: Sleep = time.sleep
) -> PublishResult | None:
    """Check, confirm, commit, upload and read back; return None if declined.

    `confirm` is called with a description unless the file is committed already; nothing is written before.
    """
    with open_journal(config, chain) as journal:
        draft = draft_dataset(config, chain, journal)
        record, on_chain, counts_from = _find_record(draft), draft.on_chain, None
        if on_chain is not None and draft.is_current(on_chain, record):
            if config.is_dry_run:
                confirm(f"nothing new: {record} is committed since block {draft.rank_block(on_chain)}")
                return None
            logger.info("already committed block={} text={}", draft.rank_block(on_chain), record)
        else:
            draft.check_seal(None, block=chain.block())
            draft.check_repo()
            review = review_draft(draft)
            if not confirm(draft.describe(str(record), _notes(draft, record), review.lines)):
                return None
            on_chain = _commit(draft, record, sleep)
            counts_from = review.first_block(draft, on_chain.block)
        deliver(draft, record, on_chain.block, sleep)
        log_outlook(draft, on_chain.block, counts_from)
        return PublishResult(record, draft.rank_block(on_chain))


def _find_record(draft: Draft) -> CommitmentRecord:
    """Return the commitment on chain if it names this file, else a new one."""
    record = draft.config.make_record(bind_digest(draft.sha256, draft.chain.hotkey))
    try:
        earlier = CommitmentRecord.parse((draft.on_chain and draft.on_chain.text) or "")
    except SubmissionError:
        return record
    is_same_repo = (earlier.namespace, earlier.competition_id) == (record.namespace, record.competition_id)
    if not is_same_repo or not draft.is_current(draft.on_chain, earlier):
        return record
    # A sealed commitment has the sha256, and one of version 0.3 a Hub commit.
    is_ours = earlier.commit == draft.sha256 or (not earlier.is_content_addressed and draft.is_public(earlier))
    return earlier if is_ours else record


def _notes(draft: Draft, record: CommitmentRecord) -> tuple[str, ...]:
    repo = draft.config.hf_repo_id
    if draft.is_public(record):
        logger.warning("{} has this file already: others can copy it before the commitment", repo)
        return (f"{repo} has this file already: others can copy it before the commitment",)
    return (
        "the commitment shows no row, and the file is uploaded once it is final, so that no copy can be earlier;"
        f" keep this process running: validators reject the file {constants.SEAL_GRACE_BLOCKS} blocks after the"
        " commitment",
    )


def _commit(draft: Draft, record: CommitmentRecord, sleep: Sleep) -> ChainCommitment:
    """Commit and return once it is visible, which is in a final block."""
    chain = draft.chain
    draft.check_upload()
    draft.journal.save_dataset(draft.content, record.commit)
    strategy = CommitStrategy(
        is_current=lambda on_chain: draft.is_current(on_chain, record),
        make_intent=lambda block: Intent(text=str(record), block=block),
        send=lambda intent: chain.publish(intent.text, intent.block),
    )
    return ensure_committed(strategy, draft, sleep)


def ensure_committed(strategy: CommitStrategy, draft: Draft, sleep: Sleep) -> ChainCommitment:
    """Commit unless it is done, and return the commitment once it is visible.

    A call may land unseen, and a second one would lose the rank: nothing is sent while an earlier call, of this process
    or of one that was killed, may still land.
    """
    chain, journal = draft.chain, draft.journal
    while True:
        wait_s = draft.config.poll_s
        try:
            on_chain = chain.commitment(chain.hotkey)
            if on_chain is not None and strategy.is_current(on_chain):
                logger.info("committed and visible block={}", on_chain.block)
                return on_chain
            block = chain.block()
            if journal.last is None or not journal.last.may_yet_appear(block, on_chain):
                outcome = _send(strategy, draft)
                _wait_if_rejected(outcome, draft, sleep)
        except RemoteError as error:
            wait_s = retry_wait_s(wait_s, error)
            logger.warning("chain request failed, retrying in_s={:.0f}: {}", wait_s, error)
        sleep(wait_s)


def _send(strategy: CommitStrategy, draft: Draft) -> PublishOutcome:
    """Send a commitment once and record it before and after. Raises: RemoteError."""
    journal = draft.journal
    intent = strategy.make_intent(draft.chain.signing_block())
    journal.start(intent)
    logger.info("sending the commitment block={}", intent.block)
    try:
        outcome = strategy.send(intent)
    except NotSubmittedError:
        journal.finish(PublishOutcome(is_accepted=False))
        raise
    journal.finish(outcome)
    return outcome


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


def deliver(draft: Draft, record: CommitmentRecord, block: int, sleep: Sleep) -> None:
    """Upload the file and read it back, retrying until validators reject it as late.

    block: from which everyone can read the commitment.
    """
    last_block = block + constants.SEAL_GRACE_BLOCKS
    while (error := _try_to_deliver(draft, record, last_block)) is not None:
        sleep(retry_wait_s(draft.config.poll_s, error))
    draft.journal.delete_dataset(record.commit)
    logger.info("the file is public; leave it on main repo={}", draft.config.hf_repo_id)


def _try_to_deliver(draft: Draft, record: CommitmentRecord, last_block: int) -> RemoteError | None:
    """Upload the file unless it is public; return the error if another try may help."""
    blocks_left = None
    try:
        # The upload does not depend on the chain.
        with contextlib.suppress(RemoteError):
            blocks_left = last_block - draft.chain.block()
        if not draft.is_public(record):
            logger.info("uploading, to be public by block {}", last_block)
            if blocks_left is not None and blocks_left < 0:
                logger.warning("uploading {} blocks too late: validators may have rejected it", -blocks_left)
            draft.upload()
            draft.verify_public(record)
    except RemoteError as error:
        if blocks_left is not None and blocks_left < 0:
            raise
        logger.warning("upload failed, retrying blocks_left={}: {}", blocks_left, error)
        return error
    return None
