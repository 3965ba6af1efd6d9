"""A dataset about to be published, and the hotkey's present commitment."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from template import constants
from template.chain.protocols import MinerChain
from template.chain_records import ChainCommitment, Neuron
from template.competition import CommitmentRecord, Competition, Incentives
from template.data.encoding import has_target_for_any_tokenizer
from template.data.eval_set import check_dataset, read_eval_set_index
from template.data.rows import Row, RowKey, content_digest
from template.errors import ConfigError, Reason, RemoteError, SubmissionError
from template.files import temporary_folder
from template.hub import datasets
from template.miner.journal import Journal


@dataclass(frozen=True, kw_only=True)
class MinerConfig:
    """Settings of one publication.

    work_dir: keeps the evaluation set and the journals. has_target: whether a row keeps a target within the
    tokens that count, for rows so long that only the model's tokenizer can decide. is_forced: publish a dataset that
    validators will reject, and replace a sealed commitment before its reveal. is_dry_run: stop where the user would be
    asked, and where an earlier run would be continued. poll_s: seconds between chain reads.
    """

    hf_repo_id: str
    dataset_path: Path
    competition: Competition
    work_dir: Path
    has_target: Callable[[Row], bool]
    incentives: Incentives = field(default_factory=Incentives)
    is_forced: bool = False
    is_dry_run: bool = False
    poll_s: float = 6.0
    hub_token: str | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """The folder of this competition's downloads."""
        return self.work_dir / self.competition.digest[:12]

    def make_record(self, content: str) -> CommitmentRecord:
        """Return the commitment to a Hub commit or a digest."""
        try:
            return CommitmentRecord(self.hf_repo_id, self.competition.id, content)
        except SubmissionError as error:
            raise ConfigError(f"--hf_repo_id {self.hf_repo_id}: {error}") from error


