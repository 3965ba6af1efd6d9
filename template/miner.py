"""The miner: check a dataset as a validator would, upload it, read it back, and commit it on chain.

Safe to run again at any time: an unchanged file makes no new commit on the Hub, and a commitment that already stands
on chain is not made twice, because making it again would move its block and lose its place in line.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loguru import logger

from template import constants, hub
from template.competition import CommitmentRecord, Competition
from template.data import Row
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.pool import check_dataset, fetch_eval_set, read_pool
from template.records import ChainCommitment, ChainView, PublishOutcome

# Refusals that pass with time: the chain's names for a commit limit that is used up.
_PATIENT_ERRORS = {"SpaceLimitExceeded", "CommitmentSetRateLimitExceeded"}

# Blocks after which a call whose fate is unknown can no longer land: those it stays valid for, and the lag of finality.
_IN_FLIGHT_BLOCKS = 40

# Tokens of the chat format itself that may stand before the first answer; generous for every family.
_FORMAT_TOKENS = 128


class ChainSeam(Protocol):
    """What the miner asks of `template.chain.Chain`."""

    @property
    def hotkey(self) -> str: ...
    def view(self) -> ChainView: ...
    def block(self) -> int: ...
    def commitment(self, hotkey: str) -> ChainCommitment | None: ...
    def publish(self, text: str) -> PublishOutcome: ...


@dataclass(frozen=True, kw_only=True)
class MinerConfig:
    """What to publish and where.

    work_dir: where the evaluation set is kept. poll_s: seconds between looks at the chain while waiting. has_target:
    tells with the model's own tokens whether a row keeps an answer; asked only about rows so long that it is in doubt.
    is_forced: publish what a validator will refuse, after saying why it will.
    """

    hf_repo_id: str
    dataset_path: Path
    competition: Competition
    work_dir: Path
    has_target: Callable[[Row], bool]
    is_forced: bool = False
    poll_s: float = 6.0
    hub_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Published:
    """A commitment that is visible on chain: what it says, and the block it counts from."""

    record: CommitmentRecord
    block: int


def publish_dataset(
    config: MinerConfig, chain: ChainSeam, *, sleep: Callable[[float], object] = time.sleep
) -> Published:
    """Checks, uploads, reads back, commits and waits; returns what is visible on chain.

    Raises: SubmissionError when a validator would refuse the file; ConfigError when the hotkey is not registered, or
    the chain refuses for another lasting reason; RemoteError when the Hub does not answer; HostError.
    """
    content = read_dataset(config)
    try:
        check_file(config, content)
    except SubmissionError as error:
        if not config.is_forced:
            raise
        logger.warning("a validator will refuse this ({}): {}", error.reason, error)
    neuron = chain.view().by_hotkey.get(chain.hotkey)
    if neuron is None:
        raise ConfigError(f"the hotkey {chain.hotkey} is not registered on this subnet; register it first")
    commit = hub.upload_dataset(content, config.hf_repo_id, token=config.hub_token)
    logger.info("uploaded repo={} commit={} bytes={}", config.hf_repo_id, commit, len(content))
    _read_back(config, commit, content)
    record = CommitmentRecord(config.hf_repo_id, config.competition.id, commit)
    return Published(record, _commit(record, config, chain, neuron.registration_block, sleep))


def read_dataset(config: MinerConfig) -> bytes:
    """The file's bytes. Raises: ConfigError when it cannot be read, or the repo id cannot be committed."""
    try:
        # The longest part of the commitment is known now, so a repo id that is too long is refused before the upload.
        CommitmentRecord(config.hf_repo_id, config.competition.id, "0" * 40)
    except SubmissionError as error:
        raise ConfigError(f"--hf_repo_id {config.hf_repo_id}: {error}") from error
    path = config.dataset_path
    path = path / constants.DATA_FILE if path.is_dir() else path
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--dataset_path {path}: cannot be read: {error.strerror or error}") from error


