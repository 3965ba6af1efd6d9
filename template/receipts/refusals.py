"""Check the refusals of a round: download the datasets, and apply the rules again."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from template.chain.protocols import AuditChain
from template.competition import CommitmentRecord
from template.errors import Reason, RemoteError, SubmissionError
from template.receipts.findings import Finding, Kind
from template.receipts.history import CheckedRound
from template.receipts.round_file import RoundFile, RoundHeader, TableLine
from template.records import ContentKey, Dataset, LedgerLine, Rank, SubmissionKey
from template.rules.duplicates import Candidate, match_duplicates, max_shared, public_ranks
from template.rules.entries import MISSING
from template.rules.leaderboard import COUNTS_LATER
from template.rules.stands import Version, align

# Reasons that follow from the text of a commitment, and those from the content of a file.
_OF_TEXT = (Reason.BAD_COMMITMENT, Reason.WRONG_COMPETITION, Reason.BEFORE_REGISTRATION)
_OF_CONTENT = (Reason.TOO_LARGE, Reason.MALFORMED, Reason.EMPTY, Reason.NOT_IN_POOL)

# Written by `template.rules.duplicates.Duplicate`.
_DUPLICATE = re.compile(
    r"shares ([0-9]{1,5}) rows with the earlier dataset of (\w{1,64}) \(rows ([0-9a-f]{12}), block ([0-9]{1,10})\)"
)

# Written by `template.rules.leaderboard`.
_COUNTS_LATER = re.compile(COUNTS_LATER + " ([0-9]{1,10})")

Read = Callable[[CommitmentRecord], Dataset]
"""Downloads and checks a dataset. Raises: SubmissionError, RemoteError."""


def check_commitments(header: RoundHeader) -> Iterator[Finding]:
    """Check the refusals that follow from a commitment's text and blocks."""
    entries = {line.hotkey: line for line in header.entries}
    for line in header.table:
        entry = entries.get(line.hotkey)
        if entry is None or entry.entry != line.entry:
            continue
        rejection = entry.to_entry(header.competition.id).rejection
        expected = None if rejection is None else rejection.reason
        if line.reason != expected and (expected is not None or line.reason in _OF_TEXT):
            text = f"{line.reason or 'not refused'} in the table, by its commitment {expected or 'valid'}"
            yield Finding(Kind.REFUSAL, f"{line.hotkey}: {text}")


def commitments_in(files: Iterable[RoundFile]) -> dict[tuple[str, str], str]:
    """Return the commitment of each dataset in the files, as `RefusalCheck` takes them."""
    return {
        (line.hotkey, line.digest[:12]): line.entry
        for file in files
        for line in file.header.datasets
        if line.digest is not None
    }


