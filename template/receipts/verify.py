"""Check a round file against itself and the rules, without training. Pure.

Each check returns a sentence for everything that is wrong. The caller verifies signatures and reads the chain.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from template.competition import Incentives
from template.receipts.receipt import Receipt
from template.receipts.round_file import EntryLine, RoundFile, RoundHeader, TableLine, WeightsLine
from template.rules.evaluations import derive_seed
from template.rules.ledger import live_credits, make_shares, paid_loss, record_credit
from template.rules.scoring import score_of

# The largest weight on chain.
U16_MAX = 65535

# File names that a validator writes.
_NAME = re.compile(r"round-([0-9]{1,5})-([0-9]{1,10})-[A-Za-z0-9]+(-[0-9a-f]+)?\.jsonl")

_Value = TypeVar("_Value", bound=Hashable)

# Shares are summed and divided on their way to the chain; no payment depends on less than this.
SHARE_TOLERANCE = 1e-9


def check_consistency(file: RoundFile, receipts: Mapping[str, Receipt]) -> list[str]:
    """Check everything inside the file. receipts: of any file, by digest."""
    header = file.header
    return [
        *_check_blocks(header),
        *_check_lines(header),
        *_check_receipts(file),
        *_check_losses(header, receipts),
        *_check_ledger(header),
        *_check_table(header),
        *_check_weights(header),
        *_check_sent(header),
    ]


def check_across_files(headers: Mapping[str, RoundHeader]) -> dict[str, list[str]]:
    """Check file names, and that no signer has two versions of a round; by path.

    Weights and late receipts may change between two writings of a round; its inputs and its table may not. A validator
    that lost its state, or begins a new season, does past rounds again: they have no weights of their own.
    """
    faults: dict[str, list[str]] = {path: [] for path in headers}
    versions: dict[tuple[object, ...], tuple[str, RoundHeader]] = {}
    for path, header in headers.items():
        name = _NAME.fullmatch(path.rpartition("/")[2])
        if name is not None and (int(name[1]), int(name[2])) != (header.netuid, header.start_block):
            faults[path].append(
                f"file name of another round: the header has netuid {header.netuid}, block {header.start_block}"
            )
        if header.signer is None:
            continue
        version = dataclasses.replace(header, weights=(), receipts=0, receipts_sha256="", signature=None)
        replay = (header.opened_block, *header.season) if header.is_past else None
        key = (header.signer, header.netuid, header.start_block, replay)
        first_path, first = versions.setdefault(key, (path, version))
        if version != first:
            faults[path].append(f"{header.signer} signed another version of this round in {first_path}")
    return faults


def different_rules(actual: Incentives, expected: Incentives) -> list[str]:
    """Return the names of rules that differ from the expected ones.

    Each validator chooses how many evaluations of a round it can do, and begins when it is new.
    """
    names = [name for name in vars(expected) if name not in ("slots", "start_block")]
    return [name for name in names if getattr(actual, name) != getattr(expected, name)]


def check_signatures(file: RoundFile, verify: Callable[[str, bytes, str], bool]) -> tuple[str | None, dict[int, str]]:
    """Return the fault of the header's signature, and of receipts' by index.

    verify(signer, message, signature) returns whether the signature is valid. An unsigned file has no faults.
    """
    signer = file.header.signer
    faults = {index: check_signature(receipt, signer, verify) for index, receipt in enumerate(file.receipts)}
    return check_signature(file.header, signer, verify), {index: fault for index, fault in faults.items() if fault}


def check_signature(
    signed: RoundHeader | Receipt, validator: str | None, verify: Callable[[str, bytes, str], bool]
) -> str | None:
    """Return the fault of one signature, None if it is valid or missing in an unsigned file."""
    if signed.signer != validator:
        return f"signer {signed.signer} differs from the round's signer {validator}"
    if signed.signer is None:
        return None if signed.signature is None else "signature without a signer"
    if signed.signature is None:
        return f"signature of {signed.signer} missing"
    return None if verify(signed.signer, signed.message(), signed.signature) else f"NOT VALID for {signed.signer}"


def check_against_chain(header: RoundHeader, block_hash: Callable[[int], str]) -> list[str]:
    """Check start_block_hash and seeds. block_hash: called once for each number."""
    seeded = [
        (line, line.seed_block)
        for line in header.evaluations
        if header.lucky_num_from == "chain" and line.seed_block is not None
    ]
    hashes = {number: block_hash(number) for number in sorted({header.start_block, *(block for _, block in seeded)})}
    faults = []
    if hashes[header.start_block].lower() != header.start_block_hash.lower():
        faults.append(f"block {header.start_block} has the hash {hashes[header.start_block]}, not start_block_hash")
    for line, block in seeded:
        seed = derive_seed(hashes[block], line.digest, line.number)
        if line.lucky_num != seed:
            faults.append(f"{line.hotkey}: block {block} gives lucky_num {seed}, not {line.lucky_num}")
    return faults


def _check_blocks(header: RoundHeader) -> Iterator[str]:
    period = header.incentives.blocks_per_epoch
    if not header.start_block <= header.opened_block or header.end_block != header.start_block + period:
        yield f"blocks out of order: {header.start_block}, {header.opened_block}, {header.end_block}"
    if header.start_block % period:
        yield f"start_block {header.start_block} is no multiple of blocks_per_epoch {period}"
    for line in header.evaluations:
        is_from_chain = header.lucky_num_from == "chain"
        if is_from_chain != (line.seed_block is not None):
            yield f"{line.hotkey}: seed_block must be there when seeds are from the chain, and only then"
        elif line.seed_block is not None and (line.seed_block % period or line.seed_block > header.start_block):
            yield f"{line.hotkey}: seed_block {line.seed_block} is no start of a round up to this one"


def _check_lines(header: RoundHeader) -> Iterator[str]:
    """Check that entries, table and queue list the same hotkeys, each once."""
    entries = _by_hotkey(header)
    for name, hotkeys in (
        ("entries", [entry.hotkey for entry in header.entries]),
        ("queue", header.queue),
        ("missing", header.missing),
        ("table", [line.hotkey for line in header.table]),
    ):
        yield from (f"{hotkey}: more than once in {name}" for hotkey in _repeated(hotkeys))
        if name != "entries":
            yield from (f"{hotkey}: in {name}, not in entries" for hotkey in hotkeys if hotkey not in entries)
    yield from (f"uid {uid}: more than once in entries" for uid in _repeated(entry.uid for entry in header.entries))
    for line in header.table:
        entry = entries.get(line.hotkey)
        if entry is not None and (line.uid, line.entry) != (entry.uid, entry.entry):
            yield f"{line.hotkey}: uid or commitment differs between table and entries"
    listed = {line.hotkey for line in header.table}
    yield from (f"{hotkey}: in entries, not in the table" for hotkey in entries if hotkey not in listed)


def _repeated(values: Iterable[_Value]) -> list[_Value]:
    return [value for value, count in Counter(values).items() if count > 1]


def _by_hotkey(header: RoundHeader) -> dict[str, EntryLine]:
    return {entry.hotkey: entry for entry in header.entries}


def _check_receipts(file: RoundFile) -> Iterator[str]:
    """Check that every receipt is of an evaluation of this round."""
    header = file.header
    digests = {line.receipt for line in header.evaluations}
    for number, receipt in enumerate(file.receipts, start=2):
        submission = receipt.submission
        if submission is None:
            yield f"line {number}: receipt of a local file"
            continue
        where = f"line {number}, {submission.hotkey}"
        yield from (f"{where}: {fault}" for fault in _check_config(header, receipt))
        if receipt.digest not in digests:
            yield f"{where}: receipt of no evaluation of this round"
    yield from (f"receipt {digest[:12]}: more than once" for digest in _repeated(r.digest for r in file.receipts))


def _check_config(header: RoundHeader, receipt: Receipt) -> Iterator[str]:
    assert receipt.submission is not None
    result = receipt.result
    model = f"{result.model_id}@{result.model_revision or result.model_digest}"
    for name, of_receipt, of_round in (
        ("netuid", receipt.submission.netuid, header.netuid),
        ("competition", receipt.competition.digest, header.competition.digest),
        ("hyperparameters", result.hyperparameters_digest, header.hyperparameters_digest),
        ("model", model, header.model.split(" ")[0]),
    ):
        if of_receipt != of_round:
            yield f"{name} of the receipt differs from the round's: {of_receipt}, {of_round}"


def _is_for(receipt: Receipt, commitment: str) -> bool:
    assert receipt.submission is not None
    *dataset, commit = commitment.split(":")
    commits = (receipt.submission.commit, receipt.result.train_sha256)
    return dataset == [receipt.submission.repo, receipt.competition.id] and commit in commits


def _check_losses(header: RoundHeader, receipts: Mapping[str, Receipt]) -> Iterator[str]:
    """Check that every loss is its receipt's, if that is at hand."""
    entries = {(entry.hotkey, entry.entry) for entry in header.entries}
    for line in header.evaluations:
        where = f"{line.hotkey}: evaluation {line.number}"
        if (line.hotkey, line.entry) not in entries:
            yield f"{where} of a commitment that is not in entries"
        if (line.loss is None) != (line.receipt is None):
            yield f"{where}: loss without a receipt"
        receipt = receipts.get(line.receipt or "")
        if receipt is None:
            continue
        result = receipt.result
        if receipt.submission is None or receipt.submission.hotkey != line.hotkey or not _is_for(receipt, line.entry):
            yield f"{where}: the receipt is of another dataset"
        elif (result.loss, result.lucky_num) != (line.loss, line.lucky_num):
            yield (
                f"{where}: loss {line.loss!r} with lucky_num {line.lucky_num}, in the receipt {result.loss!r} with"
                f" {result.lucky_num}"
            )
    numbered = [(line.hotkey, line.digest, line.number) for line in header.evaluations]
    yield from (f"{key[0]}: evaluation {key[2]} more than once" for key in _repeated(numbered))
    if len(header.evaluations) > header.incentives.slots:
        yield f"{len(header.evaluations)} evaluations, and the competition has {header.incentives.slots} a round"


