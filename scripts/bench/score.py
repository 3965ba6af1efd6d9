"""Times the score beside the public recipe on the Hugging Face Trainer: same rows, same model, same steps.

    python -m scripts.bench.score
    python -m scripts.bench.score --queue 8 --repeats 1
    python -m scripts.bench.score --rows long --only ours
    python -m scripts.bench.score --shape qwen2.5-1.5b --rows qwen --device cuda:0 --dtypes bfloat16

Every runner scores in a child process of its own, ours and the reference by turns, so that memory, threads and loading
are its alone. Seconds are medians over the repeats; a process's start and its imports are in none of them. Useful work
is counted alike for both (scripts/bench/job.py says how) and held against the best square matrix product that this
machine does in that dtype, measured before, between and after the repeats. With --queue, one process scores that many
datasets one after another, and seconds are those of one of them; the reference, which keeps nothing between two, scores
only --reference_queue of them.

Progress goes to stderr. Needs the `test` extra, whose accelerate the Trainer is built on. Exit status: 0 measured, 1 a
check failed (the two do not compute the same), 2 or 3 the command line or another setting is wrong, 4 this machine
failed.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from scripts.bench.inputs import Bench, add_input_arguments, prepare
from scripts.bench.job import Job, Outcome, measure_ceiling, read_outcome
from scripts.bench.report import OURS, REFERENCE, Key, check, compare, format_report, judge, summarize
from template import cli
from template.errors import ConfigError, HostError
from template.training import environment

_MODULES = {runner: f"scripts.bench.{runner}" for runner in (OURS, REFERENCE)}
_ROOT = Path(__file__).resolve().parents[2]
_LUCKY_NUM = 7
_DTYPES = ("float32", "bfloat16")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_arguments(parser)
    runs = parser.add_argument_group("runs")
    runs.add_argument("--dtypes", default=",".join(_DTYPES), help="of the base (default: %(default)s)")
    runs.add_argument("--only", choices=list(_MODULES), help="one runner")
    runs.add_argument("--repeats", type=int, default=3, help="of everything (default: %(default)s)")
    runs.add_argument("--queue", type=int, default=1, help="datasets one after another (default: %(default)s)")
    runs.add_argument(
        "--reference_queue", type=int, default=2, help="of those, scored by the reference (default: %(default)s)"
    )
    runs.add_argument(
        "--reference_eval",
        choices=["adapter", "merged"],
        default="adapter",
        help="merged: evaluate the adapter merged into the base, as the public recipe does: another loss in bfloat16 "
        "(default: %(default)s)",
    )
    runs.add_argument(
        "--noise_seeds",
        type=int,
        default=5,
        help="that tell how far seeds move a loss; 0 for none (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured, too")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


@dataclass
class Measured:
    """What was measured so far: outcomes by runner and dtype, ceilings in GFLOP/s by dtype, losses by seed."""

    outcomes: dict[Key, list[Outcome]] = field(default_factory=dict)
    ceilings: dict[str, list[float]] = field(default_factory=dict)
    noise: list[float] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """The whole benchmark. Raises: ConfigError, HostError."""
    check_arguments(args)
    with tempfile.TemporaryDirectory(prefix="bench-score-") as folder:
        bench = prepare(args, Path(folder))
        measured = Measured()
        measure_ceilings(bench, measured)
        for repeat in range(args.repeats):
            for dtype in bench.dtypes:
                for runner in bench.runners:
                    tell(f"repeat {repeat + 1} of {args.repeats}: {runner} {dtype}")
                    measured.outcomes.setdefault((runner, dtype), []).append(score_once(bench, runner, dtype))
            measure_ceilings(bench, measured)
        if OURS in bench.runners and args.noise_seeds:
            measure_noise(bench, measured, args.noise_seeds)
    return report(args, bench, measured)


def check_arguments(args: argparse.Namespace) -> None:
    """Raises: ConfigError naming the flag that is wrong."""
    for flag in ("repeats", "queue", "reference_queue", "train_rows", "eval_rows"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ConfigError(f"--{flag} must be positive, not {value}")
    if args.noise_seeds < 0 or args.noise_seeds == 1:
        raise ConfigError(f"--noise_seeds must be 0 or at least 2, not {args.noise_seeds}")
    dtypes = args.dtypes.split(",")
    if not set(dtypes) <= set(_DTYPES) or len(set(dtypes)) < len(dtypes):
        raise ConfigError(f"--dtypes must be of {', '.join(_DTYPES)}, each once, not {args.dtypes!r}")
    if (args.train_file is None) != (args.eval_file is None):
        raise ConfigError("--train_file and --eval_file go together")
    if args.shape and args.model_path:
        raise ConfigError("--shape makes a model and --model_path names one: pass one of them")
    if args.json and not args.json.parent.is_dir():
        raise ConfigError(f"--json {args.json}: its folder does not exist")
    if args.only != OURS and importlib.util.find_spec("accelerate") is None:
        raise ConfigError("the reference needs the test extra (accelerate): install it, or pass --only ours")


def measure_ceilings(bench: Bench, measured: Measured) -> None:
    """One more measurement of the ceiling in every dtype, for the machine may drift."""
    for dtype in bench.dtypes:
        ceiling = measure_ceiling(bench.device, getattr(torch, dtype))
        measured.ceilings.setdefault(dtype, []).append(ceiling)
        tell(f"ceiling {dtype}: {ceiling:,.0f} GFLOP/s")


def score_once(bench: Bench, runner: str, dtype: str) -> Outcome:
    """All the datasets that the runner scores, in a process of its own."""
    count = len(bench.data_dirs) if runner == OURS else bench.reference_queue
    return score_in_child(bench, runner, dtype, bench.data_dirs[:count], [_LUCKY_NUM + at for at in range(count)])


def measure_noise(bench: Bench, measured: Measured, seeds: int) -> None:
    """The losses of ours on the first dataset under that many seeds, in the dtype that was fastest."""
    totals = {dtype: measured.outcomes[OURS, dtype][0].scores[0].total_s for dtype in bench.dtypes}
    dtype = min(totals, key=lambda name: totals[name])
    tell(f"seed noise: {seeds} seeds, ours {dtype}")
    outcome = score_in_child(bench, OURS, dtype, [bench.data_dirs[0]] * seeds, [_LUCKY_NUM + at for at in range(seeds)])
    measured.noise = [score.loss for score in outcome.scores]


def score_in_child(
    bench: Bench, runner: str, dtype: str, data_dirs: Sequence[Path], lucky_nums: Sequence[int]
) -> Outcome:
    """Starts the runner's process and waits for it. Raises: HostError with what it said last, when it failed."""
    environment = os.environ.copy()
    device = bench.device
    if device.type == "cuda":
        # One GPU and no other in sight: the Trainer would spread over all.
        seen = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        at = device.index or 0
        environment["CUDA_VISIBLE_DEVICES"] = seen[at] if seen[0] else str(at)
        device = torch.device("cuda", 0)
    job = Job(
        model_path=str(bench.model_path),
        model_id=bench.model_id,
        device=str(device),
        dtype=dtype,
        data_dirs=[str(folder) for folder in data_dirs],
        lucky_nums=list(lucky_nums),
        eval_data_dir=str(bench.eval_data_dir),
        merges=bench.merges,
        out=str(bench.folder / "outcome.json"),
    )
    job_file = bench.folder / "job.json"
    job_file.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", _MODULES[runner], str(job_file)],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = " ".join(done.stderr.splitlines()[-3:])
        raise HostError(f"the process of {runner} in {dtype} ended with status {done.returncode}: {last}")
    return read_outcome(Path(job.out))


