"""The local chain's state in one SQLite file, with every past value.

Several processes share the file. A write goes into the block after the newest sealed one, under SQLite's write lock.
The first read past a block seals it under that same lock. So a block that was read changes only if `reorganise` takes
it back, which a finalized block does not allow. Values are JSON, stored by the block that set them.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from template.errors import ConfigError
from template.localnet.chain.headers import Header, make_header

_BUSY_TIMEOUT_S = 30.0
_APPLICATION_ID = 0x53494D31
_NO_BLOCK_YET = 2**32
_NO_PARENT = "0x" + "00" * 32

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
CREATE TABLE chain (
    genesis TEXT NOT NULL, netuid INTEGER NOT NULL, sealed INTEGER NOT NULL,
    finality_lag INTEGER NOT NULL DEFAULT 0, finalized INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE blocks (number INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE);
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
CREATE TABLE signed (
    block INTEGER NOT NULL, position INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (block, position)
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


class ChainFault(StrEnum):
    """A failure of a call. LOSE_ANSWER: a write lands, then the connection drops."""

    HANG = "hang"
    DISCONNECT = "disconnect"
    ERROR = "error"
    LOSE_ANSWER = "lose_answer"


class UnknownBlockError(Exception):
    """A block number or hash that this chain does not have."""


class ExtrinsicRecord(NamedTuple):
    """An extrinsic of a block.

    error: the chain's error of a failed call. wire: empty unless a node got it.
    """

    data: bytes
    signer: str
    error: str | None
    wire: bytes


class State:
    """The chain's values as of one block; writable only inside `Ledger.write`."""

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
        """List the keys of a map with their values, by key. A null deletes its key."""
        rows = self._connection.execute(_ENTRIES, {"item": item, "block": self.block}).fetchall()
        return [(key, json.loads(value)) for key, value in rows if value not in (None, "null")]

    def put(self, item: str, key: str, value: Any) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)", (item, key, self.block, json.dumps(value))
        )

    def record_extrinsic(self, data: bytes, signer: str, error: str | None, wire: bytes = b"") -> int:
        """Add an extrinsic to this block; return its position, counted from 1.

        data: the call. wire: the signed extrinsic as it was sent, if it came through a node.
        """
        (position,) = self._connection.execute(
            "INSERT INTO extrinsics SELECT ?, coalesce(max(position), 0) + 1, ?, ?, ? FROM extrinsics"
            " WHERE block = ? RETURNING position",
            (self.block, data, signer, error, self.block),
        ).fetchone()
        if wire:
            self._connection.execute("INSERT INTO signed VALUES (?, ?, ?)", (self.block, position, wire))
        return int(position)


