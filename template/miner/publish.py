"""The miner: check a dataset as a validator would, upload it, read it back, and commit it on chain.

Safe to run again at any time, also after a kill: a commitment that leads to the same bytes is not made twice, because
making it again would move its block and lose its place in line.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from loguru import logger

from template.chain.protocols import MinerChain
from template.competition import CommitmentRecord
from template.errors import ConfigError, HostError, RemoteError, SubmissionError
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
from template.records import ChainCommitment, PublishOutcome

# Refusals that pass with time: the chain's names for a commit limit that is used up.
_PATIENT_ERRORS = {"SpaceLimitExceeded", "CommitmentSetRateLimitExceeded"}

Sleep = Callable[[float], object]


def publish_dataset(
    config: MinerConfig, chain: MinerChain, *, confirm: Callable[[str], bool], sleep: Sleep = time.sleep
) -> PublishResult | None:
    """Checks, asks, uploads, reads back, commits and waits; returns what is visible on chain.

    confirm: shown what is about to be published, says whether to. When it says no, the answer is None and nothing was
    written anywhere. It is not asked when the file is committed already.
    Raises: SubmissionError when a validator would refuse the file; ConfigError when the hotkey is not registered, a
    sealed commitment stands, or the chain refuses for another lasting reason; RemoteError when the Hub does not
    answer; HostError.
    """
    with open_journal(config, chain) as journal:
        draft = draft_dataset(config, chain)
        record = _find_record(config, draft, journal)
        if record is not None and is_current(draft.held, record, draft, journal):
            return _stand(config, record, draft, journal)
        record = None if record is None or record.is_content_addressed else record
        check_seal(draft, journal, None, block=chain.block(), is_forced=config.is_forced)
        text = str(record or f"{config.hf_repo_id}:{config.competition.id}:(the Hub commit of the upload)")
        if not confirm(describe(config, draft, hotkey=chain.hotkey, text=text)):
            return None
        final = record or make_record(
            config, datasets.upload_dataset(draft.content, config.hf_repo_id, token=config.hub_token)
        )
        verify_public(config, final, draft.content)
        strategy = CommitStrategy(
            is_current=lambda held: is_current(held, final, draft, journal),
            make_intent=lambda block: Intent(text=str(final), block=block),
            send=lambda intent: chain.publish(intent.text),
        )
        return PublishResult(final, ensure_committed(strategy, config, chain, journal, sleep).block)


def _find_record(config: MinerConfig, draft: Draft, journal: Journal) -> CommitmentRecord | None:
    """A commitment that was made or begun for these very bytes, so that nothing need be uploaded for it."""
    texts = [draft.held.text if draft.held is not None else None]
    if journal.last is not None and journal.last.reveal_round is None:
        texts.append(journal.last.text)
    for text in texts:
        try:
            record = CommitmentRecord.parse(text or "")
        except SubmissionError:
            continue
        if (record.namespace, record.competition_id) != (config.hf_repo_id, config.competition.id):
            continue
        if record.commit == draft.sha256 or (
            not record.is_content_addressed and is_publicly_readable(record, draft.content)
        ):
            return record
    return None


def is_current(held: ChainCommitment | None, record: CommitmentRecord, draft: Draft, journal: Journal) -> bool:
    """True when `held` is this commitment in readable form, made since the registration, without which it is void."""
    if held is None or held.text != str(record):
        return False
    return committed_block(held, journal.last) > draft.neuron.registration_block


def _stand(config: MinerConfig, record: CommitmentRecord, draft: Draft, journal: Journal) -> PublishResult:
    """The commitment that stands already, its file put where it says if it is not there."""
    assert draft.held is not None
    if not is_publicly_readable(record, draft.content):
        upload(config, record, draft.content)
    block = committed_block(draft.held, journal.last)
    logger.info("the commitment is on chain block={} text={}", block, record)
    return PublishResult(record, block)


def upload(config: MinerConfig, record: CommitmentRecord, content: bytes) -> None:
    """Puts on main the file of a commitment that names it by its digest. Raises: RemoteError; HostError."""
    datasets.upload_dataset(content, config.hf_repo_id, token=config.hub_token)
    verify_public(config, record, content)


def verify_public(config: MinerConfig, record: CommitmentRecord, content: bytes) -> None:
    """Fetches the file the way a validator will. Raises: RemoteError unless it is the same bytes."""
    if not is_publicly_readable(record, content):
        raise RemoteError(
            f"{record.commit} of {config.hf_repo_id} does not give everyone what was uploaded; is the repo private?"
        )
    logger.info("everyone can read it back repo={} content={} bytes={}", config.hf_repo_id, record.commit, len(content))


@dataclass(frozen=True, kw_only=True)
class CommitStrategy:
    """One way to commit, in the open or sealed. make_intent: what to send, given the newest block."""

    is_current: Callable[[ChainCommitment | None], bool]
    make_intent: Callable[[int], Intent]
    send: Callable[[Intent], PublishOutcome]


def ensure_committed(
    strategy: CommitStrategy, config: MinerConfig, chain: MinerChain, journal: Journal, sleep: Sleep
) -> ChainCommitment:
    """Makes the commitment unless it stands already, and returns it once it is visible.

    What was sent may land unseen, and landing twice would cost its place in line: so nothing is sent while the call
    before, of this process or of one that died, may yet appear.
    """
    while True:
        try:
            held = chain.commitment(chain.hotkey)
            if held is not None and strategy.is_current(held):
                logger.info("the commitment is on chain block={}", held.block)
                return held
            block = chain.block()
            if journal.last is None or not journal.last.may_yet_appear(block, held):
                intent = strategy.make_intent(block)
                journal.start(intent)
                logger.info("sending the commitment block={}", block)
                outcome = strategy.send(intent)
                journal.finish(outcome)
                _wait_if_refused(outcome, config, chain, sleep)
        except RemoteError as error:
            logger.warning("will look again: {}", error)
        sleep(config.poll_s)


def _wait_if_refused(outcome: PublishOutcome, config: MinerConfig, chain: MinerChain, sleep: Sleep) -> None:
    """Returns when the call was taken, or when it is to be tried again. Raises: ConfigError for a lasting refusal."""
    if outcome.is_accepted:
        logger.info("committed block={}", outcome.block)
        return
    if outcome.error not in _PATIENT_ERRORS:
        raise ConfigError(f"the chain refused the commitment: {outcome.error}: {outcome.message}")
    blocks = outcome.retry_after_blocks or 1
    logger.warning("the commit limit is used up, waiting {} blocks: {}", blocks, outcome.message)
    due = chain.block() + blocks
    while chain.block() < due:
        sleep(config.poll_s)


def ensure_token(token: str | None) -> str:
    """The Hub token. Raises: HostError when there is none, saying where it is looked for."""
    if token is None:
        raise HostError("no Hub token: set HF_TOKEN, or log in with the Hub's own command line")
    return token