class RefusalCheck:
    """Check of the refused datasets of one competition on the Hub.

    Args:
        read: Downloads and checks a dataset.
        commitments: Texts of datasets in any file at hand, by hotkey and the first 12 digits of the digest.
        chain: Finds the text of an original that is in no file; None without a chain.
        finds_copies: Download all datasets with a share, and those that they may copy.
    """

    def __init__(
        self,
        read: Read,
        commitments: Mapping[tuple[str, str], str],
        chain: AuditChain | None,
        *,
        finds_copies: bool = False,
    ) -> None:
        self.notes: list[str] = []
        self.unanswered: list[str] = []
        self._read_dataset = read
        self._commitments = commitments
        self._chain = chain
        self._finds_copies = finds_copies
        self._read: dict[SubmissionKey, Dataset | SubmissionError] = {}

    def check(self, header: RoundHeader, checked: CheckedRound) -> list[Finding]:
        """Check the next file; `notes` and `unanswered` are then those of this file."""
        self.notes, self.unanswered = [], []
        findings = self.find_copies(header, checked) if self._finds_copies else []
        for line in header.table:
            try:
                if line.reason is Reason.DUPLICATE:
                    findings += self._check_duplicate(line, header, checked)
                elif line.reason in (*_OF_CONTENT, *MISSING):
                    findings += self._check_content(line)
                elif line.reason is None and line.digest is None:
                    findings += self._check_waiting(line, header, checked)
                elif line.reason in (Reason.DIVERGED, Reason.NO_TARGET):
                    self.notes.append(f"{line.hotkey}: {line.reason}; only an evaluation can show it")
            except RemoteError as error:
                self.unanswered.append(f"{line.hotkey}: {error}")
        for record in header.ledger:
            if record.is_absent:
                self._check_absent(record)
        return findings

    def _check_absent(self, line: LedgerLine) -> None:
        """Note whether the file of an unpaid record is on the Hub now."""
        where = f"{line.hotkey}: record {line.digest[:12]} unpaid for a missing file"
        text = self._commitments.get((line.hotkey, line.digest[:12]))
        if text is None:
            self.notes.append(f"{where}, and its commitment is in no file here")
            return
        try:
            if not isinstance(self._read_once(line.hotkey, text), SubmissionError):
                self.notes.append(f"{where}, and the Hub has the file now")
        except RemoteError as error:
            self.unanswered.append(f"{where}: {error}")

    def find_copies(self, header: RoundHeader, checked: CheckedRound) -> list[Finding]:
        """Download a round's datasets; find paid copies of earlier datasets."""
        period = header.incentives.blocks_per_epoch
        lines = [line for line in header.table if line.reason is None and line.digest is not None]
        candidates: list[Candidate] = []
        for line in lines if any(line.weight > 0.0 for line in lines) else ():
            version = checked.versions.get(ContentKey(line.hotkey, line.digest or ""))
            if version is None:
                continue
            try:
                dataset = self._read_once(line.hotkey, line.entry)
            except RemoteError as error:
                self.unanswered.append(f"{line.hotkey}: {error}")
                continue
            rank, promised = _ranks(version, period)
            row_keys = () if isinstance(dataset, SubmissionError) else dataset.row_keys
            candidates.append(
                Candidate(hotkey=line.hotkey, digest=version.digest, rank=rank, promised=promised, row_keys=row_keys)
            )
        by_key = {ContentKey(candidate.hotkey, candidate.digest): candidate for candidate in candidates}
        paid, findings = {line.hotkey for line in lines if line.weight > 0.0}, []
        for key, duplicate in match_duplicates(candidates).items():
            own, original = by_key[key], by_key[ContentKey(duplicate.hotkey, duplicate.digest)]
            # Within one commit block, only the block's hash decides.
            if key.hotkey not in paid or own.rank[:2] == original.rank[:2]:
                continue
            shared = f"{duplicate.shared} of its {len(set(own.row_keys))} rows"
            text = f"{key.hotkey}: has a share, and {shared} are in the earlier dataset of {duplicate.hotkey}"
            if original.rank < own.rank:
                findings.append(Finding(Kind.COPY, text))
            else:
                # Rows of earlier datasets do not count, and not all of them are in this file.
                self.notes.append(f"{text}, which came late or was sealed")
        return findings

    def _check_waiting(self, line: TableLine, header: RoundHeader, checked: CheckedRound) -> Iterator[Finding]:
        """Check a dataset that is to count later, or whose file was not read yet."""
        match = _COUNTS_LATER.match(line.message)
        if match is None:
            if not isinstance(self._read_once(line.hotkey, line.entry), SubmissionError):
                self.notes.append(f"{line.hotkey}: waits for its download, and the Hub has its file now")
            return
        rules, block = header.incentives, int(match[1])
        own = [version for key, version in checked.versions.items() if key.hotkey == line.hotkey and version.is_counted]
        if not own and checked.first_block > header.start_block - rules.update_blocks:
            self.notes.append(f"{line.hotkey}: counts from block {block}, because of a dataset that is in no file here")
            return
        last = max((version.rank_block for version in own), default=0)
        # A late file counts from the second round after the last one in which it was missing.
        rounds = 2 if line.hotkey in header.missing else 1
        earliest = max(last + rules.update_blocks, header.start_block + rounds * rules.blocks_per_epoch)
        if block > align(earliest, rules.blocks_per_epoch):
            text = f"counts from block {block} in the table, by the entries of these files from {earliest} at most"
            yield Finding(Kind.RANK, f"{line.hotkey}: {text}")

    def _check_content(self, line: TableLine) -> Iterator[Finding]:
        dataset = self._read_once(line.hotkey, line.entry)
        if isinstance(dataset, SubmissionError):
            if dataset.reason in MISSING and line.reason not in MISSING:
                self.notes.append(f"{line.hotkey}: {line.reason} in the table, and its dataset is gone")
        elif line.reason in MISSING:
            # Anyone can hide a file for a while, and there is no later proof that it was there.
            self.notes.append(f"{line.hotkey}: {line.reason} in the table, and the Hub has its file now")
        else:
            yield Finding(Kind.REFUSAL, f"{line.hotkey}: {line.reason} in the table, and its dataset passes the check")

    def _check_duplicate(self, line: TableLine, header: RoundHeader, checked: CheckedRound) -> Iterator[Finding]:
        where = f"{line.hotkey}: duplicate"
        match = _DUPLICATE.fullmatch(line.message)
        if match is None:
            yield Finding(Kind.REFUSAL, f"{where} of no dataset that the message names")
            return
        shared, hotkey, prefix, block = int(match[1]), match[2], match[3], int(match[4])
        if hotkey == line.hotkey:
            yield Finding(Kind.REFUSAL, f"{where} of its own dataset")
        refused = {(row.hotkey, row.digest[:12]) for row in header.table if row.digest and row.reason is not None}
        if (hotkey, prefix) in refused:
            yield Finding(Kind.REFUSAL, f"{where} of a dataset that is refused itself: {hotkey} (rows {prefix})")
        if not 0 < block <= header.start_block:
            yield Finding(Kind.REFUSAL, f"{where} of a dataset from block {block}, which is not in the past")
            return
        period = header.incentives.blocks_per_epoch
        yield from _check_order(line, hotkey, prefix, block, checked, period)
        text = self._commitments.get((hotkey, prefix))
        if self._chain is not None:
            public = next((item for item in self._chain.snapshot(block).commitments if item.hotkey == hotkey), None)
            if public is None:
                text_at = f"{hotkey} has no commitment at block {block}"
                yield Finding(Kind.REFUSAL, f"{where} of a dataset that was not public then: {text_at}")
            text = text or (public.text if public else None)
        if text is None:
            self.notes.append(f"{where} of a dataset that is in no file here: audit with a chain")
            return
        own, original = self._read_once(line.hotkey, line.entry), self._read_once(hotkey, text)
        if isinstance(own, SubmissionError) or isinstance(original, SubmissionError):
            gone = next(error for error in (own, original) if isinstance(error, SubmissionError))
            self.notes.append(f"{where} that cannot be compared any more: {gone}")
            return
        if own.digest != line.digest or not original.digest.startswith(prefix):
            yield Finding(Kind.REFUSAL, f"{where}, but the Hub has other rows: {own.digest}, {original.digest}")
            return
        rows = set(own.row_keys)
        actual, allowed = len(rows & set(original.row_keys)), max_shared(len(rows))
        if actual <= allowed or actual != shared:
            text = f"shares {actual} rows with the dataset of {hotkey}, not {shared}; {allowed} are allowed"
            yield Finding(Kind.REFUSAL, f"{where} that {text}")
        version = checked.versions.get(ContentKey(hotkey, original.digest))
        promised = None if version is None else _ranks(version, period)[1]
        if promised is not None and promised.block == block:
            new = (rows & set(original.row_keys)) - self._rows_before(promised, header, checked)
            if len(new) <= allowed:
                text = f"{len(new)} of the shared rows were in no dataset before the commitment of {hotkey}"
                text = f"of a dataset that came late or was sealed: {text}; {allowed} are allowed"
                yield Finding(Kind.REFUSAL, f"{where} {text}")

    def _rows_before(self, rank: Rank, header: RoundHeader, checked: CheckedRound) -> set[bytes]:
        """Return the rows that other datasets of the table had in public before a rank."""
        rows: set[bytes] = set()
        for line in header.table:
            version = checked.versions.get(ContentKey(line.hotkey, line.digest or ""))
            if version is not None and _ranks(version, header.incentives.blocks_per_epoch)[0] < rank:
                dataset = self._read_once(line.hotkey, line.entry)
                rows.update(() if isinstance(dataset, SubmissionError) else dataset.row_keys)
        return rows

    def _read_once(self, hotkey: str, text: str) -> Dataset | SubmissionError:
        key = SubmissionKey(hotkey, text)
        if key not in self._read:
            try:
                self._read[key] = self._read_dataset(CommitmentRecord.parse(text, hotkey))
            except SubmissionError as error:
                self._read[key] = error
        return self._read[key]


