"""Compare the consequence of each answer of the Hub with docs/hub.md."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from template.errors import HostError, RemoteError, SubmissionError
from template.hub import datasets
from template.localnet.hub.answers import Answer, Rule, set_answers
from tests.fixtures.faulty_hub import FaultyHub
from tests.fixtures.hub import NEW, OLD, REPO, TOKEN, download, upload_data, upload_large
from tests.fixtures.network import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
SHA256 = hashlib.sha256(OLD).hexdigest()
Scene = Callable[[FaultyHub], str]
"""Prepares the hub; returns the commit to download."""


def by_rule(answer: Answer, *, is_large: bool = False, seconds: float = 60.0) -> Scene:
    def prepare(server: FaultyHub) -> str:
        if is_large:
            upload_large(server, b"")
        commit = datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=server.endpoint)
        set_answers(server.store.root, Rule(answer=answer, pattern="." if answer in BUSY else "", seconds=seconds))
        return commit

    return prepare


BUSY = (Answer.COMMIT_QUOTA, Answer.GIT_QUEUE)


def private(server: FaultyHub) -> str:
    return upload_data(server, private=True)


def unknown_commit(server: FaultyHub) -> str:
    upload_data(server)
    return "0" * 40


def without_the_file(server: FaultyHub) -> str:
    datasets.check_upload(REPO, token=TOKEN, endpoint=server.endpoint)
    return server.store.repo("datasets", REPO).head


def renamed(server: FaultyHub) -> str:
    commit = upload_data(server)
    server.store.rename("datasets", REPO, "alice/speech")
    return commit


def other_case(server: FaultyHub) -> str:
    return upload_data(server, repo=REPO.upper())


def outdated(server: FaultyHub) -> str:
    """Main names the commit before the one with the file."""
    commit = upload_data(server, NEW)
    datasets.upload_dataset(OLD, REPO, token=TOKEN, endpoint=server.endpoint)
    set_answers(server.store.root, Rule(answer=Answer.STALE_MAIN))
    return commit


READS: dict[str, tuple[int, Scene, str | None]] = {
    "private": (1, private, None),
    "private, with a token": (2, private, "hf_local_bob"),
    "missing by a rule": (1, by_rule(Answer.MISSING), None),
    "refused token": (3, upload_data, "hf_unknown"),
    "gated": (4, by_rule(Answer.GATED), None),
    "gated, with a token": (4, by_rule(Answer.GATED), "hf_local_bob"),
    "disabled": (5, by_rule(Answer.DISABLED), None),
    "unknown commit": (6, unknown_commit, None),
    "no file": (7, without_the_file, None),
    "no file by a rule": (7, by_rule(Answer.MISSING_FILE), None),
    "renamed": (8, renamed, None),
    "other case": (8, other_case, None),
    "small": (9, upload_data, None),
    "large": (10, upload_large, None),
    "refused by the storage": (11, by_rule(Answer.STORE_REFUSES, is_large=True), None),
    "compressed": (12, upload_data, None),
    "quota": (13, by_rule(Answer.QUOTA), None),
    "quota in HTML": (13, by_rule(Answer.QUOTA_HTML), None),
    "commits": (14, by_rule(Answer.COMMIT_QUOTA), None),
    "commits, without a time": (14, by_rule(Answer.COMMIT_QUOTA, seconds=0), None),
    "git queue": (15, by_rule(Answer.GIT_QUEUE), None),
    "503": (16, by_rule(Answer.UNAVAILABLE), None),
    "504": (16, by_rule(Answer.GATEWAY_TIMEOUT), None),
    "outdated main": (20, outdated, None),
}
# Rows without a digest of their own: main always exists.
BY_COMMIT_ONLY = (6,)


def verdict(server: FaultyHub, revision: str, folder: Path, token: str | None) -> str:
    """Return a download's verdict as docs/hub.md writes it."""
    try:
        download(server, revision, folder, token=token)
    except SubmissionError as error:
        return f"`{error.reason}`"
    except (RemoteError, HostError):
        return "none"
    return "taken"


def documented(row: int) -> list[str]:
    """Return the cells of a row of docs/hub.md."""
    lines = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", READS)
def test_download_ends_as_documented(server: FaultyHub, tmp_path: Path, name: str) -> None:
    row, prepare, token = READS[name]
    by_commit = verdict(server, prepare(server), tmp_path / "commit", token)
    by_digest = by_commit if row in BY_COMMIT_ONLY else verdict(server, SHA256, tmp_path / "digest", token)
    assert documented(row)[2] == (by_commit if by_commit == by_digest else f"{by_commit}; by digest {by_digest}")


@pytest.mark.parametrize(
    ("name", "wait_s"),
    [("quota", 60), ("quota in HTML", 60), ("commits", 60), ("commits, without a time", None), ("git queue", None)],
)
def test_wait_is_the_one_that_the_hub_asks_for(
    server: FaultyHub, tmp_path: Path, name: str, wait_s: float | None
) -> None:
    commit = READS[name][1](server)
    with pytest.raises(RemoteError) as caught:
        download(server, commit, tmp_path)
    assert caught.value.retry_after_s == wait_s


def test_disabled_repo_that_sends_its_file_is_taken(server: FaultyHub, tmp_path: Path) -> None:
    assert verdict(server, by_rule(Answer.DISABLED_LISTED)(server), tmp_path, None) == "taken"


def test_ignored_token_is_no_fault_of_ours(server: FaultyHub, tmp_path: Path) -> None:
    assert verdict(server, by_rule(Answer.TOKEN_IGNORED)(server), tmp_path, "hf_unknown") == "taken"


def test_every_answer_has_a_row(server: FaultyHub) -> None:
    assert [documented(row)[0] for row in range(1, 21)] == [str(row) for row in range(1, 21)]
    text = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    assert all(f"`{answer}`" in text for answer in Answer)
