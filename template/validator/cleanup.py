"""Keeping the disk and the memory bounded, by policy and between rounds."""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path

from loguru import logger

from template.competition import is_commit
from template.constants import DEFAULT_DUPLICATE_COUNT
from template.records import Round, Submission, SubmissionKey
from template.rules.duplicates import MAX_VERSIONS
from template.store.store import Store
from template.validator.config import ValidatorConfig
from template.validator.evaluation import SubmissionEvaluator

_DAY_S = 86400.0

# Row keys of datasets that are in nobody's way any more go after this time.
_DATASETS_KEPT_S = _DAY_S

# Commitments that stand no more are remembered for about a day: a re-commit of one keeps its rank so long.
_SEEN_KEPT_BLOCKS = 7200

# What this package itself writes into the folders that the operator names: nothing else in them is ours to remove.
_HOTKEY = "[1-9A-HJ-NP-Za-km-z]{46,49}"
_DATASET_OWNER = re.compile(_HOTKEY)
_DATASET = re.compile(r".+--.+-(?:[0-9a-f]{40}|[0-9a-f]{64})")
# With a dot in front and more behind while they are written, which a kill may leave.
_RECEIPT = re.compile(rf"\.?({_HOTKEY}-[0-9a-f]{{12}})-\d+\.json(?:\.\w+)?")
_ROUND = re.compile(r"\.?(round-\d+-\d+-\w+)\.jsonl(?:\.\w+)?")


def oldest_remembered_block(current: Round) -> int:
    """Commitments that stand no more are forgotten when they are of before this block."""
    return current.start_block - _SEEN_KEPT_BLOCKS


class Housekeeper:
    """Removes what one validator no longer needs: datasets, old receipts and tables. Verdicts are kept for ever."""

    def __init__(self, config: ValidatorConfig, store: Store, now: Callable[[], float]) -> None:
        self._config = config
        self._store = store
        self._now = now

    def tidy(self, judge: SubmissionEvaluator, current: Round, seen: Mapping[SubmissionKey, Submission]) -> None:
        """Frees disk and memory after `current`; `seen` is every submission ever recorded. Raises: HostError."""
        now = self._now()
        old = now - self._config.keep_days * _DAY_S
        kept = _still_needed(current, seen, judge.datasets)
        self._store.prune_results(keep=kept, datasets_before=now - _DATASETS_KEPT_S, receipts_before=old)
        self._store.prune_submissions(keep=kept, before_block=oldest_remembered_block(current))
        self._store.prune_rounds(before=old)
        for key in judge.datasets.keys() - self._store.dataset_keys(judge.eval_config):
            del judge.datasets[key]
        self._remove_datasets({judge.folder(key) for key in (*current.queue, *judge.in_flight())})
        standing = {f"{entry.key.hotkey}-{entry.key.commitment.rpartition(':')[2][:12]}" for entry in current.entries}
        _remove_files(self._config.receipt_dir, _RECEIPT, keep=standing, older_than=old)
        _remove_files(self._config.round_dir, _ROUND, keep=frozenset(), older_than=old)
        self._remove_eval_sets(older_than=old)

    def _remove_datasets(self, kept: Set[Path]) -> None:
        """Frees the disk of datasets whose turn it is not; one that is asked for again is fetched again."""
        for owner in _folders(self._config.data_dir, _DATASET_OWNER):
            for folder in _folders(owner, _DATASET):
                if folder not in kept:
                    _remove(folder)
            with contextlib.suppress(OSError):
                owner.rmdir()

    def _remove_eval_sets(self, *, older_than: float) -> None:
        """Removes downloads of evaluation sets of earlier competitions from the cache, which others may share."""
        competition, cache = self._config.competition, self._config.cache_dir
        if cache is None:
            return
        now_used = cache / "hub-files" / competition.repo / competition.eval_commit
        for folder in (cache / "hub-files").glob("*/*/*"):
            if folder != now_used and is_commit(folder.name) and _is_older(folder, older_than):
                _remove(folder)


def _still_needed(
    current: Round, seen: Mapping[SubmissionKey, Submission], datasets: Mapping[SubmissionKey, tuple[bytes, ...]]
) -> set[SubmissionKey]:
    """The round's entries, and those versions of each that `template.rules.duplicates.find_duplicates` holds copies
    against.

    Of a hotkey whose present rows are not known, the earliest and the latest versions stay until they are.
    """
    now = {entry.key.hotkey: entry for entry in current.entries}
    versions: dict[str, list[SubmissionKey]] = {}
    for key in sorted(seen.keys() & datasets.keys(), key=lambda key: (seen[key].first_block, key)):
        if key.hotkey in now and seen[key].first_block > now[key.hotkey].registration_block:
            versions.setdefault(key.hotkey, []).append(key)
    needed = {entry.key for entry in current.entries}
    for hotkey, keys in versions.items():
        present = now[hotkey].key
        if present in datasets:
            rows = set(datasets[present])
            related = (key for key in keys if len(rows.intersection(datasets[key])) > DEFAULT_DUPLICATE_COUNT)
            needed.update([key for key in related if key != present][:MAX_VERSIONS])
        else:
            needed.update(keys[:MAX_VERSIONS], keys[-MAX_VERSIONS:])
    return needed


def _remove_files(folder: Path | None, pattern: re.Pattern[str], *, keep: Set[str], older_than: float) -> None:
    """Removes the files of these names, last written before the time `older_than`, unless group 1 is in `keep`.

    What was never finished is kept for nobody.
    """
    for path in _list(folder) if folder is not None else ():
        found = pattern.fullmatch(path.name)
        is_kept = found is not None and found.group(1) in keep and not path.name.startswith(".")
        if found and not is_kept and not path.is_dir() and _is_older(path, older_than):
            _remove(path)


def _folders(parent: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    """The folders of these names in `parent`; links, which lead out of it, are none."""
    return (path for path in _list(parent) if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink())


def _list(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        logger.warning("{} cannot be tidied up: {}", folder, error.strerror or error)
        return []


def _is_older(path: Path, than: float) -> bool:
    try:
        return path.lstat().st_mtime < than
    except OSError:
        return False


def _remove(path: Path) -> None:
    """Removes a file or folder; one that cannot be removed is told of and left."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("{} cannot be removed: {}", path, error.strerror or error)
