"""Play tricks against the rewards, and compare each share with the fair share.

    python -m tests.campaigns.game
    python -m tests.campaigns.game --days 10 --seeds 2 --strategies "equal sets,first mover with a weak set"
    python -m tests.campaigns.game --on_chain

Four honest miners with one hotkey each and one actor play on a simulated subnet. Commitments, ranks, duplicates,
evaluations, ledger and weights are computed by template.rules; losses are simulated, with a true loss for each set of
rows and noise for each seed. "single" is what the actor earns in the same world with one dataset of each find on one
hotkey. "fair" is what its best single dataset earns: if it makes several equally good ones of a find, it measures them
all and publishes on one hotkey the one that seems best. The bounds are multiples of the fair share. Then real
improvements of several sizes are published, and the part that is paid within three days is counted.
`--without` plays with and without a rule instead, and checks no bound.

With --on_chain the same miners play shorter games on the local chain: registrations, commitments and reveals are its
transactions, files are in repos of the local Hub, and a validator with its own store works through each round and sets
weights. Only the training is replaced, by the simulated loss of the dataset and the seed. The simulation is played
beside it, and a game ends when evaluations, losses, ranks, shares or the weights on the chain differ. The shares are
those on the chain. No bounds are checked, because games are short and six evaluations confirm a dataset. The validator
is restarted each day. Every strategy is played: sealed commitments are revealed without drand, and "seal finds for a
week" reveals nothing in a game of up to a week.
Exit status: 0 all bounds hold, 1 one is broken or a game differs, 3 a setting is wrong.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from template import cli
from template.arguments import Parser
from template.competition import Incentives, Reward
from tests.campaigns import command
from tests.campaigns.game import ablations, chain_run, improvements
from tests.campaigns.game.run import HEADER, STRATEGIES, Strategy, play_all
from tests.campaigns.game.world import Settings

# Which games are played: default, default on the chain, and help.
_GAMES = {
    "days": (60, chain_run.DAYS, "of 20 rounds"),
    "seeds": (8, chain_run.SEEDS, "games of each strategy"),
    "first_seed": (1, chain_run.FIRST_SEED, "of the games"),
}


def build_parser() -> Parser:
    parser = command.make_parser("game", __doc__)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--on_chain", action="store_true", help="compare with a validator on the local chain")
    other.add_argument(
        "--without",
        metavar="RULES",
        help="play with and without each of these rules, instead of checking the bounds: all, or some of "
        + ",".join(rule.name for rule in ablations.ABLATIONS),
    )
    for flag, (default, on_chain, text) in _GAMES.items():
        parser.add_argument(f"--{flag}", type=int, help=f"{text} (default: {default}, on the chain {on_chain})")
    parser.add_argument("--strategies", help="comma-separated names (default: all)")
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
    for flag, (default, on_chain, _) in _GAMES.items():
        if getattr(args, flag) is None:
            setattr(args, flag, on_chain if args.on_chain else default)
    command.check_positive(args, "days", "seeds", "own_runs", "workers")
    choices = list(dict.fromkeys(strategy.name for strategy in STRATEGIES))
    names = command.choose("--strategies", args.strategies, choices)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    settings = Settings(set_sd=args.set_sd, own_runs=args.own_runs, margin=args.margin)
    if args.without is not None:
        return _play_without(args, names, seeds, settings)
    chosen = [strategy for strategy in STRATEGIES if strategy.name in names]
    play = _play_on_chain if args.on_chain else _play_simulation
    return play(args, chosen, seeds, settings)


def _play_simulation(
    args: argparse.Namespace, chosen: Sequence[Strategy], seeds: Sequence[int], settings: Settings
) -> int:
    incentives, broken = Incentives(reward=args.reward), []
    print(HEADER)
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


def _play_without(args: argparse.Namespace, names: list[str], seeds: Sequence[int], settings: Settings) -> int:
    rules, incentives = {rule.name: rule for rule in ablations.ABLATIONS}, Incentives(reward=args.reward)
    without = command.choose("--without", None if args.without == "all" else args.without, list(rules))
    with ProcessPoolExecutor(args.workers) as pool:
        games = ablations.Games(pool, seeds, args.days, incentives, settings)
        print(ablations.HEADER)
        chosen = names if args.strategies else None
        for line in ablations.play_all([rules[name] for name in without], chosen, games, args.improvements):
            print(line, flush=True)
    return 0


def _play_on_chain(
    args: argparse.Namespace, chosen: Sequence[Strategy], seeds: Sequence[int], settings: Settings
) -> int:
    settings = dataclasses.replace(settings, rounds_per_find=chain_run.ROUNDS_PER_FIND)
    incentives = chain_run.make_incentives(args.reward)
    differences = []
    print(chain_run.HEADER)
    for line in chain_run.play_all(chosen, seeds, args.days, incentives, settings, args.workers):
        print(line, flush=True)
        if line.difference:
            differences.append(f"{line.strategy.name}, seed {line.seed}, {line.difference}")
    success = "the product and the simulation agree in every round"
    return command.report(differences, success=success, label="DIFFERS", summary="games differ")


if __name__ == "__main__":
    sys.exit(main())
