"""Time a queue of evaluations against the number of workers.

    python -m scripts.bench.scaling --workers 1,2
    python -m scripts.bench.scaling --workers 1,2,4,8 --device cuda --shape qwen2.5-1.5b --rows qwen --executors local
    python -m scripts.bench.scaling --workers 1,8,64 --device cuda --executors ray --ray.address auto

Each worker evaluates --scores datasets after one to warm up. The clock runs from the first job to the last result, so
it includes what an executor costs between evaluations. The ratio compares evaluations per hour with the fewest workers
of the same executor; of --repeats, the run with the median seconds counts.

On CPUs every worker is bound to cores of its own, so that it computes alike for any number of workers (not in a
cluster of --ray.address). Without --ray.address a cluster of this machine is started and stopped. Progress goes to
stderr, the table to stdout. Exit status: 0 measured, 2 or 3 an argument or setting is wrong, 4 a worker failed.
"""

import argparse
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.bench.inputs import ROW_SETS, SHAPES, RowMaker, make_folders, make_shape
from template import cli
from template.arguments import Parser
from template.competition import Competition
from template.config import load_training_args
from template.data.chat_templates import template_for
from template.errors import ConfigError, HostError
from template.records import SubmissionKey, TrainResult
from template.training.model import load_tokenizer
from template.workers.executor import Evaluator, Executor
from template.workers.messages import RayConfig
from template.workers.ray_executor import RayExecutor
from template.workers.supervisor import LocalExecutor
from template.workers.timeouts import trained_tokens

_EXECUTORS = ("local", "ray")
_START_S = 600.0
_LUCKY_NUM = 7

# Environment variable that marks all processes started here.
_MARK = "BENCH_SCALING_PID"


def build_parser() -> Parser:
    """Build the command line."""
    parser = Parser(
        prog="python -m scripts.bench.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", default="1,2", help="numbers of workers (default: %(default)s)")
    parser.add_argument("--executors", default=",".join(_EXECUTORS), help="which (default: %(default)s)")
    parser.add_argument("--scores", type=int, default=4, help="evaluations per worker (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of everything (default: %(default)s)")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny", help="of the model (default: %(default)s)")
    parser.add_argument("--rows", choices=sorted(ROW_SETS), default="long", help="made rows (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="of the workers (default: cuda if available)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="of the base model (default: by device)")
    parser.add_argument("--ray.address", dest="ray_address", help="a running cluster with room for all workers")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit status."""
    return cli.run_main(build_parser(), argv, run)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of all evaluations; `tokens` counts all epochs and evaluations."""

    executor: str
    workers: int
    ready_s: float
    seconds: float
    scores: int
    tokens: int
    threads: str
    losses: frozenset[float]


def run(args: argparse.Namespace) -> int:
    """Measure every executor with every number of workers."""
    numbers, names = parse(args)
    os.environ[_MARK] = str(os.getpid())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the started processes as Ctrl-C does
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cores = None if device == "cuda" else (os.cpu_count() or 1) // max(numbers)
    with tempfile.TemporaryDirectory() as folder, open_cluster(args, names, max(numbers)) as address:
        evaluator, data_dirs = make_work(args, device, Path(folder))
        runs = []
        # Alternate the settings, so that the machine's drift affects all of them.
        for _, name, workers in itertools.product(range(args.repeats), names, numbers):
            with closing(open_executor(name, evaluator, workers, address)) as executor:
                measured = measure(executor, data_dirs, name=name, workers=workers, cores=cores)
            print(f"{name} workers={workers} seconds={measured.seconds:.1f}", file=sys.stderr, flush=True)
            runs.append(measured)
    print_table([median_of(runs, name, workers) for name, workers in itertools.product(names, numbers)])
    if len(set().union(*(measured.losses for measured in runs))) != len(data_dirs):
        raise HostError("workers computed different losses for the same dataset")
    return 0


