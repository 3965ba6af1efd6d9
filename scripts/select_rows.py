"""Propose a dataset: choose rows of the pool, and improve the choice by evaluations.

    python scripts/select_rows.py --out data.jsonl --minutes 60
    python scripts/select_rows.py --out data.jsonl --evaluations 40 --rows 100 --netuid 96 --hotkey ADDRESS

The pool is the competition's evaluation set. The first proposals are made without evaluations, by the --methods:

    match    rows whose gradients together point where the evaluation set's point
    less     rows whose gradients alone are most like the evaluation set's (LESS)
    topics   rows whose words together are most like the pool's
    length   the rows with the longest answers
    random   random rows

Then rows of the best proposal are swapped for others until the budget is spent. A proposal is evaluated as validators
do, under the same seeds as the best one, and dropped as soon as it is not better on average. FILE is replaced by every
better proposal. With --netuid no proposal is a duplicate of a dataset that another hotkey has committed.

Every evaluation is recorded in --work_dir: the same command continues after an interruption, or with a larger budget.

The result goes to stdout, progress to stderr. Exit status: 0 a dataset was written, 2 or 3 the command line or another
setting is wrong, 4 this machine failed, 5 the Hub or the chain did not answer.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from template import cli, constants, files
from template.arguments import Check, Parser
from template.competition import Competition
from template.config import load_competition, load_training_args
from template.console import GOOD, is_terminal, make_table, show
from template.data.encoding import has_target_for_any_tokenizer
from template.data.eval_set import EvalSetIndex, read_distinct_lines, read_eval_set_index
from template.data.rows import EVAL_SET_LIMITS, Row, content_digest, parse_rows
from template.errors import ConfigError
from template.miner.selection import (
    Budget,
    CopyRule,
    Evaluation,
    Journal,
    OutOfBudget,
    Rows,
    Search,
    Trial,
    swap_rows,
)
from template.receipts.replay import evaluate_once
from template.serialization import canonical_json
from template.terminal import format_duration, print_result, progress_bar
from template.workers.executor import Evaluator

if TYPE_CHECKING:
    from template.training.row_features import RowFeatures

# Usually the best first: the others then take one evaluation each.
METHODS = ("match", "less", "topics", "length", "random")


def check_budget(args: argparse.Namespace) -> None:
    """Check --minutes and --evaluations. Raises: ConfigError."""
    if args.minutes is None and args.evaluations is None:
        raise ConfigError("expected a budget: --minutes or --evaluations")
    if args.minutes is not None and not args.minutes > 0:
        raise ConfigError(f"--minutes must be above 0, not {args.minutes}")


def check_count(flag: str, count: int | None) -> None:
    """Check a number of things. Raises: ConfigError."""
    if count is not None and count < 1:
        raise ConfigError(f"{flag} must be at least 1, not {count}")


def check_out(args: argparse.Namespace) -> None:
    """Check that --out is a file in a folder that takes files. Raises: ConfigError."""
    if args.out is None:
        return
    if args.out.is_dir():
        raise ConfigError(f"--out {args.out}: this is a folder; name a file in it, such as {constants.DATA_FILE}")
    if (problem := files.find_write_problem(args.out.absolute().parent)) is not None:
        raise ConfigError(f"--out {args.out}: {problem}")


def check_hotkey(args: argparse.Namespace) -> None:
    """Check --hotkey, or the wallet if one is named. Raises: ConfigError."""
    if args.hotkey and args.netuid is None:
        raise ConfigError("--hotkey names whose dataset is no duplicate: it needs --netuid")
    if args.hotkey and cli.has_wallet(args):
        raise ConfigError("--hotkey and --wallet.* exclude each other")
    if args.netuid is not None and cli.has_wallet(args):
        cli.check_wallet(cli.name_wallet(args))


# Made before any work, so that one run names all that is wrong.
CHECKS: tuple[Check, ...] = (
    cli.check_competition,
    cli.check_score_arguments,
    lambda args: cli.hub_token(),
    check_budget,
    lambda args: check_count("--evaluations", args.evaluations),
    lambda args: check_count("--rows", args.rows),
    lambda args: check_count("--seeds", args.seeds),
    check_out,
    check_hotkey,
    cli.check_chain,
)


def build_parser() -> Parser:
    # --netuid is declared again: without it, no chain is read.
    parser = cli.make_parser("select_rows", __doc__, checks=CHECKS, conflict_handler="resolve")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="the proposed dataset; replaced by a better one")
    add("--minutes", type=float, help="budget of time, earlier starts included")
    add("--evaluations", type=int, metavar="N", help="budget of evaluations, earlier starts included")
    rows_help = "number of rows to choose (default: as many as the competition counts)"
    add("--rows", type=int, metavar="N", help=rows_help)
    seeds_help = "evaluations of a proposal that stays better (default: 3)"
    add("--seeds", type=int, default=3, metavar="K", help=seeds_help)
    add("--seed", type=int, default=0, help="draws rows, swaps and the evaluations' seeds (default: 0)")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="first proposals (default: all)")
    cli.add_reader_arguments(parser)
    add("--netuid", type=int, help="the subnet's number: avoid duplicates of its datasets")
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    cli.add_replay_arguments(parser)
    add("--json", dest="is_json", action="store_true", help="print one JSON object")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Search, write the best dataset, and print what was tried."""
    competition = load_competition(args.competition)
    evaluator = cli.make_replay_context(args).evaluator(competition, load_training_args(args.training_args))
    pool, index = read_pool(args, evaluator)
    count = choose_count(args.rows, competition, pool)
    rule = CopyRule(read_others(args, competition, index, pool) if args.netuid is not None else (), count)
    draw = random.Random(args.seed)
    lucky_nums = [draw.getrandbits(32) for _ in range(args.seeds)]
    budget = Budget(evaluations=args.evaluations, seconds=None if args.minutes is None else args.minutes * 60)
    with files.temporary_folder() as folder:
        workbench = Workbench(evaluator, pool, folder, args.work_dir)
        search = Search(workbench.evaluate, lucky_nums, budget)
        search.on_trial = functools.partial(report_trial, search, args.out, pool)
        try:
            for name, rows in propose(args.methods, workbench, rule, draw, search):
                search.challenge(name, rows)
        except OutOfBudget:
            logger.info("the budget is spent")
    print_report(search, args, pool)
    return 0


