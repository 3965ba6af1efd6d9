"""Tricks with seeds that are known after a commitment. Each class is one strategy."""

import math

from template.rules.evaluations import first_seed_block, seed_block
from template.rules.stands import align
from tests.campaigns.game.miners import Researcher
from tests.campaigns.game.submissions import Rows
from tests.campaigns.game.tricks import EqualSets
from tests.campaigns.game.world import ROUNDS_PER_DAY, Game

# Rounds for which a commitment is sealed until the seeds of all its evaluations are known.
SEALED_ROUNDS = 25


def known_luck(game: Game, rows: Rows, rank_block: int, until: int, season: int | None = None) -> tuple[float, int]:
    """Return the mean noise of the evaluations with known seeds, and their number."""
    first = first_seed_block(rank_block, game.incentives)
    blocks = {number: seed_block(first, number, game.period) for number in range(1, game.incentives.evaluations + 1)}
    losses = [game.evaluate(rows, number, block, season) for number, block in blocks.items() if block <= until]
    if not losses:
        return 0.0, 0
    return math.fsum(losses) / len(losses) - game.true_loss(rows), len(losses)


def is_lucky(game: Game, rows: Rows, rank_block: int, until: int, season: int | None = None) -> bool:
    """Check that the known seeds are better by a standard error than the true loss."""
    luck, runs = known_luck(game, rows, rank_block, until, season)
    return luck * math.sqrt(runs) < -game.incentives.sd


class Churn(EqualSets):
    """Exchanges a row of each dataset when an update counts; keeps lucky datasets."""

    is_choosy = False

    def offer(self, game: Game) -> None:
        super().offer(game)
        for hotkey, rows in list(self.last.items()):
            age = game.block - align(game.commitments[hotkey].commit_block, game.period)
            if age < game.incentives.update_blocks or hotkey not in game.rows or game.is_confirmed(hotkey):
                continue
            if not self.is_choosy or not is_lucky(game, rows, game.block - age, game.block - game.period):
                self.publish(game, hotkey, self.vary(game, rows))


class NoiseMiner(Churn):
    """Like Churn, but keeps a dataset with lucky seeds until it is confirmed."""

    is_choosy = True


class RowPerRound(EqualSets):
    """Exchanges one row of every dataset in each round."""

    def offer(self, game: Game) -> None:
        super().offer(game)
        for hotkey, rows in list(self.last.items()):
            self.publish(game, hotkey, self.vary(game, rows))


class SealAndPick(EqualSets):
    """Seals datasets until all their seeds are known, and reveals the luckiest."""

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.sealed: dict[str, tuple[int, Rows]] = {}
        self.before: dict[str, Rows] = {}

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        if hotkey in self.last and hotkey not in self.sealed:
            self.before[hotkey] = self.last[hotkey]
        game.commit(hotkey, rows, sealed_rounds=SEALED_ROUNDS)
        self.last[hotkey] = rows
        self.sealed[hotkey] = (game.round, rows)

    def offer(self, game: Game) -> None:
        due = {hotkey: rows for hotkey, (start, rows) in self.sealed.items() if game.round >= start + SEALED_ROUNDS}
        until = game.block - game.period
        lucks = {
            hotkey: known_luck(game, rows, align(game.commitments[hotkey].commit_block, game.period), until)[0]
            for hotkey, rows in due.items()
        }
        for hotkey in due:
            del self.sealed[hotkey]
            if lucks[hotkey] > min(lucks.values()):
                self.cancel(game, hotkey)
        super().offer(game)

    def cancel(self, game: Game, hotkey: str) -> None:
        """Return to the last dataset before the seal ends."""
        if hotkey in self.before:
            game.commit(hotkey, self.before[hotkey])
            self.last[hotkey] = self.before[hotkey]
        else:
            del game.commitments[hotkey], self.last[hotkey]


