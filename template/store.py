"""The validator's state in one SQLite file: if losing it changes behaviour, it is a row here.

The only importer of sqlite3 among the seams. One transaction per action, WAL so that others may read while the
validator runs, and a lock file so that only one validator writes.

Times are POSIX seconds in UTC; blocks are chain blocks. A submission is keyed by hotkey and by `entry`, the text
committed on chain: the same commit under another repository or competition is another submission.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from template.competition import Competition
from template.errors import ConfigError, HostError, Reason
from template.lockfile import take_lock
from template.records import WeightOutcome
from template.schema import MIGRATIONS
from template.state import Attempt, Contest, Round, Standing, Submission, SubmissionKey, Verdict, WeightIntent

_BUSY_TIMEOUT_S = 10.0


class Store:
    """The state file at `path`, opened for the one validator that writes it, or read-only for everyone else.

    It and its lock file are made for the owner's eyes only.
    Raises: ConfigError when another validator holds the file, when another version of this package wrote it, or when
    there is none to read; HostError when the disk refuses or the file is no such state (every method).
    """

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        self.path = path
        self._lock_fd: int | None = None
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
            raise ConfigError(f"{self.path} is of an older schema ({version}); the validator brings it up to date")

    def _open_to_write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_fd = take_lock(self.path)
        # SQLite gives its own files beside this one the same mode.
        self.path.touch(mode=0o600)
        self._db = _connect(self.path, "rw")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        _migrate(self._db, self.path)

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and lets another validator have it."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise RuntimeError(f"the state file {self.path} is closed")
        return self._db

    @contextlib.contextmanager
    def atomic(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of the block or nothing, whatever ends it. They do not nest."""
        with _disk_faults(self.path), _transaction(self._connection) as db:
            yield db

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with _disk_faults(self.path):
            return self._connection.execute(query, values).fetchall()

    # What is scored, and who entered it

    def open_contest(self, competition: Competition, hyperparameters_digest: str, model: str, now: float) -> Contest:
        """The contest with exactly these inputs, recorded at its first use; verdicts belong to one contest."""
        digest = Contest.make_digest(competition.digest, hyperparameters_digest, model)
        with self.atomic() as db:
            db.execute(
                "INSERT OR IGNORE INTO contests (digest, competition, hyperparameters_digest, model, created_at)"
                " VALUES (?, ?, ?, ?, ?)",
                (digest, json.dumps(competition.to_dict()), hyperparameters_digest, model, now),
            )
        (row,) = self._rows("SELECT id FROM contests WHERE digest = ?", digest)
        return Contest(row["id"], digest)

    def see_submissions(self, seen: Sequence[Submission], registered: Mapping[str, int] | None = None) -> None:
        """Records commitments as they stand on chain, keeping the earliest block of each.

        registered: each hotkey's registration block; what it committed up to there belongs to an earlier life and is
        no longer its earliest.
        """
        births = registered or {}
        with self.atomic() as db:
            db.executemany(
                "INSERT INTO submissions (hotkey, entry, first_block, block)"
                " VALUES (:hotkey, :entry, :first_block, :block)"
                " ON CONFLICT DO UPDATE SET block = :block, first_block ="
                " CASE WHEN first_block <= :born THEN :first_block ELSE min(first_block, :first_block) END",
                [{**vars(one), "born": births.get(one.hotkey, -1)} for one in seen],
            )

    def submissions(self) -> dict[SubmissionKey, Submission]:
        """Every submission ever seen."""
        rows = self._rows("SELECT hotkey, entry, first_block, block FROM submissions")
        return {SubmissionKey(row["hotkey"], row["entry"]): Submission(**dict(row)) for row in rows}

    # What is known of each

    def record_dataset(
        self, contest: Contest, key: SubmissionKey, *, sha256: str, row_keys: Sequence[bytes], now: float
    ) -> None:
        """A dataset passed every check that it can pass alone; `row_keys` are those of its rows that count."""
        with self.atomic() as db:
            db.execute(
                "INSERT OR REPLACE INTO datasets VALUES (?, ?, ?, ?, ?, ?)",
                (contest.id, *key, sha256, b"".join(row_keys), now),
            )
            db.execute("DELETE FROM attempts WHERE contest_id = ? AND hotkey = ? AND entry = ?", (contest.id, *key))

    def datasets(self, contest: Contest, key_bytes: int) -> dict[SubmissionKey, tuple[bytes, ...]]:
        """Row keys, `key_bytes` long each, of every dataset that passed its checks."""
        rows = self._rows("SELECT hotkey, entry, row_keys FROM datasets WHERE contest_id = ?", contest.id)
        return {
            SubmissionKey(row["hotkey"], row["entry"]): tuple(
                row["row_keys"][at : at + key_bytes] for at in range(0, len(row["row_keys"]), key_bytes)
            )
            for row in rows
        }

    def record_verdict(self, contest: Contest, key: SubmissionKey, verdict: Verdict, now: float) -> None:
        """A refusal, or a loss with its receipt, in one transaction. A verdict is given once and never changed."""
        reason = None if verdict.reason is None else str(verdict.reason)
        with self.atomic() as db:
            db.execute(
                "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (contest.id, *key, reason, verdict.message, verdict.loss, verdict.seconds, now),
            )
            if verdict.receipt is not None:
                db.execute("INSERT INTO receipts VALUES (?, ?, ?, ?)", (contest.id, *key, verdict.receipt))
            db.execute("DELETE FROM attempts WHERE contest_id = ? AND hotkey = ? AND entry = ?", (contest.id, *key))

    def verdicts(self, contest: Contest) -> dict[SubmissionKey, Verdict]:
        """Every verdict of the contest, without the receipts."""
        rows = self._rows(
            "SELECT hotkey, entry, reason, message, loss, seconds FROM verdicts WHERE contest_id = ?", contest.id
        )
        return {SubmissionKey(row["hotkey"], row["entry"]): _read_verdict(row) for row in rows}

    def forget_refusals(self, contest: Contest, reasons: Sequence[Reason], *, before: float) -> None:
        """Takes back the refusals for these reasons that are older than the time `before`."""
        marks = ", ".join("?" * len(reasons))
        where = f"contest_id = ? AND decided_at < ? AND reason IN ({marks})"
        values = (contest.id, before, *map(str, reasons))
        if self._rows(f"SELECT 1 FROM verdicts WHERE {where} LIMIT 1", *values):
            with self.atomic() as db:
                db.execute(f"DELETE FROM verdicts WHERE {where}", values)

    def receipt(self, contest: Contest, key: SubmissionKey) -> str | None:
        """The receipt of a scored submission, None when it was not scored."""
        rows = self._rows(
            "SELECT receipt FROM receipts WHERE contest_id = ? AND hotkey = ? AND entry = ?", contest.id, *key
        )
        return rows[0]["receipt"] if rows else None

    def record_attempt(self, contest: Contest, key: SubmissionKey, attempt: Attempt) -> None:
        """What became of the last try on a submission that has no verdict yet."""
        with self.atomic() as db:
            db.execute(
                "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?)",
                (contest.id, *key, attempt.remote_failures, attempt.host_failures, attempt.next_at, attempt.last_error),
            )

    def attempts(self, contest: Contest) -> dict[SubmissionKey, Attempt]:
        """Failed tries of submissions that have no verdict yet."""
        rows = self._rows(
            "SELECT hotkey, entry, remote_failures, host_failures, next_at, last_error FROM attempts"
            " WHERE contest_id = ?",
            contest.id,
        )
        return {SubmissionKey(row["hotkey"], row["entry"]): Attempt(*tuple(row)[2:]) for row in rows}

    # Rounds and weights

    def begin_round(self, contest: Contest, opened: Round, now: float) -> Round:
        """Fixes a round's blocks, seed and set of submissions before any work on it; returns it with its id."""
        with self.atomic() as db:
            cursor = db.execute(
                "INSERT INTO rounds (contest_id, start_block, start_block_hash, end_block, lucky_num, started_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (contest.id, opened.start_block, opened.start_block_hash, opened.end_block, opened.lucky_num, now),
            )
            db.executemany(
                "INSERT INTO round_entries VALUES (?, ?, ?, ?)",
                [(cursor.lastrowid, position, *key) for position, key in enumerate(opened.entries)],
            )
        return self._read_round(self._rows("SELECT * FROM rounds WHERE id = ?", cursor.lastrowid)[0])

    def open_round(self, contest: Contest) -> Round | None:
        """The round that is not closed, None between rounds."""
        rows = self._rows("SELECT * FROM rounds WHERE contest_id = ? AND closed_at IS NULL ORDER BY id", contest.id)
        return self._read_round(rows[-1]) if rows else None

    def last_round(self, *, with_standings: bool = False) -> Round | None:
        """The newest round of any contest, closed or not; on request the newest that has a table."""
        where = "WHERE id IN (SELECT round_id FROM standings)" if with_standings else ""
        rows = self._rows(f"SELECT * FROM rounds {where} ORDER BY id DESC LIMIT 1")
        return self._read_round(rows[0]) if rows else None

    def close_round(self, round_id: int, now: float) -> None:
        """Nothing more happens in this round."""
        with self.atomic() as db:
            db.execute("UPDATE rounds SET closed_at = ? WHERE id = ? AND closed_at IS NULL", (now, round_id))

    def _read_round(self, row: sqlite3.Row) -> Round:
        entries = self._rows("SELECT hotkey, entry FROM round_entries WHERE round_id = ? ORDER BY position", row["id"])
        return Round(
            id=row["id"],
            start_block=row["start_block"],
            start_block_hash=row["start_block_hash"],
            end_block=row["end_block"],
            lucky_num=row["lucky_num"],
            entries=tuple(SubmissionKey(*entry) for entry in entries),
        )

    def record_intent(
        self, round_id: int, *, block: int, weights: Mapping[int, float], standings: Sequence[Standing], now: float
    ) -> int:
        """Weights about to be submitted, as {uid at `block`: weight}, with the standings they came from.

        Recorded before the chain is called, so that a crash in between leaves a trace. Returns the intent's id.
        """
        with self.atomic() as db:
            cursor = db.execute(
                "INSERT INTO weight_intents (round_id, block, weights, created_at) VALUES (?, ?, ?, ?)",
                (round_id, block, json.dumps(dict(weights)), now),
            )
            _write_standings(db, round_id, standings)
        return int(cursor.lastrowid or 0)

    def record_outcome(self, intent_id: int, outcome: WeightOutcome, now: float) -> None:
        """What became of an intent."""
        with self.atomic() as db:
            db.execute(
                "UPDATE weight_intents SET outcome = ?, finished_at = ? WHERE id = ?",
                (json.dumps(vars(outcome)), now, intent_id),
            )

    def intents(self, round_id: int) -> list[WeightIntent]:
        """The round's weight submissions, oldest first."""
        rows = self._rows("SELECT * FROM weight_intents WHERE round_id = ? ORDER BY id", round_id)
        return [
            WeightIntent(
                id=row["id"],
                block=row["block"],
                weights={int(uid): weight for uid, weight in json.loads(row["weights"]).items()},
                created_at=row["created_at"],
                outcome=None if row["outcome"] is None else WeightOutcome(**json.loads(row["outcome"])),
                finished_at=row["finished_at"],
            )
            for row in rows
        ]

    def record_standings(self, round_id: int, standings: Sequence[Standing]) -> None:
        """The round's table, in place of an earlier one."""
        with self.atomic() as db:
            _write_standings(db, round_id, standings)

    def standings(self, round_id: int) -> list[Standing]:
        """The round's table, best first."""
        rows = self._rows(
            "SELECT * FROM standings WHERE round_id = ? ORDER BY weight DESC, score DESC, loss IS NULL, loss, uid",
            round_id,
        )
        return [
            Standing(
                key=SubmissionKey(row["hotkey"], row["entry"]),
                uid=row["uid"],
                reason=None if row["reason"] is None else Reason(row["reason"]),
                message=row["message"],
                loss=row["loss"],
                score=row["score"],
                weight=row["weight"],
            )
            for row in rows
        ]


