"""What can be seen of a validator from outside, and what follows from it: what is due, what fails. Pure."""

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
from template.records import LeaderboardRow, Metrics, RetryState, Round, SubmissionKey, WeightIntent
from template.rules.schedule import MAX_HOST_FAILURES
from template.store.store import StatusStore
from template.terminal import escape

STATE_FILE = "validator.sqlite3"


# The folders that a validator makes in its --state_dir, unless it was told of others.
_FOLDERS = {
    "datasets": "data",
    "receipts": "receipts",
    "rounds": "rounds",
    "wandb": "wandb",
    "cache": "cache",
    "evaluation": "eval_data",
}


@dataclass(frozen=True, kw_only=True)
class DiskUse:
    """Bytes of a kind of files, at `path` in the --state_dir."""

    name: str
    path: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """What can be seen of a validator at POSIX time `now`.

    state_dir: where the state is. holder: the process that holds it, None when none is seen. newest: the round in hand
    or the last one; newest_intents are its weights. current: the last round that has a table; standings and intents are
    its own. recent: weights of the last rounds, oldest first. accepted: the last that the chain took, however old.
    attempts: of the submissions in `newest`. free_bytes: on the volume of the state.
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
    intents: Sequence[WeightIntent]
    recent: Sequence[WeightIntent]
    accepted: WeightIntent | None
    attempts: Mapping[SubmissionKey, RetryState]
    disk: Sequence[DiskUse]
    free_bytes: int

    @property
    def refused(self) -> WeightIntent | None:
        """The last weights that the chain did not take, of the recent ones."""
        return next((one for one in reversed(self.recent) if one.outcome and not _is_taken(one)), None)

    @property
    def due_block(self) -> int | None:
        """From here on new weights should be on chain; None when this validator was never seen to set any.

        That is where the open round is to set them, or where the next one should long be under way; earlier when some
        were refused since the last that the chain took. Weights given again are no new ones.
        """
        own = [one for one in self.recent if not one.is_repeat]
        if self.activity is None or self.newest is None or (self.accepted is None and not own):
            return None
        taken = max((at for at, one in enumerate(own) if _is_taken(one)), default=-1)
        due = [one.block for one in own[taken + 1 :][:1]]
        if self.activity.round_id is None:
            due.append(2 * self.newest.end_block - self.newest.start_block)
        elif self.weights_block is not None and not self.is_set:
            due.append(self.weights_block)
        return min(due, default=None)

    @property
    def weights_block(self) -> int | None:
        """From here on the open round's weights are due, None when no round is open."""
        is_newest = self.activity is not None and self.newest is not None and self.activity.round_id == self.newest.id
        return self.activity.weights_block if self.activity is not None and is_newest else None

    @property
    def is_set(self) -> bool:
        """True when the chain took the newest round's own weights."""
        return any(_is_taken(one) and not one.is_repeat for one in self.newest_intents)

    def parked(self) -> dict[SubmissionKey, RetryState]:
        """What this machine failed at again and again, and leaves alone for a while."""
        return {
            key: one
            for key, one in self.attempts.items()
            if one.host_failures >= MAX_HOST_FAILURES and one.next_at > self.now
        }

    def pending(self) -> dict[SubmissionKey, RetryState]:
        """What is tried again at the next chance."""
        parked = self.parked()
        return {key: one for key, one in self.attempts.items() if key not in parked}


def _is_taken(intent: WeightIntent) -> bool:
    return intent.outcome is not None and intent.outcome.is_accepted


def health_problem(status: Status, *, max_age_s: float, max_overdue_blocks: int) -> str | None:
    """Why the operator should look, None when all is well."""
    activity = status.activity
    if activity is None:
        return "the validator has not said what it is doing"
    age_s = status.now - activity.now
    if age_s > max_age_s:
        who = "no process holds the state" if status.holder is None else f"process {status.holder} holds the state"
        return f"no word from the validator for {format_duration(age_s)}; {who}"
    due = status.due_block
    if due is not None and activity.block - due > max_overdue_blocks:
        return escape(f"weights are overdue by {activity.block - due} blocks{_explain_refusal(status)}")
    return None


