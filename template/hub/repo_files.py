"""Download many files of one dataset repo."""

import os
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi

from template.errors import ConfigError, HostError, RemoteError, SubmissionError
from template.hub.client import make_api, run_with_deadline, translate_hub_errors
from template.hub.datasets import download_dataset, resolve_revision
from template.hub.transport import MAX_LISTING_BYTES, RequestBudget

_LISTING_DEADLINE_S = 60.0


def download_files(
    repo_id: str, pattern: str, folder: Path, *, max_bytes: int, token: str | None, endpoint: str | None = None
) -> None:
    """Download a dataset repo's matching top-level files that the folder lacks.

    Raises: ConfigError for a missing repo or a file over `max_bytes`.
    """
    try:
        commit = resolve_revision(repo_id, token=token, endpoint=endpoint)
        api = make_api(token, endpoint)
        names = run_with_deadline(api, _LISTING_DEADLINE_S, lambda budget: _list_files(api, repo_id, commit, budget))
        for name in sorted(names):
            if "/" in name or not fnmatch(name, pattern) or (folder / name).is_file():
                continue
            file = download_dataset(
                repo_id,
                commit,
                folder / ".download",
                filename=name,
                max_bytes=max_bytes,
                token=token,
                endpoint=endpoint,
            )
            os.replace(file.path, folder / name)
    except SubmissionError as error:
        raise ConfigError(f"cannot download {pattern} of {repo_id}: {error}") from error
    except OSError as error:
        raise HostError(f"cannot write to {folder}: {error.strerror or error}") from error


def _list_files(api: HfApi, repo: str, commit: str, budget: RequestBudget) -> list[str]:
    budget.max_bytes = MAX_LISTING_BYTES
    with translate_hub_errors(api, repo):
        siblings = api.dataset_info(repo, revision=commit, files_metadata=True).siblings
        if siblings is None:
            raise RemoteError(f"the Hub sent no file list of {repo} at {commit[:12]}")
        return [str(row.rfilename) for row in siblings]