def median_of(runs: Sequence[Measured], name: str, workers: int) -> Measured:
    """Return a setting's run with the median seconds, of two the faster one."""
    matching = [measured for measured in runs if (measured.executor, measured.workers) == (name, workers)]
    return sorted(matching, key=lambda measured: measured.seconds)[(len(matching) - 1) // 2]


def parse(args: argparse.Namespace) -> tuple[list[int], list[str]]:
    """Parse --workers and --executors; ConfigError names an invalid argument."""
    try:
        numbers = sorted({int(number) for number in args.workers.split(",")})
    except ValueError as error:
        raise ConfigError(f"--workers must be numbers like 1,2,4, not {args.workers!r}") from error
    names = args.executors.split(",")
    if numbers[0] < 1:
        raise ConfigError(f"--workers must be positive, not {args.workers!r}")
    if args.device != "cuda" and numbers[-1] > (os.cpu_count() or 1):
        raise ConfigError(f"--workers {args.workers}: on CPUs, each needs a core of its own")
    if not set(names) <= set(_EXECUTORS):
        raise ConfigError(f"--executors must be of {','.join(_EXECUTORS)}, not {args.executors!r}")
    for flag in ("scores", "repeats"):
        if getattr(args, flag) < 1:
            raise ConfigError(f"--{flag} must be positive, not {getattr(args, flag)}")
    return numbers, names


def make_work(args: argparse.Namespace, device: str, folder: Path) -> tuple[Evaluator, list[Path]]:
    """Make the model, the evaluation set and the datasets."""
    model_path = folder / "model"
    training_args = dataclasses.replace(
        load_training_args(), model_id=make_shape(model_path, args.shape), revision=None
    )
    maker = RowMaker(template_for(training_args.model_id), load_tokenizer(training_args, model_path=model_path))
    data_dirs, eval_data_dir = make_folders(folder, maker, ROW_SETS[args.rows], args.scores)
    evaluator = Evaluator(
        competition=Competition.from_defaults(),
        training_args=training_args,
        eval_data_dir=eval_data_dir,
        model_path=model_path,
        device=device,
        dtype=args.dtype,
    )
    return evaluator, data_dirs


def open_executor(name: str, evaluator: Evaluator, workers: int, address: str) -> Executor:
    """Create an executor as a validator does."""
    is_gpu = evaluator.device == "cuda"
    if name == "local":
        devices = [f"cuda:{number}" if is_gpu else "cpu" for number in range(workers)]
        return LocalExecutor(evaluator, devices, log_level="WARNING")
    options = RayConfig(address=address, workers=workers, gpus_per_worker=1.0 if is_gpu else 0.0)
    return RayExecutor(evaluator, options, log_level="WARNING")


def measure(executor: Executor, data_dirs: Sequence[Path], *, name: str, workers: int, cores: int | None) -> Measured:
    """Evaluate every dataset once per worker, each bound to `cores` unless None."""
    started = time.monotonic()
    while executor.start() is None or executor.idle_workers() < workers:
        if time.monotonic() - started > _START_S:
            raise HostError(f"{name}: {workers} workers were not ready within {_START_S:.0f} s")
        executor.wait(0.1)
    ready = time.monotonic()
    if cores is not None:
        bind_workers(cores)
    # Warm up: encode the evaluation set and initialize the libraries.
    evaluate(executor, [data_dirs[0]] * workers)
    started_work = time.monotonic()
    results = evaluate(executor, [folder for folder in data_dirs for _ in range(workers)])
    return Measured(
        executor=name,
        workers=workers,
        ready_s=ready - started,
        seconds=time.monotonic() - started_work,
        scores=len(results),
        tokens=sum(trained_tokens(result) + result.eval_tokens for result in results),
        threads=results[0].environment["threads"],
        losses=frozenset(result.loss for result in results),
    )


def evaluate(executor: Executor, folders: Sequence[Path]) -> list[TrainResult]:
    """Evaluate all datasets, keeping every worker busy."""
    results: list[TrainResult] = []
    waiting = list(enumerate(folders))
    while len(results) < len(folders):
        while waiting and executor.idle_workers():
            number, folder = waiting.pop(0)
            executor.submit(SubmissionKey(f"job {number}", str(folder)), folder, _LUCKY_NUM)
        for job in executor.collect():
            if job.result is None:
                raise HostError(f"an evaluation failed: {job.error}")
            results.append(job.result)
        executor.wait(1.0)
    return results


def bind_workers(cores: int) -> None:
    """Bind each marked worker process to cores of its own; needs /proc."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = ((path / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue  # ended, or another user's
        if b"template.workers.worker" in command and f"{_MARK}={os.getpid()}".encode() in variables:
            pids.append(int(path.name))
    for pid, first in zip(sorted(pids), itertools.count(0, cores), strict=False):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), range(first, first + cores))


@contextmanager
def open_cluster(args: argparse.Namespace, names: Sequence[str], workers: int) -> Iterator[str]:
    """Yield the address of the named Ray cluster, or of a temporary one."""
    if "ray" not in names or args.ray_address is not None:
        yield args.ray_address or "auto"
        return
    # A short path, because Ray puts sockets into it.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"]
        command += [f"--num-cpus={workers}", "--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=false"]
        variables = {**os.environ, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        head = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        address_file = Path(folder) / "ray" / "ray_current_cluster"
        deadline = time.monotonic() + _START_S
        try:
            while not (address_file.exists() and address_file.read_text().strip()):
                if head.poll() is not None or time.monotonic() > deadline:
                    raise HostError("cannot start a Ray cluster; run `ray start --head --block` to see why")
                time.sleep(0.2)
            yield address_file.read_text().strip()
        finally:
            head.terminate()
            head.wait()


def print_table(rows: Sequence[Measured]) -> None:
    """Print the runs as a Markdown table."""
    print("| executor | workers | threads each | ready, s | seconds | evaluations/hour | tokens/s | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        first = next(other for other in rows if other.executor == row.executor)
        rate, first_rate = row.scores / row.seconds, first.scores / first.seconds
        print(
            f"| {row.executor} | {row.workers} | {row.threads} | {row.ready_s:.1f} | {row.seconds:.1f}"
            f" | {3600 * rate:,.0f} | {row.tokens / row.seconds:,.0f} | {rate / first_rate:.2f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
