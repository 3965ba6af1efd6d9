"""The validator's state as one SQLite file: lock, transactions, migrations.

WAL mode lets others read while the validator runs, and a lock file lets only one validator write.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from filelock import FileLock

from template.errors import ConfigError, HostError
from template.files import acquire_lock
from template.store.migrations import MIGRATIONS

_BUSY_TIMEOUT_S = 10.0
_MAX_LOG_BYTES = 16 * 2**20


class StateFile:
    """The state file, opened by the one validator that writes it or read-only.

    Only the owner can read it and its lock file. Every method raises HostError for a disk fault.
    Raises: ConfigError when another validator uses it, a newer version wrote it, or it is missing and read-only.
    """

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        self.path = path
        self._lock: FileLock | None = None
        self._db: sqlite3.Connection | None = None
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
        self._db = _connect(self.path, "ro")
        version = _schema_version(self._db, self.path)
        if version < len(MIGRATIONS):
            raise ConfigError(f"{self.path} has an older schema ({version}); start the validator once to migrate it")

    def _open_to_write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = acquire_lock(self.path)
        # SQLite gives its own files beside this one the same mode.
        self.path.touch(mode=0o600)
        self._db = _connect(self.path, "rw")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        # A long reader makes the log grow. This limit shrinks it again afterwards.
        self._db.execute(f"PRAGMA journal_size_limit={_MAX_LOG_BYTES}")
        _migrate(self._db, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
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
        with _disk_faults(self.path), _transaction(self._connection) as db:
            yield db

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Return the rows of a query."""
        with _disk_faults(self.path):
            return self._connection.execute(query, values).fetchall()


def placeholders(count: int) -> str:
    """Return the parameters of an SQL statement."""
    return ", ".join("?" * count)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Connect in autocommit mode: only `_transaction` begins and ends transactions."""
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys=ON")
    return db


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE")
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
        with _transaction(db):
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
