"""One process of the benchmark: submissions scored by this package, through the same call as a validator's worker.

    python -m scripts.bench.ours JOB.json

`scripts/bench/score.py` writes the job and starts this. The base stays resident from one submission to the next.
"""

import dataclasses
import sys
import time
from pathlib import Path

from scripts.bench.job import Job, Score, run_job
from template import constants
from template.config import load_training_args
from template.train import RunOptions, train_and_evaluate

_BENCHMARK_LOSS = 2.6  # only reported against


def score(job: Job, data_dir: str, lucky_num: int) -> Score:
    """One submission by `train_and_evaluate`."""
    options = RunOptions(
        training_args=dataclasses.replace(load_training_args(), model_id=job.model_id, revision=None),
        model_path=Path(job.model_path),
        device=job.device,
        dtype=job.dtype,
    )
    started = time.perf_counter()
    result = train_and_evaluate(
        lucky_num,
        _BENCHMARK_LOSS,
        constants.MAX_SUBMISSION_ROWS,
        data_dir=data_dir,
        eval_data_dir=job.eval_data_dir,
        options=options,
    )
    return Score(
        load_s=result.load_seconds,
        train_s=result.train_seconds,
        eval_s=result.eval_seconds,
        total_s=time.perf_counter() - started,
        loss=result.loss,
        steps=len(result.step_losses),
    )


if __name__ == "__main__":
    sys.exit(run_job(score))