@dataclass(frozen=True)
class Pool:
    """The rows to choose from: different from each other, each with an answer to learn."""

    lines: Sequence[bytes]
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def content(self, rows: Rows) -> bytes:
        """Return the file of a dataset."""
        return b"".join(self.lines[row] + b"\n" for row in rows)


def read_pool(args: argparse.Namespace, evaluator: Evaluator) -> tuple[Pool, EvalSetIndex]:
    """Read the evaluation set, without near duplicates and rows without an answer."""
    eval_file = evaluator.eval_data_dir / constants.DATA_FILE
    index, has_target = read_eval_set_index(eval_file), cli.make_target_check(args)
    lines = read_distinct_lines(eval_file, index)
    rows = parse_rows(b"\n".join(lines), name=str(eval_file), limits=EVAL_SET_LIMITS)
    usable = [
        (line, row)
        for line, row in zip(lines, rows, strict=True)
        if has_target_for_any_tokenizer(row) or has_target(row)
    ]
    return Pool([line for line, _ in usable], [row for _, row in usable]), index


def choose_count(wanted: int | None, competition: Competition, pool: Pool) -> int:
    """Return how many rows to choose. Raises: ConfigError."""
    count = wanted or competition.rows
    if count > competition.rows:
        raise ConfigError(f"--rows {count}: only the first {competition.rows} rows of a dataset count")
    if count >= len(pool):
        raise ConfigError(
            f"there is no choice: datasets of {count} rows, {len(pool)} different rows in the pool; see --rows"
        )
    return count


