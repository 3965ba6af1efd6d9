"""State of rounds: entries, leaderboards, weights and the heartbeat."""

import dataclasses
import json
import sqlite3
from collections.abc import Mapping
from functools import lru_cache

from template.chain_records import OwnNeuron, WeightOutcome
from template.errors import Reason
from template.records import (
    ContentKey,
    Entry,
    EvalConfig,
    Leaderboard,
    LeaderboardRow,
    LedgerLine,
    Metrics,
    Round,
    RoundEvaluation,
    RunningEvaluation,
    SubmissionKey,
    WeightIntent,
)
from template.rules.entries import parse_entry
from template.store.database import StateFile, placeholders

_ROUND_COLUMNS = ("start_block", "start_block_hash", "opened_block", "end_block", "lucky_num_from")
_MEMBER_COLUMNS = ("uid", "registration_block")
_ROW_COLUMNS = ("uid", "message", "loss", "score", "weight", "digest", "mean", "spread", "runs", "credit")
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
                f"INSERT INTO rounds (contest_id, lucky_num, started_at, {', '.join(_ROUND_COLUMNS)})"
                f" VALUES ({placeholders(8)})",
                (eval_config.id, 0, now, *values),
            )
            db.executemany(
                f"INSERT INTO round_members VALUES ({placeholders(10)})",
                [
                    (
                        cursor.lastrowid, *entry.key, entry.uid, entry.reveal_block, entry.commit_block,
                        entry.registration_block, None, None, turns.get(entry.key),
                    )
                    for entry in opened.entries
                ],
            )  # fmt: skip
        self._last_read = dataclasses.replace(opened, id=int(cursor.lastrowid or 0))
        return self._last_read

    def record_plan(self, planned: Round) -> None:
        """Record the evaluations of a round before the first of them."""
        with self.atomic() as db:
            db.executemany(
                f"INSERT INTO round_evaluations VALUES ({placeholders(8)})",
                [
                    (planned.id, position, *run.key, run.digest, run.number, run.lucky_num, run.seed_block)
                    for position, run in enumerate(planned.evaluations or ())
                ],
            )
            db.execute("UPDATE rounds SET is_planned = 1 WHERE id = ?", (planned.id,))
        self._last_read = planned

    def drawn_seeds(self, eval_config: EvalConfig) -> dict[tuple[ContentKey, int], int]:
        """Return the seed that each evaluation of a dataset was planned with first."""
        seeds: dict[tuple[ContentKey, int], int] = {}
        for hotkey, digest, number, lucky_num in self.rows(
            "SELECT hotkey, digest, number, plan.lucky_num FROM round_evaluations AS plan JOIN rounds ON id = round_id"
            " WHERE contest_id = ? ORDER BY round_id",
            eval_config.id,
        ):
            seeds.setdefault((ContentKey(hotkey, digest), number), lucky_num)
        return seeds

    def recent_runs(self, eval_config: EvalConfig, *, after_block: int) -> dict[str, int]:
        """Count the evaluations of each hotkey planned in rounds after a block."""
        return dict(
            map(
                tuple,
                self.rows(
                    "SELECT hotkey, count(*) FROM round_evaluations JOIN rounds ON id = round_id"
                    " WHERE contest_id = ? AND start_block > ? GROUP BY hotkey",
                    eval_config.id,
                    after_block,
                ),
            )
        )

    def open_round(self, eval_config: EvalConfig) -> Round | None:
        """Return the round that is not closed, None between rounds."""
        rows = self.rows(f"{_SELECT_ROUNDS} WHERE contest_id = ? AND closed_at IS NULL ORDER BY id", eval_config.id)
        return self._read_round(rows[-1]) if rows else None

    def last_round(self, *, with_leaderboard: bool = False) -> Round | None:
        """Return the newest round, or the newest with a leaderboard, of any config."""
        where = "WHERE id IN (SELECT round_id FROM standings)" if with_leaderboard else ""
        rows = self.rows(f"{_SELECT_ROUNDS} {where} ORDER BY id DESC LIMIT 1")
        return self._read_round(rows[0]) if rows else None

    def last_decided_round(self, eval_config: EvalConfig) -> Round | None:
        """Return the config's newest round with a leaderboard, None without."""
        where = "contest_id = ? AND id IN (SELECT round_id FROM standings)"
        rows = self.rows(f"{_SELECT_ROUNDS} WHERE {where} ORDER BY id DESC LIMIT 1", eval_config.id)
        return self._read_round(rows[0]) if rows else None

    def last_round_id(self) -> int | None:
        """Return the id of the newest round of any config, None before the first."""
        (row,) = self.rows("SELECT max(id) AS id FROM rounds")
        return None if row["id"] is None else int(row["id"])

    def last_model(self) -> str | None:
        """Return the model of the newest round, None before the first."""
        inputs = self.last_inputs()
        return None if inputs is None else inputs[2]

    def last_inputs(self) -> tuple[dict[str, object], str, str] | None:
        """Return the inputs of the newest round, None before the first.

        Returns:
            Competition, digest of the hyperparameters, and model.
        """
        rows = self.rows(
            "SELECT competition, hyperparameters_digest, model FROM rounds JOIN contests ON contests.id = contest_id"
            " ORDER BY rounds.id DESC LIMIT 1"
        )
        return (json.loads(rows[0][0]), rows[0][1], rows[0][2]) if rows else None

    def block_hashes(self) -> dict[int, str]:
        """Return the hashes of the aligned blocks on which rounds were opened."""
        return dict(map(tuple, self.rows("SELECT start_block, start_block_hash FROM rounds")))

    def last_start_block(self, eval_config: EvalConfig | None = None) -> int | None:
        """Return the start block of the newest round, of one config or any.

        None before the first. Of any, rounds of version 0.3 do not count: they recorded no stands.
        """
        query = "SELECT max(start_block) AS block FROM rounds"
        if eval_config is None:
            (row,) = self.rows(f"{query} WHERE is_planned")
        else:
            (row,) = self.rows(f"{query} WHERE contest_id = ?", eval_config.id)
        return None if row["block"] is None else int(row["block"])

    def first_start_block(self, eval_config: EvalConfig) -> int:
        """Return the start block of the config's first round, 0 before it."""
        (row,) = self.rows("SELECT min(start_block) AS block FROM rounds WHERE contest_id = ?", eval_config.id)
        return int(row["block"] or 0)

    def close_round(self, round_id: int, now: float) -> None:
        """Mark the round as closed."""
        with self.atomic() as db:
            db.execute("UPDATE rounds SET closed_at = ? WHERE id = ? AND closed_at IS NULL", (now, round_id))

    def abandon_rounds(self, eval_config: EvalConfig) -> None:
        """Close the open rounds of other configs, as of their weights.

        Weights that were submitted again later are those of the next round's file.
        """
        weights = "SELECT max(finished_at) FROM weight_intents WHERE round_id = rounds.id AND NOT is_repeat"
        closed = f"UPDATE rounds SET closed_at = coalesce(({weights}), started_at)"
        with self.atomic() as db:
            db.execute(f"{closed} WHERE closed_at IS NULL AND contest_id <> ?", (eval_config.id,))

    def _read_round(self, row: sqlite3.Row) -> Round:
        """Return the round of a row. Only its plan changes it, so the last is cached."""
        if self._last_read is None or self._last_read.id != row["id"]:
            members = self.rows("SELECT * FROM round_members WHERE round_id = ? ORDER BY uid", row["id"])
            queued = sorted((member for member in members if member["turn"] is not None), key=lambda row: row["turn"])
            self._last_read = Round(
                id=row["id"],
                entries=tuple(_parse_member(member, row["competition_id"]) for member in members),
                queue=tuple(SubmissionKey(member["hotkey"], member["entry"]) for member in queued),
                evaluations=self._read_plan(row["id"]) if row["is_planned"] else None,
                **{column: row[column] for column in _ROUND_COLUMNS},
            )
        return self._last_read

    def _read_plan(self, round_id: int) -> tuple[RoundEvaluation, ...]:
        rows = self.rows(
            "SELECT hotkey, entry, digest, number, lucky_num, seed_block FROM round_evaluations WHERE round_id = ?"
            " ORDER BY position",
            round_id,
        )
        return tuple(
            RoundEvaluation(
                key=SubmissionKey(hotkey, text), digest=digest, number=number, lucky_num=lucky_num, seed_block=block
            )
            for hotkey, text, digest, number, lucky_num, block in rows
        )

    def record_intent(
        self,
        round_id: int,
        *,
        block: int,
        weights: Mapping[int, float],
        shares: Mapping[str, float],
        registrations: Mapping[str, int],
        leaderboard: Leaderboard | None,
        now: float,
        sent: Mapping[int, int] | None = None,
    ) -> int:
        """Record weights before their submission and return the intent's id.

        A crash in between leaves a pending intent. leaderboard None: the shares of an earlier round are submitted
        again. The rest is as in `WeightIntent`; registrations of hotkeys without a share are dropped.
        """
        registrations = {hotkey: block for hotkey, block in registrations.items() if hotkey in shares}
        with self.atomic() as db:
            cursor = db.execute(
                "INSERT INTO weight_intents"
                " (round_id, block, weights, shares, registrations, is_repeat, created_at, sent)"
                f" VALUES ({placeholders(8)})",
                (
                    round_id, block, json.dumps(dict(weights)), json.dumps(dict(shares)), json.dumps(registrations),
                    leaderboard is None, now, json.dumps(dict(sent or {})),
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

    def intents_since_last_round(self, round_id: int) -> list[WeightIntent]:
        """Return the weights that were submitted again after the round before had closed."""
        return self._intents(
            "WHERE round_id = (SELECT max(id) FROM rounds WHERE id < ?)"
            " AND created_at >= (SELECT closed_at FROM rounds WHERE rounds.id = round_id) AND is_repeat ORDER BY id",
            round_id,
        )

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

    def _intents(self, where: str, *values: object) -> list[WeightIntent]:
        columns = (
            "id, block, weights, shares, registrations, created_at, outcome, finished_at, is_repeat, sent,"
            " (SELECT start_block FROM rounds WHERE rounds.id = round_id)"
        )
        return [_parse_intent(*row) for row in self.rows(f"SELECT {columns} FROM weight_intents {where}", *values)]

    def record_leaderboard(self, round_id: int, leaderboard: Leaderboard) -> None:
        """Record the round's leaderboard in place of an earlier one."""
        with self.atomic() as db:
            _write_leaderboard(db, round_id, leaderboard)

    def leaderboard(self, round_id: int) -> list[LeaderboardRow]:
        """Return the round's leaderboard, best first."""
        rows = self.rows(
            f"SELECT hotkey, entry, reason, {', '.join(_ROW_COLUMNS)} FROM standings WHERE round_id = ?"
            " ORDER BY weight DESC, score DESC, loss IS NULL, loss, uid",
            round_id,
        )
        return [
            LeaderboardRow(
                key=SubmissionKey(hotkey, text),
                reason=None if reason is None else Reason(reason),
                **dict(zip(_ROW_COLUMNS, values, strict=True)),
            )
            for hotkey, text, reason, *values in rows
        ]

    def ledger(self, round_id: int) -> list[LedgerLine]:
        """Return the ledger of the round's leaderboard, by rank."""
        (row,) = self.rows("SELECT ledger FROM rounds WHERE id = ?", round_id)
        return [LedgerLine(**line) for line in json.loads(row["ledger"])]

    def has_leaderboard(self, round_id: int) -> bool:
        """Check that the round's leaderboard is recorded."""
        return bool(self.rows("SELECT 1 FROM standings WHERE round_id = ? LIMIT 1", round_id))

    def prune_rounds(self, *, before: float) -> None:
        """Delete entries, leaderboards, weights and finished plans of old rounds.

        before: POSIX seconds; rounds that closed earlier are old.
        The last weights that the chain accepted stay, because they may be submitted again. A plan whose evaluation is
        not done stays, because its seed is used for it later.
        """
        self._last_read = None
        last = self.last_accepted()
        values = {"before": before, "last": last.id if last else 0}
        old = "round_id IN (SELECT id FROM rounds WHERE closed_at < :before)"
        with self.atomic() as db:
            for table in ("round_members", "standings"):
                db.execute(f"DELETE FROM {table} WHERE {old}", {"before": before})
            db.execute("UPDATE rounds SET ledger = '[]' WHERE closed_at < ? AND ledger <> '[]'", (before,))
            db.execute(
                f"DELETE FROM round_evaluations WHERE {old} AND EXISTS (SELECT 1 FROM evaluations AS done JOIN rounds"
                " ON rounds.contest_id = done.contest_id WHERE rounds.id = round_id AND done.digest ="
                " round_evaluations.digest AND done.hotkey = round_evaluations.hotkey"
                " AND done.number = round_evaluations.number)",
                {"before": before},
            )
            db.execute(
                "UPDATE weight_intents SET weights = '{}', shares = '{}', registrations = '{}', sent = '{}'"
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
            content |= {"running": tuple(running), "warnings": tuple(content.get("warnings", ()))}
            if content.get("neuron"):
                content["neuron"] = OwnNeuron(**content["neuron"])
            return Metrics(**content)
        return None


def _parse_member(row: sqlite3.Row, competition_id: str) -> Entry:
    return parse_entry(
        SubmissionKey(row["hotkey"], row["entry"]),
        competition_id,
        reveal_block=row["block"],
        commit_block=row["rank_block"],
        **{column: row[column] for column in _MEMBER_COLUMNS},
    )


@lru_cache(maxsize=4)
def _parse_intent(
    intent_id: int, block: int, weights: str, shares: str, registrations: str, created_at: float,
    outcome: str | None, finished_at: float | None, is_repeat: int, sent: str, start_block: int,
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
        sent={int(uid): weight for uid, weight in json.loads(sent).items()},
        start_block=start_block,
    )


def _write_leaderboard(db: sqlite3.Connection, round_id: int, leaderboard: Leaderboard) -> None:
    ledger = json.dumps([vars(line) for line in leaderboard.ledger])
    db.execute("UPDATE rounds SET ledger = ? WHERE id = ?", (ledger, round_id))
    db.execute("DELETE FROM standings WHERE round_id = ?", (round_id,))
    columns = ("round_id", "hotkey", "entry", "reason", *_ROW_COLUMNS)
    db.executemany(
        f"INSERT INTO standings ({', '.join(columns)}) VALUES ({placeholders(len(columns))})",
        [
            (
                round_id,
                *row.key,
                None if row.reason is None else str(row.reason),
                *(getattr(row, column) for column in _ROW_COLUMNS),
            )
            for row in leaderboard.rows
        ],
    )