def _check_ledger(header: RoundHeader) -> Iterator[str]:
    """Recompute losses from means and spreads, and credits from losses, bit by bit."""
    incentives, competition = header.incentives, header.competition
    frontier = competition.bench
    present = {(line.hotkey, line.digest) for line in header.table if line.reason is None}
    ranks = [(line.rank_block, line.commit_block) for line in header.ledger]
    if ranks != sorted(ranks):
        yield "the ledger is not in the order of ranks"
    for line in header.ledger:
        where = f"{line.hotkey}, ledger"
        loss = paid_loss(line.mean, line.spread, line.runs, incentives.sd)
        if line.runs < incentives.evaluations:
            yield f"{where}: {line.runs} evaluations, and the competition asks for {incentives.evaluations}"
        if line.loss != loss or line.frontier != frontier:
            yield f"{where}: loss {line.loss!r} after {line.frontier!r}, by the rules {loss!r} after {frontier!r}"
        credit = record_credit(line.loss, line.frontier, competition, incentives)
        if line.credit != (credit or 0.0):
            yield f"{where}: credit {line.credit!r}, by the rules {credit or 0.0!r}"
        if line.is_absent and (line.hotkey, line.digest) in present:
            yield f"{where}: unpaid for a missing file, and the table has the dataset"
        frontier = frontier if credit is None else line.loss
    keys = [(line.hotkey, line.digest) for line in header.ledger]
    yield from (f"{key[0]}: dataset {key[1][:12]} more than once in the ledger" for key in _repeated(keys))
    for row in header.table:
        is_confirmed = row.reason is None and row.runs >= incentives.evaluations
        if is_confirmed and (row.hotkey, row.digest) not in keys:
            yield f"{row.hotkey}: {row.runs} evaluations in the table, and its dataset is not in the ledger"


