"""A subnet under the rules of the package, with simulated datasets and losses.

A dataset has 20 rows of some value. Its true loss is the competition's bench minus their mean value; an evaluation adds
noise that its digest and seed decide. Commitments, files and hotkeys are changed by the miners; all that follows from
them is computed by `template.rules`.
"""

import functools
import hashlib
import math
import random
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from template.competition import CommitmentRecord, Competition, Incentives
from template.constants import DAY_BLOCKS
from template.errors import Reason
from template.records import (
    Confirmed,
    ContentKey,
    Dataset,
    Entry,
    LeaderboardRow,
    LedgerLine,
    Stand,
    SubmissionKey,
    Verdict,
)
from template.rules.evaluations import PlannedEvaluation, derive_seed, newcomer_blocks, plan_evaluations
from template.rules.leaderboard import build_leaderboard, choose_weights, find_undecided
from template.rules.ledger import LedgerRow
from template.rules.lookups import newest_commitments, records_to_look_up
from template.rules.stands import extend_stands, find_versions, shorten_stands
from template.rules.table import Inputs, Table, make_table
from tests.campaigns.game.absences import Absences
from tests.campaigns.game.submissions import ROWS, Commitment, Rows

ROUNDS_PER_DAY = 20
OWNER = "owner"

# Standard deviation of a loss between seeds, and of row values within a find.
SD = 0.01
ROW_SD = 0.03


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The simulated miners and datasets.

    set_sd: standard deviation of a dataset's true loss beyond its rows. own_runs: evaluations that a miner makes at
    home of a dataset. margin: by how many `epsilon` it must seem better than the best record to be published.
    rounds_per_find: mean time in which a miner's research finds a dataset.
    """

    set_sd: float = 0.0002
    own_runs: int = 1024
    margin: float = 1.0
    rounds_per_find: float = 2.0 * ROUNDS_PER_DAY


@functools.lru_cache(maxsize=1 << 16)
def _hash_block(seed: int, block: int) -> str:
    return hashlib.sha256(f"{seed} {block}".encode()).hexdigest()


class Miner(Protocol):
    """One miner with any number of hotkeys."""

    def act(self, game: "Game") -> None:
        """Commit, upload and remove before the next aligned block."""

    def react(self, game: "Game") -> None:
        """Upload or remove files after the aligned block, before they are downloaded."""


class Game:
    """The chain, the Hub and a validator. block: the next aligned block."""

    def __init__(self, competition: Competition, incentives: Incentives, seed: int, settings: Settings) -> None:
        self.competition, self.incentives, self.seed, self.settings = competition, incentives, seed, settings
        self.period = incentives.blocks_per_epoch
        self.block = self.period
        self.round = self.season = 0
        self.values: dict[int, float] = {}
        self.noise: dict[int, float] = {}
        self.registrations: dict[str, int] = {}
        self.commitments: dict[str, Commitment] = {}
        self.hidden: set[SubmissionKey] = set()
        self.contents: dict[str, Rows] = {}
        self.datasets: dict[SubmissionKey, Dataset] = {}
        self.losses: dict[ContentKey, list[float]] = {}
        self.confirmed: dict[ContentKey, Confirmed] = {}
        self.table = Table(present={}, waiting={}, readable={}, duplicates={}, ledger=())
        self.rows: Mapping[str, LeaderboardRow] = {}
        self.shares: Mapping[str, float] = {}
        self.ledger: Sequence[LedgerLine] = ()
        self.planned: list[PlannedEvaluation] = []
        self.waits: list[tuple[str, int]] = []
        self._stands: dict[str, dict[int, Stand]] = {}
        self._verdicts: dict[SubmissionKey, Verdict] = {}
        self._absences = Absences(self.period)
        self._entries: dict[str, Entry] = {}
        self._evaluated: set[str] = set()
        self._commits = 0
        self._runs: deque[tuple[int, str]] = deque()
        self._latent: dict[str, tuple[float, float]] = {}

    def register(self, hotkey: str) -> None:
        self.registrations[hotkey] = self.block - self.period + 1

    def deregister(self, hotkey: str) -> None:
        del self.registrations[hotkey]

    def commit(
        self, hotkey: str, rows: Rows, *, repo: str = "data", sealed_rounds: int = 0, is_visible: bool = True
    ) -> None:
        """Replace the hotkey's commitment; sealed ones are revealed after so many rounds."""
        record = CommitmentRecord(f"{hotkey}/{repo}", self.competition.id, rows.digest)
        key = SubmissionKey(hotkey, str(record))
        self._commits += 1
        block = self.block - self.period + 2 + min(self._commits, self.period - 2)
        self.commitments[hotkey] = Commitment(key, record, rows, block, block + sealed_rounds * self.period)
        self.contents[rows.digest] = rows
        self.show(hotkey, is_visible=is_visible)

    def show(self, hotkey: str, *, is_visible: bool = True) -> None:
        key = self.commitments[hotkey].key
        if is_visible:
            self.hidden.discard(key)
        else:
            self.hidden.add(key)

    @property
    def paid(self) -> Mapping[str, float]:
        """The shares in the weights."""
        return self.shares

    @property
    def frontier(self) -> float:
        """The best loss of all records, bench without any."""
        return min((row.estimate.loss for row in self.records), default=self.competition.bench)

    @property
    def records(self) -> list[LedgerRow]:
        return [row for row in self.table.ledger if row.credit > 0.0]

    @property
    def best_value(self) -> float:
        """The true improvement on bench of the best record."""
        datasets = [self.contents[row.content.key.digest] for row in self.records]
        return max((self.competition.bench - self.true_loss(dataset) for dataset in datasets), default=0.0)

    def true_loss(self, rows: Rows) -> float:
        return self._true(rows)[0]

    def _true(self, rows: Rows) -> tuple[float, float]:
        if rows.digest not in self._latent:
            own = random.Random(f"{self.seed} {rows.digest}").gauss(0.0, self.settings.set_sd)
            mean = math.fsum(self.values[number] for number in rows.numbers) / ROWS
            spread = SD * math.fsum(self.noise.get(number, 1.0) for number in rows.numbers) / ROWS
            self._latent[rows.digest] = (self.competition.bench - mean + own, spread)
        return self._latent[rows.digest]

    def block_hash(self, block: int) -> str:
        return _hash_block(self.seed, block)

    def evaluate(self, rows: Rows, number: int, seed_block: int, season: int | None = None) -> float:
        """Return the loss of an evaluation, which anybody can compute after the block.

        season: of the model, None for the present one.
        """
        seed = derive_seed(self.block_hash(seed_block), self.digest_of(rows), number)
        return self.simulate_loss(rows, seed, self.season if season is None else season)

    def simulate_loss(self, rows: Rows, seed: int, season: int) -> float:
        """Return the loss of a training with this seed and the season's model."""
        loss, spread = self._true(rows)
        return loss + random.Random(f"{seed + season} {rows.digest}").gauss(0.0, spread)

    def digest_of(self, rows: Rows) -> str:
        """Return the digest from which seeds are derived."""
        return rows.digest

    def is_confirmed(self, hotkey: str) -> bool:
        """Check that the hotkey's dataset has all its evaluations."""
        row = self.rows.get(hotkey)
        return row is not None and row.runs >= self.incentives.evaluations

    def is_open(self, hotkey: str) -> bool:
        """Check that the hotkey's dataset still waits for evaluations."""
        row = self.rows.get(hotkey)
        if row is None or row.reason is not None:
            return False
        margin = 2.0 * self.incentives.sd / math.sqrt(row.runs) if row.runs else math.inf
        is_hopeless = row.loss is not None and row.loss >= self.frontier - self.incentives.epsilon + margin
        return row.runs < self.incentives.evaluations and not is_hopeless

    def play_round(self, miners: Iterable[Miner]) -> None:
        """Let the miners act, and follow the rules for one round."""
        miners = list(miners)
        self._commits = 0
        for miner in miners:
            miner.act(self)
        self.reach_aligned_block()
        for miner in miners:
            miner.react(self)
        self.follow_rules()
        self.block += self.period
        self.round += 1
        if self.round % ROUNDS_PER_DAY == 0:
            self._clean_up()

    def reach_aligned_block(self) -> None:
        """Make the blocks up to the aligned one; here they need no work."""

    def follow_rules(self) -> None:
        """Download, evaluate and set the weights, in the validator's order."""
        entries = self._read_entries()
        self._download(entries)
        table = self._make_table(entries)
        wanted = self._files_to_find(entries)
        self.planned = self._evaluate(table, len(entries))
        if self.planned:
            self._absences.update(wanted, self.hidden, self.block, self._stands)
            table = self._make_table(entries)
        self.table = table
        self._update_leaderboard(entries)
        if not self.planned:
            # Weights without new losses do not wait for the Hub.
            self._absences.update(wanted, self.hidden, self.block, self._stands)
        self._forget_departed()

    def _update_leaderboard(self, entries: Mapping[SubmissionKey, Entry]) -> None:
        long_absent = self._absences.long
        missing = Verdict(reason=Reason.MISSING_FILE)
        verdicts = {**self._verdicts, **{key: missing for key in long_absent if key in entries}}
        absent = {content for content, key in self._newest_commitments().items() if key in long_absent}
        board = build_leaderboard(self.competition, self.incentives, entries, verdicts, self.table, self.block, absent)
        self.shares = choose_weights(
            board.rows,
            self.shares,
            OWNER,
            has_ledger=bool(self.confirmed),
            undecided=find_undecided(self.table, self.incentives.season_block, self.competition, self.incentives),
        )
        self.rows = {row.hotkey: row for row in board.rows}
        self.ledger = board.ledger

    def _make_table(self, entries: Mapping[SubmissionKey, Entry]) -> Table:
        """Make the table, and record the datasets that are confirmed."""
        table = make_table(
            Inputs(
                block=self.block,
                competition=self.competition,
                incentives=self.incentives,
                entries=entries,
                stands={hotkey: list(stands.values()) for hotkey, stands in self._stands.items()},
                datasets=self.datasets,
                losses=self.losses,
                confirmed=self.confirmed,
                rejected=self._verdicts,
                block_hash=self.block_hash,
            )
        )
        for row in table.ledger:
            content = row.content
            if content.key not in self.confirmed:
                self.confirmed[content.key] = Confirmed(
                    rank=content.rank,
                    registration_block=content.registration_block,
                    row_keys=self.contents[content.key.digest].dataset.row_keys,
                    public=content.public,
                )
        return table

    def _read_entries(self) -> dict[SubmissionKey, Entry]:
        """Return the entries of the aligned block, and extend the stands."""
        entries = {}
        for uid, (hotkey, registration) in enumerate(self.registrations.items()):
            commitment, last = self.commitments.get(hotkey), self._entries.get(hotkey)
            if commitment is None or commitment.reveal_block <= registration:
                continue
            if commitment.reveal_block <= self.block:
                commit_block = commitment.commit_block
                entries[commitment.key] = Entry(
                    key=commitment.key,
                    uid=uid,
                    reveal_block=commitment.reveal_block,
                    commit_block=commit_block if commit_block > registration else commitment.reveal_block,
                    registration_block=registration,
                    record=commitment.record,
                    rejection=None,
                )
            elif last is not None and last.registration_block == registration:
                entries[last.key] = last
        self._entries = {key.hotkey: entry for key, entry in entries.items()}
        newest = {hotkey: stands[max(stands)] for hotkey, stands in self._stands.items()}
        missing = self._absences.long
        for stand in extend_stands(
            newest, entries.values(), self.block, self.period, missing=missing, datasets=self.datasets
        ):
            stands = self._stands.setdefault(stand.key.hotkey, {})
            stands[stand.first_block] = stand
            if len(stands) > 1:
                self._stands[stand.key.hotkey] = dict(sorted(stands.items()))
        return entries

    def _download(self, entries: Mapping[SubmissionKey, Entry]) -> None:
        """Read new files; the missing ones are tried again in the next round."""
        self._verdicts = {}
        for key in entries:
            if key in self.datasets:
                continue
            if key in self.hidden:
                self._verdicts[key] = Verdict(reason=Reason.MISSING_FILE)
                stands = self._stands[key.hotkey]
                stands[max(stands)] = replace(stands[max(stands)], missing_block=self.block)
            else:
                self.datasets[key] = self.contents[key.commitment.rpartition(":")[2]].dataset

    def _files_to_find(self, entries: Mapping[SubmissionKey, Entry]) -> list[SubmissionKey]:
        """Return the files of hotkeys in the ledger, of paid records, and those that were missing."""
        in_ledger = {key.hotkey for key in self.confirmed}
        own = [key for key in entries if key in self.datasets and (key.hotkey in in_ledger or key in self._absences)]
        records = records_to_look_up(
            self.block,
            self.ledger,
            {entry.key.hotkey: entry.registration_block for entry in entries.values()},
            self.incentives,
            self._newest_commitments(),
            self._absences,
        )
        return list(dict.fromkeys([*own, *records]))

    def _newest_commitments(self) -> dict[ContentKey, SubmissionKey]:
        stands = {hotkey: list(stands.values()) for hotkey, stands in self._stands.items()}
        return newest_commitments(stands, self.datasets, self.block)

    def _evaluate(self, table: Table, entries: int) -> list[PlannedEvaluation]:
        """Run the evaluations of the round, and return them."""
        since = self.block - newcomer_blocks(entries, self.incentives)
        while self._runs and self._runs[0][0] <= since:
            self._runs.popleft()
        recent = Counter(hotkey for _, hotkey in self._runs)
        plan = plan_evaluations(table.originals, table.ledger, recent, self.block, self.competition, self.incentives)
        for planned in plan:
            key = planned.content.key
            if key.hotkey not in self._evaluated:
                self._evaluated.add(key.hotkey)
                # A sealed dataset ranks before its reveal, and waits from there on.
                counted_from = max(planned.content.rank, planned.content.public or planned.content.rank)
                self.waits.append((key.hotkey, (self.block - counted_from.block) // self.period))
            loss = self.evaluate(self.contents[key.digest], planned.number, planned.seed_block)
            self.losses.setdefault(key, []).append(loss)
            self._runs.append((self.block, key.hotkey))
        return plan

    def _forget_departed(self) -> None:
        """Drop the stands of departed hotkeys after a day."""
        for hotkey in sorted(self._stands.keys() - self._entries.keys()):
            stands = self._stands.pop(hotkey)
            late = {block: stand for block, stand in stands.items() if stand.last_block >= self.block - DAY_BLOCKS}
            if late:
                self._stands[hotkey] = late

    def _clean_up(self) -> None:
        """Shorten the stands, like the validator."""
        for hotkey, stands in list(self._stands.items()):
            ordered = list(stands.values())
            versions = find_versions(
                ordered, self.datasets, period=self.period, update_blocks=self.incentives.update_blocks
            )
            self._stands[hotkey] = {stand.first_block: stand for stand in shorten_stands(ordered, versions)}
        used = {stand.key for stands in self._stands.values() for stand in stands.values()}
        self.datasets = {key: dataset for key, dataset in self.datasets.items() if key in used}

    def start_season(self) -> None:
        """Change the model or the pool: all is evaluated again."""
        self.losses, self.confirmed, self.ledger = {}, {}, ()
        self.season += 1
        self.incentives = replace(self.incentives, season_block=self.block)
        self._runs.clear()
