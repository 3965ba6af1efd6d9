"""What the state file knows of contests and submissions: commitments, datasets, verdicts, receipts, tries.

Times are POSIX seconds in UTC; blocks are chain blocks. A submission is keyed by hotkey and by `entry`, the text
committed on chain: the same commit under another repository or competition is another submission.
"""

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from template.competition import Competition
from template.errors import Reason
from template.records import EvalConfig, RetryState, Submission, SubmissionKey, Verdict
from template.store.database import StateFile

# Datasets whose row keys are kept although nothing rests on them; whoever commits an older one again is read again.
MAX_DATASETS = 8192


class VerdictCache(Mapping[SubmissionKey, Verdict]):
    """The verdicts of a contest, read when they are asked for, and kept in memory until `forget`.

    They are asked for at every tick, but only those of submissions that still matter, of the many that there ever were.
    """

    def __init__(
        self, read: Callable[[SubmissionKey], Verdict | None], read_all: Callable[[], dict[SubmissionKey, Verdict]]
    ) -> None:
        self._read = read
        self._read_all = read_all
        self._known: dict[SubmissionKey, Verdict | None] = {}

    def learn(self, key: SubmissionKey, verdict: Verdict) -> None:
        """Takes in one that was just recorded."""
        self._known[key] = verdict

    def forget(self) -> None:
        """Has everything read anew when it is asked for."""
        self._known.clear()

    @property
    def held(self) -> int:
        """How many submissions the memory holds an answer for."""
        return len(self._known)

    def __getitem__(self, key: SubmissionKey) -> Verdict:
        if key not in self._known:
            self._known[key] = self._read(key)
        found = self._known[key]
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[SubmissionKey]:
        return iter(self._read_all())

    def __len__(self) -> int:
        return len(self._read_all())


