"""What must have been at every block of a soak run, from its diary alone: who stood where, which file was where."""

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.campaigns.soak.diary import read_diary

_OPENING_PATIENCE_BLOCKS = 50

_Fact = TypeVar("_Fact")
Moments = dict[tuple[str, str], list[tuple[float, _Fact]]]
"""[(time, what is so from then on)] by (hotkey, text), in order."""


def _by_validator() -> dict[str, Any]:
    return defaultdict(lambda: defaultdict(list))


def latest(moments: Sequence[tuple[float, _Fact]], before: float, default: _Fact) -> _Fact:
    """What was so at a moment."""
    return next((fact for at, fact in reversed(moments) if at < before), default)


class Life(NamedTuple):
    """A hotkey's uid, and the block from which it held it."""

    uid: int
    block: int


class Held(NamedTuple):
    """What a hotkey's commitment held from `block` on: a text, or a seal while `text` is None.

    sealed_block: of the commitment itself, when the chain opened it at `block`; else None.
    """

    block: int
    text: str | None
    sealed_block: int | None = None


class Refusal(NamedTuple):
    """A verdict that a validator took back later, with the times of both."""

    hotkey: str
    entry: str
    reason: str
    decided_at: float
    forgotten_at: float


class Seen(NamedTuple):
    """A commitment as a validator saw it: set at `block`, to be read by everybody from `open_block` on."""

    block: int
    open_block: int


@dataclass(frozen=True)
class Content:
    """A file: the pool rows in it by number, and the reason to refuse it, if any."""

    rows: tuple[int, ...]
    flaw: str | None
    text: str


