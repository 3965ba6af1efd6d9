"""The state of the game of one validator, for the reference model."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.campaigns.soak.reference_rules import (
    Confirmed,
    Entered,
    Rules,
    Run,
    Version,
    digest_of,
    find_duplicates,
    find_versions,
    next_aligned,
    shields,
    walk_ledger,
)
from tests.campaigns.synthetic_subnet import short_texts

Rows = frozenset[int]
DatasetKey = tuple[str, Rows]
Seen = tuple[str, str, int, int, int]
"""Hotkey, text, reveal block, commit block and registration block of an entry."""
# Rows of the soak's pool, see `tests.campaigns.soak.miners`.
FACTOR = 7


@dataclass(frozen=True)
class Table:
    """The datasets in the game at one block, and the texts of the present ones.

    readable: last aligned block at which each hotkey had a dataset.
    """

    present: Sequence[Entered]
    texts: Mapping[DatasetKey, str]
    readable: Mapping[str, int]
    duplicates: Collection[DatasetKey]
    ledger: Sequence[Confirmed]

    @property
    def originals(self) -> list[Entered]:
        return [dataset for dataset in self.present if dataset.key not in self.duplicates]


@dataclass
class GameState:
    """The commitments, datasets and losses of one validator.

    runs: of each hotkey. downloaded: rows by hotkey and text. confirmed: with their ranks.
    """

    rules: Rules
    hash_of: Callable[[int], str]
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    downloaded: dict[str, dict[str, Rows]] = field(default_factory=lambda: defaultdict(dict))
    losses: dict[DatasetKey, list[float]] = field(default_factory=lambda: defaultdict(list))
    confirmed: dict[DatasetKey, Entered] = field(default_factory=dict)
    _digests: dict[Rows, str] = field(default_factory=dict)
    _hashes: dict[int, str] = field(default_factory=dict)

    def digest_of(self, rows: Rows) -> str:
        if rows not in self._digests:
            self._digests[rows] = digest_of(short_texts(number, FACTOR) for number in rows)
        return self._digests[rows]

    def newest(self, hotkey: str) -> Run | None:
        return max(self.runs.get(hotkey, []), key=lambda run: run.first, default=None)

    def see(self, block: int, entries: Iterable[Seen], missing: Collection[tuple[str, str]]) -> None:
        """Record the accepted texts at an aligned block.

        missing: texts whose file was missing before.
        """
        period, before = self.rules.blocks_per_epoch, max((run.last for run in self._all_runs()), default=-1)
        runs = []
        for hotkey, text, reveal, commit, registration in entries:
            is_missing, is_known = (hotkey, text) in missing, text in self.downloaded[hotkey]
            if is_missing and is_known:
                continue
            run = self.newest(hotkey)
            is_same = run is not None and (run.text, run.registration, run.last) == (text, registration, before)
            # After skipped rounds, a text that was not committed again was set all the time.
            if run is None or not is_same or not (before >= block - period or commit <= before):
                was_gone = is_known and reveal <= before
                first = block if was_gone else next_aligned(commit, period)
                run = Run(text, first, block, commit, reveal, registration)
                # A run from before the round that was left out takes the place of one with the same beginning.
                self.runs[hotkey] = [other for other in self.runs[hotkey] if other.first != run.first]
                runs.append((hotkey, run))
            run.last, run.missing = block, block if is_missing else run.missing
        for hotkey, run in runs:
            self.runs[hotkey].append(run)

    def _all_runs(self) -> Iterator[Run]:
        return (run for runs in self.runs.values() for run in runs)

    def miss(self, hotkey: str, text: str, block: int) -> None:
        """Note that a text's file was missing in the round of this block."""
        for run in self.runs[hotkey]:
            if run.text == text and run.first <= block <= run.last:
                run.missing = max(run.missing, block)

    def forget(self, hotkeys: Collection[str], *, before_block: int) -> None:
        """Keep each hotkey's newest run, and one for each dataset."""
        for hotkey, runs in self.runs.items():
            if not runs:
                continue
            runs.sort(key=lambda run: run.first)
            newest, by_first = runs[-1], {run.first: run for run in runs}
            versions = find_versions([Run(**vars(run)) for run in runs], self.downloaded[hotkey], self.rules)
            shortened = []
            for version in versions:
                first = by_first[version.first]
                shortened.append(Run(**{**vars(first), "text": version.text, "last": version.last}))
            if not shortened or (shortened[-1].text, shortened[-1].last) != (newest.text, newest.last):
                shortened.append(newest)
            if hotkey not in hotkeys:
                shortened = [run for run in shortened if run.last >= before_block]
            self.runs[hotkey] = shortened

    def table(
        self,
        block: int,
        accepted: Mapping[str, str],
        registrations: Mapping[str, int],
        rejected: Collection[tuple[str, str]],
    ) -> Table:
        """Return the game at a block, given the accepted texts."""
        present: dict[DatasetKey, Entered] = {}
        texts: dict[DatasetKey, str] = {}
        readable: dict[str, int] = {}
        candidates: dict[DatasetKey, Entered] = {}
        for hotkey, runs in self.runs.items():
            versions = find_versions([Run(**vars(run)) for run in runs], self.downloaded[hotkey], self.rules)
            if not versions or registrations.get(hotkey, versions[0].registration) != versions[0].registration:
                continue
            text = accepted.get(hotkey)
            good = [version for version in versions if (hotkey, version.text) not in rejected]
            readable[hotkey] = max((version.last for version in good), default=-1)
            for version in versions:
                if version.text == text and version.last >= block and version.counts:
                    entered = self._enter(hotkey, version)
                    present[entered.key], texts[entered.key] = entered, version.text
            for version in shields(versions, text):
                if version.public[0] <= block:
                    shield = self._make(hotkey, version)
                    candidates.setdefault(shield.key, shield)
            for version in versions:
                if version.public[0] <= block:
                    former = self._make(hotkey, version, replaced=True)
                    candidates.setdefault(former.key, former)
        for key, past in self.confirmed.items():
            if key not in candidates or candidates[key].replaced or past.public < candidates[key].public:
                candidates[key] = past
        duplicates = find_duplicates(candidates.values(), self.rules.blocks_per_epoch)
        paid = {**self.confirmed, **present}
        ledger = walk_ledger([paid[key] for key in paid if key not in duplicates], self.losses, self.rules)
        return Table(list(present.values()), texts, readable, duplicates, ledger)

    def _enter(self, hotkey: str, version: Version) -> Entered:
        return self.confirmed.get((hotkey, version.rows)) or self._make(hotkey, version)

    def _make(self, hotkey: str, version: Version, *, replaced: bool = False) -> Entered:
        block_hash = "" if replaced else self._hash(version.public[0])
        tie = hashlib.sha256(f"{block_hash}\n{hotkey}\n{self.digest_of(version.rows)}".encode()).digest()
        return Entered(
            hotkey=hotkey,
            rows=version.rows,
            rank=(version.since, version.commit, tie),
            registration=version.registration,
            public=(*version.public, tie),
            seeded=version.seeded,
            replaced=replaced,
        )

    def _hash(self, block: int) -> str:
        if block not in self._hashes:
            self._hashes[block] = self.hash_of(block)
        return self._hashes[block]

    def confirm(self, table: Table) -> None:
        """Keep the rank of each dataset that has entered the ledger."""
        for line in table.ledger:
            self.confirmed.setdefault(line.entered.key, line.entered)
