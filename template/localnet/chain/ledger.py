"""The local chain's state: blocks by wall clock and a journal of every value, in one SQLite file.

Several processes share the file. A write goes into the block after the newest sealed one, under SQLite's write lock,
and whoever first looks past a block seals it under that same lock; so a block that anyone has seen never changes,
and every past block keeps answering as it did, unless `reorganise` takes it back, which no finalized block can be.
Values are JSON, journalled by the block that set them.
"""

import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from template.errors import ConfigError

_BUSY_TIMEOUT_S = 30.0
_APPLICATION_ID = 0x53494D31
_DIGEST_BYTES = 28
_NO_BLOCK_YET = 2**32

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
CREATE TABLE chain (
    genesis TEXT NOT NULL, netuid INTEGER NOT NULL, sealed INTEGER NOT NULL,
    finality_lag INTEGER NOT NULL DEFAULT 0, finalized INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE forks (number INTEGER PRIMARY KEY, first_block INTEGER NOT NULL);
CREATE TABLE clock (first_block INTEGER PRIMARY KEY, started_at REAL NOT NULL, block_time_s REAL NOT NULL);
CREATE TABLE state (
    item TEXT NOT NULL, key TEXT NOT NULL, block INTEGER NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (item, key, block)
) WITHOUT ROWID;
CREATE TABLE extrinsics (
    block INTEGER NOT NULL, position INTEGER NOT NULL, data BLOB NOT NULL, signer TEXT NOT NULL, error TEXT,
    PRIMARY KEY (block, position)
);
CREATE TABLE faults (kind TEXT PRIMARY KEY, mode TEXT NOT NULL, remaining INTEGER NOT NULL);
"""

# Leaps from key to key along the primary key, so that a long history of a few keys costs no more than a short one.
_ENTRIES = """
WITH RECURSIVE keys (key) AS (
    SELECT min(key) FROM state WHERE item = :item
    UNION ALL
    SELECT (SELECT min(key) FROM state WHERE item = :item AND key > keys.key) FROM keys WHERE keys.key IS NOT NULL
)
SELECT key, (
    SELECT value FROM state WHERE item = :item AND key = keys.key AND block <= :block ORDER BY block DESC LIMIT 1
) FROM keys WHERE key IS NOT NULL
"""


class UnknownBlockError(Exception):
    """A block that does not exist yet, or a hash that is no block's of this chain."""


class State:
    """The chain's values as of one block; writable only inside `Ledger.write`, which hands one out."""

    def __init__(self, connection: sqlite3.Connection, block: int) -> None:
        self._connection = connection
        self.block = block

    def get(self, item: str, key: str = "", default: Any = None) -> Any:
        row = self._connection.execute(
            "SELECT value FROM state WHERE item = ? AND key = ? AND block <= ? ORDER BY block DESC LIMIT 1",
            (item, key, self.block),
        ).fetchone()
        return default if row is None else json.loads(row[0])

    def entries(self, item: str) -> list[tuple[str, Any]]:
        """Every key of a map with its value, by key. Nulls are left out: they are deletions."""
        rows = self._connection.execute(_ENTRIES, {"item": item, "block": self.block}).fetchall()
        return [(key, json.loads(value)) for key, value in rows if value not in (None, "null")]

    def put(self, item: str, key: str, value: Any) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)", (item, key, self.block, json.dumps(value))
        )

    def record_extrinsic(self, data: bytes, signer: str, error: str | None) -> int:
        """Puts an extrinsic into this block and returns its position, counted from 1 after the timestamp."""
        (position,) = self._connection.execute(
            "SELECT coalesce(max(position), 0) + 1 FROM extrinsics WHERE block = ?", (self.block,)
        ).fetchone()
        self._connection.execute(
            "INSERT INTO extrinsics VALUES (?, ?, ?, ?, ?)", (self.block, position, data, signer, error)
        )
        return int(position)