def check_file(config: MinerConfig, content: bytes) -> None:
    """Makes every check that a validator makes of a file alone.

    Raises: SubmissionError, the verdict a validator would give; ConfigError, RemoteError, HostError when the
    evaluation set cannot be had.
    """
    path = config.dataset_path
    eval_dir = config.work_dir / "eval_data"
    pool = read_pool(fetch_eval_set(config.competition, eval_dir, None, config.hub_token))
    rows = check_dataset(content, pool, name=str(path), max_rows=config.competition.rows)
    for row in rows:
        if not _surely_has_target(row) and not config.has_target(row):
            raise SubmissionError(
                Reason.NO_TARGET, f"{path}, line {row.line}: expected an answer within {constants.MAX_TOKENS} tokens"
            )
    logger.info("checked {} rows={} all from the pool", path, len(rows))


def _surely_has_target(row: Row) -> bool:
    """True when no tokenizer can cut the first answer off: a token covers one byte or more."""
    if len(row.messages) < 2:
        return False
    before = (row.system or "").encode() + row.messages[0].content.encode()
    return len(before) + _FORMAT_TOKENS < constants.MAX_TOKENS


def _read_back(config: MinerConfig, commit: str, content: bytes) -> None:
    """Fetches what was uploaded the way a validator will. Raises: RemoteError unless it is the same bytes."""
    with tempfile.TemporaryDirectory(dir=config.work_dir) as folder:
        try:
            # Without the token: a validator has none that opens a private repo.
            held = hub.download_dataset(config.hf_repo_id, commit, Path(folder))
            fetched = held.path.read_bytes()
        except SubmissionError as error:
            raise RemoteError(f"not everyone can read the upload, is {config.hf_repo_id} private? {error}") from error
    if fetched != content:
        raise RemoteError(f"{config.hf_repo_id} at {commit} does not hold what was uploaded; nothing is committed")
    logger.info("read back the same {} bytes", len(content))


def _commit(
    record: CommitmentRecord,
    config: MinerConfig,
    chain: ChainSeam,
    registration_block: int,
    sleep: Callable[[float], object],
) -> int:
    """Makes the commitment unless it stands already, and returns its block once it is visible.

    One from before the registration does not count, so it is made again.
    """
    text = str(record)
    send_block = 0
    while True:
        try:
            held = chain.commitment(chain.hotkey)
            if held is not None and held.text == text and held.block > registration_block:
                logger.info("the commitment is on chain block={} text={}", held.block, text)
                return held.block
            block = chain.block()
            if block >= send_block:
                # What is sent may land unseen, and landing twice would cost its place in line.
                send_block = block + _IN_FLIGHT_BLOCKS
                if not _publish(chain, text, config, sleep):
                    send_block = 0
        except RemoteError as error:
            logger.warning("will look again: {}", error)
        sleep(config.poll_s)


def _publish(chain: ChainSeam, text: str, config: MinerConfig, sleep: Callable[[float], object]) -> bool:
    """One try. True when the chain took it, False after a wait when it is to be tried again."""
    outcome = chain.publish(text)
    if outcome.is_accepted:
        logger.info("committed block={} text={}", outcome.block, text)
        return True
    if outcome.error not in _PATIENT_ERRORS:
        raise ConfigError(f"the chain refused the commitment: {outcome.error}: {outcome.message}")
    blocks = outcome.retry_after_blocks or 1
    logger.warning("the commit limit is used up, waiting {} blocks: {}", blocks, outcome.message)
    due = chain.block() + blocks
    while chain.block() < due:
        sleep(config.poll_s)
    return False


def ensure_token(token: str | None) -> str:
    """The Hub token. Raises: HostError when there is none, saying where it is looked for."""
    if token is None:
        raise HostError("no Hub token: set HF_TOKEN, or log in with the Hub's own command line")
    return token
