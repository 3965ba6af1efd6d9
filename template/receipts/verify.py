"""Whether a round file agrees with itself and with the rules: what can be told without training anything. Pure.

Each check gives a sentence for everything that is wrong. Signatures, and what the chain says, come as functions.
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

# The names that a validator gives its files.
_NAME = re.compile(r"round-([0-9]{1,5})-([0-9]{1,10})-[A-Za-z0-9]+\.jsonl")

_Value = TypeVar("_Value", bound=Hashable)

# Shares pass through sums and quotients on their way to the chain; nothing that is paid hangs on less than this.
_SHARE_TOLERANCE = 1e-9


def check_consistency(file: RoundFile, known: Mapping[str, Receipt]) -> list[str]:
    """What does not fit together in the file. known: receipts by digest, of this file and of any other at hand."""
    header = file.header
    return [
        *_check_blocks(header),
        *_check_lines(header),
        *_check_receipts(file),
        *_check_losses(header, known),
        *_check_table(header),
        *_check_weights(header),
    ]


def check_across_files(headers: Mapping[str, RoundHeader]) -> dict[str, list[str]]:
    """What is wrong with each file beside the others: its name is another round's, or its signer tells two stories.

    A round that was written twice may have learnt of its weights, and of late receipts, in between; its inputs and its
    table stay. A name that no validator gives says nothing. headers: by the files' paths.
    """
    found: dict[str, list[str]] = {path: [] for path in headers}
    stories: dict[tuple[str, int, int], tuple[str, RoundHeader]] = {}
    for path, header in headers.items():
        named = _NAME.fullmatch(path.rpartition("/")[2])
        if named is not None and (int(named[1]), int(named[2])) != (header.netuid, header.start_block):
            found[path].append(f"the name is of another round than netuid {header.netuid}, block {header.start_block}")
        if header.signer is None:
            continue
        story = dataclasses.replace(header, weights=(), receipts=0, receipts_sha256="", signature=None)
        first, told = stories.setdefault((header.signer, header.netuid, header.start_block), (path, story))
        if story != told:
            found[path].append(f"{header.signer} tells something else of this round in {first}")
    return found


def check_signatures(file: RoundFile, verify: Callable[[str, bytes, str], bool]) -> tuple[str | None, dict[int, str]]:
    """What is wrong with the header's signature, None when nothing is, and the same by index for receipts.

    verify(signer, message, signature) tells a true one. A file without a signer has no signatures to be wrong.
    """
    header = file.header
    return _bad_signature(header, header.signer, verify), {
        at: wrong
        for at, receipt in enumerate(file.receipts)
        if (wrong := _bad_signature(receipt, header.signer, verify)) is not None
    }


def _bad_signature(
    signed: RoundHeader | Receipt, validator: str | None, verify: Callable[[str, bytes, str], bool]
) -> str | None:
    if signed.signer != validator:
        return f"signed by {signed.signer or 'nobody'}, and the round by {validator or 'nobody'}"
    if signed.signer is None:
        return None if signed.signature is None else "a signature of nobody"
    if signed.signature is None:
        return f"not signed by {signed.signer}, who is named as its signer"
    return None if verify(signed.signer, signed.message(), signed.signature) else f"NOT VALID for {signed.signer}"


def check_against_chain(header: RoundHeader, block_hash: Callable[[int], str]) -> list[str]:
    """What the chain contradicts: the hash of start_block, and seeds that were to come from it.

    Calls block_hash(number) once for each block; what that raises passes.
    """
    found: list[str] = []
    blocks = {header.start_block}
    is_from_chain = header.lucky_num_from == "chain"
    if is_from_chain:
        blocks |= {entry.seed_block for entry in header.entries if entry.seed_block is not None}
    hashes = {block: block_hash(block) for block in sorted(blocks)}
    if hashes[header.start_block].lower() != header.start_block_hash.lower():
        found.append(f"block {header.start_block} has the hash {hashes[header.start_block]}, not that of the file")
    for entry in header.entries if is_from_chain else ():
        if entry.seed_block is None or entry.lucky_num is None:
            continue
        seed = seed_from_hash(hashes[entry.seed_block])
        if seed != entry.lucky_num:
            found.append(f"{entry.hotkey}: block {entry.seed_block} gives the lucky_num {seed}, not {entry.lucky_num}")
    return found


def _check_blocks(header: RoundHeader) -> Iterator[str]:
    if not header.start_block <= header.opened_block <= header.end_block:
        yield f"blocks out of order: {header.start_block}, {header.opened_block}, {header.end_block}"
    if header.lucky_num_from != "chain":
        return
    try:
        seed = seed_from_hash(header.start_block_hash)
    except ValueError:
        yield "start_block_hash is no hash"
        return
    if seed != header.lucky_num:
        yield f"start_block_hash gives the lucky_num {seed}, not {header.lucky_num}"
    for entry in header.entries:
        yield from (f"{entry.hotkey}: {wrong}" for wrong in _check_seed_block(header, entry))


def _check_seed_block(header: RoundHeader, entry: EntryLine) -> Iterator[str]:
    """The block that gives an entry its seed is not the validator's to choose."""
    if (entry.lucky_num is None) != (entry.seed_block is None):
        yield "a lucky_num from the chain needs its seed_block, and only it has one"
    if entry.seed_block is None:
        return
    if not entry.block <= entry.seed_block <= header.start_block:
        yield f"its seed_block {entry.seed_block} is not between its commitment and the round's start"
    elif header.seed_period is not None:
        expected = seed_block(entry.block, header.seed_period)
        if entry.seed_block != expected:
            yield f"its seed_block is {entry.seed_block}, and every {header.seed_period} blocks give {expected}"


