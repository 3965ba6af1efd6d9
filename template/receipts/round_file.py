"""The public record of one round: its inputs, its table, its weights, and the receipts of what was scored in it. Pure.

JSON Lines: a header, signed by the validator, then one signed receipt on each line, in canonical JSON. The header's
signature covers the receipts through `receipts_sha256`, so none can be left out, added or exchanged.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import template
from template.competition import Competition
from template.errors import ConfigError, Reason
from template.receipts.receipt import Receipt
from template.records import Entry, LeaderboardRow, Round, SubmissionKey, WeightIntent
from template.serialization import canonical_json, parse_object, read_record

FORMAT = "dataset-round/1"
LUCKY_NUM_SOURCES = ("random", "chain", "fixed")

# Far above what a subnet has; whoever checks a file against the chain asks for a block of each entry.
MAX_ENTRIES = 4096

# Signatures are made over this and the header, so that no other message of a hotkey can pass for a round.
_DOMAIN = b"dataset-round/1\n"


@dataclass(frozen=True, kw_only=True)
class RoundSummary:
    """What a validator knows of a round that closes.

    lucky_num_from: one of LUCKY_NUM_SOURCES. receipts: the JSON of those scored in this round. all_receipt_digests:
    `Receipt.digest` of every loss in the table; those of `receipts` may be left out. seed_period: with seeds from the
    chain, what the blocks that give them are multiples of, see `template.rules.seeds.seed_block`.
    """

    netuid: int
    competition: Competition
    hyperparameters_digest: str
    model: str
    lucky_num_from: str
    round: Round
    standings: Sequence[LeaderboardRow]
    intents: Sequence[WeightIntent]
    receipts: Mapping[SubmissionKey, str]
    all_receipt_digests: Mapping[SubmissionKey, str]
    seed_period: int | None = None


@dataclass(frozen=True, kw_only=True)
class EntryLine:
    """One `template.records.Entry` of the round; `entry` is the commitment's text."""

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
    """One `template.records.LeaderboardRow` of the round. receipt: the digest of the receipt that the loss rests on."""

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
    """One submission of weights, decided at `block`. weights by uid (in digits), shares by hotkey.

    is_repeat: the shares of an earlier round, given again. is_accepted None: not known what became of it.
    included_block: where the chain took it, None when it did not.
    """

    block: int
    weights: Mapping[str, float]
    shares: Mapping[str, float]
    is_repeat: bool
    is_accepted: bool | None
    error: str | None
    included_block: int | None


@dataclass(frozen=True, kw_only=True)
class RoundHeader:
    """The first line. queue: the hotkeys whose turn it was, in order. version: of the package that wrote it.

    receipts: how many lines follow. receipts_sha256: over their bytes. signer: the validator's hotkey, None when
    nobody signs. signature: hex over `message`, None while unsigned. The rest as in `RoundSummary` and its `Round`.
    """

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

    def message(self) -> bytes:
        """The bytes that are signed: a fixed prefix and the canonical JSON of everything but the signature."""
        content = {key: value for key, value in self._content().items() if key != "signature"}
        return _DOMAIN + canonical_json(content).encode()

    def to_line(self) -> str:
        """The header as one line of canonical JSON, without the line's end."""
        return canonical_json(self._content())

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> "RoundHeader":
        """The header that `to_line` wrote. Raises: ConfigError naming the first thing that is wrong."""
        header = read_record(cls, parse_object(text, FORMAT, source), source)
        if header.seed_period is not None and header.seed_period < 1:
            raise ConfigError(f"{source}: seed_period must be positive, not {header.seed_period}")
        if max(len(header.entries), len(header.queue), len(header.table), len(header.weights)) > MAX_ENTRIES:
            raise ConfigError(f"{source}: more than {MAX_ENTRIES} entries, or lines of a table; a subnet has fewer")
        blocks = [header.start_block, *(entry.seed_block or 0 for entry in header.entries)]
        if not 0 < header.netuid < 2**16 or not all(0 <= block < 2**32 for block in blocks):
            raise ConfigError(f"{source}: netuid, start_block or a seed_block is none that a chain has")
        if header.lucky_num_from not in LUCKY_NUM_SOURCES:
            raise ConfigError(f"{source}.lucky_num_from must be one of {', '.join(LUCKY_NUM_SOURCES)}")
        for at, line in enumerate(header.weights):
            if not all(uid.isascii() and uid.isdigit() and len(uid) < 6 for uid in line.weights):
                raise ConfigError(f"{source}.weights[{at}].weights: expected uids in digits as the keys")
        return header


