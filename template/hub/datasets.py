"""Datasets on the Hugging Face Hub: fetch one file by commit, publish one, look a revision up.

With `hub_client`, the only importer of huggingface_hub, and with that and `hub_guard` of httpx2. The library's own
downloader cannot be capped, so the file is streamed here, counted and hashed as it comes, and kept by `dataset_folder`.

Only what the Hub says about the miner's repo becomes a SubmissionError. A body that is cut short, that is longer
than declared or that is not the declared blob says nothing about the miner and is a RemoteError.
Tokens are passed in; None means anonymous.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import huggingface_hub
from huggingface_hub import HfApi, get_session, hf_raise_for_status
from huggingface_hub.utils._headers import build_hf_headers

from template import constants
from template.competition import Competition, is_commit, is_content_digest, is_repo_id
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.hub import storage
from template.hub.client import configure_client, make_api, run_with_deadline, saved_token, translate_hub_errors
from template.hub.network import RequestBudget
from template.hub.storage import HubFile, PartialDownload, Request
from template.hub.transport import MAX_LISTING_BYTES

__all__ = [
    "HubFile",
    "configure_client",
    "download_dataset",
    "find_dataset",
    "resolve_revision",
    "saved_token",
    "upload_dataset",
]

# Beyond any file, so that a length above is a mistake of the Hub's and says nothing about the miner.
_MOST_BYTES = 2**50
_CALL_DEADLINE_S = 60.0
_UPLOAD_DEADLINE_S = 300.0


@dataclass(frozen=True)
class HubFileInfo:
    """One file as the Hub lists it; `sha256` is set when it is in large-file storage, else `git_oid` is its blob."""

    path: str
    size: int
    git_oid: str
    sha256: str | None


def download_dataset(
    namespace: str,
    revision: str,
    local_dir: Path,
    cache_dir: Path | None = None,
    *,
    filename: str | None = constants.DATA_FILE,
    max_bytes: int = constants.MAX_SUBMISSION_BYTES,
    deadline_s: float = constants.DOWNLOAD_DEADLINE_S,
    token: str | None = None,
    endpoint: str | None = None,
) -> HubFile:
    """Fetch one file of the dataset repo `namespace` at the commit `revision` and keep it as local_dir/data.jsonl.

    A revision of 64 hex digits is the sha256 of the file, which is then looked for where `main` is now.
    filename None means the one .jsonl file of the repo, wherever it lies; a repo with none or several is refused.
    A folder that already holds the file, or a cache_dir that does, is answered from without any network. When the
    call fails, the folder is as it was: it may still hold, and say that it holds, another revision, never this one.

    Raises: SubmissionError (MISSING_REPO for the repo or the commit, MISSING_FILE, TOO_LARGE; for a sha256 it is
    MISSING_FILE also when the repo is not there or main holds another file, since either may change); RemoteError when
    the Hub could not be heard out within `deadline_s`; HostError for our disk or token; ConfigError when namespace or
    revision (a full lower-case commit or a sha256, no branch) is not legal.
    """
    if not is_repo_id(namespace):
        raise ConfigError(f"a dataset repo must be a Hub id like owner/name, not {namespace!r}")
    if not is_commit(revision) and not is_content_digest(revision):
        raise ConfigError(f"revision must be a commit of 40 lower-case hex digits or a sha256 of 64, not {revision!r}")
    request = Request(repo=namespace, revision=revision, filename=filename)
    home = local_dir if cache_dir is None else _cache_folder(cache_dir, request)
    held = storage.find_cached(local_dir, request) or storage.find_cached(home, request)
    if held is None:
        api = make_api(token, endpoint)
        fetch = _fetch_by_digest if is_content_digest(revision) else _fetch
        incoming = run_with_deadline(api, deadline_s, lambda budget: fetch(api, request, home, max_bytes, budget))
        try:
            held = incoming.commit(request)
        finally:
            incoming.abort()
    _check_size(request, held.size, max_bytes)
    if held.path.parent == local_dir:
        return held
    return storage.copy_cached(held, local_dir, request)


def find_dataset(namespace: str, revision: str, local_dir: Path) -> HubFile | None:
    """The file that `download_dataset` would find in `local_dir`, None when it would ask the Hub. Raises: HostError."""
    return storage.find_cached(local_dir, Request(repo=namespace, revision=revision, filename=constants.DATA_FILE))


def upload_dataset(
    content: bytes,
    repo_id: str,
    *,
    token: str | None,
    private: bool = False,
    deadline_s: float = _UPLOAD_DEADLINE_S,
    endpoint: str | None = None,
) -> str:
    """The full commit of the dataset repo `repo_id` at which data.jsonl holds exactly `content`.

    Creates the repo when it is not there; `private` says how, and does not change one that exists. Content that
    main already holds makes no new commit. After a RemoteError the upload may or may not have happened: repeat it.
    Raises: HostError when there is no token or it may not write there; RemoteError; ConfigError.
    """
    if not is_repo_id(repo_id):
        raise ConfigError(f"a dataset repo must be a Hub id like owner/name, not {repo_id!r}")
    if token is None:
        raise HostError(f"no Hub token: writing to {repo_id} needs one")
    api = make_api(token, endpoint)
    return run_with_deadline(api, deadline_s, lambda budget: _upload(api, repo_id, content, private, budget))


def resolve_revision(
    repo_id: str,
    revision: str = "main",
    *,
    token: str | None,
    repo_type: str = "dataset",
    deadline_s: float = _CALL_DEADLINE_S,
    endpoint: str | None = None,
) -> str:
    """The full commit that `revision` names now. A full commit is its own answer and is not looked up.

    Raises: SubmissionError (MISSING_REPO) when there is no such repo or revision; RemoteError; HostError; ConfigError.
    """
    if not is_repo_id(repo_id):
        raise ConfigError(f"a {repo_type} repo must be a Hub id like owner/name, not {repo_id!r}")
    if is_commit(revision):
        return revision
    api = make_api(token, endpoint)

    def look_up(_: RequestBudget) -> str:
        with translate_hub_errors(api, repo_id):
            return _find_commit(api, repo_id, revision, repo_type)

    return run_with_deadline(api, deadline_s, look_up)


def _fetch_by_digest(
    api: HfApi, request: Request, folder: Path, max_bytes: int, budget: RequestBudget
) -> PartialDownload:
    """The file whose sha256 `request.revision` is, from where main is now, as `_fetch` gives one of a commit."""
    missing = f"the file with sha256 {request.revision} is not (yet) at main of {request.repo}"
    try:
        with translate_hub_errors(api, request.repo):
            commit = _find_commit(api, request.repo, "main", "dataset")
        # Pinned, so that main may move meanwhile.
        at_commit = Request(repo=request.repo, revision=commit, filename=request.filename)
        entry = _locate(api, at_commit, budget)
        if entry.sha256 not in (None, request.revision):
            raise SubmissionError(Reason.MISSING_FILE, "another file is there")
        incoming = _fetch_entry(api, at_commit, entry, folder, max_bytes, budget)
        if incoming.sha256 != request.revision:
            incoming.abort()
            raise SubmissionError(Reason.MISSING_FILE, "another file is there")
        return incoming
    except SubmissionError as error:
        if error.reason is Reason.TOO_LARGE:
            raise
        raise SubmissionError(Reason.MISSING_FILE, f"{missing}: {error}") from error


def _fetch(api: HfApi, request: Request, folder: Path, max_bytes: int, budget: RequestBudget) -> PartialDownload:
    """The whole file, verified against the Hub's listing, ready to install. Runs inside `run_with_deadline`."""
    return _fetch_entry(api, request, _locate(api, request, budget), folder, max_bytes, budget)