def _explain_refusal(status: Status) -> str:
    refused = status.refused
    if refused is None or refused.outcome is None:
        return ""
    return f"; the last were refused at block {refused.block}: {refused.outcome.error}: {refused.outcome.message}"


def count_refusals(status: Status) -> dict[str, int]:
    """Of the last table, how many were refused for each reason, the commonest first."""
    return dict(Counter(str(line.reason) for line in status.standings if line.reason is not None).most_common())


def normalize_error(key: SubmissionKey, attempt: RetryState) -> str:
    """The last error of an attempt without what names the submission, so that equal causes are equal texts."""
    cause = attempt.last_error
    with contextlib.suppress(SubmissionError):
        record = CommitmentRecord.parse(key.commitment)
        cause = cause.replace(record.namespace, "REPO").replace(record.commit, "COMMIT")
    return cause.replace(key.hotkey, "HOTKEY")


def format_duration(seconds: float) -> str:
    """A length of time, as roughly as one would say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def read_status(state_dir: Path, now: float) -> Status:
    """Everything about the validator with this --state_dir. Raises: ConfigError when there is no state; HostError."""
    path = state_dir / STATE_FILE
    with StatusStore(path) as store:
        newest, current = store.last_round(), store.last_round(with_leaderboard=True)
        eval_config = store.current_config()
        entries = {entry.key for entry in newest.entries} if newest else set()
        attempts = store.retry_states(eval_config.eval_config) if eval_config else {}
        return Status(
            now=now,
            state_dir=str(state_dir),
            holder=lock_holder_pid(path),
            activity=store.heartbeat(),
            model=eval_config.model if eval_config else None,
            contest_digest=eval_config.eval_config.digest if eval_config else None,
            newest=newest,
            newest_intents=store.intents(newest.id) if newest else [],
            current=current,
            standings=store.leaderboard(current.id) if current else [],
            intents=store.intents(current.id) if current else [],
            recent=store.recent_intents(),
            accepted=store.last_accepted(),
            attempts={key: attempt for key, attempt in attempts.items() if key in entries},
            disk=measure_disk(state_dir),
            free_bytes=_free_bytes(state_dir),
        )


def measure_disk(state_dir: Path) -> tuple[DiskUse, ...]:
    """What the state and the folders beside it take; what lies elsewhere (--data_dir, --cache_dir, ...) is not seen."""
    uses = []
    taken = set(_FOLDERS.values())
    try:
        beside = sorted(state_dir.iterdir())
    except OSError as error:
        raise HostError(f"{state_dir} cannot be read: {error.strerror or error}") from error
    state = [path for path in beside if path.name.startswith(STATE_FILE)]
    uses.append(DiskUse(name="state", path=STATE_FILE, bytes=sum(map(count_bytes, state))))
    for name, folder in _FOLDERS.items():
        uses.append(DiskUse(name=name, path=folder, bytes=count_bytes(state_dir / folder)))
    rest = [path for path in beside if path.name not in taken and path not in state]
    uses.append(DiskUse(name="other", path="logs and all else", bytes=sum(map(count_bytes, rest))))
    return tuple(uses)


def count_bytes(path: Path) -> int:
    """The length of all files at or below `path`; a link there is followed, those below are not.

    What vanishes meanwhile or may not be read counts nothing.
    """
    return sum({(one.st_dev, one.st_ino): one.st_size for one in _files(path)}.values())


def _files(path: Path) -> Iterator[os.stat_result]:
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                found = Path(folder, name).lstat()
            except OSError:
                continue
            if stat.S_ISREG(found.st_mode):
                yield found
    if path.is_file():
        yield path.stat()


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise HostError(f"{folder}: its volume cannot be measured: {error.strerror or error}") from error
