"""Recomputes all verdicts, plans, leaderboards and weights of a validator.

None of the product's rules is used: they are written again in `reference_rules`. What a validator knew, and when, is
read from its state file and the event log; what the chain showed, from the history of the subnet.
"""

import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from template.localnet.chain.ledger import Ledger
from tests.campaigns.clock import block_at
from tests.campaigns.soak.curve import is_close, shares_of
from tests.campaigns.soak.event_log import History, Registration
from tests.campaigns.soak.game_state import GameState, Table
from tests.campaigns.soak.reference_rules import (
    Planned,
    Rules,
    estimate,
    is_hopeful,
    live_credits,
    next_aligned,
    plan,
    seed_of,
)

_TEXT = re.compile(r"([^:]+):([^:]+):([0-9a-f]{40}|[0-9a-f]{64})")
_GRACE_BLOCKS = 300
_DAY_BLOCKS = 7200
_MISSING = ("missing_repo", "missing_file")
_TABLES = (
    "verdicts", "evaluations", "rounds", "round_members", "round_evaluations", "standings", "weight_intents", "stands",
    "ledger",
)  # fmt: skip

Row = Mapping[str, Any]
Key = tuple[str, str]


class Line(NamedTuple):
    """One line of a leaderboard."""

    reason: str | None
    runs: int = 0
    loss: float | None = None
    credit: float = 0.0


class Moment(NamedTuple):
    """Something that a validator did, at a time."""

    time: float
    what: str
    facts: Row


