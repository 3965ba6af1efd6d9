"""Remove old files and rows when a round opens or closes. Verdicts are kept forever."""

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from loguru import logger

from template.competition import is_commit
from template.constants import HOTKEY_PATTERN
from template.records import Round
from template.rules.stands import find_versions, shorten_stands
from template.validator.availability import find_records
from template.validator.config import ValidatorConfig
from template.validator.context import Context
from template.validator.downloads import dataset_folder
from template.validator.evaluation import SubmissionEvaluator

_DAY_S = 86400.0

# Age at which row keys that decide nothing any more are removed.
_DATASETS_KEPT_S = _DAY_S

# Commit blocks, and commitments of hotkeys that left, are remembered for about a day.
_SEEN_KEPT_BLOCKS = 7200

# Names that this package writes into the operator's folders. Everything else in them stays.
_DATASET_OWNER = re.compile(HOTKEY_PATTERN)
_DATASET = re.compile(r".+--.+-(?:[0-9a-f]{40}|[0-9a-f]{64})")
# A file that is being written has a leading dot and a suffix; a kill can leave it behind.
_RECEIPT = re.compile(rf"\.?({HOTKEY_PATTERN}-[0-9a-f]{{12}})-\d+\.json(?:\.\w+)?")
_ROUND = re.compile(r"\.?(round-\d+-\d+-[\w-]+)\.jsonl(?:\.\w+)?")


def oldest_remembered_block(current: Round) -> int:
    """Return the block before which superseded commitments are dropped."""
    return current.start_block - _SEEN_KEPT_BLOCKS


def clean_up(context: Context, evaluator: SubmissionEvaluator, current: Round) -> None:
    """Free disk and memory after the round `current`. Raises: HostError."""
    config, store, now = context.config, context.store, context.now()
    old = now - config.keep_days * _DAY_S
    _shorten_stands(context, evaluator)
    hotkeys = {entry.key.hotkey for entry in current.entries}
    store.prune_submissions(keep=hotkeys, before_block=oldest_remembered_block(current))
    # Every version that is remembered decides about duplicates, whenever this validator downloaded it.
    keep = {stand.key for stands in store.stands().values() for stand in stands}
    store.prune_results(keep=keep, datasets_before=now - _DATASETS_KEPT_S, receipts_before=old)
    store.prune_rounds(before=old)
    store.prune_outputs(before=old)
    for key in evaluator.datasets.keys() - store.dataset_keys(config.competition):
        del evaluator.datasets[key]
    receipts = {f"{entry.key.hotkey}-{entry.key.commitment.rpartition(':')[2][:12]}" for entry in current.entries}
    _remove_files(config.receipt_dir, _RECEIPT, keep=receipts, older_than=old)
    _remove_files(config.round_dir, _ROUND, keep=frozenset(), older_than=old)
    _remove_eval_sets(config, older_than=old)


def remove_replaced_files(context: Context, evaluator: SubmissionEvaluator, current: Round) -> None:
    """Remove the datasets that the round `current` does not have.

    Before its downloads: miners who all replace their dataset would else take twice the disk.
    """
    data_dir = context.config.data_dir
    # The files of records are compared with the Hub's in each round.
    records = find_records(context, evaluator, current)
    used = [*(entry.key for entry in current.entries if entry.rejection is None), *records]
    _remove_datasets(data_dir, {dataset_folder(data_dir, key) for key in used} | evaluator.folders_in_use())


def _shorten_stands(context: Context, evaluator: SubmissionEvaluator) -> None:
    """Replace the stands of each version by one; drop versions that never counted."""
    incentives = context.config.incentives
    for stands in context.store.stands().values():
        versions = find_versions(
            stands,
            evaluator.datasets,
            period=incentives.blocks_per_epoch,
            update_blocks=incentives.update_blocks,
        )
        shortened = shorten_stands(stands, versions)
        if shortened != stands:
            context.store.replace_stands(stands[-1].key.hotkey, shortened)


def _remove_datasets(data_dir: Path, keep: Set[Path]) -> None:
    for owner in _folders(data_dir, _DATASET_OWNER):
        for folder in _folders(owner, _DATASET):
            if folder not in keep:
                _remove(folder)
        with contextlib.suppress(OSError):
            owner.rmdir()


def _remove_eval_sets(config: ValidatorConfig, *, older_than: float) -> None:
    if config.cache_dir is None:
        return
    current = config.cache_dir / "hub-files" / config.competition.repo / config.competition.eval_commit
    for folder in (config.cache_dir / "hub-files").glob("*/*/*"):
        if folder != current and is_commit(folder.name) and _is_older(folder, older_than):
            _remove(folder)


def _remove_files(folder: Path | None, pattern: re.Pattern[str], *, keep: Set[str], older_than: float) -> None:
    """Remove old files of these names, unless group 1 is in `keep`."""
    for path in _list(folder) if folder is not None else ():
        match = pattern.fullmatch(path.name)
        is_kept = match is not None and match.group(1) in keep and not path.name.startswith(".")
        if match and not is_kept and not path.is_dir() and _is_older(path, older_than):
            _remove(path)


def _folders(parent: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    """Yield the folders of these names; links can lead elsewhere."""
    return (path for path in _list(parent) if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink())


def _list(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        logger.warning("cannot clean up {}: {}", folder, error.strerror or error)
        return []


def _is_older(path: Path, than: float) -> bool:
    try:
        return path.lstat().st_mtime < than
    except OSError:
        return False


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("cannot remove {}: {}", path, error.strerror or error)