def _fetch_entry(
    api: HfApi, request: Request, entry: HubFileInfo, folder: Path, max_bytes: int, budget: RequestBudget
) -> PartialDownload:
    _check_size(request, entry.size, max_bytes)
    budget.max_bytes = max(entry.size, budget.max_bytes)
    incoming = PartialDownload(folder, entry.size)
    try:
        _stream(api, request, entry, incoming)
        digest, declared = (
            (incoming.git_oid, entry.git_oid) if entry.sha256 is None else (incoming.sha256, entry.sha256)
        )
        if incoming.received != entry.size or digest != declared:
            raise RemoteError(
                f"the Hub sent {incoming.received} bytes of {entry.path} that are not the {entry.size} it lists"
            )
        budget.remaining_s()
    except BaseException:
        incoming.abort()
        raise
    return incoming


def _find_commit(api: HfApi, repo_id: str, revision: str, repo_type: str) -> str:
    # Named alone, or the Hub lists every file of the repo beside it.
    found = api.repo_info(repo_id, revision=revision, repo_type=repo_type, expand=["sha"])  # type: ignore[arg-type]
    return _as_commit(found.sha)


def _stream(api: HfApi, request: Request, entry: HubFileInfo, incoming: PartialDownload) -> None:
    url = _url_of(api, request, entry.path)
    headers = build_hf_headers(token=api.token)
    with translate_hub_errors(api, request.repo), get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        if response.status_code != 200:
            raise RemoteError(f"the Hub answered a download with HTTP {response.status_code}")
        for chunk in response.iter_raw():
            if incoming.received + len(chunk) > entry.size:
                raise RemoteError(f"the Hub sent more of {entry.path} than the {entry.size} bytes it lists")
            incoming.write(chunk)


