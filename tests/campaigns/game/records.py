"""Tricks with records, seasons, late files and the queue."""

from template.rules.stands import align
from tests.campaigns.game.floods import Flood
from tests.campaigns.game.luck import SEALED_ROUNDS, SealAndPick, known_luck
from tests.campaigns.game.miners import Keeper, Researcher
from tests.campaigns.game.submissions import Rows
from tests.campaigns.game.world import Game


class SeasonCopier(Researcher):
    """Copies each record once, and keeps the copies for the next season."""

    def act(self, game: Game) -> None:
        for row in game.records:
            free = [hotkey for hotkey in self.hotkeys if hotkey not in self.last]
            rows = game.contents[row.content.key.digest]
            if free and rows not in self.last.values():
                self.publish(game, free[0], rows)


class RecordDeleter(Researcher):
    """Deletes the file of each confirmed record, and publishes something weak instead."""

    def offer(self, game: Game) -> None:
        for hotkey in self.hotkeys:
            if game.is_confirmed(hotkey):
                game.show(hotkey, is_visible=False)
                self.publish(game, hotkey, self.make_rows(game, 0.0))
        super().offer(game)


class SealShadows(SealAndPick):
    """Seals equal sets before each find that it publishes, and reveals the luckiest.

    The seal is replaced a round before it ends. A revealed set is replaced once confirmed, to keep its lucky loss.
    """

    def found(self, game: Game, rows: Rows, value: float) -> None:
        self.propose(game, self.hotkeys[0], rows)

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        value = game.competition.bench - game.true_loss(rows)
        for other in self.hotkeys[1:]:
            if other not in self.sealed and not game.is_open(other):
                super().publish(game, other, self.make_rows(game, value))
        Researcher.publish(self, game, hotkey, rows)

    def offer(self, game: Game) -> None:
        due = [hotkey for hotkey, (start, _) in self.sealed.items() if game.round >= start + SEALED_ROUNDS - 1]
        until = game.block - game.period
        lucks = {}
        for hotkey in due:
            rank_block = align(game.commitments[hotkey].commit_block, game.period)
            lucks[hotkey] = known_luck(game, self.sealed.pop(hotkey)[1], rank_block, until)[0]
        for hotkey, luck in lucks.items():
            if luck > min(lucks.values()) or luck > -0.4 * game.incentives.epsilon:
                self.cancel(game, hotkey)
        for hotkey in self.hotkeys[1:]:
            if hotkey not in self.sealed and game.is_confirmed(hotkey):
                Researcher.publish(self, game, hotkey, self.make_rows(game, 0.0))
        Researcher.offer(self, game)


class OneRecordEach(Researcher):
    """Publishes each find on a hotkey without a record.

    A new season evaluates only present datasets, and so all of these.
    """

    def found(self, game: Game, rows: Rows, value: float) -> None:
        present = {row.content.key for row in game.records}
        holders = {hotkey for hotkey, last in self.last.items() if any(last.digest == key.digest for key in present)}
        free = [hotkey for hotkey in self.hotkeys if hotkey not in holders and not game.is_open(hotkey)]
        self.propose(game, free[0] if free else self.hotkeys[0], rows)


class Freezer(Flood):
    """Floods the first evaluations while it has most of the pay.

    With few slots no other dataset is confirmed then.
    """

    def offer(self, game: Game) -> None:
        if game.shares.get(self.hotkeys[0], 0.0) > 0.5:
            super().offer(game)
        else:
            Researcher.offer(self, game)


class LateAuthor(Keeper):
    """Uploads each file after the aligned block at which its commitment stood first."""

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        game.commit(hotkey, rows, is_visible=False)
        self.last[hotkey] = rows

    def act(self, game: Game) -> None:
        for hotkey in self.last:
            game.show(hotkey)
        super().act(game)


class LateCopier(Researcher):
    """Copies others as soon as their files are there, in the same period."""

    def act(self, game: Game) -> None:
        others = [made for hotkey, made in game.commitments.items() if hotkey not in self.hotkeys]
        for made in others:
            free = [hotkey for hotkey in self.hotkeys if hotkey not in self.last]
            if free and made.key not in game.hidden and made.rows not in self.last.values():
                self.publish(game, free[0], made.rows)