@dataclass
class ReferenceModel:
    """One validator's recomputation, with its disagreements."""

    validator: str
    history: History
    rules: Rules
    state: Mapping[str, Sequence[Row]]
    findings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    # Rejections in force, by (hotkey, text), with their reasons.
    rejected: dict[Key, str] = field(default_factory=dict)
    _current: Row | None = None

    @classmethod
    def open(cls, folder: Path, validator: str, history: History, rules: Rules) -> "ReferenceModel":
        """Read the state of a validator of the run in `folder`."""
        uri = f"{(folder / validator / 'validator.sqlite3').resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as db:
            db.row_factory = sqlite3.Row
            state = {name: [dict(row) for row in db.execute(f"SELECT * FROM {name}")] for name in _TABLES}
        return cls(validator, history, rules, state)

    def report(self, *words: object) -> None:
        self.findings.append(" ".join(map(str, (self.validator, *words))))

    def check(self, chain_file: Path) -> None:
        """Replay all that the validator did, except its calls of the chain."""
        self._members = group_by_round(self.state["round_members"])
        self._plans = group_by_round(self.state["round_evaluations"])
        with Ledger(chain_file) as ledger:
            self._hash_of = ledger.hash_of
            self.game = GameState(self.rules, ledger.hash_of)
            for moment in self._moments():
                getattr(self, f"_on_{moment.what.replace(' ', '_')}")(moment.time, moment.facts)

    def _moments(self) -> list[Moment]:
        """Return everything that changes or shows the game, in order."""
        state, last = self.state, {}
        moments = [Moment(row["time"], row["event"], row) for row in self.history.records[self.validator]]
        for row in state["rounds"]:
            moments.append(Moment(row["started_at"], "opened", row))
            if row["closed_at"] is not None:
                moments.append(Moment(row["closed_at"], "closed", row))
        for row in state["evaluations"]:
            moments.append(Moment(row["finished_at"], "evaluated", row))
        for row in state["weight_intents"]:
            if not row["is_repeat"]:
                moments.append(Moment(row["created_at"], "weighed", row))
                last[row["round_id"]] = row["id"]
        self._last_intents = set(last.values())
        return sorted(moments, key=lambda moment: moment.time)

    # Rounds

    def _on_opened(self, _: float, opened: Row) -> None:
        """Check that the snapshot equals the chain at the round's block."""
        start, before, period = opened["start_block"], self._current, self.rules.blocks_per_epoch
        due = before["start_block"] + period if before else next_aligned(self.rules.start_block, period)
        if start != due:
            self.counts["rounds left out"] += (start - due) // period
        if start != due and (start < due or start != opened["opened_block"] // period * period):
            self.report("round", opened["id"], "starts at", start, "and should at", due)
        if opened["start_block_hash"] != self._hash_of(start) or opened["end_block"] != start + period:
            self.report("round", opened["id"], "is of other blocks")
        self._current, expected = opened, {}
        for hotkey, registration in self.history.registrations(start).items():
            commitment, run = self.history.commitment(hotkey, start), self.game.newest(hotkey)
            if commitment is not None and commitment.text is None and run is not None:
                # A sealed update leaves the hotkey's dataset in place until the reveal.
                is_unbroken = run.last >= (commitment.block - 1) // period * period
                if run.registration == registration.block and is_unbroken:
                    expected[hotkey] = (run.text, registration.uid, run.reveal, run.commit, registration.block)
            elif commitment is not None and commitment.text is not None:
                block = self._commit_block(opened, hotkey, commitment.block, commitment.sealed_block, registration)
                expected[hotkey] = (commitment.text, registration.uid, commitment.block, block, registration.block)
        names = ("entry", "uid", "block", "rank_block", "registration_block")
        actual = {row["hotkey"]: tuple(row[name] for name in names) for row in self._members[opened["id"]]}
        self.compare("round", opened["id"], actual, expected)
        seen = [(row["hotkey"], *(row[name] for name in ("entry", *names[2:]))) for row in self._accepted()]
        missing = [key for key, reason in self.rejected.items() if reason in _MISSING]
        self.game.see(start, seen, missing)
        self.counts["rounds"] += 1
        self.counts["entries"] += len(actual)

    def _commit_block(
        self, opened: Row, hotkey: str, block: int, sealed_block: int | None, registration: Registration
    ) -> int:
        """Return the commit block of a text, or its reveal block until that is read."""
        if sealed_block is None or sealed_block <= registration.block:
            return block
        is_located = self.history.is_located(self.validator, hotkey, block, opened["started_at"])
        return sealed_block if is_located else block

    def _on_closed(self, _: float, closed: Row) -> None:
        """Drop texts that never counted, like the validator after each round."""
        if closed["opened_block"] >= closed["end_block"]:
            self.counts["rounds caught up"] += 1
            if any(row["round_id"] == closed["id"] and not row["is_repeat"] for row in self.state["weight_intents"]):
                self.report("round", closed["id"], "was over when it opened, and has weights")
        hotkeys = {row["hotkey"] for row in self._members[closed["id"]]}
        self.game.forget(hotkeys, before_block=closed["start_block"] - _DAY_BLOCKS)

    def compare(self, what: str, number: int, actual: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
        for name in expected.keys() | actual.keys():
            ours, theirs = actual.get(name), expected.get(name)
            if ours != theirs:
                self.report(what, number, name, "is", ours, "and should be", theirs)

    # Verdicts

    def _on_checked(self, time: float, row: Row) -> None:
        sha256 = self._file_of(row["text"], time)
        content = None if sha256 is None else self.history.contents[sha256]
        if content is None or content.fault is not None:
            self.report("verdict", key_of(row), "passed its checks, and is", content and content.fault)
            return
        self.game.downloaded[row["hotkey"]][row["text"]] = frozenset(content.rows[: self.rules.curve.rows])
        self.counts["datasets"] += 1

    def _on_rows_pruned(self, _: float, row: Row) -> None:
        self.game.downloaded[row["hotkey"]].pop(row["text"], None)

    def _on_missed(self, _: float, row: Row) -> None:
        self.counts["missed"] += 1
        self.game.miss(row["hotkey"], row["text"], row["block"])

    def _on_rejected(self, time: float, row: Row) -> None:
        expected = self._expected_rejection(time, row)
        self.counts[f"rejected as {row['reason']}"] += 1
        if row["reason"] != expected:
            self.report("verdict", key_of(row), "is", row["reason"], "and should be", expected)
        self.rejected[key_of(row)] = row["reason"]

    def _on_rejection_expired(self, _: float, row: Row) -> None:
        self.counts["rejections expired"] += 1
        if self.rejected.pop(key_of(row)) not in _MISSING:
            self.report("verdict", key_of(row), "expired")

    def _file_of(self, text: str, time: float) -> str | None:
        match = _TEXT.fullmatch(text)
        return None if match is None else self.history.file_at(match[1], match[3], time)

    def _expected_rejection(self, time: float, row: Row) -> str | None:
        match = _TEXT.fullmatch(row["text"])
        if match is None or match[2] != self.rules.curve.id:
            return "absent"
        repo, _, revision = match.groups()
        sha256 = self.history.file_at(repo, revision, time)
        if sha256 is not None:
            return self.history.contents[sha256].fault
        if row["text"] in self.game.downloaded[row["hotkey"]]:
            return "known"
        if len(revision) == 40:
            return "missing_file" if self.history.has_commit(repo, revision) else "missing_repo"
        # A promised file that is missing is rejected once its grace is over.
        entries = [] if self._current is None else self._members[self._current["id"]]
        block = next(entry["block"] for entry in entries if entry["hotkey"] == row["hotkey"])
        return "missing_file" if block_at(time) > block + _GRACE_BLOCKS else "pending"

    # Evaluations

    def _accepted(self) -> list[Row]:
        """Return the open round's entries whose text is right."""
        assert self._current is not None
        return [row for row in self._members[self._current["id"]] if not _fault(self, row)]

    def _table(self) -> Table:
        assert self._current is not None
        accepted = {row["hotkey"]: row["entry"] for row in self._accepted() if key_of(row) not in self.rejected}
        registrations = {row["hotkey"]: row["registration_block"] for row in self._members[self._current["id"]]}
        return self.game.table(self._current["start_block"], accepted, registrations, self.rejected.keys())

    def _on_confirmed(self, *_: object) -> None:
        self.game.confirm(self._table())

    def _on_planned(self, _: float, row: Row) -> None:
        """Check a round's evaluations, their order and their seeds."""
        table, game, start = self._table(), self.game, self._current["start_block"] if self._current else 0
        game.confirm(table)
        recent: Counter[str] = Counter()
        for opened in self.state["rounds"]:
            if start - _DAY_BLOCKS < opened["start_block"] < start:
                recent.update(planned["hotkey"] for planned in self._plans[opened["id"]])
        expected = plan(table.originals, table.ledger, game.losses, recent, start, self.rules)
        names = ("hotkey", "entry", "digest", "number", "lucky_num", "seed_block")
        actual = {item["position"]: tuple(item[name] for name in names) for item in self._plans[row["round"]]}
        lines = {position: self._planned_line(planned, table) for position, planned in enumerate(expected)}
        self.compare("plan of round", row["round"], actual, lines)
        self.counts["planned"] += len(expected)

    def _planned_line(self, planned: Planned, table: Table) -> tuple[object, ...]:
        entered, digest = planned.entered, self.game.digest_of(planned.entered.rows)
        seed = seed_of(self._hash_of(planned.seed_block), digest, planned.number)
        return entered.hotkey, table.texts[entered.key], digest, planned.number, seed, planned.seed_block

    def _on_evaluated(self, _: float, row: Row) -> None:
        rows = self.game.downloaded[row["hotkey"]].get(row["entry"])
        plans = (
            [item for item in self._plans[self._current["id"]] if key_of(item) == key_of(row)] if self._current else []
        )
        is_planned = any(all(item[n] == row[n] for n in ("digest", "number", "lucky_num")) for item in plans)
        result = json.loads(row["receipt"])["result"] if row["receipt"] else None
        if rows is None or not is_planned:
            self.report("evaluation", key_of(row), row["number"], "was not planned in its round")
        elif len(self.game.losses[row["hotkey"], rows]) + 1 != row["number"]:
            self.report("evaluation", key_of(row), row["number"], "is not the next of its dataset")
        elif result is not None and (result["loss"], result["lucky_num"]) != (row["loss"], row["lucky_num"]):
            self.report("evaluation", key_of(row), row["number"], "has another receipt")
        if rows is not None:
            self.game.losses[row["hotkey"], rows].append(row["loss"])
        self.counts["evaluated"] += 1

    # Leaderboards

    def _on_tabled(self, _: float, row: Row) -> None:
        self._check_leaderboard(row["round"], self._table())

    def _on_weighed(self, time: float, intent: Row) -> None:
        table = self._table()
        lines = self._check_leaderboard(intent["round_id"], table, is_last=intent["id"] in self._last_intents)
        self._check_shares(intent, lines, table)

    def _check_leaderboard(self, number: int, table: Table, *, is_last: bool = True) -> dict[str, Line]:
        self.game.confirm(table)
        expected = self._expected_lines(table)
        if is_last:
            self.counts["leaderboards"] += 1
            self.counts["duplicates"] += sum(line.reason == "duplicate" for line in expected.values())
            standings = [row for row in self.state["standings"] if row["round_id"] == number]
            actual = {row["hotkey"]: Line(row["reason"], row["runs"], row["loss"], row["credit"]) for row in standings}
            self.compare("leaderboard", number, _rounded(actual), _rounded(expected))
            self._check_ledger(number, table)
            weights = {row["hotkey"]: row["weight"] for row in standings if row["weight"] > 0.0}
            if not is_close(weights, shares_of(_paid(expected))):
                self.report("leaderboard", number, "weighs", weights, "and should", shares_of(_paid(expected)))
        return expected

    def _expected_lines(self, table: Table) -> dict[str, Line]:
        """Return every entry's line, from the validator's records."""
        assert self._current is not None
        members, lines = self._members[self._current["id"]], {}
        registrations = {row["hotkey"]: row["registration_block"] for row in members}
        start = self._current["start_block"]
        credits = live_credits(table.ledger, registrations, start, self.rules)
        entered = {dataset.hotkey: dataset for dataset in table.present}
        for row in members:
            hotkey, reason = row["hotkey"], _fault(self, row) or self.rejected.get(key_of(row))
            runs, loss = 0, None
            if reason is None and hotkey in entered:
                losses = self.game.losses[entered[hotkey].key]
                runs, loss = len(losses), estimate(losses, self.rules.sd).loss if losses else None
                reason = "duplicate" if entered[hotkey].key in table.duplicates else None
            is_paid = reason in (None, *_MISSING) and table.readable.get(hotkey, -1) >= start - _DAY_BLOCKS
            lines[hotkey] = Line(reason, runs, loss, credits.get(hotkey, 0.0) if is_paid else 0.0)
        return lines

    def _check_ledger(self, number: int, table: Table) -> None:
        (row,) = [row for row in self.state["rounds"] if row["id"] == number]
        names = ("hotkey", "digest", "rank_block", "commit_block", "runs", "loss", "frontier", "credit")
        actual = [tuple(line[name] for name in names) for line in json.loads(row["ledger"])]
        expected = [
            (line.entered.hotkey, self.game.digest_of(line.entered.rows), *line.entered.rank[:2], line.estimate.runs,
             line.estimate.loss, line.frontier, line.credit)
            for line in table.ledger
        ]  # fmt: skip
        self.compare("ledger of round", number, _rounded(dict(enumerate(actual))), _rounded(dict(enumerate(expected))))
        self.counts["ledger lines"] += len(expected)

    def _undecided(self, table: Table) -> set[str]:
        """Return the hotkeys of unfinished datasets older than the first round."""
        season, losses = self.state["rounds"][0]["start_block"], self.game.losses
        confirmed = {line.entered.key for line in table.ledger}
        return {
            dataset.hotkey
            for dataset in table.originals
            if dataset.rank[0] < season
            and dataset.key not in confirmed
            and is_hopeful(dataset, losses[dataset.key], table.ledger, self.rules)
        }

    def _check_shares(self, intent: Row, lines: Mapping[str, Line], table: Table) -> None:
        """Check that shares follow the credits, repeat the last ones, or are burned."""
        expected, has_ledger, last = shares_of(_paid(lines)), bool(self.game.confirmed), self.last_accepted(intent)
        last_shares = {} if last is None else json.loads(last["shares"])
        if not self._undecided(table).isdisjoint(last_shares):
            expected = last_shares
            self.counts["shares repeated for the undecided"] += 1
        elif not expected:
            is_new = not has_ledger and all(line.loss is None for line in lines.values())
            waits = any(line.reason is None and line.loss is None for line in lines.values())
            expected = {} if is_new and waits else {self.history.owner: 1.0}
            if not has_ledger and last_shares:
                expected = last_shares
            self.counts["shares repeated" if expected == last_shares else "burned"] += 1
        if not is_close(json.loads(intent["shares"]), expected):
            self.report("intent", intent["id"], "shares", intent["shares"], "and should share", expected)

    def last_accepted(self, intent: Row) -> Row | None:
        """Return the newest accepted weights when an intent was made."""
        rows = [row for row in self.state["weight_intents"] if (row["finished_at"] or 1e99) < intent["created_at"]]
        rows = [row for row in rows if row["outcome"] is not None and json.loads(row["outcome"])["is_accepted"]]
        return rows[-1] if rows else None


def _fault(model: ReferenceModel, row: Row) -> str | None:
    """Return why the text itself is rejected."""
    match = _TEXT.fullmatch(row["entry"])
    if match is None:
        return "bad_commitment"
    if match[2] != model.rules.curve.id:
        return "wrong_competition"
    return "before_registration" if row["block"] <= row["registration_block"] else None


def _paid(lines: Mapping[str, Line]) -> dict[str, float]:
    return {hotkey: line.credit for hotkey, line in lines.items() if line.credit > 0}


def _rounded(lines: Mapping[Any, Sequence[object]]) -> dict[Any, tuple[object, ...]]:
    """Return the lines without the last digits of their numbers."""
    return {
        name: tuple(round(value, 9) if isinstance(value, float) else value for value in line)
        for name, line in lines.items()
    }


def key_of(row: Row) -> Key:
    return (row["hotkey"], row["text" if "text" in row else "entry"])


def group_by_round(rows: Sequence[Row]) -> dict[int, list[Row]]:
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["round_id"]].append(row)
    return groups
