"""The validator's state as one SQLite file: lock, transactions, migrations.

WAL mode lets others read while the validator runs, and a lock file lets only one validator write.
"""

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar

from filelock import FileLock
from loguru import logger

from template.errors import ConfigError, HostError
from template.files import acquire_lock, temporary_folder
from template.store.migrations import MIGRATIONS

# SQLite waits so long for a lock, the writer then warns and tries again: a backup may take minutes.
_BUSY_TIMEOUT_S = 10.0
_MAX_LOCKED_S = 600.0
_LOCK_PAUSE_S = 1.0
_MAX_LOG_BYTES = 16 * 2**20

T = TypeVar("T")


class StateFile:
    """The state file, opened by the one validator that writes it or read-only.

    Only the owner can read it and its lock file. Every method raises HostError for a disk fault.
    Raises: ConfigError when another validator uses it, a newer version wrote it, or it is missing and read-only.
    """

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        self.path = path
        self._lock: FileLock | None = None
        self._db: sqlite3.Connection | None = None
        self._copies = contextlib.ExitStack()
        try:
            with _disk_faults(path):
                if is_read_only:
                    self._open_to_read()
                else:
                    self._open_to_write()
        except BaseException:
            self.close()
            raise

    def _open_to_read(self) -> None:
        if not self.path.is_file():
            raise ConfigError(f"no validator state at {self.path}")
        try:
            self._db = _connect(self.path, "mode=ro")
            version = _schema_version(self._db, self.path)
        except sqlite3.OperationalError as error:
            if _code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            self._db = self._connect_unwritable()
            version = _schema_version(self._db, self.path)
        if version < len(MIGRATIONS):
            raise ConfigError(f"{self.path} has an older schema ({version}); start the validator once to migrate it")

    def _connect_unwritable(self) -> sqlite3.Connection:
        """Connect where SQLite cannot create its index of the log, as on a read-only mount."""
        log = self.path.with_name(f"{self.path.name}-wal")
        if not log.is_file() or not log.stat().st_size:
            return _connect(self.path, "immutable=1")
        # A validator that was killed left transactions in the log.
        folder = self._copies.enter_context(temporary_folder())
        for path in (self.path, log):
            shutil.copyfile(path, folder / path.name)
        return _connect(folder / self.path.name, "mode=rw")

    def _open_to_write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = acquire_lock(self.path)
        # SQLite gives its own files beside this one the same mode.
        self.path.touch(mode=0o600)
        self._db = db = _connect(self.path, "mode=rw")
        _wait_for_lock(self.path, lambda: db.execute("PRAGMA journal_mode=WAL"))
        db.execute("PRAGMA synchronous=FULL")
        # A long reader makes the log grow. This limit shrinks it again afterwards.
        db.execute(f"PRAGMA journal_size_limit={_MAX_LOG_BYTES}")
        _migrate(db, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        self._copies.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise RuntimeError(f"the state file {self.path} is closed")
        return self._db

    @contextlib.contextmanager
    def atomic(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction. Transactions do not nest."""
        with _disk_faults(self.path), _transaction(self._connection, self.path) as db:
            yield db

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Return the rows of a query."""
        with _disk_faults(self.path):
            if self._lock is None:
                return self._connection.execute(query, values).fetchall()
            return _wait_for_lock(self.path, lambda: self._connection.execute(query, values).fetchall())


def placeholders(count: int) -> str:
    """Return the parameters of an SQL statement."""
    return ", ".join("?" * count)


def _code(error: sqlite3.OperationalError) -> int:
    """Return SQLite's primary code of an error."""
    return int(error.sqlite_errorcode) & 0xFF


def _wait_for_lock(path: Path, work: Callable[[], T]) -> T:
    """Return the result of `work`, after another program has released the file."""
    began = time.monotonic()
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            waited_s = time.monotonic() - began
            if _code(error) != sqlite3.SQLITE_BUSY or waited_s >= _MAX_LOCKED_S:
                raise
            logger.warning(
                "waiting: another program, such as a backup, has locked {} seconds={:.0f} of at most {:.0f}",
                path, waited_s, _MAX_LOCKED_S,
            )  # fmt: skip
            time.sleep(_LOCK_PAUSE_S)


def _connect(path: Path, how: str) -> sqlite3.Connection:
    """Connect in autocommit mode: only `_transaction` begins and ends transactions."""
    uri = f"{path.resolve().as_uri()}?{how}"
    db = sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys=ON")
    return db


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    _wait_for_lock(path, lambda: db.execute("BEGIN IMMEDIATE"))
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        # A full disk rolls back by itself. The first error is the one to report.
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


def _schema_version(db: sqlite3.Connection, path: Path) -> int:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise ConfigError(f"{path} was written by a newer version of this package (schema {version})")
    return version


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version = _schema_version(db, path)
    for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
        with _transaction(db, path):
            migration(db.execute)
            db.execute(f"PRAGMA user_version={number}")


@contextlib.contextmanager
def _disk_faults(path: Path) -> Iterator[None]:
    """Raise HostError for a disk fault; a violated constraint is a bug."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except (sqlite3.DatabaseError, OSError) as error:
        raise HostError(f"the state file {path} failed: {error}") from error
