"""Tricks with hotkeys, copies and finds. Each class is one strategy."""

from tests.campaigns.game.miners import Researcher, make_mosaic, public_rows
from tests.campaigns.game.submissions import ROWS, Rows
from tests.campaigns.game.world import ROUNDS_PER_DAY, Game

WEEK_ROUNDS = 7 * ROUNDS_PER_DAY


def copy_rows(miner: Researcher, game: Game, rows: Rows, count: int) -> Rows:
    """Return the first rows of a dataset, and as good ones of the miner in place of the others."""
    if count >= ROWS:
        return rows
    value = game.competition.bench - game.true_loss(rows)
    return Rows((*rows.numbers[:count], *miner.make_rows(game, value, count=ROWS - count).numbers))


class Copier(Researcher):
    """Copies the newest datasets of others, some rows or all, in the same period."""

    rows_kept = ROWS

    def act(self, game: Game) -> None:
        for hotkey, rows in zip(self.hotkeys, public_rows(game, self.hotkeys), strict=False):
            if self.last.get(hotkey) != rows:
                game.commit(hotkey, copy_rows(self, game, rows, self.rows_kept))
                self.last[hotkey] = rows


class PartCopier(Copier):
    """Copies just more than the allowed rows, and has the skill to add as good ones."""

    rows_kept = ROWS * 45 // 100


class RevealCopier(Researcher):
    """Copies each sealed dataset in the period of its reveal: all rows, and just more than the allowed ones."""

    def act(self, game: Game) -> None:
        sealed = [commitment for hotkey, commitment in game.commitments.items() if hotkey not in self.hotkeys]
        revealed = [other.rows for other in sealed if game.block - game.period < other.reveal_block <= game.block]
        pairs = [(rows, kept) for rows in revealed for kept in (ROWS, PartCopier.rows_kept)]
        for hotkey, (rows, kept) in zip(self.hotkeys, pairs, strict=False):
            game.commit(hotkey, copy_rows(self, game, rows, kept))


class OldVersionCopier(Copier):
    """Copies the datasets of others from before their last update."""

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.seen: dict[str, Rows] = {}

    def act(self, game: Game) -> None:
        own = set(self.hotkeys)
        others = [hotkey for hotkey in game.commitments if hotkey not in own]
        for hotkey, other in zip(self.hotkeys, others, strict=False):
            now = game.commitments[other].rows
            if other in self.seen and self.seen[other] != now:
                game.commit(hotkey, self.seen[other])
            self.seen[other] = now


class CopyKeeper(Researcher):
    """Keeps a copy of each dataset of others, so that an update shares rows with it."""

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.copied: list[Rows] = []

    def offer(self, game: Game) -> None:
        super().offer(game)
        for rows in public_rows(game, self.hotkeys):
            if rows not in self.copied:
                self.publish(game, self.hotkeys[1 + len(self.copied) % (len(self.hotkeys) - 1)], rows)
                self.copied.append(rows)


class CopiesOfOwn(Researcher):
    """Publishes its dataset again on all its other hotkeys."""

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        super().publish(game, hotkey, rows)
        for other in self.hotkeys[1:]:
            game.commit(other, rows)


class Recommitter(Researcher):
    """Commits its rows again in each round, in another order and under another name."""

    def offer(self, game: Game) -> None:
        super().offer(game)
        for hotkey, rows in self.last.items():
            order = self.other.sample(rows.numbers, ROWS)
            game.commit(hotkey, Rows(tuple(order)), repo=f"data{game.round}")


class EqualSets(Researcher):
    """Publishes of each find an equally good dataset of other rows on each hotkey."""

    noise = 1.0

    def found(self, game: Game, rows: Rows, value: float) -> None:
        for hotkey in self.hotkeys:
            first = hotkey == self.hotkeys[0] and self.noise == 1.0
            self.propose(game, hotkey, rows if first else self.make_rows(game, value, noise=self.noise))


class BestOfEqualSets(EqualSets):
    """Makes equal sets of each find, and publishes the best one on one hotkey."""

    def __init__(self, game: Game, name: str, datasets: int) -> None:
        super().__init__(game, name)
        self.datasets = datasets

    def found(self, game: Game, rows: Rows, value: float) -> None:
        for index in range(self.datasets):
            self.propose(game, self.hotkeys[0], self.make_rows(game, value) if index else rows)


class HighVariance(EqualSets):
    """Like EqualSets, with datasets of three times the spread."""

    noise = 3.0


class ConfirmAndLeave(EqualSets):
    """Replaces each confirmed dataset by a weak one, to keep its lucky loss."""

    def offer(self, game: Game) -> None:
        for hotkey in self.hotkeys:
            if game.is_confirmed(hotkey):
                self.publish(game, hotkey, self.make_rows(game, 0.0))
        super().offer(game)


class Squatter(EqualSets):
    """Takes early ranks with weak datasets and updates them later."""

    def act(self, game: Game) -> None:
        if game.round == 0:
            for hotkey in self.hotkeys:
                self.publish(game, hotkey, self.make_rows(game, 0.0))
        super().act(game)


class FirstMover(Researcher):
    """Publishes something weak in the first round."""

    def act(self, game: Game) -> None:
        if game.round == 0:
            self.publish(game, self.hotkeys[0], self.make_rows(game, 0.012))
        super().act(game)


class Hoarder(Researcher):
    """Seals each find for a week, so that it ranks before later finds of others."""

    def found(self, game: Game, rows: Rows, value: float) -> None:
        free = [hotkey for hotkey in self.hotkeys if hotkey not in self.last]
        self.propose(game, free[0] if free else self.hotkeys[-1], rows)

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        game.commit(hotkey, rows, sealed_rounds=WEEK_ROUNDS)
        self.last[hotkey] = rows


class Accumulator(Researcher):
    """Adds up its finds, and publishes them together when they are `least` epsilon better than the record.

    With one epsilon it holds back only what would not be paid.
    """

    least = 1.0

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.value = 0.0

    def found(self, game: Game, rows: Rows, value: float) -> None:
        base = max(0.0, game.best_value)
        if value > base:
            self.value = max(self.value, base) + value - base
            self.propose(game, self.hotkeys[0], self.make_rows(game, self.value))

    def is_worth(self, game: Game, loss: float) -> bool:
        return loss < game.frontier - self.least * game.incentives.epsilon


class PatientAccumulator(Accumulator):
    """Holds finds back longer, since the first epsilon of each publication is not paid."""

    least = 3.0


class Staircase(Researcher):
    """Splits each find into steps of little more than epsilon, one per hotkey."""

    def found(self, game: Game, rows: Rows, value: float) -> None:
        base, step = game.competition.bench - game.frontier, 1.6 * game.incentives.epsilon
        values = [base + step * index for index in range(1, len(self.hotkeys)) if base + step * index < value]
        for hotkey, step_value in zip(self.hotkeys, values, strict=False):
            self.propose(game, hotkey, self.make_rows(game, step_value))
        self.propose(game, self.hotkeys[len(values)], rows)


class Mosaicker(Researcher):
    """Publishes the best of many mosaics of others' rows, each within the copy rule."""

    tries = 50

    def act(self, game: Game) -> None:
        others = sorted(public_rows(game, self.hotkeys), key=game.true_loss)[:4]
        if len(others) >= 3 and game.round % 5 == 0:
            mosaics = [make_mosaic(others, self.other) for _ in range(self.tries)]
            free = min(self.hotkeys, key=lambda hotkey: (game.is_open(hotkey), hotkey in self.last))
            self.propose(game, free, min(mosaics, key=lambda rows: self.estimate(game, rows)))
        self.offer(game)
