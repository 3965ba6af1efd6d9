"""Times a queue of scores against the number of workers that share it, on this machine and in a Ray cluster.

    python -m scripts.bench.scaling --workers 1,2
    python -m scripts.bench.scaling --workers 1,2,4,8 --device cuda --shape qwen2.5-1.5b --rows qwen --executors local
    python -m scripts.bench.scaling --workers 1,8,64 --device cuda --executors ray --ray.address auto

Every worker scores --scores datasets, and one before. The clock runs from the first job given to the last result taken
in, so it holds what an executor costs between scores; how long the workers took to be ready stands beside it. The ratio
is of scores an hour, to the same executor with the fewest workers; of --repeats, the one with the median seconds
counts.

On CPUs every worker is first bound to cores of its own, as many as the largest number of workers leaves for each, as
`taskset` would, and so computes alike whatever their number (not in a cluster that is named); a GPU is one worker's.
Without --ray.address a cluster of this machine alone is started, and ended. Progress goes to stderr, the table to
stdout. Exit status: 0 measured, 2 or 3 the command line or another setting is wrong, 4 a worker failed.
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

from scripts.bench.rows import ROW_SETS, SHAPES, RowMaker, make_folders, make_shape
from template import cli
from template.competition import Competition
from template.config import load_training_args
from template.data.chat_templates import template_for
from template.errors import ConfigError, HostError
from template.records import SubmissionKey, TrainResult
from template.training.model import load_tokenizer
from template.workers.executor import Evaluator, Executor
from template.workers.ray_executor import RayExecutor, RayOptions
from template.workers.supervisor import LocalExecutor
from template.workers.timeouts import trained_tokens

_EXECUTORS = ("local", "ray")
_START_S = 600.0
_LUCKY_NUM = 7

# In the environment of all that this process starts.
_MARK = "BENCH_SCALING_PID"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", default="1,2", help="numbers of workers (default: %(default)s)")
    parser.add_argument("--executors", default=",".join(_EXECUTORS), help="which (default: %(default)s)")
    parser.add_argument("--scores", type=int, default=4, help="of each worker (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of everything (default: %(default)s)")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny", help="of the model (default: %(default)s)")
    parser.add_argument("--rows", choices=sorted(ROW_SETS), default="long", help="made rows (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="of the workers (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="of the base model (default: by device)")
    parser.add_argument("--ray.address", dest="ray_address", help="a cluster that has room for the most workers")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One setting. tokens: of training, once for each epoch, and of evaluation, of all scores together."""

    executor: str
    workers: int
    ready_s: float
    seconds: float
    scores: int
    tokens: int
    threads: str
    losses: frozenset[float]


def run(args: argparse.Namespace) -> int:
    """Every executor with every number of workers. Raises: ConfigError; HostError when a score failed."""
    numbers, names = parse(args)
    os.environ[_MARK] = str(os.getpid())
    # Ends what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder, open_cluster(args, names, max(numbers)) as address:
        evaluator, data_dirs = make_work(args, device, Path(folder), args.scores)
        runs = []
        # Settings by turns, so that what else the machine does falls on all of them.
        for _, name, workers in itertools.product(range(args.repeats), names, numbers):
            cores = None if device == "cuda" else (os.cpu_count() or 1) // max(numbers)
            with closing(open_executor(name, evaluator, workers, address)) as executor:
                measured = measure(executor, data_dirs, name=name, workers=workers, cores=cores)
            print(f"{name} workers={workers} seconds={measured.seconds:.1f}", file=sys.stderr, flush=True)
            runs.append(measured)
    print_table([median_of(runs, name, workers) for name, workers in itertools.product(names, numbers)])
    if len(set().union(*(one.losses for one in runs))) != len(data_dirs):
        raise HostError("the same datasets had different losses in different workers")
    return 0


