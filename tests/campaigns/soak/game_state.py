"""The state of the game as one validator knows it, for the reference model."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
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
    rank_of,
    shields,
    walk_ledger,
)
from tests.campaigns.synthetic_subnet import short_texts

Rows = frozenset[int]
DatasetKey = tuple[str, Rows]
# Rows of the soak's pool, see `tests.campaigns.soak.miners`.
FACTOR = 7


@dataclass(frozen=True)
class Table:
    """The datasets in the game at one block, and the texts of the present ones."""

    present: Sequence[Entered]
    texts: Mapping[DatasetKey, str]
    duplicates: Collection[DatasetKey]
    ledger: Sequence[Confirmed]

    @property
    def originals(self) -> list[Entered]:
        return [dataset for dataset in self.present if dataset.key not in self.duplicates]


@dataclass
class GameState:
    """What a validator has seen, downloaded and evaluated so far.

    runs: of each hotkey. known: rows of each downloaded dataset, by hotkey and text. confirmed: with their ranks.
    """

    rules: Rules
    hash_of: Callable[[int], str]
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    known: dict[str, dict[str, Rows]] = field(default_factory=lambda: defaultdict(dict))
    losses: dict[DatasetKey, list[float]] = field(default_factory=lambda: defaultdict(list))
    confirmed: dict[DatasetKey, Entered] = field(default_factory=dict)
    _digests: dict[Rows, str] = field(default_factory=dict)
    _hashes: dict[int, str] = field(default_factory=dict)

    def digest_of(self, rows: Rows) -> str:
        if rows not in self._digests:
            self._digests[rows] = digest_of(short_texts(number, FACTOR) for number in rows)
        return self._digests[rows]

    def see(self, block: int, entries: Mapping[str, tuple[str, int, int]]) -> None:
        """Note each hotkey's text, commit block and registration block at an aligned block."""
        period = self.rules.blocks_per_epoch
        for hotkey, (text, commit, registration) in entries.items():
            runs = self.runs[hotkey]
            newest = max(runs, key=lambda run: run.first, default=None)
            if (
                newest is not None
                and (newest.text, newest.registration) == (text, registration)
                and (block <= newest.last + period or commit <= newest.last)
            ):
                newest.last = block
                continue
            runs.append(Run(text, next_aligned(commit, period), block, commit, registration))

    def miss(self, hotkey: str, text: str, block: int) -> None:
        """Note that a text's file was missing in the round of this block."""
        for run in self.runs[hotkey]:
            if run.text == text and run.last >= block:
                run.missing = block

    def forget(self, hotkeys: Collection[str], *, before_block: int) -> None:
        """Keep each hotkey's newest run and those of datasets that counted."""
        for hotkey, runs in self.runs.items():
            if not runs:
                continue
            runs.sort(key=lambda run: run.first)
            newest, by_first = runs[-1], {run.first: run for run in runs}
            versions = find_versions([Run(**vars(run)) for run in runs], self.known[hotkey], self.rules)
            kept = []
            for version in versions:
                if version.counts:
                    first = by_first[version.first]
                    kept.append(Run(version.text, first.first, version.last, first.commit, first.registration))
                    kept[-1].missing = first.missing
            if not kept or (kept[-1].text, kept[-1].last) != (newest.text, newest.last):
                kept.append(newest)
            if hotkey not in hotkeys:
                kept = [run for run in kept if run.last >= before_block]
            self.runs[hotkey] = kept

    def table(self, block: int, accepted: Mapping[str, str], rejected: Collection[tuple[str, str]]) -> Table:
        """Return the game at a block, given the accepted texts."""
        present: dict[DatasetKey, Entered] = {}
        texts: dict[DatasetKey, str] = {}
        candidates: dict[DatasetKey, Entered] = {}
        for hotkey, runs in self.runs.items():
            known = {text: rows for text, rows in self.known[hotkey].items() if (hotkey, text) not in rejected}
            versions = find_versions([Run(**vars(run)) for run in runs], known, self.rules)
            text = accepted.get(hotkey)
            text = text if (hotkey, text) not in rejected else None
            for version in versions:
                if version.text == text and version.last >= block and version.counts:
                    entered = self._enter(hotkey, version)
                    present[entered.key], texts[entered.key] = entered, version.text
            for version in shields(versions, text):
                entered = self._enter(hotkey, version)
                candidates.setdefault(entered.key, entered)
        candidates |= present
        candidates |= self.confirmed
        duplicates = find_duplicates(candidates.values())
        paid = {**self.confirmed, **present}
        ledger = walk_ledger([paid[key] for key in paid if key not in duplicates], self.losses, self.rules)
        return Table(list(present.values()), texts, duplicates, ledger)

    def _enter(self, hotkey: str, version: Version) -> Entered:
        past = self.confirmed.get((hotkey, version.rows))
        if past is not None:
            return past
        rank = rank_of(version, hotkey, self.digest_of(version.rows), self._hash)
        return Entered(hotkey, version.rows, rank, version.registration)

    def _hash(self, block: int) -> str:
        if block not in self._hashes:
            self._hashes[block] = self.hash_of(block)
        return self._hashes[block]

    def confirm(self, table: Table) -> None:
        """Keep the rank of each dataset that has entered the ledger."""
        for line in table.ledger:
            self.confirmed.setdefault(line.entered.key, line.entered)
