"""Downloads and uploads by the real client, with a local hub that has faults."""

import hashlib
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from template.competition import bind_digest
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError
from template.hub import datasets, storage
from template.hub.storage import Request
from template.localnet.hub.store import upload_files
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, set_faults
from tests.fixtures.hub import (
    DATA,
    NEW,
    OLD,
    REPO,
    TOKEN,
    download,
    download_error,
    is_cached,
    upload_data,
    upload_large,
)
from tests.fixtures.observers import hub_requests


def test_uploaded_file_downloads_unchanged(server: FaultyHub, tmp_path: Path) -> None:
    commit = datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=server.endpoint)
    upload_data(server, NEW)
    file = download(server, commit, tmp_path / "data")
    assert file.path == tmp_path / "data" / DATA
    assert file.path.read_bytes() == OLD
    assert (file.repo, file.revision, file.size) == (REPO, commit, len(OLD))


def test_empty_file_downloads(server: FaultyHub, tmp_path: Path) -> None:
    assert download(server, upload_data(server, b""), tmp_path / "data").size == 0


FAULTS = {
    "drop": HubFault(kind=FaultKind.DROP),
    "dropped file": HubFault(kind=FaultKind.DROP, pattern="/resolve-cache/"),
    "503": HubFault(kind=FaultKind.STATUS, status=503),
    "429": HubFault(kind=FaultKind.STATUS, status=429, retry_after="86399"),
    "bare 404": HubFault(kind=FaultKind.STATUS, status=404),
    "bare 403": HubFault(kind=FaultKind.STATUS, status=403),
    "truncated listing": HubFault(kind=FaultKind.TRUNCATE),
    "truncated by one byte": HubFault(kind=FaultKind.TRUNCATE, size=len(NEW) - 1, pattern="/resolve-cache/"),
    "wrong listing": HubFault(kind=FaultKind.WRONG),
    "wrong bytes": HubFault(kind=FaultKind.WRONG, pattern="/resolve-cache/"),
    "gzip bomb": HubFault(kind=FaultKind.GZIP_BOMB, size=64 * 2**20, pattern="/resolve-cache/"),
    "endless listing": HubFault(kind=FaultKind.ENDLESS, pattern="/paths-info/"),
    "endless body": HubFault(kind=FaultKind.ENDLESS, pattern="/resolve-cache/"),
    "slow": HubFault(kind=FaultKind.LATENCY, seconds=30),
    "dripping listing": HubFault(kind=FaultKind.DRIP, seconds=0.05, pattern="/paths-info/"),
    "dripping body": HubFault(kind=FaultKind.DRIP, seconds=0.05, pattern="/resolve-cache/"),
    "dripping header": HubFault(kind=FaultKind.HEADER_DRIP, seconds=0.05, pattern="/resolve-cache/"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_hub_is_a_remote_error_in_time(server: FaultyHub, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    old, new = upload_data(server, OLD), upload_data(server, NEW)
    download(server, old, folder)
    set_faults(server.store.root, FAULTS[name])
    started = time.monotonic()
    with pytest.raises(RemoteError):
        download(server, new, folder, deadline_s=0.5)
    assert time.monotonic() - started < 1.5
    assert not is_cached(folder, new)
    assert is_cached(folder, old)
    assert sum(file.stat().st_size for file in folder.rglob("*")) < len(OLD) + len(NEW) + 1000
    set_faults(server.store.root)
    assert download(server, new, folder).path.read_bytes() == NEW
    assert not is_cached(folder, old)


@pytest.mark.parametrize(
    ("kind", "path", "sentence"),
    [
        (FaultKind.ENDLESS, "/paths-info/", "longer than"),
        (FaultKind.ENDLESS, "/resolve-cache/", "sent more of"),
        (FaultKind.GZIP_BOMB, "/paths-info/", "compressed"),
        (FaultKind.GZIP_BOMB, "/resolve-cache/", "compressed"),
    ],
)
def test_oversized_answer_stops_before_the_deadline(
    server: FaultyHub, tmp_path: Path, kind: FaultKind, path: str, sentence: str
) -> None:
    commit = upload_data(server)
    set_faults(server.store.root, HubFault(kind=kind, pattern=path, size=2**20))
    with pytest.raises(RemoteError, match=sentence):
        download(server, commit, tmp_path / "data", deadline_s=30)


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
def test_file_of_another_commit_is_not_taken(server: FaultyHub, tmp_path: Path, is_large: bool) -> None:
    commit = (upload_large if is_large else upload_data)(server)
    upload_files(server.store.root, REPO, {"readme.md": b"#"})
    moved = (("Location", f"/datasets/{REPO}/resolve/main/{DATA}"),)
    redirect = HubFault(kind=FaultKind.REPLY, status=307, headers=moved, pattern=f"/resolve/{commit}")
    set_faults(server.store.root, redirect)
    with pytest.raises(RemoteError, match="another commit"):
        download(server, commit, tmp_path)
    set_faults(server.store.root)
    assert download(server, commit, tmp_path).path.read_bytes() == OLD


def requested_wait_s(server: FaultyHub, status: int, text: str) -> float | None:
    set_faults(server.store.root, HubFault(kind=FaultKind.STATUS, status=status, retry_after=text))
    with pytest.raises(RemoteError) as caught:
        download(server, "a" * 40, server.store.root.parent / "data")
    return caught.value.retry_after_s


@pytest.mark.parametrize(("status", "wait_s"), [(429, 7), (503, 40)])
def test_busy_hub_error_has_the_requested_wait(server: FaultyHub, status: int, wait_s: int) -> None:
    assert requested_wait_s(server, status, str(wait_s)) == wait_s
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=wait_s), usegmt=True)
    assert requested_wait_s(server, status, date) == pytest.approx(wait_s, abs=2.0)


@pytest.mark.parametrize("text", ["soon", "-5", "9" * 5000, "²"])
def test_malformed_wait_is_ignored(server: FaultyHub, text: str) -> None:
    assert requested_wait_s(server, 429, text) is None


def test_missing_repo_commit_and_file_have_their_reasons(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_data(server)
    upload_files(server.store.root, "bob/other", {"readme.txt": b"x"})
    other = upload_files(server.store.root, "bob/other", {f"{DATA}/inner": b"x"})
    assert download_error(server, commit, tmp_path / "a", repo="alice/nothing").reason is Reason.MISSING_REPO
    assert download_error(server, "0" * 40, tmp_path / "b").reason is Reason.MISSING_REPO
    assert download_error(server, other, tmp_path / "c", repo="bob/other").reason is Reason.MISSING_FILE
    server.close()
    with pytest.raises(RemoteError):
        download(server, commit, tmp_path / "d")


def test_private_repo_is_missing_to_all_but_its_owner(server: FaultyHub, tmp_path: Path) -> None:
    commit = datasets.upload_dataset(OLD, REPO, token=TOKEN, private=True, endpoint=server.endpoint)
    assert download_error(server, commit, tmp_path / "a").reason is Reason.MISSING_REPO
    assert download_error(server, digest_of(OLD), tmp_path / "a").reason is Reason.MISSING_FILE
    assert download_error(server, commit, tmp_path / "b", token="hf_local_bob").reason is Reason.MISSING_REPO
    assert download(server, commit, tmp_path / "c", token=TOKEN).size == len(OLD)


def test_bad_token_is_a_host_error_without_the_token(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_data(server)
    for token in ("hf_SECRET", "hf_SECRET\n", "hf_SECRÉT", ""):
        with pytest.raises(HostError) as caught:
            download(server, commit, tmp_path / "data", token=token)
        assert "SECR" not in "".join(traceback.format_exception(caught.value))
        with pytest.raises(HostError) as caught:
            datasets.upload_dataset(OLD, REPO, token=token, endpoint=server.endpoint)
        assert "SECR" not in "".join(traceback.format_exception(caught.value))


def test_expired_or_anothers_token_is_a_host_error(server: FaultyHub, tmp_path: Path) -> None:
    for token in (None, "hf_local_bob"):
        with pytest.raises(HostError):
            datasets.upload_dataset(OLD, REPO, token=token, endpoint=server.endpoint)
    commit = upload_data(server)
    set_faults(server.store.root, HubFault(kind=FaultKind.STATUS, status=401))
    with pytest.raises(HostError):
        download(server, commit, tmp_path / "data", token=TOKEN)


def test_file_over_the_limit_is_not_downloaded(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_data(server)
    set_faults(server.store.root, FAULTS["dropped file"])
    for revision in (commit, digest_of(OLD)):
        assert download_error(server, revision, tmp_path / "data", max_bytes=len(OLD) - 1).reason is Reason.TOO_LARGE
    set_faults(server.store.root)
    assert download(server, commit, tmp_path / "data", max_bytes=len(OLD)).size == len(OLD)
    assert download_error(server, commit, tmp_path / "data", max_bytes=len(OLD) - 1).reason is Reason.TOO_LARGE


def test_only_jsonl_of_a_repo_is_found_by_its_ending(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_files(server.store.root, REPO, {"deep/train set.jsonl": OLD, "readme.md": b"#"})
    file = download(server, commit, tmp_path / "data", filename=None)
    assert (file.path.name, file.path.read_bytes()) == (DATA, OLD)


def test_none_or_two_jsonl_are_a_missing_file(server: FaultyHub, tmp_path: Path) -> None:
    none = upload_files(server.store.root, REPO, {"readme.md": b"#"})
    assert download_error(server, none, tmp_path / "data", filename=None).reason is Reason.MISSING_FILE
    two = upload_files(server.store.root, REPO, {DATA: OLD, "more.jsonl": NEW})
    error = download_error(server, two, tmp_path / "data", filename=None)
    assert error.reason is Reason.MISSING_FILE
    assert DATA in str(error) and "more.jsonl" in str(error)


OTHER_THAN_A_REVISION = ["main", "", "a" * 39, "A" * 40, "a" * 41, "a" * 40 + "\n", "a" * 63, "A" * 64, "a" * 64 + "\n"]


@pytest.mark.parametrize("revision", OTHER_THAN_A_REVISION)
def test_revision_must_be_a_full_commit_or_digest(server: FaultyHub, tmp_path: Path, revision: str) -> None:
    with pytest.raises(ConfigError):
        download(server, revision, tmp_path / "data")


def test_branch_resolves_to_its_commit(server: FaultyHub) -> None:
    commit = upload_data(server)
    assert datasets.resolve_revision(REPO, "main", token=None, endpoint=server.endpoint) == commit
    with pytest.raises(SubmissionError):
        datasets.resolve_revision(REPO, "dev", token=None, endpoint=server.endpoint)
    server.close()
    assert datasets.resolve_revision(REPO, commit, token=None, endpoint=server.endpoint) == commit


def test_offline_mode_is_a_config_error(server: FaultyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = upload_data(server)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        download(server, commit, tmp_path / "data")


def test_unexpected_json_is_a_subnet_error(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_data(server)
    set_faults(server.store.root, HubFault(kind=FaultKind.STATUS, status=200, pattern="/paths-info/"))
    with pytest.raises(SubnetError):
        download(server, commit, tmp_path / "data")


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_file_is_found_by_digest_on_main(server: FaultyHub, tmp_path: Path) -> None:
    upload_data(server, OLD)
    upload_files(server.store.root, REPO, {"readme.md": b"#"})
    file = download(server, digest_of(OLD), tmp_path / "data")
    assert file.path.read_bytes() == OLD
    assert (file.revision, file.sha256) == (digest_of(OLD), digest_of(OLD))


def test_digest_costs_one_request_of_the_api(server: FaultyHub, tmp_path: Path) -> None:
    """256 datasets then take less than the 500 that the Hub allows in five minutes."""
    upload_data(server)
    with hub_requests() as requests:
        download(server, digest_of(OLD), tmp_path)
        look(server, tmp_path, OLD)
    assert sum("/api/datasets/" in line for line in requests) == 2


def test_main_that_moves_in_a_download_is_tried_again(server: FaultyHub, tmp_path: Path) -> None:
    upload_data(server)
    moved = (("Location", f"/datasets/{REPO}/resolve/{upload_data(server, NEW)}/{DATA}"),)
    upload_data(server)
    redirect = HubFault(kind=FaultKind.REPLY, status=307, headers=moved, pattern="/resolve/main/")
    set_faults(server.store.root, redirect)
    with pytest.raises(RemoteError):
        download(server, digest_of(OLD), tmp_path)
    set_faults(server.store.root)
    assert download(server, digest_of(OLD), tmp_path).size == len(OLD)


def test_earlier_upload_is_found_by_its_digest(server: FaultyHub, tmp_path: Path) -> None:
    for content in (OLD, NEW, b""):
        datasets.upload_dataset(content, REPO, token=TOKEN, endpoint=server.endpoint)
    assert download(server, digest_of(OLD), tmp_path / "old").path.read_bytes() == OLD
    bound = bind_digest(digest_of(NEW), "5Alice")
    assert download(server, bound, tmp_path / "new", hotkey="5Alice").path.read_bytes() == NEW


def look(server: FaultyHub, folder: Path, content: bytes, revision: str | None = None) -> None:
    datasets.check_available(REPO, revision or digest_of(content), folder, endpoint=server.endpoint)


def test_file_in_an_earlier_upload_is_available(server: FaultyHub, tmp_path: Path) -> None:
    for content in (OLD, NEW):
        datasets.upload_dataset(content, REPO, token=TOKEN, endpoint=server.endpoint)
    download(server, digest_of(OLD), tmp_path)
    look(server, tmp_path, OLD)
    upload_data(server, OLD, repo="alice/plain")
    upload_data(server, NEW, repo="alice/plain")
    request = Request(repo="alice/plain", revision=digest_of(OLD), filename=DATA)
    storage.save(tmp_path / "plain", request, [OLD])
    with pytest.raises(SubmissionError, match="has another file"):
        datasets.check_available("alice/plain", digest_of(OLD), tmp_path / "plain", endpoint=server.endpoint)


def test_listed_file_that_is_refused_is_not_available(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_data(server)
    look(server, tmp_path, OLD, commit)
    refusal = HubFault(kind=FaultKind.STATUS, status=403, pattern="GET .*/resolve/")
    set_faults(server.store.root, refusal)
    with pytest.raises(SubmissionError, match="refuses it"):
        look(server, tmp_path, OLD, commit)
    set_faults(server.store.root, HubFault(kind=FaultKind.STATUS, status=503))
    with pytest.raises(RemoteError):
        look(server, tmp_path, OLD, commit)


def test_title_of_a_commit_proves_nothing(server: FaultyHub, tmp_path: Path) -> None:
    store = server.store
    upload_data(server, NEW)
    repo = store.repo("datasets", REPO)
    store.commit(repo, {DATA: store.add_blob(b"x")}, message=f"Publish {DATA} {digest_of(OLD)}")
    assert download_error(server, digest_of(OLD), tmp_path / "data").reason is Reason.MISSING_FILE
    storage.save(tmp_path, Request(repo=REPO, revision=digest_of(OLD), filename=DATA), [OLD])
    upload_data(server, NEW)
    with pytest.raises(SubmissionError, match="has another file"):
        look(server, tmp_path, OLD)


def test_history_that_cannot_be_read_is_a_remote_error(server: FaultyHub, tmp_path: Path) -> None:
    upload_data(server, NEW)
    set_faults(server.store.root, HubFault(kind=FaultKind.WRONG, pattern="/commits/main"))
    with pytest.raises(RemoteError):
        download(server, digest_of(OLD), tmp_path / "data")


def test_bound_digest_needs_its_hotkey(server: FaultyHub, tmp_path: Path) -> None:
    upload_data(server, OLD)
    bound = bind_digest(digest_of(OLD), "5Alice")
    assert download(server, bound, tmp_path / "a", hotkey="5Alice").sha256 == digest_of(OLD)
    for hotkey in ("5Bob", None):
        assert download_error(server, bound, tmp_path / "b", hotkey=hotkey).reason is Reason.MISSING_FILE


def test_digest_not_on_main_is_a_missing_file(server: FaultyHub, tmp_path: Path) -> None:
    def sentence() -> str:
        error = download_error(server, digest_of(OLD), tmp_path / "data")
        assert error.reason is Reason.MISSING_FILE
        assert digest_of(OLD) in str(error) and "is not (yet) on main of alice/talk" in str(error)
        return str(error)

    assert "not on the Hub" in sentence()
    upload_files(server.store.root, REPO, {"readme.md": b"#"})
    assert "has no file data.jsonl" in sentence()
    upload_data(server, OLD)
    upload_data(server, NEW)
    assert "main has another file" in sentence()
    assert not list((tmp_path / "data").glob("*"))
    upload_data(server, OLD)
    assert download(server, digest_of(OLD), tmp_path / "data").path.read_bytes() == OLD


@pytest.mark.parametrize("name", ["drop", "503", "bare 404", "truncated listing", "wrong listing", "wrong bytes"])
def test_digest_on_a_faulty_hub_is_a_remote_error(server: FaultyHub, tmp_path: Path, name: str) -> None:
    upload_data(server)
    set_faults(server.store.root, FAULTS[name])
    with pytest.raises(RemoteError):
        download(server, digest_of(OLD), tmp_path / "data", deadline_s=5)


def test_large_file_of_another_digest_is_not_requested(server: FaultyHub, tmp_path: Path) -> None:
    upload_large(server)
    set_faults(server.store.root, HubFault(kind=FaultKind.DROP, pattern="/resolve/"))
    assert "main has another file" in str(download_error(server, digest_of(NEW), tmp_path))
    with pytest.raises(RemoteError):
        download(server, digest_of(OLD), tmp_path, deadline_s=0.5)


def test_large_file_is_checked_by_its_listed_sha256(server: FaultyHub, tmp_path: Path) -> None:
    commit = upload_large(server)
    set_faults(server.store.root, HubFault(kind=FaultKind.WRONG, pattern="/storage/"))
    with pytest.raises(RemoteError, match="not the 4400 it lists"):
        download(server, commit, tmp_path)
    set_faults(server.store.root)
    assert download(server, commit, tmp_path).path.read_bytes() == OLD