class Mover(Researcher):
    """Moves a dataset whose known seeds are unlucky to another hotkey."""

    def found(self, game: Game, rows: Rows, value: float) -> None:
        self.propose(game, self._free(game), rows)

    def _free(self, game: Game) -> str:
        return next((hotkey for hotkey in self.hotkeys if hotkey not in self.last), self.hotkeys[0])

    def offer(self, game: Game) -> None:
        super().offer(game)
        for hotkey, rows in list(self.last.items()):
            if not game.is_open(hotkey):
                continue
            rank_block = align(game.commitments[hotkey].commit_block, game.period)
            luck, runs = known_luck(game, rows, rank_block, game.block - game.period)
            if runs >= 16 and luck > 0.0:
                game.commit(hotkey, self.make_rows(game, -0.01))
                del self.last[hotkey]
                free = self._free(game)
                if free not in self.last:
                    self.publish(game, free, rows)


class Turnover(NoiseMiner):
    """Registers new hotkeys in place of those without a record, each day."""

    def act(self, game: Game) -> None:
        if game.round % ROUNDS_PER_DAY == 0 and game.round:
            records = {row.content.key.hotkey for row in game.records}
            for hotkey in self.last.copy():
                if hotkey in game.registrations and hotkey not in records and not game.is_open(hotkey):
                    game.deregister(hotkey)
                    rows, fresh = self.last.pop(hotkey), self.add_hotkey(game)
                    self.publish(game, fresh, self.vary(game, rows))
            self.hotkeys = [hotkey for hotkey in self.hotkeys if hotkey in game.registrations]
        super().act(game)


class ReturnToLucky(EqualSets):
    """Publishes equal sets each day, and returns to one whose seeds proved lucky.

    A dataset that returns keeps its seeds, so they are known before it ranks again. The first hotkey is honest.
    """

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.value = 0.0
        self.losses: dict[str, dict[Rows, float]] = {hotkey: {} for hotkey in self.hotkeys}
        self.returned: dict[str, Rows] = {}

    def found(self, game: Game, rows: Rows, value: float) -> None:
        self.propose(game, self.hotkeys[0], rows)
        self.value = max(self.value, value)

    def offer(self, game: Game) -> None:
        super().offer(game)
        for hotkey in self.hotkeys[1:] if self.value else ():
            rows = self.last.get(hotkey)
            if rows is not None and self._is_kept(game, hotkey, rows):
                continue
            losses = self.losses[hotkey]
            best = min(losses, key=lambda rows: losses[rows], default=None)
            if best is not None and best != rows and self.is_worth(game, losses[best]):
                self.publish(game, hotkey, best)
                self.returned[hotkey] = best
            else:
                self.publish(game, hotkey, self.make_rows(game, self.value))

    def _is_kept(self, game: Game, hotkey: str, rows: Rows) -> bool:
        rank_block = align(game.commitments[hotkey].commit_block, game.period)
        if game.block - rank_block < game.incentives.update_blocks:
            return True
        if rows not in self.losses[hotkey]:
            # All its seeds are known in a few rounds, and it cannot return before.
            until = seed_block(rank_block, game.incentives.evaluations, game.period)
            self.losses[hotkey][rows] = game.true_loss(rows) + known_luck(game, rows, rank_block, until)[0]
        is_worth = self.is_worth(game, self.losses[hotkey][rows])
        return game.is_open(hotkey) and (is_worth or self.returned.get(hotkey) == rows)


class SeasonMiner(EqualSets):
    """Keeps datasets with lucky seeds in the next season's model."""

    def offer(self, game: Game) -> None:
        super().offer(game)
        for hotkey, rows in list(self.last.items()) if game.season == 0 else ():
            rank_block = align(game.commitments[hotkey].commit_block, game.period)
            if game.block - rank_block < game.incentives.update_blocks:
                continue
            if not is_lucky(game, rows, rank_block, game.block - game.period, season=1):
                self.publish(game, hotkey, self.vary(game, rows))


class Circle(EqualSets):
    """Passes dropped datasets to its next hotkey, where they have other seeds."""

    def offer(self, game: Game) -> None:
        if game.round % ROUNDS_PER_DAY == 0:
            free = [hotkey for hotkey in self.hotkeys if hotkey in self.last and not game.is_open(hotkey)]
            datasets = [self.last[hotkey] for hotkey in free]
            for hotkey, rows in zip(free, datasets[1:] + datasets[:1], strict=True):
                if self.is_worth(game, self.estimate(game, rows)):
                    self.publish(game, hotkey, rows)
        super().offer(game)
