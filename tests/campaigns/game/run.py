"""Play strategies against four honest miners, and compare the actor's shares."""

import math
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum

from template.competition import Competition, Incentives
from template.errors import Reason
from tests.campaigns.game import floods, hiding, luck, records, tricks
from tests.campaigns.game.consensus import Vote, find_incentives
from tests.campaigns.game.miners import Combiner, Keeper, Researcher, Sealer, Updater
from tests.campaigns.game.world import ROUNDS_PER_DAY, Game, Miner, Settings

RIVALS = 4

# Largest share of an actor, as a multiple of its fair share; with 200 hotkeys, luck is in it.
MOST, MOST_LUCK = 1.1, 1.3

# A bound is broken if it is exceeded by more than this many standard errors.
ERRORS = 2.0


class Bound(StrEnum):
    """The largest share that the actor may earn."""

    NOTHING = "nothing"
    """Its datasets are others'."""
    EQUAL = "equal"
    """Exactly its fair share."""
    MOST = "1.1"
    MOST_LUCK = "1.3"
    COLLUSION = "1.67"
    """What the chain's consensus allows: the stake of a validator that lies is lost to all others."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A named trick.

    is_new_season: everything is evaluated again halfway. stake: of a validator that gives the actor everything. slots:
    of a round, None for the default. rivals: the honest miners.
    """

    name: str
    make: type[Researcher] = Researcher
    hotkeys: int = 1
    bound: Bound = Bound.MOST
    is_new_season: bool = False
    stake: float = 0.0
    slots: int | None = None
    rivals: type[Researcher] = Researcher

    @property
    def single(self) -> "Strategy":
        """One honest dataset of each find, or of several small ones if the actor adds them up."""
        honest = HONEST_SEASONS if self.is_new_season else HONEST
        if issubclass(self.make, tricks.Accumulator):
            honest = replace(honest, make=tricks.Accumulator)
        return replace(honest, slots=self.slots, rivals=self.rivals)

    @property
    def fair(self) -> "Strategy":
        """Its best single dataset: of equal ones, the one that it measures to be best."""
        if not issubclass(self.make, tricks.EqualSets):
            return self.single
        return replace(self, name=f"best of {self.hotkeys} equal sets on one hotkey", make=tricks.BestOfEqualSets)


HONEST = Strategy(name="one honest dataset", bound=Bound.EQUAL)
HONEST_SEASONS = Strategy(name="one honest dataset over two seasons", bound=Bound.EQUAL, is_new_season=True)

