"""Look up the files of paid datasets, once in each round.

A dataset of a hotkey in the ledger must stay readable for everyone, and so must its records after it has committed to
another dataset. While the file is missing for more than a day of rounds it is not paid, and its rank counts from its
return unless it was confirmed before. An answer about anything but one file is ignored, and so is a round in which
every lookup fails.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Set
from functools import partial
from pathlib import Path

from loguru import logger

from template.competition import CommitmentRecord
from template.constants import DAY_BLOCKS, DOWNLOAD_DEADLINE_S
from template.errors import Reason, RemoteError, SubmissionError
from template.hub import datasets
from template.records import Absence, ContentKey, Round, Stand, SubmissionKey, Verdict
from template.rules.lookups import newest_commitments, records_to_look_up
from template.validator.context import Context
from template.validator.downloads import dataset_folder, download
from template.validator.evaluation import SubmissionEvaluator

# Lookups of one file in a round.
_MAX_TRIES = 3

# Failed downloads of a listed file after which it is looked up too: the Hub may list a file and refuse it.
_FAILURES_BEFORE_LOOKUP = 3

# Looked up when every other file is missing, to check that the Hub answers and answers correctly.
_EVAL_SET = SubmissionKey("", "the competition's evaluation set")


class FileWatch:
    """The lookups of the newest round.

    After a restart they begin again, and count once.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._round_id = 0
        self._is_done = True
        self._waiting: deque[SubmissionKey] = deque()
        self._running: set[SubmissionKey] = set()
        self._tries: dict[SubmissionKey, int] = {}
        self._found: set[SubmissionKey] = set()
        self._missing: dict[SubmissionKey, str] = {}

    def update(self, evaluator: SubmissionEvaluator, current: Round | None) -> None:
        """Collect lookups and start others; record the search when all have ended.

        Downloads come first, so it begins when the evaluations are planned. Missed rounds have no lookups.
        """
        ended = self._context.downloader.collect_lookups()
        self._running.difference_update(key for key, _ in ended)
        if current is None or current.evaluations is None or current.is_past:
            return
        if current.id == self._round_id:
            for key, error in ended:
                self._collect(evaluator, key, error)
        elif not self._running:
            self._round_id, self._is_done = current.id, False
            self._waiting = deque(_files_to_find(self._context, evaluator, current))
            self._tries, self._found, self._missing = {}, set(), {}
        if current.id == self._round_id and not self._is_done:
            self._start(evaluator, current)
            if not self._waiting and not self._running:
                self._finish(evaluator, current)

    def _collect(self, evaluator: SubmissionEvaluator, key: SubmissionKey, error: Exception | None) -> None:
        if error is None:
            self._found.add(key)
        elif isinstance(error, SubmissionError):
            self._missing[key] = str(error)
        else:
            logger.debug("lookup failed hotkey={} commitment={}: {}", *key, error)
            if isinstance(error, RemoteError):
                evaluator.pause_downloads(error)
            if self._tries[key] < _MAX_TRIES:
                self._waiting.append(key)

    def _start(self, evaluator: SubmissionEvaluator, current: Round) -> None:
        while self._waiting and evaluator.available_slots() > 0:
            key = self._waiting.popleft()
            self._tries[key] = self._tries.get(key, 0) + 1
            self._running.add(key)
            self._context.downloader.start_lookup(key, self._lookup(key))

    def _lookup(self, key: SubmissionKey) -> Callable[[], None]:
        config = self._context.config
        if key == _EVAL_SET:
            return partial(datasets.check_eval_set_available, config.competition)
        return partial(_check_file, key, dataset_folder(config.data_dir, key))

    def _finish(self, evaluator: SubmissionEvaluator, current: Round) -> None:
        if self._missing and not self._found:
            if _EVAL_SET not in self._tries:
                self._waiting.append(_EVAL_SET)
                return
            logger.warning("no file is found on the Hub: the {} missing ones do not count", len(self._missing))
            self._missing = {}
        self._is_done = True
        self._found.discard(_EVAL_SET)
        _record(self._context, evaluator, current, self._found, self._missing)


def _check_file(key: SubmissionKey, folder: Path) -> None:
    """Check that a commitment's file can be read.

    A digest needs a copy of the file to compare with; without one the file is downloaded.
    """
    record = CommitmentRecord.parse(key.commitment, key.hotkey)
    if record.is_content_addressed and datasets.find_dataset(record.namespace, record.commit, folder) is None:
        download(record, folder, DOWNLOAD_DEADLINE_S)
    else:
        datasets.check_available(record.namespace, record.commit, folder)