class Ledger:
    """An open chain file, for one thread at a time.

    Raises: ConfigError when `path` is not a local chain's file.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        if not path.is_file():
            raise ConfigError(f"{path} does not exist: name a local chain's file")
        self.path = path
        self._now = now
        self._connection = _connect(path)
        try:
            (application_id,) = self._connection.execute("PRAGMA application_id").fetchone()
            if application_id != _APPLICATION_ID:
                raise sqlite3.DatabaseError("another application's file")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self.genesis, self.netuid = self._connection.execute("SELECT genesis, netuid FROM chain").fetchone()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise ConfigError(f"{path} is not a local chain's file: {error}") from error

    @classmethod
    def create_file(cls, path: Path, *, netuid: int, block_time_s: float, now: Callable[[], float] = time.time) -> Self:
        """Write a new chain at block 0. Raises: ConfigError when `path` exists."""
        if path.exists():
            raise ConfigError(f"{path} exists: name a new file for the local chain")
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
        ledger = cls(path, now=now)
        with ledger._transaction():
            ledger._set_sealed(0)
        return ledger

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def block(self) -> int:
        """Return the number of the newest block, and seal it."""
        sealed, due = self._sealed_and_due()
        if due <= sealed:
            return sealed
        with self._transaction():
            return self._seal()

    def finalized(self) -> int:
        """Return the number of the newest block that cannot be taken back."""
        head = self.block()
        lag, finalized = self._connection.execute("SELECT finality_lag, finalized FROM chain").fetchone()
        return max(int(finalized), head - int(lag))

    def set_finality_lag(self, blocks: int) -> None:
        """Finalize each block once the head is `blocks` ahead; mainnet's lag is 2 or more."""
        with self._transaction():
            self._finalize()
            self._connection.execute("UPDATE chain SET finality_lag = ?", (blocks,))

    def reorganise(self, blocks: int) -> int:
        """Take the newest blocks back with all their writes; return the new head.

        The next blocks are of another fork, with other hashes. Raises: ValueError for final blocks or a running clock.
        """
        with self._transaction():
            self._require_stopped_clock()
            head = self._seal()
            final = self._finalize()
            if not 0 < blocks <= head - final:
                raise ValueError(f"{head - final} blocks can be taken back, not {blocks}")
            last = head - blocks
            tables = {"state": "block", "extrinsics": "block", "signed": "block", "blocks": "number"}
            for table, column in {**tables, "clock": "first_block"}.items():
                self._connection.execute(f"DELETE FROM {table} WHERE {column} > ?", (last,))
            self._connection.execute("INSERT INTO forks (first_block) VALUES (?)", (last + 1,))
            self._connection.execute("INSERT OR REPLACE INTO clock VALUES (?, ?, 0)", (last, self.timestamp(last)))
            self._connection.execute("UPDATE chain SET sealed = ?", (last,))
            return last

    def at(self, block: int | None = None) -> State:
        """Return the state as of a block, by default the head. Raises: UnknownBlockError."""
        head = self.block()
        if block is not None and not 0 <= block <= head:
            raise UnknownBlockError(f"no block at height {block}")
        return State(self._connection, head if block is None else block)

    def pending(self) -> State:
        """Return the state with the writes of the next block."""
        return State(self._connection, self.block() + 1)

    @contextmanager
    def write(self) -> Iterator[State]:
        """Write into the next block; with block time 0, make that block too."""
        with self._transaction():
            state = State(self._connection, self._seal() + 1)
            yield state
            if self.block_time_s() == 0:
                self._step(1)

    def advance(self, blocks: int = 1) -> int:
        """Make blocks; return the new head. Raises: ValueError for a running clock."""
        with self._transaction():
            self._require_stopped_clock()
            return self._step(blocks)

    def set_block_time(self, block_time_s: float) -> None:
        """Set the seconds per block; 0 leaves blocks to writes and `advance`."""
        check_block_time(block_time_s)
        with self._transaction():
            # The new pace starts a block, so that no sealed block's time changes.
            head = self._seal() + 1
            self._connection.execute("INSERT INTO clock VALUES (?, ?, ?)", (head, self._now(), block_time_s))
            self._set_sealed(head)

    def block_time_s(self) -> float:
        return self._pace()[2]

    def timestamp(self, block: int) -> float:
        """Return the Unix time in seconds at which a block began."""
        first, started_at, pace = self._pace(block)
        return float(started_at + (block - first) * pace)

    def hash_of(self, block: int) -> str:
        """Return the hash of a block that was made. Raises: UnknownBlockError."""
        row = self._connection.execute("SELECT hash FROM blocks WHERE number = ?", (block,)).fetchone()
        if row is None:
            raise UnknownBlockError(f"no block at height {block}")
        return str(row[0])

    def number_of(self, block_hash: str) -> int:
        """Return the block with this hash. Raises: UnknownBlockError."""
        row = self._connection.execute("SELECT number FROM blocks WHERE hash = ?", (block_hash,)).fetchone()
        if row is None:
            raise UnknownBlockError(f"no block {block_hash}")
        return int(row[0])

    def header(self, block: int) -> Header:
        """Return a block's header. Raises: UnknownBlockError."""
        parent = self.hash_of(block - 1) if block else _NO_PARENT
        self.hash_of(block)
        # A block belongs to the newest fork that begins at or below it.
        (fork,) = self._connection.execute(
            "SELECT coalesce(max(number), 0) FROM forks WHERE first_block <= ?", (block,)
        ).fetchone()
        return make_header(self.genesis, fork, block, parent)

    def extrinsics(self, block: int) -> list[tuple[bytes, str]]:
        """List (call bytes, signer) of a block, in order."""
        return self._connection.execute(
            "SELECT data, signer FROM extrinsics WHERE block = ? ORDER BY position", (block,)
        ).fetchall()

    def records(self, block: int) -> list[ExtrinsicRecord]:
        """List the extrinsics of a block, in order."""
        rows = self._connection.execute(
            "SELECT extrinsics.data, signer, error, coalesce(signed.data, x'') FROM extrinsics"
            " LEFT JOIN signed USING (block, position) WHERE block = ? ORDER BY position",
            (block,),
        )
        return [ExtrinsicRecord(*row) for row in rows]

    def set_fault(self, kind: Literal["connect", "read", "write"], fault: ChainFault, *, calls: int = 1) -> None:
        """Fail the next `calls` calls of a kind, in any process; 0 ends the fault."""
        self._connection.execute("INSERT OR REPLACE INTO faults VALUES (?, ?, ?)", (kind, fault, calls))

    def take_fault(self, kind: str) -> ChainFault | None:
        """Return the fault of this call, and count it off."""
        # Most calls only read: an UPDATE would take the write lock.
        if self._connection.execute("SELECT 1 FROM faults WHERE kind = ? AND remaining > 0", (kind,)).fetchone():
            rows = self._connection.execute(
                "UPDATE faults SET remaining = remaining - 1 WHERE kind = ? AND remaining > 0 RETURNING mode", (kind,)
            ).fetchall()
            return ChainFault(rows[0][0]) if rows else None
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

    def _pace(self, block: int = _NO_BLOCK_YET) -> tuple[int, float, float]:
        """Return first block, start and block time of the pace at a block."""
        return self._connection.execute(  # type: ignore[no-any-return]
            "SELECT first_block, started_at, block_time_s FROM clock WHERE first_block <= ?"
            " ORDER BY first_block DESC LIMIT 1",
            (block,),
        ).fetchone()

    def _require_stopped_clock(self) -> None:
        if self.block_time_s() != 0:
            raise ValueError("blocks come by the clock: set the block time to 0 first")

    def _sealed_and_due(self) -> tuple[int, int]:
        (sealed,) = self._connection.execute("SELECT sealed FROM chain").fetchone()
        first, started_at, pace = self._pace()
        # The clock may step back; blocks may not.
        due = first if pace == 0 else first + int((self._now() - started_at) / pace)
        return sealed, max(sealed, due)

    def _seal(self) -> int:
        """Seal every block that is due. Only inside a transaction."""
        _, due = self._sealed_and_due()
        self._set_sealed(due)
        return due

    def _set_sealed(self, head: int) -> None:
        """Make every block up to `head`. Only inside a transaction."""
        number, parent = self._connection.execute(
            "SELECT number, hash FROM blocks ORDER BY number DESC LIMIT 1"
        ).fetchone() or (-1, _NO_PARENT)
        (fork,) = self._connection.execute("SELECT coalesce(max(number), 0) FROM forks").fetchone()
        rows = []
        for block in range(number + 1, head + 1):
            parent = make_header(self.genesis, fork, block, parent).hash()
            rows.append((block, parent))
        self._connection.executemany("INSERT INTO blocks VALUES (?, ?)", rows)
        self._connection.execute("UPDATE chain SET sealed = ?", (head,))

    def _finalize(self) -> int:
        """Record and return the newest final block. Only inside a transaction."""
        (final,) = self._connection.execute(
            "UPDATE chain SET finalized = max(finalized, ? - finality_lag) RETURNING finalized", (self._seal(),)
        ).fetchone()
        return int(final)

    def _step(self, blocks: int) -> int:
        head = self._seal() + blocks
        self._connection.execute("INSERT INTO clock VALUES (?, ?, 0)", (head, self._now()))
        self._set_sealed(head)
        return head


def check_block_time(block_time_s: float) -> None:
    """Raise ConfigError unless this is 0 or a finite number of seconds."""
    if not 0 <= block_time_s < float("inf"):
        raise ConfigError(f"the block time must be 0 or more seconds, not {block_time_s}")


def _connect(path: Path) -> sqlite3.Connection:
    # The client calls from its own loop thread, and each connection is used by one thread at a time.
    return sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
