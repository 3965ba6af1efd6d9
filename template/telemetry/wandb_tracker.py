"""Report a validator to wandb, without waiting for it.

All reports whose losses can be compared go to one run, so its charts span weeks. The run is resumed by its id at every
start and every UTC day, so that its files on this machine do not grow without end.

Reports wait in a bounded queue for a thread, which passes them to the process that holds the run
(`template.telemetry.wandb_run`). When wandb fails, the operator sees one warning an hour, and the run is opened again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from loguru import logger

from template.constants import LOSS_VERSIONS
from template.errors import RemoteError
from template.records import Metrics, RoundReport
from template.telemetry.metrics import (
    EVALUATION_COLUMNS,
    LEADERBOARD_COLUMNS,
    STEP_METRICS,
    Cell,
    evaluation_rows,
    leaderboard_rows,
    live_metrics,
    miner_metrics,
    round_metrics,
)
from template.telemetry.redaction import child_environment
from template.telemetry.wandb_run import child_processes
from template.terminal import escape_formula, escape_markup

MAX_WAITING = 256  # reports while wandb is unavailable; metrics take half at most, so that rounds find room
REQUEST_TIMEOUT_S = 60  # for wandb's service to take a report, or it is replaced

# The process needs its paths, the network and its account; other variables of the operator stay out of the run.
_PASSED_VARIABLES = {
    *("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NETRC"),
    *("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE"),
    "WANDB_CONFIG_DIR",
}
_ROUND_TRIES = 3  # with an open run
_FINISH_TIMEOUT_S = 60.0
_HANG_S = 2.0 * REQUEST_TIMEOUT_S  # for the process to answer: it replaces a hung service itself within half of it
_MAX_BACKOFF_S = 3600.0
_WARNING_INTERVAL_S = 3600.0
# Created by wandb below its folder for each run, artifact or start.
_LEFTOVERS = ("wandb/run-*", "wandb/offline-run-*", "data/artifacts/staging/*", "cache/wandb/logs/*")


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Identity and destination of the runs."""

    project: str
    entity: str | None  # None for the login's own
    hotkey: str
    netuid: int
    version: str
    folder: Path  # of all files of wandb
    keep_days: float = 30.0  # for files of earlier days
    competition: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)  # shown with the run

    def run_settings(self) -> dict[str, Any]:
        """Return the arguments of `wandb.init`. One id until a version of the loss changes."""
        identity = [self.hotkey, str(self.netuid), self.competition, json.dumps(LOSS_VERSIONS, sort_keys=True)]
        return {
            "dir": str(self.folder.resolve()),
            "project": self.project,
            "entity": self.entity,
            "id": hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32],
            "name": f"{self.hotkey[:8]}-{self.netuid}-{self.competition}",
            "group": self.hotkey,
            "config": {
                "hotkey": self.hotkey,
                "netuid": self.netuid,
                "version": self.version,
                "loss_versions": LOSS_VERSIONS,
                **self.settings,
            },
        }