def report(args: argparse.Namespace, bench: Bench, measured: Measured) -> int:
    """Prints everything and, with --json, writes it; the exit status."""
    ceilings = {dtype: statistics.median(found) for dtype, found in measured.ceilings.items()}
    figures = summarize(measured.outcomes, bench.load, ceilings)
    ratios = compare(measured.outcomes)
    checks = check(measured.outcomes, measured.noise)
    goals = judge(figures, ratios, bench.load, best=bench.best_dtype, device=bench.device.type)
    print(describe(args, bench, ceilings))
    print(format_report(figures, ratios, checks, goals))
    if args.json:
        everything = {
            "settings": {name: str(value) for name, value in vars(args).items()},
            "environment": describe_machine(bench),
            "load": dataclasses.asdict(bench.load),
            "ceilings": measured.ceilings,
            "runners": {" ".join(key): dataclasses.asdict(found) for key, found in figures.items()},
            "outcomes": {
                " ".join(key): [dataclasses.asdict(one) for one in ran] for key, ran in measured.outcomes.items()
            },
            "ratios": [dataclasses.asdict(ratio) for ratio in ratios],
            "noise": measured.noise,
            "checks": [dataclasses.asdict(verdict) for verdict in checks],
            "goals": [dataclasses.asdict(verdict) for verdict in goals],
        }
        args.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return 0 if all(verdict.holds for verdict in checks) else 1


def describe(args: argparse.Namespace, bench: Bench, ceilings: Mapping[str, float]) -> str:
    """What was run where, in the lines above the table."""
    load, machine = bench.load, describe_machine(bench)
    lines = [
        f"{args.shape or bench.model_path.name} on {machine['device_name']}, {machine['threads']} threads, "
        f"torch {machine['torch']}; medians of {args.repeats}",
        f"rows: {load.train_rows} to train on, {load.train_tokens:,.0f} tokens in all epochs; "
        f"{load.eval_rows} to evaluate, {load.eval_tokens:,.0f} tokens",
        "ceiling: " + ", ".join(f"{dtype} {ceiling:,.0f} GFLOP/s" for dtype, ceiling in ceilings.items()),
    ]
    if load.submissions > 1:
        lines.append(
            f"queue: {load.submissions} datasets by ours, {bench.reference_queue} of them by the reference; "
            "all figures are for one"
        )
    return "\n".join(lines)


def describe_machine(bench: Bench) -> dict[str, str]:
    """The device, its threads and the libraries."""
    return environment.describe_environment(bench.device, environment.choose_dtype(bench.device))


def tell(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
