"""Miners who do research.

Research finds a dataset every two days by default. Its value builds on the best public one, and the room to the best
possible shrinks. What a miner finds and when depends on the seed and its name alone, so an actor has the same finds in
every strategy.
"""

import math
import random
import zlib
from collections.abc import Sequence

from template.constants import MAX_SHARED_PERCENT
from template.rules.entries import MISSING
from tests.campaigns.game.submissions import ROWS, Rows
from tests.campaigns.game.world import ROW_SD, SD, Game

FIRST_MEAN, STEP_MEAN, STEP_SD = 0.03, 0.004, 0.012
BEST_POSSIBLE = 0.18

# Rows that a dataset may have of another.
PART = ROWS * MAX_SHARED_PERCENT // 100

# Numbers of the rows that are not from finds start here.
_OTHER_ROWS = 1 << 22


class Researcher:
    """Publishes on its first hotkey each find that is better than the best record."""

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        self.name = name
        self.hotkeys: list[str] = []
        self.registered = 0
        self.bests: dict[str, tuple[float, Rows]] = {}
        self.last: dict[str, Rows] = {}
        # Of tricks: another stream, so that finds do not depend on them.
        self.other = random.Random(f"{game.seed} {name} tricks")
        self._rng = random.Random(f"{game.seed} {name}")
        self._row = zlib.crc32(name.encode()) << 24
        self._other_row = self._row + _OTHER_ROWS
        self._next_find = self._rng.uniform(0.0, game.settings.rounds_per_find)
        self._found_any = False
        for _ in range(hotkeys):
            self.add_hotkey(game)

    def add_hotkey(self, game: Game) -> str:
        """Register a new hotkey."""
        hotkey = f"{self.name}{self.registered}"
        self.registered += 1
        self.hotkeys.append(hotkey)
        game.register(hotkey)
        return hotkey

    def make_rows(self, game: Game, value: float, *, noise: float = 1.0, count: int = ROWS) -> Rows:
        """Return new rows of this mean value."""
        first, self._other_row = self._other_row, self._other_row + count
        return self._make_rows(game, first, value, noise, count)

    def _make_rows(self, game: Game, first: int, value: float, noise: float, count: int) -> Rows:
        rng = random.Random(f"{game.seed} {first}")
        values = [rng.gauss(0.0, ROW_SD) for _ in range(count)]
        mean = math.fsum(values) / count
        for index, row_value in enumerate(values):
            game.values[first + index] = value + row_value - mean
            game.noise[first + index] = noise
        return Rows(tuple(range(first, first + count)))

    def vary(self, game: Game, rows: Rows, count: int = 1) -> Rows:
        """Replace some rows by new ones of the same value."""
        value = game.competition.bench - game.true_loss(rows)
        unchanged = self.other.sample(rows.numbers, ROWS - count)
        return Rows((*unchanged, *self.make_rows(game, value, count=count).numbers))

    def research(self, game: Game) -> float | None:
        """Return the value of a dataset found in this round, None without."""
        if game.round < self._next_find:
            return None
        self._next_find += self._rng.expovariate(1.0 / game.settings.rounds_per_find)
        luck = self._rng.gauss(0.0, STEP_SD)
        if not self._found_any:
            self._found_any = True
            return FIRST_MEAN + luck
        base = max(0.0, game.best_value)
        return base + (STEP_MEAN + luck) * (BEST_POSSIBLE - base) / BEST_POSSIBLE

    def estimate(self, game: Game, rows: Rows) -> float:
        """Return the loss that the miner measures at home."""
        error = SD / math.sqrt(game.settings.own_runs)
        return game.true_loss(rows) + random.Random(f"{game.seed} {self.name} {rows.digest}").gauss(0.0, error)

    def is_worth(self, game: Game, loss: float) -> bool:
        return loss < game.frontier - game.settings.margin * game.incentives.epsilon

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        game.commit(hotkey, rows)
        self.last[hotkey] = rows

    def act(self, game: Game) -> None:
        value = self.research(game)
        if value is not None:
            rows = self._make_rows(game, self._row, value, 1.0, ROWS)
            self._row += ROWS
            self.found(game, rows, value)
        self.offer(game)

    def found(self, game: Game, rows: Rows, value: float) -> None:
        """Choose what to publish of a find, and where."""
        self.propose(game, self.hotkeys[0], rows)

    def propose(self, game: Game, hotkey: str, rows: Rows) -> None:
        """Remember a dataset until it can be published, if it is the best for this hotkey."""
        loss = self.estimate(game, rows)
        if hotkey not in self.bests or loss < self.bests[hotkey][0]:
            self.bests[hotkey] = (loss, rows)

    def offer(self, game: Game) -> None:
        """Publish the best finds that are worth it, where the last dataset is decided."""
        for hotkey, (loss, rows) in list(self.bests.items()):
            if not self.is_worth(game, loss):
                del self.bests[hotkey]
            elif hotkey not in self.last or self.may_replace(game, hotkey, loss):
                self.publish(game, hotkey, rows)
                del self.bests[hotkey]

    def may_replace(self, game: Game, hotkey: str, loss: float) -> bool:
        """Check that the last dataset is decided, or much worse than one of this loss."""
        return not game.is_open(hotkey) or self._is_much_better(game, hotkey, loss)

    def _is_much_better(self, game: Game, hotkey: str, loss: float) -> bool:
        return loss < self.estimate(game, self.last[hotkey]) - 2.0 * game.incentives.epsilon

    def react(self, game: Game) -> None:
        """Do nothing after the aligned block."""


