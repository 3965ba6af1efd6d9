"""The books of a soak run, done again: every verdict, table and weight of a validator against what must have been.

None of the product's rules is used here; they are written out once more, in the plainest way, from its documentation.
What a validator did is read from its state file, what became of it from the chain's.
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
from tests.campaigns.soak.history import History, Life, latest

_TEXT = re.compile(r"([^:]+):([^:]+):([0-9a-f]{40}|[0-9a-f]{64})")
_MAX_SHARED = 100
_MAX_VERSIONS = 8
_GRACE_BLOCKS = 300
_MOST_HOST_FAILURES = 3
_MOST_REMOTE_FAILURES = 12
_MAY_YET_COME = ("missing_repo", "missing_file")


class Line(NamedTuple):
    """One line of a table."""

    reason: str | None
    loss: float | None


@dataclass
class Books:
    """One validator's books. `findings`: what does not agree; `counts`: what was looked at."""

    validator: str
    history: History
    curve: Curve
    state: Mapping[str, Sequence[Mapping[str, Any]]]
    findings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    # What the rounds should have held of each (hotkey, text), in order: the times they began, with ranks; the blocks.
    _ranks: dict[tuple[str, str], list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    _blocks: dict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))

    @classmethod
    def open(cls, folder: Path, validator: str, history: History, curve: Curve) -> "Books":
        """The books of the validator of that name in the run in `folder`."""
        tables = ("verdicts", "datasets", "receipts", "rounds", "round_members", "standings", "weight_intents")
        uri = f"{(folder / validator / 'validator.sqlite3').resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as db:
            db.row_factory = sqlite3.Row
            state = {name: [dict(row) for row in db.execute(f"SELECT * FROM {name}")] for name in tables}
        return cls(validator, history, curve, state)

    def check(self, folder: Path) -> None:
        """Does all the books but the weights on chain."""
        with Ledger(folder / "chain.sqlite3") as ledger:
            self._check_rounds(ledger)
            self._check_seeds(ledger)
        self._check_verdicts()
        self._check_looks()
        self._check_work()
        self._check_tables()

    def say(self, *words: object) -> None:
        """Adds a finding."""
        self.findings.append(" ".join(map(str, (self.validator, *words))))

    # Verdicts

    def _check_verdicts(self) -> None:
        taken_back = [one._asdict() | {"loss": None} for one in self.history.refusals[self.validator]]
        self.counts["verdict taken back"] = len(taken_back)
        for row in [*self.state["verdicts"], *taken_back]:
            if row in taken_back and row["reason"] not in _MAY_YET_COME:
                self.say("verdict", row["hotkey"], row["entry"], row["reason"], "was taken back")
            key, expected = (row["hotkey"], row["entry"]), self._expect(row)
            found = row["reason"] or "scored"
            self.counts[f"verdict {found}"] += 1
            if found != expected:
                self.say("verdict", key, "is", found, "and should be", expected)
            if row["entry"] not in self.history.texts(row["hotkey"]):
                self.say("verdict", key, "is on what was never committed")

    def _check_looks(self) -> None:
        """What was looked for in vain was not there."""
        for (hotkey, text), looks in self.history.missed[self.validator].items():
            match = _TEXT.fullmatch(text)
            assert match is not None
            self.counts["looks in vain"] += len(looks)
            for at, block in looks:
                if self.history.file_at(match[1], match[3], at) is not None:
                    self.say(hotkey, text, "was not found at block", block, "and was there")

    def _expect(self, row: Mapping[str, Any]) -> str:
        match = _TEXT.fullmatch(row["entry"])
        if match is None or match[2] != self.curve.id:
            return "none at all"
        repo, _, revision = match.groups()
        sha256 = self.history.file_at(repo, revision, row["decided_at"])
        if sha256 is not None:
            return self._flaw(sha256) or "scored"
        if (missing := self._missing(row["entry"])) is not None:
            return missing
        # What passed its checks was there, and has since been judged or taken back: no grace for that.
        block = self._entry_block(row)
        was_there = (row["hotkey"], row["entry"]) in self._passed(row["decided_at"])
        is_late = block_at(row["decided_at"]) > block + _GRACE_BLOCKS
        return self._scored_or_missing(row, is_over=was_there or is_late)

    def _entry_block(self, row: Mapping[str, Any]) -> float:
        """Where the commitment stood in the round in which it was judged; never, when it was in none."""
        opened = {one["id"] for one in self.state["rounds"] if one["started_at"] <= row["decided_at"]}
        key = (row["hotkey"], row["entry"])
        stood = [one for one in self.state["round_members"] if (one["hotkey"], one["entry"]) == key]
        return next((one["block"] for one in reversed(stood) if one["round_id"] in opened), math.inf)

    def _scored_or_missing(self, row: Mapping[str, Any], *, is_over: bool) -> str:
        """Of a promised file that is not there now: scored when fetched before, missing when its time is over."""
        if row["loss"] is not None and (row["hotkey"], row["entry"]) in self._passed(row["decided_at"]):
            return "scored"
        return "missing_file" if is_over else "waiting"

    def _flaw(self, sha256: str) -> str | None:
        """Why a file is refused; rows past the limit do not count."""
        return self.history.contents[sha256].flaw

    def _passed(self, before: float) -> set[tuple[str, str]]:
        """The datasets that had ever passed their checks by a moment."""
        return {key for key, moments in self.history.rows[self.validator].items() if moments[0][0] < before}

    def _known(self, before: float) -> set[tuple[str, str]]:
        """The datasets whose rows were known at a moment: those of what is long gone are forgotten."""
        return {key for key, moments in self.history.rows[self.validator].items() if latest(moments, before, False)}

    def _judged(self, before: float) -> dict[tuple[str, str], Mapping[str, Any]]:
        """The verdicts that stood at a moment."""
        taken_back = [
            one for one in self.history.refusals[self.validator] if one.decided_at < before < one.forgotten_at
        ]
        rows = [one._asdict() | {"loss": None} for one in taken_back]
        rows += [dict(row) for row in self.state["verdicts"] if row["decided_at"] < before]
        return {(row["hotkey"], row["entry"]): row for row in rows}

    def _check_work(self) -> None:
        """Everything was scored once, and every score became a verdict with its receipt."""
        done = [one for one in self.history.worked if one["validator"] == self.validator and one["loss"] is not None]
        times = Counter((one["hotkey"], one["text"]) for one in done)
        for key, count in times.items():
            if count != 1:
                self.say(key, "was scored", count, "times")
        losses = {(one["hotkey"], one["text"]): one["loss"] for one in done}
        verdicts = {
            (row["hotkey"], row["entry"]): row["loss"] for row in self.state["verdicts"] if row["loss"] is not None
        }
        if losses != verdicts:
            self.say("scores and verdicts differ:", set(losses.items()) ^ set(verdicts.items()))
        receipts = {(row["hotkey"], row["entry"]) for row in self.state["receipts"]}
        if receipts != verdicts.keys():
            self.say("receipts and verdicts differ:", receipts ^ verdicts.keys())

    # Rounds and seeds

    def _check_rounds(self, ledger: Ledger) -> None:
        members = _by(self.state["round_members"], "round_id")
        last = -1
        for opened in self.state["rounds"]:
            start = opened["start_block"]
            if start <= last or opened["start_block_hash"] != ledger.hash_of(start):
                self.say("round", opened["id"], "starts at", start, "after", last)
            last = start
            self._check_members(opened, members[opened["id"]])
            self.counts["rounds"] += 1

    def _check_members(self, opened: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> None:
        """The snapshot is what the chain showed at the round's block."""
        start = opened["start_block"]
        expected = {}
        for hotkey, life in self.history.lives(start).items():
            held = self.history.held(hotkey, start)
            if held is not None and held.text is not None:
                block, rank = self._stand(opened, hotkey, held.text, held.block, life)
                expected[hotkey] = (held.text, life.uid, block, rank, life.block)
        names = ("entry", "uid", "block", "rank_block", "registration_block")
        found = {row["hotkey"]: tuple(row[name] for name in names) for row in members}
        for hotkey in expected.keys() | found.keys():
            if expected.get(hotkey) != found.get(hotkey):
                self.say("round", opened["id"], hotkey, "is", found.get(hotkey), "and should be", expected.get(hotkey))
        self.counts["entries"] += len(found)

    def _stand(self, opened: Mapping[str, Any], hotkey: str, text: str, held: int, life: Life) -> tuple[int, int]:
        """(block, rank block) of an entry: the earliest in this life at which the text was to be read, and was set."""
        seen = list(self.history.seen(self.validator, hotkey, text, until=opened["opened_block"]))
        block = min([held, *(one.open_block for one in seen if one.open_block > life.block)])
        rank = min([one.block for one in seen if one.block > life.block], default=held)
        rank = self._rank_behind(opened, (hotkey, text), rank, life)
        self._ranks[hotkey, text].append((opened["started_at"], rank))
        self._blocks[hotkey, text].add(block)
        return block, rank

    def _rank_behind(self, opened: Mapping[str, Any], key: tuple[str, str], rank: int, life: Life) -> int:
        """The rank of an entry after the looks for its file in vain, which are this validator's own.

        Until the file is found it is behind everybody in each round; then it keeps the rank of the round in which that
        was. In no case is it before the last look in vain.
        """
        then = opened["started_at"]
        looks = [(at, at_block) for at, at_block in self.history.missed[self.validator].get(key, []) if at < then]
        looks = [(at, at_block) for at, at_block in looks if at_block > life.block]
        if not looks:
            return rank
        self.counts["ranks lost"] += 1
        rank = max(rank, looks[-1][1] + 1)
        rows = self.history.rows[self.validator].get(key, [])
        if not latest(rows, then, False):
            start_block: int = opened["start_block"]
            return max(rank, start_block + 1)
        found_at = max(at for at, is_known in rows if is_known and at < then)
        return max(rank, latest(self._ranks[key], found_at, 0))

    def _check_seeds(self, ledger: Ledger) -> None:
        """Seeds are those of the first round's block at or after the one at which the text was to be read."""
        periods = {row["end_block"] - row["start_block"] for row in self.state["rounds"]}
        period = max(periods, default=1)
        for row in self.state["receipts"]:
            result = json.loads(row["receipt"])["result"]
            blocks = self._blocks[row["hotkey"], row["entry"]]
            seeds = {_seed(ledger.hash_of(math.ceil(block / period) * period)) for block in blocks}
            if result["lucky_num"] not in seeds:
                self.say("the score of", row["hotkey"], row["entry"], "has seed", result["lucky_num"], "not of", seeds)
            self.counts["seeds"] += 1

    # Tables

    def _check_tables(self) -> None:
        members, standings = _by(self.state["round_members"], "round_id"), _by(self.state["standings"], "round_id")
        intents = _by([row for row in self.state["weight_intents"] if not row["is_repeat"]], "round_id")
        for number, made in intents.items():
            found = {row["hotkey"]: Line(row["reason"], row["loss"]) for row in standings[number]}
            expected = self._expect_table(members[number], made[-1])
            for hotkey in expected.keys() | found.keys():
                if expected.get(hotkey) != found.get(hotkey):
                    self.say("table", number, hotkey, "is", found.get(hotkey), "not", expected.get(hotkey))
            self.counts["lines"] += len(found)
            self.counts["tables"] += 1
            self._check_shares(made[-1], expected, members[number])

    def _expect_table(self, members: Sequence[Mapping[str, Any]], intent: Mapping[str, Any]) -> dict[str, Line]:
        """The line of every entry, given what the validator knew when it made the table."""
        known, judged = self._known(intent["created_at"]), self._judged(intent["created_at"])
        # What was refused after its check is nobody's original.
        good = {key for key in known if key not in judged or judged[key]["reason"] is None}
        refusals = {row["hotkey"]: self._refusal(row) for row in members}
        present = [row for row in members if refusals[row["hotkey"]] is None and (row["hotkey"], row["entry"]) in good]
        copies = self._find_duplicates(present, good, until=intent["block"])
        table = {}
        for row in members:
            hotkey, key = row["hotkey"], (row["hotkey"], row["entry"])
            verdict = judged.get(key)
            # A loss counts while the rows are known: without them it might be a copy's.
            loss = verdict["loss"] if verdict and key in known else None
            if refusals[hotkey] is not None:
                table[hotkey] = Line(refusals[hotkey], None)
            elif hotkey in copies:
                table[hotkey] = Line("duplicate", loss)
            else:
                table[hotkey] = Line(verdict["reason"] if verdict else None, loss)
        return table

    def _missing(self, text: str) -> str | None:
        """Why a text by commit can never have a file; None for any other."""
        match = _TEXT.fullmatch(text)
        if match is None or len(match[3]) != 40 or self.history.file_at(match[1], match[3], math.inf) is not None:
            return None
        return "missing_file" if self.history.has_commit(match[1], match[3]) else "missing_repo"

    def _refusal(self, row: Mapping[str, Any]) -> str | None:
        match = _TEXT.fullmatch(row["entry"])
        if match is None:
            return "bad_commitment"
        if match[2] != self.curve.id:
            return "wrong_competition"
        return "before_registration" if row["block"] <= row["registration_block"] else None

    def _find_duplicates(
        self, present: Sequence[Mapping[str, Any]], known: set[tuple[str, str]], *, until: int
    ) -> set[str]:
        """The hotkeys whose dataset shares too much with an earlier one that is itself no copy, pair by pair."""
        candidates = []
        for row in present:
            rows = self._rows(row["entry"], row["hotkey"])
            candidates.append((row["rank_block"], _tie(row["hotkey"], row["entry"]), row["hotkey"], rows, True))
            candidates += self._versions(row, rows, known, until=until)
        admitted: list[tuple[str, frozenset[int]]] = []
        copies = set()
        for _, _, hotkey, rows, is_present in sorted(candidates, key=lambda one: one[:2]):
            if any(other != hotkey and len(rows & theirs) > _MAX_SHARED for other, theirs in admitted):
                copies |= {hotkey} if is_present else set()
            elif len(rows) > _MAX_SHARED:
                admitted.append((hotkey, rows))
        return copies

    def _versions(
        self, row: Mapping[str, Any], rows: frozenset[int], known: set[tuple[str, str]], *, until: int
    ) -> list[tuple[int, bytes, str, frozenset[int], bool]]:
        """What the hotkey committed besides, in this life, that the present dataset is made of: the earliest few."""
        hotkey, found = row["hotkey"], []
        for text in self.history.texts(hotkey):
            if text == row["entry"] or (hotkey, text) not in known:
                continue
            theirs = self._rows(text, hotkey)
            seen = self.history.seen(self.validator, hotkey, text, until=until)
            first = min([one.block for one in seen if one.block > row["registration_block"]], default=None)
            if first is not None and len(rows & theirs) > _MAX_SHARED:
                found.append((first, text, theirs))
        ordered = sorted(found)[:_MAX_VERSIONS]
        return [(first, _tie(hotkey, text), hotkey, theirs, False) for first, text, theirs in ordered]

    def _rows(self, text: str, hotkey: str) -> frozenset[int]:
        match = _TEXT.fullmatch(text)
        assert match is not None
        sha256 = match[3] if len(match[3]) == 64 else self.history.file_at(match[1], match[3], math.inf)
        if sha256 is None:
            self.say(hotkey, text, "passed its checks without a file")
            return frozenset()
        return frozenset(self.history.contents[sha256].rows[: self.curve.rows])

    def _check_shares(
        self, intent: Mapping[str, Any], table: Mapping[str, Line], members: Sequence[Mapping[str, Any]]
    ) -> None:
        """The shares are the scores', the last ones while nothing can be said, or else the owner's."""
        losses = {hotkey: line.loss for hotkey, line in table.items() if line.reason is None}
        scores = {hotkey: self.curve.score(loss) for hotkey, loss in losses.items() if loss is not None}
        entries = {row["hotkey"]: row["entry"] for row in members}
        waiting = [hotkey for hotkey, loss in losses.items() if loss is None]
        then = intent["created_at"]
        expected = shares_of(scores)
        if not expected and any(not self._is_stuck((hotkey, entries[hotkey]), then) for hotkey in waiting):
            last = self.last_accepted(intent)
            expected = {} if last is None else json.loads(last["shares"])
            self.counts["shares given again"] += bool(expected)
        elif not expected:
            expected = {self.history.owner: 1.0}
            self.counts["burned"] += 1
        if not is_close(json.loads(intent["shares"]), expected):
            self.say("intent", intent["id"], "shares", intent["shares"], "and should share", expected)

    def _is_stuck(self, key: tuple[str, str], before: float) -> bool:
        """True for what was tried so often by a moment that nobody waits for it."""
        remote, host = latest(self.history.put_off[self.validator].get(key, []), before, (0, 0))
        return remote >= _MOST_REMOTE_FAILURES or host >= _MOST_HOST_FAILURES

    def last_accepted(self, intent: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The newest weights that the chain had taken when an intent was made; a new table asks for its contest's."""
        contests = {row["id"]: row["contest_id"] for row in self.state["rounds"]}
        rows = [row for row in self.state["weight_intents"] if (row["finished_at"] or math.inf) < intent["created_at"]]
        rows = [row for row in rows if row["outcome"] is not None and json.loads(row["outcome"])["is_accepted"]]
        if not intent["is_repeat"]:
            rows = [row for row in rows if contests[row["round_id"]] == contests[intent["round_id"]]]
        return rows[-1] if rows else None


def _seed(block_hash: str) -> int:
    return int.from_bytes(hashlib.sha256(b"lucky_num\n" + bytes.fromhex(block_hash[2:])).digest()[:4], "little")


def _tie(hotkey: str, text: str) -> bytes:
    return hashlib.sha256(f"{hotkey}:{text}".encode()).digest()


def _by(rows: Sequence[Mapping[str, Any]], name: str) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row[name]].append(row)
    return found
