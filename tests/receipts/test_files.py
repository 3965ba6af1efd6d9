"""Receipts on disk."""

import dataclasses
import os
import struct
from pathlib import Path

import pytest

from template.competition import Competition
from template.config import load_training_args
from template.errors import ConfigError, HostError
from template.receipts.files import read_receipt, write_receipt
from template.receipts.receipt import EvaluatedSubmission, Receipt
from tests.fixtures.fakes import FakeEvaluator, make_result

SUBMISSION = EvaluatedSubmission(netuid=7, hotkey="5Hot", repo="me/data", commit="ab" * 20)


def make_receipt(*, submission: EvaluatedSubmission | None = SUBMISSION, lucky_num: int = 7) -> Receipt:
    competition = Competition.from_defaults()
    evaluator = FakeEvaluator(competition=competition, training_args=load_training_args(), eval_data_dir=Path("unused"))
    result = make_result(evaluator, "c" * 64, rows=12, lucky_num=lucky_num)
    return Receipt(competition=competition, submission=submission, result=result, signer="5Val", signature="0" * 128)


def test_a_receipt_comes_back_as_it_was(tmp_path: Path) -> None:
    for loss in (0.1 + 0.2, 5e-324, 1.7976931348623157e308):
        receipt = make_receipt()
        result = dataclasses.replace(receipt.result, loss=loss, step_losses=(loss, 1 / 3))
        receipt = dataclasses.replace(receipt, result=result)
        read = read_receipt(write_receipt(receipt, tmp_path))
        assert read == receipt
        assert struct.pack("<d", read.result.loss) == struct.pack("<d", loss)
        assert read.message() == receipt.message()


def test_a_file_is_named_by_whose_dataset_and_which_seed(tmp_path: Path) -> None:
    assert write_receipt(make_receipt(), tmp_path).name == "5Hot-abababababab-7.json"
    assert write_receipt(make_receipt(submission=None), tmp_path).name == "local-cccccccccccc-7.json"
    assert write_receipt(make_receipt(lucky_num=8), tmp_path).name == "5Hot-abababababab-8.json"
    assert len(list(tmp_path.iterdir())) == 3


def test_folders_are_made_and_nothing_partial_is_left(tmp_path: Path) -> None:
    path = write_receipt(make_receipt(), tmp_path / "a" / "b")
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text().endswith("}\n")


def test_an_equal_name_is_replaced_whole_under_the_eyes_of_a_reader(tmp_path: Path) -> None:
    path = write_receipt(make_receipt(), tmp_path)
    with path.open("rb") as reader:
        newer = dataclasses.replace(make_receipt(), signature="1" * 128)
        assert write_receipt(newer, tmp_path) == path
        assert b"0" * 128 in reader.read()
    assert read_receipt(path) == newer


def test_a_receipt_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a machine that loses its power may keep the name and lose what it names."""
    synced: list[tuple[bytes, bool]] = []

    def fsync(fd: int) -> None:
        (partial,) = tmp_path.iterdir()
        assert partial.samefile(f"/proc/self/fd/{fd}")
        synced.append((partial.read_bytes(), partial.name.startswith(".")))

    monkeypatch.setattr(os, "fsync", fsync)
    path = write_receipt(make_receipt(), tmp_path)
    assert synced == [(path.read_bytes(), True)]


def test_a_disk_that_refuses_is_the_hosts_fault_and_leaves_nothing_partial(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"cannot write the receipt .*file/5Hot"):
        write_receipt(make_receipt(), tmp_path / "file")
    (tmp_path / "5Hot-abababababab-7.json").mkdir()
    with pytest.raises(HostError, match=r"5Hot-abababababab-7\.json"):
        write_receipt(make_receipt(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5Hot-abababababab-7.json", "file"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "other"}',
        b'{"format": "dataset-score-receipt/1"}',
    ],
    ids=["empty", "half", "list", "text", "not UTF-8", "deep", "another format", "without content"],
)
def test_what_is_no_receipt_is_refused_with_the_files_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"r\.json"):
        read_receipt(path)


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.json: cannot be read: No such file"):
        read_receipt(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_receipt(tmp_path)


def test_a_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(ConfigError, match=r"huge\.json: more than 1048576 bytes"):
        read_receipt(path)