def _check_table(header: RoundHeader) -> Iterator[str]:
    """Recompute losses, scores, credits and weights, to the last bit."""
    credit = live_credits(header.start_block, header.ledger, header.registrations, header.incentives)
    shares = make_shares(header.table, header.ledger, header.registrations, header.incentives)
    for line in header.table:
        loss = None if line.mean is None else paid_loss(line.mean, line.spread, line.runs, header.incentives.sd)
        score = 0.0 if loss is None or line.reason is not None else score_of(loss, header.competition)
        for name, actual, expected in (
            ("loss", line.loss, loss),
            ("score", line.score, score),
            ("credit", line.credit, credit.get(line.hotkey, 0.0) if line.credit or _is_readable(line) else 0.0),
            ("weight", line.weight, shares.get(line.hotkey, 0.0)),
        ):
            if actual != expected:
                yield f"{line.hotkey}: {name} {actual!r} in the table, {expected!r} by the rules"


def _is_readable(line: TableLine) -> bool:
    """Check for a dataset that must be paid.

    The credit of any other dataset is paid for a day; that needs other files to check.
    """
    return line.reason is None and line.digest is not None


def _check_sent(header: RoundHeader) -> Iterator[str]:
    """Check the weights sent, in u16; zeros fill up to min_allowed_weights."""
    for line in header.weights:
        largest = max(line.weights.values(), default=0.0)
        expected = {uid: round(weight / largest * U16_MAX) for uid, weight in line.weights.items() if largest > 0.0}
        if line.sent and _without_zeros(line.sent) != _without_zeros(expected):
            yield f"weights of block {line.block}: sent {dict(line.sent)}, and the weights are {expected}"


