"""Show how far the download of a model's weights is. transformers starts it, and its own bars fit no log."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from huggingface_hub import constants as hf_constants
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from loguru import logger
from tqdm import tqdm

from template.errors import SubnetError
from template.hub import progress
from template.hub.client import make_api, run_with_deadline, saved_token, translate_hub_errors
from template.hub.progress import describe_download, format_bytes
from template.hub.transport import MAX_LISTING_BYTES, RequestBudget

POLL_S = 1.0

_LISTING_DEADLINE_S = 15.0
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@contextmanager
def show_model_download(repo: str, revision: str | None, cache_dir: Path | None) -> Iterator[None]:
    """Show the download during the block: a bar on a terminal, elsewhere a line in the log from time to time.

    Nothing is shown for weights that are in the cache. revision: as for transformers.
    """
    if _is_cached(repo, revision, cache_dir):
        yield
        return
    download = _Download(repo, revision, cache_dir)
    watcher = threading.Thread(target=download.watch, name="model-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        download.is_over.set()
        # It may be waiting for the Hub's listing, which nobody needs any more.
        watcher.join(2 * POLL_S)


def _is_cached(repo: str, revision: str | None, cache_dir: Path | None) -> bool:
    def find(name: str) -> str | None:
        path = try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision)
        return path if isinstance(path, str) else None

    if find(_WEIGHTS):
        return True
    if (index := find(_INDEX)) is None:
        return False
    try:
        names = set(json.loads(Path(index).read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError):
        return False  # loading reports it
    return all(find(str(name)) for name in names)


class _Download:
    """A download by another thread, measured by the files in the cache."""

    def __init__(self, repo: str, revision: str | None, cache_dir: Path | None) -> None:
        self.is_over = threading.Event()
        self._repo, self._revision, self._cache_dir = repo, revision, cache_dir
        cache = Path(hf_constants.HF_HUB_CACHE) if cache_dir is None else cache_dir
        self._blobs = cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
        # Files of other revisions. A part of a file counts, since it is continued.
        self._others = self._measure(is_whole=True)
        self._began = time.monotonic()
        self._before = self._measure() - self._others

    def _measure(self, *, is_whole: bool = False) -> int:
        total = 0
        with suppress(OSError):
            for path in self._blobs.iterdir():
                with suppress(OSError):  # renamed meanwhile
                    total += 0 if is_whole and path.suffix == ".incomplete" else path.stat().st_size
        return total

    def watch(self) -> None:
        """Show the download until it is over."""
        total = self._find_total()
        size = f" bytes={format_bytes(total)}" if total else ""
        logger.info("downloading once: model={}{} folder={}", self._repo, size, self._blobs.parent)
        # None: no bar where stderr is no terminal.
        bar: tqdm[NoReturn] = tqdm(total=total, desc=self._repo, unit="B", unit_scale=True, disable=None)
        logged_at = time.monotonic()
        while not self.is_over.wait(POLL_S) and not _is_cached(self._repo, self._revision, self._cache_dir):
            done = self._measure() - self._others
            bar.update(done - bar.n)
            if bar.disable and time.monotonic() - logged_at >= progress.LOG_EVERY_S:
                logged_at = time.monotonic()
                speed = (done - self._before) / (logged_at - self._began)
                logger.info("downloading model={}: {}", self._repo, describe_download(done, total, speed))
        bar.close()

    def _find_total(self) -> int | None:
        """Return the bytes of the weights in the Hub's listing, None if it cannot be read."""

        def read(budget: RequestBudget) -> int:
            budget.max_bytes = MAX_LISTING_BYTES
            with translate_hub_errors(api, self._repo):
                siblings = api.model_info(self._repo, revision=self._revision, files_metadata=True).siblings or []
                sizes = {row.rfilename: row.size or 0 for row in siblings}
            weights = [name for name in sizes if name.endswith(".safetensors") and "/" not in name]
            return sizes[_WEIGHTS] if _WEIGHTS in sizes else sum(sizes[name] for name in weights)

        try:
            api = make_api(saved_token(), None)
            return run_with_deadline(api, _LISTING_DEADLINE_S, read) or None
        except SubnetError as error:
            logger.debug("the size of the model is not known: {}", error)
            return None
