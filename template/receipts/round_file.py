"""Round files: a round's inputs, leaderboard, weights and receipts. Pure.

JSON Lines in canonical JSON: a header signed by the validator, then one receipt a line. The signature covers the
receipts through `receipts_sha256`, so none can be left out, added or exchanged.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import template
from template.competition import Competition, Incentives, is_content_digest
from template.errors import ConfigError, Reason
from template.receipts.receipt import Receipt, SignedRecord
from template.records import (
    Entry,
    EvaluationResult,
    LeaderboardRow,
    LedgerLine,
    Round,
    RoundEvaluation,
    SubmissionKey,
    WeightIntent,
)
from template.rules.entries import parse_entry

LUCKY_NUM_SOURCES = ("random", "chain", "fixed")

# Far above a subnet's size. It bounds the blocks that a check against the chain asks for.
MAX_ENTRIES = 4096

# Earlier formats, and the version whose rules they follow.
_EARLIER = {b'"format":"dataset-round/1"': "0.3", b'"format":"dataset-round/2"': "0.4"}

_Line = TypeVar("_Line")


@dataclass(frozen=True, kw_only=True)
class RoundSummary:
    """A closing round, as the validator writes it.

    missing: hotkeys whose file was never read and is not on the Hub. results: recorded evaluations of the round.
    receipts: the readable ones among them.
    """

    netuid: int
    competition: Competition
    incentives: Incentives
    hyperparameters_digest: str
    model: str
    round: Round
    missing: Sequence[str]
    standings: Sequence[LeaderboardRow]
    ledger: Sequence[LedgerLine]
    intents: Sequence[WeightIntent]
    results: Mapping[RoundEvaluation, EvaluationResult]
    receipts: Mapping[RoundEvaluation, Receipt]

    @property
    def season(self) -> tuple[str, ...]:
        """What losses must have in common to be compared."""
        return self.competition.digest, self.hyperparameters_digest, self.model, self.round.lucky_num_from


@dataclass(frozen=True, kw_only=True)
class EntryLine:
    """A line for an `Entry`. entry: the commitment. block: its reveal block."""

    hotkey: str
    entry: str
    uid: int
    block: int
    commit_block: int
    registration_block: int

    def to_entry(self, competition_id: str) -> Entry:
        """Parse and check the commitment again."""
        return parse_entry(
            SubmissionKey(self.hotkey, self.entry),
            competition_id,
            uid=self.uid,
            reveal_block=self.block,
            commit_block=self.commit_block,
            registration_block=self.registration_block,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationLine:
    """A line for a `RoundEvaluation`.

    loss, receipt: None before the evaluation is done. receipt: its digest.
    """

    hotkey: str
    entry: str
    digest: str
    number: int
    lucky_num: int
    seed_block: int | None
    loss: float | None
    receipt: str | None


@dataclass(frozen=True, kw_only=True)
class TableLine:
    """A line for a `LeaderboardRow`."""

    hotkey: str
    entry: str
    uid: int
    reason: Reason | None
    message: str
    digest: str | None
    runs: int
    mean: float | None
    spread: float | None
    loss: float | None
    score: float
    credit: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class WeightsLine:
    """A line for a `WeightIntent`. weights, sent: by uid in digits. shares: by hotkey.

    is_accepted: None while the outcome is unknown. included_block: None when the chain rejected them.
    """

    block: int
    weights: Mapping[str, float]
    sent: Mapping[str, int]
    shares: Mapping[str, float]
    is_repeat: bool
    is_accepted: bool | None
    error: str | None
    included_block: int | None


@dataclass(frozen=True, kw_only=True)
class RoundHeader(SignedRecord):
    """First line of a round file, made from a `RoundSummary`.

    queue: hotkeys in order of download. missing: hotkeys whose file was never read and is not on the Hub: their dataset
    counts from a later block. version: of the package that wrote the file. receipts: number of lines that follow.
    receipts_sha256: over their bytes.
    """

    FORMAT = "dataset-round/3"

    netuid: int
    competition: Competition
    incentives: Incentives
    hyperparameters_digest: str
    model: str
    version: str
    lucky_num_from: str
    start_block: int
    start_block_hash: str
    opened_block: int
    end_block: int
    entries: tuple[EntryLine, ...]
    queue: tuple[str, ...]
    missing: tuple[str, ...]
    evaluations: tuple[EvaluationLine, ...]
    ledger: tuple[LedgerLine, ...]
    table: tuple[TableLine, ...]
    weights: tuple[WeightsLine, ...]
    receipts: int
    receipts_sha256: str
    signer: str | None = None
    signature: str | None = None

    @property
    def is_past(self) -> bool:
        """Whether the round was over when it opened."""
        return self.opened_block >= self.end_block

    @property
    def season(self) -> tuple[str, ...]:
        """The inputs that losses of one ledger have in common."""
        return self.competition.digest, self.hyperparameters_digest, self.model, self.lucky_num_from

    @property
    def registrations(self) -> dict[str, int]:
        """The registration block of each hotkey with an entry."""
        return {entry.hotkey: entry.registration_block for entry in self.entries}

    @property
    def estimates(self) -> list[TableLine | LedgerLine]:
        """The lines that have the estimate of a loss."""
        return [*self.table, *self.ledger]

    @property
    def datasets(self) -> list[TableLine | EvaluationLine]:
        """The lines that name a commitment and the dataset behind it."""
        return [*self.table, *self.evaluations]

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Self:
        """Parse and check a header. Raises: ConfigError naming the first fault."""
        content = text if isinstance(text, bytes) else text.encode(errors="replace")
        for mark, version in _EARLIER.items():
            if mark in content:
                raise ConfigError(f"{source}: of version {version}, which has other rules: audit it with that version")
        header = super().from_json(text, source)
        hotkeys = (header.queue, header.missing)
        lines = (*hotkeys, header.entries, header.table, header.weights, header.evaluations, header.ledger)
        if max(map(len, lines)) > MAX_ENTRIES:
            raise ConfigError(f"{source}: more than {MAX_ENTRIES} entries; a subnet has fewer")
        seeds = [line.seed_block for line in header.evaluations if line.seed_block is not None]
        blocks = [header.start_block, *seeds, *(line.rank_block for line in header.ledger)]
        if not 0 < header.netuid < 2**16 or not all(0 <= block < 2**32 for block in blocks):
            raise ConfigError(f"{source}: netuid, start_block, seed_block or rank_block out of range")
        runs = [line.runs for line in header.estimates if line.mean is not None]
        if not all(0 < count < 2**32 for count in (*runs, *(line.number for line in header.evaluations))):
            raise ConfigError(f"{source}: runs or number of an evaluation out of range")
        if header.lucky_num_from not in LUCKY_NUM_SOURCES:
            raise ConfigError(f"{source}: lucky_num_from must be one of {', '.join(LUCKY_NUM_SOURCES)}")
        parts = [part for line in header.weights for part in (*line.weights.values(), *line.shares.values())]
        if not all(0.0 <= part <= 1.0 for part in (*parts, *(line.score for line in header.table))):
            raise ConfigError(f"{source}: a score, weight or share is not between 0 and 1")
        digests = {line.digest for line in (*header.datasets, *header.ledger)}
        if not all(digest is None or is_content_digest(digest) for digest in digests):
            raise ConfigError(f"{source}: a digest is not 64 hex digits")
        uids = [uid for line in header.weights for uid in (*line.weights, *line.sent)]
        if not all(uid.isascii() and uid.isdigit() and len(uid) < 6 for uid in uids):
            raise ConfigError(f"{source}: weights must have uids in digits as keys")
        return header


@dataclass(frozen=True, kw_only=True)
class RoundFile:
    header: RoundHeader
    receipts: tuple[Receipt, ...]


def make_round_lines(account: RoundSummary, *, signer: str | None, sign: Callable[[bytes], str] | None) -> list[str]:
    """Return the file's lines without line feeds. sign: see `SignedRecord.signed`."""
    done = [evaluation for evaluation in account.round.evaluations or () if evaluation in account.receipts]
    lines = [account.receipts[evaluation].to_line() for evaluation in done]
    header = _copy(
        RoundHeader,
        account.round,
        account,
        version=template.__version__,
        entries=tuple(
            _copy(EntryLine, entry, **_identity(entry.key), block=entry.reveal_block) for entry in account.round.entries
        ),
        queue=tuple(key.hotkey for key in account.round.queue),
        missing=tuple(account.missing),
        evaluations=tuple(_evaluation_line(evaluation, account) for evaluation in account.round.evaluations or ()),
        ledger=tuple(account.ledger),
        table=tuple(_copy(TableLine, row, **_identity(row.key)) for row in account.standings),
        weights=tuple(_weights_line(intent) for intent in account.intents),
        receipts=len(lines),
        receipts_sha256=digest_lines(lines),
        signer=signer,
    )
    if sign is not None:
        header = header.signed(signer, sign)
    return [header.to_line(), *lines]


