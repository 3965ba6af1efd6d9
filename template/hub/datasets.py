"""Dataset files on the Hub: download by commit, upload, resolve a revision.

The library's own downloader has no size limit, so the file is streamed here, and compared with the Hub's listing.
Only a statement of the Hub about the miner's repo becomes a SubmissionError. A truncated body, an excessive one or one
of other bytes than listed is a RemoteError, which never counts against the miner.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi, get_session, hf_raise_for_status
from huggingface_hub.utils._headers import build_hf_headers

from template import constants
from template.competition import Competition, bind_digest, is_commit, is_content_digest, is_repo_id
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.hub import storage
from template.hub.client import make_api, run_with_deadline, translate_hub_errors
from template.hub.listing import HubFileInfo, check_commit, file_url, find_commit, find_file, parse_commit
from template.hub.progress import show_download
from template.hub.storage import HubFile, Request
from template.hub.transport import RequestBudget
from template.hub.writes import commit_file, commit_for_a_check, ensure_repo

# Answers about one file, unlike those of a server that is down.
_REFUSALS = (401, 403, 404, 410)
_CALL_DEADLINE_S = 60.0
_SHA256 = re.compile(r"\b[0-9a-f]{64}\b")
_UPLOAD_DEADLINE_S = 300.0


def download_dataset(
    namespace: str,
    revision: str,
    local_dir: Path,
    cache_dir: Path | None = None,
    *,
    hotkey: str | None = None,
    filename: str | None = constants.DATA_FILE,
    max_bytes: int = constants.MAX_SUBMISSION_BYTES,
    deadline_s: float = constants.DOWNLOAD_DEADLINE_S,
    token: str | None = None,
    endpoint: str | None = None,
) -> HubFile:
    """Download a dataset repo's file to local_dir/data.jsonl, or use a cached one.

    A call that fails leaves a whole file in the folder: the old one, or the new one if the disk outlasts the deadline.
    `revision` is a full commit, or a digest of the file on the branch `main` or in a commit of `upload_dataset`: its
    sha256, or that bound to `hotkey`. filename None is the repo's only .jsonl file; token None is anonymous.

    Raises: SubmissionError for MISSING_REPO, MISSING_FILE or TOO_LARGE; by digest a missing repo is a MISSING_FILE too.
    """
    _check_repo_id(namespace)
    if not is_commit(revision) and not is_content_digest(revision):
        raise ConfigError(f"revision must be a commit of 40 lower-case hex digits or a digest of 64, not {revision!r}")
    request = Request(repo=namespace, revision=revision, filename=filename)
    folder = local_dir if cache_dir is None else _cache_folder(cache_dir, request)
    file = storage.find_cached(local_dir, request) or storage.find_cached(folder, request)
    if file is None:
        api = make_api(token, endpoint)
        job = _Job(api, request, hotkey, folder, max_bytes)
        file = run_with_deadline(api, deadline_s, lambda budget: _download(job, budget))
    _check_size(request, file.size, max_bytes)
    return file if file.path.parent == local_dir else storage.copy_cached(file, local_dir, request)


def find_dataset(namespace: str, revision: str, local_dir: Path) -> HubFile | None:
    """Return the file in `local_dir`, None if `download_dataset` would ask the Hub."""
    return storage.find_cached(local_dir, Request(repo=namespace, revision=revision, filename=constants.DATA_FILE))


def check_available(
    namespace: str,
    revision: str,
    local_dir: Path,
    *,
    deadline_s: float = _CALL_DEADLINE_S,
    endpoint: str | None = None,
) -> None:
    """Check that a dataset's file can be read without a token.

    Reads one listing and the first byte of the file.
    A revision by digest must still be the file on `main` or in an earlier commit of `upload_dataset`, if the file is in
    `local_dir` to compare with.
    Raises: SubmissionError when the Hub does not list the file, or lists it and refuses it; RemoteError when unknown.
    """
    _check_repo_id(namespace)
    request = Request(repo=namespace, revision=revision, filename=constants.DATA_FILE)
    api = make_api(None, endpoint)
    run_with_deadline(api, deadline_s, lambda budget: _check_available(api, request, local_dir, budget))


def check_eval_set_available(competition: Competition, *, endpoint: str | None = None) -> None:
    """Check that the evaluation set can be read without a token.

    Raises: as `check_available`.
    """
    api = make_api(None, endpoint)

    def check(budget: RequestBudget) -> None:
        info = find_file(api, competition.repo, competition.eval_commit, None, budget)
        _read_first_byte(api, competition.repo, competition.eval_commit, info.path)

    run_with_deadline(api, _CALL_DEADLINE_S, check)


def fetch_eval_set(competition: Competition, folder: Path, cache_dir: Path | None, token: str | None) -> Path:
    """Download the evaluation set to folder/data.jsonl unless it is there."""
    try:
        return download_dataset(
            competition.repo,
            competition.eval_commit,
            folder,
            cache_dir,
            filename=None,
            max_bytes=constants.MAX_EVAL_SET_BYTES,
            deadline_s=constants.EVAL_SET_DOWNLOAD_DEADLINE_S,
            token=token,
        ).path
    except SubmissionError as error:
        raise ConfigError(f"cannot download the competition's evaluation set: {error}") from error


def find_eval_set(competition: Competition, folder: Path, cache_dir: Path | None) -> HubFile | None:
    """Return the evaluation set, None if `fetch_eval_set` would ask the Hub."""
    request = Request(repo=competition.repo, revision=competition.eval_commit, filename=None)
    cached = None if cache_dir is None else storage.find_cached(_cache_folder(cache_dir, request), request)
    return storage.find_cached(folder, request) or cached


def upload_dataset(
    content: bytes,
    repo_id: str,
    *,
    token: str | None,
    private: bool = False,
    deadline_s: float = _UPLOAD_DEADLINE_S,
    endpoint: str | None = None,
) -> str:
    """Upload `content` as data.jsonl and return the full commit that has it.

    A missing repo is created, `private` or not. Content that main already has makes no new commit. The commit's message
    names the sha256, so that the file is found after main has another. After a RemoteError the upload may or may not
    have happened: repeat it.
    """
    _check_repo_id(repo_id)
    if token is None:
        raise HostError(f"no Hub token: writing to {repo_id} needs one")
    api = make_api(token, endpoint)
    return run_with_deadline(api, deadline_s, lambda budget: _upload(api, repo_id, content, private, budget))


def check_upload(repo_id: str, *, token: str | None, endpoint: str | None = None) -> None:
    """Check that a file can be uploaded and then be read by everyone.

    Creates the repo if it is missing, public. Commits a file to a branch of its own, reads it without a token, and
    deletes the branch.
    Raises: HostError without the right to write; SubmissionError when the file is refused without a token.
    """
    _check_repo_id(repo_id)
    api, anonymous = make_api(token, endpoint), make_api(None, endpoint)

    def check(_: RequestBudget) -> None:
        ensure_repo(api, repo_id)
        with commit_for_a_check(api, repo_id) as (commit, path):
            _read_first_byte(anonymous, repo_id, commit, path)

    run_with_deadline(api, _UPLOAD_DEADLINE_S, check)


def resolve_revision(
    repo_id: str,
    revision: str = "main",
    *,
    token: str | None,
    deadline_s: float = _CALL_DEADLINE_S,
    endpoint: str | None = None,
) -> str:
    """Return the full commit of a branch; a full commit is returned without a request.

    Raises: SubmissionError for a missing repo or branch.
    """
    _check_repo_id(repo_id)
    if is_commit(revision):
        return revision
    api = make_api(token, endpoint)
    return run_with_deadline(api, deadline_s, lambda _: find_commit(api, repo_id, revision))


@dataclass(frozen=True)
class _Job:
    """A download. hotkey: None for a digest that is not bound."""

    api: HfApi
    request: Request
    hotkey: str | None
    folder: Path
    max_bytes: int

    def is_requested(self, sha256: str) -> bool:
        """Check a file's sha256 against the requested digest."""
        bound = None if self.hotkey is None else bind_digest(sha256, self.hotkey)
        return self.request.revision in (sha256, bound)


