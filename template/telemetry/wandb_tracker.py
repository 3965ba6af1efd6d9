"""Shows a validator on wandb without ever waiting for it: one run per version and UTC day, named by hotkey.

Reports are put in a bounded mailbox; a thread hands them to a process that holds the run
(`template.telemetry.wandb_process`).
Whatever becomes of wandb is one warning an hour, and another run later.
"""

import hashlib
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from loguru import logger

from template.records import Metrics, RoundReport
from template.telemetry.metrics import STEP_METRICS, TABLE_COLUMNS, live_metrics, round_metrics, table_rows
from template.telemetry.wandb_link import WandbLink

MAX_WAITING = 256
"""Reports kept while wandb does not take them."""
ROUND_TRIES = 3
"""Times that a round is handed to an open run before it is given up; gauges get one."""
"""Age at which what wandb left on disk is removed."""
MAX_PATIENCE_S = 3600.0

_OPEN_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 60.0
_FINISH_TIMEOUT_S = 60.0
_COMPLAINT_INTERVAL_S = 3600.0
# What wandb leaves below its folder, one entry for each run, artifact or start.
_LEFTOVERS = ("wandb/run-*", "wandb/offline-run-*", "data/artifacts/staging/*", "cache/wandb/logs/*")


class Tracker(Protocol):
    """Takes what a validator tells about itself. No method raises, or waits for anything outside this process.

    `close` alone may take its `timeout_s` to hand over what is still waiting.
    """

    def report_metrics(self, metrics: Metrics) -> None: ...

    def report_round(self, report: RoundReport) -> None: ...

    def close(self, *, timeout_s: float = 10.0) -> None: ...


class NullTracker:
    """The tracker of who wants none."""

    def report_metrics(self, metrics: Metrics) -> None:
        pass

    def report_round(self, report: RoundReport) -> None:
        pass

    def close(self, *, timeout_s: float = 10.0) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Whose runs these are and where they go. entity None: the login's own. folder: all of wandb's files, made here.

    keep_days: how long what wandb leaves in the folder is kept.
    """

    project: str
    entity: str | None
    hotkey: str
    netuid: int
    version: str
    folder: Path
    keep_days: float = 30.0


@dataclass(frozen=True)
class _Report:
    """`day` of the run that it belongs to, the request for wandb's process, and how often that may be tried."""

    day: str
    request: Mapping[str, Any]
    tries: int