def _without_zeros(values: Mapping[str, int]) -> dict[str, int]:
    return {uid: value for uid, value in values.items() if value}


def _check_weights(header: RoundHeader) -> Iterator[str]:
    """Check the weights by uid; see `template.receipts.history` for the shares."""
    submitted = _final_weights(header)
    if submitted is not None and header.is_past:
        yield f"weights of block {submitted.block}: the round was over when it opened, and has none of its own"
    if not any(line.weight > 0.0 for line in header.table):
        return
    # A round that opened in time tries to submit its weights until it closes.
    if submitted is None and header.weights and not header.is_past:
        yield "earlier weights were submitted again, and those of the table were not"
    if submitted is not None:
        where = f"weights of block {submitted.block}"
        yield from (f"{where}: {fault}" for fault in _check_uids(submitted, header.table))


def _final_weights(header: RoundHeader) -> WeightsLine | None:
    """Return the round's last accepted weights, else the last submitted."""
    own = [line for line in header.weights if not line.is_repeat]
    return next(reversed([line for line in own if line.is_accepted] or own), None)


def _is_complete(header: RoundHeader) -> bool:
    return all(line.reason is not None or line.loss is not None for line in header.table)


def _check_uids(submitted: WeightsLine, table: Sequence[TableLine]) -> Iterator[str]:
    """Check that weights by uid are proportional to shares by hotkey.

    If all hotkeys with a share lost their uids, one uid has all weight, the subnet owner's: only the chain can tell.
    """
    owners = {line.uid: line.hotkey for line in table}
    weighed = [int(uid) for uid, weight in submitted.weights.items() if weight > 0.0]
    if len(weighed) == 1 and submitted.shares.get(owners.get(weighed[0], ""), 0.0) <= 0.0:
        return
    ratios = []
    for uid, weight in submitted.weights.items():
        share = submitted.shares.get(owners.get(int(uid), ""), 0.0)
        if weight > 0.0 and share <= 0.0:
            yield f"uid {uid} has weight {weight!r}, but its hotkey has no share"
        elif weight > 0.0:
            ratios.append(weight / share)
    if ratios and not math.isclose(min(ratios), max(ratios), rel_tol=SHARE_TOLERANCE):
        yield "weights by uid are not proportional to shares by hotkey"


def remarks(file: RoundFile) -> list[str]:
    """Return remarks that this file alone can neither confirm nor refute."""
    header = file.header
    notes = [] if header.signer else ["unsigned: the file proves nothing about a validator"]
    if header.lucky_num_from == "random":
        notes.append("seeds are drawn by the validator: that each was drawn only once cannot be proved")
    undone = [line for line in header.evaluations if line.loss is None]
    notes += [f"{line.hotkey}: evaluation {line.number} was planned and not done" for line in undone]
    submitted = _final_weights(header)
    if submitted is None:
        return notes
    paid = [line for line in header.table if line.weight > 0.0]
    if not paid and submitted.shares and _is_complete(header):
        notes.append(f"every score is 0, all weight to {', '.join(submitted.shares)}: is that the subnet's owner?")
    left_out = [line for line in paid if str(line.uid) not in submitted.weights]
    return notes + [f"{line.hotkey}: no weight for uid {line.uid}; had the hotkey lost it?" for line in left_out]
