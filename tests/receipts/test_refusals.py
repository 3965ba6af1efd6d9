"""Duplicates of datasets that came late or were sealed, and copies of them, in a round file."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import pytest

from template.competition import CommitmentRecord
from template.errors import Reason, SubmissionError
from template.receipts.history import CheckedRound, History, Season
from template.receipts.refusals import RefusalCheck
from template.receipts.round_file import RoundHeader, TableLine, make_round_lines
from template.records import ContentKey, Dataset, SubmissionKey
from template.rules.stands import Version
from tests.fixtures.rounds import ACCOUNT, SIGNER, sign
from tests.fixtures.table import make_dataset

HEADER = RoundHeader.from_json(make_round_lines(ACCOUNT, signer=SIGNER, sign=sign)[0], "a round")
AUTHOR, COPIER, _, OTHER = (line.hotkey for line in HEADER.table)

# Public from, and committed in. The author's file came a round after its commitment, or that was sealed until 34.
BLOCKS = {AUTHOR: (36, 30), COPIER: (32, 31), OTHER: (28, 27)}
REVEALED = {AUTHOR: 34, COPIER: 31, OTHER: 27}


def read_versions(table: Sequence[TableLine]) -> Mapping[ContentKey, Version]:
    """Return the versions by the entries of a file, in which the author's commitment was sealed."""
    entries = tuple(
        dataclasses.replace(line, block=REVEALED[line.hotkey], commit_block=BLOCKS[line.hotkey][1])
        for line in HEADER.entries
        if line.hotkey in BLOCKS
    )
    header = dataclasses.replace(HEADER, entries=entries, table=tuple(table), evaluations=(), ledger=())
    return History({}).add(header).versions


def check(
    author: Iterable[int],
    copier: Iterable[int],
    other: Iterable[int] = range(9000, 9100),
    *,
    is_paid: bool,
    is_sealed: bool = False,
) -> tuple[list[str], list[str]]:
    """Return findings and notes about the copier, paid or the author's duplicate, and about the author."""
    rows = {AUTHOR: make_dataset(author), COPIER: make_dataset(copier), OTHER: make_dataset(other)}
    shared = len(set(rows[AUTHOR].row_keys) & set(rows[COPIER].row_keys))
    prefix = rows[AUTHOR].digest[:12]
    message = f"shares {shared} rows with the earlier dataset of {AUTHOR} (rows {prefix}, block 32)"
    table = [
        dataclasses.replace(line, digest=rows[line.hotkey].digest, reason=None, message="", weight=0.3)
        for line in HEADER.table
        if line.hotkey in rows
    ]
    if not is_paid:
        table[1] = dataclasses.replace(table[1], reason=Reason.DUPLICATE, message=message, weight=0.0)
    versions = {
        ContentKey(line.hotkey, line.digest or ""): Version(
            key=SubmissionKey(line.hotkey, line.entry), digest=line.digest or "", registration_block=1,
            first_block=32, last_block=36, commit_block=BLOCKS[line.hotkey][1], rank_block=36, seed_block=36,
            public_block=BLOCKS[line.hotkey][0], public_commit_block=BLOCKS[line.hotkey][1],
        )
        for line in table
    }  # fmt: skip
    if is_sealed:
        versions = dict(read_versions(table))
    hotkeys = {line.entry.split(":")[0]: line.hotkey for line in table}

    def read(record: CommitmentRecord) -> Dataset:
        if record.namespace not in hotkeys:
            raise SubmissionError(Reason.MISSING_FILE, "no file")
        return rows[hotkeys[record.namespace]]

    header = dataclasses.replace(HEADER, table=tuple(table), ledger=())
    checked = CheckedRound([], Season(), 28, {}, {}, versions, set(), set())
    refusals = RefusalCheck(read, {(AUTHOR, prefix): table[0].entry}, None, finds_copies=True)
    findings = [finding.text for finding in refusals.check(header, checked)]
    return [text.replace(COPIER, "copier").replace(AUTHOR, "author") for text in findings], refusals.notes


@pytest.mark.parametrize("is_sealed", [False, True], ids=["late", "sealed"])
def test_duplicate_of_a_late_or_sealed_dataset_is_no_lie(is_sealed: bool) -> None:
    assert check(range(250), range(250), is_paid=False, is_sealed=is_sealed) == ([], [])


@pytest.mark.parametrize("is_sealed", [False, True], ids=["late", "sealed"])
def test_duplicate_of_a_hidden_or_sealed_mosaic_is_found(is_sealed: bool) -> None:
    mosaic = [*range(9000, 9100), *range(150)]
    findings, _ = check(mosaic, range(9000, 9200), is_paid=False, is_sealed=is_sealed)
    text = "0 of the shared rows were in no dataset before the commitment of author; 80 are allowed"
    assert findings == [f"copier: duplicate of a dataset that came late or was sealed: {text}"]


def test_paid_copy_of_a_late_file_is_a_note() -> None:
    findings, notes = check(range(250), range(250), is_paid=True)
    text = f"250 of its 250 rows are in the earlier dataset of {AUTHOR}, which came late or was sealed"
    assert findings == [] and notes == [f"{COPIER}: has a share, and {text}"]


def test_author_of_a_late_file_is_no_paid_copy() -> None:
    assert check(range(100), range(50, 300), is_paid=True) == ([], [])