def median_of(runs: Sequence[Measured], name: str, workers: int) -> Measured:
    """Of one setting's runs, the one that took the median of the seconds; of an even number, the faster one."""
    found = [one for one in runs if (one.executor, one.workers) == (name, workers)]
    return sorted(found, key=lambda one: one.seconds)[(len(found) - 1) // 2]


def parse(args: argparse.Namespace) -> tuple[list[int], list[str]]:
    """--workers and --executors. Raises: ConfigError naming the flag."""
    try:
        numbers = sorted({int(number) for number in args.workers.split(",")})
    except ValueError as error:
        raise ConfigError(f"--workers must be numbers like 1,2,4, not {args.workers!r}") from error
    names = args.executors.split(",")
    if not numbers or numbers[0] < 1:
        raise ConfigError(f"--workers must be positive, not {args.workers!r}")
    if args.device != "cuda" and numbers[-1] > (os.cpu_count() or 1):
        raise ConfigError(f"--workers {args.workers}: on CPUs, each needs a core of its own")
    if not set(names) <= set(_EXECUTORS):
        raise ConfigError(f"--executors must be of {','.join(_EXECUTORS)}, not {args.executors!r}")
    for flag in ("scores", "repeats"):
        if getattr(args, flag) < 1:
            raise ConfigError(f"--{flag} must be positive, not {getattr(args, flag)}")
    return numbers, names


def make_work(args: argparse.Namespace, device: str, folder: Path, count: int) -> tuple[Evaluator, list[Path]]:
    """The model, the evaluation set and that many datasets."""
    model_path = folder / "model"
    model_id = make_shape(model_path, args.shape)
    training_args = dataclasses.replace(load_training_args(), model_id=model_id, revision=None)
    maker = RowMaker(template_for(model_id), load_tokenizer(training_args, model_path=model_path))
    data_dirs, eval_data_dir = make_folders(folder, maker, ROW_SETS[args.rows], count)
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
    """The executor, as a validator has it."""
    if name == "local":
        is_gpu = evaluator.device == "cuda"
        return LocalExecutor(
            evaluator, [f"cuda:{at}" if is_gpu else "cpu" for at in range(workers)], log_level="WARNING"
        )
    gpus = 1.0 if evaluator.device == "cuda" else 0.0
    options = RayOptions(address=address, workers=workers, gpus_per_worker=gpus)
    return RayExecutor(evaluator, options, log_level="WARNING")


def measure(executor: Executor, data_dirs: Sequence[Path], *, name: str, workers: int, cores: int | None) -> Measured:
    """Every dataset once for each worker, each worker always busy. cores: for each to be bound to, None to leave them.

    Raises: ConfigError; HostError when a worker failed.
    """
    started = time.monotonic()
    while executor.start() is None or executor.idle_workers() < workers:
        if time.monotonic() - started > _START_S:
            raise HostError(f"{name}: {workers} workers were not ready within {_START_S:.0f} s")
        executor.wait(0.1)
    ready = time.monotonic()
    if cores is not None:
        bind(scoring_processes(), cores)
    # What only a worker's first score pays: the evaluation set's tokens, the libraries' own preparations.
    score(executor, [data_dirs[0]] * workers)
    started_work = time.monotonic()
    results = score(executor, [folder for folder in data_dirs for _ in range(workers)])
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


def score(executor: Executor, folders: Sequence[Path]) -> list[TrainResult]:
    """The results of all the datasets, no worker ever idle. Raises: HostError when a score failed."""
    results: list[TrainResult] = []
    waiting = list(enumerate(folders))
    while len(results) < len(folders):
        while waiting and executor.idle_workers():
            at, folder = waiting.pop(0)
            executor.submit(SubmissionKey(f"score {at}", str(folder)), folder, _LUCKY_NUM)
        for one in executor.collect():
            if one.result is None:
                raise HostError(f"a score failed: {one.error}")
            results.append(one.result)
        executor.wait(1.0)
    return results


def scoring_processes() -> list[int]:
    """The worker processes below this one, and below the cluster that it started. Empty where there is no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((path / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue  # ended meanwhile, or somebody else's
        if b"template.workers.worker" in command and f"{_MARK}={os.getpid()}".encode() in environment:
            found.append(int(path.name))
    return sorted(found)


def bind(pids: Sequence[int], cores: int) -> None:
    """Gives each process, all its threads, so many cores of its own. A score asks for its threads by them."""
    for pid, at in zip(pids, itertools.count(0, cores), strict=False):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), range(at, at + cores))


@contextmanager
def open_cluster(args: argparse.Namespace, names: Sequence[str], workers: int) -> Iterator[str]:
    """The address of a Ray cluster: the one named, else one of this machine alone, ended afterwards."""
    if "ray" not in names or args.ray_address is not None:
        yield args.ray_address or "auto"
        return
    # Not below --dir or the like: sockets lie in it, whose paths may not be long.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"]
        command += [f"--num-cpus={workers}", "--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=false"]
        environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield find_address(head, Path(folder) / "ray" / "ray_current_cluster")
        finally:
            head.terminate()
            head.wait()


def find_address(head: "subprocess.Popen[bytes]", path: Path) -> str:
    """The address that the cluster's head leaves in its folder. Raises: HostError when it ends without."""
    deadline = time.monotonic() + _START_S
    while not (path.exists() and path.read_text().strip()):
        if head.poll() is not None or time.monotonic() > deadline:
            raise HostError("no Ray cluster can be started here; `ray start --head --block` tells why")
        time.sleep(0.2)
    return path.read_text().strip()


def print_table(found: Sequence[Measured]) -> None:
    """The measurements in Markdown, each beside the same executor's with the fewest workers."""
    print("| executor | workers | threads each | ready, s | seconds | scores/hour | tokens/s | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for one in found:
        first = next(other for other in found if other.executor == one.executor)
        ratio = (one.scores / one.seconds) / (first.scores / first.seconds)
        print(
            f"| {one.executor} | {one.workers} | {one.threads} | {one.ready_s:.1f} | {one.seconds:.1f}"
            f" | {3600 * one.scores / one.seconds:.0f} | {one.tokens / one.seconds:.0f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
