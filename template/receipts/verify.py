"""Check a round file against itself and the rules, without training. Pure.

Each check returns a sentence for everything that is wrong. The caller verifies signatures and reads the chain.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from template.receipts.receipt import Receipt
from template.receipts.round_file import EntryLine, RoundFile, RoundHeader, TableLine, WeightsLine
from template.rules.scoring import score_of, shares_from_scores
from template.rules.seeds import seed_block, seed_from_hash

# File names that a validator writes.
_NAME = re.compile(r"round-([0-9]{1,5})-([0-9]{1,10})-[A-Za-z0-9]+\.jsonl")

_Value = TypeVar("_Value", bound=Hashable)

# Shares are summed and divided on their way to the chain; no payment depends on less than this.
_SHARE_TOLERANCE = 1e-9


def check_consistency(file: RoundFile, receipts: Mapping[str, Receipt]) -> list[str]:
    """Check everything inside the file. receipts: of any file, by digest."""
    header = file.header
    return [
        *_check_blocks(header),
        *_check_lines(header),
        *_check_receipts(file),
        *_check_losses(header, receipts),
        *_check_table(header),
        *_check_weights(header),
    ]


def check_across_files(headers: Mapping[str, RoundHeader]) -> dict[str, list[str]]:
    """Check file names, and that no signer has two versions of a round; by path.

    Weights and late receipts may change between two writings of a round; its inputs and its table may not.
    """
    faults: dict[str, list[str]] = {path: [] for path in headers}
    versions: dict[tuple[str, int, int], tuple[str, RoundHeader]] = {}
    for path, header in headers.items():
        name = _NAME.fullmatch(path.rpartition("/")[2])
        if name is not None and (int(name[1]), int(name[2])) != (header.netuid, header.start_block):
            faults[path].append(
                f"file name of another round: the header has netuid {header.netuid}, block {header.start_block}"
            )
        if header.signer is None:
            continue
        version = dataclasses.replace(header, weights=(), receipts=0, receipts_sha256="", signature=None)
        key = (header.signer, header.netuid, header.start_block)
        first_path, first = versions.setdefault(key, (path, version))
        if version != first:
            faults[path].append(f"{header.signer} signed another version of this round in {first_path}")
    return faults


def check_signatures(file: RoundFile, verify: Callable[[str, bytes, str], bool]) -> tuple[str | None, dict[int, str]]:
    """Return the fault of the header's signature, and of receipts' by index.

    verify(signer, message, signature) returns whether the signature is valid. An unsigned file has no faults.
    """
    signer = file.header.signer
    faults = {index: _check_signature(receipt, signer, verify) for index, receipt in enumerate(file.receipts)}
    return _check_signature(file.header, signer, verify), {index: fault for index, fault in faults.items() if fault}


def _check_signature(
    signed: RoundHeader | Receipt, validator: str | None, verify: Callable[[str, bytes, str], bool]
) -> str | None:
    if signed.signer != validator:
        return f"signer {signed.signer} differs from the round's signer {validator}"
    if signed.signer is None:
        return None if signed.signature is None else "signature without a signer"
    if signed.signature is None:
        return f"signature of {signed.signer} missing"
    return None if verify(signed.signer, signed.message(), signed.signature) else f"NOT VALID for {signed.signer}"


def check_against_chain(header: RoundHeader, block_hash: Callable[[int], str]) -> list[str]:
    """Check start_block_hash and seeds. block_hash: called once for each number."""
    entries = [
        (entry, entry.seed_block)
        for entry in header.entries
        if header.lucky_num_from == "chain" and entry.seed_block is not None
    ]
    hashes = {number: block_hash(number) for number in sorted({header.start_block, *(block for _, block in entries)})}
    faults = []
    if hashes[header.start_block].lower() != header.start_block_hash.lower():
        faults.append(f"block {header.start_block} has the hash {hashes[header.start_block]}, not start_block_hash")
    for entry, block in entries:
        seed = seed_from_hash(hashes[block])
        if entry.lucky_num not in (None, seed):
            faults.append(f"{entry.hotkey}: block {block} gives lucky_num {seed}, not {entry.lucky_num}")
    return faults


def _check_blocks(header: RoundHeader) -> Iterator[str]:
    if not header.start_block <= header.opened_block <= header.end_block:
        yield f"blocks out of order: {header.start_block}, {header.opened_block}, {header.end_block}"
    if header.lucky_num_from != "chain":
        return
    try:
        seed = seed_from_hash(header.start_block_hash)
    except ValueError:
        yield "start_block_hash is not a hash"
        return
    if seed != header.lucky_num:
        yield f"start_block_hash gives lucky_num {seed}, not {header.lucky_num}"
    for entry in header.entries:
        yield from (f"{entry.hotkey}: {fault}" for fault in _check_seed_block(header, entry))


def _check_seed_block(header: RoundHeader, entry: EntryLine) -> Iterator[str]:
    """Check that the validator could not choose the block that gave the seed."""
    if (entry.lucky_num is None) != (entry.seed_block is None):
        yield "lucky_num and seed_block must come together when seeds are from the chain"
    if entry.seed_block is None:
        return
    if not entry.block <= entry.seed_block <= header.start_block:
        yield f"seed_block {entry.seed_block} is not between the commitment and the start of the round"
    elif header.seed_period is not None:
        expected = seed_block(entry.block, header.seed_period)
        if entry.seed_block != expected:
            yield f"seed_block is {entry.seed_block}, expected {expected} with seed_period {header.seed_period}"


def _check_lines(header: RoundHeader) -> Iterator[str]:
    """Check that entries, table and queue list the same hotkeys, each once."""
    entries = _by_hotkey(header)
    for name, hotkeys in (
        ("entries", [entry.hotkey for entry in header.entries]),
        ("queue", header.queue),
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
    if header.table:
        listed = {line.hotkey for line in header.table}
        yield from (f"{hotkey}: in entries, not in the table" for hotkey in entries if hotkey not in listed)


def _repeated(values: Iterable[_Value]) -> list[_Value]:
    return [value for value, count in Counter(values).items() if count > 1]


def _by_hotkey(header: RoundHeader) -> dict[str, EntryLine]:
    return {entry.hotkey: entry for entry in header.entries}


def _check_receipts(file: RoundFile) -> Iterator[str]:
    """Check that every receipt is of this round and named by the table."""
    header = file.header
    entries = _by_hotkey(header)
    # An evaluation that ended after the table was made has a receipt and no loss in the table.
    digests = {line.hotkey: line.receipt for line in header.table if line.loss is not None}
    owners = [receipt.submission.hotkey for receipt in file.receipts if receipt.submission is not None]
    yield from (f"{hotkey}: more than one receipt" for hotkey in _repeated(owners))
    for number, receipt in enumerate(file.receipts, start=2):
        submission = receipt.submission
        if submission is None:
            yield f"line {number}: receipt of a local file"
            continue
        where = f"line {number}, {submission.hotkey}"
        yield from (f"{where}: {fault}" for fault in _check_config(header, receipt))
        entry = entries.get(submission.hotkey)
        if entry is None or not _is_for(receipt, entry.entry):
            yield f"{where}: receipt of {submission.repo} at {submission.commit}, which is not in entries"
            continue
        if receipt.result.lucky_num != entry.lucky_num:
            yield f"{where}: evaluated with lucky_num {receipt.result.lucky_num}, the entry has {entry.lucky_num}"
        if digests.get(submission.hotkey, receipt.digest) != receipt.digest:
            yield f"{where}: the table names another receipt"


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
    """Check that every loss in the table is its receipt's, if that is at hand."""
    for line in header.table:
        if line.loss is None:
            continue
        if line.receipt is None:
            yield f"{line.hotkey}: loss without a receipt"
            continue
        receipt = receipts.get(line.receipt)
        if receipt is None:
            continue
        if receipt.submission is None or receipt.submission.hotkey != line.hotkey or not _is_for(receipt, line.entry):
            yield f"{line.hotkey}: the receipt of the loss is of another dataset"
        elif receipt.result.loss != line.loss:
            yield f"{line.hotkey}: loss {line.loss!r} in the table, {receipt.result.loss!r} in the receipt"


