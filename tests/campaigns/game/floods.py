"""Floods of promises, datasets and rows. Each class is one strategy."""

from collections.abc import Callable

from tests.campaigns.game.miners import Researcher, make_mosaic, public_rows
from tests.campaigns.game.world import ROUNDS_PER_DAY, Game


class EmptyPromises(Researcher):
    """Promises files in each round on idle hotkeys, and never uploads them."""

    def offer(self, game: Game) -> None:
        super().offer(game)
        for hotkey in self.hotkeys[1:]:
            game.commit(hotkey, self.make_rows(game, 0.0), is_visible=False)


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


class RowFlood(Researcher):
    """Publishes mosaics of public rows on its other hotkeys."""

    def offer(self, game: Game) -> None:
        super().offer(game)
        public = public_rows(game, self.hotkeys)
        for index, hotkey in enumerate(self.hotkeys[1:]):
            if len(public) >= 3 and (game.round + index) % ROUNDS_PER_DAY == 0:
                self.publish(game, hotkey, make_mosaic(public, self.other))