def read_others(args: argparse.Namespace, competition: Competition, index: EvalSetIndex, pool: Pool) -> list[Set[int]]:
    """Return the pool's rows in each other hotkey's committed dataset."""
    from template.miner.competitors import fetch_competitors

    with cli.open_reader(args) as chain:
        view = chain.view()
        hotkey = chain.hotkey if cli.has_wallet(args) else args.hotkey
    folder = files.check_folder(args.work_dir / competition.digest[:12] / "neighbours", "--work_dir")
    subnet = fetch_competitors(view, competition, index, folder, hotkey)
    unknown = [other for other in subnet.others if other.unknown_reason is not None]
    for other in unknown:
        logger.warning("not compared: the dataset of {}: {}", other.hotkey, other.unknown_reason)
    places = {key: place for place, key in enumerate(index.dedup_keys(row.key for row in pool.rows))}
    return [{places[key] for key in other.row_keys if key in places} for other in subnet.others if other.is_read]


class Workbench:
    """Evaluates proposals of a pool, each only once, and computes the features of its rows."""

    def __init__(self, evaluator: Evaluator, pool: Pool, folder: Path, work_dir: Path) -> None:
        self.pool = pool
        self._evaluator = evaluator
        self._folder = folder
        content = pool.content(tuple(range(len(pool))))
        # All that a loss depends on but rows and seed.
        inputs = {
            "model": evaluator.load_model(),
            "hyperparameters": evaluator.training_args.hyperparameters.digest,
            "pool": hashlib.sha256(content).hexdigest(),
            "eval_set": hashlib.sha256((evaluator.eval_data_dir / constants.DATA_FILE).read_bytes()).hexdigest(),
        }
        name = hashlib.sha256(canonical_json(inputs).encode()).hexdigest()[:16]
        home = files.check_folder(work_dir / "selection", "--work_dir")
        self._journal = Journal(home / f"{name}.jsonl")
        self._features = home / name
        if len(self._journal):
            logger.info("evaluations recorded by earlier runs={}", len(self._journal))

    def evaluate(self, rows: Rows, lucky_num: int) -> Evaluation:
        """Evaluate as a validator does, or return what the journal has."""
        digest = content_digest(self.pool.rows[row].key for row in rows)
        recorded = self._journal.find(digest, lucky_num)
        if recorded is None:
            files.OutputFile(name=constants.DATA_FILE, content=self.pool.content(rows), mode=0o600).write(self._folder)
            began = time.monotonic()
            loss = evaluate_once(self._evaluator, self._folder, lucky_num).loss
            recorded = Evaluation(loss, time.monotonic() - began)
            self._journal.add(digest, lucky_num, recorded)
        return recorded

    def gradients(self, lucky_num: int) -> "RowFeatures":
        """Compute the gradient features, or read those of an earlier run."""
        from template.training.row_features import RowFeatures

        path = self._features.with_name(f"{self._features.name}-{lucky_num}.safetensors")
        if path.is_file():
            return RowFeatures.from_bytes(path.read_bytes())
        logger.info("computing the gradients of {} rows", len(self.pool))
        content = self.pool.content(tuple(range(len(self.pool))))
        with progress_bar() as on_progress:
            features = self._evaluator.gradient_features(content, lucky_num, on_progress)
        files.OutputFile(name=path.name, content=features.to_bytes(), mode=0o600).write(path.parent)
        return features


