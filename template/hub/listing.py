"""The Hub's listing of a dataset: its commit, and the size and digest of a file."""

import hashlib
from dataclasses import dataclass
from typing import NoReturn

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, get_session, hf_raise_for_status
from huggingface_hub.utils._headers import build_hf_headers

from template.competition import is_commit
from template.errors import Reason, RemoteError, SubmissionError
from template.hub.client import translate_hub_errors
from template.hub.transport import MAX_LISTING_BYTES, RequestBudget

# More than any file has: a larger size is the Hub's mistake, not the miner's.
_MAX_LISTED_BYTES = 2**50


@dataclass(frozen=True)
class HubFileInfo:
    """A listed file; its digest is `sha256` in large-file storage, else `git_oid`."""

    path: str
    size: int
    git_oid: str
    sha256: str | None

    def matches(self, content: bytes) -> bool:
        if self.sha256 is not None:
            return self.sha256 == hashlib.sha256(content).hexdigest()
        return self.git_oid == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def find_commit(api: HfApi, repo_id: str, revision: str) -> str:
    """Return the commit of a revision. Raises: SubmissionError, RemoteError."""
    with translate_hub_errors(api, repo_id):
        # Without `expand` the answer lists every file of the repo.
        info = api.dataset_info(repo_id, revision=revision, expand=["sha"])
        return parse_commit(info.sha)


def find_file(api: HfApi, repo: str, commit: str, filename: str | None, budget: RequestBudget) -> HubFileInfo:
    """Return the Hub's listing of one file; filename None: of the only .jsonl file."""
    if filename is not None:
        with translate_hub_errors(api, repo):
            rows = api.get_paths_info(repo, [filename], revision=commit, repo_type="dataset")
            files = [row for row in rows if row.path == filename and hasattr(row, "size")]
            return parse_file(filename, files[0]) if files else _confirm_missing(api, repo, commit, filename)
    budget.max_bytes = MAX_LISTING_BYTES
    with translate_hub_errors(api, repo):
        siblings = api.dataset_info(repo, revision=commit, files_metadata=True).siblings
        if siblings is None:
            raise RemoteError(f"the Hub sent no file list of {repo} at {commit[:12]}")
        jsonl = {row.rfilename: row for row in siblings if row.rfilename.endswith(".jsonl")}
        if len(jsonl) == 1:
            return next(parse_file(name, row) for name, row in jsonl.items())
    names = ", ".join(repr(name[:80]) for name in sorted(jsonl)[:5])
    raise SubmissionError(
        Reason.MISSING_FILE,
        f"dataset {repo} at {commit[:12]} must have exactly one .jsonl file, not {len(jsonl)} ({names})",
    )


def _confirm_missing(api: HfApi, repo: str, commit: str, filename: str) -> NoReturn:
    """Raise SubmissionError if the Hub answers "not found", else RemoteError.

    A listing without the file may come from a proxy or a mirror.
    """
    try:
        with translate_hub_errors(api, repo):
            url, headers = file_url(api, repo, commit, filename), build_hf_headers(token=api.token)
            hf_raise_for_status(get_session().head(url, headers=headers))
    except SubmissionError as error:
        if error.reason is not Reason.MISSING_FILE:
            raise
        raise SubmissionError(error.reason, f"dataset {repo} at {commit[:12]} has no file {filename}") from error
    raise RemoteError(f"the Hub does not list {filename} in {repo}, but has it")


def file_url(api: HfApi, repo: str, commit: str, path: str) -> str:
    """Return the address of a dataset's file."""
    return huggingface_hub.hf_hub_url(repo, path, repo_type="dataset", revision=commit, endpoint=api.endpoint)


def check_commit(response: httpx2.Response, api: HfApi, commit: str) -> None:
    """Check that a file is of the requested commit, if the Hub names it.

    commit: or "main", which may have moved.
    Raises: RemoteError for another commit.
    """
    if not is_commit(commit):
        return
    origin = httpx2.URL(api.endpoint).origin
    for step in (*response.history, response):
        if step.url.origin == origin and step.headers.get("X-Repo-Commit", commit) != commit:
            raise RemoteError("the Hub sent the file of another commit")


def parse_file(path: str, row: object) -> HubFileInfo:
    size, git_oid, lfs = getattr(row, "size", None), getattr(row, "blob_id", None), getattr(row, "lfs", None)
    is_name = path.isprintable() and not {"..", ".", ""} & set(path.split("/"))
    # By `type`, since a bool is an int.
    if not is_name or type(size) is not int or not 0 <= size <= _MAX_LISTED_BYTES or not isinstance(git_oid, str):
        raise RemoteError("the Hub lists a file with an invalid name, size or blob id")
    return HubFileInfo(path=path, size=size, git_oid=git_oid, sha256=None if lfs is None else str(lfs.sha256))


def parse_commit(value: object) -> str:
    """Return a full commit in the Hub's answer. Raises: RemoteError."""
    if not isinstance(value, str) or not is_commit(value):
        raise RemoteError("the Hub sent no full commit")
    return value
