"""Play strategies on the local chain, beside the same games in the simulation."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from loguru import logger

from template.competition import Incentives, Reward
from tests.campaigns.game.chain_world import ChainGame, DifferenceError
from tests.campaigns.game.run import Result, Strategy, play_game
from tests.campaigns.game.world import Settings

PERIOD = 360

# Days, games of each strategy and first seed, if the command names none.
DAYS, SEEDS, FIRST_SEED = 2, 1, 9

# Mean time between two finds of a miner, in rounds: in a short game too, each publishes several datasets.
ROUNDS_PER_FIND = 5.0

HEADER = f"{'strategy':41} {'keys':>4} {'seed':>4} {'share':>6} {'records':>7} {'rounds':>6} {'s/round':>7}"


def make_incentives(reward: Reward) -> Incentives:
    """Return rules under which some tens of rounds decide something."""
    return Incentives(
        reward=reward,
        evaluations=6,
        hold=12,
        slots=8,
        half_life_blocks=10 * PERIOD,
        update_blocks=3 * PERIOD,
        blocks_per_epoch=PERIOD,
    )


@dataclass(frozen=True, kw_only=True)
class Line:
    """A game on the chain. result: None if the product and the simulation differ."""

    strategy: Strategy
    seed: int
    result: Result | None
    rounds: int
    seconds: float
    difference: str = ""

    def __str__(self) -> str:
        share, records = (f"{self.result.share:.3f}", self.result.records) if self.result else ("", "")
        return (
            f"{self.strategy.name:41} {self.strategy.hotkeys:4} {self.seed:4} {share:>6} {records:>7} {self.rounds:6}"
            f" {self.seconds / max(1, self.rounds):7.3f}{'  DIFFERS' if self.difference else ''}"
        )


def play(strategy: Strategy, seed: int, days: int, incentives: Incentives, settings: Settings) -> Line:
    """Play one game in a folder of its own, up to the first difference."""
    # Other processes than the command's log to stderr by default.
    logger.disable("template")
    started, result, difference = time.monotonic(), None, ""
    with tempfile.TemporaryDirectory() as folder, ChainGame(Path(folder) / "net", incentives, seed, settings) as game:
        try:
            result = play_game(game, strategy, days)
        except DifferenceError as error:
            difference = str(error)
        return Line(
            strategy=strategy, seed=seed, result=result, rounds=game.round, seconds=time.monotonic() - started,
            difference=difference,
        )  # fmt: skip


def play_all(
    strategies: Iterable[Strategy],
    seeds: Sequence[int],
    days: int,
    incentives: Incentives,
    settings: Settings,
    workers: int,
) -> Iterator[Line]:
    """Play every strategy with every seed, and yield the games in order."""
    with ProcessPoolExecutor(workers) as pool:
        games = product(strategies, seeds)
        jobs = [pool.submit(play, strategy, seed, days, incentives, settings) for strategy, seed in games]
        for job in jobs:
            yield job.result()
