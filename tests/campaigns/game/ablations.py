"""Play strategies with one rule switched off, to measure the effect of the rule."""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from template.competition import Competition, Incentives
from template.records import Stand, SubmissionKey
from template.rules import evaluations, leaderboard, ledger, stands, table
from template.rules.evaluations import PlannedEvaluation, seed_block
from template.rules.scoring import score_of
from template.rules.stands import Version
from tests.campaigns.game import improvements, luck, run, world
from tests.campaigns.game.run import Result, Strategy, format_ratio
from tests.campaigns.game.world import Settings

_MODULES = (evaluations, leaderboard, ledger, stands, table, world, luck)


@dataclass(frozen=True)
class Ablation:
    """A rule, and how to switch it off.

    strategies: that it is meant to stop. values: of the incentives without the rule. functions: replacements by name.
    """

    name: str
    strategies: Sequence[str]
    values: Mapping[str, Any] = field(default_factory=dict)
    functions: Mapping[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the functions in every module that uses them."""
        with contextlib.ExitStack() as stack:
            for name, function in self.functions.items():
                for module in _MODULES:
                    if hasattr(module, name):
                        stack.enter_context(mock.patch.object(module, name, function))
            yield


def _mean_loss(losses: Sequence[float], sd: float) -> ledger.Estimate:
    return dataclasses.replace(_estimate_loss(losses, sd), loss=_estimate_loss(losses, sd).mean)


def _pay_from_frontier(loss: float, frontier: float, competition: Competition, incentives: Incentives) -> float | None:
    if loss > frontier - incentives.epsilon:
        return None
    return score_of(loss, competition) - score_of(frontier, competition)


def _table_without_ledger(inputs: table.Inputs) -> table.Table:
    return _make_table(dataclasses.replace(inputs, confirmed={}))


def _rank_by_commit(stand: Stand, digest: str, same: Sequence[Version], **kwargs: int) -> Version:
    return _make_version(dataclasses.replace(stand, missing_block=0), digest, same, **kwargs)


def _seeds_by_rank(stand: Stand, digest: str, same: Sequence[Version], **kwargs: int) -> Version:
    version = _make_version(stand, digest, same, **kwargs)
    return version if same else dataclasses.replace(version, seed_block=version.rank_block)


def _public_by_commit(stand: Stand, digest: str, same: Sequence[Version], **kwargs: int) -> Version:
    version = _make_version(stand, digest, same, **kwargs)
    return version if same else dataclasses.replace(version, public_block=stand.first_block)


def _present_version(versions: Sequence[Version], current: SubmissionKey | None, datasets: object) -> list[Version]:
    return [version for version in versions if version.key == current]


def _plan_by_rank(
    contents: Sequence[ledger.Content],
    ledger_rows: object,
    recent_runs: object,
    block: int,
    competition: object,
    incentives: Incentives,
) -> list[PlannedEvaluation]:
    planned = [
        PlannedEvaluation(content, number, seed_block(content.rank.block, number, incentives.blocks_per_epoch))
        for content in sorted(contents, key=lambda content: content.rank)
        for number in range(len(content.losses) + 1, min(len(content.losses) + 2, incentives.evaluations) + 1)
    ]
    return [item for item in planned if item.seed_block <= block][: incentives.slots]


_estimate_loss, _make_table = ledger.estimate_loss, table.make_table
_make_version = stands._make_version

ABLATIONS = (
    Ablation(
        "update_blocks",
        ("noise mining with known seeds", "exchange a row each day", "return to the lucky", "withhold the unlucky"),
        values={"update_blocks": 0},
    ),
    Ablation("hold", ("confirm and leave", "equal sets", "high-variance sets"), values={"hold": 48}),
    Ablation(
        "half_life",
        ("first mover with a weak set", "squat early and update later", "equal sets"),
        values={"half_life_blocks": 2**32 - 1},
    ),
    Ablation("unpaid epsilon", ("return to the lucky", "equal sets"), functions={"record_credit": _pay_from_frontier}),
    Ablation("epsilon", ("equal sets", "split a find into steps", "high-variance sets"), values={"epsilon": 0.0}),
    Ablation("evaluations", ("equal sets", "noise mining with known seeds"), values={"evaluations": 4}),
    Ablation(
        "duplicates",
        ("identical copies of others", "copies of 45% of the rows", "copies of its own"),
        functions={"match_duplicates": lambda candidates: {}},
    ),
    Ablation(
        "versions",
        ("copies of replaced versions", "keep copies of rivals that reuse rows"),
        functions={"related_versions": _present_version},
    ),
    Ablation("penalty", ("high-variance sets",), functions={"estimate_loss": _mean_loss}),
    Ablation(
        "drop",
        ("equal sets", "flood of worthless sets", "camp below the record"),
        functions={"is_hopeless": lambda *args: False},
    ),
    Ablation(
        "ledger",
        ("confirm and leave", "squat early and update later", "equal sets", "delete once confirmed"),
        functions={"make_table": _table_without_ledger},
    ),
    Ablation(
        "later seeds",
        ("withhold the unlucky", "hide while unlucky", "noise mining with known seeds"),
        functions={"seed_block": lambda first_block, number, period: first_block},
    ),
    Ablation(
        "seeds from the reveal",
        ("seal lucky sets before a find", "seal and pick the lucky"),
        functions={"_make_version": _seeds_by_rank},
    ),
    Ablation(
        "rank of late files",
        (
            "upload the lucky when seeds are known",
            "empty promises each round",
            "hide a rival's new file for a day",
            "hide a rival's new file and copy it",
        ),
        functions={"_make_version": _rank_by_commit},
    ),
    Ablation(
        "public when readable",
        ("hide a rival's new file and copy it", "withhold the unlucky"),
        functions={"_make_version": _public_by_commit},
    ),
    Ablation(
        "unpaid after a day",
        (
            "delete once confirmed",
            "delete records once confirmed",
            "show one round a day",
            "hide paid files three days of 14",
        ),
        functions={"is_credit_paid": lambda *args: True, "newest_commitments": lambda *args: {}},
    ),
    Ablation(
        "last shares",
        ("squat before a new season", "equal sets in a new season"),
        functions={"find_undecided": lambda *args: frozenset()},
    ),
    Ablation(
        "order of evaluations",
        ("equal sets", "flood of worthless sets", "camp below the record"),
        functions={"plan_evaluations": _plan_by_rank},
    ),
    Ablation("record slots", ("equal sets", "camp below the record"), functions={"_RECORD_SLOTS": 0}),
    Ablation(
        "lowest mean in turn",
        ("equal sets", "camp below the record"),
        functions={"_alternate_mean_and_rank": lambda contents, sd: sorted(contents, key=lambda content: content.rank)},
    ),
)

_NONE = Ablation("", ())
_BY_NAME = {rule.name: rule for rule in (_NONE, *ABLATIONS)}


def _play(rule: str, strategy: Strategy, seed: int, days: int, incentives: Incentives, settings: Settings) -> Result:
    with _BY_NAME[rule].applied():
        return run.play(strategy, seed, days, incentives, settings)


def _improve(rule: str, seed: int, incentives: Incentives, settings: Settings) -> int | None:
    with _BY_NAME[rule].applied():
        return improvements.play(2.0 * Incentives().epsilon, seed, incentives, settings)


class Games:
    """Games in other processes, each played once."""

    def __init__(
        self, pool: ProcessPoolExecutor, seeds: Sequence[int], days: int, incentives: Incentives, settings: Settings
    ) -> None:
        self.pool, self.seeds, self.days, self.incentives, self.settings = pool, seeds, days, incentives, settings
        self._shares: dict[tuple[str, Strategy], list[Future[Result]]] = {}

    def start(self, rule: Ablation, strategy: Strategy) -> list[Future[Result]]:
        key = (rule.name, strategy)
        if key not in self._shares:
            incentives = dataclasses.replace(self.incentives, **rule.values)
            self._shares[key] = [
                self.pool.submit(_play, rule.name, strategy, seed, self.days, incentives, self.settings)
                for seed in self.seeds
            ]
        return self._shares[key]

    def compare(self, rule: Ablation, strategy: Strategy) -> str:
        """Format share, fair share, ratio, longest wait and refused rivals."""
        results = [game.result() for game in self.start(rule, strategy)]
        shares = [result.share for result in results]
        fair_shares = [game.result().share for game in self.start(rule, strategy.fair)]
        wait = max(result.wait for result in results)
        refused = sum(result.refused for result in results)
        return f"{statistics.fmean(shares):6.3f} {format_ratio(shares, fair_shares)} {wait:4} {refused:7}"

    def start_improvements(self, rule: Ablation, games: int) -> list[Future[int | None]]:
        """Start games with an improvement by twice epsilon."""
        incentives = dataclasses.replace(self.incentives, **rule.values)
        seeds = range(self.seeds[0], self.seeds[0] + games)
        return [self.pool.submit(_improve, rule.name, seed, incentives, self.settings) for seed in seeds]


HEADER = (
    f"{'without':20} {'strategy':41} {'keys':>4}  {'share':>6} {'fair':>6} {'ratio':>6} {'error':>6} wait refused"
    f"  {'share':>6} {'fair':>6} {'ratio':>6} {'error':>6} wait refused (without)"
)


def play_all(rules: Sequence[Ablation], names: Sequence[str] | None, games: Games, count: int) -> Iterator[str]:
    """Play strategies with each rule and without it, and yield the lines in order.

    names: of the strategies, None for those that each rule is meant to stop. count: games of an improvement.
    """
    strategies = {strategy.name: strategy for strategy in reversed(run.STRATEGIES)}
    chosen = [(rule, strategies[name]) for rule in rules for name in names or rule.strategies]
    for rule, strategy in chosen:
        for played in (strategy, strategy.fair):
            games.start(_NONE, played)
            games.start(rule, played)
    paid = {rule.name: games.start_improvements(rule, count) for rule in (_NONE, *rules)} if count else {}
    for rule, strategy in chosen:
        yield (
            f"{rule.name:20} {strategy.name:41} {strategy.hotkeys:4}  {games.compare(_NONE, strategy)}"
            f"  {games.compare(rule, strategy)}"
        )
    if paid:
        yield "\nimprovements by twice epsilon that are paid within three days, and rounds until then (median)"
    for name, results in paid.items():
        rounds = [number for game in results if (number := game.result()) is not None]
        median = f"{statistics.median(rounds):6.1f}" if rounds else ""
        yield f"{'without ' + name if name else 'all rules':29} {len(rounds) / len(results):6.2f} {median}"
