"""Looking at a validator from outside, also while it runs, without getting in its way."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from template.errors import HostError
from template.store.status_store import StatusStore
from template.validator.status import DiskUse, Status

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


def read_status(state_dir: Path, now: float) -> Status:
    """Everything about the validator with this --state_dir. Raises: ConfigError when there is no state; HostError."""
    path = state_dir / STATE_FILE
    with StatusStore(path) as store:
        newest, current = store.last_round(), store.last_round(with_standings=True)
        contest = store.contest_in_force()
        entries = {entry.key for entry in newest.entries} if newest else set()
        attempts = store.attempts(contest.contest) if contest else {}
        return Status(
            now=now,
            state_dir=str(state_dir),
            holder=find_holder(path),
            activity=store.activity(),
            model=contest.model if contest else None,
            contest_digest=contest.contest.digest if contest else None,
            newest=newest,
            newest_intents=store.intents(newest.id) if newest else [],
            current=current,
            standings=store.standings(current.id) if current else [],
            intents=store.intents(current.id) if current else [],
            recent=store.recent_intents(),
            accepted=store.last_accepted(),
            attempts={key: attempt for key, attempt in attempts.items() if key in entries},
            disk=measure_disk(state_dir),
            free_bytes=_free_bytes(state_dir),
        )


def find_holder(path: Path) -> int | None:
    """The process that holds the state file `path`, None when none is seen.

    Read from the kernel's list: to try the lock would keep a validator from starting that tries it at that moment. A
    holder in a container that this process is not in cannot be seen.
    """
    try:
        inode = path.with_name(path.name + ".lock").stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in locks:
        # "1: FLOCK ADVISORY WRITE 18466 fe:00:2146749 0 EOF"; not every file system tells its device as stat does.
        words = line.split()
        if len(words) == 8 and words[1] == "FLOCK" and words[3] == "WRITE" and words[5].endswith(f":{inode}"):
            return int(words[4])
    return None


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
