"""Measure the noise of a competition and propose its values.

    python scripts/calibrate.py --competition competition.yaml --training_args training_args.yaml
    python scripts/calibrate.py --competition competition.yaml --samples 8 --repeats 6 --good best.jsonl

For the owner of a subnet. It draws datasets of random rows from the evaluation set, evaluates each under several seeds
as a validator does, and prints how far rows and seeds move a loss, and values for the competition file. --good names
datasets that are better than random rows, from your own search: minb and maxb follow from the best of them. The present
file must be valid, but its bench, minb and maxb may be anything; evaluations and blocks_per_epoch are taken from it.

The result goes to stdout, progress and logs to stderr. Exit status: 0 measured, 2 or 3 the command line or another
setting is wrong, 4 this machine failed, 5 the Hub did not answer, 6 a dataset of --good cannot be used.
"""

import argparse
import contextlib
import dataclasses
import json
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from template import cli, constants, files
from template.arguments import Check, Parser
from template.competition import Incentives
from template.config import load_competition, load_incentives, load_training_args
from template.data.eval_set import EvalSetIndex, check_dataset, read_distinct_lines, read_eval_set_index
from template.errors import ConfigError
from template.receipts.replay import evaluate_once
from template.records import TrainResult
from template.rules.calibration import Proposal, Spread, measure_spread, propose_values
from template.terminal import Countdown, escape, format_duration, print_result
from template.workers.executor import Evaluator


def check_counts(args: argparse.Namespace) -> None:
    """Check --samples, --repeats and --rows. Raises: ConfigError."""
    if args.rows is not None and args.rows < 1:
        raise ConfigError(f"--rows must be at least 1, not {args.rows}")
    for flag in ("samples", "repeats"):
        if getattr(args, flag) < 2:
            raise ConfigError(f"--{flag} must be at least 2, to measure a spread, not {getattr(args, flag)}")


def check_good(args: argparse.Namespace) -> None:
    """Check that the files of --good can be read. Raises: ConfigError."""
    for path in args.good:
        cli.check_dataset_file(path, "--good")


# Made before any work, so that one run names all that is wrong.
CHECKS: tuple[Check, ...] = (
    cli.check_competition,
    cli.check_score_arguments,
    lambda args: cli.hub_token(),
    check_counts,
    check_good,
)


