"""Compare the proposals of select_rows with random datasets at an equal budget.

    python -m scripts.bench.selection --eval_data_dir DIR --model_path DIR --training_args FILE --rows 12

In each repetition one search begins with the --method and swaps its rows, and the other draws random rows only. Both
drop a proposal by the same rule, under the same seeds. The random search gets more evaluations, for the time of the
gradients. Then the best dataset of each is evaluated under seeds that neither has seen. Evaluations are recorded in
--work_dir.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Iterator, Sequence

from loguru import logger

from scripts.select_rows import METHODS, Workbench, choose_count, propose, read_pool
from template import cli, files
from template.arguments import Parser
from template.config import load_competition, load_training_args
from template.miner.compare import compare_paired
from template.miner.selection import Budget, CopyRule, OutOfBudget, Rows, Search
from template.terminal import print_result

CHECKS = (cli.check_competition, cli.check_score_arguments)


def build_parser() -> Parser:
    parser = cli.make_parser("selection", __doc__, checks=CHECKS)
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    cli.add_replay_arguments(parser)
    add = parser.add_argument
    add("--rows", type=int, help="rows of a dataset (default: as many as the competition counts)")
    add("--method", choices=METHODS, default="match", help="first proposal (default: match)")
    add("--evaluations", type=int, default=8, help="budget of the search with gradients (default: 8)")
    add("--extra", type=int, default=2, help="evaluations more for the random search (default: 2)")
    add("--seeds", type=int, default=2, help="seeds of a search (default: 2)")
    add("--unseen", type=int, default=2, help="seeds of the comparison (default: 2)")
    add("--repetitions", type=int, default=5, help="default: 5")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Repeat both searches and print the losses of their best datasets."""
    competition = load_competition(args.competition)
    evaluator = cli.make_replay_context(args).evaluator(competition, load_training_args(args.training_args))
    pool, _ = read_pool(args, evaluator)
    rule = CopyRule((), choose_count(args.rows, competition, pool))
    losses: list[tuple[list[float], list[float]]] = []
    with files.temporary_folder() as folder:
        workbench = Workbench(evaluator, pool, folder, args.work_dir)
        for number in range(args.repetitions):
            losses.append(compare_searches(workbench, rule, args, number))
            logger.info("repetition {} of {}: {}", number + 1, args.repetitions, losses[-1])
    print_result("\n".join(describe(losses)))
    return 0


def compare_searches(
    workbench: Workbench, rule: CopyRule, args: argparse.Namespace, number: int
) -> tuple[list[float], list[float]]:
    """Return the losses of the best random and of the best selected dataset under unseen seeds."""
    draw = random.Random(number)
    lucky_nums = [draw.getrandbits(32) for _ in range(args.seeds)]
    unseen = [draw.getrandbits(32) for _ in range(args.unseen)]
    by_chance = Search(workbench.evaluate, lucky_nums, Budget(evaluations=args.evaluations + args.extra))
    selected = Search(workbench.evaluate, lucky_nums, Budget(evaluations=args.evaluations))
    spend(by_chance, draw_rows(rule, random.Random(draw.random()), len(workbench.pool)))
    spend(selected, propose([args.method], workbench, rule, draw, selected))
    first, second = (
        [workbench.evaluate(search.best.rows, lucky_num).loss for lucky_num in unseen] if search.best else []
        for search in (by_chance, selected)
    )
    return first, second


def spend(search: Search, proposals: Iterator[tuple[str, Rows]]) -> None:
    """Try proposals until the budget is spent."""
    search.on_trial = lambda trial: logger.info("{}: {} {}", trial.name, search.losses_of(trial), trial.outcome)
    try:
        for name, rows in proposals:
            search.challenge(name, rows)
    except OutOfBudget:
        return


def draw_rows(rule: CopyRule, draw: random.Random, pool_size: int) -> Iterator[tuple[str, Rows]]:
    """Yield random datasets."""
    while True:
        yield "random", rule.take(draw.sample(range(pool_size), pool_size))


def describe(losses: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[str]:
    """Format a line for each repetition, the difference and the noise."""
    means = [(statistics.fmean(by_chance), statistics.fmean(selected)) for by_chance, selected in losses]
    paired = compare_paired(*zip(*means, strict=True))
    spreads = [statistics.variance(runs) for pair in losses for runs in pair]
    return [
        "repetition  random    selected  difference",
        *(f"{number:<10}  {a:.6f}  {b:.6f}  {b - a:+.6f}" for number, (a, b) in enumerate(means, start=1)),
        f"difference  {paired.mean:+.6f}, 95% interval {paired.interval[0]:+.6f} to {paired.interval[1]:+.6f}",
        f"seed noise  {statistics.fmean(spreads) ** 0.5:.6f} (standard deviation of a dataset between seeds)",
    ]


if __name__ == "__main__":
    sys.exit(main())
