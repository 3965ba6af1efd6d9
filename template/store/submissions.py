"""State of submissions: commitments, datasets, verdicts, receipts, retries.

Times are POSIX seconds. The column `entry` holds the text of a commitment: the same commit under another repository or
competition is another submission.
"""

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from template.competition import Competition
from template.errors import Reason
from template.files import OutputFile
from template.records import (
    Absence,
    Confirmed,
    ContentKey,
    Dataset,
    EvalConfig,
    EvaluationResult,
    Rank,
    RetryState,
    RoundEvaluation,
    Stand,
    SubmissionKey,
    Verdict,
)
from template.store.database import StateFile, placeholders
from template.store.outbox import insert_output

# Newest datasets whose row keys are kept although nothing needs them. Older ones are downloaded again when needed.
MAX_DATASETS = 8192

_OF_SUBMISSION = "contest_id = ? AND hotkey = ? AND entry = ?"


class SubmissionTables(StateFile):
    """The tables that are keyed by submission."""

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        super().__init__(path, is_read_only=is_read_only)
        self.is_read_only = is_read_only
        self._verdicts: dict[int, dict[SubmissionKey, Verdict]] = {}

    def get_or_create_config(
        self, competition: Competition, hyperparameters_digest: str, model: str, now: float
    ) -> EvalConfig:
        """Return the config with exactly these inputs; record a new one."""
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

    def record_stands(self, stands: Iterable[Stand]) -> None:
        """Record stands; one with the same first block is replaced."""
        with self.atomic() as db:
            _insert_stands(db, stands)

    def replace_stands(self, hotkey: str, stands: Iterable[Stand]) -> None:
        """Record these stands in place of all that the hotkey has."""
        with self.atomic() as db:
            db.execute("DELETE FROM stands WHERE hotkey = ?", (hotkey,))
            _insert_stands(db, stands)

    def stands(self) -> dict[str, list[Stand]]:
        """Return the stands of each hotkey, oldest first."""
        stands: dict[str, list[Stand]] = {}
        for hotkey, text, first, last, commit, registration, missing, reveal in self.rows(
            "SELECT hotkey, entry, first_block, last_block, commit_block, registration_block, missing_block,"
            " reveal_block FROM stands ORDER BY first_block"
        ):
            stand = Stand(
                key=SubmissionKey(hotkey, text),
                first_block=first,
                last_block=last,
                commit_block=commit,
                reveal_block=reveal,
                registration_block=registration,
                missing_block=missing,
            )
            stands.setdefault(hotkey, []).append(stand)
        return stands

    def record_missing_file(self, key: SubmissionKey, block: int) -> None:
        """Record that a commitment's file was missing before it was first read.

        block: aligned block of the round.
        """
        with self.atomic() as db:
            db.execute(
                "UPDATE stands SET missing_block = max(missing_block, ?)"
                " WHERE hotkey = ? AND entry = ? AND first_block <= ? AND last_block >= ?",
                (block, *key, block, block),
            )

    def absences(self) -> dict[SubmissionKey, Absence]:
        """Return the datasets whose file was missing at its last lookup."""
        return {
            SubmissionKey(hotkey, text): Absence(first_block=first, last_block=last, rounds=rounds)
            for hotkey, text, first, last, rounds in self.rows(
                "SELECT hotkey, entry, first_block, last_block, rounds FROM absences"
            )
        }

    def record_availability(
        self, *, returned: Iterable[SubmissionKey], missing: Mapping[SubmissionKey, Absence], stands: Iterable[Stand]
    ) -> None:
        """Record a round's lookups of files, and the stands that they ended or began."""
        with self.atomic() as db:
            db.executemany("DELETE FROM absences WHERE hotkey = ? AND entry = ?", returned)
            db.executemany(
                f"INSERT OR REPLACE INTO absences VALUES ({placeholders(5)})",
                [(*key, absence.first_block, absence.last_block, absence.rounds) for key, absence in missing.items()],
            )
            _insert_stands(db, stands)

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
        self, competition: Competition, key: SubmissionKey, *, sha256: str, dataset: Dataset, now: float
    ) -> None:
        """Record a dataset that passed its checks."""
        with self.atomic() as db:
            db.execute(
                f"INSERT OR REPLACE INTO contents VALUES ({placeholders(7)})",
                (competition.digest, *key, sha256, dataset.digest, b"".join(dataset.row_keys), now),
            )
            db.execute("DELETE FROM attempts WHERE hotkey = ? AND entry = ?", key)

    def datasets(
        self, competition: Competition, key_bytes: int, dedup: Callable[[Iterable[bytes]], tuple[bytes, ...]] = tuple
    ) -> dict[SubmissionKey, Dataset]:
        """Return every dataset of the competition.

        dedup: returns equal keys, as objects that other datasets share.
        """
        query = "SELECT digest, row_keys FROM contents WHERE competition = ? AND hotkey = ? AND entry = ?"
        datasets = {}
        for key in sorted(self.dataset_keys(competition)):
            for digest, blob in self.rows(query, competition.digest, *key):
                datasets[key] = Dataset(digest=digest, row_keys=dedup(_split_keys(blob, key_bytes)))
        return datasets

    def dataset_keys(self, competition: Competition) -> set[SubmissionKey]:
        """Return the submissions whose rows are recorded."""
        return self._keys("contents WHERE competition = ?", competition.digest)

    def record_rejection(self, eval_config: EvalConfig, key: SubmissionKey, verdict: Verdict, now: float) -> None:
        """Record a final rejection."""
        with self.atomic() as db:
            db.execute(
                f"INSERT INTO verdicts VALUES ({placeholders(8)})",
                (eval_config.id, *key, str(verdict.reason), verdict.message, None, None, now),
            )
            db.execute(f"DELETE FROM attempts WHERE {_OF_SUBMISSION}", (eval_config.id, *key))
        self._verdicts.pop(eval_config.id, None)

    def record_evaluation(
        self,
        eval_config: EvalConfig,
        evaluation: RoundEvaluation,
        result: EvaluationResult,
        now: float,
        *,
        receipt_file: OutputFile | None = None,
    ) -> None:
        """Record a loss with its receipt, and the file to write, in one transaction."""
        with self.atomic() as db:
            db.execute(
                f"INSERT INTO evaluations VALUES ({placeholders(12)})",
                (
                    eval_config.id, *evaluation.content, evaluation.number, evaluation.key.commitment,
                    evaluation.lucky_num, evaluation.seed_block, result.loss, result.seconds, result.receipt,
                    result.receipt_digest, now,
                ),
            )  # fmt: skip
            db.execute(f"DELETE FROM attempts WHERE {_OF_SUBMISSION}", (eval_config.id, *evaluation.key))
            if receipt_file is not None:
                db.execute(*insert_output("--receipt_dir", receipt_file, now))

    def losses(self, eval_config: EvalConfig) -> dict[ContentKey, list[float]]:
        """Return the losses of each dataset, by number of the evaluation."""
        losses: dict[ContentKey, list[float]] = {}
        for hotkey, digest, loss in self.rows(
            "SELECT hotkey, digest, loss FROM evaluations WHERE contest_id = ? ORDER BY hotkey, digest, number",
            eval_config.id,
        ):
            losses.setdefault(ContentKey(hotkey, digest), []).append(loss)
        return losses

    def results(self, eval_config: EvalConfig, key: ContentKey) -> dict[int, EvaluationResult]:
        """Return a dataset's recorded evaluations by number."""
        rows = self.rows(
            "SELECT number, loss, seconds, receipt, receipt_digest FROM evaluations"
            " WHERE contest_id = ? AND hotkey = ? AND digest = ?",
            eval_config.id,
            *key,
        )
        return {
            number: EvaluationResult(loss=loss, seconds=seconds, receipt=receipt, receipt_digest=digest)
            for number, loss, seconds, receipt, digest in rows
        }

    def record_confirmed(self, eval_config: EvalConfig, confirmed: Mapping[ContentKey, Confirmed], now: float) -> None:
        """Record datasets that entered the ledger; the first record of each stays."""
        with self.atomic() as db:
            db.executemany(
                f"INSERT OR IGNORE INTO ledger VALUES ({placeholders(11)})",
                [
                    (
                        eval_config.id, *key, *past.rank, past.registration_block, b"".join(past.row_keys), now,
                        *(past.public or past.rank)[:2],
                    )
                    for key, past in confirmed.items()
                ],
            )  # fmt: skip

    def confirmed(self, eval_config: EvalConfig, key_bytes: int) -> dict[ContentKey, Confirmed]:
        """Return the datasets of the ledger."""
        return {
            ContentKey(row["hotkey"], row["digest"]): Confirmed(
                rank=Rank(row["rank_block"], row["commit_block"], row["tie_break"]),
                registration_block=row["registration_block"],
                row_keys=_split_keys(row["row_keys"], key_bytes),
                public=Rank(row["public_block"], row["public_commit_block"], row["tie_break"]),
            )
            for row in self.rows("SELECT * FROM ledger WHERE contest_id = ?", eval_config.id)
        }

    def verdicts(self, eval_config: EvalConfig) -> Mapping[SubmissionKey, Verdict]:
        """Return every rejection of the config."""
        if eval_config.id not in self._verdicts:
            self._verdicts[eval_config.id] = {
                SubmissionKey(hotkey, text): Verdict(reason=Reason(reason), message=message)
                for hotkey, text, reason, message in self.rows(
                    "SELECT hotkey, entry, reason, message FROM verdicts WHERE contest_id = ? AND reason IS NOT NULL",
                    eval_config.id,
                )
            }
        return self._verdicts[eval_config.id]

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
            self._verdicts.clear()

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

    def prune_submissions(self, *, keep: Collection[str], before_block: int) -> None:
        """Delete old stands and commit blocks of hotkeys that are not in `keep`.

        The newest commit block of each hotkey in `keep` stays.
        """
        reveals = self.rows("SELECT hotkey, reveal_block FROM openings WHERE reveal_block < ?", before_block)
        newest = {hotkey: block for hotkey, block in sorted(map(tuple, reveals)) if hotkey in keep}
        hotkeys = [row["hotkey"] for row in self.rows("SELECT DISTINCT hotkey FROM stands")]
        with self.atomic() as db:
            db.executemany(
                "DELETE FROM stands WHERE hotkey = ? AND last_block < ?",
                [(hotkey, before_block) for hotkey in hotkeys if hotkey not in keep],
            )
            db.executemany(
                "DELETE FROM openings WHERE hotkey = ? AND reveal_block = ?",
                [(hotkey, block) for hotkey, block in reveals if newest.get(hotkey) != block],
            )

    def prune_results(self, *, keep: Collection[SubmissionKey], datasets_before: float, receipts_before: float) -> None:
        """Delete old rows, retries, absences, rejections and receipts.

        Commitments in `keep` lose only receipts. Rows beyond the newest MAX_DATASETS go too. Losses stay, so that no
        evaluation runs twice.
        """
        columns = "competition, hotkey, entry"
        datasets = self.rows(f"SELECT {columns} FROM contents WHERE checked_at < ?", datasets_before)
        datasets += self.rows(
            f"SELECT {columns} FROM contents ORDER BY checked_at DESC, {columns} LIMIT -1 OFFSET ?", MAX_DATASETS
        )
        retries = self.rows("SELECT contest_id, hotkey, entry FROM attempts WHERE next_at < ?", datasets_before)
        rejections = self.rows("SELECT contest_id, hotkey, entry FROM verdicts WHERE decided_at < ?", receipts_before)
        absences = self.rows("SELECT hotkey, entry FROM absences")
        with self.atomic() as db:
            for table, where, rows in (
                ("contents", "competition = ? AND hotkey = ? AND entry = ?", datasets),
                ("attempts", _OF_SUBMISSION, retries),
                ("verdicts", _OF_SUBMISSION, rejections),
                ("absences", "hotkey = ? AND entry = ?", absences),
            ):
                db.executemany(
                    f"DELETE FROM {table} WHERE {where}",
                    [tuple(row) for row in rows if SubmissionKey(row["hotkey"], row["entry"]) not in keep],
                )
            db.execute(
                "UPDATE evaluations SET receipt = '' WHERE finished_at < ? AND receipt <> ''", (receipts_before,)
            )
        if rejections:
            self._verdicts.clear()

    def _keys(self, table_where: str, *values: object) -> set[SubmissionKey]:
        return {SubmissionKey(*row) for row in self.rows(f"SELECT hotkey, entry FROM {table_where}", *values)}


def _split_keys(blob: bytes, key_bytes: int) -> tuple[bytes, ...]:
    return tuple(blob[start : start + key_bytes] for start in range(0, len(blob), key_bytes))


def _insert_stands(db: sqlite3.Connection, stands: Iterable[Stand]) -> None:
    db.executemany(
        f"INSERT OR REPLACE INTO stands VALUES ({placeholders(8)})",
        [
            (
                *stand.key, stand.first_block, stand.last_block, stand.commit_block, stand.registration_block,
                stand.missing_block, stand.reveal_block,
            )
            for stand in stands
        ],
    )  # fmt: skip