class Updater(Researcher):
    """Keeps 60% of its last dataset's rows in its next one."""

    def found(self, game: Game, rows: Rows, value: float) -> None:
        last = self.last.get(self.hotkeys[0])
        if last is not None:
            kept = last.numbers[: ROWS * 60 // 100]
            count = ROWS - len(kept)
            rest = (ROWS * value - math.fsum(game.values[number] for number in kept)) / count
            rows = Rows((*kept, *self.make_rows(game, rest, count=count).numbers))
        super().found(game, rows, value)


class Keeper(Researcher):
    """Keeps its dataset until it is decided, and waits for a file that is missing.

    Its next dataset counts a day later anyway, and others may publish what it gave up.
    """

    def may_replace(self, game: Game, hotkey: str, loss: float) -> bool:
        row = game.rows.get(hotkey)
        return row is not None and row.reason not in MISSING and not game.is_open(hotkey)


class Sealer(Keeper):
    """Seals each find for six rounds."""

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        game.commit(hotkey, rows, sealed_rounds=6)
        self.last[hotkey] = rows

    def may_replace(self, game: Game, hotkey: str, loss: float) -> bool:
        return game.commitments[hotkey].key in game.datasets and super().may_replace(game, hotkey, loss)


class Combiner(Researcher):
    """Takes 40% of a dataset's rows from its last one, and 40% from another's."""

    def found(self, game: Game, rows: Rows, value: float) -> None:
        last, others = self.last.get(self.hotkeys[0]), public_rows(game, self.hotkeys)
        if last is not None and others:
            parts = combine(last, others[0])
            if all(len(set(parts) & set(other.numbers)) <= PART for other in others):
                rest = (ROWS * value - math.fsum(game.values[number] for number in parts)) / (ROWS - len(parts))
                rows = Rows((*parts, *self.make_rows(game, rest, count=ROWS - len(parts)).numbers))
        super().found(game, rows, value)


def combine(first: Rows, second: Rows) -> tuple[int, ...]:
    """Return as many rows of two datasets as the copy rule allows."""
    return tuple(dict.fromkeys((*first.numbers[:PART], *second.numbers[PART : 2 * PART])))


def public_rows(game: Game, others: Sequence[str]) -> list[Rows]:
    """Return the datasets of other hotkeys that can be read, newest commitment first."""
    hotkeys = set(others)
    commitments = [commitment for hotkey, commitment in game.commitments.items() if hotkey not in hotkeys]
    commitments.sort(key=lambda commitment: -commitment.commit_block)
    return [commitment.rows for commitment in commitments if commitment.key in game.datasets]


def make_mosaic(datasets: Sequence[Rows], rng: random.Random) -> Rows:
    """Combine rows of three of the datasets, of each as many as the copy rule allows."""
    counts = (PART, PART, ROWS - 2 * PART)
    parts = [rng.sample(rows.numbers, n) for rows, n in zip(rng.sample(datasets, 3), counts, strict=True)]
    return Rows(tuple(sorted(number for part in parts for number in part)))