@dataclass
class History:
    """The diary, sorted.

    events: how often each. views: the blocks that each validator looked at, ascending. What each validator did at what
    moment with a (hotkey, text), which its state file does not keep: rows: whether it knew the rows from then on, so
    that the first True is when it found the dataset good. missed: looks for a file in vain, with their blocks. put_off:
    the failures of (the network, the machine) by then. refusals: those taken back.
    """

    events: Counter[str] = field(default_factory=Counter)
    deeds: Counter[str] = field(default_factory=Counter)
    contents: dict[str, Content] = field(default_factory=dict)
    views: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[str, Moments[bool]] = field(default_factory=_by_validator)
    missed: dict[str, Moments[int]] = field(default_factory=_by_validator)
    put_off: dict[str, Moments[tuple[int, int]]] = field(default_factory=_by_validator)
    refusals: dict[str, list[Refusal]] = field(default_factory=lambda: defaultdict(list))
    worked: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    owner: str = ""
    is_settled: bool = False
    _uids: dict[int, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    _held: dict[str, list[Held]] = field(default_factory=lambda: defaultdict(list))
    _refused: dict[tuple[str, str, str], tuple[str, float]] = field(default_factory=dict)
    _last_view: dict[str, int] = field(default_factory=dict)
    _opened: dict[tuple[str, str, int], int] = field(default_factory=dict)
    _commits: dict[tuple[str, str], str | None] = field(default_factory=dict)
    _mains: dict[str, list[tuple[float, str | None]]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def read(cls, folder: Path) -> "History":
        """The history of the run in `folder`."""
        history = cls()
        for entry in read_diary(folder):
            history._take(entry)
        return history

    def _take(self, entry: dict[str, Any]) -> None:
        self.events[entry["event"]] += 1
        match entry:
            case {"event": "registered", "block": block, "hotkey": hotkey, "uid": uid}:
                self.owner = self.owner or hotkey
                self._uids[uid].append((block, hotkey))
            case {"event": "committed", "block": block, "hotkey": hotkey, "text": text}:
                self._held[hotkey].append(Held(block, text))
            case {"event": "sealed", "block": block, "hotkey": hotkey}:
                self._held[hotkey].append(Held(block, None))
            case {"event": "revealed", "block": block, "hotkey": hotkey, "text": text}:
                self._held[hotkey].append(Held(block, text, self._held[hotkey][-1].block))
            case {"event": "uploaded", "repo": repo, "commit": commit, "sha256": sha256, "time": time}:
                self._commits[repo, commit] = sha256
                self._mains[repo].append((time, sha256))
            case {"event": "composed", "sha256": sha256, "flaw": flaw, "rows": rows, "text": text}:
                self.contents[sha256] = Content(tuple(rows), flaw, text)
            case {"event": "viewed", "validator": validator, "block": block}:
                bisect.insort(self.views[validator], block)
                self._last_view[validator] = block
            case {"event": "opened", "validator": validator, "hotkey": hotkey, "reveal_block": block}:
                self._opened.setdefault((validator, hotkey, block), self._last_view[validator])
            case {"validator": validator, "hotkey": hotkey, "text": text} if entry["event"] != "worked":
                self._take_deed(entry, validator, (hotkey, text))
            case {"event": "worked"}:
                self.worked.append(entry)
            case {"event": "tick failed", "error": error}:
                self.failures.append(error)
            case {"event": "measured"}:
                self.measured.append(entry)
            case {"event": "spell", "kind": kind}:
                self.events[f"spells of {kind}"] += 1
            case {"event": "deed", "deed": deed}:
                self.deeds[deed] += 1
            case {"event": "finished", "is_settled": is_settled}:
                self.is_settled = is_settled

    def _take_deed(self, entry: dict[str, Any], validator: str, key: tuple[str, str]) -> None:
        """What a validator did with a submission."""
        match entry:
            case {"event": "checked", "time": time}:
                self.rows[validator][key].append((time, True))
                self.put_off[validator][key].append((time, (0, 0)))
            case {"event": "rows forgotten", "time": time}:
                self.rows[validator][key].append((time, False))
            case {"event": "missed", "time": time, "block": block}:
                self.missed[validator][key].append((time, block))
            case {"event": "put off", "time": time, "remote_failures": remote, "host_failures": host}:
                self.put_off[validator][key].append((time, (remote, host)))
            case {"event": "refused", "time": time, "reason": reason}:
                self.put_off[validator][key].append((time, (0, 0)))
                self._refused[validator, *key] = (reason, time)
            case {"event": "refusal taken back", "time": time}:
                self.refusals[validator].append(Refusal(*key, *self._refused.pop((validator, *key)), time))

    def lives(self, block: int) -> dict[str, Life]:
        """Everybody with a uid at a block, by hotkey."""
        found = {}
        for uid, holders in self._uids.items():
            past = [holder for holder in holders if holder[0] <= block]
            if past:
                found[past[-1][1]] = Life(uid, past[-1][0])
        return found

    def held(self, hotkey: str, block: int) -> Held | None:
        """What a hotkey's commitment held at a block."""
        past = [held for held in self._held.get(hotkey, []) if held.block <= block]
        return past[-1] if past else None

    def texts(self, hotkey: str) -> list[str]:
        """Every text that was ever to be read of a hotkey, each once, in the order of their first blocks."""
        return list(dict.fromkeys(held.text for held in self._held.get(hotkey, []) if held.text is not None))

    def seen(self, validator: str, hotkey: str, text: str, *, until: int) -> Iterator[Seen]:
        """The times that a hotkey committed a text, as far as a validator could see it up to the block `until`.

        One that was sealed is seen once the chain has told the validator where it was made, or when that was asked for
        in vain for long: then it counts from its opening.
        """
        states = self._held.get(hotkey, [])
        ends = [held.block for held in states[1:]] + [until + 1]
        for held, end in zip(states, ends, strict=True):
            if held.text != text:
                continue
            end = min(end, until + 1)
            if held.sealed_block is None:
                if self._looked(validator, held.block, end):
                    yield Seen(held.block, held.block)
            elif self._opened.get((validator, hotkey, held.block), until + 1) < end:
                yield Seen(held.sealed_block, held.block)
            elif self._looked(validator, held.block + _OPENING_PATIENCE_BLOCKS + 1, end):
                yield Seen(held.block, held.block)

    def _looked(self, validator: str, start: int, end: int) -> bool:
        """True when the validator looked at a block in [start, end)."""
        views = self.views[validator]
        at = bisect.bisect_left(views, start)
        return at < len(views) and views[at] < end

    def file_at(self, repo: str, revision: str, time: float) -> str | None:
        """The sha256 of the data.jsonl that a repo held under a revision at a moment; None when it held none."""
        if len(revision) == 40:
            return self._commits.get((repo, revision))
        past = [sha256 for at, sha256 in self._mains.get(repo, []) if at <= time]
        return revision if past and past[-1] == revision else None

    def has_commit(self, repo: str, revision: str) -> bool:
        """True when the repo has the commit, with or without a file."""
        return (repo, revision) in self._commits