STRATEGIES = (
    HONEST,
    HONEST_SEASONS,
    Strategy(name="identical copies of others", make=tricks.Copier, hotkeys=20, bound=Bound.NOTHING),
    Strategy(name="copies of 45% of the rows", make=tricks.PartCopier, hotkeys=20, bound=Bound.NOTHING),
    Strategy(name="copies of replaced versions", make=tricks.OldVersionCopier, hotkeys=20, bound=Bound.NOTHING),
    Strategy(name="keep copies of rivals that reuse rows", make=tricks.CopyKeeper, hotkeys=20, rivals=Updater),
    Strategy(name="copies of its own", make=tricks.CopiesOfOwn, hotkeys=20, bound=Bound.EQUAL),
    Strategy(name="new commitment and row order each round", make=tricks.Recommitter, bound=Bound.EQUAL),
    Strategy(name="equal sets", make=tricks.EqualSets, hotkeys=20),
    Strategy(name="high-variance sets", make=tricks.HighVariance, hotkeys=20),
    Strategy(name="squat early and update later", make=tricks.Squatter, hotkeys=5),
    Strategy(name="empty promises each round", make=floods.EmptyPromises, hotkeys=20),
    Strategy(name="first mover with a weak set", make=tricks.FirstMover),
    Strategy(name="exchange a row each round", make=luck.RowPerRound, hotkeys=20),
    Strategy(name="exchange a row each day", make=luck.Churn, hotkeys=20),
    Strategy(name="noise mining with known seeds", make=luck.NoiseMiner, hotkeys=20),
    Strategy(name="registrations come and go", make=luck.Turnover, hotkeys=20),
    Strategy(name="confirm and leave", make=tricks.ConfirmAndLeave, hotkeys=20),
    Strategy(name="seal and pick the lucky", make=luck.SealAndPick, hotkeys=20),
    Strategy(name="seal finds for a week", make=tricks.Hoarder, hotkeys=10),
    Strategy(name="withhold the unlucky", make=hiding.Withholder, hotkeys=20),
    Strategy(name="upload the lucky when seeds are known", make=hiding.LateUploader, hotkeys=20),
    Strategy(name="move the unlucky", make=luck.Mover, hotkeys=20),
    Strategy(name="hide while unlucky", make=hiding.Flipper, hotkeys=20),
    Strategy(name="show one round a day", make=hiding.HiddenHolder),
    Strategy(name="delete once confirmed", make=hiding.Deleter),
    Strategy(name="hide a rival's new file for five rounds", make=hiding.ShortRivalHider, rivals=Keeper),
    Strategy(name="hide a rival's new file for a day", make=hiding.RivalHider, rivals=Keeper),
    Strategy(name="hide a rival's new file for three days", make=hiding.LongRivalHider, rivals=Keeper),
    Strategy(
        name="hide a rival's new file and copy it",
        make=hiding.HideAndCopy,
        hotkeys=20,
        bound=Bound.NOTHING,
        rivals=Keeper,
    ),
    Strategy(
        name="hide a rival's new file and copy 45%",
        make=hiding.HideAndCopyPart,
        hotkeys=20,
        bound=Bound.NOTHING,
        rivals=Keeper,
    ),
    Strategy(name="upload mosaics that block a record", make=hiding.MosaicBlocker, hotkeys=20, rivals=Combiner),
    Strategy(name="seal mosaics that block a record", make=hiding.SealedMosaicBlocker, hotkeys=20, rivals=Combiner),
    Strategy(
        name="copies of sealed datasets",
        make=tricks.RevealCopier,
        hotkeys=8,
        bound=Bound.NOTHING,
        rivals=Sealer,
    ),
    Strategy(name="hide paid files three days of 14", make=hiding.PaidRivalHider),
    Strategy(name="a validator with 40% of the stake", bound=Bound.COLLUSION, stake=0.4),
    Strategy(name="return to the lucky", make=luck.ReturnToLucky, hotkeys=20),
    Strategy(name="pass datasets on in a circle", make=luck.Circle, hotkeys=20),
    Strategy(name="hold finds back until three epsilon", make=tricks.PatientAccumulator),
    Strategy(name="split a find into steps", make=tricks.Staircase, hotkeys=10),
    Strategy(name="mosaics without research", make=tricks.Mosaicker, hotkeys=5),
    Strategy(name="squat before a new season", make=tricks.Squatter, hotkeys=20, is_new_season=True),
    Strategy(name="equal sets in a new season", make=tricks.EqualSets, hotkeys=20, is_new_season=True),
    Strategy(name="known seeds of a new season", make=luck.SeasonMiner, hotkeys=20, is_new_season=True),
    Strategy(
        name="empty promises in a new season",
        make=floods.EmptyPromises,
        hotkeys=20,
        bound=Bound.EQUAL,
        is_new_season=True,
    ),
    Strategy(name="camp in a new season", make=floods.Camper, hotkeys=200, bound=Bound.MOST_LUCK, is_new_season=True),
    Strategy(name="equal sets on 200 hotkeys", make=tricks.EqualSets, hotkeys=200, bound=Bound.MOST_LUCK),
    Strategy(name="flood of worthless sets", make=floods.Flood, hotkeys=200, bound=Bound.MOST_LUCK),
    Strategy(name="camp below the record", make=floods.Camper, hotkeys=200, bound=Bound.MOST_LUCK),
    Strategy(name="flood of others' rows", make=floods.RowFlood, hotkeys=200, bound=Bound.MOST_LUCK),
    Strategy(
        name="copies of former records",
        make=records.SeasonCopier,
        hotkeys=40,
        bound=Bound.NOTHING,
        is_new_season=True,
    ),
    Strategy(name="delete records once confirmed", make=records.RecordDeleter),
    Strategy(name="seal lucky sets before a find", make=records.SealShadows, hotkeys=20),
    Strategy(name="seal lucky sets on 200 hotkeys", make=records.SealShadows, hotkeys=200, bound=Bound.MOST_LUCK),
    Strategy(name="one record on each hotkey", make=records.OneRecordEach, hotkeys=20, is_new_season=True),
    Strategy(
        name="copies of late files",
        make=records.LateCopier,
        hotkeys=40,
        # A dataset that its author gave up before it was confirmed is free for others.
        rivals=records.LateAuthor,
    ),
    Strategy(name="flood while ahead with 8 slots", make=records.Freezer, hotkeys=200, bound=Bound.MOST_LUCK, slots=8),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One game.

    wait: most rounds that a rival waited for its first evaluation. refused: rounds in which a rival's dataset was a
    duplicate, although rivals copy nothing.
    """

    share: float
    wait: int
    refused: int
    records: int


def play(strategy: Strategy, seed: int, days: int, incentives: Incentives, settings: Settings) -> Result:
    """Play a simulated game."""
    incentives = replace(incentives, slots=strategy.slots or incentives.slots)
    return play_game(Game(Competition.from_defaults(), incentives, seed, settings), strategy, days)


def play_game(game: Game, strategy: Strategy, days: int) -> Result:
    """Play a game and return the actor's part of all emission."""
    rivals = [strategy.rivals(game, f"rival{index}-") for index in range(RIVALS)]
    actor = strategy.make(game, "actor", strategy.hotkeys)
    miners: list[Miner] = [*rivals, actor]
    rounds, shares, refused = days * ROUNDS_PER_DAY, [], 0
    for number in range(rounds):
        if strategy.is_new_season and number == rounds // 2:
            game.start_season()
        game.play_round(miners)
        rows = [game.rows[key] for rival in rivals for key in rival.hotkeys if key in game.rows]
        refused += sum(row.reason is Reason.DUPLICATE for row in rows)
        votes = [
            Vote(stake=1.0 - strategy.stake, weights=game.paid),
            Vote(stake=strategy.stake, weights={actor.hotkeys[0]: 1.0}),
        ]
        paid = find_incentives(votes) if strategy.stake else game.paid
        shares.append(math.fsum(share for key, share in paid.items() if key.startswith(actor.name)))
    waits = [wait for hotkey, wait in game.waits if not hotkey.startswith(actor.name)]
    records = sum(row.content.key.hotkey.startswith(actor.name) for row in game.records)
    return Result(share=math.fsum(shares) / rounds, wait=max(waits, default=0), refused=refused, records=records)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A strategy's share over all seeds beside its fair share.

    single_shares: of one honest dataset of each find. fair_shares: of the best single dataset.
    """

    strategy: Strategy
    shares: Sequence[float]
    single_shares: Sequence[float]
    fair_shares: Sequence[float]
    wait: int
    refused: int
    slots: int

    @property
    def share(self) -> float:
        return statistics.fmean(self.shares)

    @property
    def fair(self) -> float:
        return statistics.fmean(self.fair_shares)

    def error(self, factor: float = 0.0) -> float:
        """Return the standard error of the share less so many fair shares."""
        return _error(self.shares, self.fair_shares, factor)

    @property
    def most_wait(self) -> int:
        """The most rounds that a new hotkey may wait for its first evaluation."""
        return -(-(RIVALS + self.strategy.hotkeys) // self.slots) + 1

    @property
    def is_broken(self) -> bool:
        if self.wait > self.most_wait or self.refused:
            return True
        match self.strategy.bound:
            case Bound.NOTHING:
                return self.share > 0.0
            case Bound.EQUAL:
                pairs = zip(self.shares, self.fair_shares, strict=True)
                return any(abs(share - fair) > 1e-9 for share, fair in pairs)
            case bound:
                factor = float(bound.value)
                return self.share - factor * self.fair > ERRORS * self.error(factor)

    def __str__(self) -> str:
        return (
            f"{self.strategy.name:41} {self.strategy.hotkeys:4} {self.share:6.3f} {self.error():6.3f}"
            f" {format_ratio(self.shares, self.single_shares)} {format_ratio(self.shares, self.fair_shares)}"
            f" {self.strategy.bound.value:>8} {self.wait:5} {self.refused:7}{'  BROKEN' if self.is_broken else ''}"
        )


def _error(shares: Sequence[float], others: Sequence[float], factor: float) -> float:
    values = [share - factor * other for share, other in zip(shares, others, strict=True)]
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def format_ratio(shares: Sequence[float], others: Sequence[float]) -> str:
    """Format the mean of the others, the ratio to it, and the ratio's error."""
    other = statistics.fmean(others)
    if not other:
        return f"{other:6.3f}{'':14}"
    # Standard error of a ratio of two means.
    ratio = statistics.fmean(shares) / other
    return f"{other:6.3f} {ratio:6.2f} {_error(shares, others, ratio) / other:6.2f}"


HEADER = (
    f"{'strategy':41} {'keys':>4} {'share':>6} {'error':>6} {'single':>6} {'ratio':>6} {'error':>6}"
    f" {'fair':>6} {'ratio':>6} {'error':>6} {'bound':>8} {'wait':>5} {'refused':>7}"
)


def play_all(
    strategies: Iterable[Strategy],
    seeds: Sequence[int],
    days: int,
    incentives: Incentives,
    settings: Settings,
    workers: int,
) -> Iterable[Line]:
    """Play every strategy with every seed, and yield the lines in order."""
    strategies = list(strategies)
    wanted = [played for strategy in strategies for played in (strategy.single, strategy.fair, strategy)]
    with ProcessPoolExecutor(workers) as pool:
        jobs = {
            (strategy, seed): pool.submit(play, strategy, seed, days, incentives, settings)
            for strategy in dict.fromkeys(wanted)
            for seed in seeds
        }
        for strategy in strategies:
            results, singles, fairs = (
                [jobs[played, seed].result() for seed in seeds] for played in (strategy, strategy.single, strategy.fair)
            )
            yield Line(
                strategy=strategy,
                shares=[result.share for result in results],
                single_shares=[result.share for result in singles],
                fair_shares=[result.share for result in fairs],
                wait=max(result.wait for result in results),
                refused=sum(result.refused for result in results),
                slots=strategy.slots or incentives.slots,
            )