@dataclass(frozen=True, kw_only=True)
class RoundFile:
    """A whole file: its header and the receipts of what was scored in the round."""

    header: RoundHeader
    receipts: tuple[Receipt, ...]


def make_round_lines(account: RoundSummary, *, signer: str | None, sign: Callable[[bytes], str] | None) -> list[str]:
    """The file's lines, header first, without their ends; sign(message) returns the signature in hex.

    Raises: ConfigError when a receipt cannot be read; ValueError for a lucky_num_from that is none.
    """
    if account.lucky_num_from not in LUCKY_NUM_SOURCES:
        raise ValueError(f"lucky_num_from cannot be {account.lucky_num_from!r}")
    order = {one.key: at for at, one in enumerate(account.round.entries)}
    keys = sorted(account.receipts, key=lambda key: (order.get(key, len(order)), key))
    receipts = {key: Receipt.from_json(account.receipts[key], f"the receipt of {key.hotkey}") for key in keys}
    digests = {**account.all_receipt_digests, **{key: receipt.digest for key, receipt in receipts.items()}}
    lines = [receipt.to_line() for receipt in receipts.values()]
    header = RoundHeader(
        netuid=account.netuid,
        competition=account.competition,
        hyperparameters_digest=account.hyperparameters_digest,
        model=account.model,
        version=template.__version__,
        lucky_num_from=account.lucky_num_from,
        seed_period=account.seed_period,
        start_block=account.round.start_block,
        start_block_hash=account.round.start_block_hash,
        opened_block=account.round.opened_block,
        end_block=account.round.end_block,
        lucky_num=account.round.lucky_num,
        entries=tuple(_entry_line(one) for one in account.round.entries),
        queue=tuple(key.hotkey for key in account.round.queue),
        table=tuple(_table_line(one, digests) for one in account.standings),
        weights=tuple(_weights_line(one) for one in account.intents),
        receipts=len(lines),
        receipts_sha256=digest_lines(lines),
        signer=signer,
    )
    if sign is not None:
        header = dataclasses.replace(header, signature=sign(header.message()))
    return [header.to_line(), *lines]


def digest_lines(lines: Sequence[str] | Sequence[bytes]) -> str:
    """sha256 in hex over the lines, each with its line feed."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update((line.encode() if isinstance(line, str) else line) + b"\n")
    return digest.hexdigest()


def _entry_line(entry: Entry) -> EntryLine:
    return EntryLine(
        hotkey=entry.key.hotkey,
        entry=entry.key.commitment,
        uid=entry.uid,
        block=entry.reveal_block,
        rank_block=entry.rank_block,
        registration_block=entry.registration_block,
        lucky_num=entry.lucky_num,
        seed_block=entry.seed_block,
    )


def _table_line(standing: LeaderboardRow, digests: Mapping[SubmissionKey, str]) -> TableLine:
    return TableLine(
        hotkey=standing.key.hotkey,
        entry=standing.key.commitment,
        uid=standing.uid,
        reason=standing.reason,
        message=standing.message,
        loss=standing.loss,
        score=standing.score,
        weight=standing.weight,
        receipt=digests.get(standing.key) if standing.loss is not None else None,
    )


def _weights_line(intent: WeightIntent) -> WeightsLine:
    outcome = intent.outcome
    return WeightsLine(
        block=intent.block,
        weights={str(uid): share for uid, share in intent.weights.items()},
        shares=dict(intent.shares),
        is_repeat=intent.is_repeat,
        is_accepted=None if outcome is None else outcome.is_accepted,
        error=None if outcome is None else outcome.error,
        included_block=None if outcome is None else outcome.block,
    )
