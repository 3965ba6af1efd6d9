"""Keeping the disk and the memory bounded, by policy and between rounds."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from loguru import logger

from template.judging import Judge
from template.standing import MAX_VERSIONS
from template.state import Round, Submission, SubmissionKey
from template.store import Store
from template.validator_config import ValidatorConfig

_DAY_S = 86400.0

# Row keys of datasets that are in nobody's way any more go after this time.
_DATASETS_KEPT_S = _DAY_S


class Housekeeper:
    """Removes what one validator no longer needs: datasets, old receipts and tables. Verdicts are kept for ever."""

    def __init__(self, config: ValidatorConfig, store: Store, now: Callable[[], float]) -> None:
        self._config = config
        self._store = store
        self._now = now

    def tidy(self, judge: Judge, current: Round, seen: Mapping[SubmissionKey, Submission]) -> None:
        """Frees disk and memory after `current`; `seen` is every submission ever recorded."""
        now = self._now()
        old = now - self._config.keep_days * _DAY_S
        kept = _still_needed(current, seen)
        self._store.prune_submissions(keep=kept, datasets_before=now - _DATASETS_KEPT_S, receipts_before=old)
        self._store.prune_rounds(before=old)
        for key in judge.datasets.keys() - self._store.dataset_keys(judge.contest):
            del judge.datasets[key]
        self._remove_folders({judge.folder(key) for key in current.queue})
        for folder in (self._config.receipt_dir, self._config.round_dir):
            if folder is not None:
                _remove_files(folder, older_than=old)

    def _remove_folders(self, kept: set[Path]) -> None:
        """Frees the disk of datasets that are in no queue; one that is asked for again is fetched again."""
        for folder in self._config.data_dir.glob("*/*"):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self._config.data_dir.glob("*"):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _still_needed(current: Round, seen: Mapping[SubmissionKey, Submission]) -> set[SubmissionKey]:
    """The round's entries, and the earliest versions of each hotkey in it, which copies are held against."""
    needed = {entry.key for entry in current.entries}
    births = {entry.key.hotkey: entry.registration_block for entry in current.entries}
    versions: dict[str, list[SubmissionKey]] = {}
    for key in sorted(seen, key=lambda key: (seen[key].first_block, key)):
        if key.hotkey in births and seen[key].first_block > births[key.hotkey]:
            versions.setdefault(key.hotkey, []).append(key)
    return needed.union(*(keys[:MAX_VERSIONS] for keys in versions.values()))


def _remove_files(folder: Path, *, older_than: float) -> None:
    """Removes the files last written before the time `older_than`; one that cannot be removed is told of and left."""
    for path in folder.glob("*.json*"):
        try:
            if path.stat().st_mtime < older_than:
                path.unlink()
        except OSError as error:
            logger.warning("{} cannot be removed: {}", path, error.strerror or error)