def _write_standings(db: sqlite3.Connection, round_id: int, standings: Sequence[Standing]) -> None:
    db.execute("DELETE FROM standings WHERE round_id = ?", (round_id,))
    db.executemany(
        "INSERT INTO standings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                round_id,
                *one.key,
                one.uid,
                None if one.reason is None else str(one.reason),
                one.message,
                one.loss,
                one.score,
                one.weight,
            )
            for one in standings
        ],
    )


def _read_verdict(row: sqlite3.Row) -> Verdict:
    reason = None if row["reason"] is None else Reason(row["reason"])
    return Verdict(reason=reason, message=row["message"], loss=row["loss"], seconds=row["seconds"])


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection in autocommit mode: transactions are begun and ended by `_transaction` alone."""
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
        # A full disk rolls back by itself, and undoing must not hide why it was needed.
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
    """Brings the file to the newest schema, each step and its number in one transaction."""
    version = _schema_version(db, path)
    for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
        with _transaction(db):
            migration(db.execute)
            db.execute(f"PRAGMA user_version={number}")


@contextlib.contextmanager
def _disk_faults(path: Path) -> Iterator[None]:
    """A disk that refuses is ours to mend; a broken rule of the schema is a bug and passes."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except (sqlite3.DatabaseError, OSError) as error:
        raise HostError(f"the state file {path} failed: {error}") from error
