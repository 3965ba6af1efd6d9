"""Time an evaluation beside three recipes on the Hugging Face Trainer: the public one, tuned, tuned without padding.

    python -m scripts.bench.score
    python -m scripts.bench.score --queue 8 --repeats 1
    python -m scripts.bench.score --rows long --only ours
    python -m scripts.bench.score --shape qwen2.5-1.5b --rows qwen --device cuda:0 --dtypes bfloat16

Each runner evaluates in a child process (scripts/bench/runner.py, peers.py), by turns, with the same rows, model and
steps. Seconds are medians over the repeats, without the start of a process and its imports. Useful operations
(scripts/bench/flops.py) are compared with the fastest square matrix product of this machine in that dtype, measured
before, between and after the repeats. With --queue, one process evaluates that many datasets, and seconds are per
dataset; the reference, which keeps nothing loaded, evaluates only --reference_queue of them.

Progress goes to stderr. Needs the `test` extra for the Trainer. Exit status: 0 measured, 1 the runners do not
compute the same, 2 or 3 an argument or setting is wrong, 4 this machine failed.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from scripts.bench.flops import Shape, count_evaluation, count_training, measure_ceiling
from scripts.bench.inputs import Inputs, add_input_arguments, positive, prepare
from scripts.bench.job import OURS, PADDING_FREE, REFERENCE, TUNED, Job
from scripts.bench.peers import why_no_flash_attention, why_no_unsloth
from scripts.bench.runner import Outcome, read_outcome
from template import cli
from template.arguments import Parser
from template.errors import ConfigError, HostError
from template.training import environment

_ROOT = Path(__file__).resolve().parents[2]
_LUCKY_NUM = 7
_DTYPES = ("float32", "bfloat16")
_NOISE_STDS = 3.0
_RUNNERS = (OURS, TUNED, PADDING_FREE, REFERENCE)
_SECONDS = ("load_s", "train_s", "eval_s", "total_s")

Key = tuple[str, str]
"""(runner, dtype)."""


def build_parser() -> Parser:
    """Build the command line."""
    parser = Parser(
        prog="python -m scripts.bench.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_arguments(parser)
    runs = parser.add_argument_group("runs")
    runs.add_argument("--dtypes", type=parse_dtypes, default=_DTYPES, help="of the base (default: float32,bfloat16)")
    runs.add_argument("--only", choices=_RUNNERS, help="one runner")
    runs.add_argument("--repeats", type=positive, default=3, help="of everything (default: %(default)s)")
    runs.add_argument("--queue", type=positive, default=1, help="datasets per process (default: %(default)s)")
    runs.add_argument("--reference_queue", type=positive, default=2, help="for the reference (default: %(default)s)")
    runs.add_argument("--noise_seeds", type=int, default=5, help="to measure the loss's spread; 0: none (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    cli.add_logging_arguments(parser)
    return parser


def parse_dtypes(text: str) -> tuple[str, ...]:
    """Parse distinct dtypes, separated by commas."""
    dtypes = tuple(text.split(","))
    if not set(dtypes) <= set(_DTYPES) or len(set(dtypes)) < len(dtypes):
        raise argparse.ArgumentTypeError(f"expected {','.join(_DTYPES)} or one of them, not {text!r}")
    return dtypes


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and return the exit status."""
    return cli.run_main(build_parser(), argv, run)