def _files_to_find(context: Context, evaluator: SubmissionEvaluator, current: Round) -> list[SubmissionKey]:
    """Return the commitments whose files are looked up in this round.

    These are the datasets of hotkeys in the ledger, paid records, missing datasets, and files that the Hub lists and
    does not send.
    """
    store = context.store
    verdicts, absences = store.verdicts(evaluator.eval_config), store.absences()
    retry_states, in_ledger = evaluator.retry_states(), {key.hotkey for key in evaluator.confirmed}

    def is_wanted(key: SubmissionKey) -> bool:
        if key in evaluator.datasets:
            return key.hotkey in in_ledger or key in absences
        retry = retry_states.get(key)
        return retry is not None and retry.remote_failures >= _FAILURES_BEFORE_LOOKUP

    accepted = [entry.key for entry in current.entries if entry.rejection is None and entry.key not in verdicts]
    records = find_records(context, evaluator, current)
    return list(dict.fromkeys([*(key for key in accepted if is_wanted(key)), *records]))


def find_records(context: Context, evaluator: SubmissionEvaluator, current: Round) -> list[SubmissionKey]:
    """Return the commitments of the paid records, as of the newest ledger."""
    store, last = context.store, context.store.last_decided_round(evaluator.eval_config)
    return records_to_look_up(
        current.start_block,
        store.ledger(last.id) if last else (),
        {entry.key.hotkey: entry.registration_block for entry in current.entries},
        context.config.incentives,
        newest_commitments(store.stands(), evaluator.datasets, current.start_block),
        store.absences(),
    )


def _record(
    context: Context,
    evaluator: SubmissionEvaluator,
    current: Round,
    available: Set[SubmissionKey],
    missing: Mapping[SubmissionKey, str],
) -> None:
    store, block, period = context.store, current.start_block, context.config.incentives.blocks_per_epoch
    absences, newest = store.absences(), {hotkey: stands[-1] for hotkey, stands in store.stands().items()}
    now_missing: dict[SubmissionKey, Absence] = {}
    stands: list[Stand] = []
    for key, message in missing.items():
        if key not in evaluator.datasets:
            store.record_missing_file(key, block)
            continue
        now_missing[key] = absence = _extend_absence(absences.get(key), block)
        logger.warning("file missing hotkey={} commitment={} rounds={}: {}", *key, absence.rounds, message)
        stand = newest.get(key.hotkey)
        if _is_long(absence, period) and stand is not None and stand.key == key:
            # The stand ends with its file. Another stand begins when the file is back.
            last_block = max(stand.first_block, min(stand.last_block, absence.first_block - period))
            stands.append(dataclasses.replace(stand, last_block=last_block))
    returned = available & absences.keys()
    for key in returned:
        logger.info("file found again hotkey={} commitment={}", *key)
    store.record_availability(returned=returned, missing=now_missing, stands=stands)


def _extend_absence(absence: Absence | None, block: int) -> Absence:
    if absence is None:
        return Absence(first_block=block, last_block=block)
    if absence.last_block >= block:
        return absence
    return dataclasses.replace(absence, last_block=block, rounds=absence.rounds + 1)


def _is_long(absence: Absence, period: int) -> bool:
    """Check that a file was missing for more than a day of rounds."""
    return absence.rounds * period > DAY_BLOCKS


def long_absent(context: Context) -> set[SubmissionKey]:
    """Return the datasets that are out of the competition until their file is back."""
    period = context.config.incentives.blocks_per_epoch
    return {key for key, absence in context.store.absences().items() if _is_long(absence, period)}


def absent_datasets(context: Context, evaluator: SubmissionEvaluator, current: Round) -> set[ContentKey]:
    """Return the datasets whose file is missing for more than a day.

    The file is that of the newest commitment to the dataset.
    """
    commitments = newest_commitments(context.store.stands(), evaluator.datasets, current.start_block)
    absent = long_absent(context)
    return {content for content, key in commitments.items() if key in absent}


def missing_verdicts(context: Context, current: Round) -> dict[SubmissionKey, Verdict]:
    """Return a verdict on each entry whose file is missing for more than a day."""
    message = "its file is missing on the Hub for more than a day: it counts from its return"
    return {
        key: Verdict(reason=Reason.MISSING_FILE, message=message)
        for key in long_absent(context)
        if key in current.by_key
    }