class _Mailbox:
    """Reports on their way to the thread: when there are too many, the oldest with the fewest tries goes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reports: deque[_Report] = deque()
        self._dropped = 0
        self._is_closed = False

    def put(self, report: _Report, *, is_again: bool = False) -> None:
        with self._changed:
            if is_again:
                self._reports.appendleft(report)
            else:
                self._reports.append(report)
            if len(self._reports) > MAX_WAITING:
                self._reports.remove(min(self._reports, key=lambda waiting: waiting.tries))
                self._dropped += 1
            self._changed.notify()

    def take(self) -> _Report | None:
        """The next report, waiting for it; None once the mailbox is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._reports or self._is_closed)
            return self._reports.popleft() if self._reports else None

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def is_closed_within(self, seconds: float) -> bool:
        """True as soon as the mailbox is closed, False after so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_closed, seconds)

    def drop_all(self) -> None:
        with self._changed:
            self._dropped += len(self._reports)
            self._reports.clear()

    def count_dropped(self) -> int:
        """Reports dropped since the last call."""
        with self._changed:
            dropped, self._dropped = self._dropped, 0
            return dropped


class WandbTracker:
    """A `Tracker` on wandb. Raises nothing after its start, and its methods return at once.

    redact: what every text passes before it is sent. clock: POSIX seconds, for the day. patience_s: least
    pause after a failure, doubled with each that follows on its heels, up to an hour.
    """

    def __init__(
        self,
        config: TrackerConfig,
        *,
        redact: Callable[[str], str],
        clock: Callable[[], float] = time.time,
        patience_s: float = 60.0,
    ) -> None:
        self._config = config
        self._redact = redact
        self._clock = clock
        self._first_patience_s = patience_s
        self._patience_s = patience_s
        self._mailbox = _Mailbox()
        self._link: WandbLink | None = None
        self._day = ""
        self._opened_at: float | None = None
        self._complained_at: float | None = None
        self._is_told_where = False
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)
        self._thread.start()

    def report_metrics(self, metrics: Metrics) -> None:
        """Shows the gauges on the running charts; the first reports to go when wandb is away for long."""
        self._put({"metrics": live_metrics(metrics)}, tries=1)

    def report_round(self, report: RoundReport) -> None:
        """Shows a closed round: its charts, its table, and its file as an artifact."""
        rows = [[self._redact(cell) if isinstance(cell, str) else cell for cell in row] for row in table_rows(report)]
        request: dict[str, Any] = {"metrics": round_metrics(report), "columns": TABLE_COLUMNS, "rows": rows}
        if report.round_file is not None:
            # wandb's process has a working directory of its own.
            request["file"] = str(Path(report.round_file).resolve())
            request["artifact"] = f"receipts-{self._config.hotkey[:8]}"
        self._put(request, tries=ROUND_TRIES)

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Hands over what is waiting and ends the run; after so many seconds what is left of it is ended unfinished."""
        self._mailbox.close()
        self._thread.join(timeout_s)
        link = self._link
        if self._thread.is_alive() and link is not None:
            logger.warning("wandb: did not finish within {:.0f} s, ended", timeout_s)
            link.kill()
            self._thread.join(1.0)

    def _put(self, request: Mapping[str, Any], *, tries: int) -> None:
        self._mailbox.put(_Report(utc_day(self._clock()), request, tries))

    def _run(self) -> None:
        while (report := self._mailbox.take()) is not None:
            try:
                self._deliver(report)
            except Exception as error:
                # A report is not to blame for a run that never opened.
                tries = report.tries if self._opened_at is None else report.tries - 1
                self._abandon_run(error)
                if tries > 0:
                    self._mailbox.put(_Report(report.day, report.request, tries), is_again=True)
                if self._mailbox.is_closed_within(self._patience_s):
                    break
        try:
            self._finish_run()
        except Exception as error:
            self._complain(error)
        self._mailbox.drop_all()
        self._tell_dropped()

    def _deliver(self, report: _Report) -> None:
        if report.day != self._day:
            self._finish_run()
        link = self._link or self._open_run(report.day)
        link.ask(report.request, timeout_s=_ANSWER_TIMEOUT_S)
        self._tell_dropped()

    def _open_run(self, day: str) -> WandbLink:
        config = self._config
        config.folder.mkdir(parents=True, exist_ok=True)
        delete_old_runs(config.folder, keep_days=config.keep_days)
        link = WandbLink(config.folder)
        self._link, self._day = link, day
        opened = link.ask(run_settings(config, day), timeout_s=_OPEN_TIMEOUT_S)
        self._opened_at = time.monotonic()
        if opened["mode"] == "online":
            logger.info("wandb: run {}", opened["url"])
        elif not self._is_told_where:
            self._is_told_where = True
            logger.info("wandb: offline, runs are kept in {}; `wandb sync` sends them", config.folder / "wandb")
        return link

    def _finish_run(self) -> None:
        link, self._link = self._link, None
        self._opened_at = None
        if link is not None:
            link.finish(timeout_s=_FINISH_TIMEOUT_S)

    def _abandon_run(self, error: Exception) -> None:
        # A run that lasted longer than the pause before it had recovered, and this is new trouble.
        has_recovered = self._opened_at is not None and time.monotonic() - self._opened_at > self._patience_s
        self._patience_s = self._first_patience_s if has_recovered else min(2 * self._patience_s, MAX_PATIENCE_S)
        if self._link is not None:
            self._link.close()
            self._link = None
        self._opened_at = None
        self._complain(error)

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        is_due = self._complained_at is None or now - self._complained_at >= _COMPLAINT_INTERVAL_S
        if is_due:
            self._complained_at = now
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        logger.log("WARNING" if is_due else "DEBUG", "{}; the validator goes on without wandb meanwhile", text)

    def _tell_dropped(self) -> None:
        dropped = self._mailbox.count_dropped()
        if dropped:
            logger.warning("wandb: {} reports were dropped while it took none", dropped)


def run_settings(config: TrackerConfig, day: str) -> dict[str, Any]:
    """What opens the run of a UTC day, or resumes it: one id for each hotkey, subnet, version and day."""
    identity = [config.hotkey, str(config.netuid), config.version, day]
    return {
        "folder": str(config.folder.resolve()),
        "project": config.project,
        "entity": config.entity,
        "id": hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32],
        "name": f"{config.hotkey[:8]}-{config.version}-{day}",
        "group": config.hotkey,
        "config": {"hotkey": config.hotkey, "netuid": config.netuid, "version": config.version, "day": day},
        "step_metrics": STEP_METRICS,
    }


def utc_day(at: float) -> str:
    """The UTC date of a POSIX time, as 2026-01-31."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def delete_old_runs(folder: Path, *, keep_days: float) -> None:
    """Removes what wandb left below the folder and was last changed more than so many days ago.

    What cannot be removed is told of and left.
    """
    oldest = time.time() - keep_days * 86400
    for leftover in (path for pattern in _LEFTOVERS for path in folder.glob(pattern)):
        try:
            if leftover.is_symlink() or leftover.stat().st_mtime >= oldest:
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        except OSError as error:
            logger.warning("wandb: {} cannot be removed: {}", leftover, error.strerror or error)
