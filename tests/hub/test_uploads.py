"""Uploads by the real client to a local hub that answers as the real one does."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from template.errors import HostError, RemoteError, SubmissionError
from template.hub import datasets, transport
from template.localnet.hub.answers import Answer, Rule, read_answers, set_answers
from template.localnet.hub.store import HubStore, upload_files
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, read_faults, set_faults
from tests.fixtures.hub import DATA, NEW, OLD, REPO, TOKEN, download, upload_data, upload_large
from tests.fixtures.observers import hub_requests

READER = "hf_read_alice"


def upload(server: FaultyHub, content: bytes = OLD, *, token: str = TOKEN, deadline_s: float = 30.0) -> str:
    return datasets.upload_dataset(content, REPO, token=token, endpoint=server.endpoint, deadline_s=deadline_s)


def check(server: FaultyHub, token: str | None = TOKEN) -> None:
    datasets.check_upload(REPO, token=token, endpoint=server.endpoint)


def test_unchanged_upload_returns_the_existing_commit(server: FaultyHub) -> None:
    first = datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=server.endpoint)
    assert datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=server.endpoint) == first
    second = datasets.upload_dataset(NEW, REPO, token=TOKEN, endpoint=server.endpoint)
    assert second != first
    assert datasets.resolve_revision(REPO, token=None, endpoint=server.endpoint) == second


def test_upload_overtaken_by_its_like_and_another_is_an_error(server: FaultyHub) -> None:
    upload_data(server, NEW)
    root = server.store.root
    steps = [("^POST .*/preupload/", OLD), ("^GET .*/revision/main$", NEW)]
    delays = [HubFault(kind=FaultKind.LATENCY, seconds=0.5, pattern=pattern, count=1) for pattern, _ in steps]
    set_faults(root, *delays)

    def overtake() -> None:
        for left, (_, content) in zip((1, 0), steps, strict=True):
            while len(read_faults(root)) > left:
                time.sleep(0.01)
            upload_data(server, content)

    other = threading.Thread(target=overtake)
    other.start()
    with pytest.raises(RemoteError, match="changed during the upload"):
        upload(server)
    other.join()


def test_upload_to_a_busy_hub_fails_at_once(server: FaultyHub) -> None:
    set_faults(server.store.root, HubFault(kind=FaultKind.STATUS, status=429, retry_after="60", pattern="/preupload/"))
    with pytest.raises(RemoteError) as caught:
        datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=server.endpoint, deadline_s=30)
    assert caught.value.retry_after_s == 60


@pytest.mark.parametrize("kind", [FaultKind.ENDLESS, FaultKind.LATENCY, FaultKind.HEADER_DRIP, FaultKind.DROP])
@pytest.mark.parametrize("step", ["/repos/create", "/preupload/", "/commit/", "/paths-info/"])
def test_upload_ends_at_its_deadline_and_can_be_repeated(server: FaultyHub, kind: FaultKind, step: str) -> None:
    set_faults(server.store.root, HubFault(kind=kind, pattern=step, seconds=0.7))
    started = time.monotonic()
    with pytest.raises(RemoteError):
        datasets.upload_dataset(OLD, REPO, token=TOKEN, deadline_s=0.4, endpoint=server.endpoint)
    assert time.monotonic() - started < 1.4
    set_faults(server.store.root)
    datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=server.endpoint)


def test_unchanged_upload_lists_no_other_file(server: FaultyHub) -> None:
    commit = upload_data(server)
    store = HubStore(server.store.root)
    others = {f"folder/file-{number:05d}.jsonl": store.add_blob(b"") for number in range(12_000)}
    commit = store.commit(store.repo("datasets", REPO), others)
    assert upload(server) == commit


@pytest.mark.parametrize("is_lasting", [True, False])
def test_busy_creation_is_an_error_after_one_request(server: FaultyHub, is_lasting: bool) -> None:
    set_answers(server.store.root, Rule(answer=Answer.CREATE_BUSY, count=None if is_lasting else 1))
    with hub_requests() as requests:
        for call in (upload, check):
            if call is upload or is_lasting:
                with pytest.raises(RemoteError, match="busy"):
                    call(server)
            else:
                call(server)
    assert sum("/repos/create" in line for line in requests) == 2


def test_existing_repo_is_not_created_again(server: FaultyHub) -> None:
    upload_data(server)
    set_answers(server.store.root, Rule(answer=Answer.CREATE_BUSY))
    assert upload(server, NEW)


def test_slow_commit_is_waited_for(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real Hub takes 11 to 60 s."""
    monkeypatch.setattr(transport, "SOCKET_TIMEOUT_S", 0.3)
    set_answers(server.store.root, Rule(answer=Answer.COMMIT_SLOW, seconds=1.0))
    commit = upload(server)
    assert server.store.repo("datasets", REPO).head == commit


def test_commit_answered_with_an_error_is_found_by_the_next(server: FaultyHub) -> None:
    set_answers(server.store.root, Rule(answer=Answer.COMMIT_LOST, count=1))
    with pytest.raises(RemoteError, match="504"):
        upload(server)
    assert upload(server) == server.store.repo("datasets", REPO).head
    assert read_answers(server.store.root) == []


def test_checked_upload_leaves_no_trace_on_main(server: FaultyHub) -> None:
    for _ in range(2):
        check(server)
    repo = server.store.repo("datasets", REPO)
    assert server.store.commit_at(repo, "main").parent is None and repo.branches == {}


@pytest.mark.parametrize("token", [None, "hf_local_bob", READER])
@pytest.mark.parametrize("is_there", [True, False])
def test_check_needs_a_token_that_may_write(server: FaultyHub, token: str | None, is_there: bool) -> None:
    if is_there:
        upload_data(server)
    with pytest.raises(HostError):
        check(server, token)


@pytest.mark.parametrize("answer", [Answer.GATED, "private"])
def test_check_reads_the_file_without_a_token(server: FaultyHub, answer: str) -> None:
    upload_files(server.store.root, REPO, {DATA: OLD}, private=answer == "private")
    if answer == Answer.GATED:
        set_answers(server.store.root, Rule(answer=Answer.GATED, repo=REPO))
    with pytest.raises(SubmissionError):
        check(server)
    assert server.store.repo("datasets", REPO).branches == {}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_large_upload_goes_to_the_storage(server: FaultyHub, tmp_path: Path) -> None:
    upload_large(server)
    commit = upload(server, NEW)
    row = server.store.commit_at(server.store.repo("datasets", REPO), commit).files[DATA]
    assert row.sha256 == hashlib.sha256(NEW).hexdigest()
    assert download(server, commit, tmp_path).path.read_bytes() == NEW
    assert upload(server, NEW) == commit


@pytest.mark.parametrize("is_renamed", [False, True], ids=["other case", "renamed"])
def test_upload_follows_to_the_repos_present_name(server: FaultyHub, is_renamed: bool) -> None:
    present = "alice/speech" if is_renamed else "alice/TALK"
    upload_data(server, repo=REPO if is_renamed else present)
    if is_renamed:
        server.store.rename("datasets", REPO, present)
    assert upload(server, NEW) == server.store.repo("datasets", present).head
    check(server)


@pytest.mark.parametrize(("status", "error"), [(412, RemoteError), (409, RemoteError), (400, HostError)])
def test_refused_commit_is_an_error_by_its_cause(server: FaultyHub, status: int, error: type[Exception]) -> None:
    set_faults(server.store.root, HubFault(kind=FaultKind.STATUS, status=status, pattern="/commit/"))
    with pytest.raises(error, match=f"HTTP {status}"):
        upload(server)
