"""The replay of one receipt: of which competition, and of which training."""

from pathlib import Path

import pytest

from scripts import compute_loss
from template.localnet.hub.store import upload_files
from template.receipts.files import write_receipt
from tests.fixtures.audit import Office
from tests.fixtures.network import SMALL, Ended, call_main, make_line


@pytest.fixture
def path(office: Office, tmp_path: Path) -> Path:
    return write_receipt(office.receipt("alice"), tmp_path)


def verify(office: Office, path: Path | str, *more: object) -> Ended:
    return call_main(compute_loss.main, "--verify", path, *office.settings, *more)


def verify_by_default(office: Office, path: Path, *more: object) -> Ended:
    """Verify under the subnet's own competition and training arguments."""
    places = ("--model_path", office.model, "--work_dir", office.folder / "work")
    return call_main(compute_loss.main, "--verify", path, *places, *more)


def test_receipt_names_its_competition(office: Office, path: Path) -> None:
    ended = verify(office, path)
    assert ended.status == 0, ended.logs
    digest, commit = office.net.competition.digest[:12], office.net.competition.eval_commit
    assert ended.output.splitlines()[0] == f"competition  sample {digest}, sample/pool@{commit}"


def test_receipt_of_another_competition_is_refused(office: Office, path: Path) -> None:
    ended = verify_by_default(office, path)
    assert ended.status == 8 and ended.output.splitlines()[-1] == "NOT COMPARABLE"
    assert ended.output.startswith(f"competition  sample {office.net.competition.digest[:12]}, sample/pool@")
    assert "receipt of another competition; name it with --competition; --any_competition replays it" in ended.output
    assert "replayed   None" in ended.output


def test_receipt_of_another_competition_replays_if_told(office: Office, path: Path) -> None:
    ended = verify_by_default(office, path, "--any_competition")
    assert ended.status == 0 and ended.output.splitlines()[-1] == "IDENTICAL"


@pytest.mark.parametrize(
    ("epochs", "model", "reason"),
    [
        (60, None, "receipt of other hyperparameters"),
        (1, "evil/model", "model evil/model, not"),
    ],
)
def test_receipt_of_other_training_is_refused(
    office: Office, tmp_path: Path, epochs: int, model: str | None, reason: str
) -> None:
    result = office.results["alice"]
    hyperparameters = {**result.hyperparameters, "num_train_epochs": epochs}
    receipt = office.receipt("alice", hyperparameters=hyperparameters, model_id=model or result.model_id)
    ended = verify(office, write_receipt(receipt, tmp_path))
    assert ended.status == 8 and f"note       {reason}" in ended.output


def test_receipt_of_rows_of_no_pool_is_different(office: Office, tmp_path: Path) -> None:
    rows = [*SMALL[:4], make_line(10**6)]
    commit = office.net.upload("bob", rows)
    receipt = office.receipt("bob", commit=commit, **vars(office.score(rows, 7)))
    ended = verify(office, write_receipt(receipt, tmp_path))
    assert ended.status == 7 and ended.output.splitlines()[-1] == "DIFFERENT"
    assert "a validator must reject the dataset (not_in_pool)" in ended.output


def test_any_competition_without_verify_is_refused(office: Office) -> None:
    assert call_main(compute_loss.main, "--dataset_path", "x", "--any_competition").status == 2


def test_receipt_of_a_published_round_file_is_identical(office: Office, tmp_path: Path) -> None:
    receipt = office.receipt("alice")
    file = office.write(tmp_path, receipt, office.receipt("bob"))
    upload_files(office.net.hub.store.root, "validator/rounds", {file.name: file})
    for source in (file, f"validator/rounds/{file.name}"):
        ended = verify(office, source, "--receipt", receipt.digest[:16])
        assert ended.status == 0 and ended.output.splitlines()[-1] == "IDENTICAL", ended.logs
    ended = verify(office, file, "--receipt", "0" * 16)
    assert ended.status == 3 and "0 of the 2 receipts of" in ended.logs[-1]
