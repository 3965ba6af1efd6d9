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
from template.competition import Competition
from template.errors import ConfigError, Reason
from template.receipts.receipt import Receipt, SignedRecord
from template.records import LeaderboardRow, Round, SubmissionKey, WeightIntent

LUCKY_NUM_SOURCES = ("random", "chain", "fixed")

# Far above a subnet's size. It bounds the blocks that a check against the chain asks for.
MAX_ENTRIES = 4096

_Line = TypeVar("_Line")


@dataclass(frozen=True, kw_only=True)
class RoundSummary:
    """A closing round, as the validator writes it.

    receipts: of this round. all_receipt_digests: `Receipt.digest` for the other losses on the leaderboard.
    """

    netuid: int
    competition: Competition
    hyperparameters_digest: str
    model: str
    round: Round
    standings: Sequence[LeaderboardRow]
    intents: Sequence[WeightIntent]
    receipts: Mapping[SubmissionKey, Receipt]
    all_receipt_digests: Mapping[SubmissionKey, str]


@dataclass(frozen=True, kw_only=True)
class EntryLine:
    """A line for an `Entry`. entry: the commitment. block: its reveal block."""

    hotkey: str
    entry: str
    uid: int
    block: int
    rank_block: int
    registration_block: int
    lucky_num: int | None
    seed_block: int | None


@dataclass(frozen=True, kw_only=True)
class TableLine:
    """A line for a `LeaderboardRow`. receipt: digest of the receipt of the loss."""

    hotkey: str
    entry: str
    uid: int
    reason: Reason | None
    message: str
    loss: float | None
    score: float
    weight: float
    receipt: str | None


@dataclass(frozen=True, kw_only=True)
class WeightsLine:
    """A line for a `WeightIntent`. weights: by uid in digits. shares: by hotkey.

    is_accepted: None while the outcome is unknown. included_block: None when the chain rejected them.
    """

    block: int
    weights: Mapping[str, float]
    shares: Mapping[str, float]
    is_repeat: bool
    is_accepted: bool | None
    error: str | None
    included_block: int | None


@dataclass(frozen=True, kw_only=True)
class RoundHeader(SignedRecord):
    """First line of a round file, made from a `RoundSummary`.

    queue: hotkeys in order of evaluation. version: of the package that wrote the file. receipts: number of lines that
    follow. receipts_sha256: over their bytes.
    """

    FORMAT = "dataset-round/1"

    netuid: int
    competition: Competition
    hyperparameters_digest: str
    model: str
    version: str
    lucky_num_from: str
    seed_period: int | None
    start_block: int
    start_block_hash: str
    opened_block: int
    end_block: int
    lucky_num: int
    entries: tuple[EntryLine, ...]
    queue: tuple[str, ...]
    table: tuple[TableLine, ...]
    weights: tuple[WeightsLine, ...]
    receipts: int
    receipts_sha256: str
    signer: str | None = None
    signature: str | None = None

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Self:
        """Parse and check a header. Raises: ConfigError naming the first fault."""
        header = super().from_json(text, source)
        if header.seed_period is not None and header.seed_period < 1:
            raise ConfigError(f"{source}: seed_period must be positive, not {header.seed_period}")
        if max(len(header.entries), len(header.queue), len(header.table), len(header.weights)) > MAX_ENTRIES:
            raise ConfigError(f"{source}: more than {MAX_ENTRIES} entries; a subnet has fewer")
        blocks = [header.start_block, *(entry.seed_block or 0 for entry in header.entries)]
        if not 0 < header.netuid < 2**16 or not all(0 <= block < 2**32 for block in blocks):
            raise ConfigError(f"{source}: netuid, start_block or seed_block out of range")
        if header.lucky_num_from not in LUCKY_NUM_SOURCES:
            raise ConfigError(f"{source}: lucky_num_from must be one of {', '.join(LUCKY_NUM_SOURCES)}")
        uids = [uid for line in header.weights for uid in line.weights]
        if not all(uid.isascii() and uid.isdigit() and len(uid) < 6 for uid in uids):
            raise ConfigError(f"{source}: weights must have uids in digits as keys")
        return header


@dataclass(frozen=True, kw_only=True)
class RoundFile:
    header: RoundHeader
    receipts: tuple[Receipt, ...]


def make_round_lines(account: RoundSummary, *, signer: str | None, sign: Callable[[bytes], str] | None) -> list[str]:
    """Return the file's lines without line feeds. sign: see `SignedRecord.signed`."""
    order = {entry.key: index for index, entry in enumerate(account.round.entries)}
    keys = sorted(account.receipts, key=lambda key: (order.get(key, len(order)), key))
    digests = {**account.all_receipt_digests, **{key: account.receipts[key].digest for key in keys}}
    lines = [account.receipts[key].to_line() for key in keys]
    header = _copy(
        RoundHeader,
        account.round,
        account,
        version=template.__version__,
        entries=tuple(
            _copy(EntryLine, entry, **_identity(entry.key), block=entry.reveal_block) for entry in account.round.entries
        ),
        queue=tuple(key.hotkey for key in account.round.queue),
        table=tuple(
            _copy(TableLine, row, **_identity(row.key), receipt=None if row.loss is None else digests.get(row.key))
            for row in account.standings
        ),
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


def _weights_line(intent: WeightIntent) -> WeightsLine:
    outcome = intent.outcome
    return _copy(
        WeightsLine,
        intent,
        weights={str(uid): share for uid, share in intent.weights.items()},
        is_accepted=None if outcome is None else outcome.is_accepted,
        error=None if outcome is None else outcome.error,
        included_block=None if outcome is None else outcome.block,
    )
