"""State of rounds: entries, leaderboards, weights and the heartbeat."""

import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from template.errors import Reason
from template.records import (
    Entry,
    EvalConfig,
    LeaderboardRow,
    Metrics,
    Round,
    RunningEvaluation,
    SubmissionKey,
    WeightIntent,
    WeightOutcome,
)
from template.rules.entries import parse_entry
from template.store.database import StateFile, placeholders

_ROUND_COLUMNS = (
    "start_block", "start_block_hash", "opened_block", "end_block", "lucky_num", "lucky_num_from", "seed_period",
)  # fmt: skip
_MEMBER_COLUMNS = ("uid", "rank_block", "registration_block", "lucky_num", "seed_block")
_SELECT_ROUNDS = (
    "SELECT *, (SELECT json_extract(competition, '$.id') FROM contests WHERE id = contest_id) AS competition_id"
    " FROM rounds"
)


class RoundTables(StateFile):
    """The tables that are keyed by round."""

    _last_read: Round | None = None

    def begin_round(self, eval_config: EvalConfig, opened: Round, now: float) -> Round:
        """Record a round before any work on it and return it with its id."""
        turns = {key: turn for turn, key in enumerate(opened.queue)}
        values = [getattr(opened, column) for column in _ROUND_COLUMNS]
        with self.atomic() as db:
            cursor = db.execute(
                f"INSERT INTO rounds (contest_id, started_at, {', '.join(_ROUND_COLUMNS)}) VALUES ({placeholders(9)})",
                (eval_config.id, now, *values),
            )
            db.executemany(
                f"INSERT INTO round_members VALUES ({placeholders(10)})",
                [
                    (
                        cursor.lastrowid, *entry.key, entry.uid, entry.reveal_block, entry.rank_block,
                        entry.registration_block, entry.lucky_num, entry.seed_block, turns.get(entry.key),
                    )
                    for entry in opened.entries
                ],
            )  # fmt: skip
        self._last_read = dataclasses.replace(opened, id=int(cursor.lastrowid or 0))
        return self._last_read

    def open_round(self, eval_config: EvalConfig) -> Round | None:
        """Return the round that is not closed, None between rounds."""
        rows = self.rows(f"{_SELECT_ROUNDS} WHERE contest_id = ? AND closed_at IS NULL ORDER BY id", eval_config.id)
        return self._read_round(rows[-1]) if rows else None

    def last_round(self, *, with_leaderboard: bool = False) -> Round | None:
        """Return the newest round, or the newest with a leaderboard, of any config."""
        where = "WHERE id IN (SELECT round_id FROM standings)" if with_leaderboard else ""
        rows = self.rows(f"{_SELECT_ROUNDS} {where} ORDER BY id DESC LIMIT 1")
        return self._read_round(rows[0]) if rows else None

    def last_round_id(self) -> int | None:
        """Return the id of the newest round of any config, None before the first."""
        (row,) = self.rows("SELECT max(id) AS id FROM rounds")
        return None if row["id"] is None else int(row["id"])

    def last_model(self) -> str | None:
        """Return the model of the newest round, None before the first."""
        rows = self.rows(
            "SELECT model FROM rounds JOIN contests ON contests.id = contest_id ORDER BY rounds.id DESC LIMIT 1"
        )
        return rows[0]["model"] if rows else None

    def last_start_block(self, eval_config: EvalConfig) -> int | None:
        """Return the start block of the config's newest round, None before the first."""
        (row,) = self.rows("SELECT max(start_block) AS block FROM rounds WHERE contest_id = ?", eval_config.id)
        return None if row["block"] is None else int(row["block"])

    def close_round(self, round_id: int, now: float) -> None:
        """Mark the round as closed."""
        with self.atomic() as db:
            db.execute("UPDATE rounds SET closed_at = ? WHERE id = ? AND closed_at IS NULL", (now, round_id))

    def _read_round(self, row: sqlite3.Row) -> Round:
        """Return the round of a row. Rounds never change, so the last is cached."""
        if self._last_read is None or self._last_read.id != row["id"]:
            members = self.rows("SELECT * FROM round_members WHERE round_id = ? ORDER BY uid", row["id"])
            queued = sorted((member for member in members if member["turn"] is not None), key=lambda row: row["turn"])
            self._last_read = Round(
                id=row["id"],
                entries=tuple(_parse_member(member, row["competition_id"]) for member in members),
                queue=tuple(SubmissionKey(member["hotkey"], member["entry"]) for member in queued),
                **{column: row[column] for column in _ROUND_COLUMNS},
            )
        return self._last_read

    def record_intent(
        self,
        round_id: int,
        *,
        block: int,
        weights: Mapping[int, float],
        shares: Mapping[str, float],
        registrations: Mapping[str, int],
        leaderboard: Sequence[LeaderboardRow] | None,
        now: float,
    ) -> int:
        """Record weights before their submission and return the intent's id.

        A crash in between leaves a pending intent. leaderboard None: the shares of an earlier round are submitted
        again. The rest is as in `WeightIntent`; registrations of hotkeys without a share are dropped.
        """
        registrations = {hotkey: block for hotkey, block in registrations.items() if hotkey in shares}
        with self.atomic() as db:
            cursor = db.execute(
                "INSERT INTO weight_intents (round_id, block, weights, shares, registrations, is_repeat, created_at)"
                f" VALUES ({placeholders(7)})",
                (
                    round_id, block, json.dumps(dict(weights)), json.dumps(dict(shares)), json.dumps(registrations),
                    leaderboard is None, now,
                ),
            )  # fmt: skip
            if leaderboard is not None:
                _write_leaderboard(db, round_id, leaderboard)
        return int(cursor.lastrowid or 0)

    def record_outcome(self, intent_id: int, outcome: WeightOutcome, now: float) -> None:
        """Record the outcome of an intent."""
        with self.atomic() as db:
            db.execute(
                "UPDATE weight_intents SET outcome = ?, finished_at = ? WHERE id = ?",
                (json.dumps(vars(outcome)), now, intent_id),
            )

    def intents(self, round_id: int) -> list[WeightIntent]:
        """Return the round's weight submissions, oldest first."""
        return self._intents("WHERE round_id = ? ORDER BY id", round_id)

    def pending_intents(self) -> list[WeightIntent]:
        """Return the weight submissions of any round without an outcome, oldest first."""
        return self._intents("WHERE outcome IS NULL ORDER BY id")

    def last_accepted(self, eval_config: EvalConfig | None = None) -> WeightIntent | None:
        """Return the newest accepted weights, of any config or of one."""
        where = "WHERE json_extract(outcome, '$.is_accepted')"
        values: tuple[int, ...] = ()
        if eval_config is not None:
            where += " AND round_id IN (SELECT id FROM rounds WHERE contest_id = ?)"
            values = (eval_config.id,)
        return next(iter(self._intents(f"{where} ORDER BY id DESC LIMIT 1", *values)), None)

    def latest_seeds(
        self, eval_config: EvalConfig, keys: Iterable[SubmissionKey]
    ) -> dict[SubmissionKey, tuple[int, int | None]]:
        """Return the newest lucky_num and seed_block of each submission."""
        query = (
            "SELECT member.lucky_num, member.seed_block FROM round_members AS member JOIN rounds ON id = round_id"
            " WHERE contest_id = ? AND hotkey = ? AND entry = ? AND member.lucky_num IS NOT NULL"
            " ORDER BY round_id DESC LIMIT 1"
        )
        return {key: tuple(row) for key in keys for row in self.rows(query, eval_config.id, *key)}

    def _intents(self, where: str, *values: object) -> list[WeightIntent]:
        columns = "id, block, weights, shares, registrations, created_at, outcome, finished_at, is_repeat"
        return [_parse_intent(*row) for row in self.rows(f"SELECT {columns} FROM weight_intents {where}", *values)]

    def record_leaderboard(self, round_id: int, leaderboard: Sequence[LeaderboardRow]) -> None:
        """Record the round's leaderboard in place of an earlier one."""
        with self.atomic() as db:
            _write_leaderboard(db, round_id, leaderboard)

    def leaderboard(self, round_id: int) -> list[LeaderboardRow]:
        """Return the round's leaderboard, best first."""
        rows = self.rows(
            "SELECT hotkey, entry, reason, uid, message, loss, score, weight FROM standings WHERE round_id = ?"
            " ORDER BY weight DESC, score DESC, loss IS NULL, loss, uid",
            round_id,
        )
        return [
            LeaderboardRow(
                key=SubmissionKey(hotkey, text),
                reason=None if reason is None else Reason(reason),
                **dict(zip(("uid", "message", "loss", "score", "weight"), values, strict=True)),
            )
            for hotkey, text, reason, *values in rows
        ]

    def has_leaderboard(self, round_id: int) -> bool:
        """True once the round's leaderboard is recorded."""
        return bool(self.rows("SELECT 1 FROM standings WHERE round_id = ? LIMIT 1", round_id))

    def prune_rounds(self, *, before: float) -> None:
        """Delete entries, leaderboards and weights of rounds closed before then.

        The last weights that the chain accepted stay, because they may be submitted again.
        """
        self._last_read = None
        last = self.last_accepted()
        values = {"before": before, "last": last.id if last else 0}
        old = "round_id IN (SELECT id FROM rounds WHERE closed_at < :before)"
        with self.atomic() as db:
            for table in ("round_members", "standings"):
                db.execute(f"DELETE FROM {table} WHERE {old}", {"before": before})
            db.execute(
                "UPDATE weight_intents SET weights = '{}', shares = '{}', registrations = '{}'"
                f" WHERE {old} AND id <> :last",
                values,
            )

    def record_heartbeat(self, metrics: Metrics, now: float) -> None:
        """Replace the heartbeat that `status` reads."""
        content = json.dumps(dataclasses.asdict(metrics))
        with self.atomic() as db:
            db.execute("INSERT OR REPLACE INTO activity VALUES (1, ?, ?)", (content, now))

    def heartbeat(self) -> Metrics | None:
        """Return the last heartbeat, None before the first."""
        for row in self.rows("SELECT content FROM activity"):
            content = json.loads(row["content"])
            running = [RunningEvaluation(**{**job, "key": SubmissionKey(*job["key"])}) for job in content["running"]]
            return Metrics(**{**content, "running": tuple(running)})
        return None


