"""Play tricks against the rewards, and compare each share with the fair share.

    python -m tests.campaigns.game
    python -m tests.campaigns.game --days 10 --seeds 2 --strategies "equal sets,first mover with a weak set"

Four honest miners with one hotkey each and one actor play on a simulated subnet. Commitments, ranks, duplicates,
evaluations, ledger and weights are computed by template.rules; losses are simulated, with a true loss for each set of
rows and noise for each seed. "single" is what the actor earns in the same world with one dataset of each find on one
hotkey. "fair" is what its best single dataset earns: if it makes several equally good ones of a find, it measures them
all and publishes on one hotkey the one that seems best. The bounds are multiples of the fair share. Then real
improvements of several sizes are published, and the part that is paid within three days is counted.
`--without` plays with and without a rule instead, and checks no bound.
Exit status: 0 all bounds hold, 1 one is broken, 3 a setting is wrong.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from template import cli
from template.competition import Incentives, Reward
from tests.campaigns import command
from tests.campaigns.game import ablations, improvements
from tests.campaigns.game.run import HEADER, STRATEGIES, play_all
from tests.campaigns.game.world import Settings


def build_parser() -> argparse.ArgumentParser:
    parser = command.make_parser("game", __doc__)
    parser.add_argument("--days", type=int, default=60, help="of 20 rounds (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=8, help="games of each strategy (default: %(default)s)")
    parser.add_argument("--first_seed", type=int, default=1, help="of the games (default: %(default)s)")
    parser.add_argument("--strategies", help="comma-separated names (default: all)")
    parser.add_argument(
        "--without",
        metavar="RULES",
        help="play with and without each of these rules, instead of checking the bounds: all, or some of "
        + ",".join(rule.name for rule in ablations.ABLATIONS),
    )
    parser.add_argument(
        "--reward",
        choices=[reward.value for reward in Reward],
        default=Reward.IMPROVEMENT.value,
        help="the bounds hold for the default (default: %(default)s)",
    )
    parser.add_argument(
        "--improvements", type=int, default=200, help="games of each size, 0 for none (default: %(default)s)"
    )
    settings = Settings()
    parser.add_argument(
        "--set_sd",
        type=float,
        default=settings.set_sd,
        help="standard deviation between the true losses of equally good datasets (default: %(default)s)",
    )
    parser.add_argument(
        "--own_runs",
        type=int,
        default=settings.own_runs,
        help="evaluations that a miner makes of its dataset before it commits (default: %(default)s)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=settings.margin,
        help="a miner commits what seems better by so many epsilon (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Play and print the table. Raises: ConfigError."""
    command.check_positive(args, "days", "seeds", "own_runs", "workers")
    choices = list(dict.fromkeys(strategy.name for strategy in STRATEGIES))
    names = command.choose("--strategies", args.strategies, choices)
    incentives = Incentives(reward=args.reward)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    settings = Settings(set_sd=args.set_sd, own_runs=args.own_runs, margin=args.margin)
    if args.without is not None:
        return _play_without(args, names, incentives, settings)
    broken = []
    print(HEADER)
    chosen = [strategy for strategy in STRATEGIES if strategy.name in names]
    for line in play_all(chosen, seeds, args.days, incentives, settings, args.workers):
        print(line, flush=True)
        if line.is_broken:
            strategy = f"{line.strategy.name} with {line.strategy.hotkeys} hotkeys"
            refused = f", and rivals were refused in {line.refused} rounds" if line.refused else ""
            broken.append(f"{strategy} earned {line.share:.3f}{refused}")
    if args.improvements and incentives.reward is Reward.IMPROVEMENT:
        print(f"\n{improvements.HEADER}")
        for outcome in improvements.play_all(args.improvements, args.first_seed, incentives, settings, args.workers):
            print(outcome, flush=True)
            if outcome.is_broken:
                broken.append(f"an improvement of {outcome.size} was paid in {outcome.paid:.0%} of the games")
    return command.report(broken, success="all bounds hold", label="BROKEN", summary="bounds broken")


def _play_without(args: argparse.Namespace, names: list[str], incentives: Incentives, settings: Settings) -> int:
    rules = {rule.name: rule for rule in ablations.ABLATIONS}
    without = command.choose("--without", None if args.without == "all" else args.without, list(rules))
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    with ProcessPoolExecutor(args.workers) as pool:
        games = ablations.Games(pool, seeds, args.days, incentives, settings)
        print(ablations.HEADER)
        chosen = names if args.strategies else None
        for line in ablations.play_all([rules[name] for name in without], chosen, games, args.improvements):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