def build_parser() -> Parser:
    parser = cli.make_parser("calibrate", __doc__, checks=CHECKS)
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    cli.add_replay_arguments(parser)
    add = parser.add_argument
    add("--samples", type=int, default=5, metavar="N", help="number of datasets of random rows (default: 5)")
    add("--repeats", type=int, default=4, metavar="K", help="number of seeds for each dataset (default: 4)")
    good_help = "datasets that are better than random rows: files, or folders with data.jsonl"
    add("--good", type=Path, nargs="+", default=[], metavar="FILE_OR_DIR", help=good_help)
    rows_help = "number of rows of a random dataset (default: as many as the competition counts)"
    add("--rows", type=int, metavar="N", help=rows_help)
    add("--seed", type=int, default=0, help="draws the rows and the evaluations' seeds (default: 0)")
    add("--json", dest="is_json", action="store_true", help="print one JSON object")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Evaluate the datasets and print the proposal."""
    competition, incentives = load_competition(args.competition), load_incentives(args.competition)
    evaluator = cli.make_replay_context(args).evaluator(competition, load_training_args(args.training_args))
    eval_file = evaluator.eval_data_dir / constants.DATA_FILE
    pool, draw = read_eval_set_index(eval_file), random.Random(args.seed)
    rows = read_distinct_lines(eval_file, pool)
    count = args.rows or competition.rows
    if len(rows) < count:
        raise ConfigError(
            f"{eval_file}: {len(rows)} different rows are too few for datasets of {count} rows; see --rows"
        )
    datasets = {f"random {number}": b"\n".join(draw.sample(rows, count)) for number in range(1, args.samples + 1)}
    good = {str(path): read_good(path, eval_file, pool, competition.rows) for path in args.good}
    results = evaluate_all({**datasets, **good}, evaluator, args.repeats, draw)
    losses = {name: [result.loss for result in runs] for name, runs in results.items()}
    seconds = statistics.median(run.train_seconds + run.eval_seconds for runs in results.values() for run in runs)
    spread = measure_spread([losses[name] for name in datasets])
    proposal = propose_values(
        spread,
        [losses[name] for name in good],
        evaluations=incentives.evaluations,
        blocks_per_epoch=incentives.blocks_per_epoch,
        seconds=seconds,
    )
    if args.is_json:
        measured = {"losses": losses, "seconds": seconds, "spread": dataclasses.asdict(spread)}
        print_result(json.dumps({**measured, "proposal": dataclasses.asdict(proposal)}))
    else:
        print_result("\n".join(describe(losses, spread, proposal, incentives, seconds)))
    return 0


def read_good(path: Path, eval_file: Path, pool: EvalSetIndex, max_rows: int) -> bytes:
    """Read a dataset of --good. Raises: ConfigError; SubmissionError unless its rows are in the evaluation set."""
    file = path / constants.DATA_FILE if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--good {file}: cannot be read: {error.strerror or error}") from error
    check_dataset(content, pool, name=str(file), max_rows=max_rows, eval_file=eval_file)
    return content


def evaluate_all(
    datasets: dict[str, bytes], evaluator: Evaluator, repeats: int, draw: random.Random
) -> dict[str, list[TrainResult]]:
    """Evaluate each dataset under seeds of its own."""
    countdown = Countdown("evaluated", len(datasets) * repeats)
    results: dict[str, list[TrainResult]] = {}
    with contextlib.ExitStack() as stack:
        for name, content in datasets.items():
            folder = stack.enter_context(files.temporary_folder())
            files.OutputFile(name=constants.DATA_FILE, content=content, mode=0o600).write(folder)
            for _ in range(repeats):
                results.setdefault(name, []).append(evaluate_once(evaluator, folder, draw.getrandbits(32)))
                countdown.advance()
    return results


def describe(
    losses: dict[str, list[float]], spread: Spread, proposal: Proposal, incentives: Incentives, seconds: float
) -> list[str]:
    """Format the measurement, and the values as lines of a competition file."""
    width = max(len(escape(name)) for name in losses)
    assumed = "assumed: --good names a dataset that is better" if proposal.is_assumed else "twice as far as --good"
    return [
        f"{'dataset':{width}}  {'mean':>9}  {'spread':>9}",
        *(
            f"{escape(name):{width}}  {statistics.fmean(runs):9.6f}  {statistics.stdev(runs):9.6f}"
            for name, runs in losses.items()
        ),
        "",
        f"the seed moves a loss by {spread.seed_sd:.6f} nats (standard deviation, known to {spread.seed_error:.0%})",
        f"the choice of random rows moves it by {spread.sample_sd:.6f} nats",
        f"an evaluation takes {format_duration(seconds)} on this machine",
        "",
        "# for the competition file",
        f"bench: {proposal.bench:<12g}# random rows, less two standard deviations between samples",
        f"minb: {proposal.minb:<13g}# {assumed}",
        f"maxb: {proposal.maxb:<13g}# as far above bench",
        "incentives:",
        f"  epsilon: {proposal.epsilon:<8g}# 3.5 standard errors of a confirmed loss",
        f"  sd: {proposal.sd:<13g}# of random rows or of --good, whichever is larger",
        f"  evaluations: {proposal.evaluations:<4}# as in the file",
        f"  hold: {proposal.hold:<11}# 8/3 of evaluations",
        f"  slots: {proposal.slots:<10}# of one worker like this one, in 80% of {incentives.blocks_per_epoch} blocks",
        *(
            ["# Slots must be 1 or more: take longer rounds (blocks_per_epoch) or faster machines."]
            * (not proposal.slots)
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