def digest_lines(lines: Sequence[str] | Sequence[bytes]) -> str:
    """Return the sha256 in hex of the lines, each with its line feed."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update((line.encode() if isinstance(line, str) else line) + b"\n")
    return digest.hexdigest()


def _copy(kind: type[_Line], *sources: object, **changes: Any) -> _Line:
    """Build a `kind` from the fields that it shares with `sources`, and `changes`."""
    names = {field.name for field in dataclasses.fields(kind)} - changes.keys()  # type: ignore[arg-type]
    shared = {name: getattr(source, name) for source in sources for name in names if hasattr(source, name)}
    return kind(**shared, **changes)


def _identity(key: SubmissionKey) -> dict[str, str]:
    return {"hotkey": key.hotkey, "entry": key.commitment}


def _evaluation_line(evaluation: RoundEvaluation, account: RoundSummary) -> EvaluationLine:
    result = account.results.get(evaluation)
    return _copy(
        EvaluationLine,
        evaluation,
        **_identity(evaluation.key),
        loss=None if result is None else result.loss,
        receipt=None if result is None else result.receipt_digest,
    )


def _weights_line(intent: WeightIntent) -> WeightsLine:
    outcome = intent.outcome
    return _copy(
        WeightsLine,
        intent,
        weights={str(uid): share for uid, share in intent.weights.items()},
        sent={str(uid): value for uid, value in intent.sent.items()},
        is_accepted=None if outcome is None else outcome.is_accepted,
        error=None if outcome is None else outcome.error,
        included_block=None if outcome is None else outcome.block,
    )