def _check_lines(header: RoundHeader) -> Iterator[str]:
    """Every entry stands once in the table, as the same uid, and nobody else does."""
    entries = _by_hotkey(header)
    for name, hotkeys in (
        ("entries", [entry.hotkey for entry in header.entries]),
        ("queue", header.queue),
        ("table", [line.hotkey for line in header.table]),
    ):
        yield from (f"{hotkey}: more than once in {name}" for hotkey in _doubled(hotkeys))
        if name != "entries":
            yield from (f"{hotkey}: in {name}, not in entries" for hotkey in hotkeys if hotkey not in entries)
    yield from (f"uid {uid}: more than once in entries" for uid in _doubled(entry.uid for entry in header.entries))
    for line in header.table:
        entry = entries.get(line.hotkey)
        if entry is not None and (line.uid, line.entry) != (entry.uid, entry.entry):
            yield f"{line.hotkey}: the table has another uid or commitment than the entries"
    if header.table:
        listed = {line.hotkey for line in header.table}
        yield from (f"{hotkey}: in entries, not in the table" for hotkey in entries if hotkey not in listed)


def _doubled(values: Iterable[_Value]) -> list[_Value]:
    """Those that stand more than once among the values."""
    return [value for value, count in Counter(values).items() if count > 1]


def _by_hotkey(header: RoundHeader) -> dict[str, EntryLine]:
    return {entry.hotkey: entry for entry in header.entries}


def _check_receipts(file: RoundFile) -> Iterator[str]:
    """Every receipt is of this round, and is what the table names for its hotkey."""
    header = file.header
    entries = _by_hotkey(header)
    # What ended after the table was made is in no line of it.
    named = {line.hotkey: line.receipt for line in header.table if line.loss is not None}
    owners = [receipt.submission.hotkey for receipt in file.receipts if receipt.submission is not None]
    yield from (f"{hotkey}: more than one receipt" for hotkey in _doubled(owners))
    for at, receipt in enumerate(file.receipts, start=2):
        where = f"line {at}"
        submission = receipt.submission
        if submission is None:
            yield f"{where}: the receipt is of a local file"
            continue
        where = f"{where}, {submission.hotkey}"
        yield from (f"{where}: {wrong}" for wrong in _check_contest(header, receipt))
        entry = entries.get(submission.hotkey)
        if entry is None or not _is_of(receipt, entry.entry):
            yield f"{where}: the receipt is of {submission.repo} at {submission.commit}, which is no entry"
            continue
        if receipt.result.lucky_num != entry.lucky_num:
            yield f"{where}: scored under the lucky_num {receipt.result.lucky_num}, and its entry has {entry.lucky_num}"
        if named.get(submission.hotkey, receipt.digest) != receipt.digest:
            yield f"{where}: the table does not rest on this receipt"


def _check_contest(header: RoundHeader, receipt: Receipt) -> Iterator[str]:
    """What of the receipt belongs to another contest than the header's."""
    assert receipt.submission is not None
    result = receipt.result
    if receipt.submission.netuid != header.netuid:
        yield f"the receipt is of netuid {receipt.submission.netuid}, and the round of {header.netuid}"
    if receipt.competition != header.competition:
        yield "the receipt is of another competition than the round"
    if result.hyperparameters_digest != header.hyperparameters_digest:
        yield "the receipt is of other hyperparameters than the round"
    model = f"{result.model_id}@{result.model_revision or result.model_digest}"
    if header.model.split(" ")[0] != model:
        yield f"the receipt is of the model {model}, and the round of {header.model}"


def _is_of(receipt: Receipt, entry: str) -> bool:
    """True when the receipt is of the dataset that a commitment's text names."""
    assert receipt.submission is not None
    parts = entry.split(":")
    commits = (receipt.submission.commit, receipt.result.train_sha256)
    return parts[:2] == [receipt.submission.repo, receipt.competition.id] and parts[2:] in [[one] for one in commits]


