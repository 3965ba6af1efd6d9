"""Recomputes all verdicts, leaderboards and weights of a validator.

None of the product's rules is used: they are written again, in the plainest way, from its documentation. What a
validator did is read from its state file, what the chain took from the chain.
"""

import hashlib
import json
import math
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
from tests.campaigns.soak.curve import Curve, is_close, shares_of
from tests.campaigns.soak.event_log import History, Registration, latest

_TEXT = re.compile(r"([^:]+):([^:]+):([0-9a-f]{40}|[0-9a-f]{64})")
_MAX_SHARED_ROWS = 100
_MAX_VERSIONS = 8
_GRACE_BLOCKS = 300
_MAX_HOST_FAILURES = 3
_MAX_REMOTE_FAILURES = 12
_MISSING = ("missing_repo", "missing_file")
_TABLES = ("verdicts", "datasets", "receipts", "rounds", "round_members", "standings", "weight_intents")

Row = Mapping[str, Any]
Key = tuple[str, str]


class Line(NamedTuple):
    """One line of a leaderboard."""

    reason: str | None
    loss: float | None


@dataclass
class ReferenceModel:
    """One validator's recomputation, with its disagreements."""

    validator: str
    history: History
    curve: Curve
    state: Mapping[str, Sequence[Row]]
    findings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    # By (hotkey, text): the rounds' times with the ranks that are right, and the blocks.
    _ranks: dict[Key, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    _blocks: dict[Key, set[int]] = field(default_factory=lambda: defaultdict(set))

    @classmethod
    def open(cls, folder: Path, validator: str, history: History, curve: Curve) -> "ReferenceModel":
        """Read the state of a validator of the run in `folder`."""
        uri = f"{(folder / validator / 'validator.sqlite3').resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as db:
            db.row_factory = sqlite3.Row
            state = {name: [dict(row) for row in db.execute(f"SELECT * FROM {name}")] for name in _TABLES}
        return cls(validator, history, curve, state)

    def check(self, chain_file: Path) -> None:
        """Check all but the weights on the chain."""
        with Ledger(chain_file) as ledger:
            self._check_rounds(ledger)
            self._check_seeds(ledger)
        self._check_verdicts()
        self._check_evaluations()
        self._check_leaderboards()

    def report(self, *words: object) -> None:
        self.findings.append(" ".join(map(str, (self.validator, *words))))

    # Verdicts

    def _check_verdicts(self) -> None:
        expired: list[Row] = [
            rejection._asdict() | {"loss": None} for rejection in self.history.expired[self.validator]
        ]
        self.counts["verdict expired"] = len(expired)
        for row in expired:
            if row["reason"] not in _MISSING:
                self.report("verdict", row["hotkey"], row["entry"], row["reason"], "expired")
        for row in [*self.state["verdicts"], *expired]:
            key, expected = _key(row), self._expected_verdict(row)
            actual = row["reason"] or "evaluated"
            self.counts[f"verdict {actual}"] += 1
            if actual != expected:
                self.report("verdict", key, "is", actual, "and should be", expected)
            if row["entry"] not in self.history.texts(row["hotkey"]):
                self.report("verdict", key, "is on a text that was never committed")
        for (hotkey, text), attempts in self.history.missed[self.validator].items():
            repo, _, revision = text.split(":")
            self.counts["missed"] += len(attempts)
            for time, block in attempts:
                if self.history.file_at(repo, revision, time) is not None:
                    self.report(hotkey, text, "was not found at block", block, "and was there")

    def _expected_verdict(self, row: Row) -> str:
        match = _TEXT.fullmatch(row["entry"])
        if match is None or match[2] != self.curve.id:
            return "absent"
        repo, _, revision = match.groups()
        sha256 = self.history.file_at(repo, revision, row["decided_at"])
        if sha256 is not None:
            return self.history.contents[sha256].fault or "evaluated"
        if (missing := self._missing_reason(row["entry"])) is not None:
            return missing
        # A promised file that is missing now: evaluated when downloaded before, rejected once its grace is over.
        # What passed its checks was there, so it has no grace any more.
        has_passed = _key(row) in self._passed(row["decided_at"])
        if row["loss"] is not None and has_passed:
            return "evaluated"
        is_late = block_at(row["decided_at"]) > self._entry_block(row) + _GRACE_BLOCKS
        return "missing_file" if has_passed or is_late else "pending"

    def _entry_block(self, row: Row) -> float:
        """Return the commitment's block in the round that decided it."""
        opened = {opened["id"] for opened in self.state["rounds"] if opened["started_at"] <= row["decided_at"]}
        entries = [entry for entry in self.state["round_members"] if _key(entry) == _key(row)]
        return next((entry["block"] for entry in reversed(entries) if entry["round_id"] in opened), math.inf)

    def _passed(self, before: float) -> set[Key]:
        """Return the datasets that had ever passed their checks by a moment."""
        return {key for key, moments in self.history.rows[self.validator].items() if moments[0][0] < before}

    def _with_rows(self, before: float) -> set[Key]:
        """Return the datasets whose rows were recorded at a moment."""
        return {key for key, moments in self.history.rows[self.validator].items() if latest(moments, before, False)}

    def _verdicts(self, before: float) -> dict[Key, Row]:
        """Return the verdicts that were in force at a moment."""
        expired = self.history.expired[self.validator]
        rows: list[Row] = [
            row._asdict() | {"loss": None} for row in expired if row.decided_at < before < row.expired_at
        ]
        rows += [row for row in self.state["verdicts"] if row["decided_at"] < before]
        return {_key(row): row for row in rows}

    def _check_evaluations(self) -> None:
        """Check that all was evaluated once, and each loss has its receipt."""
        done = [job for job in self.history.evaluated if job["validator"] == self.validator]
        losses = [((job["hotkey"], job["text"]), job["loss"]) for job in done if job["loss"] is not None]
        for key, count in Counter(key for key, _ in losses).items():
            if count != 1:
                self.report(key, "was evaluated", count, "times")
        verdicts = {_key(row): row["loss"] for row in self.state["verdicts"] if row["loss"] is not None}
        if dict(losses) != verdicts:
            self.report("losses and verdicts differ:", set(losses) ^ set(verdicts.items()))
        receipts = {_key(row) for row in self.state["receipts"]}
        if receipts != verdicts.keys():
            self.report("receipts and verdicts differ:", receipts ^ verdicts.keys())

    # Rounds and seeds

    def _check_rounds(self, ledger: Ledger) -> None:
        """Check that each snapshot is what the chain showed at the round's block."""
        members, last = group_by_round(self.state["round_members"]), -1
        for opened in self.state["rounds"]:
            start, expected = opened["start_block"], {}
            if start <= last or opened["start_block_hash"] != ledger.hash_of(start):
                self.report("round", opened["id"], "starts at", start, "after", last)
            last = start
            for hotkey, registration in self.history.registrations(start).items():
                commitment = self.history.commitment(hotkey, start)
                if commitment is not None and commitment.text is not None:
                    key = (hotkey, commitment.text)
                    block, rank = self._expected_blocks(opened, key, commitment.block, registration)
                    expected[hotkey] = (commitment.text, registration.uid, block, rank, registration.block)
            names = ("entry", "uid", "block", "rank_block", "registration_block")
            actual = {row["hotkey"]: tuple(row[name] for name in names) for row in members[opened["id"]]}
            self._compare("round", opened["id"], actual, expected)
            self.counts["rounds"] += 1
            self.counts["entries"] += len(actual)

    def _compare(self, what: str, number: int, actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        for hotkey in expected.keys() | actual.keys():
            ours, theirs = actual.get(hotkey), expected.get(hotkey)
            if ours != theirs:
                self.report(what, number, hotkey, "is", ours, "and should be", theirs)

    def _expected_blocks(self, opened: Row, key: Key, block: int, registration: Registration) -> tuple[int, int]:
        """Return the blocks at which a text was first readable, and committed."""
        sightings = list(self.history.sightings(self.validator, *key, until=opened["opened_block"]))
        first = min([block, *(seen.open_block for seen in sightings if seen.open_block > registration.block)])
        rank = min([seen.block for seen in sightings if seen.block > registration.block], default=block)
        rank = self._rank_after_misses(opened, key, rank, registration)
        self._ranks[key].append((opened["started_at"], rank))
        self._blocks[key].add(first)
        return first, rank

    def _rank_after_misses(self, opened: Row, key: Key, rank: int, registration: Registration) -> int:
        """Return an entry's rank after failed attempts to find its file.

        Until the file is found, the entry is behind everyone in each round; then it keeps the rank of the round in
        which it was found. It is never before the last failed attempt.
        """
        now = opened["started_at"]
        missed = self.history.missed[self.validator].get(key, [])
        blocks = [block for time, block in missed if time < now and block > registration.block]
        if not blocks:
            return rank
        self.counts["ranks lost"] += 1
        rank = max(rank, blocks[-1] + 1)
        rows = self.history.rows[self.validator].get(key, [])
        if not latest(rows, now, False):
            return max(rank, int(opened["start_block"]) + 1)
        found_at = max(time for time, is_known in rows if is_known and time < now)
        return max(rank, latest(self._ranks[key], found_at, 0))

    def _check_seeds(self, ledger: Ledger) -> None:
        """Check that seeds come from the first round after the text was readable."""
        period = max((row["end_block"] - row["start_block"] for row in self.state["rounds"]), default=1)
        for row in self.state["receipts"]:
            seed = json.loads(row["receipt"])["result"]["lucky_num"]
            seeds = {_seed(ledger.hash_of(math.ceil(block / period) * period)) for block in self._blocks[_key(row)]}
            if seed not in seeds:
                self.report("the loss of", row["hotkey"], row["entry"], "has seed", seed, "not of", seeds)
            self.counts["seeds"] += 1

    # Leaderboards

    def _check_leaderboards(self) -> None:
        members, standings = group_by_round(self.state["round_members"]), group_by_round(self.state["standings"])
        intents = group_by_round([row for row in self.state["weight_intents"] if not row["is_repeat"]])
        for number, made in intents.items():
            actual = {row["hotkey"]: Line(row["reason"], row["loss"]) for row in standings[number]}
            expected = self._expected_lines(members[number], made[-1])
            self._compare("leaderboard", number, actual, expected)
            self.counts["lines"] += len(actual)
            self.counts["leaderboards"] += 1
            self._check_shares(made[-1], expected, members[number])

    def _expected_lines(self, members: Sequence[Row], intent: Row) -> dict[str, Line]:
        """Return every entry's line, by what the validator had recorded."""
        recorded, verdicts = self._with_rows(intent["created_at"]), self._verdicts(intent["created_at"])
        # A dataset that was rejected after its check makes no other one a duplicate.
        good = {key for key in recorded if key not in verdicts or verdicts[key]["reason"] is None}
        rejections = {row["hotkey"]: self._rejection(row) for row in members}
        present = [row for row in members if rejections[row["hotkey"]] is None and _key(row) in good]
        duplicates = self._find_duplicates(present, good, until=intent["block"])
        lines = {}
        for row in members:
            hotkey, verdict = row["hotkey"], verdicts.get(_key(row))
            # A loss counts while the rows are recorded: without them it might be a duplicate's.
            loss = verdict["loss"] if verdict and _key(row) in recorded else None
            if rejections[hotkey] is not None:
                lines[hotkey] = Line(rejections[hotkey], None)
            elif hotkey in duplicates:
                lines[hotkey] = Line("duplicate", loss)
            else:
                lines[hotkey] = Line(verdict["reason"] if verdict else None, loss)
        return lines

    def _missing_reason(self, text: str) -> str | None:
        """Return why a commitment by commit can never have a file; None for any other."""
        match = _TEXT.fullmatch(text)
        if match is None or len(match[3]) != 40 or self.history.file_at(match[1], match[3], math.inf) is not None:
            return None
        return "missing_file" if self.history.has_commit(match[1], match[3]) else "missing_repo"

    def _rejection(self, row: Row) -> str | None:
        match = _TEXT.fullmatch(row["entry"])
        if match is None:
            return "bad_commitment"
        if match[2] != self.curve.id:
            return "wrong_competition"
        return "before_registration" if row["block"] <= row["registration_block"] else None

    def _find_duplicates(self, present: Sequence[Row], good: set[Key], *, until: int) -> set[str]:
        """Return the hotkeys whose dataset is a duplicate of an earlier original."""
        candidates = []
        for row in present:
            hotkey, text, rows = row["hotkey"], row["entry"], self._rows(_key(row))
            candidates.append((row["rank_block"], _tie_break(hotkey, text), hotkey, rows, True))
            candidates += self._versions(row, rows, good, until=until)
        originals: list[tuple[str, frozenset[int]]] = []
        duplicates = set()
        for _, _, hotkey, rows, is_present in sorted(candidates, key=lambda candidate: candidate[:2]):
            if any(other != hotkey and len(rows & theirs) > _MAX_SHARED_ROWS for other, theirs in originals):
                duplicates |= {hotkey} if is_present else set()
            elif len(rows) > _MAX_SHARED_ROWS:
                originals.append((hotkey, rows))
        return duplicates

    def _versions(
        self, row: Row, rows: frozenset[int], good: set[Key], *, until: int
    ) -> list[tuple[int, bytes, str, frozenset[int], bool]]:
        """Return the earliest other datasets that share the present one's rows."""
        hotkey, versions = row["hotkey"], []
        for text in self.history.texts(hotkey):
            if text == row["entry"] or (hotkey, text) not in good:
                continue
            theirs = self._rows((hotkey, text))
            sightings = self.history.sightings(self.validator, hotkey, text, until=until)
            first = min([seen.block for seen in sightings if seen.block > row["registration_block"]], default=None)
            if first is not None and len(rows & theirs) > _MAX_SHARED_ROWS:
                versions.append((first, text, theirs))
        earliest = sorted(versions)[:_MAX_VERSIONS]
        return [(first, _tie_break(hotkey, text), hotkey, theirs, False) for first, text, theirs in earliest]

    def _rows(self, key: Key) -> frozenset[int]:
        match = _TEXT.fullmatch(key[1])
        assert match is not None
        sha256 = match[3] if len(match[3]) == 64 else self.history.file_at(match[1], match[3], math.inf)
        if sha256 is None:
            self.report(*key, "passed its checks without a file")
            return frozenset()
        return frozenset(self.history.contents[sha256].rows[: self.curve.rows])

    def _check_shares(self, intent: Row, lines: Mapping[str, Line], members: Sequence[Row]) -> None:
        """Check shares: the scores', the last ones while some are pending, or burned."""
        losses = {hotkey: line.loss for hotkey, line in lines.items() if line.reason is None}
        scores = {hotkey: self.curve.score(loss) for hotkey, loss in losses.items() if loss is not None}
        pending = [_key(row) for row in members if losses.get(row["hotkey"], 0.0) is None]
        expected = shares_of(scores)
        if not expected and any(not self._is_stuck(key, intent["created_at"]) for key in pending):
            last = self.last_accepted(intent)
            expected = {} if last is None else json.loads(last["shares"])
            self.counts["shares repeated"] += bool(expected)
        elif not expected:
            expected = {self.history.owner: 1.0}
            self.counts["burned"] += 1
        if not is_close(json.loads(intent["shares"]), expected):
            self.report("intent", intent["id"], "shares", intent["shares"], "and should share", expected)

    def _is_stuck(self, key: Key, before: float) -> bool:
        """Return whether the round no longer waits for a dataset."""
        remote, host = latest(self.history.retries[self.validator].get(key, []), before, (0, 0))
        return remote >= _MAX_REMOTE_FAILURES or host >= _MAX_HOST_FAILURES

    def last_accepted(self, intent: Row) -> Row | None:
        """Return the newest accepted weights when an intent was made."""
        configs = {row["id"]: row["contest_id"] for row in self.state["rounds"]}
        rows = [row for row in self.state["weight_intents"] if (row["finished_at"] or math.inf) < intent["created_at"]]
        rows = [row for row in rows if row["outcome"] is not None and json.loads(row["outcome"])["is_accepted"]]
        if not intent["is_repeat"]:
            rows = [row for row in rows if configs[row["round_id"]] == configs[intent["round_id"]]]
        return rows[-1] if rows else None


def _key(row: Row) -> Key:
    return (row["hotkey"], row["entry"])


def _seed(block_hash: str) -> int:
    return int.from_bytes(hashlib.sha256(b"lucky_num\n" + bytes.fromhex(block_hash[2:])).digest()[:4], "little")


def _tie_break(hotkey: str, text: str) -> bytes:
    return hashlib.sha256(f"{hotkey}:{text}".encode()).digest()


def group_by_round(rows: Sequence[Row]) -> dict[int, list[Row]]:
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["round_id"]].append(row)
    return groups