def _check_table(header: RoundHeader) -> Iterator[str]:
    """Recompute scores from losses and weights from scores, to the last bit."""
    scores = {
        line.hotkey: 0.0 if line.loss is None or line.reason is not None else score_of(line.loss, header.competition)
        for line in header.table
    }
    shares = shares_from_scores(scores)
    for line in header.table:
        score, share = scores[line.hotkey], shares.get(line.hotkey, 0.0)
        if line.score != score:
            yield f"{line.hotkey}: score {line.score!r} in the table, {score!r} by the rules"
        if line.weight != share:
            yield f"{line.hotkey}: weight {line.weight!r} in the table, {share!r} by the rules"


def _check_weights(header: RoundHeader) -> Iterator[str]:
    submitted = _final_weights(header)
    if submitted is None or not header.table:
        return
    expected = {line.hotkey: line.weight for line in header.table if line.weight > 0.0}
    actual = {hotkey: share for hotkey, share in submitted.shares.items() if share > 0.0}
    where = f"weights of block {submitted.block}"
    if not expected:
        # Without any score everything goes to the owner, but earlier shares may stay while some entries wait.
        if _is_complete(header) and len(actual) > 1:
            yield f"{where}: several hotkeys have a share, but every score is 0"
        return
    for hotkey in sorted({*expected, *actual}):
        weight, share = expected.get(hotkey, 0.0), actual.get(hotkey, 0.0)
        if not math.isclose(weight, share, rel_tol=_SHARE_TOLERANCE):
            yield f"{where}: {hotkey} has {weight!r} in the table, {share!r} was submitted"
    yield from (f"{where}: {fault}" for fault in _check_uids(submitted, header.table))