def propose(
    methods: Sequence[str], workbench: Workbench, rule: CopyRule, draw: random.Random, search: Search
) -> Iterator[tuple[str, Rows]]:
    """Yield the proposal of each method, then swaps of the best one's rows."""
    from template.training.row_features import word_features

    pool = workbench.pool
    features, predict = None, no_prediction
    if {"match", "less"} & set(methods):
        began = time.monotonic()
        features = workbench.gradients(search.lucky_nums[0])
        search.budget.spent_s += time.monotonic() - began
        predict = features.similarity
    for method in sorted(set(methods), key=METHODS.index):
        if method == "less" and features is not None:
            rows = rule.take(features.rank())
        elif method == "match" and features is not None:
            rows = tuple(features.match_target(rule.count, rule.start()))
        elif method == "topics":
            rows = tuple(word_features(pool.rows).match_target(rule.count, rule.start()))
        elif method == "length":
            rows = rule.take(sorted(range(len(pool)), key=lambda row: -answer_length(pool.rows[row])))
        else:
            rows = rule.take(draw.sample(range(len(pool)), len(pool)))
        if len(rows) < rule.count:
            raise ConfigError(
                f"--rows {rule.count}: more than {len(rows)} rows would be a duplicate of a committed dataset"
            )
        yield method, rows
    yield from swap_rows(search, draw, len(pool), rule, predict)


def no_prediction(rows: Rows) -> float:
    """Return the same for all rows, so that the first swap drawn is taken."""
    return 0.0


def answer_length(row: Row) -> int:
    """Return the number of characters that a row teaches."""
    return sum(len(message.content) for message in row.messages[1::2])


def report_trial(search: Search, out: Path, pool: Pool, trial: Trial) -> None:
    """Log a trial, and write its dataset if it is the best."""
    if trial.is_better:
        files.OutputFile(name=out.name, content=pool.content(trial.rows), mode=0o644).write(out.absolute().parent)
    losses, left = search.losses_of(trial), format_duration(search.budget.left_s)
    logger.info(
        "{}: loss {:.6f}, seeds {} of {}, {}; evaluations {}, about {} left",
        trial.name, statistics.fmean(losses), len(losses), len(search.lucky_nums), trial.outcome,
        search.budget.done, left,
    )  # fmt: skip


def print_report(search: Search, args: argparse.Namespace, pool: Pool) -> None:
    """Print every trial, and what was written. Raises: ConfigError without a trial."""
    best, budget = search.best, search.budget
    if best is None:
        raise ConfigError(f"--minutes {args.minutes}: spent before the first evaluation, so nothing was written")
    if args.is_json:
        trials = [
            {
                **dataclasses.asdict(trial),
                "rows": [pool.rows[row].line for row in trial.rows],
                "losses": search.losses_of(trial),
            }
            for trial in search.trials
        ]
        spent = {"evaluations": budget.done, "seconds": budget.spent_s}
        print_result(json.dumps({"out": str(args.out), "lucky_nums": search.lucky_nums, **spent, "trials": trials}))
        return
    columns = ("trial", "proposal", "seeds", "loss", "difference", "outcome")
    table = [describe_trial(number, trial, search) for number, trial in enumerate(search.trials, start=1)]
    end = (
        f"{args.out}: {len(best.rows)} rows, by {best.name}, after {budget.done} evaluations in "
        f"{format_duration(budget.spent_s)}\n"
        "These seeds chose it, so its loss is too low. Measure it: "
        f"scripts/compute_loss.py --dataset_path {args.out} --repeats 8"
    )
    if is_terminal():
        shown = make_table(*columns, numbers=("trial", "seeds", "loss", "difference"))
        for cells, trial in zip(table, search.trials, strict=True):
            shown.add_row(*cells, style=GOOD if trial is best else "")
        show(shown, end)
    else:
        widths = [max(map(len, column)) for column in zip(columns, *table, strict=True)]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in (columns, *table)]
        print_result("\n".join([*lines, "", end]))


def describe_trial(number: int, trial: Trial, search: Search) -> tuple[str, ...]:
    """Return the cells of a trial in the table."""
    losses = search.losses_of(trial)
    difference = "-" if trial.difference is None else f"{trial.difference:+.6f}"
    return str(number), trial.name, str(len(losses)), f"{statistics.fmean(losses):.6f}", difference, trial.outcome


if __name__ == "__main__":
    sys.exit(main())