@dataclass
class Measurements:
    """Outcomes by runner and dtype, ceilings in GFLOP/s, losses by seed."""

    outcomes: dict[Key, list[Outcome]] = field(default_factory=dict)
    ceilings: dict[str, list[float]] = field(default_factory=dict)
    noise: list[float] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """Measure everything and report it."""
    if args.json and not args.json.parent.is_dir():
        raise ConfigError(f"--json {args.json}: its folder does not exist")
    if args.only != OURS and importlib.util.find_spec("accelerate") is None:
        raise ConfigError("the Trainer needs the test extra (accelerate): install it, or pass --only ours")
    runners = [args.only] if args.only else _RUNNERS
    measured = Measurements()
    with tempfile.TemporaryDirectory(prefix="bench-score-") as folder:
        inputs = prepare(args, Path(folder), args.queue)
        load = measure_load(inputs)
        measure_ceilings(args, measured)
        for repeat in range(args.repeats):
            for dtype in args.dtypes:
                for runner in runners:
                    log(f"repeat {repeat + 1} of {args.repeats}: {runner} {dtype}")
                    count = min(args.reference_queue, args.queue) if runner == REFERENCE else args.queue
                    outcome = run_child(args, inputs, (runner, dtype), inputs.data_dirs[:count])
                    measured.outcomes.setdefault((runner, dtype), []).append(outcome)
            measure_ceilings(args, measured)
        if OURS in runners and args.noise_seeds:
            fastest = min(args.dtypes, key=lambda dtype: measured.outcomes[OURS, dtype][0].runs[0].total_s)
            log(f"seed noise: {args.noise_seeds} seeds, ours {fastest}")
            outcome = run_child(args, inputs, (OURS, fastest), [inputs.data_dirs[0]] * args.noise_seeds)
            measured.noise = [run.loss for run in outcome.runs]
    figures = {key: summarize(key, outcomes, load, measured) for key, outcomes in measured.outcomes.items()}
    ratios = compare(measured.outcomes)
    checks = check(measured)
    print(format_report(args, load, measured, figures, ratios, checks))
    if args.json:
        content = {
            "settings": {name: str(value) for name, value in vars(args).items()},
            "environment": describe_machine(args),
            "load": load,
            "ceilings": measured.ceilings,
            "runners": {" ".join(key): values for key, values in figures.items()},
            "outcomes": {
                " ".join(key): [dataclasses.asdict(outcome) for outcome in outcomes]
                for key, outcomes in measured.outcomes.items()
            },
            "ratios": ratios,
            "noise": measured.noise,
            "checks": checks,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if all(checks.values()) else 1


def measure_load(inputs: Inputs) -> dict[str, float]:
    """Count rows, tokens and useful operations per dataset, in all epochs."""
    shape = Shape.from_config(json.loads((inputs.model_path / "config.json").read_text(encoding="utf-8")))
    hyper = inputs.training_args.hyperparameters
    epochs, rank = hyper.num_train_epochs, hyper.lora_rank
    datasets = [inputs.maker.encode_folder(folder) for folder in inputs.data_dirs]
    eval_rows = inputs.maker.encode_folder(inputs.eval_data_dir)
    return {
        "datasets": len(datasets),
        "train_rows": len(datasets[0]),
        "train_tokens": statistics.fmean(epochs * sum(len(row.input_ids) for row in rows) for rows in datasets),
        "train_flops": statistics.fmean(count_training(shape, rank, rows, epochs) for rows in datasets),
        "eval_rows": len(eval_rows),
        "eval_tokens": sum(len(row.input_ids) for row in eval_rows),
        "eval_flops": count_evaluation(shape, rank, eval_rows),
    }


def measure_ceilings(args: argparse.Namespace, measured: Measurements) -> None:
    """Measure the ceiling of each dtype once more, because the machine may drift."""
    for dtype in args.dtypes:
        ceiling = measure_ceiling(environment.choose_device(args.device), getattr(torch, dtype))
        measured.ceilings.setdefault(dtype, []).append(ceiling)
        log(f"ceiling {dtype}: {ceiling:,.0f} GFLOP/s")


def run_child(args: argparse.Namespace, inputs: Inputs, key: Key, data_dirs: Sequence[Path]) -> Outcome:
    """Evaluate datasets in a child process; HostError if it fails."""
    runner, dtype = key
    variables = os.environ.copy()
    device = environment.choose_device(args.device)
    if device.type == "cuda":
        # Hide all other GPUs, over which the Trainer would spread.
        visible = variables.get("CUDA_VISIBLE_DEVICES", "").split(",")
        index = device.index or 0
        variables["CUDA_VISIBLE_DEVICES"] = visible[index] if visible[0] else str(index)
        device = torch.device("cuda", 0)
    folder = inputs.eval_data_dir.parent
    job = Job(
        runner=runner,
        model_path=str(inputs.model_path),
        model_id=inputs.training_args.model_id,
        device=str(device),
        dtype=dtype,
        data_dirs=[str(data_dir) for data_dir in data_dirs],
        lucky_nums=[_LUCKY_NUM + number for number in range(len(data_dirs))],
        eval_data_dir=str(inputs.eval_data_dir),
        out=str(folder / "outcome.json"),
    )
    (folder / "job.json").write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    command = [sys.executable, "-m", "scripts.bench.runner", str(folder / "job.json")]
    process = subprocess.run(command, cwd=_ROOT, env=variables, capture_output=True, text=True)
    if process.returncode:
        last = " ".join(process.stderr.splitlines()[-3:])
        raise HostError(f"the process of {runner} in {dtype} ended with status {process.returncode}: {last}")
    return read_outcome(Path(job.out))


def _mean(outcome: Outcome, name: str) -> float:
    return statistics.fmean(getattr(run, name) for run in outcome.runs)


def summarize(
    key: Key, outcomes: Sequence[Outcome], load: dict[str, float], measured: Measurements
) -> dict[str, float]:
    """Summarize a runner: medians over repeats of means over datasets."""
    figures = {name: statistics.median(_mean(outcome, name) for outcome in outcomes) for name in _SECONDS}
    figures["peak_mib"] = statistics.median(outcome.peak_mib for outcome in outcomes)
    ceiling = statistics.median(measured.ceilings[key[1]])
    for stage in ("train", "eval"):
        figures[f"{stage}_tokens_per_s"] = load[f"{stage}_tokens"] / figures[f"{stage}_s"]
        figures[f"{stage}_gflops"] = load[f"{stage}_flops"] / figures[f"{stage}_s"] / 1e9
        figures[f"{stage}_share"] = figures[f"{stage}_gflops"] / ceiling
    return {**figures, "loss": outcomes[0].runs[0].loss}


def compare(outcomes: dict[Key, list[Outcome]]) -> dict[str, dict[str, float]]:
    """Divide the peers' figures by ours: medians over the repeats."""
    ratios = {}
    for (ours, dtype), fast in outcomes.items():
        for (peer, other), slow in outcomes.items():
            if ours == OURS and peer != OURS:
                pairs = list(zip(slow, fast, strict=True))
                ratio = {
                    name: statistics.median(_mean(a, name) / _mean(b, name) for a, b in pairs) for name in _SECONDS
                }
                peak = statistics.median(a.peak_mib / b.peak_mib for a, b in pairs)
                ratios[f"ours {dtype} : {peer} {other}"] = {**ratio, "peak_mib": peak}
    return ratios


def check(measured: Measurements) -> dict[str, bool]:
    """Check for equal steps, and for losses that differ no more than by seed.

    The mean difference over n datasets has sqrt(2 / n) times the standard deviation of one loss, because each runner
    draws for itself.
    """
    outcomes, noise = measured.outcomes, measured.noise
    steps = sorted({run.steps for repeats in outcomes.values() for outcome in repeats for run in outcome.runs})
    checks = {f"optimizer steps of every dataset: {', '.join(map(str, steps))}": len(steps) == 1}
    for peer, dtype in outcomes:
        if peer != OURS and (OURS, dtype) in outcomes and len(noise) > 1:
            ours, theirs = (outcomes[name, dtype][0].runs for name in (OURS, peer))
            differences = [a.loss - b.loss for a, b in zip(ours, theirs, strict=False)]
            difference = abs(statistics.fmean(differences))
            bound = _NOISE_STDS * statistics.stdev(noise) * math.sqrt(2 / len(differences))
            text = f"losses of {peer} in {dtype}: {difference:.5f} apart, {_NOISE_STDS:g} std by {len(noise)} seeds are"
            checks[f"{text} {bound:.5f}"] = difference <= bound
    return checks


_HEADER = (
    f"{'':22}{'seconds for one dataset':>31}{'peak':>8}{'training':>19}{'evaluation':>24}\n"
    f"{'runner':13}{'dtype':9}{'load':>7}{'train':>8}{'eval':>8}{'total':>8}{'MiB':>8}"
    f"{'tok/s':>9}{'GFLOP/s':>10}{'ceil':>5}{'tok/s':>9}{'GFLOP/s':>10}{'ceil':>5}{'loss':>9}"
)
_LINE = (
    "{:13}{:9}{load_s:7.2f}{train_s:8.2f}{eval_s:8.2f}{total_s:8.2f}{peak_mib:8,.0f}"
    "{train_tokens_per_s:9,.0f}{train_gflops:10,.1f}{train_share:5.0%}"
    "{eval_tokens_per_s:9,.0f}{eval_gflops:10,.1f}{eval_share:5.0%}{loss:9.5f}"
)


def format_report(
    args: argparse.Namespace,
    load: dict[str, float],
    measured: Measurements,
    figures: dict[Key, dict[str, float]],
    ratios: dict[str, dict[str, float]],
    checks: dict[str, bool],
) -> str:
    """Format the report: inputs, table, ratios and checks."""
    machine = describe_machine(args)
    ceilings = {dtype: statistics.median(values) for dtype, values in measured.ceilings.items()}
    lines = [
        f"{args.shape or args.model_id} on {machine['device_name']}, {machine['threads']} threads, "
        f"torch {machine['torch']}; medians of {args.repeats}",
        f"rows: {load['train_rows']} to train on, {load['train_tokens']:,.0f} tokens in all epochs; "
        f"{load['eval_rows']} to evaluate, {load['eval_tokens']:,.0f} tokens",
        "ceiling: " + ", ".join(f"{dtype} {ceiling:,.0f} GFLOP/s" for dtype, ceiling in ceilings.items()),
    ]
    if args.queue > 1:
        lines.append(f"queue: {args.queue} datasets, {min(args.reference_queue, args.queue)} by the reference")
    lines += ["", _HEADER, *(_LINE.format(*key, **values) for key, values in figures.items())]
    if ratios:
        names = (*_SECONDS, "peak_mib")
        heads = "".join(f"{name.rpartition('_')[0]:>7}" for name in names)
        lines += ["", f"{'times less than the peer takes':40}{heads}"]
        lines += [f"{pair:40}" + "".join(f"{ratio[name]:7.2f}" for name in names) for pair, ratio in ratios.items()]
    lines += ["", *describe_peers(args)]
    lines += [*(f"check: {text}: {'agree' if holds else 'DISAGREE'}" for text, holds in checks.items())]
    return "\n".join(lines)


def describe_peers(args: argparse.Namespace) -> list[str]:
    """Say which peers are missing or lack a package."""
    if args.only:
        return []
    reason = why_no_flash_attention(str(environment.choose_device(args.device)))
    lines = [f"{PADDING_FREE}: torch's own attention, because {reason}"] if reason else []
    return [*lines, f"unsloth: not run, because {why_no_unsloth()}"]


def describe_machine(args: argparse.Namespace) -> dict[str, str]:
    """Describe the device, its threads and the libraries."""
    device = environment.choose_device(args.device)
    return environment.describe_environment(device, environment.choose_dtype(device))


def log(line: str) -> None:
    """Print progress to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