def _download(job: _Job, budget: RequestBudget) -> HubFile:
    """Download the file at the commit, or the one with the requested digest."""
    api, request = job.api, job.request
    if not is_content_digest(request.revision):
        info = find_file(api, request.repo, request.revision, request.filename, budget)
        _check_size(request, info.size, job.max_bytes)
        chunks = read_chunks(api, request.repo, request.revision, info, budget)
        # Evaluation sets are large, and downloaded one at a time.
        shown = show_download(chunks, request.repo, info.size) if request.filename is None else chunks
        return storage.save(job.folder, request, shown)
    try:
        try:
            # Not by the commit of main, which costs one request more. The digest tells when main has moved meanwhile.
            return _download_digest(job, "main", budget)
        except SubmissionError:
            # A miner that updates its dataset replaces the file on main, and the earlier one still counts.
            earlier = _find_upload(api, request.repo, job.is_requested)
            if earlier is None:
                raise
            return _download_digest(job, earlier, budget)
    except SubmissionError as error:
        if error.reason is Reason.TOO_LARGE:
            raise
        missing = f"the file with digest {request.revision} is not (yet) on main of {request.repo}"
        raise SubmissionError(Reason.MISSING_FILE, f"{missing}: {error}") from error


def _check_available(api: HfApi, request: Request, local_dir: Path, budget: RequestBudget) -> None:
    is_pinned = is_commit(request.revision)
    commit = request.revision if is_pinned else "main"
    file = None if is_pinned else storage.find_cached(local_dir, request)
    try:
        info = find_file(api, request.repo, commit, request.filename, budget)
        if file is not None and not info.matches(file.path.read_bytes()):
            raise SubmissionError(Reason.MISSING_FILE, f"main of {request.repo} has another file")
    except SubmissionError:
        if file is None or (earlier := _find_upload(api, request.repo, file.sha256.__eq__)) is None:
            raise
        commit, info = earlier, find_file(api, request.repo, earlier, request.filename, budget)
        # Anybody can write a title.
        if not info.matches(file.path.read_bytes()):
            raise
    _read_first_byte(api, request.repo, commit, info.path)


