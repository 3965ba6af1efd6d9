"""Download a few datasets at once in threads, so that no tick waits.

A thread only touches the Hub and its own folder; the validator's loop checks the result. Threads cannot be stopped,
but they end by their deadline and do not delay the process's exit. `template.hub.storage` never returns a file that
was left half written.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from template.competition import CommitmentRecord
from template.constants import DOWNLOAD_DEADLINE_S, MAX_SUBMISSION_BYTES
from template.errors import HostError, RemoteError, SubmissionError, SubnetError
from template.hub import datasets
from template.hub.storage import HubFile
from template.records import Entry, SubmissionKey
from template.rules.entries import MISSING

# Time for which one answer about the control file counts.
_CONTROL_EVERY_S = 300.0

Download = Callable[[CommitmentRecord, Path, float], HubFile]
"""Downloads the file of a commitment into a folder within some seconds, or raises like `download_dataset`."""


def download(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
    """Return the submission's file from the folder, or download it from the Hub.

    No token is used: a dataset that only some can read cannot be checked by every validator.
    """
    return datasets.download_dataset(
        record.namespace, record.commit, folder, hotkey=record.hotkey, deadline_s=deadline_s
    )


def dataset_folder(data_dir: Path, key: SubmissionKey) -> Path:
    """Return the folder of an accepted commitment's file; no other uses it."""
    record = CommitmentRecord.parse(key.commitment)
    return data_dir / key.hotkey / f"{record.namespace.replace('/', '--')}-{record.commit}"


@dataclass(frozen=True, kw_only=True)
class DownloadResult:
    """The end of a download.

    block: newest block when the download started.
    """

    key: SubmissionKey
    block: int
    file: HubFile | None = None
    error: Exception | None = None

    def result(self) -> HubFile:
        """Return the file, or raise the error of the download."""
        if self.file is None:
            raise self.error or RuntimeError("a download ended without a result")
        return self.file


class Downloader:
    """A runner of at most `limit` downloads at once, for use from one thread.

    control: reads a public file that exists, or raises. A dataset is missing only if the control file is not: a login
    wall or a mirror can reject every repo at once.
    """

    def __init__(self, limit: int, fetch: Download = download, *, control: Callable[[], None] | None = None) -> None:
        self._limit = limit
        self._fetch = fetch
        self._control = control
        self._controlled_at = float("-inf")
        self._in_flight: dict[SubmissionKey, Path] = {}
        self._ended: deque[DownloadResult] = deque()
        self._looking: set[SubmissionKey] = set()
        self._looked: deque[tuple[SubmissionKey, Exception | None]] = deque()
        self._wakeup = threading.Event()

    def available_slots(self) -> int:
        """Return how many more downloads or lookups can start now."""
        return self._limit - len(self._in_flight) - len(self._looking)

    def in_flight(self) -> dict[SubmissionKey, Path]:
        """Return the folders of downloads that are not collected yet, by submission."""
        return dict(self._in_flight)

    def start(self, entry: Entry, folder: Path, block: int, deadline_s: float = DOWNLOAD_DEADLINE_S) -> None:
        """Start to download an entry's file into `folder`, kept until it is collected.

        Raises: RuntimeError when no slot is free or it is in flight; HostError when the folder cannot be made.
        """
        if entry.key in self._in_flight or self.available_slots() < 1:
            raise RuntimeError(f"download of {entry.key} cannot start: no slot, or already in flight")
        try:
            # Not in the thread: cleanup removes empty folders at any time.
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"cannot make the dataset folder {folder}: {error.strerror or error}") from error
        self._in_flight[entry.key] = folder
        threading.Thread(target=self._run, args=(entry, folder, block, deadline_s), name="fetch", daemon=True).start()

    def collect(self) -> list[DownloadResult]:
        """Return the downloads that ended since the last call, in order.

        A batch is at most one maximum file size together, so that checking it does not block the loop for long.
        """
        self._wakeup.clear()
        results: list[DownloadResult] = []
        size = 0
        while self._ended:
            file = self._ended[0].file
            size += file.size if file is not None else 0
            if results and size > MAX_SUBMISSION_BYTES:
                self._wakeup.set()
                break
            results.append(self._ended.popleft())
            del self._in_flight[results[-1].key]
        return results

    def wait(self, timeout_s: float) -> None:
        """Return when a download can be collected, or after `timeout_s`."""
        self._wakeup.wait(timeout_s)

    def start_lookup(self, key: SubmissionKey, look: Callable[[], None]) -> None:
        """Start a lookup of a downloaded file: `look` returns if the Hub has it.

        Raises: RuntimeError when no slot is free or the lookup is running.
        """
        if key in self._looking or self.available_slots() < 1:
            raise RuntimeError(f"lookup of {key} cannot start: no slot, or already started")
        self._looking.add(key)
        threading.Thread(target=self._look, args=(key, look), name="look", daemon=True).start()

    def collect_lookups(self) -> list[tuple[SubmissionKey, Exception | None]]:
        """Return the lookups that ended since the last call, each with its error."""
        results = [self._looked.popleft() for _ in range(len(self._looked))]
        self._looking.difference_update(key for key, _ in results)
        return results

    def _look(self, key: SubmissionKey, look: Callable[[], None]) -> None:
        error: Exception | None = None
        try:
            look()
        except Exception as failure:
            error = failure
        self._looked.append((key, error))
        self._wakeup.set()

    def _check_missing(self, error: Exception) -> Exception:
        """Return the error, or a RemoteError if the control file is missing too."""
        is_missing = isinstance(error, SubmissionError) and error.reason in MISSING
        if not is_missing or self._control is None or time.monotonic() < self._controlled_at + _CONTROL_EVERY_S:
            return error
        try:
            self._control()
        except SubnetError as failure:
            return RemoteError(f"{error}; but the Hub does not give the evaluation set either: {failure}")
        self._controlled_at = time.monotonic()
        return error

    def _run(self, entry: Entry, folder: Path, block: int, deadline_s: float) -> None:
        try:
            file = self._fetch(entry.accepted_record, folder, deadline_s)
            result = DownloadResult(key=entry.key, block=block, file=file)
        except Exception as error:
            result = DownloadResult(key=entry.key, block=block, error=self._check_missing(error))
        self._ended.append(result)
        self._wakeup.set()
