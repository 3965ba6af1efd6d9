"""Where round files are found."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from template.chain_records import ChainCommitment
from template.errors import ConfigError
from template.localnet.hub.store import upload_files
from template.receipts.sources import RoundSource, open_source, read_published_receipt
from tests.fixtures.chain import make_key
from tests.fixtures.faulty_hub import FaultyHub
from tests.fixtures.hub import use_endpoint

REPO, NAME = "val/rounds", "round-96-360-5Ef1ucvE.jsonl"
HOTKEY = make_key("validator").ss58_address


@pytest.fixture
def hub(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyHub]:
    use_endpoint(server, monkeypatch)
    upload_files(server.store.root, REPO, {NAME: b"one\n", "README.md": b"text", "old/round-96-0-x.jsonl": b"old\n"})
    yield server


def announce(repo: str | None) -> ChainCommitment:
    return ChainCommitment(hotkey=HOTKEY, block=1, text=None, rounds_repo=repo)


def fetch(source: str, folder: Path, repo: str | None = REPO) -> RoundSource:
    return open_source(source, folder, token=None, find_commitment=lambda hotkey: announce(repo))


def test_repo_gives_its_round_files_only(hub: FaultyHub, tmp_path: Path) -> None:
    source = fetch(REPO, tmp_path)
    assert [path.name for path in source.paths] == [NAME] and (source.repo, source.signer) == (REPO, None)


def test_changed_file_is_downloaded_again(hub: FaultyHub, tmp_path: Path) -> None:
    fetch(REPO, tmp_path)
    upload_files(hub.store.root, REPO, {NAME: b"two\n"})
    (path,) = fetch(REPO, tmp_path).paths
    assert path.read_bytes() == b"two\n"


def test_hotkey_leads_to_the_repo_that_it_announced(hub: FaultyHub, tmp_path: Path) -> None:
    source = fetch(HOTKEY, tmp_path)
    assert (source.repo, source.signer, len(source.paths)) == (REPO, HOTKEY, 1)


@pytest.mark.parametrize(
    ("source", "repo", "sentence"),
    [
        (HOTKEY, None, "has announced no repo of round files"),
        (HOTKEY, "../../etc", "which is no Hub id like owner/name"),
        ("val/none", REPO, "val/none is not on the Hub"),
        ("nowhere", REPO, "no such file or folder, and neither a Hub id"),
    ],
)
def test_source_without_files_is_named(
    hub: FaultyHub, tmp_path: Path, source: str, repo: str | None, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        fetch(source, tmp_path, repo)


def test_hotkey_without_a_chain_names_the_flags(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give --netuid and --subtensor\.network"):
        open_source(HOTKEY, tmp_path, token=None)


@pytest.mark.parametrize("source", ["val/rounds/../x.jsonl", "nowhere.jsonl", "val/rounds/round-*.jsonl"])
def test_receipt_of_an_impossible_file_is_refused(hub: FaultyHub, tmp_path: Path, source: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_published_receipt(source, "ab", tmp_path, token=None)