def _read_first_byte(api: HfApi, repo: str, commit: str, path: str) -> None:
    """Raise SubmissionError if a listed file is refused, by the Hub or by its store.

    commit: or "main".
    """
    url = file_url(api, repo, commit, path)
    headers = {**build_hf_headers(token=api.token), "Range": "bytes=0-0"}
    with translate_hub_errors(api, repo), get_session().stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status not in _REFUSALS:
            hf_raise_for_status(response)
            check_commit(response, api, commit)
    if status in _REFUSALS:
        raise SubmissionError(Reason.MISSING_FILE, f"the Hub lists {path} of {repo} and refuses it (HTTP {status})")


def _download_digest(job: _Job, commit: str, budget: RequestBudget) -> HubFile:
    api, request = job.api, job.request
    info = find_file(api, request.repo, commit, request.filename, budget)
    other = SubmissionError(Reason.MISSING_FILE, "main has another file")
    if info.sha256 is not None and not job.is_requested(info.sha256):
        raise other
    _check_size(request, info.size, job.max_bytes)

    def chunks() -> Iterator[bytes]:
        sha256 = hashlib.sha256()
        for chunk in read_chunks(api, request.repo, commit, info, budget):
            sha256.update(chunk)
            yield chunk
        if not job.is_requested(sha256.hexdigest()):
            raise other
        budget.remaining_s()

    return storage.save(job.folder, request, chunks())


def _find_upload(api: HfApi, repo: str, is_requested: Callable[[str], bool]) -> str | None:
    """Return the newest commit of main whose title names a requested sha256.

    Reads one page of the history.
    """
    with translate_hub_errors(api, repo):
        url = f"{api.endpoint}/api/datasets/{repo}/commits/main"
        response = get_session().get(url, headers=build_hf_headers(token=api.token))
        hf_raise_for_status(response)
        titles = {parse_commit(row["id"]): str(row["title"]) for row in response.json()}
    for commit, title in titles.items():
        if any(is_requested(sha256) for sha256 in _SHA256.findall(title)):
            return commit
    return None


def read_chunks(api: HfApi, repo: str, commit: str, info: HubFileInfo, budget: RequestBudget) -> Iterator[bytes]:
    """Stream a file; raise RemoteError at its end unless it is the listed one."""
    budget.max_bytes = max(info.size, budget.max_bytes)
    sha256, git_oid = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % info.size, usedforsecurity=False)
    received = 0
    url, headers = file_url(api, repo, commit, info.path), build_hf_headers(token=api.token)
    with translate_hub_errors(api, repo), get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        check_commit(response, api, commit)
        if response.status_code != 200:
            raise RemoteError(f"the Hub answered a download with HTTP {response.status_code}")
        for chunk in response.iter_raw():
            received += len(chunk)
            if received > info.size:
                raise RemoteError(f"the Hub sent more of {info.path} than the {info.size} bytes it lists")
            sha256.update(chunk)
            git_oid.update(chunk)
            yield chunk
    is_listed = git_oid.hexdigest() == info.git_oid if info.sha256 is None else sha256.hexdigest() == info.sha256
    if received != info.size or not is_listed:
        raise RemoteError(f"the Hub sent {received} bytes of {info.path} that are not the {info.size} it lists")
    budget.remaining_s()


def _upload(api: HfApi, repo_id: str, content: bytes, private: bool, budget: RequestBudget) -> str:
    head = ensure_repo(api, repo_id, private=private)
    # Not left to the library, which lists all files of the repo to return main's commit.
    if head is not None and _has_content(api, repo_id, head, content, budget):
        return head
    message = f"Publish {constants.DATA_FILE} {hashlib.sha256(content).hexdigest()}"
    commit = commit_file(api, repo_id, constants.DATA_FILE, content, message)
    # The library's commit is another upload's if that came between with the same content.
    if not _has_content(api, repo_id, commit, content, budget):
        raise RemoteError(f"{repo_id} changed during the upload: its commit {commit} has another file")
    return commit


def _has_content(api: HfApi, repo_id: str, commit: str, content: bytes, budget: RequestBudget) -> bool:
    try:
        return find_file(api, repo_id, commit, constants.DATA_FILE, budget).matches(content)
    except SubmissionError:
        return False


def _check_repo_id(repo_id: str) -> None:
    if not is_repo_id(repo_id):
        raise ConfigError(f"a Hub repo must be an id like owner/name, not {repo_id!r}")


def _check_size(request: Request, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise SubmissionError(
            Reason.TOO_LARGE, f"the file in {request.repo} has {size} bytes, over the limit of {max_bytes}"
        )


def _cache_folder(cache_dir: Path, request: Request) -> Path:
    slot = "the-one-jsonl" if request.filename is None else "file-" + quote(request.filename, safe="")
    return cache_dir / "hub-files" / request.repo / request.revision / slot
