"""Download and upload many files of one dataset repo."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from tqdm import tqdm

from template.errors import ConfigError, HostError, RemoteError, SubmissionError
from template.files import write_atomic
from template.hub.client import make_api, run_with_deadline, translate_hub_errors
from template.hub.datasets import read_chunks, resolve_revision
from template.hub.listing import HubFileInfo, parse_file
from template.hub.transport import MAX_LISTING_BYTES, RequestBudget
from template.hub.writes import ensure_repo

_LISTING_DEADLINE_S = 60.0
_FILE_DEADLINE_S = 120.0
_COMMIT_DEADLINE_S = 300.0
_PARALLEL_DOWNLOADS = 8
# Files of one commit: some ten megabytes of round files.
_COMMIT_FILES = 25


def download_files(
    repo_id: str, pattern: str, folder: Path, *, max_bytes: int, token: str | None, endpoint: str | None = None
) -> list[Path]:
    """Download a dataset repo's matching top-level files that the folder lacks or has otherwise.

    Returns the path of every matching file of the repo.
    Raises: ConfigError for a missing repo or a file over `max_bytes`.
    """
    try:
        commit = resolve_revision(repo_id, token=token, endpoint=endpoint)
        api = make_api(token, endpoint)
        listed = run_with_deadline(api, _LISTING_DEADLINE_S, lambda budget: _list_files(api, repo_id, commit, budget))
        wanted = {name: info for name, info in listed.items() if "/" not in name and fnmatch(name, pattern)}
        for name, info in wanted.items():
            if info.size > max_bytes:
                raise ConfigError(f"{name} of {repo_id} has {info.size} bytes, over the limit of {max_bytes}")
        missing = [info for name, info in wanted.items() if not _has_content(folder / name, info)]
        with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
            downloads = pool.map(lambda info: _download(api, repo_id, commit, info, folder), missing)
            # The first failure is raised here.
            for _ in tqdm(downloads, desc=repo_id, total=len(missing), unit="file", disable=None, delay=2.0):
                pass
        return [folder / name for name in sorted(wanted)]
    except SubmissionError as error:
        raise ConfigError(f"cannot download {pattern} of {repo_id}: {error}") from error
    except OSError as error:
        raise HostError(f"cannot write to {folder}: {error.strerror or error}") from error


def upload_new_files(paths: Sequence[Path], repo_id: str, *, token: str | None, endpoint: str | None = None) -> int:
    """Commit the files that main of a dataset repo lacks or has otherwise; return their number.

    A missing repo is created, for everybody to read. Safe to repeat after any failure.
    Raises: RemoteError to retry; HostError for a refused token or a file that cannot be read.
    """
    api = make_api(token, endpoint)

    def list_repo(budget: RequestBudget) -> Mapping[str, HubFileInfo]:
        head = ensure_repo(api, repo_id)
        return {} if head is None else _list_files(api, repo_id, head, budget)

    listed = run_with_deadline(api, _LISTING_DEADLINE_S, list_repo)
    uploaded = 0
    for start in range(0, len(paths), _COMMIT_FILES):
        batch = paths[start : start + _COMMIT_FILES]
        try:
            contents = {path.name: path.read_bytes() for path in batch}
        except OSError as error:
            raise HostError(f"cannot read {error.filename}: {error.strerror or error}") from error
        new = {
            name: content
            for name, content in contents.items()
            if name not in listed or not listed[name].matches(content)
        }
        if new:
            run_with_deadline(api, _COMMIT_DEADLINE_S, partial(_commit, api, repo_id, new))
            uploaded += len(new)
    return uploaded


def _commit(api: HfApi, repo_id: str, files: Mapping[str, bytes], _: RequestBudget) -> None:
    with translate_hub_errors(api, repo_id, is_write=True):
        api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()],
            commit_message=f"Publish {len(files)} files",
            repo_type="dataset",
        )


def _has_content(path: Path, info: HubFileInfo) -> bool:
    return path.is_file() and path.stat().st_size == info.size and info.matches(path.read_bytes())


def _download(api: HfApi, repo: str, commit: str, info: HubFileInfo, folder: Path) -> None:
    content = run_with_deadline(
        api, _FILE_DEADLINE_S, lambda budget: b"".join(read_chunks(api, repo, commit, info, budget))
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / info.path, [content], mode=0o644)


def _list_files(api: HfApi, repo: str, commit: str, budget: RequestBudget) -> dict[str, HubFileInfo]:
    budget.max_bytes = MAX_LISTING_BYTES
    with translate_hub_errors(api, repo):
        siblings = api.dataset_info(repo, revision=commit, files_metadata=True).siblings
        if siblings is None:
            raise RemoteError(f"the Hub sent no file list of {repo} at {commit[:12]}")
        return {row.rfilename: parse_file(row.rfilename, row) for row in siblings}