def _url_of(api: HfApi, request: Request, path: str) -> str:
    return huggingface_hub.hf_hub_url(
        request.repo, path, repo_type="dataset", revision=request.revision, endpoint=api.endpoint
    )


def _locate(api: HfApi, request: Request, budget: RequestBudget) -> HubFileInfo:
    """The Hub's listing of the file that `request` means."""
    at = f"{request.repo} at {request.revision[:12]}"
    with translate_hub_errors(api, request.repo):
        if request.filename is not None:
            rows = api.get_paths_info(request.repo, [request.filename], revision=request.revision, repo_type="dataset")
            found = [_as_entry(row.path, row) for row in rows if row.path == request.filename and hasattr(row, "size")]
            return found[0] if found else _confirm_missing(api, request, request.filename)
        budget.max_bytes = MAX_LISTING_BYTES
        info = api.dataset_info(request.repo, revision=request.revision, files_metadata=True)
        if info.siblings is None:
            raise RemoteError(f"the Hub told nothing of the files in {at}")
        files = {row.rfilename: row for row in info.siblings if row.rfilename.endswith(".jsonl")}
        if len(files) == 1:
            return next(_as_entry(name, row) for name, row in files.items())
    names = sorted(files)
    listing = ", ".join(repr(name[:80]) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    raise SubmissionError(
        Reason.MISSING_FILE,
        f"dataset {at} must hold exactly one .jsonl file and holds {len(names)}" + (f": {listing}" if names else ""),
    )


def _confirm_missing(api: HfApi, request: Request, filename: str) -> NoReturn:
    """Raises: SubmissionError when the Hub says of the file by name that it is not there; RemoteError.

    A listing without it may be the answer of something that is no Hub.
    """
    try:
        with translate_hub_errors(api, request.repo):
            url = _url_of(api, request, filename)
            hf_raise_for_status(get_session().head(url, headers=build_hf_headers(token=api.token)))
    except SubmissionError as error:
        if error.reason is not Reason.MISSING_FILE:
            raise
        at = f"{request.repo} at {request.revision[:12]}"
        raise SubmissionError(error.reason, f"dataset {at} has no file {filename}") from error
    raise RemoteError(f"the Hub lists no {filename} in {request.repo} and yet has one")


def _as_entry(path: str, row: object) -> HubFileInfo:
    size, git_oid, lfs = getattr(row, "size", None), getattr(row, "blob_id", None), getattr(row, "lfs", None)
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _MOST_BYTES:
        raise RemoteError("the Hub lists a file without a size that it can have")
    if not isinstance(git_oid, str):
        raise RemoteError("the Hub lists a file without its blob id")
    if not path.isprintable() or {"..", ".", ""} & set(path.split("/")):
        raise RemoteError("the Hub lists a file under a name that no file has there")
    return HubFileInfo(path=path, size=size, git_oid=git_oid, sha256=None if lfs is None else str(lfs.sha256))


def _upload(api: HfApi, repo_id: str, content: bytes, private: bool, budget: RequestBudget) -> str:
    with translate_hub_errors(api, repo_id, is_write=True):
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        info = api.upload_file(
            path_or_fileobj=content,
            path_in_repo=constants.DATA_FILE,
            repo_id=repo_id,
            repo_type="dataset",
            commit_message=f"Publish {constants.DATA_FILE}",
        )
        commit = _as_commit(info.oid)
    # For unchanged content the library answers with whatever main is by then, which another upload may have moved.
    entry = _locate(api, Request(repo=repo_id, revision=commit, filename=constants.DATA_FILE), budget)
    if not _is_listing_of(entry, content):
        raise RemoteError(f"{repo_id} changed during the upload: its commit {commit} holds another file")
    return commit


def _is_listing_of(entry: HubFileInfo, content: bytes) -> bool:
    if entry.sha256 is not None:
        return entry.sha256 == hashlib.sha256(content).hexdigest()
    return entry.git_oid == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _as_commit(value: object) -> str:
    if not isinstance(value, str) or not is_commit(value):
        raise RemoteError("the Hub named no full commit")
    return value


def _check_size(request: Request, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise SubmissionError(
            Reason.TOO_LARGE, f"the file in {request.repo} is {size} bytes long, and {max_bytes} are allowed"
        )


def _cache_folder(cache_dir: Path, request: Request) -> Path:
    slot = "the-one-jsonl" if request.filename is None else "file-" + quote(request.filename, safe="")
    return cache_dir / "hub-files" / request.repo / request.revision / slot


def fetch_eval_set(competition: Competition, folder: Path, cache_dir: Path | None, token: str | None) -> Path:
    """Puts the competition's evaluation set into `folder` as data.jsonl, unless it is there, and returns the file.

    Raises: ConfigError when the competition names no usable repo, commit or file; RemoteError; HostError.
    """
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
        raise ConfigError(f"the competition's evaluation set cannot be had: {error}") from error
