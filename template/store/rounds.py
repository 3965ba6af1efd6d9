"""What the state file knows of rounds, their tables and their weights, and of what the validator is doing."""

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
from template.store.database import StateFile

_ROUNDS = (
    "SELECT *, (SELECT json_extract(competition, '$.id') FROM contests WHERE id = contest_id) AS competition_id"
    " FROM rounds"
)


class RoundTables(StateFile):
    """The tables that are keyed by round."""

    _last_read: Round | None = None

    def begin_round(self, eval_config: EvalConfig, opened: Round, now: float) -> Round:
        """Fixes a round's blocks, seeds, entries and queue before any work on it; returns it with its id."""
        turns = {key: turn for turn, key in enumerate(opened.queue)}
        with self.atomic() as db:
            cursor = db.execute(
                "INSERT INTO rounds (contest_id, start_block, start_block_hash, opened_block, end_block, lucky_num,"
                " lucky_num_from, seed_period, started_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    eval_config.id, opened.start_block, opened.start_block_hash, opened.opened_block, opened.end_block,
                    opened.lucky_num, opened.lucky_num_from, opened.seed_period, now,
                ),
            )  # fmt: skip
            db.executemany(
                "INSERT INTO round_members VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        cursor.lastrowid, *one.key, one.uid, one.reveal_block, one.rank_block, one.registration_block,
                        one.lucky_num, one.seed_block, turns.get(one.key),
                    )
                    for one in opened.entries
                ],
            )  # fmt: skip
        self._last_read = dataclasses.replace(opened, id=int(cursor.lastrowid or 0))
        return self._last_read

    def open_round(self, eval_config: EvalConfig) -> Round | None:
        """The round that is not closed, None between rounds."""
        rows = self.rows(f"{_ROUNDS} WHERE contest_id = ? AND closed_at IS NULL ORDER BY id", eval_config.id)
        return self._read_round(rows[-1]) if rows else None

    def last_round(self, *, with_leaderboard: bool = False) -> Round | None:
        """The newest round of any contest, closed or not; on request the newest that has a table."""
        where = "WHERE id IN (SELECT round_id FROM standings)" if with_leaderboard else ""
        rows = self.rows(f"{_ROUNDS} {where} ORDER BY id DESC LIMIT 1")
        return self._read_round(rows[0]) if rows else None

    def last_round_id(self) -> int | None:
        """The id of the newest round of any contest, None before the first."""
        (row,) = self.rows("SELECT max(id) AS id FROM rounds")
        return None if row["id"] is None else int(row["id"])

    def last_model(self) -> str | None:
        """The model of the newest round's contest, None before the first."""
        rows = self.rows(
            "SELECT model FROM rounds JOIN contests ON contests.id = contest_id ORDER BY rounds.id DESC LIMIT 1"
        )
        return rows[0]["model"] if rows else None

    def last_start_block(self, eval_config: EvalConfig) -> int | None:
        """Where the newest round of the contest started, None before the first."""
        (row,) = self.rows("SELECT max(start_block) AS block FROM rounds WHERE contest_id = ?", eval_config.id)
        return None if row["block"] is None else int(row["block"])

    def close_round(self, round_id: int, now: float) -> None:
        """Nothing more happens in this round."""
        with self.atomic() as db:
            db.execute("UPDATE rounds SET closed_at = ? WHERE id = ? AND closed_at IS NULL", (now, round_id))

    def _read_round(self, row: sqlite3.Row) -> Round:
        """The round of a row. It is fixed once it has begun, and asked for at every tick: the last one is kept."""
        if self._last_read is None or self._last_read.id != row["id"]:
            self._last_read = self._read_members(row)
        return self._last_read

    def _read_members(self, row: sqlite3.Row) -> Round:
        members = self.rows("SELECT * FROM round_members WHERE round_id = ? ORDER BY uid", row["id"])
        entries = tuple(entry_from_row(member, row["competition_id"]) for member in members)
        turns = sorted((member["turn"], at) for at, member in enumerate(members) if member["turn"] is not None)
        return Round(
            id=row["id"],
            start_block=row["start_block"],
            start_block_hash=row["start_block_hash"],
            opened_block=row["opened_block"],
            end_block=row["end_block"],
            lucky_num=row["lucky_num"],
            lucky_num_from=row["lucky_num_from"],
            seed_period=row["seed_period"],
            entries=entries,
            queue=tuple(entries[at].key for _, at in turns),
        )

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
        """Weights about to be submitted, {uid at `block`: share} and by hotkey, with the table they came from.

        leaderboard None: the shares are those of an earlier round, given again. Recorded before the chain is called, so
        that a crash in between leaves a trace. registrations: as in `WeightIntent`; of others than those with a share
        they are dropped. Returns the intent's id.
        """
        births = {hotkey: block for hotkey, block in registrations.items() if hotkey in shares}
        with self.atomic() as db:
            cursor = db.execute(
                "INSERT INTO weight_intents (round_id, block, weights, shares, registrations, is_repeat, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (round_id, block, *map(json.dumps, (dict(weights), dict(shares), births)), leaderboard is None, now),
            )
            if leaderboard is not None:
                _write_leaderboard(db, round_id, leaderboard)
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
        return [_read_intent(row) for row in self._intents("WHERE round_id = ? ORDER BY id", round_id)]

    def pending_intents(self) -> list[WeightIntent]:
        """Weight submissions of any round of which nobody knows what became, oldest first."""
        return [_read_intent(row) for row in self._intents("WHERE outcome IS NULL ORDER BY id")]

    def last_accepted(self, eval_config: EvalConfig | None = None) -> WeightIntent | None:
        """The newest weights that the chain took, of any round, or of any round of one contest."""
        where = "json_extract(outcome, '$.is_accepted')"
        values: tuple[int, ...] = ()
        if eval_config is not None:
            where, values = (
                f"{where} AND round_id IN (SELECT id FROM rounds WHERE contest_id = ?)",
                (eval_config.id,),
            )
        found = self._intents(f"WHERE {where} ORDER BY id DESC LIMIT 1", *values)
        return next((_read_intent(row) for row in found), None)

    def latest_seeds(
        self, eval_config: EvalConfig, keys: Iterable[SubmissionKey]
    ) -> dict[SubmissionKey, tuple[int, int | None]]:
        """Return lucky_num and seed_block of the newest entry with a seed, per submission."""
        seeds = {}
        for key in keys:
            rows = self.rows(
                "SELECT member.lucky_num, member.seed_block FROM round_members AS member"
                " JOIN rounds ON rounds.id = round_id"
                " WHERE contest_id = ? AND hotkey = ? AND entry = ? AND member.lucky_num IS NOT NULL"
                " ORDER BY round_id DESC LIMIT 1",
                eval_config.id, *key,
            )  # fmt: skip
            if rows:
                seeds[key] = (rows[0]["lucky_num"], rows[0]["seed_block"])
        return seeds

    def _intents(self, where: str, *values: object) -> list[sqlite3.Row]:
        columns = "id, block, weights, shares, registrations, created_at, outcome, finished_at, is_repeat"
        return self.rows(f"SELECT {columns} FROM weight_intents {where}", *values)

    def record_leaderboard(self, round_id: int, leaderboard: Sequence[LeaderboardRow]) -> None:
        """The round's table, in place of an earlier one."""
        with self.atomic() as db:
            _write_leaderboard(db, round_id, leaderboard)

    def leaderboard(self, round_id: int) -> list[LeaderboardRow]:
        """The round's table, best first."""
        rows = self.rows(
            "SELECT * FROM standings WHERE round_id = ? ORDER BY weight DESC, score DESC, loss IS NULL, loss, uid",
            round_id,
        )
        return [
            LeaderboardRow(
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

    def has_leaderboard(self, round_id: int) -> bool:
        """True once the round's table was made."""
        return bool(self.rows("SELECT 1 FROM standings WHERE round_id = ? LIMIT 1", round_id))

    def prune_rounds(self, *, before: float) -> None:
        """Removes the entries, tables and weights of rounds closed before the time `before`; what became of them stays.

        The last weights that the chain took are kept, however old: they may have to be given again.
        """
        self._last_read = None
        old = "(SELECT id FROM rounds WHERE closed_at < :before)"
        last = self.last_accepted()
        with self.atomic() as db:
            for table in ("round_members", "standings"):
                db.execute(f"DELETE FROM {table} WHERE round_id IN {old}", {"before": before})
            db.execute(
                "UPDATE weight_intents SET weights = '{}', shares = '{}', registrations = '{}'"
                f" WHERE round_id IN {old} AND id <> :last",
                {"before": before, "last": last.id if last else 0},
            )

    def record_heartbeat(self, metrics: Metrics, now: float) -> None:
        """What the validator is doing, for whoever looks from outside; replaces what was said before."""
        content = json.dumps(dataclasses.asdict(metrics))
        with self.atomic() as db:
            db.execute("INSERT OR REPLACE INTO activity VALUES (1, ?, ?)", (content, now))

    def heartbeat(self) -> Metrics | None:
        """What the validator last said it was doing, None before its first word."""
        rows = self.rows("SELECT content FROM activity")
        if not rows:
            return None
        content = json.loads(rows[0]["content"])
        running = [RunningEvaluation(**{**one, "key": SubmissionKey(*one["key"])}) for one in content["running"]]
        return Metrics(**{**content, "running": tuple(running)})


def entry_from_row(row: sqlite3.Row, competition_id: str) -> Entry:
    """Parse a row of round_members under the competition of its round."""
    return parse_entry(
        SubmissionKey(row["hotkey"], row["entry"]),
        competition_id,
        uid=row["uid"],
        reveal_block=row["block"],
        rank_block=row["rank_block"],
        registration_block=row["registration_block"],
        lucky_num=row["lucky_num"],
        seed_block=row["seed_block"],
    )


def _read_intent(row: sqlite3.Row) -> WeightIntent:
    return _parse_intent(**dict(row))


@lru_cache(maxsize=4)
def _parse_intent(
    *,
    id: int,
    block: int,
    weights: str,
    shares: str,
    registrations: str,
    created_at: float,
    outcome: str | None,
    finished_at: float | None,
    is_repeat: int,
) -> WeightIntent:
    """The intent of a row; the newest are asked for at every tick, and parsed when they changed."""
    return WeightIntent(
        id=id,
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
        "INSERT INTO standings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                round_id, *one.key, one.uid, None if one.reason is None else str(one.reason), one.message, one.loss,
                one.score, one.weight,
            )
            for one in leaderboard
        ],
    )  # fmt: skip
