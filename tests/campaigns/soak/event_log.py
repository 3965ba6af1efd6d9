"""The event log of a soak run, and the history of the subnet that follows from it.

The miners and the validators' processes write the log. The reference model uses it instead of the validators' state
wherever the two overlap.
"""

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

LOG_FILE = "events.jsonl"
# Newest commits of a repo in which a file is looked for by its digest.
_SEARCHED_COMMITS = 50
# Events that a validator's process writes about its own decisions.
RECORDS = ("checked", "rows pruned", "missed", "rejected", "rejection expired", "planned", "tabled", "confirmed")


class EventLog:
    """The log of a run, to which several processes append."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def close(self) -> None:
        os.close(self._file)

    def write(self, event: str, **facts: object) -> None:
        line = json.dumps({"event": event, "time": self._clock(), **facts}) + "\n"
        os.write(self._file, line.encode())


class Registration(NamedTuple):
    """A hotkey's uid, and the block from which it holds it."""

    uid: int
    block: int


class Commitment(NamedTuple):
    """A hotkey's commitment from `block` on, without a text while sealed."""

    block: int
    text: str | None
    sealed_block: int | None = None


class Content(NamedTuple):
    """A file: its pool rows by number, and the reason to reject it, if any."""

    rows: list[int]
    fault: str | None
    text: str


class History:
    """The log of the run in a folder, sorted."""

    def __init__(self, folder: Path) -> None:
        self.events: Counter[str] = Counter()
        self.contents: dict[str, Content] = {}
        self.evaluated: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.owner, self.is_settled = "", False
        # By validator: the events of its process, in order.
        self.records: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._uids: dict[int, list[tuple[int, str]]] = defaultdict(list)
        self._commitments: dict[str, list[Commitment]] = defaultdict(list)
        self._located: dict[tuple[str, str, int], float] = {}
        self._commits: dict[tuple[str, str], str | None] = {}
        self._mains: dict[str, list[tuple[float, str | None]]] = defaultdict(list)
        with (folder / LOG_FILE).open(encoding="utf-8") as lines:
            for line in lines:
                self._add(json.loads(line))

    def _add(self, entry: dict[str, Any]) -> None:
        self.events[entry["event"]] += 1
        match entry:
            case {"event": "registered", "block": block, "hotkey": hotkey, "uid": uid}:
                self.owner = self.owner or hotkey
                self._uids[uid].append((block, hotkey))
            case {"event": "committed", "block": block, "hotkey": hotkey, "text": text}:
                self._commitments[hotkey].append(Commitment(block, text))
            case {"event": "sealed", "block": block, "hotkey": hotkey}:
                self._commitments[hotkey].append(Commitment(block, None))
            case {"event": "revealed", "block": block, "hotkey": hotkey, "text": text}:
                sealed_block = self._commitments[hotkey][-1].block
                self._commitments[hotkey].append(Commitment(block, text, sealed_block))
            case {"event": "uploaded", "repo": repo, "commit": commit, "sha256": sha256, "time": time}:
                self._commits[repo, commit] = sha256
                self._mains[repo].append((time, sha256))
            case {"event": "composed", "sha256": sha256, "fault": fault, "rows": rows, "text": text}:
                self.contents[sha256] = Content(rows, fault, text)
            case {"event": "located", "validator": validator, "hotkey": hotkey, "reveal_block": reveal, "time": time}:
                self._located.setdefault((validator, hotkey, reveal), time)
            case {"event": "evaluated", "validator": validator}:
                self.evaluated.append(entry)
            case {"validator": validator, **facts} if facts["event"] in RECORDS:
                self.records[validator].append(entry)
            case {"event": "failed", "error": error}:
                self.failures.append(error)
            case {"event": "spell", "kind": kind}:
                self.events[f"spell of {kind}"] += 1
            case {"event": "action", "action": action}:
                self.events[f"action {action}"] += 1
            case {"event": "finished", "is_settled": is_settled}:
                self.is_settled = is_settled

    def registrations(self, block: int) -> dict[str, Registration]:
        """Return every hotkey with a uid at a block."""
        registrations = {}
        for uid, holders in self._uids.items():
            if past := [holder for holder in holders if holder[0] <= block]:
                registrations[past[-1][1]] = Registration(uid, past[-1][0])
        return registrations

    def commitment(self, hotkey: str, block: int) -> Commitment | None:
        """Return a hotkey's commitment at a block. The chain purges those of an earlier registration."""
        since = max(
            (
                start
                for holders in self._uids.values()
                for start, holder in holders
                if holder == hotkey and start <= block
            ),
            default=0,
        )
        past = [commitment for commitment in self._commitments.get(hotkey, []) if since <= commitment.block <= block]
        return past[-1] if past else None

    def texts(self, hotkey: str) -> list[str]:
        """Return every text of a hotkey that was ever readable, oldest first."""
        commitments = self._commitments.get(hotkey, [])
        return list(dict.fromkeys(commitment.text for commitment in commitments if commitment.text is not None))

    def is_located(self, validator: str, hotkey: str, reveal_block: int, time: float) -> bool:
        """Check that a validator had read the commit block of a revealed commitment."""
        return self._located.get((validator, hotkey, reveal_block), math.inf) < time

    def file_at(self, repo: str, revision: str, time: float) -> str | None:
        """Return the sha256 of the data.jsonl of a revision at a time, None without one."""
        if len(revision) == 40:
            return self._commits.get((repo, revision))
        past = [sha256 for uploaded_at, sha256 in self._mains.get(repo, []) if uploaded_at <= time]
        return revision if revision in past[-_SEARCHED_COMMITS:] else None

    def has_commit(self, repo: str, revision: str) -> bool:
        return (repo, revision) in self._commits
