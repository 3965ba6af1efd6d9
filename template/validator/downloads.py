"""Downloads beside the validator's loop: a few at once, each in a thread, so that no tick waits for one.

The threads touch the Hub and the one folder they were given, nothing else; what came of them is looked at by the loop.
They cannot be stopped, but end by their deadline, and the process's end does not wait for them: `dataset_folder` keeps
whatever they leave half done from being believed.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from template.competition import CommitmentRecord
from template.constants import DOWNLOAD_DEADLINE_S, MAX_SUBMISSION_BYTES
from template.errors import HostError
from template.hub import datasets
from template.hub.storage import HubFile
from template.records import SubmissionKey

Download = Callable[[CommitmentRecord, Path, float], HubFile]
"""Fetches the file of a commitment into a folder within so many seconds. Raises: as
`template.hub.datasets.download_dataset`."""


def download(record: CommitmentRecord, folder: Path, deadline_s: float) -> HubFile:
    """The submission's file from the Hub; without network when `folder` holds it already.

    Without our token, since a dataset that only some may read cannot be checked by all.
    """
    return datasets.download_dataset(record.namespace, record.commit, folder, deadline_s=deadline_s)


@dataclass(frozen=True, kw_only=True)
class DownloadResult:
    """The end of one download: exactly one of held and error. block: the newest when it began."""

    key: SubmissionKey
    block: int
    held: HubFile | None = None
    error: Exception | None = None

    @property
    def size(self) -> int:
        """Of the file, in bytes; 0 without one."""
        return self.held.size if self.held is not None else 0

    def result(self) -> HubFile:
        """The file. Raises: what the download ended with."""
        if self.error is not None:
            raise self.error
        assert self.held is not None, "it ended with one or the other"
        return self.held


class Downloader:
    """At most `limit` downloads at once. For one thread; only the downloads run in others."""

    def __init__(self, limit: int, fetch: Download = download) -> None:
        self._limit = limit
        self._fetch = fetch
        self._in_flight: set[SubmissionKey] = set()
        self._ended: deque[DownloadResult] = deque()
        self._wakeup = threading.Event()

    def available_slots(self) -> int:
        """Downloads that could be begun now."""
        return self._limit - len(self._in_flight)

    def in_flight(self) -> frozenset[SubmissionKey]:
        """What was begun and is not collected yet."""
        return frozenset(self._in_flight)

    def start(self, key: SubmissionKey, folder: Path, block: int, deadline_s: float = DOWNLOAD_DEADLINE_S) -> None:
        """Has the submission's file fetched into `folder`, which no one else may remove until it is collected.

        deadline_s: after which it counts as withheld. Raises: RuntimeError without room, or when it is under way
        already; HostError when there can be no such folder.
        """
        if key in self._in_flight or self.available_slots() < 1:
            raise RuntimeError(f"no download of {key} can begin")
        try:
            # Here, because tidying up removes the folders of hotkeys that have none, whatever a thread is about to do.
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"cannot keep a dataset in {folder}: {error.strerror or error}") from error
        self._in_flight.add(key)
        threading.Thread(target=self._run, args=(key, folder, block, deadline_s), name="fetch", daemon=True).start()

    def collect(self) -> list[DownloadResult]:
        """The downloads that ended since the last call, in their order.

        No more at a time than come to the size of the largest file, so that checking them holds nothing up for long.
        """
        self._wakeup.clear()
        found: list[DownloadResult] = []
        size = 0
        while self._ended:
            size += self._ended[0].size
            if found and size > MAX_SUBMISSION_BYTES:
                self._wakeup.set()
                break
            found.append(self._ended.popleft())
            self._in_flight.discard(found[-1].key)
        return found

    def wait(self, timeout_s: float) -> None:
        """Returns when a download has ended that is not collected yet, or else after `timeout_s`."""
        self._wakeup.wait(timeout_s)

    def _run(self, key: SubmissionKey, folder: Path, block: int, deadline_s: float) -> None:
        try:
            held = self._fetch(CommitmentRecord.parse(key.commitment), folder, deadline_s)
            ended = DownloadResult(key=key, block=block, held=held)
        except Exception as error:
            ended = DownloadResult(key=key, block=block, error=error)
        self._ended.append(ended)
        self._wakeup.set()
