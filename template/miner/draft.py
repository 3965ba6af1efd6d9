"""What a miner is about to publish: the file, read and checked as a validator would, beside what stands on chain.

Nothing here writes to the Hub or the chain.
"""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from template import constants
from template.chain.protocols import MinerChain
from template.competition import CommitmentRecord, Competition
from template.data.encoding import has_target_for_any_tokenizer
from template.data.eval_set import check_dataset, read_eval_set_index
from template.data.rows import Row
from template.errors import ConfigError, Reason, SubmissionError
from template.hub import datasets
from template.hub.datasets import fetch_eval_set
from template.miner.journal import Intent, Journal
from template.records import ChainCommitment, Neuron


@dataclass(frozen=True, kw_only=True)
class MinerConfig:
    """What to publish and where.

    work_dir: where the evaluation set and the miner's own intents are kept. poll_s: seconds between looks at the chain
    while waiting. has_target: tells with the model's own tokens whether a row keeps an answer; asked only about rows so
    long that it is in doubt. is_forced: publish what a validator will refuse, after saying why it will, and replace a
    sealed commitment that has not opened.
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
class PublishResult:
    """A commitment that is visible on chain: what it says, and the block it counts from."""

    record: CommitmentRecord
    block: int


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The file and the hotkey it is for. rows: in words. held: what stands on chain for the hotkey."""

    path: Path
    content: bytes
    sha256: str
    rows: str
    neuron: Neuron
    held: ChainCommitment | None


def draft_dataset(config: MinerConfig, chain: MinerChain) -> Draft:
    """Reads and checks the file, and looks up the hotkey.

    Raises: SubmissionError when a validator would refuse the file, unless it is forced; ConfigError also when the
    hotkey is not registered; RemoteError; HostError.
    """
    path, content = read_dataset(config)
    try:
        count = check_file(config, content)
        rows = f"{count} count, of at most {config.competition.rows}"
    except SubmissionError as error:
        if not config.is_forced:
            raise
        logger.warning("a validator will refuse this ({}): {}", error.reason, error)
        rows = f"none counts: a validator will refuse it as {error.reason}"
    neuron = chain.view().by_hotkey.get(chain.hotkey)
    if neuron is None:
        raise ConfigError(f"the hotkey {chain.hotkey} is not registered on this subnet; register it first")
    return Draft(
        path=path,
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        rows=rows,
        neuron=neuron,
        held=chain.commitment(chain.hotkey),
    )


def read_dataset(config: MinerConfig) -> tuple[Path, bytes]:
    """The file and its bytes. Raises: ConfigError when it cannot be read, or the repo id cannot be committed."""
    make_record(config, "0" * 40)
    path = config.dataset_path
    path = path / constants.DATA_FILE if path.is_dir() else path
    try:
        return path, path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--dataset_path {path}: cannot be read: {error.strerror or error}") from error


def make_record(config: MinerConfig, content: str) -> CommitmentRecord:
    """The commitment of this content, a Hub commit or a sha256. Raises: ConfigError when the repo id is not fit."""
    try:
        return CommitmentRecord(config.hf_repo_id, config.competition.id, content)
    except SubmissionError as error:
        raise ConfigError(f"--hf_repo_id {config.hf_repo_id}: {error}") from error


def check_file(config: MinerConfig, content: bytes) -> int:
    """Makes every check that a validator makes of a file alone, and returns how many rows count.

    Raises: SubmissionError, the verdict a validator would give; ConfigError, RemoteError, HostError when the
    evaluation set cannot be had.
    """
    path = config.dataset_path
    eval_dir = config.work_dir / config.competition.digest[:12] / "eval_data"
    pool = read_eval_set_index(fetch_eval_set(config.competition, eval_dir, None, config.hub_token))
    rows = check_dataset(content, pool, name=str(path), max_rows=config.competition.rows)
    for row in rows:
        if not has_target_for_any_tokenizer(row) and not config.has_target(row):
            raise SubmissionError(
                Reason.NO_TARGET, f"{path}, line {row.line}: expected an answer within {constants.MAX_TOKENS} tokens"
            )
    logger.info("checked {} rows={} all from the pool", path, len(rows))
    return len(rows)


def open_journal(config: MinerConfig, chain: MinerChain) -> Journal:
    """The journal of this hotkey on this chain and subnet, whatever name or address the chain goes by."""
    return Journal(config.work_dir, f"commitment-{chain.block_hash(0)[2:14]}-{chain.netuid}-{chain.hotkey}")


def is_publicly_readable(record: CommitmentRecord, content: bytes) -> bool:
    """True when anybody who follows the record gets exactly these bytes. Raises: RemoteError; HostError."""
    with tempfile.TemporaryDirectory(prefix="miner-") as folder:
        try:
            # Without the token: a validator has none that opens a private repo.
            return datasets.download_dataset(record.namespace, record.commit, Path(folder)).path.read_bytes() == content
        except SubmissionError as error:
            logger.debug("{} is not to be had: {}", record, error)
            return False


def committed_block(held: ChainCommitment, last: Intent | None) -> int:
    """The block that a commitment counts from: its own, which the chain forgets when it opens a sealed one."""
    if held.is_revealed and last is not None and last.text == held.text and last.committed_block is not None:
        return last.committed_block
    return held.block


def check_seal(draft: Draft, journal: Journal, text: str | None, *, block: int, is_forced: bool) -> None:
    """Raises: ConfigError when a sealed commitment of anything but `text` stands, or may yet appear; None is of any.

    A new commitment would replace it and lose its place in line, so that takes --force.
    """
    held, last = draft.held, journal.last
    if held is not None and held.reveal_round is not None:
        if last is None or not last.is_sealed_as(held):
            told = f"a sealed commitment of block {held.block} stands, and {journal.path} does not know what it hides"
        elif last.text == text:
            return
        else:
            told = f"a sealed commitment of block {held.block} is still to open: {last.text}; {_how_to_finish(journal)}"
    elif last is not None and last.reveal_round is not None and last.may_yet_appear(block, held):
        if last.text == text:
            return
        told = f"a sealed commitment sent at block {last.block} may yet appear: {last.text}; {_how_to_finish(journal)}"
    else:
        return
    if not is_forced:
        raise ConfigError(f"{told}; --force replaces it, and with it its place in line")
    logger.warning("{}; it is replaced", told)


def _how_to_finish(journal: Journal) -> str:
    assert journal.last is not None
    copy = journal.sealed_copy(journal.last.text.rpartition(":")[2])
    return f"to finish it, run with --seal --dataset_path {copy}"


def describe(config: MinerConfig, draft: Draft, *, hotkey: str, text: str, notes: tuple[str, ...] = ()) -> str:
    """What the operator is shown before being asked; one line for each thing."""
    lines = [
        f"file         {draft.path}: {len(draft.content)} bytes, rows: {draft.rows}",
        f"sha256       {draft.sha256}",
        f"repo         {config.hf_repo_id}, file {constants.DATA_FILE}, for everyone to read",
        f"competition  {config.competition.id} on {config.competition.repo}",
        f"hotkey       {hotkey}, uid {draft.neuron.uid}",
        f"commitment   {text}",
        f"on chain now {_describe_held(draft.held)}",
        *(f"note         {note}" for note in notes),
    ]
    return "\n".join(lines)


def _describe_held(held: ChainCommitment | None) -> str:
    if held is None:
        return "nothing"
    what = held.text or ("a sealed commitment" if held.reveal_round is not None else "something unreadable")
    return f"{what}, of block {held.block}: committing again replaces it and takes its place in line"
