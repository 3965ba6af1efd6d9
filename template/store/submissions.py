"""State of submissions: commitments, datasets, verdicts, receipts, retries.

Times are POSIX seconds. The column `entry` holds the text of a commitment: the same commit under another repository or
competition is another submission.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from template.competition import Competition
from template.errors import Reason
from template.records import EvalConfig, RetryState, Submission, SubmissionKey, Verdict
from template.store.database import StateFile, placeholders

# Newest datasets whose row keys are kept although nothing needs them. Older ones are downloaded again when needed.
MAX_DATASETS = 8192

_OF_SUBMISSION = "contest_id = ? AND hotkey = ? AND entry = ?"


class VerdictCache(Mapping[SubmissionKey, Verdict]):
    """The verdicts of one config, read on demand and cached.

    read: returns one verdict, or all for None.
    """

    def __init__(self, read: Callable[[SubmissionKey | None], dict[SubmissionKey, Verdict]]) -> None:
        self._read = read
        self._cached: dict[SubmissionKey, Verdict | None] = {}

    def put(self, key: SubmissionKey, verdict: Verdict) -> None:
        self._cached[key] = verdict

    def clear(self) -> None:
        self._cached.clear()

    @property
    def size(self) -> int:
        return len(self._cached)

    def __getitem__(self, key: SubmissionKey) -> Verdict:
        if key not in self._cached:
            self._cached[key] = self._read(key).get(key)
        verdict = self._cached[key]
        if verdict is None:
            raise KeyError(key)
        return verdict

    def __iter__(self) -> Iterator[SubmissionKey]:
        return iter(self._read(None))

    def __len__(self) -> int:
        return len(self._read(None))


class SubmissionTables(StateFile):
    """The tables that are keyed by submission."""

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        super().__init__(path, is_read_only=is_read_only)
        self.is_read_only = is_read_only
        self._verdicts: dict[int, VerdictCache] = {}

    def get_or_create_config(
        self, competition: Competition, hyperparameters_digest: str, model: str, now: float
    ) -> EvalConfig:
        """Return the config with exactly these inputs, recording it first if new."""
        inputs = f"{competition.digest}\n{hyperparameters_digest}\n{model}"
        digest = hashlib.sha256(inputs.encode()).hexdigest()
        with self.atomic() as db:
            db.execute(
                "INSERT OR IGNORE INTO contests (digest, competition, hyperparameters_digest, model, created_at)"
                " VALUES (?, ?, ?, ?, ?)",
                (digest, json.dumps(competition.to_dict()), hyperparameters_digest, model, now),
            )
        (row,) = self.rows("SELECT id FROM contests WHERE digest = ?", digest)
        return EvalConfig(row["id"], digest)

    def record_submissions(
        self, submissions: Iterable[Submission], registration_blocks: Mapping[str, int] | None = None
    ) -> None:
        """Record commitments, keeping the first block and reveal block of each.

        Blocks up to a hotkey's present registration no longer count as the earliest.
        """
        registered = registration_blocks or {}
        rows = [{**vars(one), **one.key._asdict(), "born": registered.get(one.key.hotkey, -1)} for one in submissions]
        with self.atomic() as db:
            db.executemany(
                "INSERT INTO submissions (hotkey, entry, first_block, block, open_block)"
                " VALUES (:hotkey, :commitment, :first_block, :block, :reveal_block)"
                " ON CONFLICT DO UPDATE SET block = :block,"
                " first_block = CASE WHEN first_block <= :born THEN :first_block"
                " ELSE min(first_block, :first_block) END,"
                " open_block = CASE WHEN open_block <= :born THEN :reveal_block"
                " ELSE min(open_block, :reveal_block) END,"
                " missing_block = CASE WHEN open_block <= :born THEN 0 ELSE missing_block END",
                rows,
            )

    def submissions(self, keys: Iterable[SubmissionKey] | None = None) -> dict[SubmissionKey, Submission]:
        """Return these submissions, or all: up to hundreds of thousands a day."""
        query = "SELECT hotkey, entry, first_block, block, open_block, missing_block FROM submissions"
        if keys is None:
            rows = self.rows(query)
        else:
            rows = [row for key in keys for row in self.rows(f"{query} WHERE hotkey = ? AND entry = ?", *key)]
        submissions = (Submission(SubmissionKey(hotkey, text), *blocks) for hotkey, text, *blocks in rows)
        return {submission.key: submission for submission in submissions}

    def record_missing_file(self, key: SubmissionKey, block: int, *, is_found: bool = False) -> None:
        """Record that a file was missing up to `block`, which costs its rank.

        is_found: it exists now; only a mark that exists is moved.
        """
        with self.atomic() as db:
            db.execute(
                "UPDATE submissions SET missing_block = ? WHERE hotkey = ? AND entry = ?"
                " AND missing_block < ? AND missing_block >= ?",
                (block, *key, block, int(is_found)),
            )

    def record_commit_blocks(self, commit_blocks: Mapping[tuple[str, int], int]) -> None:
        """Record the commit blocks of revealed commitments, by hotkey and reveal block."""
        with self.atomic() as db:
            db.executemany(
                "INSERT OR REPLACE INTO openings VALUES (?, ?, ?)",
                [(*reveal, block) for reveal, block in commit_blocks.items()],
            )

    def commit_blocks(self) -> dict[tuple[str, int], int]:
        """Return the commit blocks of revealed commitments, by hotkey and reveal block."""
        rows = self.rows("SELECT hotkey, reveal_block, commit_block FROM openings")
        return {(row["hotkey"], row["reveal_block"]): row["commit_block"] for row in rows}

    def record_dataset(
        self, eval_config: EvalConfig, key: SubmissionKey, *, sha256: str, row_keys: Sequence[bytes], now: float
    ) -> None:
        """Record a dataset that passed its checks, with the keys of its rows that count."""
        with self.atomic() as db:
            db.execute(
                f"INSERT OR REPLACE INTO datasets VALUES ({placeholders(6)})",
                (eval_config.id, *key, sha256, b"".join(row_keys), now),
            )
            db.execute(f"DELETE FROM attempts WHERE {_OF_SUBMISSION}", (eval_config.id, *key))

    def datasets(
        self, eval_config: EvalConfig, key_bytes: int, dedup: Callable[[Iterable[bytes]], tuple[bytes, ...]] = tuple
    ) -> dict[SubmissionKey, tuple[bytes, ...]]:
        """Return the row keys of every recorded dataset.

        dedup: returns equal keys, as objects that other datasets share.
        """
        query = f"SELECT row_keys FROM datasets WHERE {_OF_SUBMISSION}"
        datasets = {}
        for key in sorted(self.dataset_keys(eval_config)):
            for (blob,) in self.rows(query, eval_config.id, *key):
                datasets[key] = dedup(blob[start : start + key_bytes] for start in range(0, len(blob), key_bytes))
        return datasets

    def dataset_keys(self, eval_config: EvalConfig) -> set[SubmissionKey]:
        """Return the submissions whose row keys are recorded."""
        return self._keys("datasets WHERE contest_id = ?", eval_config.id)

    def record_verdict(self, eval_config: EvalConfig, key: SubmissionKey, verdict: Verdict, now: float) -> None:
        """Record a final verdict, with its receipt, in one transaction."""
        reason = None if verdict.reason is None else str(verdict.reason)
        with self.atomic() as db:
            db.execute(
                f"INSERT INTO verdicts VALUES ({placeholders(8)})",
                (eval_config.id, *key, reason, verdict.message, verdict.loss, verdict.seconds, now),
            )
            if verdict.receipt is not None:
                db.execute(
                    "INSERT INTO receipts (contest_id, hotkey, entry, receipt) VALUES (?, ?, ?, ?)",
                    (eval_config.id, *key, verdict.receipt),
                )
            db.execute(f"DELETE FROM attempts WHERE {_OF_SUBMISSION}", (eval_config.id, *key))
        if eval_config.id in self._verdicts:
            self._verdicts[eval_config.id].put(key, dataclasses.replace(verdict, receipt=None))

    def verdicts(self, eval_config: EvalConfig) -> Mapping[SubmissionKey, Verdict]:
        """Return every verdict of the config, without receipts."""
        if self.is_read_only:
            return self._read_verdicts(eval_config)
        if eval_config.id not in self._verdicts:
            self._verdicts[eval_config.id] = VerdictCache(lambda key: self._read_verdicts(eval_config, key))
        return self._verdicts[eval_config.id]

    def _read_verdicts(self, eval_config: EvalConfig, key: SubmissionKey | None = None) -> dict[SubmissionKey, Verdict]:
        where, values = ("contest_id = ?", ()) if key is None else (_OF_SUBMISSION, tuple(key))
        query = f"SELECT hotkey, entry, reason, message, loss, seconds FROM verdicts WHERE {where}"
        return {
            SubmissionKey(hotkey, text): Verdict(
                reason=None if reason is None else Reason(reason), message=message, loss=loss, seconds=seconds
            )
            for hotkey, text, reason, message, loss, seconds in self.rows(query, eval_config.id, *values)
        }

    def expire_rejections(
        self, eval_config: EvalConfig, reasons: Sequence[Reason], *, before: float, after: float = float("inf")
    ) -> None:
        """Delete rejections for these reasons that are older than `before`.

        Also those newer than `after`, which were recorded by a clock that ran ahead.
        """
        where = f"contest_id = ? AND (decided_at < ? OR decided_at > ?) AND reason IN ({placeholders(len(reasons))})"
        values = (eval_config.id, before, after, *map(str, reasons))
        if self.rows(f"SELECT 1 FROM verdicts WHERE {where} LIMIT 1", *values):
            with self.atomic() as db:
                db.execute(f"DELETE FROM verdicts WHERE {where}", values)
            self._clear_verdicts()

    def receipt(self, eval_config: EvalConfig, key: SubmissionKey) -> str | None:
        """Return the receipt of an evaluated submission, None without one."""
        rows = self.rows(f"SELECT receipt FROM receipts WHERE {_OF_SUBMISSION}", eval_config.id, *key)
        return rows[0]["receipt"] if rows else None

    def record_retry_state(self, eval_config: EvalConfig, key: SubmissionKey, retry: RetryState) -> None:
        """Record the failures of a submission without a verdict."""
        with self.atomic() as db:
            db.execute(
                f"INSERT OR REPLACE INTO attempts VALUES ({placeholders(7)})",
                (eval_config.id, *key, *dataclasses.astuple(retry)),
            )

    def retry_states(self, eval_config: EvalConfig) -> dict[SubmissionKey, RetryState]:
        """Return the failures of submissions without a verdict."""
        columns = "hotkey, entry, remote_failures, host_failures, next_at, last_error"
        rows = self.rows(f"SELECT {columns} FROM attempts WHERE contest_id = ?", eval_config.id)
        return {SubmissionKey(hotkey, text): RetryState(*values) for hotkey, text, *values in rows}

    def round_receipts(self, eval_config: EvalConfig, round_id: int) -> dict[SubmissionKey, str]:
        """Return the round's receipts, after assigning it those without a round.

        So an evaluation that outlives its round counts in the next one, if its entry is still there.
        """
        with self.atomic() as db:
            db.execute(
                "UPDATE receipts SET round_id = :round WHERE round_id IS NULL AND contest_id = :contest AND EXISTS"
                " (SELECT 1 FROM round_members AS member WHERE member.round_id = :round"
                " AND member.hotkey = receipts.hotkey AND member.entry = receipts.entry)",
                {"round": round_id, "contest": eval_config.id},
            )
        rows = self.rows("SELECT hotkey, entry, receipt FROM receipts WHERE round_id = ?", round_id)
        return {SubmissionKey(hotkey, text): receipt for hotkey, text, receipt in rows}

    def unpublished_receipts(self, eval_config: EvalConfig) -> set[SubmissionKey]:
        """Return the submissions whose receipt belongs to no round yet."""
        return self._keys("receipts WHERE contest_id = ? AND round_id IS NULL", eval_config.id)

    def prune_submissions(self, *, keep: Collection[SubmissionKey], before_block: int) -> None:
        """Delete commitments before that block that are not in `keep`.

        The newest commit block of each hotkey in `keep` stays.
        """
        old = self._keys("submissions WHERE block < ?", before_block)
        hotkeys = {key.hotkey for key in keep}
        reveals = self.rows("SELECT hotkey, reveal_block FROM openings WHERE reveal_block < ?", before_block)
        newest = {hotkey: block for hotkey, block in sorted(map(tuple, reveals)) if hotkey in hotkeys}
        with self.atomic() as db:
            db.executemany(
                "DELETE FROM submissions WHERE hotkey = ? AND entry = ?", [key for key in old if key not in keep]
            )
            db.executemany(
                "DELETE FROM openings WHERE hotkey = ? AND reveal_block = ?",
                [(hotkey, block) for hotkey, block in reveals if newest.get(hotkey) != block],
            )

    def prune_results(self, *, keep: Collection[SubmissionKey], datasets_before: float, receipts_before: float) -> None:
        """Delete old row keys, retries and receipts, except those in `keep`.

        Row keys beyond the newest MAX_DATASETS go too. Verdicts stay, so that nothing is evaluated twice.
        """
        columns = "contest_id, hotkey, entry"
        datasets = self.rows(f"SELECT {columns} FROM datasets WHERE checked_at < ?", datasets_before)
        datasets += self.rows(
            f"SELECT {columns} FROM datasets ORDER BY checked_at DESC, {columns} LIMIT -1 OFFSET ?", MAX_DATASETS
        )
        receipts = self.rows(
            f"SELECT {columns} FROM receipts JOIN verdicts USING ({columns}) WHERE decided_at < ?", receipts_before
        )
        retries = self.rows(f"SELECT {columns} FROM attempts WHERE next_at < ?", datasets_before)
        with self.atomic() as db:
            for table, rows in (("datasets", datasets), ("receipts", receipts), ("attempts", retries)):
                db.executemany(
                    f"DELETE FROM {table} WHERE {_OF_SUBMISSION}",
                    [tuple(row) for row in rows if SubmissionKey(row["hotkey"], row["entry"]) not in keep],
                )
        self._clear_verdicts()

    def _clear_verdicts(self) -> None:
        for cache in self._verdicts.values():
            cache.clear()

    def _keys(self, table_where: str, *values: object) -> set[SubmissionKey]:
        return {SubmissionKey(*row) for row in self.rows(f"SELECT hotkey, entry FROM {table_where}", *values)}