class SubmissionTables(StateFile):
    """The tables that are keyed by submission."""

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        super().__init__(path, is_read_only=is_read_only)
        self.is_read_only = is_read_only
        self._known_verdicts: dict[int, VerdictCache] = {}

    def get_or_create_config(
        self, competition: Competition, hyperparameters_digest: str, model: str, now: float
    ) -> EvalConfig:
        """The contest with exactly these inputs, recorded at its first use; verdicts belong to one contest."""
        digest = EvalConfig.make_digest(competition.digest, hyperparameters_digest, model)
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
        """Record commitments from the chain, keeping the earliest first block and reveal block of each.

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
        """What was seen of these submissions, of all by default; those that were never seen are left out.

        A subnet that commits anew in every block leaves hundreds of thousands a day: ask for those that matter.
        """
        query = "SELECT hotkey, entry, first_block, block, open_block, missing_block FROM submissions"
        if keys is None:
            rows = self.rows(query)
        else:
            rows = [row for key in keys for row in self.rows(f"{query} WHERE hotkey = ? AND entry = ?", *key)]
        submissions = (Submission(SubmissionKey(hotkey, text), *blocks) for hotkey, text, *blocks in rows)
        return {submission.key: submission for submission in submissions}

    def record_missing_file(self, key: SubmissionKey, block: int, *, is_found: bool = False) -> None:
        """Records that the submission's file was looked for in vain, which costs it its rank up to there.

        is_found: it is there now; the mark is moved only where there is one.
        """
        least = 1 if is_found else 0
        with self.atomic() as db:
            db.execute(
                "UPDATE submissions SET missing_block = ? WHERE hotkey = ? AND entry = ?"
                " AND missing_block < ? AND missing_block >= ?",
                (block, *key, block, least),
            )

    def record_commit_blocks(self, found: Mapping[tuple[str, int], int]) -> None:
        """Records where sealed commitments were made that the chain has opened: {(hotkey, reveal block): block}."""
        with self.atomic() as db:
            db.executemany(
                "INSERT OR REPLACE INTO openings VALUES (?, ?, ?)",
                [(*seal, block) for seal, block in found.items()],
            )

    def commit_blocks(self) -> dict[tuple[str, int], int]:
        """Where sealed commitments were made: {(hotkey, reveal block): block}."""
        rows = self.rows("SELECT hotkey, reveal_block, commit_block FROM openings")
        return {(row["hotkey"], row["reveal_block"]): row["commit_block"] for row in rows}

    def record_dataset(
        self, eval_config: EvalConfig, key: SubmissionKey, *, sha256: str, row_keys: Sequence[bytes], now: float
    ) -> None:
        """A dataset passed every check that it can pass alone; `row_keys` are those of its rows that count."""
        with self.atomic() as db:
            db.execute(
                "INSERT OR REPLACE INTO datasets VALUES (?, ?, ?, ?, ?, ?)",
                (eval_config.id, *key, sha256, b"".join(row_keys), now),
            )
            db.execute("DELETE FROM attempts WHERE contest_id = ? AND hotkey = ? AND entry = ?", (eval_config.id, *key))

    def datasets(
        self, eval_config: EvalConfig, key_bytes: int, share: Callable[[Iterable[bytes]], tuple[bytes, ...]] = tuple
    ) -> dict[SubmissionKey, tuple[bytes, ...]]:
        """Row keys, `key_bytes` long each, of every dataset that passed its checks, read one by one.

        share: gives equal keys, which may be others' objects.
        """
        query = "SELECT row_keys FROM datasets WHERE contest_id = ? AND hotkey = ? AND entry = ?"
        found = {}
        for key in sorted(self.dataset_keys(eval_config)):
            for (blob,) in self.rows(query, eval_config.id, *key):
                found[key] = share(blob[at : at + key_bytes] for at in range(0, len(blob), key_bytes))
        return found

    def dataset_keys(self, eval_config: EvalConfig) -> set[SubmissionKey]:
        """Every dataset whose row keys are kept."""
        rows = self.rows("SELECT hotkey, entry FROM datasets WHERE contest_id = ?", eval_config.id)
        return {SubmissionKey(row["hotkey"], row["entry"]) for row in rows}

    def record_verdict(self, eval_config: EvalConfig, key: SubmissionKey, verdict: Verdict, now: float) -> None:
        """A refusal, or a loss with its receipt, in one transaction. A verdict is given once and never changed."""
        reason = None if verdict.reason is None else str(verdict.reason)
        with self.atomic() as db:
            db.execute(
                "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (eval_config.id, *key, reason, verdict.message, verdict.loss, verdict.seconds, now),
            )
            if verdict.receipt is not None:
                db.execute(
                    "INSERT INTO receipts (contest_id, hotkey, entry, receipt) VALUES (?, ?, ?, ?)",
                    (eval_config.id, *key, verdict.receipt),
                )
            db.execute("DELETE FROM attempts WHERE contest_id = ? AND hotkey = ? AND entry = ?", (eval_config.id, *key))
        if eval_config.id in self._known_verdicts:
            self._known_verdicts[eval_config.id].learn(key, dataclasses.replace(verdict, receipt=None))

    def verdicts(self, eval_config: EvalConfig) -> Mapping[SubmissionKey, Verdict]:
        """Every verdict of the contest, without the receipts.

        The one who writes them is asked at every tick and keeps what it was asked for in memory, until
        `prune_results`; whoever only reads reads anew.
        """
        if self.is_read_only:
            return self._read_verdicts(eval_config)
        if eval_config.id not in self._known_verdicts:
            self._known_verdicts[eval_config.id] = VerdictCache(
                lambda key: self._read_verdicts(eval_config, key).get(key), lambda: self._read_verdicts(eval_config)
            )
        return self._known_verdicts[eval_config.id]

    def _read_verdicts(self, eval_config: EvalConfig, key: SubmissionKey | None = None) -> dict[SubmissionKey, Verdict]:
        where, values = ("", ()) if key is None else (" AND hotkey = ? AND entry = ?", tuple(key))
        query = "SELECT hotkey, entry, reason, message, loss, seconds FROM verdicts WHERE contest_id = ?"
        rows = self.rows(query + where, eval_config.id, *values)
        return {SubmissionKey(row["hotkey"], row["entry"]): _read_verdict(row) for row in rows}

    def expire_rejections(
        self, eval_config: EvalConfig, reasons: Sequence[Reason], *, before: float, after: float = float("inf")
    ) -> None:
        """Takes back the refusals for these reasons that are older than the time `before`, or newer than `after`.

        The latter come from a clock that was ahead.
        """
        marks = ", ".join("?" * len(reasons))
        where = f"contest_id = ? AND (decided_at < ? OR decided_at > ?) AND reason IN ({marks})"
        values = (eval_config.id, before, after, *map(str, reasons))
        if self.rows(f"SELECT 1 FROM verdicts WHERE {where} LIMIT 1", *values):
            with self.atomic() as db:
                db.execute(f"DELETE FROM verdicts WHERE {where}", values)
            for known in self._known_verdicts.values():
                known.forget()

    def receipt(self, eval_config: EvalConfig, key: SubmissionKey) -> str | None:
        """The receipt of a scored submission, None when it was not scored."""
        rows = self.rows(
            "SELECT receipt FROM receipts WHERE contest_id = ? AND hotkey = ? AND entry = ?", eval_config.id, *key
        )
        return rows[0]["receipt"] if rows else None

    def record_retry_state(self, eval_config: EvalConfig, key: SubmissionKey, attempt: RetryState) -> None:
        """What became of the last try on a submission that has no verdict yet."""
        with self.atomic() as db:
            db.execute(
                "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    eval_config.id,
                    *key,
                    attempt.remote_failures,
                    attempt.host_failures,
                    attempt.next_at,
                    attempt.last_error,
                ),
            )

    def retry_states(self, eval_config: EvalConfig) -> dict[SubmissionKey, RetryState]:
        """Failed tries of submissions that have no verdict yet."""
        rows = self.rows(
            "SELECT hotkey, entry, remote_failures, host_failures, next_at, last_error FROM attempts"
            " WHERE contest_id = ?",
            eval_config.id,
        )
        return {SubmissionKey(row["hotkey"], row["entry"]): RetryState(*tuple(row)[2:]) for row in rows}

    def round_receipts(self, eval_config: EvalConfig, round_id: int) -> dict[SubmissionKey, str]:
        """The receipts that belong to the round; those of its entries that belong to none yet are given to it first.

        So a score that outlives its round is in the next one's, unless what it was of stands there no more.
        """
        with self.atomic() as db:
            db.execute(
                "UPDATE receipts SET round_id = :round WHERE round_id IS NULL AND contest_id = :contest AND EXISTS"
                " (SELECT 1 FROM round_members AS member WHERE member.round_id = :round"
                " AND member.hotkey = receipts.hotkey AND member.entry = receipts.entry)",
                {"round": round_id, "contest": eval_config.id},
            )
        rows = self.rows("SELECT hotkey, entry, receipt FROM receipts WHERE round_id = ?", round_id)
        return {SubmissionKey(row["hotkey"], row["entry"]): row["receipt"] for row in rows}

    def unpublished_receipts(self, eval_config: EvalConfig) -> set[SubmissionKey]:
        """What has a receipt that belongs to no round yet."""
        rows = self.rows("SELECT hotkey, entry FROM receipts WHERE contest_id = ? AND round_id IS NULL", eval_config.id)
        return {SubmissionKey(row["hotkey"], row["entry"]) for row in rows}

    def prune_submissions(self, *, keep: Collection[SubmissionKey], before_block: int) -> None:
        """Forgets commitments of before that block, but those in `keep`, and openings, but their hotkeys' newest."""
        seen = self.rows("SELECT hotkey, entry FROM submissions WHERE block < ?", before_block)
        gone = [tuple(row) for row in seen if SubmissionKey(*row) not in keep]
        hotkeys = {key.hotkey for key in keep}
        old = self.rows("SELECT hotkey, reveal_block FROM openings WHERE reveal_block < ?", before_block)
        newest = {row["hotkey"]: row["reveal_block"] for row in sorted(old, key=lambda row: int(row["reveal_block"]))}
        with self.atomic() as db:
            db.executemany("DELETE FROM submissions WHERE hotkey = ? AND entry = ?", gone)
            db.executemany(
                "DELETE FROM openings WHERE hotkey = ? AND reveal_block = ?",
                [tuple(row) for row in old if row["hotkey"] not in hotkeys or row[1] != newest[row["hotkey"]]],
            )

    def prune_results(self, *, keep: Collection[SubmissionKey], datasets_before: float, receipts_before: float) -> None:
        """Frees what is large of submissions that are not in `keep`: row keys and receipts older than these times.

        Row keys also when the newest MAX_DATASETS are newer. Verdicts stay, so that nothing is ever judged twice; tries
        that led to none go with the row keys.
        """
        columns = "contest_id, hotkey, entry"
        datasets = self.rows(f"SELECT {columns} FROM datasets WHERE checked_at < ?", datasets_before)
        datasets += self.rows(
            f"SELECT {columns} FROM datasets ORDER BY checked_at DESC, {columns} LIMIT -1 OFFSET ?", MAX_DATASETS
        )
        receipts = self.rows(
            "SELECT contest_id, hotkey, entry FROM receipts JOIN verdicts USING (contest_id, hotkey, entry)"
            " WHERE decided_at < ?",
            receipts_before,
        )
        attempts = self.rows("SELECT contest_id, hotkey, entry FROM attempts WHERE next_at < ?", datasets_before)
        with self.atomic() as db:
            for table, old in (("datasets", datasets), ("receipts", receipts), ("attempts", attempts)):
                db.executemany(
                    f"DELETE FROM {table} WHERE contest_id = ? AND hotkey = ? AND entry = ?",
                    [tuple(row) for row in old if SubmissionKey(row["hotkey"], row["entry"]) not in keep],
                )
        for known in self._known_verdicts.values():
            known.forget()


def _read_verdict(row: sqlite3.Row) -> Verdict:
    reason = None if row["reason"] is None else Reason(row["reason"])
    return Verdict(reason=reason, message=row["message"], loss=row["loss"], seconds=row["seconds"])