def _check_losses(header: RoundHeader, known: Mapping[str, Receipt]) -> Iterator[str]:
    """Every loss of the table rests on a receipt, and equals the receipt's where that is at hand."""
    for line in header.table:
        if line.loss is None:
            continue
        if line.receipt is None:
            yield f"{line.hotkey}: a loss without a receipt"
            continue
        receipt = known.get(line.receipt)
        if receipt is None:
            continue
        if receipt.submission is None or receipt.submission.hotkey != line.hotkey or not _is_of(receipt, line.entry):
            yield f"{line.hotkey}: the table's loss rests on a receipt of another dataset"
        elif receipt.result.loss != line.loss:
            yield f"{line.hotkey}: the table has the loss {line.loss!r}, and the receipt {receipt.result.loss!r}"


def _check_table(header: RoundHeader) -> Iterator[str]:
    """Scores follow from the losses, and weights from the scores, to the last bit."""
    scores = {line.hotkey: _expected_score(line, header) for line in header.table}
    shares = shares_from_scores(scores)
    for line in header.table:
        score, share = scores[line.hotkey], shares.get(line.hotkey, 0.0)
        if line.score != score:
            yield f"{line.hotkey}: the score is {score!r} by the rules, and {line.score!r} in the table"
        if line.weight != share:
            yield f"{line.hotkey}: the weight is {share!r} by the rules, and {line.weight!r} in the table"


def _expected_score(line: TableLine, header: RoundHeader) -> float:
    return 0.0 if line.loss is None or line.reason is not None else score_of(line.loss, header.competition)


def _check_weights(header: RoundHeader) -> Iterator[str]:
    """The weights that count are those of the table."""
    submitted = _final_weights(header)
    if submitted is None or not header.table:
        return
    where = f"weights of block {submitted.block}"
    paid = {line.hotkey: line.weight for line in header.table if line.weight > 0.0}
    if not paid:
        yield from _check_burn(submitted, header)
        return
    given = {hotkey: share for hotkey, share in submitted.shares.items() if share > 0.0}
    for hotkey in sorted({*paid, *given}):
        expected, found = paid.get(hotkey, 0.0), given.get(hotkey, 0.0)
        if not math.isclose(expected, found, rel_tol=_SHARE_TOLERANCE):
            yield f"{where}: {hotkey} has the weight {expected!r} in the table, and {found!r} was submitted"
    yield from (f"{where}: {wrong}" for wrong in _check_alignment(submitted, header.table))


def _final_weights(header: RoundHeader) -> WeightsLine | None:
    """The round's own weights that the chain took last, else the last that were submitted: the others do not stand."""
    own = [one for one in header.weights if not one.is_repeat]
    return next(reversed([one for one in own if one.is_accepted] or own), None)


def _check_burn(submitted: WeightsLine, header: RoundHeader) -> Iterator[str]:
    """Where nobody has a score all goes to one hotkey, the owner's; earlier shares may stand while some still wait."""
    if _is_judged(header) and sum(share > 0.0 for share in submitted.shares.values()) > 1:
        yield f"weights of block {submitted.block}: several hotkeys have a share, and nobody has a score"


def _is_judged(header: RoundHeader) -> bool:
    """True when nobody in the table waits for its turn."""
    return all(line.reason is not None or line.loss is not None for line in header.table)


def _check_alignment(submitted: WeightsLine, table: Sequence[TableLine]) -> Iterator[str]:
    """Every uid was given its hotkey's share, but for hotkeys that have lost theirs since the snapshot."""
    owners = {line.uid: line.hotkey for line in table}
    ratios = []
    for uid, weight in submitted.weights.items():
        share = submitted.shares.get(owners.get(int(uid), ""), 0.0)
        if weight > 0.0 and share <= 0.0:
            yield f"uid {uid} was given {weight!r}, and no hotkey of the table with a weight has that uid"
        elif weight > 0.0:
            ratios.append(weight / share)
    if ratios and not math.isclose(min(ratios), max(ratios), rel_tol=_SHARE_TOLERANCE):
        yield "the weights by uid are not in proportion to the shares by hotkey"


def remarks(file: RoundFile, known: Mapping[str, Receipt]) -> list[str]:
    """What is not wrong, and cannot be told to be right from this file alone."""
    header = file.header
    notes = [] if header.signer else ["nobody signed the file: it proves nothing about any validator"]
    missing = sum(line.receipt is not None and line.receipt not in known for line in header.table)
    if missing:
        notes.append(f"{missing} losses rest on receipts of other rounds; give those files, too, to check them")
    late = {line.hotkey for line in header.table if line.loss is None} & {
        receipt.submission.hotkey for receipt in file.receipts if receipt.submission
    }
    notes += [f"{hotkey}: scored too late for the table" for hotkey in sorted(late)]
    submitted = _final_weights(header)
    if submitted is None:
        return notes
    paid = [line for line in header.table if line.weight > 0.0]
    if not paid and submitted.shares and _is_judged(header):
        notes.append(f"nobody has a score, and all went to {', '.join(submitted.shares)}: is that the subnet's owner?")
    left_out = [line for line in paid if str(line.uid) not in submitted.weights]
    return notes + [f"{line.hotkey}: no weight for its uid {line.uid}; had it lost it by then?" for line in left_out]
