"""Receipts on disk."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from template.competition import Competition
from template.config import load_training_args
from template.errors import ConfigError, HostError
from template.receipts.files import read_receipt, write_receipt
from template.receipts.receipt import EvaluatedSubmission, Receipt
from tests.fixtures.fakes import FakeEvaluator
from tests.fixtures.results import fake_result

SUBMISSION = EvaluatedSubmission(netuid=7, hotkey="5Hot", repo="me/data", commit="ab" * 20)
NAME = "5Hot-abababababab-7.json"


def make_receipt(*, submission: EvaluatedSubmission | None = SUBMISSION, lucky_num: int = 7) -> Receipt:
    competition = Competition.from_defaults()
    evaluator = FakeEvaluator(competition=competition, training_args=load_training_args(), eval_data_dir=Path("unused"))
    result = fake_result(evaluator, "c" * 64, rows=12, lucky_num=lucky_num)
    return Receipt(competition=competition, submission=submission, result=result, signer="5Val", signature="0" * 128)


@pytest.mark.parametrize(
    ("receipt", "name"),
    [
        (make_receipt(), NAME),
        (make_receipt(submission=None), "local-cccccccccccc-7.json"),
        (make_receipt(lucky_num=8), "5Hot-abababababab-8.json"),
    ],
)
def test_receipt_file_is_named_by_dataset_and_seed(tmp_path: Path, receipt: Receipt, name: str) -> None:
    assert write_receipt(receipt, tmp_path).name == name


def test_writing_a_receipt_makes_folders_and_leaves_one_file(tmp_path: Path) -> None:
    path = write_receipt(make_receipt(), tmp_path / "a" / "b")
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text().endswith("}\n")


def test_rewriting_a_receipt_replaces_it_whole_for_readers(tmp_path: Path) -> None:
    path = write_receipt(make_receipt(), tmp_path)
    with path.open("rb") as reader:
        newer = dataclasses.replace(make_receipt(), signature="1" * 128)
        assert write_receipt(newer, tmp_path) == path
        assert b"0" * 128 in reader.read()
    assert read_receipt(path) == newer


def test_receipt_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power loss may keep the name and lose the content."""
    synced: list[tuple[bytes, bool]] = []

    def fsync(fd: int) -> None:
        (partial,) = tmp_path.iterdir()
        assert partial.samefile(f"/proc/self/fd/{fd}")
        synced.append((partial.read_bytes(), partial.name.startswith(".")))

    monkeypatch.setattr(os, "fsync", fsync)
    path = write_receipt(make_receipt(), tmp_path)
    assert synced == [(path.read_bytes(), True)]


def test_disk_refusing_a_receipt_leaves_nothing_partial(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"cannot write .*file/5Hot"):
        write_receipt(make_receipt(), tmp_path / "file")
    (tmp_path / NAME).mkdir()
    with pytest.raises(HostError, match=NAME):
        write_receipt(make_receipt(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, "file"]


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "malformed": (lambda path: path.write_bytes(b"{"), "not JSON"),
    "missing": (lambda path: None, "cannot be read: No such file"),
    "a folder": (Path.mkdir, "cannot be read: Is a directory"),
    "huge": (lambda path: path.write_bytes(bytes(2 << 20)), "more than 1048576 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unreadable_receipt_is_refused_with_its_path(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    make(tmp_path / "r.json")
    with pytest.raises(ConfigError, match=rf"r\.json: {message}"):
        read_receipt(tmp_path / "r.json")
