"""A child process of the benchmark: evaluates datasets one after another.

    python -m scripts.bench.runner JOB.json

`scripts.bench.score` writes the job and starts this, so that memory, threads and loading are the runner's own.

"ours" calls `train_and_evaluate` as a validator's worker does; the base stays loaded. `scripts.bench.peers` has the
other runners, on the Hugging Face Trainer.
"""

import dataclasses
import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.bench.job import OURS, PADDING_FREE, REFERENCE, TUNED, Job, Run
from scripts.bench.peers import run_reference, run_tuned
from template import cli, constants
from template.config import load_training_args
from template.telemetry import logging
from template.train import RunOptions, train_and_evaluate

_BENCHMARK_LOSS = 2.6  # reported only


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All runs of a child process, and its peak memory (on a GPU, reserved by torch)."""

    runs: list[Run]
    peak_mib: float


def main() -> int:
    """Execute the job file named on the command line."""
    logging.quiet_libraries()
    return cli.run_entry_point(_work)


def _work() -> int:
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    run = {OURS: run_ours, REFERENCE: run_reference, TUNED: run_tuned, PADDING_FREE: run_tuned}[job.runner]
    runs = [run(job, *pair) for pair in zip(job.data_dirs, job.lucky_nums, strict=True)]
    outcome = Outcome(runs=runs, peak_mib=_peak_mib(job.device))
    Path(job.out).write_text(json.dumps(dataclasses.asdict(outcome)), encoding="utf-8")
    return 0


def read_outcome(path: Path) -> Outcome:
    """Read the file that a child process wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(runs=[Run(**run) for run in values["runs"]], peak_mib=values["peak_mib"])


def _peak_mib(device: str) -> float:
    if device != "cpu":
        # Reserved, because the memory of CUDA graphs is not counted as allocated.
        return torch.cuda.max_memory_reserved() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, which on Linux includes the peak of the parent process.
        (line,) = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def run_ours(job: Job, data_dir: str, lucky_num: int) -> Run:
    """Evaluate a dataset by `train_and_evaluate`."""
    options = RunOptions(
        training_args=dataclasses.replace(load_training_args(), model_id=job.model_id, revision=None),
        model_path=Path(job.model_path),
        device=job.device,
        dtype=job.dtype,
    )
    where = {"data_dir": data_dir, "eval_data_dir": job.eval_data_dir}
    started = time.perf_counter()
    result = train_and_evaluate(lucky_num, _BENCHMARK_LOSS, constants.MAX_SUBMISSION_ROWS, **where, options=options)
    return Run(
        load_s=result.load_seconds,
        train_s=result.train_seconds,
        eval_s=result.eval_seconds,
        total_s=time.perf_counter() - started,
        loss=result.loss,
        steps=len(result.step_losses),
    )


if __name__ == "__main__":
    sys.exit(main())