def _final_weights(header: RoundHeader) -> WeightsLine | None:
    """Return the round's last accepted weights, else the last submitted."""
    own = [line for line in header.weights if not line.is_repeat]
    return next(reversed([line for line in own if line.is_accepted] or own), None)


def _is_complete(header: RoundHeader) -> bool:
    return all(line.reason is not None or line.loss is not None for line in header.table)


def _check_uids(submitted: WeightsLine, table: Sequence[TableLine]) -> Iterator[str]:
    """Check that weights by uid are proportional to shares by hotkey."""
    owners = {line.uid: line.hotkey for line in table}
    ratios = []
    for uid, weight in submitted.weights.items():
        share = submitted.shares.get(owners.get(int(uid), ""), 0.0)
        if weight > 0.0 and share <= 0.0:
            yield f"uid {uid} has weight {weight!r}, but its hotkey has no share"
        elif weight > 0.0:
            ratios.append(weight / share)
    if ratios and not math.isclose(min(ratios), max(ratios), rel_tol=_SHARE_TOLERANCE):
        yield "weights by uid are not proportional to shares by hotkey"


def remarks(file: RoundFile, receipts: Mapping[str, Receipt]) -> list[str]:
    """Return what this file alone can neither confirm nor refute."""
    header = file.header
    notes = [] if header.signer else ["unsigned: the file proves nothing about a validator"]
    missing = sum(line.receipt is not None and line.receipt not in receipts for line in header.table)
    if missing:
        notes.append(f"receipts of {missing} losses are in files of other rounds; add those files to check them")
    late = {line.hotkey for line in header.table if line.loss is None} & {
        receipt.submission.hotkey for receipt in file.receipts if receipt.submission
    }
    notes += [f"{hotkey}: evaluated too late for the table" for hotkey in sorted(late)]
    submitted = _final_weights(header)
    if submitted is None:
        return notes
    paid = [line for line in header.table if line.weight > 0.0]
    if not paid and submitted.shares and _is_complete(header):
        notes.append(f"every score is 0, all weight to {', '.join(submitted.shares)}: is that the subnet's owner?")
    left_out = [line for line in paid if str(line.uid) not in submitted.weights]
    return notes + [f"{line.hotkey}: no weight for uid {line.uid}; had the hotkey lost it?" for line in left_out]
