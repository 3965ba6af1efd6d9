"""Create a dataset repo and commit files to it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from huggingface_hub import HfApi, get_session, hf_raise_for_status
from huggingface_hub.utils._headers import build_hf_headers

from template.errors import SubmissionError
from template.hub.client import translate_hub_errors
from template.hub.listing import find_commit, parse_commit

_CHECK_BRANCH = "upload-check"
_CHECK_FILE = "upload-check.txt"


def ensure_repo(api: HfApi, repo_id: str, *, private: bool = False) -> str | None:
    """Create a dataset repo unless it exists; return the commit of main if it does."""
    with suppress(SubmissionError):
        return find_commit(api, repo_id, "main")
    owner, _, name = repo_id.partition("/")
    body = {
        "name": name,
        "organization": owner,
        "type": "dataset",
        "visibility": "private" if private else "public",
    }
    with translate_hub_errors(api, repo_id, is_write=True):
        # Not by HfApi.create_repo, which repeats the call without a pause while another operation is in progress.
        headers = build_hf_headers(token=api.token)
        response = get_session().post(f"{api.endpoint}/api/repos/create", headers=headers, json=body)
        if response.status_code != 409 or "url" not in response.json():
            hf_raise_for_status(response)
    return None


def commit_file(api: HfApi, repo_id: str, path: str, content: bytes, message: str, *, branch: str | None = None) -> str:
    """Commit a file to main or another branch; return the commit that has it."""
    with translate_hub_errors(api, repo_id, is_write=True):
        info = api.upload_file(
            path_or_fileobj=content,
            path_in_repo=path,
            repo_id=repo_id,
            repo_type="dataset",
            revision=branch,
            commit_message=message,
        )
        return parse_commit(info.oid)


@contextmanager
def commit_for_a_check(api: HfApi, repo_id: str) -> Iterator[tuple[str, str]]:
    """Commit a file of no meaning to a branch of its own; yield its commit and path.

    The branch is deleted afterwards, so main and its history stay as they are.
    """
    with translate_hub_errors(api, repo_id, is_write=True):
        api.create_branch(repo_id, branch=_CHECK_BRANCH, repo_type="dataset", exist_ok=True)
    # Never the same content twice, since the library makes no commit of an unchanged file.
    content = secrets.token_hex(16).encode()
    try:
        yield commit_file(api, repo_id, _CHECK_FILE, content, "Check the upload", branch=_CHECK_BRANCH), _CHECK_FILE
    finally:
        with translate_hub_errors(api, repo_id, is_write=True):
            api.delete_branch(repo_id, branch=_CHECK_BRANCH, repo_type="dataset")
