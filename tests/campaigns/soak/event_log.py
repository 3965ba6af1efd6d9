"""The event log of a soak run, and the history of the subnet that follows from it.

The miners and the validators' processes write the log. The reference model uses it instead of the validators' state
wherever the two overlap.
"""

import bisect
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

LOG_FILE = "events.jsonl"
# A validator that does not learn where a revealed commitment was made counts it from its reveal after so many blocks.
_COMMIT_BLOCK_PATIENCE = 50

_Fact = TypeVar("_Fact")
Moments = dict[tuple[str, str], list[tuple[float, _Fact]]]
"""By (hotkey, text): [(time, what holds from then on)], in order."""


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


def latest(moments: Sequence[tuple[float, _Fact]], before: float, default: _Fact) -> _Fact:
    """Return what holds at a moment."""
    return next((fact for time, fact in reversed(moments) if time < before), default)


class Registration(NamedTuple):
    """A hotkey's uid, and the block from which it holds it."""

    uid: int
    block: int


class Commitment(NamedTuple):
    """A hotkey's commitment from `block` on, without a text while sealed."""

    block: int
    text: str | None
    sealed_block: int | None = None


class Rejection(NamedTuple):
    """A rejection that a validator expired later."""

    hotkey: str
    entry: str
    reason: str
    decided_at: float
    expired_at: float


class Sighting(NamedTuple):
    """A commitment as a validator sees it: made, and readable, since a block."""

    block: int
    open_block: int


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
        # By validator: the blocks that it read, ascending.
        self.views: dict[str, list[int]] = defaultdict(list)
        # By validator: whether it knew a dataset's rows; the first True is when it passed the checks.
        self.rows: dict[str, Moments[bool]] = defaultdict(lambda: defaultdict(list))
        # By validator: failed attempts to find a file, with their blocks.
        self.missed: dict[str, Moments[int]] = defaultdict(lambda: defaultdict(list))
        # By validator: the failures of (the network, the machine) so far.
        self.retries: dict[str, Moments[tuple[int, int]]] = defaultdict(lambda: defaultdict(list))
        self.expired: dict[str, list[Rejection]] = defaultdict(list)
        self._uids: dict[int, list[tuple[int, str]]] = defaultdict(list)
        self._commitments: dict[str, list[Commitment]] = defaultdict(list)
        self._rejected: dict[tuple[str, str, str], tuple[str, float]] = {}
        self._located: dict[tuple[str, str, int], int] = {}
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
            case {"event": "viewed", "validator": validator, "block": block}:
                bisect.insort(self.views[validator], block)
            case {"event": "located", "validator": validator, "hotkey": hotkey, "reveal_block": reveal, "view": view}:
                self._located.setdefault((validator, hotkey, reveal), view)
            case {"event": "evaluated"}:
                self.evaluated.append(entry)
            case {"validator": validator, "hotkey": hotkey, "text": text}:
                self._add_record(entry, validator, (hotkey, text))
            case {"event": "failed", "error": error}:
                self.failures.append(error)
            case {"event": "spell", "kind": kind}:
                self.events[f"spell of {kind}"] += 1
            case {"event": "action", "action": action}:
                self.events[f"action {action}"] += 1
            case {"event": "finished", "is_settled": is_settled}:
                self.is_settled = is_settled

    def _add_record(self, entry: dict[str, Any], validator: str, key: tuple[str, str]) -> None:
        time = entry["time"]
        if entry["event"] in ("checked", "rejected"):
            self.retries[validator][key].append((time, (0, 0)))
        match entry:
            case {"event": "checked"}:
                self.rows[validator][key].append((time, True))
            case {"event": "rows pruned"}:
                self.rows[validator][key].append((time, False))
            case {"event": "missed", "block": block}:
                self.missed[validator][key].append((time, block))
            case {"event": "retry", "remote_failures": remote, "host_failures": host}:
                self.retries[validator][key].append((time, (remote, host)))
            case {"event": "rejected", "reason": reason}:
                self._rejected[validator, *key] = (reason, time)
            case {"event": "rejection expired"}:
                self.expired[validator].append(Rejection(*key, *self._rejected.pop((validator, *key)), time))

    def registrations(self, block: int) -> dict[str, Registration]:
        """Return every hotkey with a uid at a block."""
        registrations = {}
        for uid, holders in self._uids.items():
            if past := [holder for holder in holders if holder[0] <= block]:
                registrations[past[-1][1]] = Registration(uid, past[-1][0])
        return registrations

    def commitment(self, hotkey: str, block: int) -> Commitment | None:
        past = [commitment for commitment in self._commitments.get(hotkey, []) if commitment.block <= block]
        return past[-1] if past else None

    def texts(self, hotkey: str) -> list[str]:
        """Return every text of a hotkey that was ever readable, oldest first."""
        commitments = self._commitments.get(hotkey, [])
        return list(dict.fromkeys(commitment.text for commitment in commitments if commitment.text is not None))

    def sightings(self, validator: str, hotkey: str, text: str, *, until: int) -> Iterator[Sighting]:
        """Yield each commitment of a text that a validator saw up to a block.

        A sealed one is seen once the chain has told the validator where it was made, or when the validator's patience
        for that is over: then it counts from its reveal.
        """
        commitments = self._commitments.get(hotkey, [])
        ends = [commitment.block for commitment in commitments[1:]] + [until + 1]
        for commitment, next_block in zip(commitments, ends, strict=True):
            if commitment.text != text:
                continue
            block, end = commitment.block, min(next_block, until + 1)
            if commitment.sealed_block is None:
                if self._has_view(validator, block, end):
                    yield Sighting(block, block)
            elif self._located.get((validator, hotkey, block), until + 1) < end:
                yield Sighting(commitment.sealed_block, block)
            elif self._has_view(validator, block + _COMMIT_BLOCK_PATIENCE + 1, end):
                yield Sighting(block, block)

    def _has_view(self, validator: str, start: int, end: int) -> bool:
        """Return whether the validator read a block in [start, end)."""
        views = self.views[validator]
        index = bisect.bisect_left(views, start)
        return index < len(views) and views[index] < end

    def file_at(self, repo: str, revision: str, time: float) -> str | None:
        """Return the sha256 of the data.jsonl of a revision at a time, None without one."""
        if len(revision) == 40:
            return self._commits.get((repo, revision))
        past = [sha256 for uploaded_at, sha256 in self._mains.get(repo, []) if uploaded_at <= time]
        return revision if past and past[-1] == revision else None

    def has_commit(self, repo: str, revision: str) -> bool:
        return (repo, revision) in self._commits
