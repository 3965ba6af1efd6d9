"""Count how often a real improvement is paid within three days."""

import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat

from template.competition import Competition, Incentives
from tests.campaigns.game.miners import Researcher
from tests.campaigns.game.world import ROUNDS_PER_DAY, Game, Settings

SIZES = (0.005, 0.01, 0.02, 0.04)

# Least part of improvements of twice epsilon that must be paid, and the time for it.
LEAST_PAID = 0.9
MOST_ROUNDS = 3 * ROUNDS_PER_DAY

# Hotkeys with weak datasets that are evaluated as well, and the record's improvement on bench.
_OTHERS = 20
_RECORD_VALUE = 0.05

HEADER = f"{'improvement':>11} {'paid':>6} {'rounds until confirmed':>22}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Games with an improvement of one size.

    rounds: median until it is confirmed, None if most never are.
    """

    size: float
    paid: float
    rounds: float | None
    epsilon: float

    @property
    def is_broken(self) -> bool:
        return self.size >= 2.0 * self.epsilon and self.paid < LEAST_PAID

    def __str__(self) -> str:
        rounds = "" if self.rounds is None else f"{self.rounds:.0f}"
        return f"{self.size:11.3f} {self.paid:6.2f} {rounds:>22}{'  BROKEN' if self.is_broken else ''}"


def play(size: float, seed: int, incentives: Incentives, settings: Settings) -> int | None:
    """Return the rounds until an improvement is paid, None after three days."""
    game = Game(Competition.from_defaults(), incentives, seed, settings)
    others = Researcher(game, "other", 1 + _OTHERS)
    author = Researcher(game, "author")
    for index, hotkey in enumerate(others.hotkeys):
        others.publish(game, hotkey, others.make_rows(game, _RECORD_VALUE if index == 0 else 0.0))
    for _ in range(MOST_ROUNDS):
        game.play_round([])
    record = game.competition.bench - game.true_loss(others.last[others.hotkeys[0]])
    author.publish(game, author.hotkeys[0], author.make_rows(game, record + size))
    for number in range(1, MOST_ROUNDS + 1):
        game.play_round([])
        if game.shares.get(author.hotkeys[0], 0.0) > 0.0:
            return number
    return None


def play_all(
    games: int, first_seed: int, incentives: Incentives, settings: Settings, workers: int
) -> Iterator[Outcome]:
    """Play games with every size, and yield the outcomes."""
    with ProcessPoolExecutor(workers) as pool:
        for size in SIZES:
            seeds = range(first_seed, first_seed + games)
            results = list(pool.map(play, repeat(size), seeds, repeat(incentives), repeat(settings), chunksize=8))
            rounds = [result for result in results if result is not None]
            yield Outcome(
                size=size,
                paid=len(rounds) / games,
                rounds=statistics.median(rounds) if 2 * len(rounds) > games else None,
                epsilon=incentives.epsilon,
            )
