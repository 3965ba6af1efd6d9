"""The sentences about a dataset that waits."""

import dataclasses

import pytest

from template.receipts.files import read_header
from template.receipts.round_file import RoundHeader
from template.site.words import WAITING, explain_verdict
from tests.fixtures.season import Season


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> RoundHeader:
    """Return a round in which nothing is evaluated, of datasets committed one block after another."""
    (path,) = Season(5).write(tmp_path_factory.mktemp("season"), 1)
    header, _ = read_header(path)
    table = [dataclasses.replace(line, runs=0, mean=None, loss=None, weight=0.0) for line in header.table]
    entries = [dataclasses.replace(line, commit_block=line.uid) for line in header.entries]
    table.sort(key=lambda line: line.uid)
    return dataclasses.replace(header, table=tuple(table), entries=tuple(entries), ledger=(), evaluations=())


def explain(header: RoundHeader, *unread: int, uid: int, message: str = "") -> str:
    """Return what is said about the dataset of a uid, with `message`, where `unread` are not downloaded."""
    table = [dataclasses.replace(line, digest=None) if line.uid in unread else line for line in header.table]
    line = dataclasses.replace(table[uid], message=message)
    verdict = explain_verdict(line, dataclasses.replace(header, table=tuple(table)), None)
    assert verdict.code == WAITING
    return verdict.why


@pytest.mark.parametrize(
    ("unread", "uid", "expected"),
    [
        ((), 0, "Not evaluated yet. 4 other datasets wait for the same."),
        ((1, 2, 4), 4, "Not downloaded yet. 2 other datasets wait for the same."),
        ((1, 4), 4, "Not downloaded yet. 1 other dataset waits for the same."),
        ((4,), 4, "Not downloaded yet."),
    ],
)
def test_dataset_is_told_how_many_wait_for_the_same(
    header: RoundHeader, unread: tuple[int, ...], uid: int, expected: str
) -> None:
    assert explain(header, *unread, uid=uid) == expected


def test_dataset_that_counts_later_is_told_the_block(header: RoundHeader) -> None:
    why = explain(header, 3, uid=3, message="counts from block 7560")
    assert why == "Not evaluated yet: it counts from block 7560."


def test_dataset_without_a_file_is_told_so(header: RoundHeader) -> None:
    (hotkey,) = (line.hotkey for line in header.table if line.uid == 2)
    why = explain(dataclasses.replace(header, missing=(hotkey,)), 1, 2, uid=2)
    assert why == "Not downloaded yet: its file is not on the Hub."