def _ranks(version: Version, period: int) -> tuple[Rank, Rank | None]:
    return public_ranks(Rank(version.public_block, version.public_commit_block, b""), period)


def _check_order(
    line: TableLine, hotkey: str, prefix: str, block: int, checked: CheckedRound, period: int
) -> Iterator[Finding]:
    """Check that the original's rows were public before the duplicate's.

    Only rows that became public within these files can be compared.
    """
    versions = [version for version in checked.versions.values() if version.public_block >= checked.first_block]
    own = next((v for v in versions if (v.key.hotkey, v.digest) == (line.hotkey, line.digest)), None)
    original = next((v for v in versions if v.key.hotkey == hotkey and v.digest.startswith(prefix)), None)
    rank = Rank(block, 0, b"")
    if original is not None:
        arrived, promised = _ranks(original, period)
        rank = promised if promised is not None and promised.block == block else arrived._replace(block=block)
        if block < original.public_block and rank != promised:
            text = f"public from block {block} in the message, by the entries {original.public_block}"
            yield Finding(Kind.RANK, f"{line.hotkey}: the original's rows are {text}")
    if own is not None and rank[:2] > _ranks(own, period)[0][:2]:
        text = f"duplicate of rows that were public later: {block}, its own {own.public_block}"
        yield Finding(Kind.REFUSAL, f"{line.hotkey}: {text}")
