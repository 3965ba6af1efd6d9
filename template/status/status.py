"""A validator's status, read from its state: activity, due weights, failures."""

import contextlib
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from template.competition import CommitmentRecord
from template.errors import HostError, SubmissionError
from template.files import lock_holder_pid
from template.records import LeaderboardRow, LedgerLine, Metrics, RetryState, Round, SubmissionKey, WeightIntent
from template.rules.schedule import MAX_HOST_FAILURES
from template.store.runs import Run
from template.store.store import StatusStore

STATE_FILE = "validator.sqlite3"

# Default folders of a validator in its --state_dir.
FOLDERS = {
    "datasets": "data",
    "receipts": "receipts",
    "rounds": "rounds",
    "wandb": "wandb",
    "cache": "cache",
    "evaluation": "eval_data",
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """A validator at POSIX time `now`.

    holder: pid of the process that locks the state, None if not visible from here. newest: the open round or the last
    one, with its own newest_intents and retry states. current: the last round with a leaderboard, with its own
    standings, ledger and intents. recent: weights of the last rounds, oldest first. accepted: the last accepted
    weights, however old. disk: bytes by kind of file. free_bytes: on the volume of the state. runs: starts of the
    validator, newest first.
    """

    now: float
    state_dir: str
    holder: int | None
    activity: Metrics | None
    model: str | None
    contest_digest: str | None
    newest: Round | None
    newest_intents: Sequence[WeightIntent]
    current: Round | None
    standings: Sequence[LeaderboardRow]
    ledger: Sequence[LedgerLine]
    intents: Sequence[WeightIntent]
    recent: Sequence[WeightIntent]
    accepted: WeightIntent | None
    attempts: Mapping[SubmissionKey, RetryState]
    disk: Mapping[str, int]
    free_bytes: int
    runs: Sequence[Run] = ()

    @property
    def refused(self) -> WeightIntent | None:
        """The last of the recent weights that the chain rejected."""
        return next((intent for intent in reversed(self.recent) if intent.outcome and not _is_accepted(intent)), None)

    @property
    def due_block(self) -> int | None:
        """Block by which new weights are due, None if this validator never set any.

        The earliest of: the first rejected weights since the last accepted ones; the block at which the open round
        sets weights; without an open round, the time by which another one should have ended. Resubmitted weights are
        not new.
        """
        own = [intent for intent in self.recent if not intent.is_repeat]
        if self.activity is None or self.newest is None or (self.accepted is None and not own):
            return None
        last_accepted = max((index for index, intent in enumerate(own) if _is_accepted(intent)), default=-1)
        due = [intent.block for intent in own[last_accepted + 1 :][:1]]
        if self.activity.round_id is None:
            due.append(2 * self.newest.end_block - self.newest.start_block)
        elif self.weights_block is not None and not self.is_set:
            due.append(self.weights_block)
        return min(due, default=None)

    @property
    def weights_block(self) -> int | None:
        """The block at which the open round sets weights, None without an open round."""
        if self.activity is None or self.newest is None or self.activity.round_id != self.newest.id:
            return None
        return self.activity.weights_block

    @property
    def is_set(self) -> bool:
        """Whether the chain accepted the newest round's own weights."""
        return any(_is_accepted(intent) and not intent.is_repeat for intent in self.newest_intents)

    @property
    def suspended(self) -> dict[SubmissionKey, RetryState]:
        """Submissions that failed repeatedly on this machine and wait for a later retry."""
        return {
            key: attempt
            for key, attempt in self.attempts.items()
            if attempt.host_failures >= MAX_HOST_FAILURES and attempt.next_at > self.now
        }

    @property
    def pending(self) -> dict[SubmissionKey, RetryState]:
        """The other submissions that are retried."""
        suspended = self.suspended
        return {key: attempt for key, attempt in self.attempts.items() if key not in suspended}

    @property
    def rejections(self) -> dict[str, int]:
        """Number of rejected submissions by reason, the most frequent first."""
        return dict(Counter(str(row.reason) for row in self.standings if row.reason is not None).most_common())


def _is_accepted(intent: WeightIntent) -> bool:
    return intent.outcome is not None and intent.outcome.is_accepted


def normalize_error(key: SubmissionKey, attempt: RetryState) -> str:
    """Return the last error without names, so that equal causes have equal texts."""
    cause = attempt.last_error
    with contextlib.suppress(SubmissionError):
        record = CommitmentRecord.parse(key.commitment)
        cause = cause.replace(record.namespace, "REPO").replace(record.commit, "COMMIT")
    return cause.replace(key.hotkey, "HOTKEY")


def read_status(state_dir: Path, now: float, *, measures_disk: bool = True) -> Status:
    """Read a validator's status, without the sizes of files unless asked for.

    Raises: ConfigError when there is no state.
    """
    path = state_dir / STATE_FILE
    with StatusStore(path) as store:
        newest, current = store.last_round(), store.last_round(with_leaderboard=True)
        config, model = store.current_config() or (None, None)
        entries = {entry.key for entry in newest.entries} if newest else set()
        attempts = store.retry_states(config) if config else {}
        return Status(
            now=now,
            state_dir=str(state_dir),
            holder=lock_holder_pid(path),
            activity=store.heartbeat(),
            model=model,
            contest_digest=config.digest if config else None,
            newest=newest,
            newest_intents=store.intents(newest.id) if newest else [],
            current=current,
            standings=store.leaderboard(current.id) if current else [],
            ledger=store.ledger(current.id) if current else [],
            intents=store.intents(current.id) if current else [],
            recent=store.recent_intents(),
            accepted=store.last_accepted(),
            attempts={key: attempt for key, attempt in attempts.items() if key in entries},
            disk=measure_disk(state_dir) if measures_disk else {},
            free_bytes=_free_bytes(state_dir),
            runs=store.runs(),
        )


def read_evaluation_totals(state_dir: Path) -> tuple[int, float]:
    """Return the number of all recorded evaluations and their seconds, which reads each. Raises: ConfigError."""
    with StatusStore(state_dir / STATE_FILE) as store:
        return store.evaluation_totals()


def measure_disk(state_dir: Path) -> dict[str, int]:
    """Measure the state, its default folders and all else in the --state_dir."""
    try:
        paths = sorted(state_dir.iterdir())
    except OSError as error:
        raise HostError(f"{state_dir} cannot be read: {error.strerror or error}") from error
    state = [path for path in paths if path.name.startswith(STATE_FILE)]
    other = [path for path in paths if path.name not in FOLDERS.values() and path not in state]
    sizes = {"state": sum(map(count_bytes, state))}
    sizes |= {name: count_bytes(state_dir / folder) for name, folder in FOLDERS.items()}
    return {**sizes, "other": sum(map(count_bytes, other))}


def count_bytes(path: Path) -> int:
    """Sum the sizes of all files at or below `path`, each inode once.

    Follows a link at `path` but none below. Files that vanish or cannot be read count 0.
    """
    return sum({(file.st_dev, file.st_ino): file.st_size for file in _files(path)}.values())


def _files(path: Path) -> Iterator[os.stat_result]:
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                file = Path(folder, name).lstat()
                if stat.S_ISREG(file.st_mode):
                    yield file
    if path.is_file():
        yield path.stat()


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise HostError(f"{folder}: cannot measure the volume: {error.strerror or error}") from error