class Ledger:
    """One open file. Not for use by two threads at once; other processes open their own.

    now: the wall clock in seconds. Raises: ConfigError when `path` holds no local chain.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        if not path.is_file():
            raise ConfigError(f"--subtensor.network sim:PATH must name a local chain's file; there is none at {path}")
        self.path = path
        self._now = now
        self._connection = _connect(path)
        try:
            (found,) = self._connection.execute("PRAGMA application_id").fetchone()
            if found != _APPLICATION_ID:
                raise sqlite3.DatabaseError("it is another application's file")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self.genesis, self.netuid = self._connection.execute("SELECT genesis, netuid FROM chain").fetchone()
        except sqlite3.DatabaseError as exc:
            self._connection.close()
            raise ConfigError(
                f"--subtensor.network sim:PATH must name a local chain, and {path} is none: {exc}"
            ) from exc

    @classmethod
    def create(cls, path: Path, *, netuid: int, block_time_s: float, now: Callable[[], float] = time.time) -> "Ledger":
        """Writes a new chain at block 0. Raises: ConfigError when `path` exists already."""
        if path.exists():
            raise ConfigError(f"a local chain needs a new file, and {path} exists")
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}")
            connection.execute(
                "INSERT INTO chain (genesis, netuid, sealed) VALUES (?, ?, 0)", ("0x" + secrets.token_hex(32), netuid)
            )
            connection.execute("INSERT INTO clock VALUES (0, ?, ?)", (now(), block_time_s))
            connection.execute("COMMIT")
        finally:
            connection.close()
        return cls(path, now=now)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def head(self) -> int:
        """Number of the newest block, which this call seals."""
        sealed, due = self._sealed_and_due()
        if due <= sealed:
            return sealed
        with self._transaction():
            return self._seal()

    def finalized(self) -> int:
        """Number of the newest block that can no longer be taken back: the head, unless finality lags behind it."""
        head = self.head()
        lag, finalized = self._connection.execute("SELECT finality_lag, finalized FROM chain").fetchone()
        return max(int(finalized), head - int(lag))

    def set_finality_lag(self, blocks: int) -> None:
        """Has every block count as final once it is so many blocks below the head; what is final stays so."""
        with self._transaction():
            self._keep_final()
            self._connection.execute("UPDATE chain SET finality_lag = ?", (blocks,))

    def reorganise(self, blocks: int) -> int:
        """Takes the newest blocks back, with all that was written in them, and returns the new head.

        The blocks that follow are of another fork, so their hashes are others. Raises: ValueError when that many are
        not open to change, or when blocks come by the clock, which goes on.
        """
        with self._transaction():
            if self.block_time_s() != 0:
                raise ValueError("blocks come by the clock; set block_time_s to 0 to take some back")
            head = self._seal()
            final = self._keep_final()
            if not 0 < blocks <= head - final:
                raise ValueError(f"{head - final} blocks can be taken back, not {blocks}")
            kept = head - blocks
            for table, column in (("state", "block"), ("extrinsics", "block"), ("clock", "first_block")):
                self._connection.execute(f"DELETE FROM {table} WHERE {column} > ?", (kept,))
            self._connection.execute("INSERT INTO forks (first_block) VALUES (?)", (kept + 1,))
            self._connection.execute("INSERT OR REPLACE INTO clock VALUES (?, ?, 0)", (kept, self.timestamp(kept)))
            self._connection.execute("UPDATE chain SET sealed = ?", (kept,))
            return kept

    def _keep_final(self) -> int:
        """Writes down which block is final by now, and returns it. Only inside a transaction."""
        head = self._seal()
        self._connection.execute("UPDATE chain SET finalized = max(finalized, ? - finality_lag)", (head,))
        (final,) = self._connection.execute("SELECT finalized FROM chain").fetchone()
        return int(final)

    def at(self, block: int | None = None) -> State:
        """State as of a block, the head by default. Raises: UnknownBlockError for one that is not sealed."""
        head = self.head()
        if block is not None and not 0 <= block <= head:
            raise UnknownBlockError(f"no block at height {block}")
        return State(self._connection, head if block is None else block)

    def pending(self) -> State:
        """State with every write in it, those of the block that is being made included."""
        return State(self._connection, _NO_BLOCK_YET)

    @contextmanager
    def write(self) -> Iterator[State]:
        """One transaction, which goes into the block after the newest.

        When blocks do not come by the clock (block time 0), the transaction makes its own block.
        """
        with self._transaction():
            state = State(self._connection, self._seal() + 1)
            yield state
            if self.block_time_s() == 0:
                self._step(1)

    def advance(self, blocks: int) -> int:
        """Makes blocks at once and returns the new head. Raises: ValueError when blocks come by the clock."""
        if blocks < 1:
            raise ValueError(f"a chain advances by 1 block or more, not {blocks}")
        with self._transaction():
            if self.block_time_s() != 0:
                raise ValueError("blocks come by the clock; set block_time_s to 0 to step them")
            return self._step(blocks)

    def set_block_time(self, block_time_s: float) -> None:
        """Seconds per block from the next block on; 0 stops the clock, and then only writes and steps make blocks."""
        with self._transaction():
            # The new pace starts a block, so that no sealed block's time changes.
            head = self._seal() + 1
            self._connection.execute("INSERT INTO clock VALUES (?, ?, ?)", (head, self._now(), block_time_s))
            self._connection.execute("UPDATE chain SET sealed = ?", (head,))

    def block_time_s(self) -> float:
        return self._pace()[2]

    def timestamp(self, block: int) -> float:
        """Unix time in seconds at which a block began."""
        first, started_at, pace = self._connection.execute(
            "SELECT first_block, started_at, block_time_s FROM clock WHERE first_block <= ?"
            " ORDER BY first_block DESC LIMIT 1",
            (block,),
        ).fetchone()
        return float(started_at + (block - first) * pace)

    def hash_of(self, block: int) -> str:
        """The block's hash: a digest of genesis, fork and number, which ends in the number for looking it up."""
        number = block.to_bytes(32 - _DIGEST_BYTES, "big")
        # The newest fork that begins at or below a block is the one that block is of.
        (fork,) = self._connection.execute(
            "SELECT coalesce(max(number), 0) FROM forks WHERE first_block <= ?", (block,)
        ).fetchone()
        content = bytes.fromhex(self.genesis[2:]) + number + (str(fork).encode() if fork else b"")
        digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES)
        return "0x" + digest.hexdigest() + number.hex()

    def number_of(self, block_hash: str) -> int:
        """The block with that hash. Raises: UnknownBlockError when this chain has none such."""
        try:
            number = int(block_hash[2 + 2 * _DIGEST_BYTES :], 16)
        except ValueError as exc:
            raise UnknownBlockError(f"no block {block_hash}") from exc
        if number > self.head() or block_hash != self.hash_of(number):
            raise UnknownBlockError(f"no block {block_hash}")
        return number

    def extrinsics(self, block: int) -> list[tuple[bytes, str]]:
        """(call bytes, signer) of a block, in order."""
        return self._connection.execute(
            "SELECT data, signer FROM extrinsics WHERE block = ? ORDER BY position", (block,)
        ).fetchall()

    def set_fault(self, kind: str, mode: str, calls: int) -> None:
        """Makes the next `calls` calls of a kind, by any process, go wrong in the way `mode` names."""
        self._connection.execute("INSERT OR REPLACE INTO faults VALUES (?, ?, ?)", (kind, mode, calls))

    def take_fault(self, kind: str) -> str | None:
        """The mode in which this call is to go wrong, counting it off, or None."""
        if self._connection.execute("SELECT 1 FROM faults WHERE kind = ? AND remaining > 0", (kind,)).fetchone():
            row = self._connection.execute(
                "UPDATE faults SET remaining = remaining - 1 WHERE kind = ? AND remaining > 0 RETURNING mode", (kind,)
            ).fetchall()
            return str(row[0][0]) if row else None
        return None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _pace(self) -> tuple[int, float, float]:
        return self._connection.execute(  # type: ignore[no-any-return]
            "SELECT first_block, started_at, block_time_s FROM clock ORDER BY first_block DESC LIMIT 1"
        ).fetchone()

    def _sealed_and_due(self) -> tuple[int, int]:
        (sealed,) = self._connection.execute("SELECT sealed FROM chain").fetchone()
        first, started_at, pace = self._pace()
        # The clock may step back; blocks may not.
        due = first if pace == 0 else first + int((self._now() - started_at) / pace)
        return sealed, max(sealed, due)

    def _seal(self) -> int:
        """Seals every block that is due. Only inside a transaction: that is what makes sealed blocks final."""
        _, due = self._sealed_and_due()
        self._connection.execute("UPDATE chain SET sealed = ?", (due,))
        return due

    def _step(self, blocks: int) -> int:
        head = self._seal() + blocks
        self._connection.execute("INSERT INTO clock VALUES (?, ?, 0)", (head, self._now()))
        self._connection.execute("UPDATE chain SET sealed = ?", (head,))
        return head


def _connect(path: Path) -> sqlite3.Connection:
    # The client calls from its own loop thread, and each connection is used by one thread at a time.
    return sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