def _parse_member(row: sqlite3.Row, competition_id: str) -> Entry:
    return parse_entry(
        SubmissionKey(row["hotkey"], row["entry"]),
        competition_id,
        reveal_block=row["block"],
        **{column: row[column] for column in _MEMBER_COLUMNS},
    )


@lru_cache(maxsize=4)
def _parse_intent(
    intent_id: int, block: int, weights: str, shares: str, registrations: str, created_at: float,
    outcome: str | None, finished_at: float | None, is_repeat: int,
) -> WeightIntent:  # fmt: skip
    """Parse a row of weight_intents; cached, since every tick reads the newest."""
    return WeightIntent(
        id=intent_id,
        block=block,
        weights={int(uid): weight for uid, weight in json.loads(weights).items()},
        shares=json.loads(shares),
        registrations=json.loads(registrations),
        created_at=created_at,
        outcome=None if outcome is None else WeightOutcome(**json.loads(outcome)),
        finished_at=finished_at,
        is_repeat=bool(is_repeat),
    )


def _write_leaderboard(db: sqlite3.Connection, round_id: int, leaderboard: Sequence[LeaderboardRow]) -> None:
    db.execute("DELETE FROM standings WHERE round_id = ?", (round_id,))
    db.executemany(
        f"INSERT INTO standings VALUES ({placeholders(9)})",
        [
            (
                round_id, *row.key, row.uid, None if row.reason is None else str(row.reason), row.message, row.loss,
                row.score, row.weight,
            )
            for row in leaderboard
        ],
    )  # fmt: skip
