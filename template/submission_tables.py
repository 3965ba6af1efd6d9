"""What the state file knows of contests and submissions: commitments seen, seals, datasets, verdicts, receipts, tries.

Times are POSIX seconds in UTC; blocks are chain blocks. A submission is keyed by hotkey and by `entry`, the text
committed on chain: the same commit under another repository or competition is another submission.
"""

import json
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence

from template.competition import Competition
from template.errors import Reason
from template.state import Attempt, Contest, Submission, SubmissionKey, Verdict
from template.state_file import StateFile


class SubmissionTables(StateFile):
    """The tables that are keyed by submission."""

    def open_contest(self, competition: Competition, hyperparameters_digest: str, model: str, now: float) -> Contest:
        """The contest with exactly these inputs, recorded at its first use; verdicts belong to one contest."""
        digest = Contest.make_digest(competition.digest, hyperparameters_digest, model)
        with self.atomic() as db:
            db.execute(
                "INSERT OR IGNORE INTO contests (digest, competition, hyperparameters_digest, model, created_at)"
                " VALUES (?, ?, ?, ?, ?)",
                (digest, json.dumps(competition.to_dict()), hyperparameters_digest, model, now),
            )
        (row,) = self.rows("SELECT id FROM contests WHERE digest = ?", digest)
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
        rows = self.rows("SELECT hotkey, entry, first_block, block FROM submissions")
        return {SubmissionKey(row["hotkey"], row["entry"]): Submission(**dict(row)) for row in rows}

    def see_seals(self, seen: Mapping[str, tuple[int, int]]) -> None:
        """Records sealed commitments, {hotkey: (block, reveal round)}: once open, the chain forgets the block."""
        with self.atomic() as db:
            db.executemany(
                "INSERT OR IGNORE INTO seals VALUES (?, ?, ?)", [(hotkey, *seal) for hotkey, seal in seen.items()]
            )

    def seals(self) -> dict[str, tuple[int, ...]]:
        """The blocks of every sealed commitment ever seen, earliest first, by hotkey."""
        found: dict[str, tuple[int, ...]] = {}
        for row in self.rows("SELECT hotkey, block FROM seals ORDER BY block"):
            found[row["hotkey"]] = (*found.get(row["hotkey"], ()), row["block"])
        return found

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
        rows = self.rows("SELECT hotkey, entry, row_keys FROM datasets WHERE contest_id = ?", contest.id)
        return {
            SubmissionKey(row["hotkey"], row["entry"]): tuple(
                row["row_keys"][at : at + key_bytes] for at in range(0, len(row["row_keys"]), key_bytes)
            )
            for row in rows
        }

    def dataset_keys(self, contest: Contest) -> set[SubmissionKey]:
        """Every dataset whose row keys are kept."""
        rows = self.rows("SELECT hotkey, entry FROM datasets WHERE contest_id = ?", contest.id)
        return {SubmissionKey(row["hotkey"], row["entry"]) for row in rows}

    def record_verdict(self, contest: Contest, key: SubmissionKey, verdict: Verdict, now: float) -> None:
        """A refusal, or a loss with its receipt, in one transaction. A verdict is given once and never changed."""
        reason = None if verdict.reason is None else str(verdict.reason)
        with self.atomic() as db:
            db.execute(
                "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (contest.id, *key, reason, verdict.message, verdict.loss, verdict.seconds, now),
            )
            if verdict.receipt is not None:
                db.execute(
                    "INSERT INTO receipts (contest_id, hotkey, entry, receipt) VALUES (?, ?, ?, ?)",
                    (contest.id, *key, verdict.receipt),
                )
            db.execute("DELETE FROM attempts WHERE contest_id = ? AND hotkey = ? AND entry = ?", (contest.id, *key))

    def verdicts(self, contest: Contest) -> dict[SubmissionKey, Verdict]:
        """Every verdict of the contest, without the receipts."""
        rows = self.rows(
            "SELECT hotkey, entry, reason, message, loss, seconds FROM verdicts WHERE contest_id = ?", contest.id
        )
        return {SubmissionKey(row["hotkey"], row["entry"]): _read_verdict(row) for row in rows}

    def forget_refusals(
        self,
        contest: Contest,
        reasons: Sequence[Reason],
        *,
        before: float,
        is_final: Callable[[SubmissionKey], bool] = lambda key: False,
    ) -> None:
        """Takes back the refusals for these reasons that are older than the time `before`, but the final ones."""
        marks = ", ".join("?" * len(reasons))
        found = self.rows(
            f"SELECT hotkey, entry FROM verdicts WHERE contest_id = ? AND decided_at < ? AND reason IN ({marks})",
            contest.id, before, *map(str, reasons),
        )  # fmt: skip
        keys = [key for key in (SubmissionKey(*row) for row in found) if not is_final(key)]
        if keys:
            with self.atomic() as db:
                db.executemany(
                    "DELETE FROM verdicts WHERE contest_id = ? AND hotkey = ? AND entry = ?",
                    [(contest.id, *key) for key in keys],
                )

    def receipt(self, contest: Contest, key: SubmissionKey) -> str | None:
        """The receipt of a scored submission, None when it was not scored."""
        rows = self.rows(
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
        rows = self.rows(
            "SELECT hotkey, entry, remote_failures, host_failures, next_at, last_error FROM attempts"
            " WHERE contest_id = ?",
            contest.id,
        )
        return {SubmissionKey(row["hotkey"], row["entry"]): Attempt(*tuple(row)[2:]) for row in rows}

    def round_receipts(self, contest: Contest, round_id: int) -> dict[SubmissionKey, str]:
        """The receipts that belong to the round; those of its entries that belong to none yet are given to it first.

        So a score that outlives its round is in the next one's, unless what it was of stands there no more.
        """
        with self.atomic() as db:
            db.execute(
                "UPDATE receipts SET round_id = :round WHERE round_id IS NULL AND contest_id = :contest AND EXISTS"
                " (SELECT 1 FROM round_members AS member WHERE member.round_id = :round"
                " AND member.hotkey = receipts.hotkey AND member.entry = receipts.entry)",
                {"round": round_id, "contest": contest.id},
            )
        rows = self.rows("SELECT hotkey, entry, receipt FROM receipts WHERE round_id = ?", round_id)
        return {SubmissionKey(row["hotkey"], row["entry"]): row["receipt"] for row in rows}

    def unpublished(self, contest: Contest) -> set[SubmissionKey]:
        """What has a receipt that belongs to no round yet."""
        rows = self.rows("SELECT hotkey, entry FROM receipts WHERE contest_id = ? AND round_id IS NULL", contest.id)
        return {SubmissionKey(row["hotkey"], row["entry"]) for row in rows}

    def prune_submissions(
        self, *, keep: Collection[SubmissionKey], datasets_before: float, receipts_before: float
    ) -> None:
        """Frees what is large of submissions that are not in `keep`: row keys and receipts older than these times.

        Verdicts stay, so that nothing is ever judged twice; tries that led to none go with the row keys.
        """
        datasets = self.rows("SELECT contest_id, hotkey, entry FROM datasets WHERE checked_at < ?", datasets_before)
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


def _read_verdict(row: sqlite3.Row) -> Verdict:
    reason = None if row["reason"] is None else Reason(row["reason"])
    return Verdict(reason=reason, message=row["message"], loss=row["loss"], seconds=row["seconds"])
