"""Tricks with hotkeys, commitments and what counts. Each class is one strategy."""

import math
from collections.abc import Callable

from template.rules.evaluations import seed_block
from template.rules.stands import align
from tests.campaigns.game.miners import Researcher, public_rows
from tests.campaigns.game.world import ROUNDS_PER_DAY, ROWS, Game, Rows

# Rounds for which a commitment is sealed until the seeds of all its evaluations are known, and a week of rounds.
SEALED_ROUNDS = 25
WEEK_ROUNDS = 7 * ROUNDS_PER_DAY


def known_luck(game: Game, rows: Rows, rank_block: int, until: int) -> tuple[float, int]:
    """Return the mean noise of the evaluations with known seeds, and their number."""
    numbers = [
        number
        for number in range(1, game.incentives.evaluations + 1)
        if seed_block(rank_block, number, game.period) <= until
    ]
    if not numbers:
        return 0.0, 0
    losses = [game.evaluate(rows, number, seed_block(rank_block, number, game.period)) for number in numbers]
    return math.fsum(losses) / len(losses) - game.true_loss(rows), len(losses)


class Copier(Researcher):
    """Copies the newest datasets of others, some rows or all, in the same period."""

    rows_kept = ROWS

    def act(self, game: Game) -> None:
        for hotkey, rows in zip(self.hotkeys, public_rows(game, self.hotkeys), strict=False):
            copied = rows.numbers[: self.rows_kept]
            value = game.competition.bench - game.true_loss(rows)
            added = self.make_rows(game, value, count=ROWS - len(copied)).numbers if len(copied) < ROWS else ()
            if self.last.get(hotkey) != rows:
                game.commit(hotkey, Rows((*copied, *added)))
                self.last[hotkey] = rows


class PartCopier(Copier):
    """Copies just more than the allowed rows, and has the skill to add as good ones."""

    rows_kept = ROWS * 45 // 100


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
        for hotkey, row in ((hotkey, game.rows.get(hotkey)) for hotkey in self.hotkeys):
            if row is not None and row.runs >= game.incentives.evaluations:
                self.publish(game, hotkey, self.make_rows(game, 0.0))
        super().offer(game)


class Squatter(EqualSets):
    """Takes early ranks with weak datasets and updates them later."""

    def act(self, game: Game) -> None:
        if game.round == 0:
            for hotkey in self.hotkeys:
                self.publish(game, hotkey, self.make_rows(game, 0.0))
        super().act(game)


class EmptyPromises(Researcher):
    """Promises files in each round on idle hotkeys, and never uploads them."""

    def offer(self, game: Game) -> None:
        super().offer(game)
        for hotkey in self.hotkeys[1:]:
            game.commit(hotkey, self.make_rows(game, 0.0), is_visible=False)


class FirstMover(Researcher):
    """Publishes something weak in the first round."""

    def act(self, game: Game) -> None:
        if game.round == 0:
            self.publish(game, self.hotkeys[0], self.make_rows(game, 0.012))
        super().act(game)


class Flood(Researcher):
    """Publishes a new worthless dataset on each other hotkey each day."""

    value_of: Callable[[Game], float] = staticmethod(lambda game: -0.01)

    def offer(self, game: Game) -> None:
        super().offer(game)
        for index, hotkey in enumerate(self.hotkeys[1:]):
            if (game.round + index) % ROUNDS_PER_DAY == 0:
                self.publish(game, hotkey, self.make_rows(game, self.value_of(game)))


class Camper(Flood):
    """Fills the places in progress with datasets just below a record."""

    value_of = staticmethod(lambda game: game.competition.bench - game.frontier + 0.6 * game.incentives.epsilon)


class Churn(EqualSets):
    """Exchanges a row of each dataset when an update counts; keeps lucky datasets."""

    is_choosy = False

    def offer(self, game: Game) -> None:
        super().offer(game)
        for hotkey, rows in list(self.last.items()):
            age = game.block - align(game.commitments[hotkey].commit_block, game.period)
            row = game.rows.get(hotkey)
            if age < game.incentives.update_blocks or row is None or row.runs >= game.incentives.evaluations:
                continue
            luck, runs = known_luck(game, rows, game.block - age, game.block - game.period)
            if not self.is_choosy or luck > -1.0 * game.incentives.sd / math.sqrt(runs):
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


class Hoarder(Researcher):
    """Seals each find for a week, so that it ranks before later finds of others."""

    def found(self, game: Game, rows: Rows, value: float) -> None:
        free = [hotkey for hotkey in self.hotkeys if hotkey not in self.last]
        self.propose(game, free[0] if free else self.hotkeys[-1], rows)

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        game.commit(hotkey, rows, sealed_rounds=WEEK_ROUNDS)
        self.last[hotkey] = rows


class Withholder(EqualSets):
    """Commits to a dataset per hotkey and round, and uploads those with lucky seeds."""

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.promised: set[str] = set()

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        game.commit(hotkey, rows, is_visible=False)
        self.last[hotkey] = rows
        self.promised.add(hotkey)

    def offer(self, game: Game) -> None:
        super().offer(game)
        # The order of a set differs between processes.
        for hotkey in sorted(self.promised):
            value = game.competition.bench - game.true_loss(self.last[hotkey])
            if self.is_worth(game, game.competition.bench - value):
                self.publish(game, hotkey, self.make_rows(game, value))

    def react(self, game: Game) -> None:
        for hotkey in sorted(self.promised):
            luck, runs = known_luck(game, self.last[hotkey], game.block, game.block)
            if luck < -1.0 * game.incentives.sd / math.sqrt(runs):
                game.show(hotkey)
                self.promised.discard(hotkey)


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


class Flipper(EqualSets):
    """Hides a file for less than a day while its known seeds are unlucky."""

    def react(self, game: Game) -> None:
        for hotkey, rows in self.last.items():
            rank_block = align(game.commitments[hotkey].commit_block, game.period)
            luck, _ = known_luck(game, rows, rank_block, game.block)
            game.show(hotkey, is_visible=luck <= 0.0 or game.round % ROUNDS_PER_DAY == 0)


class HiddenHolder(Researcher):
    """Shows its file for one round of each day."""

    def react(self, game: Game) -> None:
        for hotkey in self.last:
            game.show(hotkey, is_visible=game.is_open(hotkey) or game.round % ROUNDS_PER_DAY == 0)


class Deleter(Researcher):
    """Deletes its file once the dataset is confirmed."""

    def react(self, game: Game) -> None:
        for hotkey in self.last:
            row = game.rows.get(hotkey)
            if row is not None and row.runs >= game.incentives.evaluations:
                game.show(hotkey, is_visible=False)


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
            most = ROWS * 2 // 5
            mosaics = []
            for _ in range(self.tries):
                chosen = self.other.sample(others, 3)
                counts = (most, most, ROWS - 2 * most)
                parts = [self.other.sample(rows.numbers, n) for rows, n in zip(chosen, counts, strict=True)]
                numbers = {number for part in parts for number in part}
                if len(numbers) == ROWS:
                    mosaics.append(Rows(tuple(sorted(numbers))))
            if mosaics:
                free = min(self.hotkeys, key=lambda hotkey: (game.is_open(hotkey), hotkey in self.last))
                self.propose(game, free, min(mosaics, key=lambda rows: self.estimate(game, rows)))
        self.offer(game)