class NullTracker:
    """Tracker that discards its reports. No method of a tracker raises."""

    def report_metrics(self, metrics: Metrics) -> None:
        """Report a point of the running charts; return at once."""

    def report_round(self, report: RoundReport) -> None:
        """Report a closed round; return at once."""

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Send what is queued, for at most `timeout_s`."""


Tracker = NullTracker


class _RunProcess:
    """The process of one run. It cannot be used after an error."""

    def __init__(self, folder: Path) -> None:
        inherited = child_environment(keep=("WANDB_API_KEY",))
        environment = {name: value for name, value in inherited.items() if name in _PASSED_VARIABLES}
        environment.setdefault("WANDB_CONFIG_DIR", str(folder / "config"))
        environment.update({f"WANDB_{kind.upper()}_DIR": str(folder / kind) for kind in ("artifact", "cache", "data")})
        environment.update(WANDB_ERROR_REPORTING="false", WANDB_SILENT="true")
        self._log = folder / "process.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "template.telemetry.wandb_run"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=environment,
                start_new_session=True,
                text=True,
            )

    def ask(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Send a request and return the answer. Raises: RemoteError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(_HANG_S, self.kill)
        timer.daemon = True  # a validator that exits without `close` does not wait for it
        timer.start()
        try:
            print(json.dumps(request, allow_nan=False), file=self._process.stdin, flush=True)
            answer: dict[str, str] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise RemoteError(f"wandb's process ended or hung; see {self._log}") from error
        finally:
            timer.cancel()
        if "error" in answer:
            raise RemoteError(f"wandb: {answer['error']}")
        return answer

    def finish(self) -> None:
        """Let the run send what is left and end. Raises: RemoteError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            status = self._process.wait(_FINISH_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RemoteError("wandb's process did not end in time") from error
        self.close()
        if status != 0:
            raise RemoteError(f"wandb's process ended with status {status}; see {self._log}")

    def kill(self) -> None:
        """End the process and wandb's service at once; `ask` in another thread raises."""
        if self._process.poll() is None:
            for pid in [*child_processes(self._process.pid), self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Kill the process if it is running, and close its pipes."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class WandbTracker(Tracker):
    """Tracker on wandb; `backoff_s` doubles with each failure in a row."""

    def __init__(
        self,
        config: TrackerConfig,
        *,
        redact: Callable[[str], str],
        clock: Callable[[], float] = time.time,
        backoff_s: float = 60.0,
    ) -> None:
        self._config = config
        self._redact = redact
        self._clock = clock
        self._first_backoff_s = self._backoff_s = backoff_s
        # Day of the run, request, tries; None ends the thread.
        self._queue: SimpleQueue[tuple[str, Mapping[str, Any], int] | None] = SimpleQueue()
        self._dropped = 0
        self._process: _RunProcess | None = None
        self._day = ""
        self._warned_at = -_WARNING_INTERVAL_S
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def report_metrics(self, metrics: Metrics) -> None:
        self._put({"metrics": live_metrics(metrics)}, tries=1, room=MAX_WAITING // 2)

    def report_round(self, report: RoundReport) -> None:
        request: dict[str, Any] = {
            "metrics": {**round_metrics(report), **miner_metrics(report)},
            "tables": {
                "round/standings": [LEADERBOARD_COLUMNS, *self._harmless(leaderboard_rows(report))],
                "round/evaluations": [EVALUATION_COLUMNS, *self._harmless(evaluation_rows(report))],
            },
        }
        if report.round_file is not None:
            # The run's process has another working directory.
            request["file"] = str(Path(report.round_file).resolve())
            request["artifact"] = f"receipts-{self._config.hotkey[:8]}"
        self._put(request, tries=_ROUND_TRIES, room=MAX_WAITING)

    def _harmless(self, rows: list[list[Cell]]) -> list[list[Cell]]:
        """Remove secrets, and escape what a table's reader could take for a formula or for markup."""
        return [
            [escape_markup(escape_formula(self._redact(cell))) if isinstance(cell, str) else cell for cell in row]
            for row in rows
        ]

    def close(self, *, timeout_s: float = 10.0) -> None:
        self._is_closing.set()
        self._queue.put(None)
        self._thread.join(timeout_s)
        process = self._process
        if self._thread.is_alive() and process is not None:
            logger.warning("wandb: did not finish within {:.0f} s, killed", timeout_s)
            process.kill()
            self._thread.join(1.0)

    def _put(self, request: Mapping[str, Any], *, tries: int, room: int) -> None:
        if self._queue.qsize() >= room:
            self._dropped += 1
        else:
            self._queue.put((datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%d"), request, tries))

    def _run(self) -> None:
        while (report := self._queue.get()) is not None and self._deliver(*report):
            pass
        try:
            self._finish_run()
        except Exception as error:
            self._abandon_run(error)
        self._dropped += self._queue.qsize()
        self._log_dropped()

    def _deliver(self, day: str, request: Mapping[str, Any], tries: int) -> bool:
        """Send a report, with retries. Return False if the tracker closes before."""
        while tries > 0:
            try:
                if day != self._day:
                    self._finish_run()
                process = self._process or self._open_run(day)
                # A failure to open the run is not the report's, so the try counts only now.
                tries -= 1
                process.ask(request)
            except Exception as error:
                self._abandon_run(error)
                if self._is_closing.wait(self._backoff_s):
                    return False
                self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)
            else:
                self._backoff_s = self._first_backoff_s
                self._log_dropped()
                break
        return True

    def _open_run(self, day: str) -> _RunProcess:
        folder = self._config.folder
        folder.mkdir(parents=True, exist_ok=True)
        delete_old_runs(folder, keep_days=self._config.keep_days)
        self._process, self._day = _RunProcess(folder), day
        opened = self._process.ask(
            {"run": self._config.run_settings(), "step_metrics": STEP_METRICS, "timeout_s": REQUEST_TIMEOUT_S}
        )
        if opened["mode"] == "online":
            logger.info("wandb: run {}", opened["url"])
        else:
            logger.info("wandb: offline, runs are kept in {}; upload them with `wandb sync`", folder / "wandb")
        return self._process

    def _finish_run(self) -> None:
        if self._process is not None:
            self._process.finish()
            self._process = None

    def _abandon_run(self, error: Exception) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
        is_due = time.monotonic() - self._warned_at >= _WARNING_INTERVAL_S
        if is_due:
            self._warned_at = time.monotonic()
        text = " ".join(str(error).split()) or type(error).__name__
        logger.log("WARNING" if is_due else "DEBUG", "wandb failed: {}; the validator continues without it", text)

    def _log_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            logger.warning("wandb: dropped {} reports while it was unavailable", dropped)


def delete_old_runs(folder: Path, *, keep_days: float) -> None:
    """Delete wandb's files older than `keep_days`; log those that cannot be."""
    oldest = time.time() - keep_days * 86400
    for path in (path for pattern in _LEFTOVERS for path in folder.glob(pattern)):
        try:
            if not path.is_symlink() and path.stat().st_mtime < oldest:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            logger.warning("wandb: {} cannot be deleted: {}", path, error.strerror or error)