@dataclass(frozen=True)
class PublishResult:
    """A commitment visible on chain, and the block that it ranks by."""

    record: CommitmentRecord
    block: int


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A checked file, and the commitment `on_chain` before this run.

    rows: those that count; eval_file: None where a validator will reject the file, and there are none. Kept small: a
    sealed draft is held until its reveal.
    """

    config: MinerConfig
    chain: MinerChain
    journal: Journal
    path: Path
    content: bytes
    sha256: str
    rows: tuple[RowKey, ...]
    eval_file: Path | None
    described_rows: str
    neuron: Neuron
    on_chain: ChainCommitment | None

    def is_current(self, on_chain: ChainCommitment | None, record: CommitmentRecord) -> bool:
        """Return whether `on_chain` is this readable commitment, made since registration."""
        if on_chain is None or on_chain.text != str(record):
            return False
        return self.rank_block(on_chain) > self.neuron.registration_block

    def rank_block(self, on_chain: ChainCommitment) -> int:
        """Return the block a commitment ranks by; the chain drops it at a reveal."""
        last = self.journal.last
        if not on_chain.is_revealed or last is None or last.text != on_chain.text:
            return on_chain.block
        return on_chain.block if last.committed_block is None else last.committed_block

    def is_public(self, record: CommitmentRecord) -> bool:
        """Return whether an anonymous download of the record returns this file."""
        with temporary_folder() as folder:
            try:
                # Without our token, as validators download.
                file = datasets.download_dataset(record.namespace, record.commit, folder, hotkey=self.chain.hotkey)
            except SubmissionError as error:
                logger.debug("{} is not public: {}", record, error)
                return False
            return file.path.read_bytes() == self.content

    def check_repo(self) -> None:
        """Reject a private repo, from which no validator could download."""
        config = self.config
        try:
            datasets.resolve_revision(config.hf_repo_id, token=config.hub_token)
        except SubmissionError:
            return  # missing: it will be created, and public
        try:
            datasets.resolve_revision(config.hf_repo_id, token=None)
        except SubmissionError as error:
            raise ConfigError(f"--hf_repo_id {config.hf_repo_id} must be public: make it so on the Hub") from error

    def check_upload(self) -> None:
        """Check by a trial that a file can be uploaded, and be read by everyone.

        Otherwise a commitment would be worthless: a gated repo and a read token show only then.
        """
        repo = self.config.hf_repo_id
        try:
            datasets.check_upload(repo, token=self.config.hub_token)
        except SubmissionError as error:
            raise ConfigError(f"--hf_repo_id {repo} must be public, not gated or disabled: {error}") from error

    def upload(self) -> str:
        """Upload the file and return its Hub commit. Raises: RemoteError; HostError."""
        return datasets.upload_dataset(self.content, self.config.hf_repo_id, token=self.config.hub_token)

    def verify_public(self, record: CommitmentRecord) -> None:
        """Download the file as a validator will; raise RemoteError if it differs."""
        repo, size = record.namespace, len(self.content)
        if not self.is_public(record):
            raise RemoteError(f"{record.commit} of {repo} does not return the uploaded file; is the repo private?")
        logger.info("the file is public repo={} content={} bytes={}", repo, record.commit, size)

    def check_seal(self, text: str | None, *, block: int) -> None:
        """Refuse, unless --force, to replace a sealed commitment of another text."""
        last, on_chain = self.journal.last, self.on_chain
        if on_chain is not None and on_chain.reveal_round is not None:
            is_ours = last is not None and last.is_sealed_as(on_chain)
            problem = f"the sealed commitment of block {on_chain.block} is not revealed yet"
        elif last is not None and last.reveal_round is not None and last.may_yet_appear(block, on_chain):
            is_ours, problem = True, f"the sealed commitment sent at block {last.block} may still appear"
        else:
            return
        if is_ours and last is not None:
            if last.text == text:
                return
            copy = self.journal.dataset_copy(last.text.rpartition(":")[2])
            problem += f": {last.text}; to finish it, run with --seal --dataset_path {copy}"
        else:
            problem += f", and is not in the journal {self.journal.path}"
        if not self.config.is_forced:
            raise ConfigError(f"{problem}; --force replaces it, which loses its rank")
        logger.warning("replacing a commitment: {}", problem)

    @property
    def digest(self) -> str:
        """The digest of the counted rows, which names the dataset."""
        return content_digest(row.key for row in self.rows)

    def describe(self, text: str, notes: tuple[str, ...], compared: Sequence[str]) -> str:
        """Return the summary that the user confirms, one line per item."""
        config, on_chain = self.config, "nothing"
        if self.on_chain is not None:
            unread = "a sealed commitment" if self.on_chain.reveal_round is not None else "an unreadable commitment"
            what = self.on_chain.text or unread
            on_chain = f"{what}, of block {self.on_chain.block}; a new commitment replaces it and loses its rank"
            copy = self.journal.dataset_copy((self.on_chain.text or "").rpartition(":")[2])
            if copy.exists() and self.on_chain.text != text:
                notes = (*notes, f"the file of the commitment on chain was not uploaded yet; a copy is {copy}")
        lines = [
            f"file         {self.path}: {len(self.content)} bytes, rows: {self.described_rows}",
            f"sha256       {self.sha256}",
            f"repo         {config.hf_repo_id}, file {constants.DATA_FILE}, public",
            f"competition  {config.competition.id} on {config.competition.repo}",
            f"hotkey       {self.chain.hotkey}, uid {self.neuron.uid}",
            f"commitment   {text}",
            f"on chain now {on_chain}",
            *(f"note         {note}" for note in notes),
            *(f"{'' if index else 'compared':13}{line}" for index, line in enumerate(compared)),
        ]
        return "\n".join(lines)


def draft_dataset(config: MinerConfig, chain: MinerChain, journal: Journal) -> Draft:
    """Read and check the file, and look up the hotkey."""
    config.make_record("0" * 64)
    path = config.dataset_path
    path = path / constants.DATA_FILE if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--dataset_path {path}: cannot be read: {error.strerror or error}") from error
    rows: tuple[RowKey, ...] = ()
    eval_file = None
    try:
        rows, eval_file = _check_rows(config, content)
        described = f"{len(rows)} count, of at most {config.competition.rows}"
    except SubmissionError as error:
        if not config.is_forced:
            raise
        logger.warning("a validator will reject this dataset ({}): {}", error.reason, error)
        described = f"none counts, a validator will reject them as {error.reason}"
    neuron = chain.view().by_hotkey.get(chain.hotkey)
    if neuron is None:
        raise ConfigError(f"the hotkey {chain.hotkey} is not registered on this subnet; register it first")
    return Draft(
        config=config,
        chain=chain,
        journal=journal,
        path=path,
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        rows=rows,
        eval_file=eval_file,
        described_rows=described,
        neuron=neuron,
        on_chain=chain.commitment(chain.hotkey),
    )


def _check_rows(config: MinerConfig, content: bytes) -> tuple[tuple[RowKey, ...], Path]:
    """Check the file as a validator would; return the rows that count, and the evaluation set's file."""
    path = config.dataset_path
    eval_file = datasets.fetch_eval_set(config.competition, config.folder / "eval_data", None, config.hub_token)
    eval_set, max_rows = read_eval_set_index(eval_file), config.competition.rows
    rows = check_dataset(content, eval_set, name=str(path), max_rows=max_rows, eval_file=eval_file)
    for row in rows:
        if not has_target_for_any_tokenizer(row) and not config.has_target(row):
            raise SubmissionError(
                Reason.NO_TARGET, f"{path}, line {row.line}: expected an answer within {constants.MAX_TOKENS} tokens"
            )
    logger.info("dataset checked path={} rows={}", path, len(rows))
    return tuple(RowKey(row.line, row.key) for row in rows), eval_file


def open_journal(config: MinerConfig, chain: MinerChain) -> Journal:
    """Open the journal of this hotkey on this chain and subnet."""
    return Journal(config.work_dir, f"commitment-{chain.block_hash(0)[2:14]}-{chain.netuid}-{chain.hotkey}")
